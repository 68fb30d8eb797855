"""How fast a workload could be done at best: a greedy schedule over the whole log."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence


def ideal_seconds(durations: Sequence[float], keys: Sequence[Hashable], slots: int) -> float:
    """Return when the last of the calls ends, if `slots` run at once and those of one key run in order.

    The calls stand in the order of the log, and all of it is in sight: a free slot takes the first call whose key is
    free. Nothing else takes time.
    """
    waiting: dict[Hashable, deque[int]] = {}
    ready: list[int] = []  # a heap, by place in the log
    for place, key in enumerate(keys):
        if key in waiting:
            waiting[key].append(place)
        else:
            waiting[key] = deque()
            ready.append(place)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            place = heapq.heappop(ready)
            heapq.heappush(running, (now + durations[place], place))
        now, place = heapq.heappop(running)
        if behind := waiting[keys[place]]:
            heapq.heappush(ready, behind.popleft())
    return now
