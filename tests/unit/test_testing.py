"""The kit for handlers' tests makes the worker's own decisions, at once."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from gigaoffice_worker import RejectedError, Request, TransientError
from gigaoffice_worker.config import load
from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.testing import DeadLetter, NoOutcomeError, Response, request, run, trial


def add(request: Request) -> dict[str, Any]:
    return {"sum": sum(request.payload["numbers"]), "attempt": request.attempt}


def fails_until(attempt: int, error: Exception) -> Any:
    def handle(request: Request) -> int:
        if request.attempt < attempt:
            raise error
        return request.attempt

    return handle


def test_a_request_can_be_made_of_its_payload_alone() -> None:
    made = request({"query": "q"})
    assert (made.payload, made.id, made.key, made.headers, made.attempt) == ({"query": "q"}, "request", None, {}, 1)
    assert 60 < made.deadline.remaining() <= 120
    assert time.time() - made.timestamp < 60
    bare = Request({"query": "q"})
    assert (bare.id, bare.headers, bare.topic, bare.partition, bare.offset) == ("request", {}, "requests", 0, 0)


def test_a_request_can_be_made_as_wanted() -> None:
    made = request({}, id="r", key=b"k", headers={"h": b"1"}, attempt=3, timeout=5, topic="t", partition=2, offset=7)
    assert (made.id, made.key, made.headers, made.attempt) == ("r", b"k", {"h": b"1"}, 3)
    assert (made.topic, made.partition, made.offset) == ("t", 2, 7)
    assert made.deadline.remaining() <= 5


def test_an_answer_is_the_response_as_it_would_be_written() -> None:
    found = run(add, {"id": "r-1", "numbers": [1, 2]}, headers={"traceparent": b"00-x"})
    assert isinstance(found, Response)
    assert (found.request_id, found.status, found.result, found.error) == (
        "r-1",
        "completed",
        {"sum": 3, "attempt": 1},
        None,
    )
    assert found.processing_time >= 0
    assert found.timestamp.endswith("Z")
    assert found.headers["source-offset"] == b"0"
    assert found.headers["traceparent"] == b"00-x"


def test_a_response_has_every_header_that_would_be_written() -> None:
    def handle(request: Request) -> str:
        request.usage(input_tokens=5, output_tokens=1, model="big", cost=0.5)
        if request.attempt == 1:
            raise ValueError
        return "done"

    found = run(handle, {"id": "r"}, headers={"correlation_id": b"c", "kafka_correlationId": b"\x01", "other": b"o"})
    assert isinstance(found, Response)
    assert found.headers.keys() == {
        "correlation_id",
        "kafka_correlationId",
        "source-topic",
        "source-partition",
        "source-offset",
        "source-timestamp",
        "usage",
    }
    assert (found.headers["correlation_id"], found.headers["kafka_correlationId"]) == (b"c", b"\x01")
    assert found.headers["usage"] == b'{"input_tokens":10,"output_tokens":2,"model":"big","cost":1.0}'


def test_the_response_beside_a_dead_letter_tells_what_its_calls_used() -> None:
    def handle(request: Request) -> None:
        request.usage(output_tokens=3)
        raise RejectedError

    found = run(handle, {"id": "r"}, headers={"correlation_id": b"c"})
    assert isinstance(found, DeadLetter)
    assert found.response is not None
    assert found.response.headers["usage"] == b'{"output_tokens":3}'
    assert found.response.headers["correlation_id"] == b"c"
    assert "usage" not in found.headers


def test_a_trial_plays_the_worker_of_a_configuration() -> None:
    config = load(
        {
            "WORKER_ECHO_HEADERS": "reply",
            "WORKER_DEDUPE_WINDOW": "60",
            "KAFKA_TOPIC_REQUESTS": "questions",
            "KAFKA_TOPIC_RESPONSES": "answers",
            "KAFKA_TOPIC_DLQ": "dead",
            "KAFKA_CONSUMER_GROUP": "helpers",
            "WORKER_MAX_REQUEST_BYTES": "1024",
        }
    )
    headers = {"reply": b"r", "correlation_id": b"c"}
    found = trial(add, {"id": "r", "numbers": [1]}, headers=headers, config=config).outcome
    assert isinstance(found, Response)
    assert found.headers.keys() >= {"reply", "request-digest"}
    assert "correlation_id" not in found.headers
    assert found.headers["source-topic"] == b"questions"

    dead = trial(add, {"id": "r", "numbers": [1] * 1000}, config=config).outcome
    assert isinstance(dead, DeadLetter)
    assert (dead.reason, dead.headers["dlq-consumer-group"]) == ("invalid-request", b"helpers")


def test_a_failure_of_the_handler_is_a_response_that_failed() -> None:
    found = run(lambda _: {"success": False, "error": "no rows"}, {})
    assert isinstance(found, Response)
    assert (found.completed, found.result) == (False, {"success": False, "error": "no rows"})
    assert found.error == {"type": "HandlerFailure", "message": "no rows"}


def test_retries_do_not_wait() -> None:
    started = time.monotonic()
    found = run(fails_until(5, TransientError("later", retry_after=250)), {})
    assert isinstance(found, Response)
    assert found.result == 5
    assert time.monotonic() - started < 60  # each wait would take 250


def test_what_fails_to_the_end_is_a_dead_letter_with_the_place() -> None:
    found = run(add, {"id": "r-1", "numbers": ["a"]}, key=b"k", headers={"tenant": b"t", "none": None}, max_attempts=3)
    assert isinstance(found, DeadLetter)
    assert (found.reason, found.error_type, found.attempts) == ("attempts-exhausted", "TypeError", 3)
    assert "unsupported operand" in found.error_message
    assert found.at.endswith(" add")
    assert found.at.split(":")[0].endswith("test_testing.py")
    assert found.headers["tenant"] == b"t"
    assert (found.headers["dlq-attempts"], found.headers["dlq-null-headers"]) == (b"3", b"none")
    assert found.response is not None
    assert (found.response.status, found.response.error) == (
        "failed",
        {"type": "TypeError", "message": found.error_message},
    )


@pytest.mark.parametrize(
    "handler, payload, reason, attempts",
    [
        (fails_until(9, RejectedError("no")), {}, "rejected", 1),
        (fails_until(9, ValueError("no")), {}, "attempts-exhausted", 5),
        (lambda _: object(), {}, "unusable-result", 1),
        (add, b"[1]", "invalid-request", 0),
        (add, None, "invalid-request", 0),
        (add, {"id": 5}, "invalid-request", 0),
    ],
)
def test_each_way_to_end_badly_has_its_reason(handler: Any, payload: Any, reason: str, attempts: int) -> None:
    found = run(handler, payload, key=b"k")
    assert isinstance(found, DeadLetter)
    assert (found.reason, found.attempts) == (reason, attempts)
    assert found.response is not None


def test_what_no_response_can_be_addressed_to_has_none() -> None:
    found = run(add, b"[1]")
    assert isinstance(found, DeadLetter)
    assert found.response is None


def test_a_shared_refusal_counts_no_attempt() -> None:
    calls: list[int] = []

    def handle(request: Request) -> int:
        calls.append(request.attempt)
        if len(calls) < 4:
            raise TransientError("wait", shared=True, retry_after=60)
        return len(calls)

    found = run(handle, {}, max_attempts=1)
    assert isinstance(found, Response)
    assert (found.result, calls) == (4, [1, 1, 1, 1])


def test_a_refusal_of_all_calls_without_end_is_told_or_ends_in_the_dead_letter_queue() -> None:
    found = None
    with suppress(NoOutcomeError):
        found = run(fails_until(10**6, TransientError("wait", shared=True)), {})
    assert found is None or (isinstance(found, DeadLetter) and found.reason == "attempts-exhausted")


def test_a_call_that_hangs_is_left_behind_and_gets_no_third_call() -> None:
    free = threading.Event()
    calls: list[int] = []

    def handle(request: Request) -> None:
        calls.append(request.attempt)
        free.wait(30)

    try:
        found = run(handle, {}, attempt_timeout=0.1)
    finally:
        free.set()
    assert isinstance(found, DeadLetter)
    assert (found.reason, found.error_type, found.attempts) == ("timed-out", "AttemptTimeout", 2)
    assert calls == [1, 2]
    assert found.at.endswith(".handle")


def test_a_class_is_constructed_once_and_closed() -> None:
    told: list[str] = []

    class Client:
        def __init__(self) -> None:
            told.append("made")

        def __call__(self, request: Request) -> int:
            if request.attempt == 1:
                raise ValueError
            return 1

        def close(self) -> None:
            told.append("closed")

    assert run(Client, {}).result == 1  # type: ignore[union-attr]
    assert told == ["made", "closed"]


def test_a_handler_can_be_named_as_in_the_environment() -> None:
    assert run("echo", {"id": "r", "a": 1}).result == {"id": "r", "a": 1}  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match="there is no handler named"):
        run("nothing", {})


def test_a_trial_tells_each_attempt() -> None:
    tried = trial(fails_until(3, ValueError("no")), {})
    assert [each.number for each in tried.attempts] == [1, 2, 3]
    assert [each.made.failure is not None for each in tried.attempts] == [True, True, False]
    assert isinstance(tried.attempts[0].made.raised, ValueError)
    assert json.loads(tried.attempts[2].made.result or b"") == 3
