"""The workloads: what is put on the request topic, and how it is run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from benchmarks.provider import Limits

PARTITIONS = 4
LATENCY_RATE = 200.0  # requests a second
_SEED = 5


class Shape(StrEnum):
    """How the requests come."""

    BACKLOG = "backlog"  # all of them lie in the topic before the start
    PACED = "paced"  # one after the other, while the contestant runs
    BURST = "burst"  # all at once, when every process has its partitions


class Request(NamedTuple):
    """One request of a workload, in the order of the log."""

    number: int
    key: bytes
    seconds: float
    value: bytes


class Late(NamedTuple):
    """The last requests of a workload: of other tenants, sent when the backlog of the first is being worked on."""

    requests: int
    tenants: int
    after: int  # answers


@dataclass(frozen=True, slots=True)
class Workload:
    """A number of requests and how they are run. `limit` ends a run, in seconds from the first response on."""

    name: str
    title: str
    shape: Shape
    requests: int
    size: int  # bytes of a value
    concurrency: int
    seconds: float = 0.0  # of sleep in the handler
    slow_share: float = 0.0
    slow_seconds: float = 0.0
    keys: int | None = None  # None: one for every request, as the API service does
    processes: int = 1
    limit: float = 15.0
    provider: Limits | None = None  # what answers the calls; None: nothing refuses them
    partitions: int = PARTITIONS
    late: Late | None = None

    def durations(self) -> list[float]:
        """Return the handler's seconds for each request."""
        rng = random.Random(_SEED)
        return [self.slow_seconds if rng.random() < self.slow_share else self.seconds for _ in range(self.requests)]

    def lanes(self) -> list[int]:
        """Return the number of each request's key."""
        if self.keys is None:
            return list(range(self.requests))
        rng = random.Random(_SEED + 1)
        return [rng.randrange(self.keys) for _ in range(self.requests)]

    def generate(self) -> Iterator[Request]:
        """Return the requests."""
        for number, (lane, seconds) in enumerate(zip(self.lanes(), self.durations(), strict=True)):
            payload = {"id": f"request-{number:06}", "number": number, "seconds": seconds, "query": ""}
            if self.late:
                backlog = self.requests - self.late.requests
                payload["tenant"] = "first" if number < backlog else f"tenant-{number % self.late.tenants}"
            payload["query"] = _text(number, self.size - len(json.dumps(payload)))
            yield Request(number, b"key-%06d" % lane, seconds, json.dumps(payload).encode())


def _text(number: int, length: int) -> str:
    """Return text that compresses about as well as people's words do."""
    rng = random.Random(number)
    block = "".join(rng.choices("etaoin shrdlu cmfwyp", k=min(length, 4096)))
    return (block * (length // max(1, len(block)) + 1))[:length]


W1 = Workload("W1", "trivial handler", Shape.BACKLOG, 30_000, 1024, 16)
W2 = Workload("W2", "20 ms, 200 keys", Shape.BACKLOG, 3_000, 1024, 64, seconds=0.02, keys=200, limit=10.0)
W3 = Workload(
    "W3",
    "1 % of 1 s among 5 ms",
    Shape.BACKLOG,
    6_000,
    1024,
    64,
    seconds=0.005,
    slow_share=0.01,
    slow_seconds=1.0,
    keys=2_000,
    limit=10.0,
)
W4 = Workload("W4", "200 requests/s, 5 ms", Shape.PACED, 2_000, 1024, 16, seconds=0.005)
W5 = Workload("W5", "100 kB, 100 ms", Shape.BACKLOG, 1_500, 100_000, 16, seconds=0.1, limit=10.0)
W6 = Workload("W6", "several processes", Shape.BURST, 40_000, 1024, 16)
SWEEP = Workload("sweep", "20 ms over concurrency", Shape.BACKLOG, 0, 1024, 0, seconds=0.02, keys=None, limit=6.0)

_STREAMS = Workload(
    "W7",
    "10 streams",
    Shape.BACKLOG,
    200,
    1024,
    16,
    seconds=1.0,
    limit=90.0,
    provider=Limits(streams=10),
)
W7 = [
    replace(_STREAMS, name="W7-streams"),
    replace(_STREAMS, name="W7-streams-told", title="the same, `Retry-After: 1`", provider=Limits(10, retry_after=1)),
    replace(_STREAMS, name="W7-stream", title="1 stream", requests=20, provider=Limits(1)),
    replace(_STREAMS, name="W7-minute", title="60 calls a minute", requests=90, provider=Limits(number=60)),
]

# Calls that all end in the same moment, ten for each thread.
W8 = [
    Workload(
        f"W8x{threads}",
        f"{threads} threads",
        Shape.BACKLOG,
        10 * threads,
        1024,
        threads,
        seconds=1.0,
        limit=40.0,
        partitions=6,
    )
    for threads in (256, 1024)
]

W9 = Workload(
    "W9",
    "100,000 of one tenant first",
    Shape.BURST,
    100_060,
    256,
    16,
    seconds=0.005,
    limit=40.0,
    late=Late(60, tenants=10, after=1_000),
)

# One thing grows, all else stays. The text that is repeated for large values is compressed well, as W5's is.
_GROWING = Workload("", "", Shape.BACKLOG, 30_000, 256, 16, limit=240.0)
_THREADED_RATE = 1_000  # calls a second that all threads make together
_VALUES = {100: 30_000, 1_000: 30_000, 10_000: 10_000, 100_000: 1_500, 1_000_000: 150, 5_000_000: 40}


def _grow(what: str, points: Mapping[int, Workload]) -> list[Workload]:
    return [replace(load, name=f"{what}-{amount}", title=f"{amount:,}") for amount, load in points.items()]


_GROWN = {
    "partitions": {count: replace(_GROWING, partitions=count) for count in (1, 4, 16, 64, 200, 400)},
    "keys": {
        count: replace(_GROWING, keys=count, requests=max(100_000, count), size=128)
        for count in (10, 1_000, 100_000, 1_000_000)
    },
    "backlog": {count: replace(_GROWING, requests=count) for count in (1_000, 10_000, 100_000, 1_000_000)},
    "bytes": {size: replace(_GROWING, size=size, requests=count) for size, count in _VALUES.items()},
    "threads": {
        count: replace(_GROWING, concurrency=count, seconds=count / _THREADED_RATE, requests=10 * _THREADED_RATE)
        for count in (1, 16, 64, 256, 1_024)
    },
}
GROWTH = {what: _grow(what, points) for what, points in _GROWN.items()}

SWEEP_CONCURRENCY = (1, 4, 16, 64, 128)
SWEEP_SECONDS = 3.0
PROCESSES = (1, 2, 4)

WORKLOADS = {
    "W1": [W1],
    "W2": [W2],
    "W3": [W3],
    "W4": [W4],
    "W5": [W5],
    "W6": [replace(W6, name=f"W6x{count}", processes=count) for count in PROCESSES],
    "W7": W7,
    "W8": W8,
    "W9": [W9],
    "growth": [workload for points in GROWTH.values() for workload in points],
    "sweep": [
        replace(
            SWEEP,
            name=f"sweep{concurrency}",
            concurrency=concurrency,
            requests=int(SWEEP_SECONDS / SWEEP.seconds) * concurrency,
        )
        for concurrency in SWEEP_CONCURRENCY
    ],
}


def quick(workload: Workload) -> Workload:
    """Return a small version, for trying whether all of it works."""
    return replace(
        workload, requests=min(workload.requests, max(100, workload.requests // 6)), limit=min(workload.limit, 4.0)
    )
