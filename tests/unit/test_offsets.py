"""The offset tracker against a simple model, and the commit map's round trip."""

from __future__ import annotations

import base64
import zlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gigaoffice_worker.core.commit_map import CommitMap, CommitMapError
from gigaoffice_worker.core.offsets import OffsetTracker

LIMIT = 4096


def tracker_with(offsets: list[int], settled: set[int], position: int = 0) -> OffsetTracker[str]:
    tracker: OffsetTracker[str] = OffsetTracker(position)
    for offset in offsets:
        assert tracker.start(offset, str(offset))
    for offset in settled:
        tracker.settle(offset)
    return tracker


def test_offset_waits_for_the_slowest_record() -> None:
    tracker = tracker_with([0, 1, 2], {1, 2})
    assert tracker.committable == 0
    assert tracker.oldest == "0"
    tracker.settle(0)
    assert tracker.committable == 3
    assert tracker.oldest is None


def test_offset_received_below_the_position_is_refused() -> None:
    tracker = tracker_with([5], set())
    with pytest.raises(ValueError, match="position is 6"):
        tracker.start(5, "again")


def test_offset_settled_twice_is_refused() -> None:
    tracker = tracker_with([5], {5})
    with pytest.raises(KeyError):
        tracker.settle(5)


def test_advance_passes_offsets_that_do_not_exist() -> None:
    tracker = tracker_with([0], {0})
    tracker.advance(7)
    assert tracker.committable == 7


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[int], set[int]]:
    base = draw(st.integers(0, 2**40))
    steps = draw(st.lists(st.integers(1, 400), max_size=60))
    offsets, at = [], base - 1
    for step in steps:
        at += step
        offsets.append(at)
    return base, offsets, set(draw(st.lists(st.sampled_from(offsets), unique=True))) if offsets else set()


@given(histories())
def test_committable_is_just_below_the_lowest_unfinished(history: tuple[int, list[int], set[int]]) -> None:
    base, offsets, settled = history
    tracker = tracker_with(offsets, settled, base)
    unfinished = [offset for offset in offsets if offset not in settled]
    assert tracker.committable == (unfinished[0] if unfinished else (offsets[-1] + 1 if offsets else base))
    assert list(tracker) == [str(offset) for offset in unfinished]
    assert len(tracker) == len(unfinished)


@given(histories())
def test_a_restored_tracker_hands_out_exactly_what_was_unfinished(history: tuple[int, list[int], set[int]]) -> None:
    base, offsets, settled = history
    before = tracker_with(offsets, settled, base)
    text, whole = before.commit_map().encode(LIMIT)
    assert whole
    committed = before.committable
    after: OffsetTracker[str] = OffsetTracker(committed, CommitMap.decode(text, committed))
    again = [offset for offset in offsets if offset >= committed and after.start(offset, str(offset))]
    assert again == [offset for offset in offsets if offset not in settled]
    assert after.committable == before.committable
    assert after.commit_map() == before.commit_map()


@given(histories(), st.data())
def test_a_map_committed_again_before_all_is_received_loses_nothing(
    history: tuple[int, list[int], set[int]], data: st.DataObject
) -> None:
    base, offsets, settled = history
    first = tracker_with(offsets, settled, base)
    second: OffsetTracker[str] = OffsetTracker(first.committable, first.commit_map())
    received = data.draw(st.integers(0, len(offsets)))
    for offset in [o for o in offsets if o >= first.committable][:received]:
        second.start(offset, "")
    assert second.commit_map() == first.commit_map()


@given(histories())
def test_both_formats_say_the_same(history: tuple[int, list[int], set[int]]) -> None:
    base, offsets, settled = history
    found = tracker_with(offsets, settled, base).commit_map()
    as_bitmap = found._as_bitmap(LIMIT)
    assert as_bitmap is not None
    assert as_bitmap.startswith("gw2:")
    assert CommitMap.decode(as_bitmap, found.base) == found
    assert CommitMap.decode(found._as_steps(LIMIT), found.base) == found


def test_the_older_format_is_written_while_it_fits() -> None:
    """A member of the older version may take over during a rolling upgrade."""
    few = CommitMap(7, 4000, tuple(range(7, 3000)))
    assert few.encode(LIMIT)[0].startswith("gw1:7:")
    many = CommitMap(7, 9000, tuple(range(7, 8000)))
    text, whole = many.encode(LIMIT)
    assert whole
    assert text.startswith("gw2:7:9000:")
    assert CommitMap.decode(text, 7) == many


def test_what_a_later_version_adds_behind_the_bitmap_does_not_hide_it() -> None:
    many = CommitMap(7, 9000, tuple(range(7, 8000)))
    text, _ = many.encode(LIMIT)
    assert CommitMap.decode(f"{text}:0=17", 7) == many


def test_bitmap_that_unpacks_to_more_than_it_may_is_refused() -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = base64.urlsafe_b64encode(deflate.compress(bytes(64 << 20)) + deflate.flush()).decode()
    with pytest.raises(CommitMapError):
        CommitMap.decode(f"gw2:0:1000000:{bomb}", 0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**30),
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 60)), min_size=1, max_size=60),
    st.integers(40, 600),
    st.randoms(use_true_random=False),
)
def test_whatever_is_received_can_end_in_any_order_and_the_map_fits(
    base: int, bursts: list[tuple[int, int]], limit: int, random: Random
) -> None:
    """Bursts of requests with offsets missing between them, of which some are slow: the worst that a map can meet."""
    tracker: OffsetTracker[str] = OffsetTracker(base)
    open_offsets: list[int] = []
    at = base
    for gap, size in bursts:
        at += gap
        offsets = list(range(at, at + size))
        fit = tracker.receivable(offsets, limit)
        for offset in offsets[:fit]:
            tracker.start(offset, "")
            open_offsets.append(offset)
        if fit < size:
            break
        at += size
        for offset in random.sample(open_offsets, random.randint(0, len(open_offsets))):
            tracker.settle(offset)
            open_offsets.remove(offset)
        assert tracker.commit_map().encode(limit)[1]
    while open_offsets:
        for offset in random.sample(open_offsets, random.randint(1, len(open_offsets))):
            tracker.settle(offset)
            open_offsets.remove(offset)
        found = tracker.commit_map()
        assert not found.says_more or found.encode(limit)[1]


def test_one_request_at_a_time_is_received_where_no_map_is_taken_at_all() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(5)
    assert tracker.receivable([5, 6, 7], 0) == 1
    tracker.start(5, "")
    assert tracker.receivable([6, 7], 0) == 0
    tracker.settle(5)
    assert tracker.receivable([6, 7], 0) == 1


def test_backlog_behind_one_slow_request_is_received_as_far_as_a_map_of_the_usual_size_reaches() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(0)
    tracker.start(0, "slow")
    received = 1
    while received <= 500_000 and tracker.receivable(chunk := range(received, received + 500), LIMIT) == 500:
        for offset in chunk:
            tracker.start(offset, "")
            tracker.settle(offset)
        received += 500
    assert received > 500_000


@given(histories(), st.integers(30, 200))
def test_a_map_that_does_not_fit_never_claims_more_than_is_done(
    history: tuple[int, list[int], set[int]], limit: int
) -> None:
    base, offsets, settled = history
    tracker = tracker_with(offsets, settled, base)
    full = tracker.commit_map()
    text, whole = full.encode(limit)
    assert len(text) <= limit
    if not text:
        assert not whole
        return
    cut = CommitMap.decode(text, tracker.committable)
    if whole:
        assert cut == full
    restored: OffsetTracker[str] = OffsetTracker(tracker.committable, cut)
    again = {o for o in offsets if o >= tracker.committable and restored.start(o, "")}
    assert again >= set(offsets) - settled
    assert {o for o in again if o in restored.commit_map().unfinished} == again
    done_by_cut = {o for o in offsets if cut.base <= o < cut.horizon and o not in cut.unfinished}
    assert done_by_cut <= settled


def test_an_awaited_offset_that_vanished_does_not_hold_the_commit_back() -> None:
    tracker: OffsetTracker[str] = OffsetTracker(10, CommitMap(10, 30, (10, 20)))
    assert tracker.start(25, "done already") is False
    assert tracker.committable == 30


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gw1",
        "gw1:",
        "gw1:5:",
        "gw1:6:AA==",
        "gw0:5:AA==",
        "gw1:5:!!!!",
        "gw1:5:gA==",
        "gw1:5:AQAAAQ==",
        "é",
        "gw1:5:" + "_" * 24,
        "gw2",
        "gw2:5",
        "gw2:5:",
        "gw2:5:9",
        "gw2:5:9:",
        "gw2:6:9:AwA=",
        "gw2:5:4:AwA=",
        "gw2:5:9:AwAA",
        "gw2:5:-9:AwA=",
        "gw2:5:²:AwA=",
        "gw2:5:9:!!!!",
        "gw2:5:9:" + base64.urlsafe_b64encode(bytes([1, 2, 0, 0xFD, 0xFF, 1, 0])).decode(),
        "gw2:5:9:" + base64.urlsafe_b64encode(bytes([1, 2, 0, 0xFD, 0xFF, 0, 2])).decode(),
    ],
)
def test_foreign_or_damaged_metadata_is_refused(text: str) -> None:
    with pytest.raises(CommitMapError):
        CommitMap.decode(text, 5)


@given(st.text(max_size=80))
def test_no_metadata_crashes_the_reader(text: str) -> None:
    for candidate in (text, "gw1:5:" + text, "gw2:5:" + text, "gw2:5:9:" + text):
        try:
            found = CommitMap.decode(candidate, 5)
        except CommitMapError:
            continue
        assert found.base == 5
        assert found.horizon >= 5
