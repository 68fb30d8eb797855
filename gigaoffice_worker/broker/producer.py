"""One life of the client's producer: sends with callbacks, and an end that works even when its sender is stuck.

What is done with a failed send is decided by whoever sends: for the worker by `engine/output_topic.py`, and when a new
life begins by `engine/supervised_producer.py`.
"""

from __future__ import annotations

from kafka import KafkaProducer

from gigaoffice_worker.broker.kafka_python.batching import Acknowledged, BatchWriter, Failed
from gigaoffice_worker.broker.kafka_python.sender import force_stop, is_broken, knows_topic, mend_sender
from gigaoffice_worker.core.records import OutgoingRecord

__all__ = ["Acknowledged", "Failed", "Producer"]


class Producer:
    """The client's producer behind the few calls that delivery needs. Thread-safe.

    With `in_order` a record that fails for good takes back those that wait behind it in its partition: they fail with
    HeldBackError, and so does whatever is sent there until `go_on`.
    """

    def __init__(self, client: KafkaProducer, *, in_order: bool = False) -> None:
        self._client = client
        mend_sender(client)
        self._batches = BatchWriter(client, in_order=in_order)

    def send(
        self, record: OutgoingRecord, acknowledged: Acknowledged, failed: Failed, *, smallest: bool = False
    ) -> None:
        """Hand a record to the client; one of the callbacks runs later, mostly on the client's thread.

        With `smallest` it goes in a batch of its own, packed by the codec that makes most of it. Raises HeldBackError,
        and TopicUnavailableError when the topic is not known within the client's `max_block_ms`.
        """
        self._batches.send(record, acknowledged, failed, smallest=smallest)

    def go_on(self) -> None:
        """Send again after a failure. To be called when everything sent before has been answered."""
        self._batches.go_on()

    def knows(self, topic: str, timeout: float) -> bool | None:
        """Say whether the cluster has the topic; None where the client asks and has no answer in `timeout` seconds."""
        return knows_topic(self._client, topic, timeout)

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
