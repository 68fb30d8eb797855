"""What stands in the output topics when a partition is taken over: it is settled, and nothing else is."""

from __future__ import annotations

import json
import signal

import kafka
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.structs import OffsetAndMetadata

from tests.support import wire
from tests.support.scene import ask, check_once, ids
from tests.support.waiting import eventually

EMPTY = "m1:0.0:0.0"


def taken_over(scene, mark=EMPTY, *, offset=0, partition=0):
    """Commit for the scene's group what a worker that died has left."""
    # The worker's client library: confluent-kafka does not write metadata as it is given.
    consumer = KafkaConsumer(bootstrap_servers=scene.bootstrap, group_id=scene.topics.group, enable_auto_commit=False)
    try:
        place = kafka.TopicPartition(scene.topics.requests, partition)
        consumer.assign([place])
        consumer.commit({place: OffsetAndMetadata(offset, f";{mark}", -1)}, timeout_ms=10_000)
    finally:
        consumer.close(autocommit=False)


def source(scene, place, *, later=0):
    """Return the headers that name a request, whose timestamp is off by `later` milliseconds."""
    [request] = [rec for rec in wire.read_all(scene.bootstrap, scene.topics.requests) if rec[:2] == place]
    return [
        ("source-topic", scene.topics.requests.encode()),
        ("source-partition", b"%d" % place.partition),
        ("source-offset", b"%d" % place.offset),
        ("source-timestamp", b"%d" % (request.timestamp + later)),
    ]


def answer(scene, place, request_id, key, **changes):
    """Write a response as a worker does that then dies."""
    body = {"request_id": request_id, "status": "completed", "result": None, "error": None}
    value = json.dumps({**body, "processing_time": 0, "timestamp": "2026-01-01T00:00:00.000Z"}).encode()
    wire.produce(scene.bootstrap, scene.topics.responses, [(key, value, source(scene, place, **changes))])


def test_request_whose_response_stands_in_the_log_is_settled_without_a_call(scene):
    scene.make()
    taken_over(scene)
    [first, _] = scene.send(ask("first", b"k"), ask("second", b"k"))
    answer(scene, first, "first", b"k")
    worker = scene.ready()
    check_once(scene.wait_responses(2), ["first", "second"])
    scene.wait_committed()
    assert scene.starts() == {"second": 1}
    assert worker.metric("journal_recovered_total") == 1
    assert worker.metric("journal_read_seconds_count") == 1


@pytest.mark.parametrize("changes, key", [({"later": 1}, b"k"), ({}, b"other"), ({}, None)])
def test_response_to_another_request_of_that_place_settles_nothing(scene, changes, key):
    scene.make()
    taken_over(scene)
    [place] = scene.send(ask("first", b"k"))
    answer(scene, place, "first", key, **changes)
    worker = scene.ready()
    scene.wait_responses(2)
    scene.wait_committed()
    assert scene.starts() == {"first": 1}
    assert worker.metric("journal_recovered_total") == 0


def bury(scene, place):
    """Write the dead letter of a request as a worker does that then dies."""
    [request] = [rec for rec in wire.read_all(scene.bootstrap, scene.topics.requests) if rec[:2] == place]
    about = [("dlq-reason", b"rejected"), ("dlq-error-type", b"RejectedError"), ("dlq-error-message", b"too bad")]
    about += [("dlq-attempts", b"2"), ("dlq-timestamp", b"2026-11-27T12:00:00.000Z")]
    about += [("dlq-consumer-group", scene.topics.group.encode()), ("dlq-worker-version", b"0.1.0")]
    headers = [*request.headers, *about, *source(scene, place)]
    wire.produce(scene.bootstrap, scene.topics.dlq, [(request.key, request.value, headers)])


def test_dead_letter_without_its_response_gets_the_response_and_no_call(scene):
    scene.make()
    taken_over(scene)
    [place] = scene.send(ask("first", b"k", headers=[("a", b"1")]))
    bury(scene, place)
    worker = scene.ready()
    [found] = scene.wait_responses(1)
    scene.wait_committed()
    assert (found.id, found.status, found.source) == ("first", "failed", place)
    assert found.error == {"type": "RejectedError", "message": "too bad"}
    assert not scene.starts()
    assert len(scene.dead_letters()) == 1
    assert worker.metric("journal_recovered_total") == 1


def test_missing_response_to_a_dead_letter_waits_for_the_turn_of_its_request(scene):
    scene.make()
    taken_over(scene)
    names = ["slow", "buried", "last"]
    # Its dead letter says how it has ended, so it does not expire either.
    buried = ask("buried", b"k", headers=[("ttl-ms", b"1")])
    _, place, _ = scene.send(ask("slow", b"k", seconds=1.0), buried, ask("last", b"k"))
    bury(scene, place)
    scene.ready()
    responses = scene.wait_responses(3)
    assert ids(responses) == names
    assert responses[1].error == {"type": "RejectedError", "message": "too bad"}
    assert scene.starts() == {"slow": 1, "last": 1}


def test_dead_letter_is_found_by_each_owner_until_its_response_is_written(scene, tmp_path):
    """Seen before: the mark of the first one passed the dead letter, and the second one made the call again."""
    scene.make()
    taken_over(scene)
    held = tmp_path / "held"
    held.touch()
    slow = ask("slow", b"k", do="hang", file=str(held))
    _, place, *_ = scene.send(slow, ask("buried", b"k"), *[ask(f"r{n}", b"other") for n in range(10)])
    bury(scene, place)
    # A static member takes its place again at once.
    worker = scene.ready(KAFKA_CONSUMER_GROUP_INSTANCE_ID="one")
    scene.wait_responses(10)
    eventually(lambda: metadata(scene)[0].startswith("gw1:0:"), "a commit behind them")
    worker.signal(signal.SIGKILL)
    worker.wait(10)
    held.unlink()
    worker.start().wait_ready()
    check_once(scene.wait_responses(12), ["slow", "buried", *[f"r{n}" for n in range(10)]])
    scene.wait_committed()
    assert "buried" not in scene.starts()
    assert len(scene.dead_letters()) == 1


def test_all_output_partitions_are_read_where_the_topics_have_not_as_many(scene):
    scene.make(requests=1, responses=4)
    taken_over(scene, "m1:0.0,1.0,2.0,3.0:0.0")
    places = scene.send(*[ask(f"r{n}", f"k{n}") for n in range(40)])
    for n, place in enumerate(places[:20]):
        answer(scene, place, f"r{n}", b"k%d" % n)
    assert all(wire.end_offsets(scene.bootstrap, scene.topics.responses).values())
    worker = scene.ready()
    check_once(scene.wait_responses(40), [f"r{n}" for n in range(40)])
    scene.wait_committed()
    assert worker.metric("journal_recovered_total") == 20


def remove_below(scene, topic, offset):
    admin = AdminClient({"bootstrap.servers": scene.bootstrap})
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(20)


@pytest.mark.parametrize("mark", ["m1:0.999:0.0", "m1:0.0:0.0", "m1:7.0:0.0"], ids=["beyond", "removed", "missing"])
def test_mark_outside_of_the_log_is_given_up_and_counted(scene, mark):
    scene.make()
    taken_over(scene, mark)
    [place] = scene.send(ask("first", b"k"))
    answer(scene, place, "first", b"k")
    answer(scene, place, "first", b"k")
    remove_below(scene, scene.topics.responses, 1)
    worker = scene.ready(WORKER_JOURNAL_TIMEOUT="2")
    scene.wait_responses(3)
    scene.wait_committed()
    assert scene.starts() == {"first": 1}
    assert worker.metric("journal_skipped_total") == 1
    assert worker.metric("journal_recovered_total") == 0
    [told] = [line for line in worker.logs() if line["event"].startswith("The journal is not read")]
    assert told["level"] == "warning"


def test_journal_that_is_off_repeats_what_was_answered_and_leaves_no_mark(scene):
    scene.make()
    taken_over(scene)
    [place] = scene.send(ask("first", b"k"))
    answer(scene, place, "first", b"k")
    worker = scene.ready(WORKER_JOURNAL="off")
    assert ids(scene.wait_responses(2)) == ["first", "first"]
    scene.wait_committed()
    assert worker.stop() == 0
    assert metadata(scene) == {0: ""}


def metadata(scene):
    admin = KafkaAdminClient(bootstrap_servers=scene.bootstrap)
    try:
        found = admin.list_consumer_group_offsets(scene.topics.group)
    finally:
        admin.close()
    return {place.partition: at.metadata for place, at in found.items()}


def test_mark_follows_what_is_acknowledged(scene):
    scene.make(requests=2, responses=2)
    scene.ready()
    eventually(lambda: metadata(scene) == {0: ";m1:0.0:0.0", 1: ";m1:1.0:0.0"}, "the first marks")
    scene.send(*[ask(f"r{n}", "k") for n in range(5)], partition=1)
    scene.send(ask("no", "k", do="reject"), partition=1)
    scene.wait_responses(6)
    eventually(lambda: metadata(scene)[1] == ";m1:1.6:0.1", "the mark to follow")
    assert metadata(scene)[0] == ";m1:0.0:0.0"
