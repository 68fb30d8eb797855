"""Whether a partition is read on or paused, and why."""

from __future__ import annotations

from dataclasses import dataclass


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
