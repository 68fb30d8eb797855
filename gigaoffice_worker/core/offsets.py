"""Which offsets of a partition are finished, and how much of that may be committed.

Two words are kept apart, so that no stray `+ 1` can creep in: an *offset* names a record, a *position* names the
place before one, as in "committed" and "position". `OffsetTracker` deals in both and says which.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

from gigaoffice_worker.core.commit_map import CommitMap, fits_beside, fitting, reach
from gigaoffice_worker.core.parked_offsets import ParkedOffsets

T = TypeVar("T")

# How much of a commit map's room is used before the frontier waits, and before sweeps take no more: those behind the
# lowest parked offset, and those that begin with it, whose ends make the map shorter.
_SHARE_AT_THE_FRONTIER: Final = 0.75
_SHARE_OF_LATER_SWEEPS: Final = 0.8
_SHARE_OF_FIRST_SWEEPS: Final = 0.9
_LET_GO: Final[Any] = None


class OffsetTracker(Generic[T]):
    """The offsets of one partition from one assignment on, each with the item that stands for it.

    Offsets are received in rising order and settled in any. Not thread-safe: the dispatcher's lock guards it.
    """

    def __init__(self, position: int, restored: CommitMap | None = None) -> None:
        """Begin at `position`, the next offset to be received, with what `restored` says is done beyond it."""
        known = restored.unfinished if restored else ()
        self._position = position
        self._horizon = restored.horizon if restored else position
        self._unfinished: dict[int, T | None] = dict.fromkeys(known)
        # Known from the map and not received yet.
        self._awaited = deque(known)
        # Unfinished, with nothing of them in memory: they were received, and will be again.
        self.parked = ParkedOffsets()
        # Offsets that were parked before, as a heap; settled ones go when they reach the front.
        self._resumed: list[int] = []
        # Every unfinished offset in rising order; settled ones go when they reach the front. (The first key of the
        # dict would be the same, but finding it costs a walk over all that was deleted before it.)
        self._rising = deque(known)

    @property
    def position(self) -> int:
        """The position before the next offset to be received."""
        return self._position

    @property
    def committable(self) -> int:
        """The position before the lowest unfinished offset: what may be committed, and no more."""
        rising, resumed, unfinished = self._rising, self._resumed, self._unfinished
        while rising and rising[0] not in unfinished:
            rising.popleft()
        lowest = rising[0] if rising else self._horizon
        if resumed or self.parked:
            while resumed and resumed[0] not in unfinished:
                heapq.heappop(resumed)
            parked = self.parked.lowest
            lowest = min(lowest, resumed[0] if resumed else lowest, parked if parked is not None else lowest)
        return lowest

    @property
    def span(self) -> int:
        """How far it was read past the lowest unfinished offset."""
        return self._position - self.committable

    @property
    def oldest(self) -> T | None:
        """The item of the lowest unfinished offset; None where there is none, or it was not received yet.

        Where that offset is parked, nothing is known of it: then the item of the lowest offset that is in hand.
        """
        lowest = self.committable
        if lowest in self.parked:
            held = (offset for offset, item in self._unfinished.items() if item is not None)
            lowest = min(held, default=lowest)
        return self._unfinished.get(lowest)

    def __len__(self) -> int:
        """Return how many offsets are known and unfinished."""
        return len(self._unfinished) + len(self.parked)

    def __iter__(self) -> Iterator[T]:
        """Walk over the items that were received and are unfinished."""
        return (item for item in self._unfinished.values() if item is not None)

    def receivable(self, offsets: Sequence[int], limit: int) -> int:
        """Return how many of these next offsets may be received: those whose ends a commit map has room for.

        The map has `limit` characters, and room for them however many of all that is unfinished ends before the next
        commit. Where nothing is unfinished one may always be received: its end needs no map.
        """
        base = self.committable
        new = [offset for offset in offsets if offset >= self._horizon]
        if not new or new[-1] < reach(base, limit):
            return len(offsets)
        if self.parked:
            open_offsets = sorted((*self._unfinished, *new))
            beside = fits_beside(base, self.parked.bitmap(base), open_offsets, limit, _SHARE_AT_THE_FRONTIER)
            return len(offsets) if beside else len(offsets) - len(new)
        most = fitting(base, sorted(self._unfinished), new, limit)
        return len(offsets) - len(new) + (most if self._unfinished else max(1, most))

    def start(self, offset: int, item: T) -> bool:
        """Note that `offset` was received; False says that it is done already and must not be handled again."""
        if offset < self._position:
            message = f"offset {offset} received although the position is {self._position}"
            raise ValueError(message)
        self._position = offset + 1
        if self._awaited:
            self._forget_missing(offset)
        if offset >= self._horizon:
            self._horizon = offset + 1
            self._rising.append(offset)
        elif self._awaited and self._awaited[0] == offset:
            self._awaited.popleft()
        else:
            return False
        self._unfinished[offset] = item
        return True

    def park(self, offset: int) -> bool:
        """Note that `offset` was received and let go: it is unfinished, and is read again later. False: it is done."""
        if not self.start(offset, _LET_GO):
            return False
        del self._unfinished[offset]
        self.parked.add(offset)
        return True

    def may_resume(self, offsets: Sequence[int], limit: int) -> bool:
        """Say whether the ends of these parked offsets have room in a commit map of `limit` characters.

        The lowest unfinished offset always has: once it ends the map is shorter.
        """
        base = self.committable
        if offsets[-1] <= base or self._horizon <= reach(base, limit):
            return True
        open_offsets = sorted({*self._unfinished, *offsets})
        share = _SHARE_OF_FIRST_SWEEPS if offsets[0] == self.parked.lowest else _SHARE_OF_LATER_SWEEPS
        return fits_beside(base, self.parked.bitmap(base), open_offsets, limit, share)

    def resume(self, offset: int, item: T) -> None:
        """Note that a parked offset was received again. Raises KeyError when it is not parked."""
        self.gone(offset)
        self._unfinished[offset] = item
        heapq.heappush(self._resumed, offset)

    def gone(self, offset: int) -> None:
        """Note that a parked offset does not exist any more. Raises KeyError when it is not parked."""
        if not self.parked.discard(offset):
            raise KeyError(offset)

    def advance(self, position: int) -> None:
        """Note that everything below `position` was read: offsets that did not show up don't exist."""
        self._forget_missing(position)
        self._position = max(self._position, position)
        self._horizon = max(self._horizon, position)

    def settle(self, offset: int) -> None:
        """Note that the outcome of `offset` is durable. Raises KeyError when it is not unfinished."""
        del self._unfinished[offset]

    def commit_map(self) -> CommitMap:
        """Return what is finished beyond `committable`."""
        # Rising order again: a restored offset takes its item later than higher ones may have been appended.
        base = self.committable
        return CommitMap(base, self._horizon, tuple(sorted(self._unfinished)), bytes(self.parked.bitmap(base)))

    def _forget_missing(self, below: int) -> None:
        while self._awaited and self._awaited[0] < below:
            del self._unfinished[self._awaited.popleft()]
