"""Putting dead letters back on the request topic, and remembering in a consumer group how far that has come."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from gigaoffice_worker.config import Config
from gigaoffice_worker.core.dead_letters import (
    Examined,
    Facts,
    Fate,
    Filters,
    Span,
    facts,
    names_all_nulls,
    replay_headers,
)
from gigaoffice_worker.core.errors import UnreachableError, WorkerError
from gigaoffice_worker.core.records import Record, Source
from gigaoffice_worker.operations.dead_letter_reader import DeadLetterReader
from gigaoffice_worker.operations.request_writer import RequestWriter

_COMMIT_INTERVAL: Final = 1.0
_MOST_UNACKNOWLEDGED: Final = 200
_MOST_BYTES: Final = 8 * 1024 * 1024
_GRACE: Final = 2.0
"""Seconds that the client has, behind its own limit, to say that this was reached."""
_LAST_WAIT: Final = 5.0
"""Seconds for what is under way when a replay is broken off."""
_LOOK: Final = 0.25


class Replay:
    """One run over the dead letters that the filters mean: a context manager, for one thread. Raises WorkerErrors only.

    What is looked at is fixed when it is entered: from where the group of the filters has come to (`restart`: from the
    beginning) to the end of the topic. The group's position never passes a record that is not acknowledged, skipped or
    refused. A `dry_run` writes and commits nothing.
    """

    def __init__(
        self,
        config: Config,
        filters: Filters,
        *,
        timeout: float,
        max_replays: int,
        rate: float | None = None,
        restart: bool = False,
        dry_run: bool = False,
    ) -> None:
        topics = config.topics
        self.group = filters.group(config.consumer.group, topics.dlq.name, topics.requests.name)
        self.spans: dict[int, Span] = {}
        self.resumed = False
        self.filters = filters
        self._timeout = timeout
        self._max_replays = max_replays
        self._restart = restart
        self._dry_run = dry_run
        self._reader = DeadLetterReader(config, timeout, group=self.group)
        self._writer = RequestWriter(config, timeout)
        self._pace = _Pace(rate)
        self._stack = contextlib.ExitStack()
        self._committed: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self._under_way: dict[Source, _UnderWay] = {}
        self._settled: deque[Examined] = deque()
        self._settle_at = 0.0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._reader)
            self._committed = self._reader.committed()
            self.resumed = bool(self._committed) and not self._restart
            self.spans = self._reader.spans(self.filters, None if self._restart else self._committed)
            if not self._dry_run:
                stack.enter_context(self._writer)
                self._commit({each: span.begin for each, span in self.spans.items()})
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if self._under_way or not isinstance(exc, WorkerError):
                # Broken off: what the cluster still acknowledges need not be repeated, nor what it has acknowledged
                # where an interrupt came in the middle of the commit.
                with contextlib.suppress(WorkerError):
                    self._settle(_LAST_WAIT)

    @property
    def partitions(self) -> list[int]:
        """The partitions of the dead letter topic."""
        return self._reader.partitions

    @property
    def left(self) -> int:
        """How many offsets have not been looked at yet."""
        return sum(max(0, span.end - self._positions.get(each, span.begin)) for each, span in self.spans.items())

    def run(self, waiting: Callable[[], None] = lambda: None) -> Iterator[Examined]:
        """Go over the dead letters, and yield what became of each that is meant; `waiting` is called now and then."""
        self._settle_at = time.monotonic() + _COMMIT_INTERVAL
        for batch in self._reader.batches(self.spans):
            for record in batch.records:
                yield from self._look_at(record, waiting)
                yield from self._settle_if_due()
            self._positions |= batch.positions
            waiting()
            yield from self._settle_if_due()
        yield from self._settle_all()

    def left_over(self) -> Iterator[Examined]:
        """Yield what `run` has not: after a replay that was broken off, what was under way and came through."""
        while self._settled:
            yield self._settled.popleft()

    def _look_at(self, record: Record, waiting: Callable[[], None]) -> Iterator[Examined]:
        said = facts(record)
        if self.filters.match(said):
            if said.replays >= self._max_replays:
                yield Examined(said, Fate.SKIPPED)
            elif self._dry_run:
                yield Examined(said, Fate.REPLAYED)
            else:
                if self._pace.wait_ahead() > _COMMIT_INTERVAL:
                    yield from self._settle_all()
                self._pace.wait(waiting)
                self._send(record, said)
        self._positions[record.partition] = record.offset + 1

    def _send(self, record: Record, said: Facts, *, smallest: bool = False) -> None:
        under_way = self._under_way[record.source] = _UnderWay(record, said)
        # What is under way holds the commit back, so an interrupt in the middle of sending may find it passed.
        self._positions[record.partition] = max(self._positions.get(record.partition, 0), record.offset + 1)
        under_way.nulls_lost = not self._writer.send(
            record, replay_headers(record), smallest=smallest
        ) or not names_all_nulls(record)

    # Acknowledgements first, then the commit

    def _settle_if_due(self) -> Iterator[Examined]:
        held = sum(each.record.size for each in self._under_way.values())
        full = len(self._under_way) >= _MOST_UNACKNOWLEDGED or held >= _MOST_BYTES
        if full or time.monotonic() >= self._settle_at:
            yield from self._settle_all()

    def _settle_all(self) -> Iterator[Examined]:
        error = self._settle(self._timeout + _GRACE)
        yield from self.left_over()
        if error:
            self._under_way.clear()  # nothing more will be heard of them
            raise error

    def _settle(self, limit: float) -> WorkerError | None:
        """Wait for everything under way, commit what is certain, and return what went wrong."""
        error = self._collect(limit)
        if not self._dry_run:
            self._commit(self._certain())
        self._settle_at = time.monotonic() + _COMMIT_INTERVAL
        return error

    def _collect(self, limit: float) -> WorkerError | None:
        """Take acknowledged and refused dead letters off those under way; what fails otherwise stays there."""
        too_large: list[Source] = []
        failed: list[WorkerError] = []
        until = time.monotonic() + limit
        while len(self._under_way) > len(too_large) + len(failed):
            sent = self._writer.next(until - time.monotonic())
            if sent is None:
                return failed[0] if failed else _not_acknowledged(self._under_way, limit)
            if sent.too_large:
                too_large.append(sent.source)
            elif sent.error:
                failed.append(sent.error)
            else:
                self._settled.append(self._under_way.pop(sent.source).outcome(Fate.REPLAYED))
        # A batch is refused as a whole, so each dead letter of it gets a chance of its own.
        for source in too_large if not failed else ():
            error = self._send_alone(source, limit)
            if error:
                return error
        return failed[0] if failed else None

    def _send_alone(self, source: Source, limit: float) -> WorkerError | None:
        under_way = self._under_way[source]
        # Its topic took it from somebody who packed it better than we do, maybe.
        self._send(under_way.record, under_way.said, smallest=True)
        sent = self._writer.next(limit)
        if sent is None:
            return _not_acknowledged(self._under_way, limit)
        if sent.error and not sent.too_large:
            return sent.error
        fate = Fate.REFUSED if sent.too_large else Fate.REPLAYED
        self._settled.append(self._under_way.pop(source).outcome(fate))
        return None

    def _certain(self) -> dict[int, int]:
        """Return the positions that nothing under way lies before."""
        certain = dict(self._positions)
        for source in self._under_way:
            certain[source.partition] = min(certain.get(source.partition, source.offset), source.offset)
        return certain

    def _commit(self, positions: dict[int, int]) -> None:
        news = {each: position for each, position in positions.items() if self._committed.get(each) != position}
        if not news:
            return
        if self._reader.committed() != self._committed:
            raise WorkerError(
                "another replay with the same filters is running, so this one ends",
                hint="What both had in hand may have been put back twice. Let one of them finish.",
            )
        self._reader.commit(news)
        self._committed |= news


@dataclass(slots=True)
class _UnderWay:
    """A dead letter that is handed over and neither acknowledged nor refused."""

    record: Record
    said: Facts
    nulls_lost: bool = False

    def outcome(self, fate: Fate) -> Examined:
        return Examined(self.said, fate, self.nulls_lost and fate is Fate.REPLAYED)


class _Pace:
    """So many a second, evenly: what was not used is not made up for."""

    def __init__(self, rate: float | None) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._due = 0.0

    def wait_ahead(self) -> float:
        """Return the seconds until the next may go."""
        return max(0.0, self._due - time.monotonic())

    def wait(self, waiting: Callable[[], None]) -> None:
        """Wait until the next may go, and take it as gone."""
        while (ahead := self.wait_ahead()) > 0:
            time.sleep(min(ahead, _LOOK))
            waiting()
        self._due = time.monotonic() + self._interval


def _not_acknowledged(under_way: Collection[Source], limit: float) -> UnreachableError:
    return UnreachableError(
        f"the cluster did not acknowledge {len(under_way)} dead letter(s) in {limit:g} s, and may have written them",
        hint="Run the command again: it goes on before the first of them.",
    )
