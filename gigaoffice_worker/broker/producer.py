"""One life of the client's producer: sends with callbacks, and an end that works even when its sender is stuck.

What is done with a failed send, and when a new life begins, is decided in `engine.delivery`.
"""

from __future__ import annotations

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.partitioner import DefaultPartitioner

from gigaoffice_worker.broker.errors import TopicUnavailableError
from gigaoffice_worker.broker.kafka_python.batching import Acknowledged, BatchWriter, Failed
from gigaoffice_worker.broker.kafka_python.sender import force_stop, is_broken, knows_topic, mend_sender
from gigaoffice_worker.core.records import OutgoingRecord

__all__ = ["Acknowledged", "Failed", "Producer"]


class Producer:
    """The client's producer behind the few calls that delivery needs. Thread-safe."""

    def __init__(self, client: KafkaProducer) -> None:
        self._client = client
        mend_sender(client)
        self._batches = BatchWriter(client)

    def send(
        self, record: OutgoingRecord, acknowledged: Acknowledged, failed: Failed, *, smallest: bool = False
    ) -> None:
        """Hand a record to the client; one of the callbacks runs later, mostly on the client's thread.

        With `smallest` it goes in a batch of its own, packed by the codec that makes most of it. Raises
        TopicUnavailableError when the topic is not known within the client's `max_block_ms`.
        """
        try:
            if smallest:
                self._batches.append_smallest(record, self._partition(record), acknowledged, failed)
                return
            if self._batches.append(record, acknowledged, failed):
                return
            future = self._client.send(
                record.topic,
                value=record.value,
                key=record.key,
                headers=record.headers,
                partition=self._existing(record),
            )
        except kafka_errors.KafkaTimeoutError as error:
            message = f"no metadata for topic {record.topic}: is it there, and are we allowed to see it?"
            raise TopicUnavailableError(message) from error
        future.add_callback(lambda sent: acknowledged(sent.partition, sent.offset))
        future.add_errback(failed)

    def knows(self, topic: str, timeout: float) -> bool:
        """Say whether the cluster has the topic; where the client knows nothing of it, it asks for up to `timeout`."""
        return knows_topic(self._client, topic, timeout)

    def _partition(self, record: OutgoingRecord) -> int:
        """Return the partition that a record belongs to: the one that is asked for, or what the client chooses."""
        known = sorted(self._client.partitions_for(record.topic))
        existing = self._existing(record)
        return int(DefaultPartitioner()(record.key, known, known)) if existing is None else existing

    def _existing(self, record: OutgoingRecord) -> int | None:
        """Return the partition that is asked for, if the topic has it: what is known of topics can be out of date."""
        partition = record.partition
        return partition if partition in (self._client.partitions_for(record.topic) or ()) else None

    def limit_batches(self, size: int) -> None:
        """Put no more than `size` bytes of records in one batch, the limit of a topic: a batch beyond fails whole.

        A record that is larger by itself still gets a batch of its own.
        """
        self._batches.limit(size)

    @property
    def broken(self) -> bool:
        """Say whether the producer can never send again: refused as an idempotent one, or its thread has died."""
        return is_broken(self._client)

    def force_stop(self, timeout: float) -> bool:
        """End the client's thread without sending what it holds; False when it still runs after `timeout` seconds.

        Callbacks of what it held may never be called.
        """
        return force_stop(self._client, timeout)
