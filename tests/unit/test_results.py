"""A handler's result as JSON: what is taken, and what is said of the rest."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest

from gigaoffice_worker.core.records import Failure
from gigaoffice_worker.core.results import UnusableResultError, encode_result, failure_told


@dataclasses.dataclass
class Sum:
    total: object
    unit: str = "EUR"


class Row(msgspec.Struct):
    cells: list[Any]


class Model(pydantic.BaseModel):
    price: Decimal
    at: date
    inner: list[Model] = []


class Named(NamedTuple):
    a: int


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise LookupError


class Whole(int):
    pass


class Real(float):
    def __float__(self) -> float:
        raise LookupError


DAY = date(2026, 3, 4)
INNER = {"price": "2", "at": "2026-03-04", "inner": []}


@pytest.mark.parametrize(
    "result, written",
    [
        (None, None),
        ({"a": [1, 2.5, "да", True, None]}, {"a": [1, 2.5, "да", True, None]}),
        (Sum(Decimal("1.10")), {"total": "1.10", "unit": "EUR"}),
        (Row([Sum(1)]), {"cells": [{"total": 1, "unit": "EUR"}]}),
        (Model(price=Decimal("2.50"), at=DAY), {"price": "2.50", "at": "2026-03-04", "inner": []}),
        (
            {"models": [Model(price=Decimal(1), at=DAY, inner=[Model(price=Decimal(2), at=DAY)])]},
            {
                "models": [
                    {"price": "1", "at": "2026-03-04", "inner": [{"price": "2", "at": "2026-03-04", "inner": []}]}
                ]
            },
        ),
        (Named(1), [1]),
        (datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC), "2026-03-04T05:06:07Z"),
        (timedelta(hours=1), "PT3600S"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        ({1}, [1]),
        (frozenset({"a"}), ["a"]),
        (b"\xff", "/w=="),
        ((1, 2), [1, 2]),
        ({1: "a", Colour.RED: "b"}, {"1": "a", "red": "b"}),
        (10**30, 10**30),
        (Text("text"), "text"),
        ({Text("key"): Whole(3)}, {"key": 3}),
        (Real(1.5), 1.5),
        (float("nan"), None),
        (msgspec.Raw('{"a": "да"}'.encode()), {"a": "да"}),
        ({"rows": [Row([msgspec.Raw(b"[1, 2]")])]}, {"rows": [{"cells": [[1, 2]]}]}),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", repr(value)),
)
def test_what_handlers_return_in_good_faith_is_taken(result: object, written: object) -> None:
    assert json.loads(encode_result(result)) == written


class NoZone(tzinfo):
    """Something of the handler's own that fails in a way of its own while it is read."""

    def utcoffset(self, _at: datetime | None) -> timedelta:
        raise LookupError


class Ends(pydantic.BaseModel):
    @pydantic.model_serializer
    def write(self) -> dict[str, Any]:
        raise SystemExit(3)


class Reads(dict[str, object]):
    def items(self) -> Any:
        raise KeyboardInterrupt


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "result, kind, place",
    [
        (object(), "object", "result"),
        ({"rows": [{"a": 1}, {"a": object()}]}, "object", "result['rows'][1]['a']"),
        ({"a": {1, 2, object()}}, "object", "result['a']{…}"),
        (Sum({"x": 1j}), "complex", "result.total['x']"),
        (Row([(1, print)]), "builtin_function_or_method", "result.cells[0][1]"),
        ({"a": {(1, 2): 3}}, "tuple", "a key of result['a']"),
        ({None: 3}, "NoneType", "a key of result"),
        ({"a": "\ud800"}, "str", "result['a']"),
        ({"\ud800": 1}, "str", "a key of result"),
        ([Sum], "type", "result[0]"),
        ({"made": (x for x in [1])}, "generator", "result['made']"),
        (10**5000, "int", "result"),
        ([datetime(2026, 3, 4, tzinfo=NoZone())], "datetime.datetime", "result[0]"),
        ([Ends()], f"{__name__}.Ends", "result[0]"),
        (msgspec.Raw(b"oops"), "msgspec.Raw", "result"),
        (msgspec.Raw(b""), "msgspec.Raw", "result"),
        (msgspec.Raw(b'1,"error":{"type":"forged","message":""}'), "msgspec.Raw", "result"),
        (msgspec.Raw(b'"\xcf\xf0"'), "msgspec.Raw", "result"),
        ({"x": msgspec.Raw(b"")}, "msgspec.Raw", "result['x']"),
        ([1, msgspec.Raw(b"oops")], "msgspec.Raw", "result[1]"),
        (Sum(msgspec.Raw(b"1}")), "msgspec.Raw", "result.total"),
        ({"x" * 1000: print}, "builtin_function_or_method", f"result['{'x' * 192}…"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_written_is_named_with_its_type_and_its_place(result: object, kind: str, place: str) -> None:
    with pytest.raises(UnusableResultError) as caught:
        encode_result(result)
    assert (caught.value.kind, caught.value.place) == (kind, place)
    assert str(caught.value).startswith(f"the result cannot be written as JSON: {place} is of the type {kind}")


@dataclasses.dataclass
class Unset:
    text: str
    cached: bool = dataclasses.field(init=False)


@dataclasses.dataclass(slots=True)
class UnsetSlot:
    text: str
    cached: bool = dataclasses.field(init=False)


@pytest.mark.parametrize("kind", [Unset, UnsetSlot])
def test_a_field_that_was_never_set_is_left_out(kind: type) -> None:
    assert encode_result(kind("x")) == b'{"text":"x"}'


@pytest.mark.parametrize("depth", [lambda: LOOP, lambda: nested(100_000)], ids=["loop", "deep"])
def test_nesting_without_end_is_told_as_such(depth: Callable[[], object]) -> None:
    with pytest.raises(UnusableResultError, match="nested too deeply, or refers to itself"):
        encode_result(depth())


def nested(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    "result, failure",
    [
        ({"success": True, "error": "x"}, None),
        ({"success": "false"}, None),
        ({"success": 0}, None),
        ([{"success": False}], None),
        ('"success":false', None),
        ({"inner": {"success": False}}, None),
        ({"success": False, "error": "no data"}, "no data"),
        ({"success": False, "error": "", "message": "no rows"}, "no rows"),
        ({"success": False, "error": {"code": 1}}, 'the handler answered "success": false'),
        (Reads(success=False, error="told all the same"), "told all the same"),
    ],
    ids=repr,
)
def test_a_result_may_itself_say_that_it_failed(result: object, failure: str | None) -> None:
    expected = Failure("HandlerFailure", failure) if failure is not None else None
    assert failure_told(encode_result(result)) == expected
