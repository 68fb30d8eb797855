"""The arithmetic of measurements: medians with their spread, percentiles, interpolation."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """The median of repetitions, with the least and the greatest of them."""

    median: float
    least: float
    greatest: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and its spread. ValueError without values."""
    if not values:
        raise ValueError("no repetition was measured")
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least of the values that `percent` of them don't exceed. ValueError without values."""
    if not values:
        raise ValueError("no value was measured")
    place = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(0, place - 1)]


def ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Divide each round's value by the base's of the same round; rounds that lack one are left out."""
    return [value / base[number] for number, value in values.items() if base.get(number)]


def at(moment: float, moments: Sequence[float], values: Sequence[float]) -> float:
    """Return the value at a moment, on the straight line between the samples around it."""
    place = bisect.bisect_left(moments, moment)
    if place == 0:
        return values[0]
    if place == len(moments):
        return values[-1]
    before, after = moments[place - 1], moments[place]
    share = (moment - before) / (after - before)
    return values[place - 1] + share * (values[place] - values[place - 1])


def overlapping(calls: Sequence[tuple[float, float]]) -> bool:
    """Say whether calls, given as (start, end) in the order of the log, overlapped or ran in another order."""
    return any(later[0] < earlier[1] for earlier, later in itertools.pairwise(calls))
