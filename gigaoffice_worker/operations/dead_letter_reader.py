"""Reading the dead letter topic, from one offset to another that is fixed when reading begins."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Final, NamedTuple, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from gigaoffice_worker.broker.admin import require_topics
from gigaoffice_worker.broker.clients import open_consumer
from gigaoffice_worker.broker.error_table import to_worker_error
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.dead_letters import Filters, Moment, Span, progressed
from gigaoffice_worker.core.errors import AccessError, UnreachableError, WorkerError
from gigaoffice_worker.core.records import Record

_NAME: Final = "dlq"
_AT_ONCE: Final = 100
"""Records in one batch."""
_REQUEST_MS: Final = (2000, 60_000)
"""Limits for one request to a broker: at least, at most."""
_LOOK: Final = 0.25
_CLOSE_LIMIT: Final = 1.0


class Batch(NamedTuple):
    """Dead letters that were read together, and behind them the position of each partition."""

    records: list[Record]
    positions: dict[int, int]


class DeadLetterReader:
    """The dead letter topic, to be read in spans: a context manager, for one thread.

    Entering it finds the cluster and the topic; nothing is created and no group is joined. With `group`, that group's
    committed offsets can be read and written. `timeout` in seconds is the longest silence of the cluster that is put up
    with. Raises WorkerErrors only.
    """

    def __init__(self, config: Config, timeout: float, *, group: str | None = None) -> None:
        self.topic = config.topics.dlq.name
        self.partitions: list[int] = []
        self._config = config
        self._timeout = timeout
        self._group = group
        self._stack = contextlib.ExitStack()
        self._client: KafkaConsumer

    def __enter__(self) -> Self:
        least, most = _REQUEST_MS
        request_ms = min(most, max(least, self._limit_ms()))
        self.partitions = list(range(require_topics(self._config, {self.topic: "READ"}, self._timeout)[self.topic]))
        changes = {
            "group_id": self._group,
            "group_instance_id": None,
            "client_id": f"{self._config.kafka.client_id}-{_NAME}",
            "request_timeout_ms": request_ms,
            # There is no session, since no group is joined; but the client compares these with the line above.
            "session_timeout_ms": request_ms // 2,
            "heartbeat_interval_ms": request_ms // 6,
            "max_poll_interval_ms": request_ms,
            "max_poll_records": _AT_ONCE,
            "auto_offset_reset": "earliest",  # only if dead letters expire while they are read
        }
        self._client = open_consumer("connecting to read dead letters", self._config, self._timeout, **changes)
        self._stack.callback(self._client.close, autocommit=False, timeout_ms=round(_CLOSE_LIMIT * 1000))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def spans(self, filters: Filters, committed: Mapping[int, int] | None = None) -> dict[int, Span]:
        """Return what has to be looked at, partition by partition: what is there now, behind `committed`.

        The times of `filters` are used to skip what cannot match. The end keeps to an `until` that moves, so that what
        it excludes now is not taken for looked at later.
        """
        wanted = [each for each in self.partitions if not filters.partitions or each in filters.partitions]
        log = self.log(wanted)
        spans = {each: progressed(span, (committed or {}).get(each)) for each, span in log.items()}
        if filters.since:
            first = self._first_at(filters.since, wanted)
            spans = {each: Span(max(begin, first.get(each, end)), end) for each, (begin, end) in spans.items()}
        if filters.until and filters.until.moves:
            first = self._first_at(filters.until, wanted)
            spans = {each: Span(begin, min(end, first.get(each, end))) for each, (begin, end) in spans.items()}
        return spans

    def log(self, wanted: list[int]) -> dict[int, Span]:
        """Return which offsets the partitions hold."""
        places = [TopicPartition(self.topic, each) for each in wanted]
        with self._telling("looking for the ends of the dead letter topic"):
            begins, ends = self._client.beginning_offsets(places), self._client.end_offsets(places)
        return {place.partition: Span(begins[place], ends[place]) for place in places}

    def batches(self, spans: Mapping[int, Span]) -> Iterator[Batch]:
        """Yield the dead letters of these spans; a span ends where the position has reached its end."""
        ends = {each: span.end for each, span in spans.items() if span.begin < span.end}
        with self._telling("reading dead letters"):
            self._client.assign([self._at(each) for each in ends])
            for each in ends:
                self._client.seek(self._at(each), spans[each].begin)
        before, idle = {each: spans[each].begin for each in ends}, 0.0
        while ends:
            started = time.monotonic()
            batch = self._poll(ends)
            idle = idle + time.monotonic() - started if batch.positions == before else 0.0
            if idle > self._timeout:
                raise _silent(self._timeout)
            yield batch
            finished = [each for each, end in ends.items() if batch.positions[each] >= end]
            ends = {each: end for each, end in ends.items() if each not in finished}
            before = {each: batch.positions[each] for each in ends}
            self._client.pause(*(self._at(each) for each in finished))

    def _poll(self, ends: Mapping[int, int]) -> Batch:
        with self._telling("reading dead letters"):
            found = self._client.poll(timeout_ms=round(_LOOK * 1000))
            # Not only dead letters move positions: the last offsets may have been compacted away, or be markers.
            positions = {each: min(self._position(each), end) for each, end in ends.items()}
        records = (each for batch in found.values() for each in batch)
        return Batch([each for each in records if each.offset < ends.get(each.partition, 0)], positions)

    def committed(self) -> dict[int, int]:
        """Return the group's committed offsets, where it has any."""
        with self._telling("reading the progress of the replay"):
            found = {
                each: self._client.committed(self._at(each), timeout_ms=self._limit_ms()) for each in self.partitions
            }
        return {each: offset for each, offset in found.items() if offset is not None}

    def commit(self, positions: Mapping[int, int]) -> None:
        """Commit positions for the group."""
        offsets = {self._at(each): OffsetAndMetadata(position, "", -1) for each, position in positions.items()}
        with self._telling("storing the progress of the replay"):
            self._client.commit(offsets, timeout_ms=self._limit_ms())

    def _first_at(self, moment: Moment, wanted: list[int]) -> dict[int, int]:
        """Return the first offset that is not older than `moment`, where there is one."""
        asked = {self._at(each): max(0, math.ceil(moment.at * 1000)) for each in wanted}
        with self._telling("looking for a time in the dead letter topic"):
            found = self._client.offsets_for_times(asked)
        return {place.partition: at.offset for place, at in found.items() if at is not None}

    def _position(self, partition: int) -> int:
        return int(self._client.position(self._at(partition), timeout_ms=self._limit_ms()))

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic, partition)

    def _limit_ms(self) -> int:
        return round(self._timeout * 1000)

    @contextlib.contextmanager
    def _telling(self, during: str) -> Iterator[None]:
        try:
            yield
        except WorkerError:
            raise
        except Exception as error:
            told = to_worker_error(error, during)
            if isinstance(told, AccessError):
                group = f", and READ on the group {self._group}" if self._group else ""
                told = AccessError(str(told), hint=f"Grant the user READ on the topic {self.topic}{group}.")
            raise told from error


def _silent(timeout: float) -> UnreachableError:
    return UnreachableError(
        f"reading dead letters: nothing came for {timeout:g} s, though there is more",
        hint="Check that the brokers run.",
    )
