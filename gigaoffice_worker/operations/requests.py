"""What a requester does: write requests and wait for their responses, in no consumer group."""

from __future__ import annotations

import contextlib
import json
import queue
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from kafka import KafkaConsumer, TopicPartition

from gigaoffice_worker.broker.admin import admin, require_topics
from gigaoffice_worker.broker.clients import open_consumer, open_producer, reachable
from gigaoffice_worker.broker.error_table import SendFailure, send_failure, to_worker_error
from gigaoffice_worker.broker.errors import TopicUnavailableError
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.errors import AccessError, UnreachableError, WorkerError
from gigaoffice_worker.core.records import OutgoingRecord, Source

_NAME: Final = "send"
_CLOSE_LIMIT: Final = 1.0
_REQUEST_LIMITS: Final = (2.0, 30.0)  # seconds for one request to a broker: at least, at most


class Sent(NamedTuple):
    """A request that the cluster has acknowledged, and where it stands; or else why it has not."""

    request_id: str
    place: Source | None
    error: WorkerError | None


class Response(NamedTuple):
    """The first response to a request, `latency` seconds after that was handed over."""

    request_id: str
    document: dict[str, Any]
    latency: float


class Exchange:
    """Requests out, their responses in: a context manager, for one thread.

    Entering it finds the cluster and both topics, and fixes the position from which responses are read, so that none
    can be missed; with `answers=False` only requests are written. Nothing is created. Raises WorkerErrors only.
    `timeout` in seconds bounds entering, and the time in which a request must be acknowledged.
    """

    def __init__(self, config: Config, timeout: float, *, answers: bool = True) -> None:
        self._config = config
        self._timeout = timeout
        self._answers = answers
        self._asked: dict[str, float] = {}
        self._outcomes: queue.SimpleQueue[Sent] = queue.SimpleQueue()
        self._unacknowledged = 0
        self._stack = contextlib.ExitStack()
        self._producer: Producer
        self._consumer: KafkaConsumer | None = None

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def unanswered(self) -> list[str]:
        """The ids of requests that are sent and not answered, the oldest first."""
        return list(self._asked)

    @property
    def unacknowledged(self) -> int:
        """How many requests are handed over and neither acknowledged nor failed."""
        return self._unacknowledged

    def send(self, request_id: str, value: bytes, key: bytes, headers: Mapping[str, bytes]) -> None:
        """Hand a request over. Raises WorkerError while an earlier request with this id waits for its answer."""
        if request_id in self._asked:
            raise WorkerError(f"a request with the id {request_id!r} is waiting for its answer already")
        record = OutgoingRecord(self._config.topics.requests.name, key, value, list(headers.items()))

        def acknowledged(partition: int, offset: int) -> None:
            self._outcomes.put(Sent(request_id, Source(record.topic, partition, offset), None))

        def failed(error: BaseException) -> None:
            self._outcomes.put(Sent(request_id, None, _told(error, f"sending request {request_id}")))

        self._asked[request_id] = time.monotonic()
        self._unacknowledged += 1
        try:
            self._producer.send(record, acknowledged, failed)
        except TopicUnavailableError as error:
            failed(UnreachableError(str(error), hint="Check that the brokers run."))

    def sent(self, timeout: float) -> Sent | None:
        """Return the next request that was acknowledged or failed; None if there is none within `timeout` seconds."""
        try:
            outcome = self._outcomes.get(timeout=timeout) if timeout > 0 else self._outcomes.get_nowait()
        except queue.Empty:
            return None
        self._unacknowledged -= 1
        if outcome.error is not None or not self._answers:
            self._asked.pop(outcome.request_id, None)
        return outcome

    def responses(self, timeout: float) -> Iterator[Response]:
        """Yield the responses that have come, waiting up to `timeout` seconds for the first."""
        if self._consumer is None:
            return
        try:
            batches = self._consumer.poll(timeout_ms=round(timeout * 1000))
        except Exception as error:
            raise _told(error, "reading responses") from error
        now = time.monotonic()
        for record in (each for batch in batches.values() for each in batch):
            document = _document(record.value)
            asked_at = self._asked.pop(document.get("request_id", ""), None)
            if asked_at is not None:
                yield Response(document["request_id"], document, now - asked_at)

    def _open(self) -> None:
        until = time.monotonic() + self._timeout
        topics = self._config.topics
        config = reachable(self._config, self._timeout)
        rights = {topics.requests.name: "WRITE", **({topics.responses.name: "READ"} if self._answers else {})}
        partitions = require_topics(config, rights, max(0.1, until - time.monotonic()))
        if self._answers:
            self._consumer = _reader(config, self._timeout)
            self._stack.callback(self._consumer.close, autocommit=False, timeout_ms=round(_CLOSE_LIMIT * 1000))
            _go_to_the_end(self._consumer, topics.responses.name, partitions[topics.responses.name])
        self._producer = _writer(config, self._timeout)
        self._stack.callback(self._producer.force_stop, _CLOSE_LIMIT)


def why_no_answer(config: Config, place: Source, timeout: float) -> str:
    """Say what the cluster knows of a request that was not answered, as far as it can be found out in `timeout`."""
    group = config.consumer.group
    try:
        with admin(config, timeout) as client:
            members = client.group(group).members
            position = client.committed(group).get((place.topic, place.partition))
    except Exception:  # noqa: BLE001  # this only adds to a message
        return ""
    if members == 0:
        return f"The group {group} has no members: no worker is running."
    if position is not None and position > place.offset:
        return (
            f"The worker is done with it (group {group}, partition {place.partition}, committed {position}): look for "
            f"the response in {config.topics.responses.name}."
        )
    behind = place.offset - (position or 0)
    waiting = f"{behind} unfinished or waiting before it" if behind > 0 else "none before it"
    return (
        f"The group {group} has {members} member(s) and is not done with it: {waiting} in partition {place.partition}."
    )


def _reader(config: Config, timeout: float) -> KafkaConsumer:
    changes = {
        "group_id": None,
        "group_instance_id": None,
        "client_id": f"{config.kafka.client_id}-{_NAME}",
        "request_timeout_ms": round(_request_limit(timeout) * 1000),
        "auto_offset_reset": "latest",  # only if the responses are deleted under our hands
    }
    return open_consumer("connecting to read responses", config, timeout, **changes)


def _go_to_the_end(consumer: KafkaConsumer, topic: str, partitions: int) -> None:
    assigned = [TopicPartition(topic, partition) for partition in range(partitions)]
    consumer.assign(assigned)
    try:
        # Asked for now: `seek_to_end` would ask at the first poll, when answers may be behind us already.
        for partition, end in consumer.end_offsets(assigned).items():
            consumer.seek(partition, end)
    except Exception as error:
        raise _told(error, f"finding the end of {topic}") from error


def _writer(config: Config, timeout: float) -> Producer:
    request_limit = _request_limit(timeout)
    changes = {
        "max_block_ms": round(timeout * 1000),
        "request_timeout_ms": round(request_limit * 1000),
        # The client wants it above the time of one request and the linger.
        "delivery_timeout_ms": round((max(timeout, request_limit) + config.producer.linger + 0.1) * 1000),
    }
    return Producer(open_producer("connecting to send requests", config, timeout, _NAME, **changes))


def _told(error: BaseException, during: str) -> WorkerError:
    """Return the error that ends the command: a requester needs other rights than the worker does."""
    if send_failure(error) is SendFailure.TOO_LARGE:
        hint = "Raise the topic's max.message.bytes, or send less."
        return WorkerError(f"{during}: it is larger than the request topic takes", hint=hint)
    told = to_worker_error(error, during)
    if isinstance(told, AccessError):
        hint = "To send, the user needs WRITE on the request topic and READ on the response topic."
        return AccessError(str(told), hint=hint)
    return told


def _request_limit(timeout: float) -> float:
    least, most = _REQUEST_LIMITS
    return min(most, max(least, timeout))


def _document(value: bytes | None) -> dict[str, Any]:
    """Return a response, or an empty one for what is none: others may write to the topic too."""
    try:
        found = json.loads(value or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("request_id"), str) else {}
