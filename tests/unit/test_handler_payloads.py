"""A handler that names the type of its payload gets it converted, and what does not convert is never paid for."""

from __future__ import annotations

import dataclasses
import functools
from datetime import date
from typing import Any

import msgspec
import pydantic
import pytest

from gigaoffice_worker import Request
from gigaoffice_worker.core.messages import InvalidRequestError
from gigaoffice_worker.core.records import AttemptEnd, Failure
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.processor import Processor
from gigaoffice_worker.handlers.loading import prepare
from tests.support.making import assignment, record


@dataclasses.dataclass
class Query:
    query: str
    day: date
    limit: int = 3

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError("limit must not be below zero")


class Structured(msgspec.Struct):
    query: str
    day: date
    limit: int = 3


class Model(pydantic.BaseModel):
    query: str
    day: date
    limit: int = pydantic.Field(3, ge=0)


class Strict(pydantic.BaseModel, strict=True):
    query: str
    day: date
    limit: int = 3


@pydantic.dataclasses.dataclass
class Validated:
    query: str
    day: date
    limit: int = 3


def of_dataclass(found: Query) -> Any:
    return found


def of_struct(found: Structured) -> Any:
    return found


def of_model(found: Model) -> Any:
    return found


class Callable:
    def __call__(self, found: Strict) -> Any:
        return found


def of_validated(found: Validated, more: int = 1) -> Any:
    assert more == 1
    return found


GOOD = {"id": "r", "query": "sum", "day": "2026-03-04", "more": 1}
TYPED = [
    (of_dataclass, Query),
    (of_struct, Structured),
    (of_model, Model),
    (Callable, Strict),
    (Callable(), Strict),
    (of_validated, Validated),
    (functools.partial(of_validated, more=1), Validated),
]


@pytest.mark.parametrize("handler, wanted", TYPED)
def test_a_payload_comes_as_the_type_that_the_handler_names(handler: Any, wanted: Any) -> None:
    assert prepare(handler).call(Request(GOOD)) == wanted(query="sum", day=date(2026, 3, 4))


@pytest.mark.parametrize(
    "handler, payload, told",
    [
        (of_dataclass, {"query": "sum"}, "the payload is no Query: Object missing required field `day`"),
        (of_dataclass, {**GOOD, "query": 1}, "the payload is no Query: Expected `str`, got `int` - at `$.query`"),
        (of_dataclass, {**GOOD, "limit": -1}, "the payload is no Query: limit must not be below zero"),
        (of_struct, {**GOOD, "limit": "3"}, "the payload is no Structured: Expected `int`, got `str` - at `$.limit`"),
        (of_model, {"query": [1]}, "no Model: query: Input should be a valid string; day: Field required"),
        (of_model, {**GOOD, "limit": -1}, "no Model: limit: Input should be greater than or equal to 0"),
        (of_validated, {}, "no Validated: query: Field required; day: Field required"),
    ],
)
def test_a_payload_that_does_not_convert_says_where(handler: Any, payload: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        prepare(handler).call(Request(payload, "r-1"))
    assert told in str(caught.value)
    assert caught.value.answerable_id == "r-1"


def test_an_attempt_with_such_a_payload_is_invalid_and_was_no_call() -> None:
    source = record(value=b'{"id": "r-1", "query": 1}')
    made = Processor(prepare(of_struct).call, 30.0).attempt(Work(source, assignment(), source.size, 0.0, attempt=1))
    assert made.ended is AttemptEnd.INVALID
    assert made.failure == Failure(
        "InvalidRequest", "the payload is no Structured: Expected `str`, got `int` - at `$.query`"
    )


def of_request(request: Request) -> Any:
    return request


def of_anything(request) -> Any:
    return request


def of_dict(request: dict[str, Any]) -> Any:
    return request


def of_a_name_that_only_a_checker_knows(request: Unknown) -> Any:  # noqa: F821
    return request


@pytest.mark.parametrize(
    "handler", [of_request, of_anything, of_dict, of_a_name_that_only_a_checker_knows, lambda request: request]
)
def test_every_other_handler_gets_the_request(handler: Any) -> None:
    request = Request(GOOD)
    assert prepare(handler).call(request) is request
