"""Which partitions are ours, and what a rebalance does to what is in hand. Used by the consumer thread only.

The client's rebalances are eager: every member gives up all of its partitions and gets some back. Dropping what is in
flight would repeat paid calls, so what was revoked is only set aside. A partition that comes back is *adopted*, if
nobody else can have owned it in between: the member is the same and the group's generation is the very next one.
Everything else is forgotten: what is queued is dropped, and results that are still to come count for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog

from gigaoffice_worker.broker.consumer import Committed, Consumer, Membership
from gigaoffice_worker.core.commit_map import CommitMap, CommitMapError
from gigaoffice_worker.core.journal import split_metadata
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.journal import Journal
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

COMMIT_WITHIN = 5.0
# How long one question for a position may take, and how long after it failed the next one waits; both grow to these.
_ASK_WITHIN, _MOST_WITHIN = 1.0, 5.0
_ASK_AFTER, _MOST_AFTER = 1.0, 10.0
# A new leader may tell of an earlier end for a moment, until it knows how far its followers are.
_BELIEVE_AFTER = 5.0
_HOLD = "rebalance"


class _NotKnownError(Exception):
    """There is no answer to a question for a position yet, and why."""


@dataclass(slots=True)
class _Unpositioned:
    """An assigned partition that is not read yet, and since when and for which reason. Times are monotonic seconds."""

    since: float
    # Decide by the configuration where to begin, whatever is committed.
    anew: bool = False
    # Believe no commit map: the log was truncated.
    without_map: bool = False
    tries: int = 0
    ask_at: float = 0.0
    why: str = "not asked for yet"
    # Since when the log's end seems to lie below what the commit map says is done.
    short_since: float | None = None


class Ownership:
    """The assignments of this member, from being assigned to being adopted or forgotten."""

    def __init__(
        self,
        consumer: Consumer,
        dispatcher: Dispatcher,
        journal: Journal,
        metrics: Metrics,
        *,
        topic: str,
        auto_offset_reset: Literal["earliest", "latest"],
    ) -> None:
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._journal = journal
        self._metrics = metrics
        self._topic = topic
        self._reset = auto_offset_reset
        self._epoch = 0
        self._membership: Membership | None = None
        # Replaced and never changed, so that observers may read it without a lock.
        self.assignments: dict[int, Assignment] = {}
        self._set_aside: dict[int, Assignment] = {}
        # Assigned, and not read yet: where to begin is still to be asked.
        self._unpositioned: dict[int, _Unpositioned] = {}
        # The same with the reason of each. Replaced and never changed, so that observers may read it without a lock.
        self.unpositioned: Mapping[int, str] = {}
        self._ask_again_at = 0.0
        # Whether the group has given us an assignment at least once.
        self.joined = False
        self.rebalancing_since: float | None = None
        self.last_step = time.monotonic()

    @property
    def stable(self) -> bool:
        """Whether the group has given us an assignment, and is not about to give us another."""
        return self.joined and self.rebalancing_since is None

    @property
    def has_work(self) -> bool:
        """Whether anything is in hand."""
        return any(assignment.held_records for assignment in self.assignments.values())

    @property
    def aside(self) -> Collection[Assignment]:
        """What is set aside until a rebalance tells where it goes."""
        return self._set_aside.values()

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

    def assign(self, partitions: frozenset[int]) -> list[Assignment]:
        """Adopt what has come back and forget what has not, which is returned; what is new has no position yet."""
        before, self._membership = self._membership, self._consumer.contact.membership()
        self._epoch += 1
        adopted = partitions & self._set_aside.keys() if self._follows(before) else frozenset[int]()
        forgotten = [assignment for partition, assignment in self._set_aside.items() if partition not in adopted]
        for assignment in forgotten:
            self._dispatcher.forget(assignment)
        self.assignments = {partition: self._set_aside[partition] for partition in adopted}
        self._set_aside = {}
        for partition, assignment in self.assignments.items():
            assignment.epoch = self._epoch
            self._consumer.seek(partition, assignment.tracker.position)
        now = time.monotonic()
        known = self._unpositioned
        self._unpositioned = {
            # Who was to begin anew still is; the rest is asked as if it were new.
            partition: _Unpositioned(now, anew=partition in known and known[partition].anew)
            for partition in sorted(partitions - adopted)
        }
        self._tell_unpositioned()
        self._consumer.pause(self._unpositioned)
        log.info("Partitions assigned", partitions=sorted(partitions), adopted=sorted(adopted), epoch=self._epoch)
        self._metrics.rebalances.inc()
        self.joined = True
        self.rebalancing_since = None
        self._dispatcher.release(_HOLD)
        return forgotten

    def _follows(self, before: Membership | None) -> bool:
        now = self._membership
        return bool(before and now and now.member_id == before.member_id and now.generation == before.generation + 1)

    # Where to begin

    def position_new(self) -> None:
        """Give every new partition its position; one whose answer does not come stays paused and is asked for again.

        One question at a time may fail: what is read already must not wait for many answers that do not come.
        """
        now = time.monotonic()
        if now < self._ask_again_at:
            return
        for partition, waiting in sorted(self._unpositioned.items()):
            if now < waiting.ask_at:
                continue
            self.last_step = time.monotonic()
            try:
                found = self._ask(partition, waiting)
                self._take_over(partition, found, self._restored(partition, found, waiting))
            except _NotKnownError as error:  # found out without waiting
                self._ask_later(partition, waiting, str(error))
            except Exception as error:  # noqa: BLE001  # no answer is no position, whatever the reason
                self._ask_later(partition, waiting, _brief(error))
                self._ask_again_at = time.monotonic() + _ASK_AFTER
                break
        self._tell_unpositioned()

    def _ask_later(self, partition: int, waiting: _Unpositioned, why: str) -> None:
        wait = min(_MOST_AFTER, _ASK_AFTER * 2.0 ** min(waiting.tries, 10))
        if why != waiting.why:
            log.warning("Position not known yet, asking again", partition=partition, error=why)
        waiting.why, waiting.tries, waiting.ask_at = why, waiting.tries + 1, time.monotonic() + wait

    def _ask(self, partition: int, waiting: _Unpositioned) -> Committed:
        """Return what is committed; where nothing is, begin where the configuration says."""
        within = min(_MOST_WITHIN, _ASK_WITHIN * 2.0 ** min(waiting.tries, 10))
        found = None if waiting.anew else self._consumer.committed(partition, within)
        if found is not None:
            return found
        # Committed at once, so that the next member begins at the same place.
        self._require_leader(partition)
        latest = self._reset == "latest"
        found = Committed((self._consumer.end_of_log if latest else self._consumer.start_of_log)(partition, within), "")
        self._consumer.commit({partition: found}, COMMIT_WITHIN)
        return found

    def _require_leader(self, partition: int) -> None:
        if not self._consumer.has_leader(partition):
            message = "the partition has no leader"
            raise _NotKnownError(message)

    def _restored(self, partition: int, found: Committed, waiting: _Unpositioned) -> CommitMap | None:
        """Return the map that came with a commit, unless it is none of ours or tells of a log that is not there."""
        commit_map, _ = split_metadata(found.metadata)
        if not commit_map or waiting.without_map:
            return None
        try:
            restored = CommitMap.decode(commit_map, found.position)
        except CommitMapError as error:
            log.warning("Commit metadata ignored", partition=partition, error=str(error))
            return None
        self._require_leader(partition)
        end = self._consumer.end_of_log(partition, _ASK_WITHIN)
        if end >= restored.horizon:
            return restored
        # New records would be skipped under the offsets of old ones.
        now = time.monotonic()
        waiting.short_since = waiting.short_since or now
        if now - waiting.short_since < _BELIEVE_AFTER:
            message = f"the log ends at {end}, and what is done reaches to {restored.horizon}"
            raise _NotKnownError(message)
        self._tell_truncated(partition, end, restored.horizon)
        return None

    def _tell_truncated(self, partition: int, end: int, done: int) -> None:
        log.error(
            "Log truncated: what is done of it is forgotten, and requests are repeated rather than lost",
            topic=self._topic,
            partition=partition,
            offset=end,
            position=done,
            hint="a replica that was not in sync became leader; see unclean.leader.election.enable and acks",
        )
        self._metrics.log_truncations.inc()

    def _take_over(self, partition: int, found: Committed, restored: CommitMap | None) -> None:
        tracker: OffsetTracker[Work] = OffsetTracker(found.position, restored)
        assignment = Assignment(self._topic, partition, self._epoch, tracker, found.position, found.metadata)
        self.assignments = {**self.assignments, partition: assignment}
        del self._unpositioned[partition]
        self._consumer.seek(partition, found.position)
        self._consumer.resume([partition])
        self._journal.ask(assignment, split_metadata(found.metadata)[1])

    def _tell_unpositioned(self) -> None:
        self.unpositioned = {partition: waiting.why for partition, waiting in self._unpositioned.items()}

    # Where the log does not hold what was to be read next

    def out_of_range(self, partition: int, position: int) -> None:
        """Go on where the log does not hold `position`: skip what was removed; after a truncation, begin once more."""
        assignment = self.assignments.get(partition)
        if assignment is None:
            return
        start = self._consumer.start_of_log(partition, _ASK_WITHIN)
        with self._dispatcher.locked():
            committable, in_hand = assignment.tracker.committable, len(assignment.tracker)
        if start > position and (in_hand or position != assignment.committed or self._reset == "earliest"):
            self._skip_removed(assignment, position, start)
        elif start > position or committable > (end := self._consumer.end_of_log(partition, _ASK_WITHIN)):
            log.error(
                "Offset out of range: the log does not hold the position, beginning anew",
                topic=self._topic,
                partition=partition,
                offset=position,
                reset_to=self._reset,
                hint="retention removed the records, the log was truncated, or the topic was created again",
            )
            self.reposition(partition, anew=True)
        else:
            self._tell_truncated(partition, end, position)
            self.reposition(partition, without_map=True)
        self._metrics.offset_resets.inc()

    def _skip_removed(self, assignment: Assignment, position: int, start: int) -> None:
        """Go on behind what the cluster has removed unread; what is in hand stays in hand."""
        log.error(
            "Requests were removed before they were read",
            topic=self._topic,
            partition=assignment.partition,
            offset=position,
            position=start,
            records=start - position,
            hint="the topic's retention is shorter than the backlog, or somebody has deleted records",
        )
        self._metrics.lost_by_retention.inc(start - position)
        with self._dispatcher.locked():
            assignment.tracker.advance(start)
        self._consumer.seek(assignment.partition, start)

    def reposition(self, partition: int, *, anew: bool = False, without_map: bool = False) -> None:
        """Forget what is known of a partition, and ask for its position as if it were new."""
        assignment = self.assignments.get(partition)
        if assignment is not None:
            self._dispatcher.forget(assignment)
            self.assignments = {p: held for p, held in self.assignments.items() if p != partition}
        self._unpositioned[partition] = _Unpositioned(time.monotonic(), anew=anew, without_map=without_map)
        self._tell_unpositioned()
        self._consumer.pause([partition])
        self._consumer.forget_watermark(partition)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
