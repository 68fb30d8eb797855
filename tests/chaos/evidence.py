"""What a run left behind: the three topics, the handlers' journal, and what was committed at which moment."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from tests.conftest import TopicSet
from tests.support import wire
from tests.support.wire import Rec
from tests.support.workers import Call

# With it the record of an outcome says when the cluster took it, on the clock that the samples are taken with.
TIMED_BY_BROKER = {"message.timestamp.type": "LogAppendTime"}

_SAMPLE_LIMIT_MS = 3000


class Place(NamedTuple):
    """Where a request stands in its topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"


class Sample(NamedTuple):
    """What a group had committed, by partition as (position, metadata), at the latest `at` (milliseconds)."""

    at: int
    committed: Mapping[int, tuple[int, str]]


@dataclass(frozen=True)
class Evidence:
    """Everything the checker judges by. `calls` is the journal in its order: starts and ends of handler calls.

    `sent` are the places of the requests that the cluster acknowledged to whoever sent them.
    """

    topic: str
    requests: Sequence[Rec]
    responses: Sequence[Rec]
    dead_letters: Sequence[Rec]
    calls: Sequence[Call] = ()
    samples: Sequence[Sample] = ()
    sent: frozenset[Place] = frozenset()
    max_attempts: int = 5

    def but(self, **changes) -> Evidence:
        """Return the same with something changed."""
        return replace(self, **changes)


def gather(
    bootstrap: str,
    topics: TopicSet,
    journal: Path,
    samples: Sequence[Sample],
    sent: frozenset[Place],
    *,
    max_attempts: int = 5,
) -> Evidence:
    """Read everything, through a client that is not the worker's."""
    return Evidence(
        topics.requests,
        wire.read_all(bootstrap, topics.requests),
        wire.read_all(bootstrap, topics.responses),
        wire.read_all(bootstrap, topics.dlq),
        read_journal(journal),
        samples,
        sent,
        max_attempts,
    )


def read_journal(path: Path) -> list[Call]:
    """Return the handler calls of all processes; a line that a kill cut off is no call."""
    lines = path.read_text().splitlines() if path.exists() else []
    calls = []
    for line in lines:
        with contextlib.suppress(ValueError):
            calls.append(Call(**json.loads(line)))
    return calls


class CommitWatch:
    """Samples what a group has committed, from a thread, for as long as the context lasts.

    Nothing is judged here. A commit may only cover outcomes that were durable before it, so each sample is later held
    against the times at which the cluster took the outcomes. While nobody answers there are no samples.

    It reads with the worker's client library: confluent-kafka does not return metadata whole.
    """

    def __init__(self, bootstrap: str, topics: TopicSet, *, every: float = 0.1) -> None:
        self._bootstrap = bootstrap.split(",")
        self._topics = topics
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commit-watch", daemon=True)
        self._samples: list[Sample] = []

    @property
    def samples(self) -> list[Sample]:
        """The samples so far, each different from the one before it."""
        return list(self._samples)

    def forget(self) -> None:
        """Drop the samples so far: they speak of a topic that is gone."""
        self._samples = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        admin: KafkaAdminClient | None = None
        while not self._stop.wait(self._every):
            try:
                admin = admin or self._connect()
                self._sample(admin)
            except (KafkaError, OSError, AttributeError, ValueError):
                # Nobody answers, or nothing that could be read.
                _close(admin)
                admin = None
        _close(admin)

    def _connect(self) -> KafkaAdminClient:
        return KafkaAdminClient(
            bootstrap_servers=self._bootstrap,
            request_timeout_ms=_SAMPLE_LIMIT_MS,
            api_version_auto_timeout_ms=_SAMPLE_LIMIT_MS,
        )

    def _sample(self, admin: KafkaAdminClient) -> None:
        found = admin.list_consumer_group_offsets(self._topics.group)
        committed = {
            at.partition: (place.offset, place.metadata or "")
            for at, place in found.items()
            if at.topic == self._topics.requests and place.offset >= 0
        }
        sample = Sample(int(time.time() * 1000), committed)
        # An equal sample says nothing more: what it covers was durable at the time of the first one.
        if not self._samples or self._samples[-1].committed != committed:
            self._samples.append(sample)


def _close(admin: KafkaAdminClient | None) -> None:
    if admin is not None:
        with contextlib.suppress(Exception):
            admin.close()
