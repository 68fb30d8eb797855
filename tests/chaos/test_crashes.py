"""`kill -9` of workers, at chosen places and at any: nothing is lost, and little is done twice."""

from __future__ import annotations

import itertools
import random
import signal
import time

import pytest

from tests.chaos.checker import Death, stale_repeats
from tests.chaos.evidence import Place
from tests.chaos.load import mixture, plain, request
from tests.chaos.stage import hooked, recovered_after, report
from tests.support.waiting import eventually


def kill(worker) -> Death:
    """Kill a worker and return the time."""
    lived = time.time()
    worker.signal(signal.SIGKILL)
    worker.wait(10)
    return Death(lived, time.time())


def death(worker) -> Death:
    """Wait until a worker has killed itself and return the time."""
    lived = time.time()

    def ended() -> bool:
        nonlocal lived
        asked = time.time()
        if worker.process.poll() is not None:
            return True
        lived = asked
        return False

    eventually(ended, "the worker to die", timeout=60, interval=0.01)
    assert worker.wait(0) == -signal.SIGKILL
    return Death(lived, time.time())


def crash_at(stage, place: str, *, every: int, deaths: int) -> None:
    """Let a worker die at one place of its code again and again, under load."""
    stage.make()
    stage.load(mixture(), rate=60)
    died = []
    for n in range(deaths):
        worker = stage.worker(f"doomed-{n}", **hooked(kill=f"{place}:{every}")).start()
        died.append(death(worker))
    stage.worker("survivor").start().wait_ready()
    findings, evidence = stage.conclude()
    assert not stale_repeats(evidence, died)
    report(
        f"kill -9 {place.replace('-', ' ')}", findings, runs=deaths, recovery=recovered_after(evidence, died[-1].dead)
    )


@pytest.mark.parametrize("place, every", [("after-poll", 6), ("after-send", 30), ("in-commit", 4), ("after-commit", 4)])
def test_kill_at_a_chosen_place_loses_nothing(stage, place, every):
    crash_at(stage, place, every=every, deaths=4)


@pytest.mark.quick
def test_kill_between_acknowledgement_and_commit_loses_nothing(stage):
    crash_at(stage, "before-commit", every=4, deaths=2)


def test_kill_by_a_handler_loses_nothing(stage):
    stage.make()
    load = stage.load(mixture(), rate=60)
    died = []
    for n in range(4):
        mine = stage.directory / f"mine-{n}"
        mine.touch()
        worker = stage.worker(f"worker-{n}").start().wait_ready()
        stage.send([request(f"mine-{n}", f"k{n}", do="while_file", then="die", file=str(mine))])
        died.append(death(worker))
    load.stop()
    stage.worker("survivor").start().wait_ready()
    findings, evidence = stage.conclude()
    assert not stale_repeats(evidence, died)
    report("kill -9 in the handler", findings, runs=len(died), recovery=recovered_after(evidence, died[-1].dead))


def test_kills_at_any_moment_lose_nothing(stage):
    stage.make()
    dice = random.Random(20)
    load = stage.load(mixture(), rate=60)
    workers = [stage.worker(f"worker-{n}").start() for n in range(2)]
    for worker in workers:
        worker.wait_ready()
    died = []
    for n in range(12):
        time.sleep(dice.uniform(0.5, 4.0))
        died.append(kill(workers[n % 2]))
        time.sleep(dice.uniform(0.0, 1.0))
        workers[n % 2].start()
    eventually(lambda: time.time() > died[-1].dead + 8.0, "the last session to run out", timeout=20)
    load.stop()
    findings, evidence = stage.conclude()
    assert not stale_repeats(evidence, died)
    report(
        "kill -9 of one of two workers, any time",
        findings,
        runs=len(died),
        recovery=recovered_after(evidence, died[-1].dead),
    )


def test_crash_repeats_nothing_that_was_done_behind_slow_requests(stage):
    """Forty requests of 20 s hold the committed offsets back; 2,000 others are done behind them."""
    stage.make()
    crash_behind_slow(stage, slow=40, seconds=20)


def test_crash_repeats_nothing_that_was_done_behind_one_request_of_a_minute(stage):
    """One request holds the committed offset of the only partition back; 2,000 others are done behind it."""
    stage.make(1)
    crash_behind_slow(stage, slow=1, seconds=60)


def crash_behind_slow(stage, *, slow: int, seconds: int) -> None:
    worker = stage.worker(WORKER_CONCURRENCY="48").start().wait_ready()
    each = 2000 // slow
    groups = [[request(f"slow-{n}", f"slow-{n}", seconds=seconds), *plain(each, prefix=f"{n}-")] for n in range(slow)]
    stage.send(itertools.chain.from_iterable(groups))
    eventually(
        lambda: stage.count(stage.topics.responses) >= 2000, "2,000 responses", timeout=seconds - 2.0, interval=0.1
    )
    stage.load(plain(10_000, prefix="later-"), rate=40)
    time.sleep(1.5)
    held = {partition: position for partition, (position, _) in stage.watch.samples[-1].committed.items()}
    died = kill(worker)
    worker.start().wait_ready()
    time.sleep(1.0)
    findings, evidence = stage.conclude(timeout=seconds + 60.0)
    assert not stale_repeats(evidence, [died])
    repeated = [place for place in findings.repeated if b"rslow-" in _value(evidence, place)]
    assert len(repeated) == slow
    # The premise: without the commit map all of this would have been done again.
    behind = [place for place in _places(evidence) if place.offset >= held[place.partition]]
    assert len(behind) > 2000
    report(
        f"crash with 2,000 done behind {slow} calls of {seconds} s",
        findings,
        recovery=recovered_after(evidence, died.dead),
    )


def _places(evidence):
    return [Place(rec.partition, rec.offset) for rec in evidence.requests]


def _value(evidence, place):
    return next(rec.value for rec in evidence.requests if (rec.partition, rec.offset) == place)
