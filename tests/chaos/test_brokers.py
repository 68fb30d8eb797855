"""Brokers that die, restart, freeze: outcomes wait, are sent again, and come once and in order."""

from __future__ import annotations

import time

import pytest

from tests.chaos.load import mixture, plain
from tests.chaos.stage import hooked, longest_silence, recovered_after, report
from tests.support import wire
from tests.support.waiting import eventually

# For how long handler calls still start behind the first outcome that cannot be delivered: five seconds, and as much as
# it takes the delivery thread to look, on a busy machine too.
BLOCKED = 5.0 + 1.5
# What a worker has in hand or does until nothing starts any more: calls of a second on 8 threads, and 50 quick ones a
# second before.
IN_HAND = 150


@pytest.mark.quick
def test_broker_killed_and_restarted_loses_nothing(own_kafka, make_stage):
    broker_killed(own_kafka, make_stage, runs=1)


def test_broker_killed_and_restarted_again_and_again_loses_nothing(own_kafka, make_stage):
    broker_killed(own_kafka, make_stage, runs=4)


def broker_killed(cluster, make_stage, *, runs: int) -> None:
    stage = make_stage(cluster, KAFKA_CONSUMER_SESSION_TIMEOUT_MS="30000").make()  # nobody is to be evicted
    worker = stage.worker().start().wait_ready()
    load = stage.load(mixture(retried=False), rate=50)
    stage.wait_calls(60)
    recoveries = []
    for n in range(runs):
        cluster.kill()
        time.sleep(3.0 + 3 * n)
        cluster.restart()
        recoveries.append(time.time())
        time.sleep(6.0)
    load.stop()
    findings, evidence = stage.conclude(resent=True)
    # The worker lived: no call is made twice, only an acknowledgement may have been lost with the broker.
    assert findings.repeated_calls == 0
    assert worker.log_file.read_text().count('"Worker starting"') == 1
    recovery = max(recovered_after(evidence, moment) for moment in recoveries)
    report("broker killed and restarted", findings, runs=runs, recovery=recovery)


def test_one_broker_of_three_killed_loses_nothing(three_kafkas, make_stage):
    stage = make_stage(three_kafkas).make(6, replication=3)
    load = stage.load(mixture(retried=False), rate=50)
    workers = [stage.worker(f"worker-{n}").start() for n in range(2)]
    for worker in workers:
        worker.wait_ready()
    stage.wait_calls(60)
    started = time.time()
    for node in (1, 2, 3):
        three_kafkas.kill(node)
        time.sleep(8.0)
        three_kafkas.restart(node)
        in_sync(three_kafkas, stage)
        time.sleep(2.0)
    ended = time.time()
    load.stop()
    findings, evidence = stage.conclude(resent=True)
    silence = longest_silence(evidence, started, ended)
    report("one of three brokers killed, each in turn", findings, runs=3, recovery=silence)


def test_rolling_restart_of_three_brokers_loses_nothing(three_kafkas, make_stage):
    stage = make_stage(three_kafkas).make(6, replication=3)
    load = stage.load(mixture(retried=False), rate=50)
    workers = [stage.worker(f"worker-{n}").start() for n in range(2)]
    for worker in workers:
        worker.wait_ready()
    stage.wait_calls(60)
    started = time.time()
    for node in (1, 2, 3):
        three_kafkas.restart(node)
        in_sync(three_kafkas, stage)
        time.sleep(3.0)
    ended = time.time()
    load.stop()
    findings, evidence = stage.conclude(resent=True)
    assert findings.repeated_calls == 0
    silence = longest_silence(evidence, started, ended)
    report("rolling restart of three brokers", findings, runs=3, recovery=silence)


def test_broker_frozen_for_less_than_the_delivery_time_out_doubles_nothing(own_kafka, make_stage):
    stage = make_stage(own_kafka).make()
    stage.worker().start().wait_ready()
    load = stage.load(mixture(retried=False), rate=50)
    stage.wait_calls(60)
    thawed = []
    for seconds in (4.0, 12.0):
        freeze_in_the_midst(own_kafka, stage, f"{seconds}-")
        frozen = time.time()
        time.sleep(seconds)
        thawed.append(time.time())
        own_kafka.thaw()
        assert not started(stage, first_end(stage, frozen) + BLOCKED, thawed[-1])
        # What the slow ones have held up must be done by the next time, or it is all in hand.
        time.sleep(16.0)
    load.stop()
    findings, evidence = stage.conclude()
    # A coordinator that slept takes its members for dead, and gives the partitions out anew.
    assert findings.repeated_calls <= IN_HAND
    assert findings.duplicate_outcomes <= IN_HAND
    recovery = max(recovered_after(evidence, moment) for moment in thawed)
    report("broker frozen for 4 and for 12 s", findings, runs=2, recovery=recovery)


def freeze_in_the_midst(cluster, stage, prefix: str) -> None:
    """Freeze the broker when slow calls run: a worker that had nothing in hand would have nothing to deliver."""
    stage.send(plain(100, keys=100, prefix=prefix, seconds=1.0))
    eventually(
        lambda: any(call.id.startswith(f"r{prefix}") for call in stage.calls()), "a slow call to begin", timeout=30
    )
    cluster.freeze()


@pytest.mark.parametrize("runs", [pytest.param(1, marks=pytest.mark.quick), 3])
def test_broker_frozen_for_longer_than_the_delivery_time_out_loses_nothing(own_kafka, make_stage, runs):
    """The producer is replaced, and everything it held is sent again in its order."""
    stage = make_stage(own_kafka).make()
    worker = stage.worker(**hooked(delivery_timeout="4")).start().wait_ready()
    load = stage.load(mixture(retried=False), rate=50)
    stage.wait_calls(60)
    thawed = []
    for n in range(runs):
        freeze_in_the_midst(own_kafka, stage, f"{n}-")
        frozen = time.time()
        time.sleep(12.0)
        thawed.append(time.time())
        own_kafka.thaw()
        assert not started(stage, first_end(stage, frozen) + BLOCKED, thawed[-1])
        eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=60)
        time.sleep(14.0 if n + 1 < runs else 4.0)  # as above
    load.stop()
    rebuilds = worker.metric("producer_rebuilds_total")
    findings, evidence = stage.conclude(resent=True)
    assert rebuilds >= 1
    assert findings.repeated_calls <= IN_HAND * runs
    recovery = max(recovered_after(evidence, moment) for moment in thawed)
    report("broker frozen past the delivery time-out", findings, runs=runs, recovery=recovery)


def first_end(stage, since: float) -> float:
    """Return when the first handler call ended after a moment of the clock: its outcome cannot be delivered."""
    return min(call.at for call in stage.calls("end") if call.at > since)


def started(stage, since: float, until: float) -> list[str]:
    """Return the requests of which a handler call started between two moments of the clock."""
    return [call.id for call in stage.calls() if since < call.at < until]


def in_sync(cluster, stage) -> None:
    """Wait until every replica of the topics has caught up, or the next restart would leave too few."""
    names = [stage.topics.requests, stage.topics.responses, stage.topics.dlq]
    eventually(lambda: wire.in_sync(cluster.bootstrap_servers, names), "every replica to be in sync", timeout=60)
