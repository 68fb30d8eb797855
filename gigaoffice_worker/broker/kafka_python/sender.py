"""The thread that sends for the client's producer: where it stumbles, and how it is ended."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.sender import PartitionResponse

_LOOK_EVERY: Final = 0.01


def mend_sender(client: KafkaProducer) -> None:
    """Mend a producer's sender, before anything is sent."""
    sender = client._sender
    _fail_for_good(sender)
    _fail_alike(sender)
    _sleep_to_the_end(sender._client)
    if client.config["acks"] == 0:
        _write_what_nobody_answers(sender._client)


def refusal_of_idempotence(client: KafkaProducer, timeout: float) -> Exception | None:
    """Return why a producer may not write idempotently; None where it may, or nobody has said within `timeout` seconds.

    The client would only tell each record that is sent.
    """
    manager, until = client._transaction_manager, time.monotonic() + timeout
    while manager is not None and not manager.has_producer_id() and time.monotonic() < until:
        if manager.has_fatal_error():
            refusal: Exception = manager.last_error
            return refusal
        time.sleep(_LOOK_EVERY)
    return None


def is_broken(client: KafkaProducer) -> bool:
    """Say whether a producer can never send again: refused as an idempotent one, or its thread has died."""
    manager = client._transaction_manager
    return bool(manager and manager.has_fatal_error()) or not client._sender.is_alive()


def knows_topic(client: KafkaProducer, topic: str, timeout: float) -> bool | None:
    """Say whether the cluster has a topic; None where the producer has to ask and gets no answer in `timeout` seconds.

    `partitions_for` would wait for the topic itself, for all of `max_block_ms`.
    """
    if client._metadata.partitions_for_topic(topic):
        return True
    client._sender.add_topic(topic)
    answered = threading.Event()
    client._metadata.request_update().add_both(lambda _answer: answered.set())
    client._sender.wakeup()
    said = answered.wait(timeout)
    return bool(client._metadata.partitions_for_topic(topic)) or (False if said else None)


def force_stop(client: KafkaProducer, timeout: float) -> bool:
    """End the sender thread without sending what it holds; False when it is still alive after `timeout` seconds.

    `close` would flush first, and raise before it stops anything. Afterwards the client is marked closed, so that
    its finaliser does not flush either. Futures of a stopped producer must not be trusted: some never resolve.
    """
    sender = client._sender
    # It would look for batches that are on the wire among those that wait, and its thread would end by not finding
    # them, with the connections left open.
    client._accumulator.abort_incomplete_batches = lambda: None
    # The thread may have ended, with the socket that wakes it, before it is woken.
    with contextlib.suppress(OSError, KafkaTimeoutError):
        sender.force_close()
    sender.join(timeout)
    client._unregister_cleanup()
    client._closed = True
    return not sender.is_alive()


def _fail_for_good(sender: Any) -> None:
    """See to it that a request that is not to be tried again fails its batches.

    The client passes an error where `_complete_batch` expects its class, so the futures would never resolve.
    """

    def failed(batches: Iterable[ProducerBatch], _node_id: int, error: Exception) -> None:
        for batch in batches:
            sender._complete_batch(batch, PartitionResponse(error=type(error), error_message=str(error)))

    sender._failed_produce = failed


def _fail_alike(sender: Any) -> None:
    """See to it that all records of a refused batch fail with the error of the batch, each in its own words.

    Where the broker names those that it refuses, the client fails their neighbours with a bare KafkaError, and several
    of them with an InvalidRecordError whatever the reason: what is to be done about it could not be told any more.
    """

    def error_of(
        error: Exception, refused: Iterable[tuple[int, str | None]] | None, _message: str | None
    ) -> Callable[[int], Exception]:
        words = dict(refused or ())
        return lambda number: type(error)(told) if (told := words.get(number)) else error

    sender._record_exceptions_fn = error_of


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
            network._sending.add(network._conns[node_id])
        return future

    network.send = send_and_write
