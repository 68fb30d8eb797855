"""The commit map with parked offsets in it: what it says comes back whole, and it fits whatever ends."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gigaoffice_worker.core.backpressure import HoldingLimits
from gigaoffice_worker.core.commit_map import CommitMap
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.parking import Parking
from tests.support.making import assignment

LIMIT = 4096
RANDOM = st.randoms(use_true_random=False)


@given(st.integers(0, 5000), st.lists(st.sampled_from("psxgg"), max_size=300), RANDOM, st.integers(60, 400))
def test_map_says_what_is_parked_and_what_is_in_hand(base: int, deeds: str, random: Random, limit: int) -> None:
    tracker: OffsetTracker[str] = OffsetTracker(base)
    held, at = set[int](), base
    for deed in deeds:
        at += random.choice([1, 1, 7])
        if deed == "p":
            assert tracker.park(at)
        elif deed == "s":
            assert tracker.start(at, "")
            held.add(at)
        elif deed == "x" and held:
            tracker.settle(gone := random.choice(sorted(held)))
            held.remove(gone)
        elif len(tracker.parked):
            back = random.choice(list(tracker.parked))
            tracker.resume(back, "")
            held.add(back)
    wanted = held | set(tracker.parked)
    made = tracker.commit_map()
    assert made.base == min(wanted, default=tracker.position)
    assert made.says_more == (made.horizon - made.base > len(wanted))
    text, whole = made.encode(LIMIT)
    assert whole
    found = CommitMap.decode(text, made.base)
    assert (set(found.unfinished), found.horizon) == (wanted, made.horizon)
    # Cut to less room, it claims nothing as done that is not.
    text, whole = made.encode(limit)
    if text:
        cut = CommitMap.decode(text, made.base)
        assert {offset for offset in wanted if offset < cut.horizon} == set(cut.unfinished)
        assert not whole or cut.horizon == made.horizon


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1.0, 0.99, 0.95, 0.8, 0.5]), st.integers(200, 4096))
def test_what_is_in_hand_may_end_in_any_order_and_the_map_fits(seed: int, big: float, limit: int) -> None:
    """A tenant with so much of the log is parked, all else is held, until the frontier or the window stops."""
    random = Random(seed)
    tracker: OffsetTracker[str] = OffsetTracker(0)
    held: list[int] = []
    while len(held) < 2700 and tracker.position < 60_000:
        offsets = range(tracker.position, tracker.position + 250)
        if tracker.receivable(offsets, limit) < len(offsets):
            break
        for offset in offsets:
            if random.random() < big and len(held) > 100:
                tracker.park(offset)
            else:
                tracker.start(offset, "")
                held.append(offset)
    for _ in range(6):
        for offset in random.sample(held, len(held) // 2):
            tracker.settle(offset)
            held.remove(offset)
        made = tracker.commit_map()
        assert not made.says_more or made.encode(limit)[1]
        resumed = list(tracker.parked)[:40]
        if resumed and tracker.may_resume(resumed, limit):
            for offset in resumed:
                tracker.resume(offset, "")
                held.append(offset)


def test_hundred_thousand_parked_offsets_fit_beside_a_window() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(0)
    for offset in range(2700):
        tracker.start(offset, "")
    while tracker.position < 100_000:
        offsets = range(tracker.position, tracker.position + 500)
        assert tracker.receivable(offsets, LIMIT) == 500
        for offset in offsets:
            tracker.park(offset)
    for offset in range(0, 2700, 2):
        tracker.settle(offset)
    text, whole = tracker.commit_map().encode(LIMIT)
    assert whole
    assert text.startswith("gw2:1:100200:")


def test_oldest_is_one_that_is_in_hand_where_a_parked_one_holds_the_commit_back() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(0)
    tracker.park(0)
    assert tracker.oldest is None
    tracker.start(1, "one")
    tracker.start(2, "two")
    assert tracker.oldest == "one"
    tracker.settle(1)
    assert tracker.oldest == "two"
    tracker.resume(0, "zero")
    assert tracker.oldest == "zero"


def test_lowest_offset_may_always_be_resumed() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(0)
    for offset in range(200_000):
        if offset % 3:
            tracker.park(offset)
        else:
            tracker.start(offset, "")
            tracker.settle(offset)
    assert not tracker.may_resume([50_001], 100)
    assert tracker.may_resume([1], 100)


def test_frontier_waits_where_a_window_is_full_or_too_much_is_parked() -> None:
    limits, held = HoldingLimits(160, 1 << 22), assignment()
    held.parking = Parking(160)

    def reasons(sweeping: tuple[int, ...] = (), paused: tuple[int, ...] = ()) -> dict[int, str]:
        return limits.reasons(
            {0: held},
            paused,
            everywhere=None,
            sweeping=sweeping,
            unpositioned=(),
            undecodable=lambda _: False,
            map_full=(),
        )

    assert reasons() == {}
    held.parking.held = 155
    assert (reasons(), reasons(paused=(0,))) == ({}, {0: "records"})
    held.parking.held = 160
    assert (reasons(), reasons(sweeping=(0,))) == ({0: "records"}, {})
    held.parking.held = 0
    held.tracker.park(0)
    held.tracker.advance(2_000_000)
    assert reasons() == {0: "parked"}
