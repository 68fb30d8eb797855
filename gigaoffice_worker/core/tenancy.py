"""Whom a request is for and how urgent it is, read without decoding the rest of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gigaoffice_worker.core.records import Record

HEADER: Final = "header:"
_LONGEST_TENANT: Final = 256
_HIGHEST_PRIORITY: Final = 1e6
_HIGHEST_STEP: Final = 7


@dataclass(frozen=True, slots=True)
class Urgency:
    """Where the tenant and the priority of requests stand: a field of the request, or `header:NAME`; None for nowhere.

    Values of more than `most_bytes` are not looked into.
    """

    tenant: str | None = None
    priority: str | None = None
    most_bytes: int = 8 * 1024 * 1024

    @property
    def known(self) -> bool:
        """Whether requests are told apart at all."""
        return self.tenant is not None or self.priority is not None

    def reader(self) -> Callable[[Record], tuple[str, float]]:
        """Return what reads a record's tenant and priority; "" and 0 where it does not say."""
        fields = {
            name: field
            for name, field in (("tenant", self.tenant), ("priority", self.priority))
            if field is not None and not field.startswith(HEADER)
        }
        decode = _decoder(fields)

        def read(record: Record) -> tuple[str, float]:
            found = decode(record.value, self.most_bytes) if decode is not None and record.value is not None else None
            return (
                _tenant(_said(self.tenant, "tenant", found, record)),
                _priority(_said(self.priority, "priority", found, record)),
            )

        return read


def step(priority: float) -> int:
    """Return the step of a priority: requests that are parked are told apart by their steps, of which there are few."""
    return int(math.copysign(min(math.log2(1.0 + abs(priority)), _HIGHEST_STEP), priority))


def _decoder(fields: dict[str, str]) -> Callable[[bytes, int], Any] | None:
    if not fields:
        return None
    # Both may be one field of the request, but a Struct has no two fields of one name.
    names = list(dict.fromkeys(fields.values()))
    shape = msgspec.defstruct(
        "Fields",
        [(f"field_{number}", msgspec.Raw, msgspec.Raw(b"null")) for number in range(len(names))],
        rename={f"field_{number}": name for number, name in enumerate(names)},
    )
    decode = msgspec.json.Decoder(shape).decode

    def read(value: bytes, most: int) -> dict[str, Any] | None:
        if len(value) > most:
            return None
        try:
            found = decode(value)
            return {each: _plain(getattr(found, f"field_{names.index(field)}")) for each, field in fields.items()}
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None  # It is no request, as its handler's thread will find out.

    return read


def _plain(raw: msgspec.Raw) -> object:
    """Decode text and numbers; what is nested, or null, says nothing."""
    text = bytes(raw)
    return None if text[:1] in {b"{", b"[", b"n"} else msgspec.json.decode(text)


def _said(place: str | None, name: str, fields: dict[str, Any] | None, record: Record) -> object:
    if place is None:
        return None
    if place.startswith(HEADER):
        wanted = place.removeprefix(HEADER)
        values = [value for header, value in record.headers if header == wanted]
        return values[-1].decode("utf-8", "replace") if values and values[-1] is not None else None
    return fields[name] if fields is not None else None


def _tenant(said: object) -> str:
    return "" if said is None else str(said)[:_LONGEST_TENANT]


def _priority(said: object) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return 0.0
    try:
        number = float(said)
    except (ValueError, OverflowError):
        return 0.0
    return max(-_HIGHEST_PRIORITY, min(_HIGHEST_PRIORITY, number)) if math.isfinite(number) else 0.0
