"""When records arrived, as far as the timestamps that their producers wrote can be believed.

Requests of all partitions are ordered by time, and whoever writes a record may write any timestamp. Within a partition
the offsets tell the order of arrival, so a timestamp counts only between those of its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LONGEST_AGE: Final = 7 * 86_400.0
"""No age is recorded as longer than that, in seconds: a sum with one of fifty years in it says nothing."""

# For so long a timestamp without neighbours is believed, in seconds.
_BELIEVED_ALONE = 86_400.0


class ArrivalClock:
    """Says when the records of one partition arrived. All times are seconds since the epoch."""

    def __init__(self) -> None:
        # No record that follows is taken to have arrived before that, however many of them say so: the middle of what
        # was read before. None before the first record.
        self._earliest: float | None = None
        # When the last record arrived.
        self._last = 0.0

    def times(self, timestamps: Sequence[float], now: float) -> Sequence[float]:
        """Return when the next records arrived, one or more, whose timestamps are given in the order of their offsets.

        None of them is later than `now`.
        """
        count, in_order = len(timestamps), sorted(timestamps)
        if self._earliest is None:
            lower, upper = in_order[count // 4], in_order[3 * count // 4]
            # Among enough neighbours a quarter may be wrong, and what lies far below the rest is; without, there is
            # only the clock.
            earliest = lower - (upper - lower) if count > 3 else max(in_order[0], now - _BELIEVED_ALONE)
            self._earliest = self._last = min(earliest, now)
        earliest = self._earliest
        believed = timestamps
        if in_order != timestamps or in_order[0] < self._last or in_order[-1] > now:
            neighbours = zip([self._last, *timestamps], timestamps, [*timestamps[1:], now], strict=False)
            medians = [
                own if before <= own <= after else sorted((before, own, after))[1] for before, own, after in neighbours
            ]
            believed = [min(max(each, earliest), now) for each in medians]
        self._earliest = max(earliest, min(now, in_order[count // 2]))
        self._last = believed[-1]
        return believed


def age(arrived: float, now: float) -> float:
    """Return how old a record is, in seconds; 0 for one without a timestamp."""
    return min(max(0.0, now - arrived), LONGEST_AGE) if arrived > 0 else 0.0
