"""The thread that reads the output topics back for partitions that were taken over."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import structlog

from gigaoffice_worker.broker.errors import OutOfRangeError
from gigaoffice_worker.broker.log_reader import LogReader
from gigaoffice_worker.core.dedupe import Answers, read_answer
from gigaoffice_worker.core.errors import AccessError
from gigaoffice_worker.core.journal import MOST_RECORDS, Findings, Mark, Place
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.core.work import Assignment

log = structlog.get_logger(__name__)

_POLL: Final = 0.1
_LOOK_AGAIN: Final = 0.25


class Skipped(StrEnum):
    """Why the journal of a partition was not read."""

    DAMAGED = "mark-damaged"
    OUTSIDE = "mark-outside-log"
    TOO_MUCH = "too-many-records"
    TIMEOUT = "timeout"
    NOT_PERMITTED = "not-permitted"
    FAILED = "failed"


@dataclass(eq=False, frozen=True, slots=True)
class Query:
    """What is to be looked for: outcomes of a partition from `mark` on (None: nothing but the ends of the logs).

    `responses` and `dead_letters` are all partitions of the two topics, `answered` those that responses to this
    partition go to. Times are of the monotonic clock.
    """

    assignment: Assignment
    mark: Mark | None
    responses: Sequence[Place]
    dead_letters: Sequence[Place]
    answered: Sequence[Place]
    asked_at: float
    until: float

    @property
    def begins(self) -> dict[Place, int]:
        """Where the reading begins, by partition."""
        if self.mark is None:
            return {}
        topics = ((self.responses, self.mark.responses), (self.dead_letters, self.mark.dead_letters))
        return {
            (places[0][0], partition): offset
            for places, offsets in topics
            if places
            for partition, offset in offsets.items()
        }

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.assignment.lost or time.monotonic() > self.until


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a query: where the logs end, and what was found or why nothing was looked for."""

    query: Query
    ends: Mapping[Place, int] = field(default_factory=dict)
    findings: Findings | None = None
    skipped: Skipped | None = None


class JournalReader:
    """Answers queries one batch after the other, each over a client of its own that is closed again.

    `open_reader` makes a client, bounded by so many seconds. `died` hears of the thread's end. `remembered` is filled
    with what was answered lately.
    """

    def __init__(
        self,
        open_reader: Callable[[float], LogReader],
        died: Callable[[BaseException], None],
        remembered: Answers | None = None,
    ) -> None:
        self._open = open_reader
        self._remembered = remembered
        self._died = died
        self._queries: queue.SimpleQueue[Query | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._stopping = False
        self.thread = threading.Thread(target=self._run, name="journal", daemon=True)

    # Life

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._queries.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the thread; False when it is still alive after `timeout` seconds."""
        if self.thread.ident is not None:
            self.thread.join(timeout)
        return not self.thread.is_alive()

    # For the consumer thread

    def ask(self, query: Query) -> None:
        self._queries.put(query)

    def answers(self) -> Iterable[Answer]:
        """Yield the answers that have come since the last call."""
        while not self._answers.empty():
            yield self._answers.get()

    # The thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                first = self._queries.get()
                queries = [first, *self._more()]
                self._serve([query for query in queries if query is not None and not query.over])
        except BaseException as error:  # noqa: BLE001  # a thread of ours that dies takes the process down
            self._died(error)

    def _more(self) -> Iterable[Query | None]:
        while not self._queries.empty():
            yield self._queries.get()

    def _serve(self, queries: list[Query]) -> None:
        """Answer queries as well as it goes."""
        if not queries or self._stopping:
            return
        left = max(query.until for query in queries) - time.monotonic()
        batch = Batch(queries, self._answers.put, self._remembered, stopping=lambda: self._stopping)
        try:
            with self._open(max(0.1, left)) as reader:
                batch.read(reader)
        except AccessError as error:
            batch.give_up(Skipped.NOT_PERMITTED, error)
        except OutOfRangeError as error:
            batch.give_up(Skipped.OUTSIDE, error)
        except Exception as error:  # noqa: BLE001  # no error of the network ends a worker, and calls may be repeated
            batch.give_up(Skipped.FAILED, error)


class Batch:
    """Queries that are answered by one reading: partitions share output partitions, or at least the fetches."""

    def __init__(
        self,
        queries: Iterable[Query],
        answer: Callable[[Answer], None],
        remembered: Answers | None = None,
        *,
        stopping: Callable[[], bool],
    ) -> None:
        self._remembered = remembered
        self._since: dict[Place, int] = {}
        self._open = list(queries)
        self._answer = answer
        self._stopping = stopping
        self._starts: dict[Place, int] = {}
        self._ends: dict[Place, int] = {}

    def give_up(self, reason: Skipped, error: Exception) -> None:
        """Answer what is not answered."""
        log.info("Reading the journal failed", reason=reason.value, error=str(error))
        for query in self._open:
            self._answer(Answer(query, self._ends, skipped=reason))
        self._open = []

    def read(self, reader: LogReader) -> None:
        """Answer the queries; one of which a partition has no leader waits for it, behind the others."""
        while self._open and not self._stopping():
            self._look(reader)
            ready = [query for query in self._open if query.begins.keys() <= self._ends.keys()]
            if ready:
                self._read(reader, [query for query in ready if self._worth_reading(query)])
            else:
                time.sleep(_LOOK_AGAIN)
            self._open = [query for query in self._open if not query.over]

    def _look(self, reader: LogReader) -> None:
        """Find out how far the logs reach."""
        everywhere = {place for query in self._open for place in (*query.responses, *query.dead_letters)}
        if missing := everywhere - self._ends.keys():
            self._ends |= reader.ends(missing)
        if self._remembered is not None:
            places = {place for query in self._open for place in query.answered if place in self._ends}
            if unknown := places - self._since.keys():
                found = reader.since(unknown, time.time() - self._remembered.window)
                self._since |= {place: found.get(place, self._ends[place]) for place in unknown}
        begun = {place for query in self._open for place in query.begins} - self._starts.keys()
        if begun:
            self._starts |= reader.starts(begun)

    def _worth_reading(self, query: Query) -> bool:
        """Answer a query for which nothing is to be read; say whether it is another one."""
        spans = [(self._starts.get(place, 0), begin, self._ends[place]) for place, begin in query.begins.items()]
        skipped = None
        if any(not start <= begin <= end for start, begin, end in spans):
            skipped = Skipped.OUTSIDE
        elif sum(end - begin for _, begin, end in spans) > MOST_RECORDS:
            skipped = Skipped.TOO_MUCH
        if skipped is None and any(begin < self._ends[place] for place, begin in self._begins(query).items()):
            return True
        findings = None if skipped or query.mark is None else _nothing(query)
        self._done(Answer(query, self._ends, findings, skipped))
        return False

    def _begins(self, query: Query) -> dict[Place, int]:
        """Return where the reading begins: at the mark, or before it where what was answered lately is remembered."""
        begins = query.begins
        for place in query.answered if self._remembered is not None else ():
            if place in self._since:
                end = self._ends[place]
                lately = max(self._since[place], end - MOST_RECORDS // len(query.answered))
                begins[place] = min(lately, begins.get(place, end))
        return begins

    def _done(self, answer: Answer) -> None:
        self._open.remove(answer.query)
        self._answer(answer)

    def _read(self, reader: LogReader, queries: list[Query]) -> None:
        """Read all that these queries ask for, and answer each when its own is read."""
        begins: dict[Place, int] = {}
        for query in queries:
            for place, begin in self._begins(query).items():
                begins[place] = min(begin, begins.get(place, begin))
        reader.read_from({place: begin for place, begin in begins.items() if begin < self._ends[place]})
        found = {query: _nothing(query) for query in queries}
        while found and not self._stopping():
            records = reader.poll(_POLL)
            for query, findings in found.items():
                self._note(findings, records, query)
            for query in [query for query in found if self._is_read(reader, query)]:
                findings = found.pop(query)
                self._done(Answer(query, self._ends, findings if query.mark is not None else None))
            found = {query: findings for query, findings in found.items() if not query.over}

    def _is_read(self, reader: LogReader, query: Query) -> bool:
        return all(
            begin >= self._ends[place] or (reader.position(place) or 0) >= self._ends[place]
            for place, begin in self._begins(query).items()
        )

    def _note(self, findings: Findings, records: Sequence[Record], query: Query) -> None:
        responses, held = query.responses[0][0], query.assignment
        for record in records:
            if record.topic != responses:
                findings.add_dead_letter(record)
                continue
            findings.add_response(record)
            if self._remembered is not None and (answer := read_answer(record, held.topic, held.partition)):
                self._remembered.restore(answer)


def _nothing(query: Query) -> Findings:
    held = query.assignment
    return Findings(held.topic, held.partition, held.committed)
