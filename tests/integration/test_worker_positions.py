"""Where the worker reads: what was committed, by whomever, and what the log holds of it."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.support import wire
from tests.support.scene import ask, check_once
from tests.support.waiting import eventually


def commit(scene, offset, metadata=""):
    """Commit an offset of partition 0 for the scene's group, as somebody else would."""
    consumer = Consumer({"bootstrap.servers": scene.bootstrap, "group.id": scene.topics.group})
    try:
        consumer.commit(offsets=[TopicPartition(scene.topics.requests, 0, offset, metadata)], asynchronous=False)
    finally:
        consumer.close()


def remove_below(scene, offset):
    """Remove records from the beginning of partition 0, as retention does."""
    admin = AdminClient({"bootstrap.servers": scene.bootstrap})
    for future in admin.delete_records([TopicPartition(scene.topics.requests, 0, offset)]).values():
        future.result(20)


@pytest.mark.parametrize("reset, answered", [("earliest", ["r2", "r3", "r4"]), ("latest", [])])
def test_committed_offset_below_the_log_is_an_error_and_the_rule_applies(scene, reset, answered):
    scene.make()
    scene.send(*[ask(f"r{n}", "k") for n in range(5)])
    commit(scene, 1)
    remove_below(scene, 2)
    worker = scene.ready(KAFKA_CONSUMER_AUTO_OFFSET_RESET=reset)
    eventually(lambda: worker.metric("offset_resets_total") == 1, "the reset")
    worker.wait_ready()  # when it has asked for the end of the log
    scene.send(ask("new", "k"))
    check_once(scene.wait_responses(len(answered) + 1), [*answered, "new"])
    scene.wait_committed()
    [told] = [line for line in worker.logs() if line["level"] == "error"]
    assert (told["partition"], told["offset"]) == (0, 1)
    assert worker.metric("offset_resets_total") == 1


def test_records_removed_at_run_time_are_told_and_what_is_in_hand_stays(scene):
    scene.make()
    gate = scene.file("gate")
    worker = scene.ready(WORKER_CONCURRENCY="2", KAFKA_CONSUMER_MAX_POLL_RECORDS="50")
    # Large enough that the worker stops reading in between: 40 MB, of which it holds 32.
    running = ask("running", "k", do="hang", file=str(gate))
    sent = [running, *[ask(f"r{n}", "k", padding="x" * 40_000) for n in range(1000)]]
    scene.send(*sent)
    scene.wait_started("running")
    eventually(lambda: worker.status()["partitions"][0]["paused"] == "bytes", "the worker to have enough", timeout=30)
    in_hand = worker.status()["partitions"][0]["position"]
    assert 100 < in_hand < 950
    remove_below(scene, 980)
    gate.unlink()
    answered = ["running", *[f"r{n}" for n in [*range(in_hand - 1), *range(979, 1000)]]]
    check_once(scene.wait_responses(len(answered), timeout=60), answered)
    scene.wait_committed()
    [told] = [line for line in worker.logs() if line["level"] == "error"]
    assert (told["partition"], told["offset"], told["position"], told["records"]) == (0, in_hand, 980, 980 - in_hand)
    assert worker.metric("lost_by_retention_total") == 980 - in_hand
    assert scene.starts()["running"] == 1


def test_committed_offset_beyond_the_log_is_an_error_and_reading_begins_anew(scene):
    scene.make()
    scene.send(*[ask(f"r{n}", "k") for n in range(5)])
    commit(scene, 1000)
    worker = scene.ready()
    check_once(scene.wait_responses(5), [f"r{n}" for n in range(5)])
    scene.wait_committed()
    assert scene.committed() == {0: 5}
    assert worker.metric("offset_resets_total") == 1
    assert [line["offset"] for line in worker.logs() if line["level"] == "error"] == [1000]


@pytest.mark.parametrize("metadata", ["somebody else's", "gw1:2:!!!!", "gw1:7:AAAA"])
def test_foreign_or_damaged_commit_metadata_is_ignored_with_a_warning(scene, metadata):
    scene.make()
    scene.send(*[ask(f"r{n}", "k") for n in range(5)])
    commit(scene, 2, metadata)
    worker = scene.ready()
    check_once(scene.wait_responses(3), ["r2", "r3", "r4"])
    scene.wait_committed()
    assert [line for line in worker.logs() if line["level"] == "warning" and "metadata" in line["event"].lower()]


def test_aborted_requests_are_not_seen_and_transaction_markers_hold_nothing_back(scene):
    scene.make()
    worker = scene.ready()
    producer = Producer({"bootstrap.servers": scene.bootstrap, "transactional.id": scene.topics.group})
    producer.init_transactions(20)
    for name, ending in (("a", "commit"), ("lost", "abort"), ("b", "commit"), ("lost-too", "abort")):
        producer.begin_transaction()
        for n in range(5):
            key, value, _ = ask(f"{name}-{n}", "k")
            producer.produce(scene.topics.requests, value, key)
        producer.flush(20)
        (producer.commit_transaction if ending == "commit" else producer.abort_transaction)(20)
    check_once(scene.wait_responses(10), [f"{name}-{n}" for name in "ab" for n in range(5)])
    scene.wait_committed()
    eventually(lambda: worker.metric("consumer_lag_records") == 0, "no lag to be shown")
    eventually(lambda: scene.committed() == {0: 24}, "the last marker to be passed")
    assert worker.stop() == 0


def test_partitions_added_at_run_time_are_read_and_answered_without_a_new_producer(scene):
    scene.make()
    worker = scene.ready(WORKER_REBALANCE_WAIT="0.3")
    gate = scene.file("gate")
    scene.send(ask("running", "a", do="hang", file=str(gate)))
    scene.wait_started("running")
    wire.add_partitions(scene.bootstrap, scene.topics.requests, 3)
    scene.send(ask("new", "b"), partition=2)  # which the response topic does not have
    check_once(scene.wait_responses(1, timeout=40), ["new"])
    gate.unlink()
    check_once(scene.wait_responses(2), ["new", "running"])
    scene.wait_committed()
    assert scene.starts()["running"] == 1
    assert worker.metric("assigned_partitions") == 3
    assert worker.metric("producer_rebuilds_total") == 0
