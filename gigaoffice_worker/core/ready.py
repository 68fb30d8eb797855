"""What is ready to run, in the order in which it runs."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from gigaoffice_worker.core.fairness import FairQueue, rank
from gigaoffice_worker.core.work import Work


class Ready(Protocol):
    """Requests that could run now."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Work]:
        """Walk over all of them, in no order."""

    def add(self, work: Work, *, fresh: bool) -> None:
        """Add a request; a `fresh` one was received later than all before."""

    def first(self) -> Work | None:
        """Return what runs next, and leave it there."""

    def pop(self) -> Work | None:
        """Take off what runs next."""

    def remove(self, work: Work) -> bool:
        """Take a request off, wherever it stands; False when it is not ready."""

    def put_back(self, work: Work) -> None:
        """Note that a request that was taken off does not run, and may be added again."""

    def ended(self, work: Work, seconds: float | None) -> None:
        """Note how long a request that was taken off has run; None where no call was made."""

    def keep(self, wanted: Callable[[Work], bool]) -> None:
        """Drop all others."""


class ByArrival:
    """The request that was written first runs first, however late it became ready.

    A lane that has much to do has the oldest requests, and to let it wait its turn among all lanes would let it run
    alone in the end. The order in which requests were received would not do, since a fetch brings many from one
    partition at a time.
    """

    def __init__(self) -> None:
        # Ready on arrival, in that order; and what became ready later, as a heap by the time of writing.
        self._fresh: deque[Work] = deque()
        self._freed: list[tuple[float, int, Work]] = []

    def __len__(self) -> int:
        return len(self._fresh) + len(self._freed)

    def __iter__(self) -> Iterator[Work]:
        yield from self._fresh
        yield from (entry[2] for entry in self._freed)

    def add(self, work: Work, *, fresh: bool) -> None:
        if fresh:
            self._fresh.append(work)
        else:
            heapq.heappush(self._freed, (work.turn, work.number, work))

    def first(self) -> Work | None:
        if self._freed and not self._fresh_goes_first():
            return self._freed[0][2]
        return self._fresh[0] if self._fresh else None

    def pop(self) -> Work | None:
        if self._freed and not self._fresh_goes_first():
            return heapq.heappop(self._freed)[2]
        return self._fresh.popleft() if self._fresh else None

    def _fresh_goes_first(self) -> bool:
        """Hold the first of both against each other; many are written within one millisecond, so turns are equal."""
        if not self._fresh:
            return False
        fresh, (turn, number, _) = self._fresh[0], self._freed[0]
        return fresh.turn < turn or (fresh.turn == turn and fresh.number < number)

    def remove(self, work: Work) -> bool:
        if work in self._fresh:
            self._fresh.remove(work)
        elif (entry := (work.turn, work.number, work)) in self._freed:
            self._freed.remove(entry)
            heapq.heapify(self._freed)
        else:
            return False
        return True

    def put_back(self, work: Work) -> None:
        """Do nothing: nothing is kept of what was taken off."""

    def ended(self, work: Work, seconds: float | None) -> None:
        """Do nothing: who had how much time plays no part."""

    def keep(self, wanted: Callable[[Work], bool]) -> None:
        self._fresh = deque(filter(wanted, self._fresh))
        self._freed = [entry for entry in self._freed if wanted(entry[2])]
        heapq.heapify(self._freed)


class ByTenant:
    """Tenants share the time of calls equally; within a tenant priorities go first, and waiting raises them."""

    def __init__(self, aging: float) -> None:
        self._aging = aging
        self._queue: FairQueue[Work] = FairQueue()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Work]:
        return iter(self._queue)

    def add(self, work: Work, *, fresh: bool) -> None:  # noqa: ARG002  # when it arrived is in its rank
        self._queue.add(*self._entry(work))

    def first(self) -> Work | None:
        return self._queue.first()

    def pop(self) -> Work | None:
        return self._queue.pop()

    def remove(self, work: Work) -> bool:
        return self._queue.remove(*self._entry(work))

    def put_back(self, work: Work) -> None:
        self._queue.ended(work.tenant, None)

    def ended(self, work: Work, seconds: float | None) -> None:
        self._queue.ended(work.tenant, seconds)

    def keep(self, wanted: Callable[[Work], bool]) -> None:
        self._queue.keep(wanted)

    def _entry(self, work: Work) -> tuple[str, float, int, Work]:
        return work.tenant, rank(work.turn, work.priority, self._aging), work.number, work
