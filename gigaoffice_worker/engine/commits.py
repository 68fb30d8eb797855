"""What is committed, and what a commit's failure means. Used by the consumer thread only."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from gigaoffice_worker.broker.consumer import (
    CommitLostError,
    CommitMapTooLargeError,
    CommitRefusedError,
    CommitRetriableError,
    Committed,
    Consumer,
)
from gigaoffice_worker.core.scheduler import Assignment
from gigaoffice_worker.engine.monitor import Monitor
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# As much metadata as a broker takes with a commit unless it is configured otherwise (offset.metadata.max.bytes).
_MAP_LIMIT = 4096


class Committer:
    """Commits the contiguous progress of each partition, and with it the map of what is finished beyond."""

    def __init__(self, consumer: Consumer, monitor: Monitor, metrics: Metrics) -> None:
        self._consumer = consumer
        self._monitor = monitor
        self._metrics = metrics
        self._map_limit = _MAP_LIMIT
        # Partitions whose map did not fit: no more intake for them, or a crash would repeat more and more.
        self.full: set[int] = set()
        self.trouble: str | None = None

    def commit(self, assignments: Mapping[int, Assignment], timeout: float) -> bool:
        """Commit what has changed since the last acknowledged commit; False when not all of it could be.

        Never raises but FencedError: a commit that failed is made again with the next one.
        """
        due = self._due(assignments)
        if not due:
            return True
        try:
            self._consumer.commit(due, timeout)
        except CommitMapTooLargeError:
            self._map_limit //= 2
            log.warning("Commit map shrinks: the broker takes less metadata with a commit", limit=self._map_limit)
            return self._map_limit > 0 and self.commit(assignments, timeout)
        except CommitRefusedError as error:
            if len(due) > 1:
                # The client reports the first error it meets; each of the other partitions gets its own chance.
                return all([self.commit({partition: assignments[partition]}, timeout) for partition in due])  # noqa: C419
            return self._failed("refused", due, error)
        except (CommitRetriableError, CommitLostError) as error:
            return self._failed("lost" if isinstance(error, CommitLostError) else "failed", due, error)
        self._metrics.commits.labels("ok").inc()
        self.trouble = None
        for partition, at in due.items():
            assignments[partition].committed, assignments[partition].committed_text = at
        return True

    def _failed(self, result: str, due: Mapping[int, Committed], error: Exception) -> bool:
        """Count and tell a commit that did not land; only a refusal is trouble, the others mend themselves."""
        self._metrics.commits.labels(result).inc()
        if result == "refused":
            self.trouble = f"commit of partition {next(iter(due))} refused: {error}"
        tell = log.error if result == "refused" else log.warning
        tell("Commit failed", result=result, partitions=sorted(due), error=str(error))
        return False

    def _due(self, assignments: Mapping[int, Assignment]) -> dict[int, Committed]:
        due = {}
        with self._monitor.locked():
            maps = {partition: held.tracker.commit_map() for partition, held in assignments.items()}
        for partition, found in maps.items():
            text, whole = found.encode(self._map_limit) if found.says_more else ("", True)
            (self.full.discard if whole else self.full.add)(partition)
            held = assignments[partition]
            if (found.base, text) != (held.committed, held.committed_text):
                due[partition] = Committed(found.base, text)
        return due
