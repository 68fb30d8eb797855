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


def arrival_times(timestamps: Sequence[float], earliest: float | None, latest: float) -> tuple[Sequence[float], float]:
    """Return when records of one partition arrived, and what is the earliest for those that follow.

    `timestamps` are theirs, in the order of their offsets, `latest` is now, both in seconds since the epoch. `earliest`
    is what the last call returned, or None for the first one.
    """
    count, in_order = len(timestamps), sorted(timestamps)
    if earliest is None:
        lower, upper = in_order[count // 4], in_order[3 * count // 4]
        # Among enough neighbours a quarter may be wrong, and what lies far below the rest is; without, there is only
        # the clock.
        earliest = lower - (upper - lower) if count > 3 else max(in_order[0], latest - _BELIEVED_ALONE)
    earliest = min(earliest, latest)
    following = max(earliest, min(latest, in_order[count // 2]))
    if in_order[0] >= earliest and in_order[-1] <= latest and in_order == timestamps:
        return timestamps, following
    neighbours = zip([earliest, *timestamps], timestamps, [*timestamps[1:], latest], strict=False)
    believed = [own if before <= own <= after else sorted((before, own, after))[1] for before, own, after in neighbours]
    if min(believed) < earliest or max(believed) > latest:
        believed = [min(max(each, earliest), latest) for each in believed]
    return believed, following


def age(arrived: float, now: float) -> float:
    """Return how old a record is, in seconds; 0 for one without a timestamp."""
    return min(max(0.0, now - arrived), LONGEST_AGE) if arrived > 0 else 0.0
