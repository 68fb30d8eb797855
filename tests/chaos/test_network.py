"""Networks that are slow, break or fall silent, and clocks that jump."""

from __future__ import annotations

import signal
import time

import pytest

from tests.chaos.load import mixture
from tests.chaos.stage import hooked, longest_silence, recovered_after, report
from tests.support import wire
from tests.support.waiting import eventually

# In hand, or done and not committed, at 50 requests a second.
IN_HAND = 100
HOUR = 3600.0


@pytest.fixture
def stage(proxied_kafka, make_stage):
    """A stage whose workers go through the proxy, and nobody else does."""
    cluster, _ = proxied_kafka
    return make_stage(cluster, direct=cluster.bootstrap("BROKER")).make()


def test_slow_network_repeats_nothing(proxied_kafka, stage):
    _, proxy = proxied_kafka
    stage.worker().start().wait_ready()
    load = stage.load(mixture(retried=False), rate=30)
    stage.wait_calls(60)
    proxy.latency, proxy.rate = 0.2, 40_000
    slowed = time.time()
    time.sleep(25.0)
    ended = time.time()
    proxy.latency, proxy.rate = 0.0, 0
    load.stop()
    findings, evidence = stage.conclude()
    assert (findings.repeated_calls, findings.duplicate_outcomes) == (0, 0)
    assert proxy.forwarded > 100_000
    silence = longest_silence(evidence, slowed, ended)
    report("network of 0.4 s round trip and 40 kB/s", findings, recovery=silence)


def test_connections_that_break_again_and_again_repeat_nothing(proxied_kafka, stage):
    _, proxy = proxied_kafka
    stage.worker().start().wait_ready()
    load = stage.load(mixture(retried=False), rate=50)
    stage.wait_calls(60)
    started = time.time()
    breaks = 25
    for n in range(breaks):
        time.sleep(0.3 + 0.05 * n)
        proxy.break_connections()
    ended = time.time()
    load.stop()
    findings, evidence = stage.conclude()
    assert (findings.repeated_calls, findings.duplicate_outcomes) == (0, 0)
    silence = longest_silence(evidence, started, ended)
    report("all connections broken, every second", findings, runs=breaks, recovery=silence)


@pytest.mark.parametrize("seconds", [4.0, 15.0])
def test_network_that_falls_silent_loses_nothing(proxied_kafka, stage, seconds):
    _, proxy = proxied_kafka
    worker = stage.worker().start().wait_ready()
    load = stage.load(mixture(retried=False), rate=50)
    stage.wait_calls(60)
    proxy.mute = True
    time.sleep(seconds)
    proxy.mute = False
    heard = time.time()
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=40)
    time.sleep(4.0)
    load.stop()
    findings, evidence = stage.conclude(resent=True)
    # For longer than the session the group takes the worker for dead.
    allowed = IN_HAND if seconds > 6.0 else 0
    assert findings.repeated_calls <= allowed
    assert findings.duplicate_outcomes <= allowed
    report(f"network silent for {seconds:g} s", findings, recovery=recovered_after(evidence, heard))


@pytest.mark.parametrize("step", [-HOUR, HOUR], ids=["back", "forward"])
def test_clock_that_jumps_by_an_hour_disturbs_nothing(proxied_kafka, stage, step):
    """Python's own clock, that is, with which the client measures its times: also those between heartbeats.

    While there is work, commits keep the worker in the group; so it is left without for longer than its session.
    """
    clock = stage.directory / "clock"
    clock.write_text("0")
    worker = stage.worker(**hooked(clock=str(clock))).start().wait_ready()
    silences = []
    for n, jump in enumerate((0, step, 0)):
        clock.write_text(str(jump))
        time.sleep(12.0 if n else 1.0)
        assert worker.ask("/readyz")[0] == 200
        begun = time.time()
        stage.load(mixture(seed=n, retried=False), rate=50)
        time.sleep(6.0)
        stage.wait_settled()
        silences.append((begun, time.time()))
    assert sum(line["event"] == "Partitions assigned" for line in worker.logs()) == 1
    findings, evidence = stage.conclude()
    assert (findings.repeated_calls, findings.duplicate_outcomes) == (0, 0)
    silence = max(longest_silence(evidence, *times) for times in silences)
    assert silence < 3.0
    direction = "back" if step < 0 else "forward"
    report(f"clock steps an hour {direction}, then returns", findings, runs=2, recovery=silence)


def test_worker_that_is_frozen_in_an_outage_loses_nothing(proxied_kafka, stage):
    _, proxy = proxied_kafka
    worker = stage.worker().start().wait_ready()
    load = stage.load(mixture(retried=False), rate=50)
    stage.wait_calls(60)
    proxy.mute = True
    time.sleep(1.0)
    worker.signal(signal.SIGSTOP)
    time.sleep(8.0)
    proxy.mute = False
    time.sleep(1.0)
    worker.signal(signal.SIGCONT)
    woken = time.time()
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=40)
    time.sleep(4.0)
    load.stop()
    findings, evidence = stage.conclude(resent=True)
    assert findings.repeated_calls <= IN_HAND
    report("worker frozen in a silent network", findings, recovery=recovered_after(evidence, woken))


def test_partitions_added_over_a_slow_network_are_read(proxied_kafka, stage):
    """Every answer takes longer than a poll waits, so that the rebalance goes on over several polls."""
    _, proxy = proxied_kafka
    load = stage.load(mixture(retried=False), rate=30)
    workers = [stage.worker(f"worker-{n}").start() for n in range(2)]
    for worker in workers:
        worker.wait_ready()
    stage.wait_calls(60)
    proxy.latency = 0.1
    recoveries = []
    for partitions in (4, 5, 6):
        wire.add_partitions(stage.bootstrap, stage.topics.requests, partitions)
        added = time.time()
        eventually(
            lambda n=partitions: read(workers) == set(range(n)), f"{partitions} partitions to be read", timeout=40
        )
        recoveries.append(time.time() - added)
    load.stop()
    findings, evidence = stage.conclude()
    assert (findings.repeated_calls, findings.duplicate_outcomes) == (0, 0)
    assert {rec.partition for rec in evidence.requests} == set(range(6))
    report("partitions added over a slow network", findings, runs=3, recovery=max(recoveries))


def read(workers) -> set[int]:
    """Return the partitions that the workers say they read."""
    return {row["partition"] for worker in workers for row in worker.status().get("partitions", [])}
