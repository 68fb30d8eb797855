"""A handler's result as JSON: what is taken, what is converted, and where the one thing stands that is neither.

msgspec writes the plain types, dataclasses, its own structs, dates, UUIDs, enums, Decimal (as text), sets and bytes
(as base64). The rest of what handlers return in good faith is converted here, without importing its package: nobody
can have returned a numpy scalar or a pydantic model where the package is not loaded.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from gigaoffice_worker.core.records import Failure

_LONGEST_PLACE: Final = 200
_NOT_SUCCESSFUL: Final = b'"success":false'


class UnusableResultError(ValueError):
    """A result that cannot be written as JSON: `kind` is the type that is in the way, `place` where it stands."""

    def __init__(self, message: str, kind: str, place: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.place = place


def encode_result(result: object) -> bytes:
    """Return a result as JSON. Raises UnusableResultError, whatever the result does while it is read."""
    try:
        return _encode(result)
    except RecursionError:
        message = "the result is nested too deeply, or refers to itself"
        raise UnusableResultError(message, _name(result), "result") from None
    except BaseException as error:  # noqa: BLE001  # code of the handler's own runs here: properties, serialisers
        try:
            kind, place = _culprit(result, "result")
        except BaseException:  # noqa: BLE001  # it fails in another way when looked at twice
            kind, place = _name(result), "result"
        place = place if len(place) <= _LONGEST_PLACE else f"{place[:_LONGEST_PLACE]}…"
        reason = "" if isinstance(error, _NotJsonError) else f" ({type(error).__name__})"
        message = f"the result cannot be written as JSON: {place} is of the type {kind}{reason}"
        raise UnusableResultError(message, kind, place) from None


def failure_told(result: bytes) -> Failure | None:
    """Return the failure that an encoded result tells with `"success": false`, as the API service's answers do."""
    if _NOT_SUCCESSFUL not in result:
        return None
    try:
        said = _decode_said(result)
    except msgspec.MsgspecError:  # an array or a text that only contains these words
        return None
    if said.success is not False:
        return None
    texts = [text for text in (said.error, said.message) if isinstance(text, str) and text]
    return Failure("HandlerFailure", texts[0] if texts else 'the handler answered "success": false')


class _Said(msgspec.Struct):
    success: Any = None
    error: Any = None
    message: Any = None


class _NotJsonError(TypeError):
    """A type that has no form in JSON."""


def _plain(value: Any) -> Any:
    """Return what msgspec does not know as something that it does; it asks for the keys of objects too."""
    # Subclasses of plain types, by the plain type's own method, so that what they override cannot get in the way.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.generic):
        item = value.item()
        return item if type(item) is not type(value) else float(item)  # a longdouble is its own item
    if (pydantic := sys.modules.get("pydantic")) is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise _NotJsonError(f"{_name(value)} has no form in JSON")


def _encode(result: object) -> bytes:
    """Return a result as JSON. Raises whatever is in its way."""
    written = _write(result)
    if _holds_raw(result):
        _decode(written)  # msgspec has copied the Raw without a look at it
    return written


def _holds_raw(result: object) -> bool:
    """Say whether a result is a Raw or has one directly in it: to look deeper costs more than to write the result."""
    parts: Iterable[object]
    if isinstance(result, dict):
        parts = dict.values(result)  # as msgspec reads it, whatever a subclass makes of it
    elif type(result) is list:
        parts = result
    else:
        parts = (part for part, _ in _parts(result))
    return type(result) is msgspec.Raw or msgspec.Raw in map(type, parts)


_write = msgspec.json.Encoder(enc_hook=_plain).encode
_decode = msgspec.json.Decoder().decode
_decode_said = msgspec.json.Decoder(_Said).decode


def _culprit(value: object, place: str) -> tuple[str, str]:
    """Return the type and the place of the innermost part that cannot be written."""
    if isinstance(value, dict):
        for key in value:
            if not _can_be_written({key: None}):
                return _name(key), f"a key of {place}"
    for part, name in _parts(value):
        if not _can_be_written(part):
            return _culprit(part, f"{place}{name}")
    return _name(value), place


def _can_be_written(value: object) -> bool:
    try:
        _encode(value)
    except BaseException:  # noqa: BLE001  # code of the handler's own, again
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[object, str]]:
    if isinstance(value, dict):
        yield from ((part, f"[{_key(key)}]") for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((part, f"[{index}]") for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((part, "{…}") for part in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        # msgspec leaves out what was never set.
        yield from ((getattr(value, field.name, None), f".{field.name}") for field in dataclasses.fields(value))
    elif isinstance(value, msgspec.Struct):
        yield from ((getattr(value, name), f".{name}") for name in value.__struct_fields__)


def _key(key: object) -> str:
    return repr(key) if isinstance(key, str | int | float | bool) else _name(key)


def _name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
