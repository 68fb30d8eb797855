"""Workers that come, go and freeze: what stays where it is goes on, what moves is done again at most once."""

from __future__ import annotations

import signal
import time

import pytest

from tests.chaos.load import mixture, plain, request
from tests.chaos.stage import longest_silence, recovered_after, report, wait_listening
from tests.support.waiting import eventually

SESSION = 6.0


def partitions(worker) -> set[int]:
    return {row["partition"] for row in worker.status().get("partitions", [])}


def moved(*workers) -> set[int]:
    """Return the partitions that a worker was given and had not kept, its very first assignment left out."""
    found = set()
    for worker in workers:
        assigned = [line for line in worker.logs() if line.get("event") == "Partitions assigned"]
        for line in assigned:
            found |= set(line["partitions"]) - set(line["adopted"])
    return found


def share(count, *workers):
    """Wait until the workers have all partitions among them, each at least one."""

    def shared():
        held = [partitions(worker) for worker in workers]
        return all(held) and len(set().union(*held)) == sum(map(len, held)) == count

    eventually(shared, f"{count} partitions to be shared by {len(workers)}", timeout=40)


@pytest.mark.parametrize("runs", [1, 3])
def test_worker_frozen_past_its_session_loses_nothing_and_commits_nothing_stale(stage, runs):
    stage.make(4)
    stage.load(mixture(), rate=50)
    workers = [stage.worker(f"worker-{n}").start() for n in range(2)]
    for worker in workers:
        worker.wait_ready()
    share(4, *workers)
    for n in range(runs):
        frozen = workers[n % 2]
        frozen.signal(signal.SIGSTOP)
        frozen_at = time.time()
        time.sleep(SESSION + 3.0)
        frozen.signal(signal.SIGCONT)
        time.sleep(1.0)
        share(4, *workers)
    findings, evidence = stage.conclude(frozen=True)
    # What it had in hand or had not committed, of 25 requests a second.
    assert findings.repeated_calls <= 40 * runs
    assert findings.duplicate_outcomes <= 40 * runs
    report("worker frozen past its session", findings, runs=runs, recovery=recovered_after(evidence, frozen_at))


def test_members_that_come_and_go_every_two_seconds_repeat_nothing(stage):
    stage.make(6)
    load = stage.load(mixture(seconds=0.1, retried=False), rate=50)
    stays = stage.worker("stays").start().wait_ready()
    guests = [stage.worker(f"guest-{n}") for n in range(2)]
    changes = 16
    started = time.time()
    for n in range(changes):
        guest = guests[n % 2]
        due = time.monotonic() + 2.0
        if n >= 2 and guest.process.poll() is None:
            wait_listening(guest)
            guest.signal(signal.SIGTERM)
            assert guest.wait(15) == 0
        else:
            guest.start()
        time.sleep(max(0.0, due - time.monotonic()))
    load.stop()
    ended = time.time()
    findings, evidence = stage.conclude()
    assert moved(stays)
    assert (findings.repeated_calls, findings.duplicate_outcomes) == (0, 0)
    silence = longest_silence(evidence, started, ended)
    report("members come and go every 2 s", findings, runs=changes, recovery=silence)


@pytest.mark.quick
def test_ten_second_calls_on_partitions_that_stay_are_not_repeated(stage):
    stage.make(4)
    # Nobody dies here: who is held up by a busy machine must not be taken for dead.
    stage.environment["KAFKA_CONSUMER_SESSION_TIMEOUT_MS"] = "30000"
    stays = stage.worker("stays", WORKER_CONCURRENCY="16", WORKER_REBALANCE_WAIT="0.5").start().wait_ready()
    # Each lasts longer where the rebalances are slow: they must find it running.
    gates = [stage.directory / f"gate-{partition}" for partition in range(4)]
    for partition, gate in enumerate(gates):
        gate.touch()
        calls = [request(f"long-{partition}-{n}", f"k{n}", seconds=10, do="hang", file=str(gate)) for n in range(4)]
        stage.send(calls, partition=partition)
    stage.wait_calls(16)
    comes = stage.worker("comes", WORKER_CONCURRENCY="16", WORKER_REBALANCE_WAIT="0.5").start()
    share(4, stays, comes)
    comes.wait_ready()
    kept, moved_on = partitions(stays), partitions(comes)
    assert kept
    # What has moved is called again there, once the newcomer has looked for its answers.
    stage.wait_calls(16 + 4 * len(moved_on))
    # The newcomer goes, and its partitions come back: a second rebalance over the same running calls.
    comes.signal(signal.SIGTERM)
    for partition in moved_on:
        gates[partition].unlink()
    assert comes.wait(45) == 0
    share(4, stays)
    for partition in kept:
        gates[partition].unlink()
    findings, _ = stage.conclude()
    assert {place.partition for place in findings.repeated} == moved_on
    on_kept = sum(count for place, count in findings.repeated.items() if place.partition in kept)
    assert on_kept == 0
    report("a member joins and leaves over 16 calls of 10 s", findings, runs=2)


def roll(stage, workers) -> int:
    """Restart the workers in turn, each drained, and return the number of restarts."""
    for worker in workers:
        assert worker.stop(45) == 0
        worker.start().wait_ready()
        share(6, *workers)
        time.sleep(1.0)
    return len(workers)


def test_rolling_restart_of_workers_with_short_calls_repeats_nothing(stage):
    stage.make(6)
    workers = [stage.worker(f"worker-{n}").start() for n in range(3)]
    share(6, *workers)
    load = stage.load(mixture(seconds=0.2, retried=False), rate=50)
    time.sleep(2.0)
    started = time.time()
    restarts = roll(stage, workers)
    load.stop()
    ended = time.time()
    findings, evidence = stage.conclude()
    assert (findings.repeated_calls, findings.duplicate_outcomes) == (0, 0)
    silence = longest_silence(evidence, started, ended)
    report("rolling restart of three workers, calls of 0.2 s", findings, runs=restarts, recovery=silence)


def test_rolling_restart_of_workers_with_long_calls_repeats_only_what_moved(stage):
    stage.make(6)
    workers = [stage.worker(f"worker-{n}").start() for n in range(3)]
    share(6, *workers)
    load = stage.load(plain(10_000, keys=200, seconds=10), rate=1.5)
    time.sleep(5.0)
    restarts = roll(stage, workers)
    load.stop()
    findings, _ = stage.conclude(timeout=120)
    repeated = {place.partition for place in findings.repeated}
    assert repeated <= moved(*workers)
    report("rolling restart of three workers, calls of 10 s", findings, runs=restarts)
