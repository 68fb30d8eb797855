"""What a crash costs with the journal: nothing whose outcome stood in the cluster is called again or written twice."""

from __future__ import annotations

import signal
import time
from datetime import datetime

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from gigaoffice_worker.engine.delivery import BLOCKED_AFTER
from tests.chaos.checker import Life, called_though_answered, examine, flights
from tests.chaos.load import mixture, plain
from tests.chaos.stage import hooked, recovered_after, report
from tests.support import wire
from tests.support.waiting import eventually

THREADS = 16
DEATHS = 5
# It takes the place of the dead one at once; others wait until its session has run out.
STATIC = {
    "KAFKA_CONSUMER_GROUP_INSTANCE_ID": "one",
    "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": "30000",
    "WORKER_CONCURRENCY": str(THREADS),
}


def logged_at(worker, event: str) -> float:
    """Return when a worker wrote its newest line of this event, in seconds of the clock."""
    return max(
        datetime.fromisoformat(line["timestamp"]).timestamp() for line in worker.logs() if line["event"] == event
    )


def die_again_and_again(stage, hooks: dict[str, str], **environment: str) -> list[Life]:
    """Kill workers under load, one after the other, and return their lives."""
    # What waits for a retry begins with its first attempt again: that is no repeated call.
    stage.load(mixture(keys=60, seconds=0.05, retried=False), rate=150)
    lives = []
    for n in range(DEATHS):
        worker = stage.worker(f"doomed-{n}", **STATIC, **hooked(**hooks), **environment).start()
        assert worker.wait(60) == -signal.SIGKILL
        lives.append(Life(worker.pid, logged_at(worker, "Partitions assigned"), time.time()))
    return lives


def survive(stage, lives: list[Life], **environment: str):
    """Let one more worker do what is left; return it, and what all of them have left behind."""
    survivor = stage.worker("survivor", **STATIC, **environment).start().wait_ready()
    stage.wait_settled()
    waited = survivor.metric("journal_read_seconds_sum") / max(1.0, survivor.metric("journal_read_seconds_count"))
    findings, evidence = stage.conclude()
    lives.append(Life(survivor.pid, logged_at(survivor, "Partitions assigned")))
    return waited, findings, evidence


def longest_recovery(evidence, lives: list[Life]) -> float:
    """Return the most seconds from a death until each partition that was read before the next had an outcome again."""
    ends = [life.died for life in lives[:-1]]
    return max(recovered_after(evidence, died, until) for died, until in zip(ends, [*ends[1:], None], strict=True))


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
    lives = die_again_and_again(stage, {"kill": f"{place}:{every}"})
    waited, findings, evidence = survive(stage, lives)
    assert called_though_answered(evidence, {life.pid: life.taken_over for life in lives}) == []
    assert findings.duplicate_outcomes == 0
    for life, flight in zip(lives, flights(evidence, lives), strict=False):
        # An outcome that was on its way and has not arrived is nowhere: nobody can know of it.
        assert flight.unexcused == frozenset()
        assert len(flight.running) <= THREADS
        # No call starts while a response waits for longer than that. The first life may end with its first mark.
        last = max((call.at for call in evidence.calls if call.pid == life.pid), default=life.taken_over)
        waits = last - min(flight.unacknowledged.values(), default=last)
        assert waits < BLOCKED_AFTER
        ended = f"{len(flight.unacknowledged)} ended and on the way, for up to {waits:.3f} s"
        print(f"running {len(flight.running)}, {ended}: {len(flight.repeated)} called again")
    # This is what the journal adds to a recovery: the partition waits for it.
    assert waited < 9.0
    report(
        f"kill -9 {place.replace('-', ' ')}, with the journal",
        findings,
        runs=DEATHS,
        recovery=longest_recovery(evidence, lives),
    )


def test_kill_with_the_journal_off_repeats_what_was_answered(stage):
    """The row to hold the others against: what the journal saves, and what it costs in time."""
    stage.make()
    off = {"WORKER_JOURNAL": "off"}
    lives = die_again_and_again(stage, {"kill": "after-send:60"}, **off)
    _, findings, evidence = survive(stage, lives, **off)
    assert findings.duplicate_outcomes > 0
    assert called_though_answered(evidence, {life.pid: life.taken_over for life in lives})
    report(
        "kill -9 after send, with the journal off",
        findings,
        runs=DEATHS,
        recovery=longest_recovery(evidence, lives),
    )


# Workers with one mistake each, which the checker must see


@pytest.mark.quick
def test_mark_at_the_end_of_the_log_is_seen(stage):
    stage.make()
    lives = die_again_and_again(stage, {"kill": "after-commit:4", "break": "mark-the-end"})
    stage.wait_calls(1)
    assert called_though_answered(stage.evidence(), {life.pid: life.taken_over for life in lives})


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
    wire.create_topics(stage.bootstrap, {stage.topics.requests: 1})
    # The cluster drops what was committed a moment after the topic, and would drop the mark with it.
    eventually(
        lambda: not wire.committed(stage.bootstrap, stage.topics.group, stage.topics.requests),
        "the old commit to be dropped",
    )
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
