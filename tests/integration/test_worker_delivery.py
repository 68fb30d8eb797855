"""Outcomes that a topic does not take: replaced, or waited for, and never dropped."""

from __future__ import annotations

import base64
import os
import time

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from tests.support import wire
from tests.support.scene import MARKER, ask, check_once, ids
from tests.support.waiting import eventually

PLAIN = {"KAFKA_PRODUCER_COMPRESSION_TYPE": "none"}


def make(scene, *, responses=None, dlq=None):
    """Create the scene's topics with these limits on a record's size."""
    names = scene.topics
    for name, limit in ((names.requests, None), (names.responses, responses), (names.dlq, dlq)):
        config = {} if limit is None else {"max.message.bytes": str(limit)}
        wire.create_topics(scene.bootstrap, {name: 1}, config=config)


def blocked(worker):
    code, why = worker.ask("/readyz")
    return code == 503 and worker.metric("dlq_blocked") == 1 and why


def test_response_that_its_topic_refuses_becomes_a_dead_letter_and_a_small_failed_response(scene):
    make(scene, responses=4000)
    worker = scene.ready(**PLAIN)
    sent = [ask("large-0", "k3", do="large", bytes=5000)]
    sent += [ask(f"r{n}", f"k{n % 5}", seconds=0.001, query="x" * 300) for n in range(60)]
    sent += [
        ask("large-1", "k3", do="large", bytes=20_000),
        ask("large-2", "k4", do="large", bytes=3_000_000),
        ask("last", "k3"),
    ]
    scene.send(*sent)
    responses = scene.wait_responses(64)
    scene.wait_committed()
    check_once(responses, [*[f"r{n}" for n in range(60)], "large-0", "large-1", "large-2", "last"])
    assert {answer.id for answer in responses if answer.status == "failed"} == {"large-0", "large-1", "large-2"}
    assert {answer.error["type"] for answer in responses if answer.error} == {"ResponseTooLarge"}
    letters = scene.dead_letters()
    assert [letter.header("dlq-reason") for letter in letters] == [b"response-too-large"] * 3
    assert {letter.value for letter in letters} == {value for _, value, _ in sent if b"large" in value}
    assert {letter.header("dlq-attempts") for letter in letters} == {b"1"}
    assert max(scene.starts().values()) == 1
    of_one_key = [answer.source.offset for answer in responses if answer.rec.key == b"k3"]
    assert of_one_key == sorted(of_one_key)
    assert worker.metric("messages_failed_total", reason="response-too-large") == 3
    assert worker.metric("messages_sent_total") == 64 + 3
    assert worker.ask("/readyz")[0] == 200


def test_response_that_fits_when_compressed_is_delivered(scene):
    make(scene, responses=4000)
    scene.ready(KAFKA_PRODUCER_COMPRESSION_TYPE="gzip")
    scene.send(ask("compressible", "a", do="large", bytes=100_000), ask("other", "b"))
    responses = scene.wait_responses(2)
    check_once(responses, ["compressible", "other"])
    assert all(answer.status == "completed" for answer in responses)
    scene.wait_committed()
    assert scene.count(scene.topics.dlq) == 0


def test_dead_letter_queue_that_refuses_a_letter_blocks_its_offset_until_it_takes_it(scene):
    make(scene, dlq=2000)
    worker = scene.ready(**PLAIN)
    ballast = base64.b64encode(os.urandom(3000)).decode()
    scene.send(ask("before", "a"))
    scene.wait_responses(1)
    scene.send(ask("large-reject", "b", do="reject", ballast=ballast), ask("beside", "c"))
    scene.wait_responses(2)
    why = eventually(lambda: blocked(worker), "the worker to be blocked")
    assert scene.topics.dlq in why
    assert MARKER not in why
    assert worker.metric("not_ready") >= 1
    assert worker.ask("/livez")[0] == 200

    # No handler call starts any more, since its outcome might not be deliverable either.
    eventually(lambda: worker.status()["handler_calls_held_by"], "the handlers to be held")
    scene.send(ask("later", "d"))
    eventually(lambda: worker.status()["requests"]["queued"] == 1, "the later one to arrive")
    assert ids(scene.responses()) == ["before", "beside"]
    assert scene.committed() == {0: 1}
    assert scene.starts()["later"] == 0

    set_limit(scene, scene.topics.dlq, 1_000_000)
    check_once(scene.wait_responses(4, timeout=40), ["before", "beside", "large-reject", "later"])
    [letter] = scene.dead_letters()
    assert letter.header("dlq-reason") == b"rejected"
    scene.wait_committed()
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again")
    assert worker.metric("dlq_blocked") == 0
    assert max(scene.starts().values()) == 1


def test_missing_dead_letter_queue_blocks_until_it_is_made_again(scene):
    make(scene)
    worker = scene.ready()
    scene.send(ask("before", "a", do="reject"))
    scene.wait_responses(1)
    wire.delete_topics(scene.bootstrap, [scene.topics.dlq])
    scene.send(ask("rejected", "b", do="reject"), ask("beside", "c"))
    why = eventually(lambda: blocked(worker), "the worker to be blocked", timeout=40)
    assert scene.topics.dlq in why
    check_once(scene.responses(), ["before", "beside"])
    assert scene.committed() == {0: 1}
    # It is missed, not made by using it.
    assert scene.topics.dlq not in wire.topics(scene.bootstrap)

    wire.create_topics(scene.bootstrap, {scene.topics.dlq: 1})
    check_once(scene.wait_responses(3, timeout=60), ["before", "beside", "rejected"])
    assert [letter.header("source-offset") for letter in scene.dead_letters()] == [b"1"]
    scene.wait_committed()
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=30)
    assert max(scene.starts().values()) == 1


def test_drain_ends_in_time_with_70_while_an_outcome_cannot_be_delivered(scene):
    make(scene, dlq=2000)
    worker = scene.ready(WORKER_DRAIN_TIMEOUT="1", **PLAIN)
    ballast = base64.b64encode(os.urandom(3000)).decode()
    scene.send(ask("refused", "a", do="reject", ballast=ballast), ask("beside", "b"))
    scene.wait_responses(1)
    began = time.monotonic()
    assert worker.stop(15) == 70
    assert time.monotonic() - began < 6
    assert scene.committed() == {0: 0}
    set_limit(scene, scene.topics.dlq, 1_000_000)
    worker.start()
    check_once(scene.wait_responses(2), ["beside", "refused"])
    scene.wait_committed()
    assert scene.starts()["beside"] == 1
    assert worker.stop(15) == 0


def test_missing_response_topic_blocks_until_it_is_made_again(scene):
    make(scene)
    worker = scene.ready()
    scene.send(ask("before", "a"))
    scene.wait_responses(1)
    wire.delete_topics(scene.bootstrap, [scene.topics.responses])
    scene.send(*[ask(f"r{n}", f"k{n % 3}") for n in range(20)])
    eventually(
        lambda: worker.metric("not_ready", reason="delivery-blocked") == 1, "the worker to be blocked", timeout=40
    )
    code, why = worker.ask("/readyz")
    assert code == 503
    assert scene.topics.responses in why
    assert worker.metric("dlq_blocked") == 0
    wire.create_topics(scene.bootstrap, {scene.topics.responses: 1})
    check_once(scene.wait_responses(20, timeout=60), [f"r{n}" for n in range(20)])
    scene.wait_committed()
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=30)
    assert max(scene.starts().values()) == 1


@pytest.mark.parametrize("acks, compression", [("1", "snappy"), ("0", "lz4"), ("all", "none")])
def test_requests_are_answered_and_committed_whatever_the_producer_is_told(scene, acks, compression):
    scene.make(requests=3, responses=3)
    worker = scene.ready(
        KAFKA_PRODUCER_ACKS=acks, KAFKA_PRODUCER_COMPRESSION_TYPE=compression, KAFKA_PRODUCER_LINGER_MS="0"
    )
    scene.send(*[ask(f"r{n}", f"k{n % 9}") for n in range(100)], ask("dead", None, do="reject"))
    check_once(scene.wait_responses(101), [*[f"r{n}" for n in range(100)], "dead"])
    scene.wait_committed()
    assert scene.count(scene.topics.dlq) == 1
    assert worker.metric("messages_sent_total") == 102
    warned = [line for line in worker.logs() if line["level"] == "warning" and "KAFKA_PRODUCER_ACKS" in str(line)]
    assert len(warned) == (acks != "all")
    assert worker.stop(15) == 0


def set_limit(scene, topic, limit):
    """Change the size of the records that a topic takes."""
    entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": scene.bootstrap})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(20)
