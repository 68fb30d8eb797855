"""The journal: outcomes that stood in the output topics already when a partition was taken over.

A worker that is killed leaves requests whose response is in the cluster and whose offset is not committed. Whoever
takes their partition over reads the output topics back, from the mark that came with the commit, while the partition is
still paused; what has its outcome is settled when it is received, without a call.

`Journal` is used by the consumer thread; the reading is done by a thread of its own, so that other partitions go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from gigaoffice_worker.broker.verification import TopicReport
from gigaoffice_worker.core.journal import Floor, Floors, Mark, MarkError, Place
from gigaoffice_worker.core.messages import answerable_id
from gigaoffice_worker.core.records import Outcome
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.journal_reader import Answer, JournalReader, Query, Skipped
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# Without a mark nothing is looked for but the ends of the output topics, for the marks to come.
_WITHOUT_MARK: Final = 2.0


class Journal:
    """What is known of the outcomes of partitions that were taken over, and the marks for whoever takes them next.

    `timeout` is how many seconds a partition waits for the reading at most. For the consumer thread, except `know`.
    """

    def __init__(
        self,
        reader: JournalReader,
        floors: Floors,
        metrics: Metrics,
        *,
        on: bool,
        timeout: float,
        max_request_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._floors = floors
        self._metrics = metrics
        self._wanted = on
        self._timeout = timeout
        self._max_request_bytes = max_request_bytes
        self._clock = clock
        self._permitted = True
        self._waiting: dict[Assignment, Query] = {}
        # How many partitions the topics have, as the last verification found it.
        self.request_partitions = 0
        self._responses: tuple[Place, ...] = ()
        self._dead_letters: tuple[Place, ...] = ()

    def know(self, report: TopicReport, requests: str, responses: str, dead_letters: str) -> None:
        """Take note of the topics' partitions, and of what we may do with them."""
        self.request_partitions = report.partitions.get(requests, 0)
        self._responses = _places(report, responses)
        self._dead_letters = _places(report, dead_letters) if _readable(report, dead_letters) else ()
        permitted = _readable(report, responses)
        if self._wanted and self._permitted and not permitted:
            log.warning(
                "The journal is off: without READ on the response topic a crash repeats calls that were answered",
                topic=responses,
                hint=f"grant the user READ on the topic {responses}, or set WORKER_JOURNAL=off",
            )
        self._permitted = permitted

    @property
    def on(self) -> bool:
        return self._wanted and self._permitted

    # When a partition is taken over

    def ask(self, assignment: Assignment, mark: str) -> None:
        """Look for outcomes of a partition that was just taken over, from the mark on that came with its commit."""
        if not self.on or not self._responses:
            return
        found = None
        if mark:
            try:
                found = Mark.decode(mark)
            except MarkError:
                self._give_up(assignment, Skipped.DAMAGED)
        assignment.mark = mark if found else ""
        now = self._clock()
        until = now + (self._timeout if found else min(self._timeout, _WITHOUT_MARK))
        answered = self._where_answered(assignment.partition)
        query = Query(assignment, found, self._responses, self._dead_letters, answered, now, until)
        self._waiting[assignment] = query
        self._reader.ask(query)

    def waits(self, assignment: Assignment) -> bool:
        """Say whether a partition is not to be read yet."""
        return assignment in self._waiting

    def hear(self) -> bool:
        """Take what the reading has brought, and give up what takes too long; True when that ends a wait."""
        if not self._waiting:
            return False
        before, now = len(self._waiting), self._clock()
        for answer in self._reader.answers():
            self._take(answer)
        for query in list(self._waiting.values()):
            if query.assignment.lost:
                del self._waiting[query.assignment]
            elif now > query.until:
                self._take(Answer(query, skipped=Skipped.TIMEOUT))
        return len(self._waiting) < before

    def _take(self, answer: Answer) -> None:
        query = answer.query
        if self._waiting.pop(query.assignment, None) is None:
            return  # It was given up, or is lost.
        self._floors.raise_to(answer.ends)
        if answer.skipped is not None and query.mark is not None:
            self._give_up(query.assignment, answer.skipped)
        if answer.findings is not None:
            seconds = self._clock() - query.asked_at
            self._metrics.journal_read.observe(seconds)
            query.assignment.findings = answer.findings or None
            if answer.findings:
                facts = {"partition": query.assignment.partition, "answered": len(answer.findings)}
                log.info("Outcomes found in the journal", **facts, seconds=round(seconds, 3))

    def _give_up(self, assignment: Assignment, reason: Skipped) -> None:
        self._metrics.journal_skipped.labels(reason.value).inc()
        log.warning(
            "The journal is not read: calls that were answered and not committed are repeated",
            partition=assignment.partition,
            reason=reason.value,
        )

    # When its requests are received

    def look_up(self, works: Iterable[Work]) -> dict[Work, Outcome | None]:
        """Return the requests that have an outcome: None for a whole one, else the one whose response is missing."""
        known: dict[Work, Outcome | None] = {}
        for work in works:
            findings = work.assignment.findings
            if findings is None:
                continue
            if findings.answered(work.record):
                known[work] = None
            elif dead := findings.dead_letter(work.record):
                work.id, work.attempt = answerable_id(work.record, self._max_request_bytes), dead.attempts
                # It runs in its turn, without a call: an earlier request of its key may have no response yet either.
                work.owed = dead.outcome if work.id else None
                work.worth_until = math.inf  # its end has come, whatever it would be worth now
                known[work] = work.owed
        return known

    # When something is committed

    def marks(self, assignments: Mapping[int, Assignment], unsettled: Mapping[Assignment, Floor]) -> dict[int, str]:
        """Return the marks to be committed, by partition; `unsettled` holds the oldest floor of what is on its way."""
        if not self.on:
            return {}
        newest, marks = self._floors.now, {}
        for partition, held in assignments.items():
            if self.waits(held) or (held.findings is not None and held.tracker.position < held.findings.end):
                # What was found and is not received yet must be found again by the next one.
                marks[partition] = held.mark
                continue
            mark = unsettled.get(held, newest).mark(self._where_answered(partition), self._dead_letters)
            if held.findings is not None and not _owes_a_response(held):
                held.findings = None
            if mark is None:
                continue
            if held.findings is not None:
                # And so must a dead letter whose response is not written yet.
                mark = Mark(mark.responses, Mark.decode(held.mark).dead_letters)
            marks[partition] = mark.encode()
        return marks

    def _where_answered(self, partition: int) -> tuple[Place, ...]:
        """Return the partitions to which the responses of a request partition go; see `Delivery.deliver`."""
        if len(self._responses) == self.request_partitions > partition:
            return (self._responses[partition],)
        return self._responses


def _owes_a_response(held: Assignment) -> bool:
    """Say whether a request in hand waits for the response to a dead letter that was found."""
    return any(work.owed is not None for work in held.tracker)


def _places(report: TopicReport, topic: str) -> tuple[Place, ...]:
    return tuple((topic, partition) for partition in range(report.partitions.get(topic, 0)))


def _readable(report: TopicReport, topic: str) -> bool:
    """Say whether we may read a topic; a cluster that does not say so lets everybody."""
    operations = report.operations.get(topic)
    return not operations or bool({"READ", "ALL"} & operations)
