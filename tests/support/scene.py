"""A worker's surroundings: its topics, and the neighbours that write requests and read what comes of them.

Every payload carries MARKER, and when a scene closes, the logs of all its workers are held against contract: each line
a JSON object with its three fields, each event a constant, and the marker nowhere.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.conftest import TopicSet, settings
from tests.support import schemas, wire
from tests.support.waiting import eventually
from tests.support.workers import Call, WorkerProcess

MARKER = "payload-text-that-no-log-may-hold"
FIELDS = {"request_id", "status", "result", "error", "processing_time", "timestamp"}
LEVELS = {"debug", "info", "warning", "error", "critical"}

Sent = tuple[bytes | None, bytes | None, wire.Headers]


class Place(NamedTuple):
    """Where a request stands in its topic."""

    partition: int
    offset: int


class Response(NamedTuple):
    """A response: the record and its value, whose fields have been checked."""

    rec: wire.Rec
    id: str
    status: str
    result: Any
    error: dict[str, str] | None
    source: Place


def ask(request_id: str | None, key: str | bytes | None = None, headers: wire.Headers | None = None, **payload) -> Sent:
    """Return a request record; without an id where `request_id` is None."""
    named = {} if request_id is None else {"id": request_id}
    value = json.dumps({**named, "query": MARKER, **payload}).encode()
    return (key.encode() if isinstance(key, str) else key, value, headers or [])


class Scene(AbstractContextManager["Scene"]):
    """The topics of one test, and the workers on them."""

    def __init__(self, bootstrap: str, topics: TopicSet, directory: Path, **environment: str) -> None:
        self.bootstrap = bootstrap
        self.topics = topics
        self.directory = directory
        self.environment = {**settings(bootstrap, topics), **environment}
        self.workers: list[WorkerProcess] = []
        self._calls: list[Call] = []
        self._read = 0

    def worker(self, name: str = "worker", **environment: str) -> WorkerProcess:
        """Return a worker process on this scene's topics, not started yet."""
        worker = WorkerProcess(self.directory, {**self.environment, **environment}, name=name)
        self.workers.append(worker)
        return worker

    def ready(self, name: str = "worker", **environment: str) -> WorkerProcess:
        """Return a worker process that is ready."""
        return self.worker(name, **environment).start().wait_ready()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self.workers:
            worker.end()
        if error is None:
            for worker in self.workers:
                worker.check_secrets()
                check_logs(worker)

    def __enter__(self) -> Self:
        return self

    # The neighbours

    def make(self, *, requests: int = 1, responses: int = 1, dlq: int = 1) -> Self:
        """Create the topics with these numbers of partitions."""
        names = self.topics
        wire.create_topics(self.bootstrap, {names.requests: requests, names.responses: responses, names.dlq: dlq})
        return self

    def send(self, *requests: Sent, partition: int = -1, **producer: str | int) -> list[Place]:
        """Write requests and return where each one stands."""
        places = wire.produce(self.bootstrap, self.topics.requests, requests, partition=partition, **producer)
        return [Place(*place) for place in places]

    def responses(self) -> list[Response]:
        """Return all responses, ordered by partition and offset; fails for one that is not as the contract says."""
        return [_response(rec) for rec in wire.read_all(self.bootstrap, self.topics.responses)]

    def dead_letters(self) -> list[wire.Rec]:
        """Return all dead letters; fails for one that is not as its schema says."""
        found = wire.read_all(self.bootstrap, self.topics.dlq)
        for record in found:
            schemas.check_dead_letter(record)
        return found

    def count(self, topic: str) -> int:
        """Return how many records a topic has taken."""
        return sum(wire.end_offsets(self.bootstrap, topic).values())

    def wait_responses(self, count: int, timeout: float = 30.0) -> list[Response]:
        """Wait for at least `count` responses and return all there are."""
        enough: Callable[[], bool] = lambda: self.count(self.topics.responses) >= count  # noqa: E731
        eventually(enough, f"{count} responses", timeout=timeout, interval=0.1, state=self._state)
        return self.responses()

    def wait_answered(self, *wanted: str, timeout: float = 30.0) -> None:
        """Wait until each of these requests has a response."""
        missing: Callable[[], set[str]] = lambda: set(wanted) - set(ids(self.responses()))  # noqa: E731
        eventually(lambda: not missing(), f"the answers of {wanted}", timeout=timeout, interval=0.1, state=self._state)

    def wait_committed(self, timeout: float = 20.0) -> None:
        """Wait until everything that was sent is committed."""
        lag: Callable[[], bool] = lambda: wire.lag(self.bootstrap, self.topics.group, self.topics.requests) == 0  # noqa: E731
        eventually(lag, "everything to be committed", timeout=timeout, interval=0.1, state=self._state)

    def wait_without_leader(self, topic: str, partitions: Iterable[int]) -> None:
        """Wait until the cluster knows that these partitions of a topic have no leader, and the other topics have."""
        stuck = set(partitions)
        others = [name for name in self.topics[:3] if name != topic]

        def known() -> bool:
            gone = {partition for partition, leader in wire.leaders(self.bootstrap, topic).items() if leader < 0}
            return gone == stuck and all(min(wire.leaders(self.bootstrap, name).values()) >= 0 for name in others)

        eventually(known, f"partitions {sorted(stuck)} to lose their leader", timeout=30, interval=0.2)

    def committed(self) -> dict[int, int]:
        """Return the committed offset of each partition that has one."""
        found = wire.committed(self.bootstrap, self.topics.group, self.topics.requests)
        return {partition: offset for partition, (offset, _) in found.items()}

    # The handlers' journal

    def journal(self) -> list[Call]:
        """Return starts and ends of all handler calls, in the order in which they happened."""
        path = self.directory / "journal.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                whole, _, _ = file.read().rpartition(b"\n")
            self._calls += [Call(**json.loads(line)) for line in whole.splitlines()]
            self._read += len(whole) + 1 if whole else 0
        return list(self._calls)

    def starts(self) -> Counter[str]:
        """Return how often the handler was called for each request."""
        return Counter(call.id for call in self.journal() if call.moment == "start")

    def wait_started(self, *ids: str, timeout: float = 20.0) -> None:
        """Wait until the handler was called for each of these requests."""
        eventually(lambda: set(ids) <= self.starts().keys(), f"calls of {ids}", timeout=timeout, interval=0.02)

    def file(self, name: str) -> Path:
        """Return a file that exists, for handlers that look for it."""
        path = self.directory / name
        path.touch()
        return path

    def _state(self) -> str:
        return "; ".join(worker.ask("/status")[1][:2000] for worker in self.workers)


def overlapping(journal: Iterable[Call], same: Callable[[Call], object]) -> list[Call]:
    """Return the calls that began while another one of the same kind was running."""
    running: Counter[object] = Counter()
    found = []
    for call in journal:
        if call.moment == "start":
            if running[same(call)]:
                found.append(call)
            running[same(call)] += 1
        else:
            running[same(call)] -= 1
    return found


def ids(responses: Iterable[Response]) -> list[str]:
    return [response.id for response in responses]


def check_once(responses: Sequence[Response], expected: Iterable[str]) -> None:
    """Fail unless each expected request has exactly one response, and no other has any."""
    found, wanted = Counter(ids(responses)), Counter(expected)
    assert found == wanted, f"missing: {sorted(wanted - found)[:10]}, too many: {sorted(found - wanted)[:10]}"


def _response(rec: wire.Rec) -> Response:
    assert rec.value is not None
    body = json.loads(rec.value, parse_constant=lambda name: f"{name} is no JSON")
    assert set(body) == FIELDS
    schemas.check_response(rec, body)
    failed = body["status"] == "failed"
    assert failed or body["status"] == "completed"
    assert (body["error"] is not None) == failed
    if failed:
        assert set(body["error"]) == {"type", "message"}
        assert all(isinstance(text, str) for text in body["error"].values())
    assert isinstance(body["processing_time"], int | float)
    assert body["processing_time"] >= 0
    assert datetime.fromisoformat(body["timestamp"]).utcoffset().total_seconds() == 0
    place = Place(int(rec.header("source-partition") or b""), int(rec.header("source-offset") or b""))
    return Response(rec, body["request_id"], body["status"], body["result"], body["error"], place)


def check_logs(worker: WorkerProcess) -> None:
    """Fail unless everything the worker wrote is a log line as the contract has it, and standard error is quiet."""
    assert MARKER not in worker.errors()
    assert "Traceback" not in worker.errors(), worker.errors()
    for line in worker.logs():
        assert "raw" not in line, f"no JSON object: {line['raw'][:500]}"
        text = json.dumps(line, ensure_ascii=False)
        assert MARKER not in text, f"payload in the log: {text[:1000]}"
        assert "Traceback" not in text, f"traceback in the log: {text[:3000]}"
        assert line["level"] in LEVELS
        assert datetime.fromisoformat(line["timestamp"]).utcoffset().total_seconds() == 0
        assert isinstance(line["event"], str)
        assert re.fullmatch(r"[A-Z][A-Za-z ,:;'-]+", line["event"]), f"no constant event: {line['event']!r}"
