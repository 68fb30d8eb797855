"""Which offsets of a partition are finished, and how much of that may be committed.

Two words are kept apart, so that no stray `+ 1` can creep in: an *offset* names a record, a *position* names the
place before one, as in "committed" and "position". `OffsetTracker` deals in both and says which.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

T = TypeVar("T")

_VERSION = "gw1"
# A step is written in groups of seven bits, so 64 bits take ten bytes.
_LONGEST_STEP = 10


class CommitMapError(ValueError):
    """Commit metadata that is not a commit map of this version, or is damaged."""


@dataclass(frozen=True, slots=True)
class CommitMap:
    """What is finished beyond a committed position: everything in [base, horizon) but `unfinished`.

    It travels as the commit's metadata, so that a restart or another member does not repeat what is done although a
    slow request holds the committed position back. Offsets that were never received (removed by compaction, or
    transaction markers) count as finished: nobody will ever receive them.
    """

    base: int
    horizon: int
    unfinished: tuple[int, ...]

    @property
    def says_more(self) -> bool:
        """Whether anything is finished beyond the base that its position alone does not say."""
        return self.horizon - self.base > len(self.unfinished)

    def encode(self, limit: int) -> tuple[str, bool]:
        """Return the map as ASCII text of at most `limit` characters, and whether all of it went in.

        A map that does not fit is cut at the highest unfinished offset that does: what lies behind counts as not
        done, which costs a repetition after a crash and never a loss.
        """
        head = f"{_VERSION}:{self.base}:"
        room = (limit - len(head)) // 4 * 3
        if room < 2 * _LONGEST_STEP:
            return "", False
        body = bytearray()
        last = self.base
        for offset in self.unfinished:
            # Keep room for the horizon, which is written as one more step.
            step = _varint(offset - last)
            if len(body) + len(step) + _LONGEST_STEP > room:
                return head + _text(body + _varint(0)), False
            body += step
            last = offset
        body += _varint(self.horizon - last)
        return head + _text(body), True

    @classmethod
    def decode(cls, text: str, committed: int) -> Self:
        """Read the map that came with position `committed`. Raises CommitMapError for anything else."""
        version, _, rest = text.partition(":")
        base, _, body = rest.partition(":")
        if version != _VERSION or base != str(committed):
            message = "commit metadata is not this worker's" if version != _VERSION else "commit map of another offset"
            raise CommitMapError(message)
        try:
            steps = list(_steps(base64.b64decode(body, altchars=b"-_", validate=True)))
        except (binascii.Error, ValueError) as error:
            message = "commit map is damaged"
            raise CommitMapError(message) from error
        if not steps or any(step == 0 for step in steps[1:-1]):
            message = "commit map is damaged"
            raise CommitMapError(message)
        offsets, last = [], committed
        for step in steps:
            last += step
            offsets.append(last)
        horizon = offsets.pop()
        # In a map that was cut the last unfinished offset is the horizon itself.
        return cls(committed, horizon, tuple(offset for offset in offsets if offset < horizon))


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _steps(body: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            message = "number too long"
            raise ValueError(message)
        if byte < 0x80:
            yield number
            number = shift = 0
    if shift:
        message = "number cut off"
        raise ValueError(message)


def _text(body: bytes | bytearray) -> str:
    return base64.b64encode(bytes(body), altchars=b"-_").decode("ascii")


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
        while self._rising and self._rising[0] not in self._unfinished:
            self._rising.popleft()
        return self._rising[0] if self._rising else self._horizon

    @property
    def oldest(self) -> T | None:
        """The item of the lowest unfinished offset; None where there is none, or it was not received yet."""
        return self._unfinished.get(self.committable)

    def __len__(self) -> int:
        """Return how many offsets are known and unfinished."""
        return len(self._unfinished)

    def __iter__(self) -> Iterator[T]:
        """Walk over the items that were received and are unfinished, in rising order of their offsets."""
        return (item for item in self._unfinished.values() if item is not None)

    def start(self, offset: int, item: T) -> bool:
        """Note that `offset` was received; False says that it is done already and must not be handled again."""
        if offset < self._position:
            message = f"offset {offset} received although the position is {self._position}"
            raise ValueError(message)
        self._position = offset + 1
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
        return CommitMap(self.committable, self._horizon, tuple(sorted(self._unfinished)))

    def _forget_missing(self, below: int) -> None:
        while self._awaited and self._awaited[0] < below:
            del self._unfinished[self._awaited.popleft()]
