"""What is told of a failed attempt, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest
from structlog.testing import capture_logs

from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Reason
from gigaoffice_worker.engine.failure_log import FailureLog
from tests.support.making import Partition


def broken() -> BaseException:
    try:
        try:
            {}["the customer's secret"]
        except KeyError as cause:
            raise ValueError("the customer's secret") from cause
    except ValueError as error:
        return error


def told(tracebacks: Literal["frames", "full", "off"]) -> Mapping[str, Any]:
    failures = FailureLog(3, tracebacks)
    failure = Failure("ValueError", "the customer's secret", "answers.py:7 handle")
    made = Attempt(AttemptEnd.FAILED, 1.0, failure=failure, raised=broken())
    with capture_logs() as lines:
        failures.retried(Partition().work(request_id="r-1"), 2, made, 1.23456)
    (line,) = lines
    assert failures.newest.kinds()[0]["place"] == "answers.py:7 handle"
    return line


def test_a_failed_attempt_is_told_with_what_happens_next() -> None:
    line = told("off")
    assert line == {
        "event": "Attempt failed, the request will be tried again",
        "log_level": "warning",
        "request_id": "r-1",
        "error_type": "ValueError",
        "at": "answers.py:7 handle",
        "attempt": 2,
        "max_attempts": 3,
        "retry_in": 1.235,
        "topic": "requests",
        "partition": 0,
        "offset": 0,
    }


def test_frames_are_places_of_the_error_and_its_cause_and_never_a_value() -> None:
    lines = told("frames")["traceback"].splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["KeyError", "ValueError"]
    assert all(line.endswith(" broken") for line in lines if line.startswith(" "))
    assert f"{__file__}:" in lines[1]
    assert "secret" not in "".join(lines)


def test_a_full_traceback_has_the_messages_too() -> None:
    assert "ValueError: the customer's secret" in told("full")["traceback"]


@pytest.mark.parametrize("reason", list(Reason))
def test_a_dead_letter_is_told_with_its_reason(reason: Reason) -> None:
    made = Attempt(AttemptEnd.FAILED, 1.0, failure=Failure("InvalidRequest", "not JSON"))
    with capture_logs() as lines:
        FailureLog(3).dead(Partition().work(request_id="r-1"), 3, made, reason)
    (line,) = lines
    assert (line["event"], line["reason"]) == ("Request goes to the dead letter queue", reason.value)
    assert "at" not in line
