"""`kill -9` of workers, at chosen places and at any: nothing is lost, and little is done twice."""

from __future__ import annotations

import signal
import time

import pytest

from tests.chaos.checker import stale_repeats
from tests.chaos.load import mixture
from tests.chaos.stage import hooked, recovered_after, report


def kill(worker) -> float:
    """Kill a worker and return the time."""
    worker.signal(signal.SIGKILL)
    worker.wait(10)
    return time.time()


def crash_at(stage, place: str, *, every: int, deaths: int) -> None:
    """Let a worker die at one place of its code again and again, under load."""
    stage.make()
    load = stage.load(mixture(), rate=60)
    died = []
    for n in range(deaths):
        worker = stage.worker(f"doomed-{n}", **hooked(kill=f"{place}:{every}")).start()
        assert worker.wait(60) == -signal.SIGKILL
        died.append(time.time())
    stage.worker("survivor").start().wait_ready()
    stage.wait_calls(load.written)
    findings, evidence = stage.conclude()
    assert not stale_repeats(evidence, died)
    report(f"kill -9 of a worker, {place.replace('-', ' ')}", findings, runs=deaths, recovery=recovered_after(evidence, died[-1]))


@pytest.mark.parametrize(
    "place, every", [("after-poll", 6), ("after-send", 30), ("before-commit", 4), ("in-commit", 4), ("after-commit", 4)]
)
def test_kill_at_a_chosen_place_loses_nothing(stage, place, every):
    crash_at(stage, place, every=every, deaths=4)
