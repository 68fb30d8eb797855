"""When records arrived, whatever their producers wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.arrival import LONGEST_AGE, ArrivalClock, age

NOW = 1_700_000_000.0
HONEST = [NOW - 1000 + offset for offset in range(100)]


def believed(*batches: list[float]) -> list[float]:
    """Return when the records of the last batch arrived, read behind the others."""
    clock = ArrivalClock()
    return [list(clock.times(batch, NOW)) for batch in batches][-1]


def test_honest_timestamps_are_believed() -> None:
    assert believed(HONEST) == HONEST
    later = [HONEST[-1] + 1, HONEST[-1] + 2]
    assert believed(HONEST, later) == later
    assert believed(HONEST, later, [NOW]) == [NOW]


@pytest.mark.parametrize("forged", [1.0, 0.0, -1.0, NOW + 1e9, NOW])
@pytest.mark.parametrize("place", [0, 1, 50, 99])
def test_a_forged_timestamp_counts_only_between_its_neighbours(forged: float, place: int) -> None:
    times = believed([HONEST[0]] * 4, [*HONEST[:place], forged, *HONEST[place + 1 :]])
    # Nothing that follows the last one is known: it may be the newest, and is no older than what was before.
    known = slice(0, 99) if place == 99 else slice(0, 100)
    assert all(abs(time - honest) <= 1 for time, honest in zip(times[known], HONEST[known], strict=True))
    assert HONEST[98] <= times[99] <= NOW


@pytest.mark.parametrize("forged", [1.0, 0.0, NOW + 1e9])
def test_in_the_first_batch_a_quarter_may_be_forged(forged: float) -> None:
    times = believed([forged if place % 5 == 4 else honest for place, honest in enumerate(HONEST)])
    assert min(times) >= HONEST[0] - 100
    assert times[0] == HONEST[0]


def test_a_forged_timestamp_that_is_read_alone_is_no_older_than_what_was_read_before() -> None:
    assert believed(HONEST, [1.0]) == [HONEST[-1]]
    assert believed(HONEST, [NOW + 1e6], [1.0]) == [NOW]


def test_many_forged_timestamps_in_a_row_do_not_get_in_front_of_what_came_in_the_batch_before() -> None:
    assert min(believed(HONEST, [1.0] * 50 + [NOW - 10] * 50)) >= HONEST[50]


def test_timestamps_of_the_future_do_not_put_back_those_that_follow() -> None:
    forged = [*HONEST[:10], *[NOW + 1e6] * 10, *HONEST[20:]]
    assert believed([HONEST[0]] * 4, forged)[21:] == HONEST[21:]
    assert believed([HONEST[0]] * 4, [*HONEST[:50], NOW + 1e6], HONEST[51:])[1:] == HONEST[52:]


def test_a_lone_record_is_believed_for_a_day() -> None:
    assert believed([NOW - 3600]) == [NOW - 3600]
    assert believed([1.0]) == [NOW - 86_400]
    assert believed([NOW + 5]) == [NOW]


@given(st.lists(st.lists(st.floats(-1, 2 * NOW), min_size=1, max_size=30), min_size=1, max_size=3))
def test_no_time_is_made_up(batches: list[list[float]]) -> None:
    times = believed(*batches)
    assert len(times) == len(batches[-1])
    everything = [each for batch in batches for each in batch]
    lowest = min(everything) - (max(everything) - min(everything))
    assert all(min(lowest, NOW) <= each <= NOW for each in times)


@pytest.mark.parametrize("arrived, expected", [(NOW - 5, 5), (NOW + 5, 0), (0.0, 0), (-0.001, 0), (1.0, LONGEST_AGE)])
def test_recorded_ages_are_capped(arrived: float, expected: float) -> None:
    assert age(arrived, NOW) == pytest.approx(expected)
