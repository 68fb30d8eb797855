"""One attempt: what the handler is given, and what its answer or error means."""

from __future__ import annotations

import json
import math
import re
import traceback
from typing import Any

import pytest
import structlog

from gigaoffice_worker.core.errors import RejectedError, TransientError
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Headers, Reason, Request
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.failure_log import FailureLog
from gigaoffice_worker.engine.processor import LONGEST_MESSAGE, Processor
from tests.support.making import assignment, record


def work_with(
    value: bytes | None = b'{"id": "r-1", "query": "sum"}', key: bytes | None = b"k", headers: Headers = ()
) -> Work:
    found = record(7, key, value, headers, partition=2)
    return Work(found, assignment(2), found.size, 0.0, attempt=3)


def attempt(handler: Any, work: Work | None = None) -> Attempt:
    return Processor(handler, 30.0, 300.0).attempt(work or work_with())


def raising(error: BaseException) -> Attempt:
    def handler(_request: Request) -> None:
        raise error

    return attempt(handler)


def test_a_handler_is_given_the_request_whole() -> None:
    seen: list[Request] = []
    work = work_with(headers=[("h", b"1"), ("h", b"2"), ("none", None)])
    assert attempt(seen.append, work).ended is AttemptEnd.ANSWERED
    (request,) = seen
    assert request.id == work.id == "r-1"
    assert request.payload == {"id": "r-1", "query": "sum"}
    assert request.key == b"k"
    assert request.headers == {"h": b"2", "none": b""}
    assert request.attempt == 3
    assert (request.topic, request.partition, request.offset) == ("requests", 2, 7)
    assert request.timestamp == work.record.timestamp
    assert 0 < request.deadline.remaining() <= 30


def test_a_deadline_never_runs_below_zero() -> None:
    seen: list[Request] = []
    Processor(seen.append, -1.0, 300.0).attempt(work_with())
    assert seen[0].deadline.remaining() == 0


def test_what_one_handler_call_does_to_its_payload_stays_with_it() -> None:
    work = work_with()

    def handler(request: Request) -> int:
        request.payload["query"] = None
        request.payload["more"] = 1
        return len(request.payload)

    assert attempt(handler, work).result == attempt(handler, work).result == b"3"


@pytest.mark.parametrize("result", [None, {}, {"success": True}, {"success": 0}, {"success": None}, [], "text", 1])
def test_what_a_handler_returns_is_the_answer(result: object) -> None:
    made = attempt(lambda _: result)
    assert (made.ended, json.loads(made.result or b""), made.failure) == (AttemptEnd.ANSWERED, result, None)
    assert made.seconds >= 0


@pytest.mark.parametrize(
    "more, message",
    [
        ({"error": "no rows"}, "no rows"),
        ({"message": "no rows"}, "no rows"),
        ({"error": "", "message": "no rows"}, "no rows"),
        ({"error": {"code": 1}}, 'the handler answered "success": false'),
        ({}, 'the handler answered "success": false'),
    ],
)
def test_an_answer_that_says_it_failed_is_an_answer(more: dict[str, Any], message: str) -> None:
    result = {"success": False, **more}
    made = attempt(lambda _: result)
    assert (made.ended, json.loads(made.result or b"")) == (AttemptEnd.ANSWERED, result)
    assert made.failure == Failure("HandlerFailure", message)


def test_a_value_that_is_no_request_never_reaches_the_handler() -> None:
    calls: list[Request] = []
    work = work_with(b"[]", b"r-9")
    made = attempt(calls.append, work)
    assert (made.ended, made.seconds, calls) == (AttemptEnd.INVALID, 0.0, [])
    assert made.failure == Failure("InvalidRequest", "the value is a JSON array, not an object")
    assert work.id == "r-9"
    nameless = work_with(b"[]", None)
    attempt(calls.append, nameless)
    assert nameless.id == ""


def place_of(made: Attempt) -> str:
    """Return where the error came from, which is here."""
    assert made.failure is not None
    assert re.fullmatch(r"tests/unit/test_processor\.py:\d+ \S+", made.failure.at)
    return made.failure.at


class SpecialError(TransientError):
    """An error of a handler's own."""


@pytest.mark.parametrize(
    "error, ended, retry_after",
    [
        (RejectedError("no"), AttemptEnd.REJECTED, None),
        (TransientError("later"), AttemptEnd.FAILED, None),
        (TransientError("later", retry_after=2.5), AttemptEnd.FAILED, 2.5),
        (TransientError("later", retry_after=2, shared=True), AttemptEnd.SHARED, 2),
        (TransientError("later", shared=True), AttemptEnd.SHARED, None),
        (SpecialError("later", retry_after=0.0), AttemptEnd.FAILED, 0.0),
        (ValueError("bad"), AttemptEnd.FAILED, None),
        (SystemExit("enough"), AttemptEnd.FAILED, None),
        (KeyboardInterrupt("enough"), AttemptEnd.FAILED, None),
        (GeneratorExit("enough"), AttemptEnd.FAILED, None),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}" if isinstance(value, BaseException) else None,
)
def test_an_error_is_told_by_its_kind(error: BaseException, ended: AttemptEnd, retry_after: float | None) -> None:
    made = raising(error)
    assert (made.ended, made.retry_after, made.result) == (ended, retry_after, None)
    assert made.failure == Failure(type(error).__name__, str(error), place_of(made))


@pytest.mark.parametrize("asked_for", ["5", math.nan, -1, -math.inf, [], object()])
@pytest.mark.parametrize("shared", [True, False])
def test_a_wish_that_is_no_number_of_seconds_is_no_wish(asked_for: Any, shared: bool) -> None:  # noqa: FBT001
    assert raising(TransientError(retry_after=asked_for, shared=shared)).retry_after is None


@pytest.mark.parametrize("asked_for", [math.inf, 1e12, 10**400, 301])
@pytest.mark.parametrize("shared", [True, False])
def test_no_request_waits_for_longer_than_is_allowed(asked_for: float, shared: bool) -> None:  # noqa: FBT001
    assert raising(TransientError(retry_after=asked_for, shared=shared)).retry_after == 300


class BareError(TransientError):
    def __init__(self) -> None:
        """Leave out what the class above has set."""


def test_an_error_that_skipped_the_constructor_is_a_failure_like_any_other() -> None:
    made = raising(BareError())
    assert (made.ended, made.retry_after) == (AttemptEnd.FAILED, None)
    assert made.failure is not None
    assert (made.failure.type, made.failure.message) == ("BareError", "")


class Loud(str):
    __slots__ = ()

    def __getitem__(self, _index: object) -> str:
        raise SystemExit


class Vain(type):
    @property
    def __name__(cls) -> str:
        raise SystemExit


def misbehaving(where: str, raised: type[BaseException]) -> BaseException:
    """Return an error that raises when it is looked at in one way."""

    def fails(*_: object) -> object:
        raise raised

    kinds: dict[str, type[BaseException]] = {
        "str": type("Odd", (ValueError,), {"__str__": fails}),
        "text": type("Odd", (ValueError,), {"__str__": lambda _: Loud("x")}),
        "retry_after": type("Odd", (BareError,), {"retry_after": property(fails)}),
        "shared": type("Odd", (BareError,), {"shared": property(fails)}),
        "truth": type("Odd", (BareError,), {"shared": type("Truth", (), {"__bool__": fails})()}),
        "seconds": type("Odd", (BareError,), {"retry_after": type("Number", (int,), {"__ge__": fails})(5)}),
        "class": type("Odd", (ValueError,), {"__class__": property(fails)}),
        "traceback": type("Odd", (ValueError,), {"__traceback__": property(fails)}),
        "equal": type("Odd", (ValueError,), {"__eq__": fails, "__hash__": fails}),
        "cause": type("Odd", (ValueError,), {"__cause__": property(fails)}),
        "name": Vain("Odd", (ValueError,), {}),
    }
    return kinds[where]()


@pytest.mark.parametrize("raised", [LookupError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize(
    "where",
    ["str", "text", "retry_after", "shared", "truth", "seconds", "class", "traceback", "equal", "cause", "name"],
)
def test_an_error_that_misbehaves_when_it_is_looked_at_is_its_requests_failure(
    where: str, raised: type[BaseException]
) -> None:
    made = raising(misbehaving(where, raised))
    assert (made.ended, made.retry_after, made.hung) == (AttemptEnd.FAILED, None, False)
    assert made.failure is not None
    assert made.failure.type in ("Odd", "Exception")
    with structlog.testing.capture_logs() as lines:
        FailureLog(5).retried(work_with(), 1, made, 1.0)
        FailureLog(5, "full").dead(work_with(), 1, made, Reason.ATTEMPTS_EXHAUSTED)
    assert len(lines) == 2


def test_a_failure_names_the_line_of_the_handler() -> None:
    def handler(request: Request) -> Any:
        return json.loads(request.payload["query"])

    failure = attempt(handler).failure
    assert failure is not None
    line = handler.__code__.co_firstlineno + 1
    assert failure.at.endswith(f"test_processor.py:{line} {handler.__qualname__}")


def test_an_error_object_that_is_raised_for_ever_keeps_one_raise_only() -> None:
    error = ValueError("the same one each time")
    for _ in range(3):
        made = raising(error)
    assert made.failure is not None
    assert made.failure.at.endswith("handler")
    functions = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert functions == ["attempt", "handler"]


def test_a_message_without_end_is_cut() -> None:
    failure = raising(ValueError("x" * 1_000_000)).failure
    assert failure is not None
    assert failure.message == "x" * LONGEST_MESSAGE


def test_lines_logged_by_a_handler_name_its_request_and_no_later_line_does() -> None:
    seen: list[dict[str, Any]] = []

    def handler(_request: Request) -> None:
        seen.append(structlog.contextvars.get_contextvars())
        raise SystemExit

    attempt(handler)
    assert seen == [{"request_id": "r-1"}]
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize(
    "error,ended",
    [
        (TransientError("no answer"), AttemptEnd.TIMED_OUT),
        (ValueError("broken off"), AttemptEnd.TIMED_OUT),
        (RejectedError("no"), AttemptEnd.REJECTED),
        (TransientError("wait", shared=True), AttemptEnd.SHARED),
    ],
)
def test_a_failure_at_the_deadline_is_a_time_out_unless_it_says_otherwise(error, ended) -> None:
    def handler(request: Request) -> None:
        assert request.deadline.remaining() == 0
        raise error

    made = Processor(handler, 0.0, 300.0).attempt(work_with())
    assert made.ended is ended
    assert made.failure == Failure(type(error).__name__, str(error), place_of(made))


def test_a_result_that_is_no_json_is_unusable_and_its_type_and_place_are_logged() -> None:
    made = attempt(lambda _: {"rows": [object()]})
    message = "the result cannot be written as JSON: result['rows'][0] is of the type object"
    assert (made.ended, made.result, made.failure) == (AttemptEnd.UNUSABLE, None, Failure("UnusableResult", message))
    with structlog.testing.capture_logs() as lines:
        FailureLog(5).dead(work_with(), 1, made, Reason.UNUSABLE_RESULT)
    (line,) = lines
    assert (line["log_level"], line["reason"]) == ("warning", "unusable-result")
    assert (line["type"], line["in_result"]) == ("object", "result['rows'][0]")
