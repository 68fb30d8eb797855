"""Topics that go away and come back, or grow, under the workers' hands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.chaos.checker import Findings, examine
from tests.chaos.evidence import TIMED_BY_BROKER, Evidence, Sample
from tests.chaos.load import mixture, plain
from tests.chaos.stage import recovered_after, report
from tests.support import wire
from tests.support.waiting import eventually
from tests.support.wire import Rec

OLD = 300


def only(evidence: Evidence, prefix: str) -> Evidence:
    """Return the evidence of requests whose ids begin so: outcomes of a deleted topic name offsets of the new one."""

    def ours(records) -> Iterator[Rec]:
        return (rec for rec in records if json.loads(rec.value)["request_id"].startswith(f"r{prefix}"))

    return evidence.but(
        responses=list(ours(evidence.responses)),
        calls=[call for call in evidence.calls if call.id.startswith(f"r{prefix}")],
    )


def since_dropped(samples, old) -> list[Sample]:
    """Return the samples from where the cluster has dropped every `old` position, which it does a moment later.

    Until then commits go on, so no position stays what it was; but none of them is missing or goes back. The last
    sample must be one of the new topic.
    """
    highest, left = dict(old), set(old)
    for number, sample in enumerate(samples):
        left -= {p for p in left if sample.committed.get(p, (-1, ""))[0] < highest[p][0]}
        if not left:
            return samples[number:]
        highest.update(sample.committed)
    return list(samples[-1:])  # nobody looked in between


def create_again(stage, partitions: int) -> None:
    """Create the request topic as soon as the cluster lets it be."""

    def created() -> bool:
        try:
            wire.create_topics(stage.bootstrap, {stage.topics.requests: partitions})
        except wire.KafkaException:
            return False
        return True

    eventually(created, "the topic to be created again", interval=0.02)


@pytest.mark.parametrize(
    "gap, records",
    [
        pytest.param(0.0, 2 * OLD, id="more-at-once", marks=pytest.mark.quick),
        pytest.param(0.0, OLD, id="as-many-at-once"),
        pytest.param(0.0, 40, id="fewer-at-once"),
        pytest.param(3.0, 2 * OLD, id="more-after-3-s"),
        pytest.param(25.0, 2 * OLD, id="more-after-25-s"),
    ],
)
def test_topic_deleted_and_created_again_is_processed_from_its_beginning(stage, gap, records):
    """What was in the deleted one is gone. Nothing that was known of it may touch the new one."""
    stage.make(2)
    worker = stage.worker().start().wait_ready()
    for partition in range(2):
        wire.produce(stage.bootstrap, stage.topics.requests, plain(OLD // 2, prefix="old-"), partition=partition)
    eventually(lambda: stage.count(stage.topics.responses) == OLD, "the old requests to be answered")
    # In hand while the topic goes: half of these calls end after it.
    slow = plain(20, keys=20, prefix="old-slow-", seconds=1.0)
    wire.produce(stage.bootstrap, stage.topics.requests, slow, partition=0)
    stage.wait_calls(OLD + 8)

    wire.delete_topics(stage.bootstrap, [stage.topics.requests])
    old = stage.watch.samples[-1].committed
    stage.watch.forget()
    time.sleep(gap)
    create_again(stage, 2)
    created = time.time()
    for partition in range(2):
        stage.send(plain(records // 2, prefix="new-"), partition=partition)

    def answered() -> bool:
        found = wire.read_all(stage.bootstrap, stage.topics.responses)
        return sum(json.loads(rec.value)["request_id"].startswith("rnew-") for rec in found) >= records

    eventually(answered, "as many responses as requests", timeout=90, interval=0.5)
    stage.wait_settled()
    ends = dict.fromkeys(range(2), records // 2)
    seen = lambda: {p: place[0] for p, place in stage.watch.samples[-1].committed.items()} == ends  # noqa: E731
    eventually(seen, "the last commit to be seen")
    assert worker.stop() == 0
    evidence = only(stage.evidence(), "new-")
    evidence = evidence.but(samples=since_dropped(evidence.samples, old))
    assert evidence.samples
    # Until the worker sees it, it reads on where it was: those records come before, and again after the first ones.
    findings = examine(evidence, ordered=False)
    findings.require()
    report(
        f"topic deleted and created again after {gap:g} s, with {records} requests over {OLD}",
        findings,
        recovery=recovered_after(evidence, created),
    )


def test_topic_deleted_under_commits_again_and_again_is_never_begun_in_the_middle(stage):
    """Each time commits are on their way, and the client must not carry one of them over to the next topic."""
    stage.make(2)
    worker = stage.worker().start().wait_ready()
    runs, records = 10, 120

    def answered(run: int) -> bool:
        found = wire.read_all(stage.bootstrap, stage.topics.responses)
        ids = {json.loads(rec.value)["request_id"] for rec in found}
        return all(f"r{run}-{n}" in ids for n in range(records))

    for run in range(runs):
        wire.produce(stage.bootstrap, stage.topics.requests, plain(records, prefix=f"{run}-"))
        eventually(lambda run=run: answered(run), f"every request of topic {run} to be answered", timeout=60)
        wire.produce(stage.bootstrap, stage.topics.requests, plain(200, prefix=f"{run}-late-", seconds=0.01))
        time.sleep(0.1 + 0.07 * run)
        wire.delete_topics(stage.bootstrap, [stage.topics.requests])
        create_again(stage, 2)
    assert worker.metric("offset_resets_total") > 0
    assert worker.stop() == 0


def test_response_topic_deleted_and_created_again_gets_every_later_response(stage):
    """The responses that lay in it are gone with it. What was not acknowledged by then must come."""
    stage.make(2)
    worker = stage.worker().start().wait_ready()
    before = stage.load(plain(10_000, prefix="before-"), rate=50)
    stage.wait_calls(60)
    wire.delete_topics(stage.bootstrap, [stage.topics.responses])
    eventually(lambda: worker.ask("/readyz")[0] == 503, "readiness to tell of it", timeout=30)
    before.stop()
    wire.create_topics(stage.bootstrap, {stage.topics.responses: 2}, config=TIMED_BY_BROKER)
    created = time.time()
    after = stage.send(plain(200, prefix="after-"))
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=60)
    stage.wait_settled()
    assert worker.stop() == 0
    evidence = stage.evidence()
    findings = examine(evidence.but(samples=[]))
    assert not findings.faults
    assert not set(after) & set(findings.lost)
    assert findings.repeated_calls == 0
    recovery = recovered_after(evidence, created)
    # Not a loss of the worker's: the cluster had acknowledged these, and was told to drop them.
    gone = Findings(findings.requests - len(findings.lost))
    report("response topic deleted and created again", gone, recovery=recovery)


def test_partitions_that_are_added_are_read(stage):
    stage.make(2)
    stage.load(mixture(retried=False), rate=50)
    workers = [stage.worker(f"worker-{n}").start() for n in range(2)]
    for worker in workers:
        worker.wait_ready()
    stage.wait_calls(60)
    wire.add_partitions(stage.bootstrap, stage.topics.requests, 5)
    added = time.time()
    time.sleep(15.0)
    findings, evidence = stage.conclude()
    assert {rec.partition for rec in evidence.requests} == set(range(5))
    report("partitions added, from 2 to 5", findings, recovery=recovered_after(evidence, added))
