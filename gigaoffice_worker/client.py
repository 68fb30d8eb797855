"""For whoever requests: send a request, and wait for its response.

    from gigaoffice_worker.client import Client

    with Client("localhost:9092") as client:
        response = client.ask({"query": "Sum column B"}, timeout=60)
        print(response.result if response.completed else response.error)

One client serves all threads of a program: one producer, and one thread that reads responses for all that wait.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from gigaoffice_worker.broker.admin import require_topics
from gigaoffice_worker.broker.errors import TopicUnavailableError
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.broker.requester import ResponseReader, request_writer, told
from gigaoffice_worker.broker.response_thread import ResponseThread
from gigaoffice_worker.config import Config, load
from gigaoffice_worker.core.documents import Response, read_response
from gigaoffice_worker.core.errors import UnreachableError, WorkerError
from gigaoffice_worker.core.expiry import TTL
from gigaoffice_worker.core.records import Headers, OutgoingRecord, Record, Source

__all__ = ["Client", "Pending", "Response", "ResponseTimeoutError", "WorkerError", "read_response"]

_SERVERS: Final = "KAFKA_BOOTSTRAP_SERVERS"
_CLOSE_LIMIT: Final = 2.0
_MOMENT: Final = 5.0  # seconds in which what has the same limit tells that it was reached
_CLOSED: Final = "the client is closed"
# Responses that may come before the cluster's acknowledgement of their request; all but a few are of other requesters.
_MOST_EARLY: Final = 10_000
_MOST_EARLY_BYTES: Final = 64 * 1024 * 1024


class ResponseTimeoutError(TimeoutError):
    """No response came in time. `request_id` and `place` say which request it is and where it stands.

    The request is not taken back: unless it has expired it may still be answered.
    """

    def __init__(self, message: str, request_id: str, place: Source | None) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.place = place


class Pending:
    """A request on its way: acknowledged once `place` is known, over once `response` or `error` is.

    `waits` says whether its response is waited for. `seconds` is the time from its being handed over to the last news.
    """

    def __init__(self, request_id: str, tell: Callable[[Pending], object] | None, *, answers: bool) -> None:
        self.request_id = request_id
        self.place: Source | None = None
        self.response: Response | None = None
        self.error: WorkerError | None = None
        self.seconds = 0.0
        self._handed_over = time.monotonic()
        self.waits = answers
        self._tell = tell
        self._acknowledged = threading.Event()
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self._over.is_set()

    def wait_acknowledged(self, timeout: float) -> Source | None:
        """Return where the request stands; None if that is not known within `timeout` seconds. Raises WorkerError."""
        self._acknowledged.wait(timeout)
        if self.error is not None:
            raise self.error
        return self.place

    def wait(self, timeout: float) -> Response | None:
        """Return the response; None if there is none within `timeout` seconds. Raises WorkerError if not sent."""
        self._over.wait(timeout)
        if self.error is not None:
            raise self.error
        return self.response

    def note(
        self, *, place: Source | None = None, response: Response | None = None, error: WorkerError | None = None
    ) -> None:
        """Take note of what has become known; for the client. The first error stands: others come of it."""
        self.place = place or self.place
        self.response, self.error = response or self.response, self.error or error
        self.seconds = time.monotonic() - self._handed_over
        if self.place is not None or self.error is not None:
            self._acknowledged.set()
        if self.response is not None or self.error is not None or not self.waits:
            self._over.set()
        if self._tell is not None:
            self._tell(self)


class Client:
    """Writes requests and reads their responses, for all threads of a program.

    `settings` are variables as the worker reads them from its environment (KAFKA_TOPIC_REQUESTS, KAFKA_USE_SSL,
    KAFKA_SASL_PASSWORD and so on; the environment itself is not read). `connect_timeout` bounds connecting and the time
    in which a request must be acknowledged, in seconds. Nothing is created, and no consumer group is joined. What goes
    wrong with the cluster is raised as a WorkerError.
    """

    def __init__(
        self,
        bootstrap_servers: str | Iterable[str] = "localhost:9092",
        *,
        settings: Mapping[str, str] | None = None,
        connect_timeout: float = 30.0,
    ) -> None:
        servers = bootstrap_servers if isinstance(bootstrap_servers, str) else ",".join(bootstrap_servers)
        self._open(load({**(settings or {}), _SERVERS: servers}), connect_timeout)

    @classmethod
    def of(cls, config: Config, connect_timeout: float) -> Self:
        """Return a client for a configuration that was read."""
        self = cls.__new__(cls)
        self._open(config, connect_timeout)
        return self

    def _open(self, config: Config, timeout: float) -> None:
        self._timeout = timeout
        self._config = config
        self._topics = config.topics.requests.name, config.topics.responses.name
        require_topics(config, {self._topics[0]: "WRITE"}, timeout)
        self._producer: Producer = request_writer(config, timeout)
        self._waiting = Waiting()
        self._responses = ResponseThread(self._reader, self._take)

    @property
    def trouble(self) -> str:
        """Why responses could not be read at last; empty while they can."""
        return self._responses.trouble

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ask(
        self,
        payload: Mapping[str, Any],
        timeout: float = 60.0,
        *,
        key: bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Response:
        """Send a request and return its response, which may be a failed one.

        Without an `id` the payload gets one; without a key the id is it. After `timeout` seconds the request is not
        worth a call any more, which the worker is told. Raises ResponseTimeoutError, and WorkerError where the request
        could not be sent.
        """
        until = time.monotonic() + timeout
        extended = {TTL: b"%d" % round(timeout * 1000), **(headers or {})}
        pending = self.submit(*_encoded(payload, key), extended, within=timeout)
        response = pending.wait(until - time.monotonic())
        if response is None:
            self.forget(pending)
            request_id, place = pending.request_id, pending.place
            where = f"it stands at {place}" if place else "the cluster has not acknowledged it"
            because = f"; responses cannot be read: {self.trouble}" if self.trouble else ""
            raise ResponseTimeoutError(
                f"no response to request {request_id} within {timeout:g} s; {where}{because}", request_id, place
            )
        return response

    def send(
        self, payload: Mapping[str, Any], *, key: bytes | None = None, headers: Mapping[str, bytes] | None = None
    ) -> str:
        """Send a request, wait until the cluster has it, and return its id. Raises WorkerError."""
        pending = self.submit(*_encoded(payload, key), headers or {}, answers=False)
        if pending.wait_acknowledged(self._timeout + _MOMENT) is None:
            raise UnreachableError(f"the cluster did not acknowledge the request within {self._timeout:g} s")
        return pending.request_id

    def submit(
        self,
        request_id: str,
        value: bytes,
        key: bytes,
        headers: Mapping[str, bytes],
        *,
        answers: bool = True,
        tell: Callable[[Pending], object] | None = None,
        within: float | None = None,
    ) -> Pending:
        """Hand an encoded request over, and return at once.

        `tell` is called, on threads of the client, with each news of it. Raises WorkerError if responses cannot be
        read, which only concerns a request whose response is waited for (`answers`): the first of them waits until
        they are, for at most `within` seconds (unless given, as long as connecting may take).
        """
        if answers:
            self._responses.wait_reading(self._timeout + _MOMENT if within is None else within)
        pending = Pending(request_id, tell, answers=answers)
        topic = self._topics[0]
        record = OutgoingRecord(topic, key, value, list(headers.items()))

        def acknowledged(partition: int, offset: int) -> None:
            place = Source(topic, partition, offset)
            pending.note(place=place)
            early = self._waiting.acknowledged(pending, place)
            if early is not None:
                self._answer(pending, early)

        def failed(error: BaseException) -> None:
            self._waiting.acknowledged(pending, None)
            pending.note(error=told(error, f"sending request {request_id}"))

        self._waiting.handed_over(pending)
        try:
            self._producer.send(record, acknowledged, failed)
        except TopicUnavailableError as error:
            failed(UnreachableError(str(error), hint="Check that the brokers run."))
        except Exception as error:  # noqa: BLE001  # whatever the client raises is told as one of our errors
            failed(error)
        return pending

    def forget(self, pending: Pending) -> None:
        """Wait no longer for a request."""
        self._waiting.forget(pending)

    def close(self) -> None:
        """Free the connections; for who still waits that is an error."""
        for pending in self._waiting.close():
            pending.note(error=WorkerError(_CLOSED))
        self._responses.close()
        self._producer.force_stop(_CLOSE_LIMIT)

    # Responses

    def _reader(self) -> ResponseReader:
        """Connect to read responses, to requests that are written from now on."""
        partitions = require_topics(self._config, {self._topics[1]: "READ"}, self._timeout)
        return ResponseReader(self._config, partitions[self._topics[1]], self._timeout)

    def _take(self, record: Record) -> None:
        place = _source_of(record.headers)
        if place is not None and place.topic == self._topics[0]:
            pending = self._waiting.arrived(place, record)
            if pending is not None:
                self._answer(pending, record)

    def _answer(self, pending: Pending, record: Record) -> None:
        response = read_response(record.value, record.headers)
        if response is None:  # not the worker's: it still has to come
            self._waiting.goes_on(pending)
        else:
            pending.note(response=response)


class _Early(NamedTuple):
    """A response that nobody waits for yet, and how many requests had been handed over when it came."""

    record: Record
    behind: int


class Waiting:
    """Which request waits for the response to which record. Thread-safe.

    A response may be read before the cluster's acknowledgement says where its request stands. So what has come since
    the oldest request without one was handed over is kept, as far as `most_early` records and `most_early_bytes` go.
    """

    def __init__(self, most_early: int = _MOST_EARLY, most_early_bytes: int = _MOST_EARLY_BYTES) -> None:
        self._lock = threading.Lock()
        self._most_early = most_early
        self._most_early_bytes = most_early_bytes
        self._closed = False
        self._handed_over = 0
        # Each with its number among those that were handed over, oldest first.
        self._unacknowledged: OrderedDict[Pending, int] = OrderedDict()
        self._by_place: dict[Source, Pending] = {}
        self._early: OrderedDict[Source, _Early] = OrderedDict()
        self._early_bytes = 0

    def handed_over(self, pending: Pending) -> None:
        """Note that a request is about to be written. Raises WorkerError after `close`, which would not see it."""
        with self._lock:
            if self._closed:
                raise WorkerError(_CLOSED)
            self._handed_over += 1
            self._unacknowledged[pending] = self._handed_over

    def acknowledged(self, pending: Pending, place: Source | None) -> Record | None:
        """Note where a request stands, None where it was not written; return its response if that was here first."""
        with self._lock:
            self._unacknowledged.pop(pending, None)
            early = self._take_early(place) if place is not None else None
            if place is not None and early is None and pending.waits:
                self._by_place[place] = pending
            self._drop_early()
            return early

    def arrived(self, place: Source, record: Record) -> Pending | None:
        """Return the request that a response answers, which waits no longer; None if nobody waits for it yet."""
        with self._lock:
            pending = self._by_place.pop(place, None)
            if pending is None and self._unacknowledged:
                self._take_early(place)
                self._early[place] = _Early(record, self._handed_over)
                self._early_bytes += record.size
                self._drop_early()
            return pending

    def _take_early(self, place: Source) -> Record | None:
        early = self._early.pop(place, None)
        if early is None:
            return None
        self._early_bytes -= early.record.size
        return early.record

    def _drop_early(self) -> None:
        """Drop what came before the oldest request in doubt was handed over, and the oldest of what is too much."""
        oldest = next(iter(self._unacknowledged.values()), self._handed_over + 1)
        while self._early:
            place, early = next(iter(self._early.items()))
            much = len(self._early) > self._most_early or self._early_bytes > self._most_early_bytes
            if early.behind >= oldest and not much:
                return
            self._take_early(place)

    def goes_on(self, pending: Pending) -> None:
        """Let a request wait on."""
        with self._lock:
            if pending.place is not None and pending.waits:
                self._by_place[pending.place] = pending

    def forget(self, pending: Pending) -> None:
        """Let a request wait no longer, also if it is acknowledged only now."""
        with self._lock:
            pending.waits = False
            self._unacknowledged.pop(pending, None)
            self._drop_early()
            if pending.place is not None:
                self._by_place.pop(pending.place, None)

    def all(self) -> list[Pending]:
        """Return the requests that wait for their acknowledgement, and those that wait for their response."""
        with self._lock:
            return [*self._unacknowledged, *self._by_place.values()]

    def close(self) -> list[Pending]:
        """Take no more requests; return those that still wait."""
        with self._lock:
            self._closed = True
        return self.all()


def _encoded(payload: Mapping[str, Any], key: bytes | None) -> tuple[str, bytes, bytes]:
    """Return id, value and key of a request."""
    content = {"id": str(uuid.UUID(bytes=os.urandom(16), version=4)), **payload}
    request_id = content["id"]
    if not isinstance(request_id, str) or not request_id:
        raise WorkerError("the request's id must be a non-empty string")
    return request_id, msgspec.json.encode(content), request_id.encode() if key is None else key


def _source_of(headers: Headers) -> Source | None:
    """Return which delivery a response answers, None where it does not say so."""
    said = dict(headers)
    try:
        topic, partition, offset = (said[f"source-{name}"] for name in ("topic", "partition", "offset"))
        return Source((topic or b"").decode(), int(partition or b""), int(offset or b""))
    except (KeyError, ValueError):
        return None
