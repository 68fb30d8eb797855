"""The handlers that come with the worker, run by it on a real Kafka against a service that has bad days."""

from __future__ import annotations

import base64
import json
import time
from http import HTTPStatus

import pytest

from tests.support.scene import MARKER, ask, check_once
from tests.support.services import Service, answers, in_turn
from tests.support.waiting import eventually

QUICK = {"WORKER_RETRY_DELAY": "0.05", "WORKER_RETRY_MAX_DELAY": "0.2", "WORKER_CONCURRENCY": "4"}
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def service():
    with Service() as service:
        yield service


def test_http_answers_what_a_failing_service_answers_in_the_end(scene, service):
    scene.make(requests=2)
    service.answer = in_turn(answers(500), answers(503), answers(200, b"<html>"), answers(200, {"answer": "at last"}))
    scene.send(ask("r1", "a", headers=[("traceparent", PARENT)]), partition=1)
    worker = scene.ready(WORKER_HANDLER="http", HTTP_HANDLER_URL=service.url, **QUICK)
    (response,) = scene.wait_responses(1)
    assert (response.id, response.status, response.result) == ("r1", "completed", {"answer": "at last"})
    assert [asked.headers["x-attempt"] for asked in service.asked] == ["1", "2", "3", "4"]
    assert {asked.headers["idempotency-key"] for asked in service.asked} == {f"{scene.topics.requests}-1-0"}
    assert {asked.headers["traceparent"] for asked in service.asked} == {PARENT.decode()}
    assert all(asked.json["query"] == MARKER for asked in service.asked)
    scene.wait_committed()
    assert worker.stop() == 0


def test_http_gives_up_what_the_service_refuses_or_never_answers(scene, service):
    scene.make()

    def answer(exchange):
        asked = service.asked[-1].json["id"]
        {"bad": answers(422), "moved": answers(302), "broken": answers(500)}.get(asked, answers(200, 1))(exchange)

    service.answer = answer
    scene.ready(
        WORKER_HANDLER="http",
        HTTP_HANDLER_URL=service.url,
        WORKER_MAX_ATTEMPTS="2",
        **{**QUICK, "WORKER_CONCURRENCY": "1"},
    )
    scene.send(ask("bad"), ask("moved"), ask("broken"), ask("good"))
    responses = {response.id: response for response in scene.wait_responses(4)}
    check_once(list(responses.values()), ["bad", "moved", "broken", "good"])
    assert responses["good"].result == 1
    assert responses["bad"].error == {
        "type": "RejectedError",
        "message": f"the service answered HTTP 422 {HTTPStatus(422).phrase}",  # 3.13 calls it otherwise
    }
    reasons = sorted((letter.header("dlq-reason"), letter.header("dlq-error-type")) for letter in scene.dead_letters())
    assert reasons == [
        (b"attempts-exhausted", b"ServiceError"),
        (b"rejected", b"RejectedError"),
        (b"rejected", b"RejectedError"),
    ]


def test_http_keeps_to_the_attempts_deadline(scene, service):
    scene.make()
    service.answer = in_turn(lambda exchange: exchange.pause(30), answers(200, 1))
    worker = scene.ready(WORKER_HANDLER="http", HTTP_HANDLER_URL=service.url, WORKER_ATTEMPT_TIMEOUT="1", **QUICK)
    scene.send(ask("slow"))
    assert [response.result for response in scene.wait_responses(1)] == [1]
    # On a busy machine it may be a moment late, but it does not wait for the answer.
    free = lambda: worker.ask("/livez")[0] == 200 and not worker.metric("handler_abandoned_threads")  # noqa: E731
    eventually(free, "every thread to be free")


def test_a_service_that_never_answers_in_time_ends_timed_out(scene, service):
    scene.make()
    service.answer = lambda exchange: exchange.pause(30)
    scene.ready(
        WORKER_HANDLER="http",
        HTTP_HANDLER_URL=service.url,
        **{**QUICK, "WORKER_ATTEMPT_TIMEOUT": "0.5", "WORKER_MAX_ATTEMPTS": "2"},
    )
    scene.send(ask("slow"))
    (response,) = scene.wait_responses(1)
    (letter,) = scene.dead_letters()
    assert letter.header("dlq-reason") == b"timed-out"
    assert letter.header("dlq-error-type").decode() == response.error["type"] in {"NoAnswerError", "AttemptTimeout"}


def test_a_rate_limit_and_a_wrong_token_lose_no_request(scene, service, tmp_path):
    scene.make()
    token = tmp_path / "token"
    token.write_text("mistaken-token")

    def answer(exchange):
        right = exchange.headers["Authorization"] == "Bearer right"
        (limited if right else answers(401))(exchange)

    limited = in_turn(*[answers(429, b"", {"Retry-After": "1"})] * 2, answers(200, {"answer": "yes"}))
    service.answer = answer
    worker = scene.ready(
        WORKER_HANDLER="http",
        HTTP_HANDLER_URL=service.url,
        HTTP_HANDLER_TOKEN_FILE=str(token),
        WORKER_MAX_ATTEMPTS="1",
        **QUICK,
    )
    names = [f"r{number}" for number in range(12)]
    scene.send(*[ask(name, name) for name in names])
    eventually(lambda: len(service.asked) >= 8, "several tries with the wrong token")
    assert scene.count(scene.topics.responses) == scene.count(scene.topics.dlq) == 0
    began = time.monotonic()
    token.write_text("right")
    responses = scene.wait_responses(len(names))
    assert time.monotonic() - began > 1
    check_once(responses, names)
    assert {response.status for response in responses} == {"completed"}
    assert scene.count(scene.topics.dlq) == 0
    assert worker.metric("handler_attempts_total", result="shared") > 8
    assert worker.metric("handler_attempts_total", result="answered") == len(names)
    assert "mistaken-token" not in json.dumps(worker.logs())


def test_gigachat_answers_and_counts_tokens_through_limits_and_failures(scene, service):
    scene.make()
    token = answers(200, {"access_token": "t", "expires_at": 2**50})
    body = {
        "choices": [{"message": {"role": "assistant", "content": "42"}, "index": 0, "finish_reason": "stop"}],
        "created": 1,
        "model": "GigaChat-2:2.0",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        "object": "chat.completion",
    }
    chat = in_turn(answers(500), answers(429, b"", {"Retry-After": "1"}), answers(200, body))
    auth = in_turn(answers(401), token)
    service.answer = lambda exchange: (auth if exchange.path == "/oauth" else chat)(exchange)
    worker = scene.ready(
        WORKER_HANDLER="gigachat",
        GIGACHAT_BASE_URL=f"{service.url}/api/v1",
        GIGACHAT_AUTH_URL=f"{service.url}/oauth",
        GIGACHAT_CREDENTIALS=base64.b64encode(b"client:secret").decode(),
        GIGACHAT_MODEL="GigaChat-2",
        WORKER_MAX_ATTEMPTS="2",
        **{**QUICK, "WORKER_CONCURRENCY": "1"},
    )
    scene.send(ask("r1"), ask("r2"), ask("bad", query=5))
    responses = scene.wait_responses(3)
    check_once(responses, ["r1", "r2", "bad"])
    assert {response.result["result"]["text_content"] for response in responses if response.id != "bad"} == {"42"}
    assert worker.metric("gigachat_tokens_total", kind="prompt") == 14
    assert worker.metric("gigachat_tokens_total", kind="completion") == 6
    assert scene.count(scene.topics.dlq) == 1
    assert worker.stop() == 0


def test_gigachat_dry_run_needs_nobody(scene):
    scene.make()
    scene.ready(WORKER_HANDLER="gigachat", GIGACHAT_MODE="dryrun")
    scene.send(ask("r1"))
    (response,) = scene.wait_responses(1)
    assert response.result["metadata"]["model"] == "dryrun"


def test_a_handler_that_is_configured_wrongly_ends_with_78(scene):
    worker = scene.worker(
        WORKER_HANDLER="http", HTTP_HANDLER_URL="nowhere", HTTP_HANDLER_MAX_RESPONSE_BYTES="x"
    ).start()
    assert worker.wait(20) == 78
    assert "HTTP_HANDLER_URL" in worker.errors() + json.dumps(worker.logs())
    assert "HTTP_HANDLER_MAX_RESPONSE_BYTES" in worker.errors() + json.dumps(worker.logs())
