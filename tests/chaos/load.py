"""Requests of all kinds, written at a steady pace while things break."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError, Message, Producer

from tests.chaos.evidence import Place
from tests.support.wire import Headers

Sent = tuple[bytes | None, bytes | None, Headers]

# Longer than any outage that a scenario makes.
PATIENCE_MS = 240_000


def request(number: int | str, key: str | None = None, *, headers: Headers | None = None, **payload) -> Sent:
    """Return one request; the payload says what its handler does and, in `expect`, what is to become of it."""
    value = json.dumps({"id": f"r{number}", **payload}).encode()
    return (key.encode() if key is not None else None, value, headers or [])


def plain(count: int, *, keys: int = 20, prefix: str = "", **payload) -> list[Sent]:
    """Return requests that are simply answered."""
    return [request(f"{prefix}{n}", f"k{n % keys}", **payload) for n in range(count)]


def mixture(seed: int = 1, *, keys: int = 24, seconds: float = 0.02, retried: bool = True) -> Iterator[Sent]:
    """Give requests without end: mostly answered, some refused, some retried, some no request at all.

    `seconds` is how long a handler call takes on average. What waits for a retry is given up by a worker that stops,
    and called again from its first attempt on: where no call may be repeated, nothing may be `retried`.
    """
    dice = random.Random(seed)
    for number in itertools.count():
        key = f"k{dice.randrange(keys)}" if dice.random() < 0.9 else None
        takes = round(dice.uniform(0, 2 * seconds), 4)
        match dice.randrange(40) if retried else dice.choice([0, 1, *range(5, 40)]):
            case 0:
                yield request(
                    number, key, do="reject", expect="rejected", headers=[("a", b"1"), ("a", None), ("b", b"")]
                )
            case 1:
                yield request(number, key, do="unsuccessful", expect="failed", seconds=takes)
            case 2:
                yield request(number, key, do="fail", until_attempt=2, seconds=takes)
            case 3:
                yield request(number, key, do="transient", until_attempt=3)
            case 4 if number % 2:
                yield request(
                    number, key, do="fail", expect="attempts-exhausted", headers=[("traceparent", b"00-1-2-03")]
                )
            case 5:
                yield (key.encode() if key is not None else None, f"no request {number}".encode(), [])
            case _:
                yield request(number, key, seconds=takes)


class Load:
    """Writes `requests` to a topic from a thread, `rate` a second, until they or the context end.

    `sent` are the places of those that the cluster has acknowledged, as far as it said where. Nothing is written twice.
    """

    def __init__(self, bootstrap: str, topic: str, requests: Iterable[Sent], *, rate: float) -> None:
        self._topic = topic
        self._requests = iter(requests)
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": PATIENCE_MS,
                "topic.metadata.refresh.interval.ms": 1000,
                "log_level": 0,
            }
        )
        self._sent: set[Place] = set()
        self._failed: list[KafkaError] = []
        self.written = 0

    @property
    def sent(self) -> frozenset[Place]:
        return frozenset(self._sent)

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the writing and wait for what is on its way."""
        self._stop.set()
        self._thread.join(PATIENCE_MS / 1000 + 10)
        assert not self._failed, f"requests could not be written: {self._failed[0]}"

    def finish(self, timeout: float) -> None:
        """Wait until all requests have been written."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"only {self.written} requests were written within {timeout:g} s"
        self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if error is not None:
            self._producer.purge()
        self._thread.join(PATIENCE_MS / 1000 + 10)

    def _run(self) -> None:
        started = time.monotonic()
        for key, value, headers in self._requests:
            due = started + self.written / self._rate
            while not self._stop.is_set() and time.monotonic() < due:
                self._producer.poll(0)
                self._stop.wait(min(0.02, max(0.0, due - time.monotonic())))
            if self._stop.is_set():
                break
            self._producer.produce(self._topic, value, key, on_delivery=self._delivered, headers=headers or None)
            self.written += 1
        self._producer.flush(PATIENCE_MS / 1000)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(error)
        elif message.offset() is not None:
            # The broker that had a batch already, when it came again, does not say where.
            self._sent.add(Place(message.partition(), message.offset()))
