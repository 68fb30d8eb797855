"""What stops new handler calls: the shared gate and the storm guard."""

from __future__ import annotations

import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.gate import Gate
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.storm import Probes, StormGuard, StormLimits
from gigaoffice_worker.core.work import Work
from tests.support.making import Partition

POLICY = RetryPolicy(delay=1.0, max_delay=8.0)


def least() -> float:
    return 0.0


def most() -> float:
    return 0.999


# The gate


def test_a_gate_is_open_until_it_is_closed() -> None:
    gate = Gate(POLICY.ceiling)
    assert not gate.closed(5.0)
    assert gate.close(5.0, "RateLimited", 3.0, least) == gate.until == 8.0
    assert gate.closed(7.9)
    assert not gate.closed(8.0)


@given(st.floats(0, 1e5), st.floats(0, 1, exclude_max=True))
def test_a_gate_stays_closed_for_as_long_as_asked_and_little_longer(asked_for: float, draw: float) -> None:
    gate = Gate(POLICY.ceiling)
    until = gate.close(100.0, "RateLimited", asked_for, lambda: draw)
    assert asked_for <= until - 100.0 + 1e-9
    assert until - 100.0 <= asked_for + min(1.0, 0.1 * asked_for + 0.05) + 1e-9


def test_the_opening_is_jittered() -> None:
    assert Gate(POLICY.ceiling).close(0.0, "A", 10.0, least) < Gate(POLICY.ceiling).close(0.0, "A", 10.0, most)


def test_closings_in_a_row_get_longer_and_a_call_that_got_through_ends_the_row() -> None:
    gate, now, waits = Gate(POLICY.ceiling), 0.0, []
    for _ in range(5):
        until = gate.close(now, "RateLimited", None, least)
        waits.append(until - now)
        now = until
    assert waits == [1, 2, 4, 8, 8]
    gate.passed()
    assert gate.close(now, "RateLimited", None, least) - now == 1


def test_calls_that_were_running_when_the_gate_closed_do_not_lengthen_the_row() -> None:
    gate = Gate(POLICY.ceiling)
    for _ in range(16):
        gate.close(0.0, "RateLimited", None, least)
    assert gate.until == 1.0
    assert gate.close(1.0, "RateLimited", None, least) == 3.0


def test_a_shorter_wish_does_not_open_the_gate_sooner() -> None:
    gate = Gate(POLICY.ceiling)
    gate.close(0.0, "RateLimited", 30.0, least)
    assert gate.close(1.0, "RateLimited", 2.0, least) == 30.0


def test_a_wish_for_the_past_does_not_reach_into_it() -> None:
    assert Gate(POLICY.ceiling).close(10.0, "RateLimited", -5.0, least) == 10.0


# The storm guard


def guard(min_requests: int = 20, ratio: float = 0.8, *, enabled: bool = True) -> StormGuard:
    return StormGuard(StormLimits(enabled, min_requests, ratio))


def finish(storm: StormGuard, error: str | None, times: int, now: float = 0.0) -> bool:
    return [storm.finished(now, error) for _ in range(times)][-1]


def test_the_guard_trips_at_the_share_and_not_below() -> None:
    storm = guard()
    finish(storm, None, 4)
    assert not finish(storm, "TimeoutError", 15)
    assert storm.reason is None
    assert finish(storm, "TimeoutError", 1)
    assert storm.reason == "TimeoutError"


def test_the_guard_wants_enough_requests_to_judge_by() -> None:
    storm = guard()
    assert not finish(storm, "E", 19)
    assert finish(storm, "E", 1)


def test_two_kinds_of_errors_are_not_one_reason() -> None:
    storm = guard()
    for _ in range(50):
        storm.finished(0.0, "A")
        storm.finished(0.0, "B")
    assert storm.reason is None


@pytest.mark.parametrize("ratio, of, needed", [(0.55, 20, 11), (0.07, 100, 7), (0.29, 100, 29), (1.0, 30, 30)])
def test_the_share_is_met_by_exactly_as_many_as_it_says(ratio: float, of: int, needed: int) -> None:
    storm = guard(of, ratio)
    finish(storm, None, of - needed) if of > needed else None
    assert not finish(storm, "E", needed - 1)
    assert finish(storm, "E", 1)


def test_what_finished_more_than_a_minute_ago_counts_no_more() -> None:
    storm = guard()
    finish(storm, "E", 19, now=0.0)
    assert not finish(storm, "E", 1, now=61.0)
    assert finish(storm, "E", 19, now=90.0)


def test_old_successes_do_not_hide_a_new_storm() -> None:
    storm = guard()
    finish(storm, None, 1000, now=0.0)
    assert finish(storm, "E", 20, now=100.0)


def test_a_guard_that_tripped_says_so_once() -> None:
    storm = guard()
    assert finish(storm, "E", 20)
    assert not finish(storm, "E", 20)
    assert storm.reason == "E"


def test_a_probe_that_passed_opens_intake_and_ends_what_was_known() -> None:
    storm = guard()
    finish(storm, "E", 20)
    storm.open()
    assert storm.reason is None
    assert not finish(storm, "E", 19)
    assert finish(storm, "E", 1)


def test_a_guard_that_is_off_never_trips() -> None:
    storm = guard(enabled=False)
    assert not finish(storm, "E", 1000)
    assert storm.reason is None


EVENTS = st.lists(st.tuples(st.floats(0, 20), st.sampled_from([None, "A", "B"])), max_size=120)


@given(EVENTS, st.integers(1, 10), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
def test_the_guard_agrees_with_a_list_of_everything_that_finished(
    steps: list[tuple[float, str | None]], min_requests: int, ratio: float
) -> None:
    """The window is judged in whole seconds: what stands on the edge may or may not count, so both are allowed."""
    storm, now, seen = guard(min_requests, ratio), 1000.0, list[tuple[float, str | None]]()
    for step, error in steps:
        now += step
        seen.append((now, error))
        tripped = storm.finished(now, error)
        verdicts = set()
        for window in (59.0, 60.0):
            inside = [kind for at, kind in seen if at > now - window]
            share = max(inside.count("A"), inside.count("B")) / len(inside)
            verdicts.add(error is not None and len(inside) >= min_requests and share >= ratio)
        if len(verdicts) == 1:
            assert tripped in verdicts
        if tripped:
            assert storm.reason in ("A", "B")
            return
    assert storm.reason is None


# The probes


class Witness:
    """Lives for as long as the request or the assignment that refers to it."""


def probe(probes: Probes, partition: Partition, number: int) -> Work:
    """Let a request of a tenant and a key of its own probe, in vain."""
    work = partition.work(b"key %d" % number)
    work.tenant, work.lane = f"tenant {number}", (work.assignment, work.record.key)
    probes.begin(work)
    probes.failed(work, 0.0)
    return work


def test_probes_keep_no_request_and_no_assignment_in_memory() -> None:
    probes, kept = Probes(), weakref.WeakSet[Witness]()
    for epoch in range(20):
        partition = Partition(epoch=epoch)
        work = probe(probes, partition, epoch)
        work.sharing, work.assignment.findings = Witness(), Witness()  # type: ignore[assignment]
        kept.update((work.sharing, work.assignment.findings))
    del partition, work
    assert len(kept) == 0


def test_of_many_probes_the_last_are_remembered() -> None:
    probes, partition = Probes(), Partition()
    works = [probe(probes, partition, number) for number in range(10_000)]
    last = works[-2_000:]
    assert all(work in probes for work in last)
    assert not any(work in probes for work in works[:5_000])
    assert min([works[0], *last], key=probes.preference) is works[0]


def test_a_request_whose_partition_has_returned_is_known_to_have_probed() -> None:
    probes = Probes()
    tried = probe(probes, Partition(epoch=1), 1)
    returned, other = Partition(epoch=2).work(tried.record.key), Partition(1).work(b"another")
    assert returned in probes
    assert other not in probes
    assert min([returned, other], key=probes.preference) is other


def test_gate_tells_why_and_for_how_long_no_call_got_through() -> None:
    gate = Gate(POLICY.ceiling)
    assert gate.shut_for(5.0) is None
    gate.close(10.0, "RateLimited", 1.0, least)
    gate.close(20.0, "AccessRefused", 1.0, least)
    assert gate.shut_for(25.0) == ("AccessRefused", 15.0)
    gate.passed()
    assert gate.shut_for(26.0) is None
