"""One life of the client's producer: sends with callbacks, and an end that works even when its sender is stuck.

What is done with a failed send, and when a new life begins, is decided in `engine.delivery`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors

from gigaoffice_worker.core.records import Letter


class SendFailure(Enum):
    """What a failed send says about what to do next."""

    TOO_LARGE = auto()
    """The batch is larger than the topic takes; one record of it sent alone may pass."""
    REFUSED = auto()
    """The topic is missing, refused or short of replicas: the same producer may try again later."""
    STUCK = auto()
    """The producer itself is in doubt: a new one is needed."""


_REFUSED = (
    kafka_errors.AuthorizationError,
    kafka_errors.UnknownTopicOrPartitionError,
    kafka_errors.InvalidTopicError,
    kafka_errors.NotEnoughReplicasError,
    kafka_errors.NotEnoughReplicasAfterAppendError,
    kafka_errors.PolicyViolationError,
    kafka_errors.InvalidRecordError,
)
# Far below any limit of the client's on what may be sent.
_SMALL = 1024 * 1024
_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class TopicUnavailableError(Exception):
    """The topic has no partition that could be written to, as far as the client knows."""


def classify(error: BaseException) -> SendFailure:
    """Say what a failed send means for the record and for the producer."""
    if isinstance(error, _TOO_LARGE):
        return SendFailure.TOO_LARGE
    if isinstance(error, (*_REFUSED, TopicUnavailableError)):
        return SendFailure.REFUSED
    return SendFailure.STUCK


class Producer:
    """The client's producer behind the few calls that delivery needs. Thread-safe."""

    def __init__(self, client: KafkaProducer) -> None:
        self._client = client
        if client.config["acks"] == 0:
            _write_what_nobody_answers(client._sender._client)  # noqa: SLF001

    def send(
        self, letter: Letter, acknowledged: Callable[[object], None], failed: Callable[[BaseException], None]
    ) -> None:
        """Hand a record to the client; one of the callbacks runs later, mostly on the client's thread.

        Raises TopicUnavailableError when the topic is not known within the client's `max_block_ms`.
        """
        try:
            future = self._append(letter) or self._client.send(
                letter.topic,
                value=letter.value,
                key=letter.key,
                headers=letter.headers,
                partition=self._existing(letter),
            )
        except kafka_errors.KafkaTimeoutError as error:
            message = f"no metadata for topic {letter.topic}: is it there, and are we allowed to see it?"
            raise TopicUnavailableError(message) from error
        future.add_callback(acknowledged)
        future.add_errback(failed)

    def _existing(self, letter: Letter) -> int | None:
        """Return the partition that is asked for, if the topic has it: what is known of topics can be out of date."""
        partition = letter.partition
        return partition if partition in (self._client.partitions_for(letter.topic) or ()) else None

    def _append(self, letter: Letter) -> Any:
        """Append a record to its batch as `send` does, less what that costs for checking what is known here.

        None where the partition is not known, or the size is for the client to refuse. Also the only way for a record
        without key and value, which Kafka allows and `send` does not.
        """
        client = self._client
        partition = letter.partition
        empty = letter.key is None and letter.value is None
        if partition is None and empty:
            partition = min(client.partitions_for(letter.topic) or (), default=None)
            if partition is None:
                raise TopicUnavailableError(letter.topic)
        # None until the topic's metadata has been fetched, which `send` waits for.
        known = client._metadata.partitions_for_topic(letter.topic)  # noqa: SLF001
        if partition is None or not known or partition not in known or len(letter.value or b"") > _SMALL:
            return None
        at = TopicPartition(letter.topic, partition)
        future, full, new = client._accumulator.append(at, None, letter.key, letter.value, letter.headers)  # noqa: SLF001
        if full or new:
            client._sender.wakeup()  # noqa: SLF001
        return future

    def linger(self, seconds: float) -> None:
        """Let batches wait for `seconds` from now on; the client reads its own setting anew for every decision."""
        self._client._accumulator.config["linger_ms"] = int(seconds * 1000)  # noqa: SLF001

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
        sender.force_close()
        sender.join(timeout)
        self._client._unregister_cleanup()  # noqa: SLF001
        self._client._closed = True  # noqa: SLF001
        return not sender.is_alive()


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
