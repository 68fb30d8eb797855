"""What a crash costs with the journal: nothing whose outcome stood in the cluster is called again or written twice."""

from __future__ import annotations

import signal
import time
from datetime import datetime

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from tests.chaos.checker import called_though_answered, examine
from tests.chaos.load import mixture, plain
from tests.chaos.stage import hooked, recovered_after, report
from tests.support import wire
from tests.support.waiting import eventually

THREADS = 16
DEATHS = 5
# It takes the place of the dead one at once; others wait until its session has run out.
STATIC = {"KAFKA_CONSUMER_GROUP_INSTANCE_ID": "one", "WORKER_CONCURRENCY": str(THREADS)}


def logged_at(worker, event: str) -> float:
    """Return when a worker wrote its newest line of this event, in seconds of the clock."""
    return max(
        datetime.fromisoformat(line["timestamp"]).timestamp() for line in worker.logs() if line["event"] == event
    )


def die_again_and_again(stage, **hooks: str):
    """Kill workers under load; return when each took over, by its process, and when the last one died."""
    # What waits for a retry begins with its first attempt again: that is no repeated call.
    stage.load(mixture(keys=60, seconds=0.05, retried=False), rate=150)
    taken_over, died = {}, 0.0
    for n in range(DEATHS):
        worker = stage.worker(f"doomed-{n}", **STATIC, **hooked(**hooks)).start()
        assert worker.wait(60) == -signal.SIGKILL
        died = time.time()
        taken_over[worker.pid] = logged_at(worker, "Partitions assigned")
    return taken_over, died


@pytest.mark.parametrize(
    "place, every",
    [
        ("after-poll", 6),
        ("in-handler", 60),
        pytest.param("after-send", 60, marks=pytest.mark.quick),
        ("before-commit", 4),
        ("in-commit", 4),
        ("after-commit", 4),
    ],
)
def test_kill_repeats_no_call_whose_response_stood_in_the_log(stage, place, every):
    stage.make()
    taken_over, died = die_again_and_again(stage, kill=f"{place}:{every}")
    survivor = stage.worker("survivor", **STATIC).start().wait_ready()
    stage.wait_settled()
    waited = survivor.metric("journal_read_seconds_sum") / survivor.metric("journal_read_seconds_count")
    findings, evidence = stage.conclude()
    taken_over[survivor.pid] = logged_at(survivor, "Partitions assigned")
    assert called_though_answered(evidence, taken_over) == []
    assert findings.duplicate_outcomes == 0
    # What ran, and what had ended in the moment before, without an acknowledgement yet.
    assert findings.repeated_calls <= DEATHS * THREADS * 1.5
    assert waited < 1.0
    report(
        f"kill -9 {place.replace('-', ' ')}, with the journal",
        findings,
        runs=DEATHS,
        recovery=recovered_after(evidence, died),
    )


# Workers with one mistake each, which the checker must see


@pytest.mark.quick
def test_mark_at_the_end_of_the_log_is_seen(stage):
    stage.make()
    taken_over, _ = die_again_and_again(stage, kill="after-commit:4", **{"break": "mark-the-end"})
    stage.wait_calls(1)
    assert called_though_answered(stage.evidence(), taken_over)


@pytest.mark.quick
def test_match_without_the_timestamp_is_seen_where_a_topic_was_created_again(stage):
    """The commit is one that was on its way when the topic was deleted: the cluster took it for the new topic."""
    stage.make(1)
    requests = plain(10)
    stage.send(requests)
    worker = stage.worker().start().wait_ready()
    stage.wait_settled()
    assert worker.stop(20) == 0
    wire.delete_topics(stage.bootstrap, [stage.topics.requests])
    eventually(lambda: stage.topics.requests not in wire.topics(stage.bootstrap), "the topic to be gone")
    wire.create_topics(stage.bootstrap, {stage.topics.requests: 1})
    stage.watch.forget()
    stage.send(requests)
    commit_mark(stage, ";m1:0.0:0.0")
    stage.worker("broken", **hooked(**{"break": "match-without-timestamp"})).start().wait_ready()
    stage.wait_settled()
    assert len(examine(stage.evidence()).lost) == 10


def commit_mark(stage, mark: str) -> None:
    """Commit the beginning of the request topic for the stage's group, with a mark."""
    client = KafkaConsumer(bootstrap_servers=stage.bootstrap, group_id=stage.topics.group, enable_auto_commit=False)
    try:
        place = TopicPartition(stage.topics.requests, 0)
        client.assign([place])
        client.commit({place: OffsetAndMetadata(0, mark, -1)}, timeout_ms=10_000)
    finally:
        client.close(autocommit=False)
