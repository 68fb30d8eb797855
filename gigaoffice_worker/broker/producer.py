"""One life of the client's producer: sends with callbacks, and an end that works even when its sender is stuck.

What is done with a failed send, and when a new life begins, is decided in `engine.delivery`.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.sender import PartitionResponse
from kafka.record.memory_records import MemoryRecordsBuilder

from gigaoffice_worker.broker.errors import TopicUnavailableError
from gigaoffice_worker.core.records import OutgoingRecord

# Far below any limit of the client's on what may be sent.
_SMALL = 1024 * 1024
# Milliseconds between requests, at least, unless the configuration asks for none: handlers take many times as long.
_APART = 4


# Called with the partition and the offset that the record has got; the offset is -1 where nobody acknowledges.
Acknowledged = Callable[[int, int], None]
Failed = Callable[[BaseException], None]


# Whom to tell of one record, behind its number in the batch, from 0.
_Receipt = tuple[int, Acknowledged, Failed]


@dataclass(frozen=True, slots=True)
class _OpenBatch:
    """One of the client's batches while records are added to it, and whom to tell of those that we added.

    `queue` holds what waits for the sender in the partition, and `lock` is the client's own of that partition.
    """

    batch: Any
    queue: deque[Any]
    lock: threading.Lock
    receipts: list[_Receipt] = field(default_factory=list)

    def add(self, letter: OutgoingRecord, acknowledged: Acknowledged, failed: Failed) -> bool:
        """Add a record, under the lock; False when the batch is full, on its way, or not the newest any more."""
        if not self.queue or self.queue[-1] is not self.batch:
            return False
        added = self.batch.records.append(None, letter.key, letter.value, letter.headers)
        if added is None:
            return False
        self.receipts.append((added.offset, acknowledged, failed))
        return True

    def answered(self, answer: tuple[int, int, Callable[[int], BaseException] | None]) -> None:
        """Tell each record what became of it; called once, on the client's thread."""
        first, _, error_of = answer
        partition = self.batch.topic_partition.partition
        for number, acknowledged, failed in self.receipts:
            if error_of is None:
                acknowledged(partition, first + number if first >= 0 else -1)
            else:
                failed(error_of(number))


class Pace:
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


class Producer:
    """The client's producer behind the few calls that delivery needs. Thread-safe."""

    def __init__(self, client: KafkaProducer) -> None:
        self._client = client
        # The newest batch of each partition; guarded by the client's own lock of that partition.
        self._open: dict[TopicPartition, _OpenBatch] = {}
        settings = client._accumulator.config  # noqa: SLF001
        self._pace = Pace(settings["linger_ms"] and max(settings["linger_ms"], _APART))
        settings["linger_ms"] = self._pace.apart
        _sleep_to_the_end(client._sender._client)  # noqa: SLF001
        _fail_for_good(client._sender)  # noqa: SLF001
        if client.config["acks"] == 0:
            _write_what_nobody_answers(client._sender._client)  # noqa: SLF001

    def send(self, letter: OutgoingRecord, acknowledged: Acknowledged, failed: Failed) -> None:
        """Hand a record to the client; one of the callbacks runs later, mostly on the client's thread.

        Raises TopicUnavailableError when the topic is not known within the client's `max_block_ms`.
        """
        try:
            if self._append(letter, acknowledged, failed):
                return
            future = self._client.send(
                letter.topic,
                value=letter.value,
                key=letter.key,
                headers=letter.headers,
                partition=self._existing(letter),
            )
        except kafka_errors.KafkaTimeoutError as error:
            message = f"no metadata for topic {letter.topic}: is it there, and are we allowed to see it?"
            raise TopicUnavailableError(message) from error
        future.add_callback(lambda sent: acknowledged(sent.partition, sent.offset))
        future.add_errback(failed)

    def _existing(self, letter: OutgoingRecord) -> int | None:
        """Return the partition that is asked for, if the topic has it: what is known of topics can be out of date."""
        partition = letter.partition
        return partition if partition in (self._client.partitions_for(letter.topic) or ()) else None

    def _append(self, letter: OutgoingRecord, acknowledged: Acknowledged, failed: Failed) -> bool:
        """Append a record to its batch as `send` does, less what that costs: checks, and a future for each record.

        False where the partition is not known, or the size is for the client to refuse: then `send` has to.
        """
        if len(letter.value or b"") > _SMALL:
            return False
        opened = self._open.get((letter.topic, letter.partition))
        if opened is not None:
            with opened.lock:
                if opened.add(letter, acknowledged, failed):
                    return True
        partition = self._known_partition(letter)
        if partition is None:
            return False
        at = TopicPartition(letter.topic, partition)
        accumulator = self._client._accumulator  # noqa: SLF001
        with accumulator._tp_lock(at):  # noqa: SLF001
            if accumulator._closed:  # noqa: SLF001
                message = "the producer was stopped"
                raise RuntimeError(message)
            # Another thread may have begun a batch meanwhile.
            opened = self._open.get(at)
            if opened is None or not opened.add(letter, acknowledged, failed):
                opened = self._open[at] = self._begin_batch(at)
                opened.add(letter, acknowledged, failed)
        # Only now has the sender something to decide.
        self._wake_the_sender(at)
        return True

    def _wake_the_sender(self, at: TopicPartition) -> None:
        """Let the sender look for what to send to a partition, unless it will do so anyhow.

        While the leader has as many requests to answer as it may have, nothing more can be sent to it, and the next
        answer wakes the sender. Until then more records join the batch.
        """
        client = self._client
        leader = client._metadata.leader_for_partition(at)  # noqa: SLF001
        under_way = client._sender._client.in_flight_request_count(leader) if leader is not None else 0  # noqa: SLF001
        if under_way < client.config["max_in_flight_requests_per_connection"]:
            client._sender.wakeup()  # noqa: SLF001

    def _known_partition(self, letter: OutgoingRecord) -> int | None:
        """Return the partition that a record is for, if the client knows that it is there."""
        client, partition = self._client, letter.partition
        if partition is None and letter.key is None and letter.value is None:
            # Kafka allows a record of nothing, and `send` does not.
            partition = min(client.partitions_for(letter.topic) or (), default=None)
            if partition is None:
                raise TopicUnavailableError(letter.topic)
        # None until the topic's metadata has been fetched, which `send` waits for.
        known = client._metadata.partitions_for_topic(letter.topic)  # noqa: SLF001
        return partition if known and partition in known else None

    def _begin_batch(self, at: TopicPartition) -> _OpenBatch:
        """Put an empty batch behind those that wait in a partition, whose lock is held."""
        accumulator = self._client._accumulator  # noqa: SLF001
        settings = accumulator.config
        records = MemoryRecordsBuilder(
            settings["message_version"], settings["compression_attrs"], settings["batch_size"]
        )
        batch, queue = ProducerBatch(at, records), accumulator._batches[at]  # noqa: SLF001
        # The client lets a batch go when it has lingered since then.
        batch.last_attempt = (self._pace.leaves_at(batch.created * 1000) - self._pace.apart) / 1000
        opened = _OpenBatch(batch, queue, accumulator._tp_lock(at))  # noqa: SLF001
        batch.produce_future.add_callback(opened.answered)
        queue.append(batch)
        accumulator._incomplete.add(batch)  # noqa: SLF001
        return opened

    @property
    def broken(self) -> bool:
        """Say whether the producer can never send again: refused as an idempotent one, or its thread has died."""
        manager = self._client._transaction_manager  # noqa: SLF001
        return bool(manager and manager.has_fatal_error()) or not self._client._sender.is_alive()  # noqa: SLF001

    def force_stop(self, timeout: float) -> bool:
        """End the sender thread without sending what it holds; False when it is still alive after `timeout` seconds.

        `close` would flush first, and raise before it stops anything. Afterwards the client is marked closed, so that
        its finaliser does not flush either. Futures of a stopped producer must not be trusted: some never resolve.
        """
        sender = self._client._sender  # noqa: SLF001
        # It would look for batches that are on the wire among those that wait, and its thread would end by not finding
        # them, with the connections left open.
        self._client._accumulator.abort_incomplete_batches = lambda: None  # noqa: SLF001
        sender.force_close()
        sender.join(timeout)
        self._client._unregister_cleanup()  # noqa: SLF001
        self._client._closed = True  # noqa: SLF001
        return not sender.is_alive()


def _fail_for_good(sender: Any) -> None:
    """See to it that a request that is not to be tried again fails its batches.

    The client hands on the error where its class is wanted, stumbles over it, and the futures never resolve.
    """

    def failed(batches: Iterable[ProducerBatch], _node_id: int, error: Exception) -> None:
        for batch in batches:
            sender._complete_batch(batch, PartitionResponse(error=type(error), error_message=str(error)))  # noqa: SLF001

    sender._failed_produce = failed  # noqa: SLF001


def _sleep_to_the_end(network: Any) -> None:
    """See to it that the sender sleeps until a batch may leave.

    The client cuts what is left down to whole milliseconds, and spins through the last one.
    """
    poll = network.poll

    def poll_whole_milliseconds(timeout_ms: float | None = None, future: Any = None) -> Any:
        if timeout_ms is not None and math.isfinite(timeout_ms):
            timeout_ms = math.ceil(timeout_ms)
        return poll(timeout_ms=timeout_ms, future=future)

    network.poll = poll_whole_milliseconds


def _write_what_nobody_answers(network: Any) -> None:
    """See to it that requests without an answer leave the process.

    The client forgets a request whose future is done when it is sent, and with acks=0 that is each of them: it would
    lie in memory until the next one to the same broker, and be lost at the end of the process.
    """
    send = network.send

    def send_and_write(node_id: int, request: Any, **options: Any) -> Any:
        future = send(node_id, request, **options)
        if future.succeeded():
            network._sending.add(network._conns[node_id])  # noqa: SLF001
        return future

    network.send = send_and_write
