"""When records arrived, whatever their producers wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.arrival import LONGEST_AGE, age, arrival_times

NOW = 1_700_000_000.0
HONEST = [NOW - 1000 + offset for offset in range(100)]


def believed(timestamps: list[float], earliest: float | None = None) -> list[float]:
    return list(arrival_times(timestamps, earliest, NOW)[0])


def test_honest_timestamps_are_believed() -> None:
    times, earliest = arrival_times(HONEST, None, NOW)
    assert list(times) == HONEST
    assert earliest == HONEST[50]
    later = [HONEST[-1] + 1, HONEST[-1] + 2]
    assert arrival_times(later, earliest, NOW) == (later, later[1])


@pytest.mark.parametrize("forged", [1.0, 0.0, -1.0, NOW + 1e9, NOW])
@pytest.mark.parametrize("place", [0, 1, 50, 99])
def test_a_forged_timestamp_counts_only_between_its_neighbours(forged: float, place: int) -> None:
    timestamps = [*HONEST[:place], forged, *HONEST[place + 1 :]]
    times, _ = arrival_times(timestamps, HONEST[0], NOW)
    # Nothing that follows the last one is known: it may be the newest, and is no older than what was before.
    known = slice(0, 99) if place == 99 else slice(0, 100)
    assert all(abs(time - honest) <= 1 for time, honest in zip(times[known], HONEST[known], strict=True))
    assert HONEST[98] <= times[99] <= NOW


@pytest.mark.parametrize("forged", [1.0, 0.0, NOW + 1e9])
def test_in_the_first_batch_a_quarter_may_be_forged(forged: float) -> None:
    timestamps = [forged if place % 5 == 4 else honest for place, honest in enumerate(HONEST)]
    assert min(believed(timestamps)) >= HONEST[0] - 100
    assert believed(timestamps)[0] == HONEST[0]


def test_many_forged_timestamps_in_a_row_do_not_get_in_front_of_what_came_in_the_batch_before() -> None:
    _, earliest = arrival_times(HONEST, None, NOW)
    assert min(believed([1.0] * 50 + [NOW - 10] * 50, earliest)) >= HONEST[50]


def test_timestamps_of_the_future_do_not_put_back_those_that_follow() -> None:
    timestamps = [*HONEST[:10], *[NOW + 1e6] * 10, *HONEST[20:]]
    times, earliest = arrival_times(timestamps, HONEST[0], NOW)
    assert list(times[21:]) == HONEST[21:]
    assert arrival_times(HONEST[90:], earliest, NOW)[0] == HONEST[90:]


def test_a_lone_record_is_believed_for_a_day() -> None:
    assert believed([NOW - 3600]) == [NOW - 3600]
    assert believed([1.0]) == [NOW - 86_400]
    assert believed([NOW + 5]) == [NOW]


@given(st.lists(st.floats(-1, 2 * NOW), min_size=1, max_size=30), st.none() | st.floats(0, NOW))
def test_no_time_is_earlier_than_the_earliest_or_later_than_now(
    timestamps: list[float], earliest: float | None
) -> None:
    times, following = arrival_times(timestamps, earliest, NOW)
    assert len(times) == len(timestamps)
    lowest = earliest if earliest is not None else min(*timestamps, NOW)
    assert all(lowest <= each <= NOW for each in times)
    assert lowest <= following <= NOW


@pytest.mark.parametrize("arrived, expected", [(NOW - 5, 5), (NOW + 5, 0), (0.0, 0), (-0.001, 0), (1.0, LONGEST_AGE)])
def test_recorded_ages_are_capped(arrived: float, expected: float) -> None:
    assert age(arrived, NOW) == pytest.approx(expected)
