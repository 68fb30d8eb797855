"""What is committed, and what a commit's failure means. Used by the consumer thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import structlog

from gigaoffice_worker.broker.consumer import Committed, Consumer
from gigaoffice_worker.broker.errors import (
    CommitLostError,
    CommitMapTooLargeError,
    CommitRefusedError,
    CommitRetriableError,
)
from gigaoffice_worker.core.commit_map import CommitMap
from gigaoffice_worker.core.journal import split_metadata, with_mark, worth_a_commit
from gigaoffice_worker.core.work import Assignment
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# Characters of the metadata that are kept free of the map, for the mark: so many, or this part of a small limit.
_MARK_ROOM = 128
_MARK_SHARE = 4
_TRY_AGAIN_AFTER = 0.1
# How often partitions without progress are looked at, too.
_LOOK_EVERY = 5.0
_LOOK_WITHIN = 1.0


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What came of a commit, as partitions.

    `failed`: their progress did not land. `gone`: the cluster has dropped their committed position, because their
    topic was deleted; what is in hand of them must be forgotten.
    """

    failed: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()

    @property
    def landed(self) -> bool:
        return not self.failed


class Committer:
    """Commits the contiguous progress of each partition, and with it the map of what is finished beyond.

    `marks` tells of partitions where the journal is to be read from; they travel behind the map.
    """

    def __init__(
        self,
        consumer: Consumer,
        dispatcher: Dispatcher,
        metrics: Metrics,
        metadata_limit: int,
        marks: Callable[[Mapping[int, Assignment]], Mapping[int, str]] = lambda _ours: {},
    ) -> None:
        self._consumer = consumer
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._marks = marks
        # How many characters of metadata the broker takes with a commit (offset.metadata.max.bytes), as far as known.
        self._limit = metadata_limit
        self._handing_over = False
        self._next_look = 0.0
        # Partitions whose map did not fit: no more intake for them, or a crash would repeat more and more.
        self.full: frozenset[int] = frozenset()
        # Replaced and never changed, so that observers may read it without a lock.
        self._refusals: dict[int, str] = {}

    @property
    def map_limit(self) -> int:
        """How many characters a commit map may have, beside a mark of usual length."""
        return self._limit - min(_MARK_ROOM, self._limit // _MARK_SHARE)

    @property
    def trouble(self) -> str | None:
        """Return what the cluster refuses to commit, and why; None while it refuses nothing."""
        refusals = [f"commit of partition {partition} refused: {error}" for partition, error in self._refusals.items()]
        return "; ".join(refusals) or None

    def commit(
        self, assignments: Mapping[int, Assignment], timeout: float, *, handing_over: bool = False
    ) -> CommitResult:
        """Commit what has changed since the last acknowledged commit; what failed is tried again with the next one.

        Tries for `timeout` seconds. `handing_over` says that the partitions are about to be given up, with nothing on
        its way. Raises nothing but FencedError.
        """
        self._handing_over = handing_over
        ours = {partition: held for partition, held in assignments.items() if not held.lost}
        self._forget_all_but(ours)
        failed = self._commit(ours, time.monotonic() + timeout)
        gone = {partition for partition, held in assignments.items() if not held.lost} - ours.keys()
        return CommitResult(frozenset(failed), frozenset(gone))

    def is_behind(self, assignments: Iterable[Assignment]) -> bool:
        """Say whether anything that has ended in these partitions is not committed."""
        with self._dispatcher.locked():
            maps = [(held, held.tracker.commit_map()) for held in assignments]
        return any(
            found.base > held.committed
            or (found.says_more and self._text(found)[0] != split_metadata(held.committed_text)[0])
            for held, found in maps
        )

    def _text(self, found: CommitMap) -> tuple[str, bool]:
        """Return a commit map as text, and whether all of it went in. It takes the mark's room only where it must."""
        if not found.says_more:
            return "", True
        text, whole = found.encode(self.map_limit)
        return (text, True) if whole else found.encode(self._limit)

    def _forget_all_but(self, ours: Mapping[int, Assignment]) -> None:
        """Drop what is known of partitions that are not ours any more."""
        self.full &= ours.keys()
        self._refusals = {partition: error for partition, error in self._refusals.items() if partition in ours}

    def _commit(self, ours: dict[int, Assignment], until: float) -> Collection[int]:
        """Commit what is due of `ours` and return what could not be. Partitions that are gone are taken out of it."""
        while (due := self._due(ours)) or time.monotonic() >= self._next_look:
            try:
                self._commit_over_our_own(due, ours, until)
                break
            except CommitMapTooLargeError as error:
                self._limit //= 2
                log.warning("Commit map shrinks: the broker takes less metadata with a commit", limit=self._limit)
                if not self._limit:
                    return self._failed("refused", due, error)
            except CommitRetriableError as error:
                if not due or time.monotonic() + _TRY_AGAIN_AFTER > until:
                    return self._failed("failed", due, error)
                time.sleep(_TRY_AGAIN_AFTER)
            except CommitLostError as error:
                return self._failed("lost", due, error)
            except CommitRefusedError as error:
                return self._commit_singly(due, ours, until, error)
        return ()

    def _commit_singly(
        self, due: Mapping[int, Committed], ours: dict[int, Assignment], until: float, error: Exception
    ) -> Collection[int]:
        """Give each partition of a refused commit its own chance: the client reports only the first error it meets."""
        if len(due) <= 1:
            return self._failed("refused", due, error)
        failed: set[int] = set()
        for partition in due:
            alone = {partition: ours[partition]}
            failed.update(self._commit(alone, until))
            if not alone:
                del ours[partition]
        return failed

    def _commit_over_our_own(self, due: dict[int, Committed], ours: dict[int, Assignment], until: float) -> None:
        """Commit what is due, but only over a position that is still there. Raises one of the Commit… errors.

        The cluster drops the committed positions of a topic that is deleted. Where it was created again, an old
        position committed to it would skip as many of its records, and the client does not tell the two topics apart.
        So each try looks first, also for partitions that have nothing due: the new topic may wait to be read.
        """
        watched, now = set(due), time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            watched = set(ours)
        found = self._consumer.all_committed(watched, until - now if due else min(_LOOK_WITHIN, until - now))
        for partition in watched - found.keys():
            due.pop(partition, None)
            log.error(
                "Committed position is gone: the topic was deleted, and what is in hand of it is forgotten",
                partition=partition,
                committed=ours.pop(partition).committed,
            )
            self._metrics.offset_resets.inc()
        for partition, at in found.items():
            # A commit that got no answer may land later than one after it: a lower position or an older map of what is
            # finished beyond it is committed over again.
            ours[partition].committed, ours[partition].committed_text = at
        if not due:
            return
        self._consumer.commit(due, max(0.0, until - time.monotonic()))
        self._metrics.commits.labels("ok").inc()
        self._refusals = {p: error for p, error in self._refusals.items() if p not in due}
        for partition, at in due.items():
            ours[partition].committed, ours[partition].committed_text = at

    def _failed(self, result: str, due: Mapping[int, Committed], error: Exception) -> Collection[int]:
        """Count and tell a commit that did not land; only a refusal is trouble, the others mend themselves."""
        if due:
            self._metrics.commits.labels(result).inc()
            if result == "refused":
                self._refusals = self._refusals | dict.fromkeys(due, str(error))
            tell = log.error if result == "refused" else log.warning
            tell("Commit failed", result=result, partitions=sorted(due), error=str(error))
        return due.keys()

    def _due(self, ours: Mapping[int, Assignment]) -> dict[int, Committed]:
        due = {}
        full = set(self.full)
        # Before the maps: what ends from now on stands above these marks, and in none of the maps.
        marks = self._marks(ours)
        with self._dispatcher.locked():
            maps = {partition: held.tracker.commit_map() for partition, held in ours.items()}
        for partition, found in maps.items():
            held = ours[partition]
            text, whole = self._metadata(found, marks.get(partition, ""), held)
            (full.discard if whole else full.add)(partition)
            if found.base != held.committed or worth_a_commit(held.committed_text, text):
                due[partition] = Committed(found.base, text)
        self.full = frozenset(full)
        return due

    def _metadata(self, found: CommitMap, mark: str, held: Assignment) -> tuple[str, bool]:
        """Return what is committed beside a position, and whether the whole map went in. The mark may have to stay out.

        It also does where partitions are handed over with nothing on its way, and the map says something: nobody will
        have to look for an outcome, and a member of a version that knows no marks can read the map. The mark that the
        partition came with stays: what it is for may not have been found yet.
        """
        text, whole = self._text(found)
        needless = self._handing_over and text and held.findings is None and mark != held.mark
        marked = with_mark(text, mark)
        return text if needless or len(marked) > self._limit else marked, whole
