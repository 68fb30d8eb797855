"""Partitions at whose position stands what the client cannot decode. Used by the consumer thread only.

Nothing is skipped: such a partition is paused. It is looked at again now and then, at most once a minute, because what
could not be read from one replica may be read from another, and because retention may remove it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from gigaoffice_worker.broker.errors import UndecodableError

log = structlog.get_logger(__name__)

FIRST_LOOK = 1.0
LONGEST_WAIT = 60.0


class Undecodable(NamedTuple):
    """What a quarantined partition waits before."""

    offset: int
    error: str


@dataclass
class _Patience:
    """When a partition is looked at again (monotonic seconds), and how long was waited for that."""

    again_at: float
    wait: float


class Quarantine:
    """The quarantined partitions of `topic`."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._patience: dict[int, _Patience] = {}
        # Replaced and never changed, so that observers may read it without a lock.
        self.held: Mapping[int, Undecodable] = {}

    def admit(self, found: UndecodableError, now: float) -> None:
        """Shut a partition in. One that is there already, at the same offset, only waits for longer."""
        known = self.held.get(found.partition)
        if known is not None and known.offset == found.offset:
            patience = self._patience[found.partition]
            patience.wait = min(LONGEST_WAIT, patience.wait * 2)
            patience.again_at = now + patience.wait
            return
        self.held = {**self.held, found.partition: Undecodable(found.offset, found.reason)}
        self._patience[found.partition] = _Patience(now + FIRST_LOOK, FIRST_LOOK)
        log.error(
            "Partition quarantined: a record cannot be decoded, and nothing is skipped",
            topic=self._topic,
            partition=found.partition,
            offset=found.offset,
            next_offset=found.behind,
            error_type=type(found.cause).__name__,
            error=found.reason,
            hint=self._way_over(found),
        )

    def shuts_in(self, partition: int, now: float) -> bool:
        """Say whether a partition is to be paused; not while it is looked at again."""
        return partition in self.held and now < self._patience[partition].again_at

    def let_out(self, position: Callable[[int], int | None]) -> None:
        """Release the partitions that are read on elsewhere than before what could not be decoded."""
        for partition, (offset, _) in self.held.items():
            at = position(partition)
            if at is not None and at != offset:
                log.info(
                    "Partition read on after its quarantine",
                    topic=self._topic,
                    partition=partition,
                    offset=offset,
                    position=at,
                )
                self._drop(partition)

    def keep(self, partitions: Mapping[int, object]) -> None:
        """Forget all other partitions: they are somebody else's."""
        for partition in self.held.keys() - partitions.keys():
            self._drop(partition)

    def _drop(self, partition: int) -> None:
        self.held = {other: found for other, found in self.held.items() if other != partition}
        del self._patience[partition]

    def _way_over(self, found: UndecodableError) -> str:
        if found.behind is None:
            return "docs/operations.md says how to step over it, under 'A record that cannot be decoded'"
        place = f"--topic {self._topic}:{found.partition} --reset-offsets --to-offset {found.behind} --execute"
        return f"to step over its batch, stop the group's workers and run: kafka-consumer-groups --group … {place}"
