"""Outcomes that a topic does not take: replaced, or waited for, and never dropped."""

from __future__ import annotations

import base64
import json
import os
import time

import pytest

from tests.support import wire
from tests.support.releases import too_old_setting
from tests.support.scene import MARKER, ask, check_once
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


def long_winded() -> str:
    """Return text that zstd makes much of and gzip does not: what repeats lies far apart."""
    return os.urandom(300_000).hex() * 6


OVERSIZED = {
    "replays": ([("dlq-replays", b"9" * 520_000)], {}),
    "nulls": ([(f"{number:02}" * 15_000, None) for number in range(17)], {}),
    "packed": ([], {"ballast": "a" * 7_000_000}),
    "long-winded": ([], {"ballast": long_winded()}),
}


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_dead_letter_has_room_for_whatever_the_request_topic_took(scene, compression):
    worker = scene.ready(KAFKA_PRODUCER_COMPRESSION_TYPE=compression)
    good = [ask(f"r{n}", f"k{n}") for n in range(30)]
    dead = [ask(name, name, headers, do="reject", **more) for name, (headers, more) in OVERSIZED.items()]
    scene.send(*dead, *good, compression_codec="zstd", message_max_bytes=10_000_000)
    check_once(scene.wait_responses(34), [*[f"r{n}" for n in range(30)], *OVERSIZED])
    scene.wait_committed()
    letters = {letter.key.decode(): letter for letter in scene.dead_letters()}
    assert {name: letter.value for name, letter in letters.items()} == {key.decode(): value for key, value, _ in dead}
    assert letters["replays"].header("dlq-replays") == b"0"
    assert letters["nulls"].header("dlq-null-headers") == b"+17 of 17"
    assert worker.ask("/readyz")[0] == 200


def test_dead_letter_that_only_the_best_codec_makes_small_enough_is_written(scene):
    make(scene, dlq=1_000_000)
    scene.ready()
    scene.send(
        ask("long-winded", "a", do="reject", ballast=long_winded()),
        compression_codec="zstd",
        message_max_bytes=10_000_000,
    )
    check_once(scene.wait_responses(1), ["long-winded"])
    assert len(scene.dead_letters()) == 1


def test_foreign_dead_letter_queue_that_refuses_a_letter_holds_up_nothing_but_its_offset(scene):
    names = scene.topics
    wire.create_topics(scene.bootstrap, {names.requests: 2, names.responses: 2})
    wire.create_topics(scene.bootstrap, {names.dlq: 1}, config={"max.message.bytes": "2000"})
    worker = scene.ready(**PLAIN)
    ballast = base64.b64encode(os.urandom(3000)).decode()
    scene.send(ask("large-reject", "b", do="reject", ballast=ballast), ask("behind", "c"), partition=0)
    scene.send(ask("beside", "d"), partition=1)
    scene.wait_responses(2)
    why = eventually(lambda: blocked(worker), "the worker to tell")
    assert scene.topics.dlq in why
    assert "raise its max.message.bytes" in why
    assert MARKER not in why
    assert worker.metric("not_ready") >= 1
    assert worker.ask("/livez")[0] == 200

    scene.send(ask("later", "e"), ask("reject", "f", do="reject"), partition=0)
    scene.send(ask("later-beside", "e"), ask("reject-beside", "f", do="reject"), partition=1)
    everybody = ["behind", "beside", "later", "reject", "later-beside", "reject-beside"]
    check_once(scene.wait_responses(6), everybody)
    eventually(lambda: scene.committed() == {0: 0, 1: 3}, "the other partition to be committed")
    assert len(scene.dead_letters()) == 2
    assert worker.status()["handler_calls_held_by"] == []

    set_limit(scene, scene.topics.dlq, 1_000_000)
    check_once(scene.wait_responses(7, timeout=40), [*everybody, "large-reject"])
    scene.wait_committed()
    assert len(scene.dead_letters()) == 3
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again")
    assert worker.metric("dlq_blocked") == 0
    assert max(scene.starts().values()) == 1


def test_missing_dead_letter_queue_holds_up_only_what_needs_it_and_what_waits_is_sent_when_it_is_back(scene):
    make(scene)
    worker = scene.ready()
    scene.send(ask("before", "a", do="reject"))
    scene.wait_responses(1)
    wire.delete_topics(scene.bootstrap, [scene.topics.dlq])
    rejected = [f"rejected-{n}" for n in range(3)]
    others = []
    for second in range(15):
        beat = [ask(rejected[second // 2], "b", do="reject")] if second in {0, 2, 4} else []
        beside = [ask(f"r{second}-{n}", f"k{n}") for n in range(40)]
        others += [json.loads(value)["id"] for _, value, _ in beside]
        scene.send(*beat, *beside)
        time.sleep(1)
    why = eventually(lambda: blocked(worker), "the worker to tell")
    assert scene.topics.dlq in why
    check_once(scene.wait_responses(1 + len(others)), ["before", *others])
    assert worker.status()["handler_calls_held_by"] == []
    # It is missed, not made by using it.
    assert scene.topics.dlq not in wire.topics(scene.bootstrap)

    # The broker's clock tells when they came, however late we look.
    wire.create_topics(scene.bootstrap, {scene.topics.dlq: 1}, config={"message.timestamp.type": "LogAppendTime"})
    back = time.time()
    eventually(lambda: scene.count(scene.topics.dlq) == 3, "the dead letters")
    came = max(letter.timestamp for letter in scene.dead_letters()) / 1000
    assert came - back < 8  # what is merely tried now and then waits for up to ten seconds
    check_once(scene.wait_responses(4 + len(others)), ["before", *others, *rejected])
    scene.wait_committed()
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=30)
    assert max(scene.starts().values()) == 1
    assert worker.metric("producer_rebuilds_total") == 0


def test_drain_ends_in_time_with_70_while_an_outcome_cannot_be_delivered(scene):
    make(scene, dlq=2000)
    worker = scene.ready(WORKER_DRAIN_TIMEOUT="1", **PLAIN)
    ballast = base64.b64encode(os.urandom(3000)).decode()
    scene.send(ask("refused", "a", do="reject", ballast=ballast), ask("beside", "b"))
    scene.wait_responses(1)
    eventually(lambda: blocked(worker), "the worker to tell")
    assert worker.stop(20) == 70  # the cluster is given two minutes for a delivery
    assert scene.committed() == {0: 0}
    set_limit(scene, scene.topics.dlq, 1_000_000)
    worker.start()
    check_once(scene.wait_responses(2), ["beside", "refused"])
    scene.wait_committed()
    assert scene.starts()["beside"] == 1
    assert worker.stop() == 0


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


def test_responses_of_a_key_keep_their_order_when_their_topic_comes_to_take_less(scene):
    make(scene)
    worker = scene.ready(WORKER_CONCURRENCY="64", **PLAIN)
    scene.send(ask("before", "k0"))
    scene.wait_responses(1)
    set_limit(scene, scene.topics.responses, 5000)
    sent = [ask(f"r{n}", f"k{n % 40}", query="x" * 700) for n in range(6000)]
    scene.send(*sent)
    responses = scene.wait_responses(6001, timeout=120)
    check_once(responses, ["before", *[f"r{n}" for n in range(6000)]])
    assert overtaken(responses) == []
    assert scene.dead_letters() == []
    scene.wait_committed()
    assert worker.metric("producer_rebuilds_total") == 0


def test_responses_of_a_machine_with_a_wrong_clock_are_refused_with_a_word_about_clocks_and_no_producer_is_replaced(
    scene,
):
    make(scene)
    worker = scene.ready()
    wire.alter_topic(scene.bootstrap, scene.topics.responses, {too_old_setting(): "0"})
    scene.send(*[ask(f"r{n}", f"k{n % 3}") for n in range(20)])
    why = eventually(lambda: "clock" in (said := worker.ask("/readyz")[1]) and said, "the worker to tell", timeout=20)
    assert scene.topics.responses in why
    assert worker.metric("producer_rebuilds_total") == 0
    wire.alter_topic(scene.bootstrap, scene.topics.responses, {too_old_setting(): "3600000"})
    check_once(scene.wait_responses(20), [f"r{n}" for n in range(20)])
    assert worker.metric("producer_rebuilds_total") == 0
    assert any("clock" in str(line.get("error")) for line in worker.logs())


def test_responses_refused_for_a_neighbour_without_a_key_replace_no_producer(scene):
    make(scene)
    worker = scene.ready()
    wire.alter_topic(scene.bootstrap, scene.topics.responses, {"cleanup.policy": "compact"})
    scene.send(*[ask(f"r{n}", f"k{n}" if n % 2 else None) for n in range(100)])
    eventually(lambda: "key" in worker.ask("/readyz")[1], "the worker to tell", timeout=20)
    assert worker.metric("producer_rebuilds_total") == 0
    wire.alter_topic(scene.bootstrap, scene.topics.responses, {"cleanup.policy": "delete"})
    check_once(scene.wait_responses(100), [f"r{n}" for n in range(100)])
    assert worker.metric("producer_rebuilds_total") == 0


def overtaken(responses):
    """Return the offsets of requests whose response stands behind that of a newer one of the same key."""
    newest, found = {}, []
    for answer in responses:
        key = answer.rec.key, answer.source.partition
        if answer.source.offset < newest.get(key, -1):
            found.append(answer.source.offset)
        newest[key] = max(answer.source.offset, newest.get(key, -1))
    return found


@pytest.mark.parametrize("acks, compression", [("1", "snappy"), ("0", "lz4"), ("all", "none")])
def test_requests_are_answered_and_committed_whatever_the_producer_is_told(scene, acks, compression):
    scene.make(requests=3, responses=3)
    worker = scene.ready(
        KAFKA_PRODUCER_ACKS=acks, KAFKA_PRODUCER_COMPRESSION_TYPE=compression, KAFKA_PRODUCER_LINGER_MS="0"
    )
    scene.send(*[ask(f"r{n}", f"k{n % 9}") for n in range(100)], ask("dead", None, do="reject"))
    check_once(scene.wait_responses(101), [*[f"r{n}" for n in range(100)], "dead"])
    scene.wait_committed()
    # Without an acknowledgement it may come after all the rest.
    eventually(lambda: scene.count(scene.topics.dlq) == 1, "the dead letter")
    assert worker.metric("messages_sent_total") == 102
    warned = [line for line in worker.logs() if line["level"] == "warning" and "KAFKA_PRODUCER_ACKS" in str(line)]
    assert len(warned) == (acks != "all")
    assert worker.stop() == 0


def set_limit(scene, topic, limit):
    """Change the size of the records that a topic takes."""
    wire.alter_topic(scene.bootstrap, topic, {"max.message.bytes": str(limit)})
