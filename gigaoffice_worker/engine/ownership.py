"""Which partitions are ours, and what a rebalance does to what is in hand. Used by the consumer thread only.

The client's rebalances are eager: every member gives up all of its partitions and gets some back. Dropping what is in
flight would repeat paid calls, so what was revoked is only set aside. A partition that comes back is *adopted*, if
nobody else can have owned it in between: the member is the same and the group's generation is the very next one.
Everything else is forgotten: what is queued is dropped, and results that are still to come count for nothing.
"""

from __future__ import annotations

import time
from typing import Literal

import structlog

from gigaoffice_worker.broker.consumer import Committed, Consumer, Membership
from gigaoffice_worker.core.commit_map import CommitMap, CommitMapError
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

COMMIT_WITHIN = 5.0
_ASK_WITHIN = 2.0
_ASK_EVERY = 1.0
_HOLD = "rebalance"


class Ownership:
    """The assignments of this member, from being assigned to being adopted or forgotten."""

    def __init__(
        self,
        consumer: Consumer,
        dispatcher: Dispatcher,
        metrics: Metrics,
        *,
        topic: str,
        auto_offset_reset: Literal["earliest", "latest"],
    ) -> None:
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._topic = topic
        self._reset = auto_offset_reset
        self._epoch = 0
        self._membership: Membership | None = None
        # Replaced and never changed, so that observers may read it without a lock.
        self.assignments: dict[int, Assignment] = {}
        self._set_aside: dict[int, Assignment] = {}
        # Assigned, and not read yet: where to begin is still to be asked (or, for those in `_anew`, to be decided).
        self.unpositioned: set[int] = set()
        self._anew: set[int] = set()
        self._ask_again_at = 0.0
        self.joined_at: float | None = None
        self.rebalancing_since: float | None = None
        self.last_step = time.monotonic()

    @property
    def joined(self) -> bool:
        """Whether the group has given us an assignment at least once."""
        return self.joined_at is not None

    # A rebalance, in this order

    def begin_rebalance(self) -> None:
        """Start no attempt any more: the partitions are about to be given up."""
        self.rebalancing_since = time.monotonic()
        if self.assignments:
            self._dispatcher.hold(_HOLD)

    def set_aside(self) -> None:
        """Give all partitions up, but keep what is in hand of them until it is known where they go."""
        if self.assignments:
            self._set_aside, self.assignments = self.assignments, {}

    def assign(self, partitions: frozenset[int]) -> None:
        """Adopt what has come back, forget what has not, and find the position of what is new."""
        before, self._membership = self._membership, self._consumer.membership()
        self._epoch += 1
        adopted = partitions & self._set_aside.keys() if self._follows(before) else frozenset[int]()
        for partition, assignment in self._set_aside.items():
            if partition not in adopted:
                self._dispatcher.forget(assignment)
        self.assignments = {partition: self._set_aside[partition] for partition in adopted}
        self._set_aside = {}
        for partition, assignment in self.assignments.items():
            assignment.epoch = self._epoch
            self._consumer.seek(partition, assignment.tracker.position)
        self._anew &= partitions
        self.unpositioned = set(partitions - adopted)
        self._consumer.pause(self.unpositioned)
        log.info("Partitions assigned", partitions=sorted(partitions), adopted=sorted(adopted), epoch=self._epoch)
        self._metrics.rebalances.inc()
        self.joined_at = self.joined_at or time.monotonic()
        self.rebalancing_since = None
        self.position_new()
        self._dispatcher.release(_HOLD)

    def _follows(self, before: Membership | None) -> bool:
        now = self._membership
        return bool(before and now and now.member_id == before.member_id and now.generation == before.generation + 1)

    # Where to begin

    def position_new(self) -> None:
        """Give every new partition its position; one whose answer does not come stays paused and is asked again."""
        if time.monotonic() < self._ask_again_at:
            return
        for partition in sorted(self.unpositioned):
            self.last_step = time.monotonic()
            try:
                found = None if partition in self._anew else self._consumer.committed(partition, _ASK_WITHIN)
                if found is None:
                    found = self._first_commit(partition)
            except Exception as error:  # noqa: BLE001  # no answer is no position, whatever the reason
                log.warning("Position not known yet, asking again", partition=partition, error=_brief(error))
                self._ask_again_at = time.monotonic() + _ASK_EVERY
                return
            self._take_over(partition, found)

    def _first_commit(self, partition: int) -> Committed:
        """Begin where the configuration says, and commit that at once: the next member begins at the same place."""
        latest = self._reset == "latest"
        find = self._consumer.end_of_log if latest else self._consumer.start_of_log
        position = find(partition, _ASK_WITHIN)
        found = Committed(position, "")
        self._consumer.commit({partition: found}, COMMIT_WITHIN)
        return found

    def _take_over(self, partition: int, found: Committed) -> None:
        restored: CommitMap | None = None
        if found.metadata:
            try:
                restored = CommitMap.decode(found.metadata, found.position)
            except CommitMapError as error:
                log.warning("Commit metadata ignored", partition=partition, error=str(error))
        tracker: OffsetTracker[Work] = OffsetTracker(found.position, restored)
        assignment = Assignment(self._topic, partition, self._epoch, tracker, found.position, found.metadata)
        self.assignments = {**self.assignments, partition: assignment}
        self.unpositioned.discard(partition)
        self._anew.discard(partition)
        self._consumer.seek(partition, found.position)
        self._consumer.resume([partition])

    def begin_anew(self, partition: int) -> None:
        """Forget a partition whose log does not hold its position, and begin where the configuration says."""
        self._anew.add(partition)
        self.reposition(partition)

    def reposition(self, partition: int) -> None:
        """Forget what is known of a partition, and ask for its position as if it were new."""
        assignment = self.assignments.get(partition)
        if assignment is not None:
            self._dispatcher.forget(assignment)
            self.assignments = {p: held for p, held in self.assignments.items() if p != partition}
        self.unpositioned.add(partition)
        self._consumer.pause([partition])
        self._consumer.forget_watermark(partition)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
