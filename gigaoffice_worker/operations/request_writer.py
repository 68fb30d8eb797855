"""Writing dead letters back to the request topic."""

from __future__ import annotations

import contextlib
import queue
from dataclasses import replace
from types import TracebackType
from typing import Final, NamedTuple, Self

from gigaoffice_worker.broker.admin import require_topics
from gigaoffice_worker.broker.clients import open_producer
from gigaoffice_worker.broker.error_table import SendFailure, send_failure, to_worker_error
from gigaoffice_worker.broker.errors import TopicUnavailableError
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.dead_letters import facts
from gigaoffice_worker.core.errors import AccessError, UnreachableError, WorkerError
from gigaoffice_worker.core.records import Headers, OutgoingRecord, Record, Source

_NAME: Final = "dlq-replay"
_REQUEST_LIMIT: Final = 10.0
_CLOSE_LIMIT: Final = 1.0


class Sent(NamedTuple):
    """A dead letter, named by where it stands, that the cluster has acknowledged, or else why it has not."""

    source: Source
    error: WorkerError | None = None
    too_large: bool = False


class RequestWriter:
    """The request topic, to be written to: a context manager, for one thread. Raises WorkerErrors only.

    Whatever KAFKA_PRODUCER_ACKS says, a dead letter counts as written only when all replicas have it.
    """

    def __init__(self, config: Config, timeout: float) -> None:
        self._config = replace(config, producer=replace(config.producer, acks="all"))
        self._topic = config.topics.requests.name
        self._timeout = timeout
        self._outcomes: queue.SimpleQueue[Sent] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()
        self._producer: Producer

    def __enter__(self) -> Self:
        require_topics(self._config, {self._topic: "WRITE"}, self._timeout)
        limit = min(self._timeout, _REQUEST_LIMIT)
        changes = {
            "max_block_ms": round(self._timeout * 1000),
            "request_timeout_ms": round(limit * 1000),
            # The client wants it above the time of one request and the linger.
            "delivery_timeout_ms": round((max(self._timeout, limit) + self._config.producer.linger + 0.1) * 1000),
        }
        client = open_producer("connecting to put dead letters back", self._config, self._timeout, _NAME, **changes)
        self._producer = Producer(client)
        self._stack.callback(self._producer.force_stop, _CLOSE_LIMIT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def send(self, record: Record, headers: Headers, *, smallest: bool = False) -> bool:
        """Hand a dead letter over, to come out of `next`; False if null headers had to be written with an empty value.

        A record on its way out has no header without a value. With `smallest` it is packed as small as can be.
        """
        written = [(name, value or b"") for name, value in headers]
        self._send(record, written, smallest=smallest)
        return all(value is not None for _, value in headers)

    def next(self, timeout: float) -> Sent | None:
        """Return the next dead letter that was acknowledged or failed; None if none was within `timeout` seconds."""
        try:
            return self._outcomes.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None

    def _send(self, record: Record, headers: list[tuple[str, bytes]], *, smallest: bool) -> None:
        def acknowledged(_partition: int, _offset: int) -> None:
            self._outcomes.put(Sent(record.source))

        def failed(error: BaseException) -> None:
            too_large = send_failure(error) is SendFailure.TOO_LARGE
            self._outcomes.put(Sent(record.source, _told(error, self._topic), too_large))

        # Where the request stood, so that it stays with those of its key, whoever chose the partition.
        source = facts(record).source
        partition = source.partition if source and source.topic == self._topic else None
        try:
            request = OutgoingRecord(self._topic, record.key, record.value, headers, partition)
            self._producer.send(request, acknowledged, failed, smallest=smallest)
        except TopicUnavailableError as error:
            raise UnreachableError(str(error), hint="Check that the brokers run.") from error
        except Exception as error:
            raise _told(error, self._topic) from error


def _told(error: BaseException, topic: str) -> WorkerError:
    told = to_worker_error(error, f"putting dead letters back on {topic}")
    if isinstance(told, AccessError):
        return AccessError(str(told), hint=f"Grant the user WRITE on the topic {topic}.")
    return told
