"""Partitions from which nothing can be read although nothing holds them back here. Used by the consumer thread only."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from gigaoffice_worker.broker.consumer import Consumer

_LOOK_EVERY = 0.5
# From when on somebody is asked why nothing comes: a fetch may wait for a while at the broker.
_ASK_AFTER = 2.0
# From when on it is told.
_TELL_AFTER = 10.0


class Cause(StrEnum):
    """Why nothing can be read from a partition."""

    NO_LEADER = "no leader"
    OPEN_TRANSACTION = "open transaction"
    NOT_ANSWERED = "not answered"


@dataclass(frozen=True, slots=True)
class Stall:
    """Since when (monotonic seconds) nothing behind `position` could be read, and why as far as known."""

    position: int
    since: float
    cause: Cause

    def told(self, now: float) -> bool:
        """Say whether it has lasted for so long that it should be told."""
        return now - self.since >= _TELL_AFTER


class Behind(NamedTuple):
    """Since when (monotonic seconds) there is more behind the `position` of a partition."""

    position: int
    since: float


class StallWatch:
    """Looks at where each partition is read, how far its log reaches, and whether it has a leader."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._next_look = 0.0
        # Replaced and never changed, so that observers may read it without a lock.
        self.held: Mapping[int, Stall] = {}
        # The same for partitions whose log goes on while nothing is read, whatever the reason.
        self.behind: Mapping[int, Behind] = {}

    def look(self, partitions: Collection[int], paused: Collection[int]) -> None:
        """Note which of the partitions stand still. One that is paused by us does not, unless it has no leader."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        found, behind = {}, {}
        for partition in partitions:
            position = self._consumer.position(partition)
            if position is None:
                continue
            watermark = self._consumer.watermark(partition) or 0
            if watermark > position:
                known = self.behind.get(partition)
                behind[partition] = known if known and known.position == position else Behind(position, now)
            cause = self._cause(partition, position, watermark, paused=partition in paused)
            if cause is not None:
                before = self.held.get(partition)
                since = before.since if before is not None and before.position == position else now
                found[partition] = Stall(position, since, cause)
        self.held, self.behind = found, behind

    def to_ask_about(self) -> list[int]:
        """Return the partitions for which the end of what is readable should be asked."""
        now = time.monotonic()
        return [partition for partition, stall in self.held.items() if now - stall.since >= _ASK_AFTER]

    def _cause(self, partition: int, position: int, watermark: int, *, paused: bool) -> Cause | None:
        if not self._consumer.has_leader(partition):
            return Cause.NO_LEADER
        if paused or watermark <= position:
            return None
        # What is readable ends before the first record of a transaction that is open; the log goes on behind that.
        return Cause.OPEN_TRANSACTION if self._consumer.readable_end(partition) == position else Cause.NOT_ANSWERED
