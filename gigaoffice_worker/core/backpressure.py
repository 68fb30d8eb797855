"""Whether a partition is read on or paused, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from gigaoffice_worker.core.parking import UNIT
from gigaoffice_worker.core.work import Assignment

# How far a partition is read past its lowest unfinished offset, and how many requests all of them park together.
_LONGEST_SPAN: Final = 1_000_000
_MOST_PARKED: Final = 1_000_000

UNDECODABLE: Final = "undecodable record"


@dataclass(frozen=True, slots=True)
class PartitionQuota:
    """What one partition may hold until it is settled: its even share of what all may hold."""

    records: int
    bytes: int

    @classmethod
    def of(cls, partitions: int, max_records: int, max_bytes: int) -> PartitionQuota:
        """Divide the limits among `partitions`; a tiny share would be paused and refetched all the time."""
        partitions = max(1, partitions)
        return cls(max(16, max_records // partitions), max(256 * 1024, max_bytes // partitions))

    @property
    def window(self) -> int:
        """Return the same in units, with room for those who have nothing yet beside who has filled it."""
        return min(self.records, self.bytes // UNIT) * 8 // 7

    def full(self, records: int, size: int, *, paused: bool) -> str | None:
        """Return which limit stops intake: "records", "bytes", or None when neither does."""
        # A paused partition goes on only below half of its share: the client throws fetched data of a paused partition
        # away, so each pause costs a fetch.
        part = 2 if paused else 1
        if records >= max(1, self.records // part):
            return "records"
        if size >= max(1, self.bytes // part):
            return "bytes"
        return None


@dataclass(frozen=True, slots=True)
class HoldingLimits:
    """What all partitions together may hold until it is settled, and which of them are paused for it."""

    max_records: int
    max_bytes: int

    def quota(self, partitions: int) -> PartitionQuota:
        return PartitionQuota.of(partitions, self.max_records, self.max_bytes)

    def reasons(
        self,
        assignments: Mapping[int, Assignment],
        paused: Collection[int],
        *,
        everywhere: str | None,
        sweeping: Collection[int],
        unpositioned: Collection[int],
        undecodable: Callable[[int], bool],
        map_full: Collection[int],
    ) -> dict[int, str]:
        """Return why each partition that is not to be read is not; the others are to be read.

        `everywhere` is a reason for all of them, `unpositioned` are assigned but without a position yet, `undecodable`
        says of a partition whether a record that cannot be decoded stops it, `map_full` are those whose commit map has
        no room for more, `sweeping` are those whose frontier is not read at the moment, and `paused` are those that are
        paused already.
        """
        quota = self.quota(len(assignments))
        reasons = dict.fromkeys(unpositioned, "position unknown")
        # Each may hold more than its quota by what its last poll brought; together they must not.
        if everywhere is None and sum(held.held_bytes for held in assignments.values()) > quota.bytes * len(
            assignments
        ):
            everywhere = "bytes"
        for partition, held in assignments.items():
            if undecodable(partition):
                reasons[partition] = UNDECODABLE
            elif everywhere is not None:
                reasons[partition] = everywhere
            elif partition in sweeping:
                continue
            elif partition in map_full:
                reasons[partition] = "commit map"
            elif reason := self._full(held, quota, len(assignments), paused=partition in paused):
                reasons[partition] = reason
        return reasons

    def _full(self, held: Assignment, quota: PartitionQuota, partitions: int, *, paused: bool) -> str | None:
        if held.parking is None:
            return quota.full(held.held_records, held.held_bytes, paused=paused)
        if held.parking.full(paused=paused):
            return "records"
        if held.tracker.span > _LONGEST_SPAN or len(held.tracker.parked) * partitions > _MOST_PARKED:
            return "parked"
        return None
