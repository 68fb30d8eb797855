"""The group's limits, split over partitions: shares add up to the limit, whoever owns what."""

from __future__ import annotations

import itertools
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.group_share import ConcurrencyShare, Rate, RateShare, TokenShare, slots, turn_seconds


@given(st.integers(1, 200), st.integers(1, 100))
def test_slots_add_up_to_the_limit_and_differ_by_one(limit, partitions):
    shares = [slots(partition, partitions, limit) for partition in range(partitions)]

    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 20), st.integers(1, 24), st.integers(1, 5), st.floats(0, 1e9))
def test_workers_together_never_have_more_than_the_limit(limit, partitions, workers, wall):
    shares = [ConcurrencyShare(limit) for _ in range(workers)]
    for number, share in enumerate(shares):
        share.owns(0.0, wall, range(number, partitions, workers), partitions, 1.0)

    assert sum(share.calls(1000.0, wall, 1.0) for share in shares) <= limit


def test_with_one_call_for_many_partitions_each_gets_its_turn():
    partitions, served = 12, set()
    length = turn_seconds(1.0)
    for turn in range(partitions):
        wall = (turn + 0.5) * length
        for partition in range(partitions):
            share = ConcurrencyShare(1)
            share.owns(0.0, wall, [partition], partitions, 1.0)
            if share.calls(100.0, wall, 1.0):
                served.add(partition)

    assert served == set(range(partitions))


def test_gained_slots_stay_idle_until_the_old_owners_calls_can_have_ended():
    share = ConcurrencyShare(9)
    share.owns(0.0, 0.0, [0], 3, 2.0)
    assert share.calls(10.0, 10.0, 2.0) == 3

    share.owns(10.0, 10.0, [0, 1, 2], 3, 2.0)

    assert share.calls(11.0, 11.0, 2.0) == 3
    assert share.next_change(11.0, 11.0, 2.0) == 14.0
    assert share.calls(14.0, 14.0, 2.0) == 9


def starts_of(share: RateShare, since: float, until: float) -> list[float]:
    """Start calls as soon as they may begin, and return when that was."""
    starts, now = [], since
    while (now := max(now, share.next_at(now))) < until:
        starts.append(now)
        share.started(now)
    return starts


def test_a_share_of_the_rate_begins_empty_and_is_spread_evenly():
    share = RateShare(Rate(60, 60), lambda: 0.5)
    share.owns(100.0, [2], 3)
    assert share.next_at(100.0) == 101.5

    starts = starts_of(share, 100.0, 160.0)

    assert len(starts) == pytest.approx(20, abs=1)
    assert all(after - before == pytest.approx(3.0) for before, after in itertools.pairwise(starts))


def test_a_share_that_was_not_used_is_used_at_once():
    share = RateShare(Rate(60, 60), lambda: 0.5)
    share.owns(0.0, [0], 3)

    starts = starts_of(share, 100.0, 200.0)

    assert starts[:20] == [100.0] * 20
    assert starts[20:] == [160.5] * 20


def test_fewer_calls_in_a_time_than_partitions_are_spread_always():
    share = RateShare(Rate(6, 60), lambda: 0.0)
    share.owns(0.0, [0, 1], 12)

    starts = starts_of(share, 1000.0, 1300.0)

    assert len(starts) == pytest.approx(5, abs=1)
    assert all(after - before == pytest.approx(60.0) for before, after in itertools.pairwise(starts))


@given(st.integers(1, 40), st.integers(1, 12), st.lists(st.floats(0.0, 30.0), max_size=120))
def test_no_time_holds_more_than_the_share(number, partitions, pauses):
    share = RateShare(Rate(number, 60), lambda: 0.0)
    share.owns(0.0, [0], partitions)
    now, starts = 0.0, []
    for pause in pauses:
        now = max(now + pause, share.next_at(now + pause))
        share.started(now)
        starts.append(now)

    most = max(1, slots(0, partitions, number) if number >= partitions else 1)
    assert all(after - before >= 60.0 for before, after in zip(starts, starts[most:], strict=False))


def test_a_refused_call_is_given_back():
    share = RateShare(Rate(3, 60), lambda: 0.0)
    share.owns(0.0, [0], 1)
    for _ in range(3):
        share.started(100.0)
    assert share.next_at(100.1) > 100.1

    share.gave_back(100.0)

    assert share.next_at(100.1) <= 100.1


@pytest.mark.parametrize("number, partitions, before, after", [(60, 6, 6, 3), (6, 12, 12, 6)])
def test_what_began_before_a_share_gives_nothing_back_to_it(number, partitions, before, after):
    share = RateShare(Rate(number, 60), lambda: 1.0)
    share.owns(0.0, range(before), partitions)
    for at in (100.0, 110.0, 120.0):
        share.started(at)
    share.owns(121.0, range(after), partitions)
    first = share.next_at(121.0)
    for at in (100.0, 110.0, 120.0):
        share.gave_back(at)
    assert share.next_at(121.0) == first > 121.0


def test_tokens_reserved_before_a_share_began_are_none_of_its():
    share = TokenShare(Rate(6000, 60))
    share.owns(0.0, 1, 1)
    share.ended(60.0, 60.0, 0.0, 100.0)
    reserved = [share.started(60.0) for _ in range(10)]
    share.owns(61.0, 1, 2)
    for each in reserved:
        share.ended(61.0, 60.0, each, None)
    assert share.next_at(61.0) > 61.0


def test_what_is_given_back_is_what_began_then():
    share = RateShare(Rate(2, 60), lambda: 0.0)
    share.owns(0.0, [0], 1)
    share.started(100.0)
    share.started(130.0)

    share.gave_back(100.0)
    share.started(131.0)

    assert share.next_at(170.0) == 190.5, "the call of 130.0 counts, whatever became of the one before it"


def test_what_counts_no_more_gives_nothing_back():
    share = RateShare(Rate(2, 60), lambda: 0.0)
    share.owns(0.0, [0], 1)
    share.started(100.0)
    share.started(130.0)
    assert share.next_at(161.0) <= 161.0
    share.started(161.0)

    share.gave_back(100.0)

    assert share.next_at(161.0) == 190.5


def test_while_calls_are_spread_one_that_is_given_back_leaves_its_place_to_the_next():
    share = RateShare(Rate(6, 60), lambda: 0.0)
    share.owns(100.0, [0], 1)
    share.started(100.0)
    assert share.next_at(100.0) == 110.0

    share.gave_back(100.0)

    assert share.next_at(100.0) == 100.0


def test_without_a_partition_nothing_starts():
    share = RateShare(Rate(60, 60), lambda: 0.5)
    tokens = TokenShare(Rate(1000, 60.0))
    tokens.ended(0.0, 0.0, 0.0, 10.0)

    share.owns(0.0, [], 3)
    tokens.owns(0.0, 0, 3)

    assert share.next_at(10.0) == float("inf")
    assert tokens.next_at(10.0) == float("inf")


@pytest.mark.parametrize("seed", range(4))
def test_tokens_of_any_minute_stay_near_the_budget_and_use_it(seed):
    rng = random.Random(seed)
    budget, seconds = 100_000, 1200.0
    share = TokenShare(Rate(budget, 60.0))
    share.owns(0.0, 1, 1)
    now, spent, window, in_window, worst, running = 0.0, 0.0, deque(), 0.0, 0.0, []
    while now < seconds:
        at = share.next_at(now)
        ends = min((end for end, _, _ in running), default=float("inf"))
        if at <= now and len(running) < 16:
            running.append((now + rng.uniform(2, 8), share.started(now), rng.lognormvariate(7.0, 0.5)))
            continue
        now = min(ends, at if len(running) < 16 else float("inf"))
        for call in [each for each in running if each[0] <= now]:
            running.remove(call)
            share.ended(now, now, call[1], call[2])
            spent += call[2]
            window.append((now, call[2]))
            in_window += call[2]
        while window and window[0][0] <= now - 60.0:
            in_window -= window.popleft()[1]
        if now > 60.0:
            worst = max(worst, in_window)

    assert worst <= 1.1 * budget
    assert spent >= 0.8 * budget * seconds / 60.0


def test_a_call_that_cost_nothing_gives_its_reserve_back():
    share = TokenShare(Rate(1200, 60.0))
    share.owns(0.0, 1, 1)
    share.ended(0.0, 0.0, 0.0, 50.0)
    before = share.next_at(60.0)

    reserved = share.started(60.0)
    share.ended(60.0, 60.0, reserved, None)

    assert share.next_at(60.0) == before == 60.0
