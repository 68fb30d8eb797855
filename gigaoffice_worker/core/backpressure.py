"""Whether a partition is read on or paused, and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gigaoffice_worker.core.work import Assignment


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

    def reasons(
        self,
        assignments: Mapping[int, Assignment],
        paused: Collection[int],
        *,
        everywhere: str | None,
        unpositioned: Collection[int],
        undecodable: Callable[[int], bool],
        map_full: Collection[int],
    ) -> dict[int, str]:
        """Return why each partition that is not to be read is not; the others are to be read.

        `everywhere` is a reason for all of them, `unpositioned` are assigned but without a position yet, `undecodable`
        says of a partition whether a record that cannot be decoded stops it, `map_full` are those whose commit map has
        no room for more, and `paused` are those that are paused already.
        """
        quota = PartitionQuota.of(len(assignments), self.max_records, self.max_bytes)
        reasons = dict.fromkeys(unpositioned, "position unknown")
        # Each may hold more than its quota by what its last poll brought; together they must not.
        if everywhere is None and sum(held.held_bytes for held in assignments.values()) > quota.bytes * len(
            assignments
        ):
            everywhere = "bytes"
        for partition, held in assignments.items():
            if undecodable(partition):
                reasons[partition] = "undecodable record"
            elif everywhere is not None:
                reasons[partition] = everywhere
            elif partition in map_full:
                reasons[partition] = "commit map"
            elif reason := quota.full(held.held_records, held.held_bytes, paused=partition in paused):
                reasons[partition] = reason
        return reasons
