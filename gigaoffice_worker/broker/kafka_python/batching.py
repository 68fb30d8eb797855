"""Appending records straight to the batches of the client's producer, and when a batch leaves.

The client's own `send` takes a future and a dozen checks for each record: without this the worker reaches 0.64 of a
plain loop's throughput instead of all of it, and takes 80 µs of CPU a record instead of 47.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.partitioner import DefaultPartitioner
from kafka.producer.producer_batch import ProducerBatch

from gigaoffice_worker.broker.errors import HeldBackError, TopicUnavailableError
from gigaoffice_worker.broker.kafka_python.open_records import OpenRecords
from gigaoffice_worker.broker.kafka_python.sender import is_broken
from gigaoffice_worker.core.records import OutgoingRecord

# Milliseconds between requests, at least, unless the configuration asks for none: handlers take many times as long.
_APART = 4

# Called with the partition and the offset that the record has got; the offset is -1 where nobody acknowledges.
Acknowledged = Callable[[int, int], None]
Failed = Callable[[BaseException], None]

# (index in the batch, on acknowledged, on failed)
_Receipt = tuple[int, Acknowledged, Failed]


class BatchSpacing:
    """When the next batch leaves: at once if none has for a while, else `apart` milliseconds behind the last one.

    A request takes the sender as much time as dozens of records. The client's way, to let each batch linger, would keep
    a response waiting that comes alone.
    """

    def __init__(self, apart: float) -> None:
        self.apart = apart
        self._last = -math.inf

    def leaves_at(self, now: float) -> float:
        """Return when a batch leaves that begins at `now`: together with those that wait already."""
        if now > self._last:
            self._last = max(now, self._last + self.apart)
        return self._last


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """One of the client's batches while records are added to it, and whom to tell of those that we added.

    `queue` holds what waits for the sender in the partition, and `lock` is the client's own of that partition.
    """

    batch: Any
    queue: deque[Any]
    lock: threading.Lock
    on_failure: Callable[[TopicPartition], None]
    receipts: list[_Receipt] = field(default_factory=list)

    def add(self, record: OutgoingRecord, acknowledged: Acknowledged, failed: Failed) -> bool:
        """Add a record, under the lock; False when the batch is full, on its way, or not the newest any more."""
        if not self.queue or self.queue[-1] is not self.batch:
            return False
        place = self.batch.records.add(record.key, record.value, record.headers)
        if place is None:
            return False
        self.receipts.append((place, acknowledged, failed))
        return True

    def answered(self, answer: tuple[int, int, Callable[[int], BaseException] | None]) -> None:
        """Tell each record what became of it; called once, on the client's thread."""
        first, _, error_of = answer
        partition = self.batch.topic_partition.partition
        if error_of is not None:
            self.on_failure(self.batch.topic_partition)
        for number, acknowledged, failed in self.receipts:
            if error_of is None:
                acknowledged(partition, first + number if first >= 0 else -1)
            else:
                failed(error_of(number))
        # This batch stays the newest of its partition until the next record comes, and would keep their requests alive.
        self.receipts.clear()


class BatchWriter:
    """The appending half of one producer. Thread-safe.

    With `in_order`, a batch that fails for good takes back the newer ones of its partition, which would pass it, and
    nothing is sent there before `go_on`.
    """

    def __init__(self, client: KafkaProducer, *, in_order: bool) -> None:
        self._client = client
        self._in_order = in_order
        self._accumulator = client._accumulator
        # The newest batch of each partition, and the partitions where one failed; each guarded by the client's own lock
        # of the partition.
        self._open: dict[TopicPartition, OpenBatch] = {}
        self._halted: set[TopicPartition] = set()
        settings = self._accumulator.config
        self._spacing = BatchSpacing(settings["linger_ms"] and max(settings["linger_ms"], _APART))
        settings["linger_ms"] = self._spacing.apart
        self._largest: int = settings["batch_size"]

    def limit(self, size: int) -> None:
        """Begin no batch of several records that is larger than `size` bytes, from now on."""
        self._accumulator.config["batch_size"] = min(self._largest, size)

    def send(self, record: OutgoingRecord, acknowledged: Acknowledged, failed: Failed, *, smallest: bool) -> None:
        """Add a record to the newest batch of its partition, or to a new one, as the client's `send` does.

        That is, less what that costs: checks, and a future for each record. With `smallest` it gets a batch of its own,
        packed as small as can be. Raises TopicUnavailableError, HeldBackError behind a batch that failed, and
        RuntimeError once stopped.
        """
        opened = None if smallest else self._open.get((record.topic, record.partition))
        if opened is not None:
            with opened.lock:
                if opened.add(record, acknowledged, failed):
                    return
        if record.size > self._client.config["max_request_size"]:
            failed(kafka_errors.MessageSizeTooLargeError(f"a record of {record.size} bytes"))
        else:
            self._append(record, acknowledged, failed, smallest=smallest)

    def _append(self, record: OutgoingRecord, acknowledged: Acknowledged, failed: Failed, *, smallest: bool) -> None:
        at = TopicPartition(record.topic, self._partition_of(record))
        with self._accumulator._tp_lock(at):
            if self._accumulator._closed:
                message = "the producer was stopped"
                raise RuntimeError(message)
            if at in self._halted:
                message = "an older record of the partition failed"
                raise HeldBackError(message)
            # Another thread may have begun a batch meanwhile.
            opened = None if smallest else self._open.get(at)
            if opened is None or not opened.add(record, acknowledged, failed):
                opened = self._open[at] = self._begin_batch(at, smallest=smallest)
                opened.add(record, acknowledged, failed)
        # Only now has the sender something to decide.
        self._wake_the_sender(at)

    def go_on(self) -> None:
        """Send again where a batch failed: what was taken back comes in its order, so nothing passes it."""
        self._halted.clear()

    def _halt(self, at: TopicPartition) -> None:
        """Take back what waits in a partition behind a batch that failed; called on the client's thread.

        The partition has no other batch on the wire, as long as the client keeps one request in flight.
        """
        if not self._in_order or is_broken(self._client):
            return
        accumulator = self._accumulator
        with accumulator._tp_lock(at):
            self._halted.add(at)
            waiting = list(accumulator._batches[at])
            accumulator._batches[at].clear()
        for batch in waiting:
            accumulator.deallocate(batch)
            batch.abort(HeldBackError("an older record of the partition failed"))

    def _partition_of(self, record: OutgoingRecord) -> int:
        """Return the partition that a record asks for, or what the client chooses where the topic has no such.

        Waits for a topic that the client does not know. Raises TopicUnavailableError.
        """
        try:
            known = self._client.partitions_for(record.topic)
        except kafka_errors.KafkaTimeoutError:
            known = None
        if not known:
            message = f"no metadata for topic {record.topic}: is it there, and are we allowed to see it?"
            raise TopicUnavailableError(message)
        if record.partition is not None and record.partition in known:
            return record.partition
        available = self._client._metadata.available_partitions_for_topic(record.topic) or known
        return int(DefaultPartitioner()(record.key, sorted(known), sorted(available)))

    def _begin_batch(self, at: TopicPartition, *, smallest: bool) -> OpenBatch:
        """Put an empty batch behind those that wait in a partition, whose lock is held."""
        accumulator = self._accumulator
        compression, size = accumulator.config["compression_attrs"], accumulator.config["batch_size"]
        records = OpenRecords(compression, 0 if smallest else size, smallest=smallest)
        batch, queue = ProducerBatch(at, records), accumulator._batches[at]
        # The client lets a batch go when it has lingered since then.
        batch.last_attempt = (self._spacing.leaves_at(batch.created * 1000) - self._spacing.apart) / 1000
        opened = OpenBatch(batch, queue, accumulator._tp_lock(at), self._halt)
        batch.produce_future.add_callback(opened.answered)
        queue.append(batch)
        accumulator._incomplete.add(batch)
        return opened

    def _wake_the_sender(self, at: TopicPartition) -> None:
        """Let the sender look for what to send to a partition, unless it will do so anyhow.

        While the leader has as many requests to answer as it may have, nothing more can be sent to it, and the next
        answer wakes the sender. Until then more records join the batch.
        """
        client = self._client
        leader = client._metadata.leader_for_partition(at)
        under_way = client._sender._client.in_flight_request_count(leader) if leader is not None else 0
        if under_way < client.config["max_in_flight_requests_per_connection"]:
            client._sender.wakeup()
