"""Requests that are not worth a call any more are answered without one, and on time."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from confluent_kafka import Producer

from tests.support.scene import ask
from tests.support.waiting import eventually


def send_old(scene, requests, *, age):
    """Write requests as if `age` seconds ago."""
    producer = Producer({"bootstrap.servers": scene.bootstrap, "acks": "all", "linger.ms": 5})
    at = int((time.time() - age) * 1000)
    for key, value, headers in requests:
        producer.produce(scene.topics.requests, value, key, timestamp=at, headers=headers or None)
    assert producer.flush(20) == 0


def test_old_backlog_is_answered_at_once_and_fresh_requests_run_at_once(scene):
    scene.make(requests=3, responses=3)
    send_old(scene, [ask(f"old-{n}", f"k{n % 50}", seconds=2) for n in range(600)], age=600)
    fresh = [f"fresh-{n}" for n in range(100)]
    scene.send(*[ask(name, name, seconds=2) for name in fresh])
    worker = scene.ready(WORKER_REQUEST_TTL="300", WORKER_CONCURRENCY="50")
    ready_at = time.time()

    def expired():
        return [answer for answer in scene.responses() if answer.error and answer.error["type"] == "Expired"]

    eventually(lambda: len(expired()) == 600, "600 to expire", timeout=30.0, interval=0.2)
    answers = scene.wait_responses(700)
    # Were the old ones called, the fresh ones would wait for 24 seconds.
    assert min(call.at for call in scene.journal()) < ready_at + 10.0
    scene.wait_committed()
    assert Counter(answer.status for answer in answers) == {"failed": 600, "completed": 100}
    assert scene.starts() == Counter(fresh)
    assert worker.metric("requests_total", outcome="expired") == 600
    assert worker.metric("handler_attempts_total") == 100
    assert not scene.dead_letters()


def test_expiries_are_on_time_while_the_gate_is_shut(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="1")
    scene.send(ask("shuts", None, do="shared", retry_after=60))
    scene.wait_started("shuts")
    eventually(lambda: worker.metric("gate_closed") == 1, "the gate to close")
    limits = {f"r{n}": 1000 + 500 * n for n in range(20)}
    places = scene.send(*[ask(name, "k", headers=[("ttl-ms", b"%d" % ms)]) for name, ms in limits.items()])
    answers = {answer.id: answer for answer in scene.wait_responses(20)}
    late = []
    for (name, ms), place in zip(limits.items(), places, strict=True):
        answer = answers[name]
        assert (answer.source, answer.status, answer.error["type"]) == (place, "failed", "Expired")
        late.append(answer.rec.timestamp - int(answer.rec.header("source-timestamp")) - ms)
    # A busy machine delays some: half of them where it pauses for five seconds. Once the gate opens all would come at
    # once, the first of them most late.
    late.sort()
    assert late[0] >= 0
    assert late[9] < 500, f"milliseconds too late: {late}"
    assert late[-1] < 10_000, f"milliseconds too late: {late}"
    assert set(scene.starts()) == {"shuts"}


@pytest.mark.parametrize("header", ["ttl-ms", "expires-at"])
def test_expired_request_becomes_a_dead_letter_where_that_is_wanted(scene, header):
    scene.make()
    worker = scene.ready(WORKER_EXPIRED_TO_DLQ="true")
    scene.send(ask("gone", "k", headers=[(header, b"0")]), ask("odd", "k", headers=[(header, b"soon")]))
    answers = {answer.id: answer.status for answer in scene.wait_responses(2)}
    scene.wait_committed()
    assert answers == {"gone": "failed", "odd": "completed"}
    [letter] = scene.dead_letters()
    assert letter.header("dlq-reason") == b"expired"
    assert letter.header("dlq-error-type") == b"Expired"
    assert worker.metric("messages_failed_total", reason="expired") == 1
    assert worker.metric("requests_total", outcome="expired") == 1
    assert worker.metric("unreadable_headers_total") == 1
