"""Faults inside a worker process, for scenarios only: Python imports this at start where its directory is on the path.

| variable | does |
|---|---|
| CHAOS_KILL | `PLACE:N` kills the process at the Nth time it comes to PLACE, see `_PLACES` |
| CHAOS_DELIVERY_TIMEOUT | the producer's delivery time-out in seconds |
| CHAOS_FETCH | `N` lets every Nth round of fetch requests fail as a broken TLS connection or a lack of memory does |
| CHAOS_BREAK | puts a mistake into the worker that the checker must see, see `_MISTAKES` |
| CHAOS_CLOCK | a file: the seconds in it are added to the clock that Python code reads, but not to the monotonic one |
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLOCK_EVERY = 0.1
PONDERS = 1.0


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Fuse:
    """Kills the process when it has been touched `count` times."""

    def __init__(self, count: int) -> None:
        self._left = itertools.count(count - 1, -1)

    def touch(self, delay: float = 0.0) -> None:
        if next(self._left) != 0:
            return
        if delay:
            threading.Timer(delay, _die).start()
        else:
            _die()


def _after_poll(fuse: _Fuse) -> None:
    """Records are there and nobody has seen them."""
    from gigaoffice_worker.broker.consumer import Consumer

    poll = Consumer.poll

    def and_die(self: Any, timeout: float, limit: int) -> Any:
        found = poll(self, timeout, limit)
        if found:
            fuse.touch()
        return found

    Consumer.poll = and_die


def _before_commit(fuse: _Fuse) -> None:
    """Outcomes are acknowledged and the offsets settled."""
    from gigaoffice_worker.broker.consumer import Consumer

    commit = Consumer.commit

    def die_first(self: Any, positions: Any, timeout: float) -> None:
        fuse.touch()
        commit(self, positions, timeout)

    Consumer.commit = die_first


def _in_commit(fuse: _Fuse) -> None:
    """The request is on its way, the answer is not there: at some moment of the two milliseconds that it takes."""
    from gigaoffice_worker.broker.consumer import Consumer

    commit = Consumer.commit

    def die_meanwhile(self: Any, positions: Any, timeout: float) -> None:
        fuse.touch(random.uniform(0.0001, 0.004))
        commit(self, positions, timeout)

    Consumer.commit = die_meanwhile


def _after_commit(fuse: _Fuse) -> None:
    """The cluster knows, and the worker is about to."""
    from gigaoffice_worker.broker.consumer import Consumer

    commit = Consumer.commit

    def and_die(self: Any, positions: Any, timeout: float) -> None:
        commit(self, positions, timeout)
        fuse.touch()

    Consumer.commit = and_die


def _after_send(fuse: _Fuse) -> None:
    """An outcome is in the client's hands and not acknowledged."""
    from gigaoffice_worker.broker.producer import Producer

    send = Producer.send

    def and_die(self: Any, *arguments: Any, **options: Any) -> None:
        send(self, *arguments, **options)
        fuse.touch()

    Producer.send = and_die


def _in_handler(fuse: _Fuse) -> None:
    """A call runs, and others beside it."""
    from gigaoffice_worker.engine.processor import Processor

    attempt = Processor.attempt

    def die_meanwhile(self: Any, work: Any) -> Any:
        fuse.touch(random.uniform(0.0001, 0.02))
        return attempt(self, work)

    Processor.attempt = die_meanwhile


_PLACES: dict[str, Callable[[_Fuse], None]] = {
    "after-poll": _after_poll,
    "in-handler": _in_handler,
    "after-send": _after_send,
    "before-commit": _before_commit,
    "in-commit": _in_commit,
    "after-commit": _after_commit,
}


def _match_without_timestamp() -> None:
    """The journal takes a response to an earlier topic's request for the answer."""
    from gigaoffice_worker.core.journal import Identity

    of, named_by = Identity.of.__func__, Identity.named_by.__func__

    def blind(identity: Any) -> Any:
        return identity and identity._replace(timestamp=0)

    Identity.of = classmethod(lambda cls, *given: blind(of(cls, *given)))
    Identity.named_by = classmethod(lambda cls, *given: blind(named_by(cls, *given)))


def _mark_the_end() -> None:
    """The journal's mark is where the log ends when something is committed, whatever is not settled yet.

    It ponders until an answer has come meanwhile, if there is one to come: few commits have any by chance that stand in
    the log and are not settled, and a worker that dies behind another one shows nothing.
    """
    from gigaoffice_worker.engine.engine import Engine

    build = Engine.__init__

    def built(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        from gigaoffice_worker.broker.log_reader import LogReader

        build(self, config, *arguments, **options)
        journal, readers = self.journal, []

        def ends(assignments: Any, _unsettled: Any) -> dict[int, str]:
            if not readers:
                readers.append(LogReader(config, "mistake", 5.0))
            places = [*journal._responses, *journal._dead_letters]
            before, until = readers[0].ends(places), time.monotonic() + PONDERS
            while (found := readers[0].ends(places)) == before and time.monotonic() < until:
                time.sleep(CLOCK_EVERY)
            letters = ",".join(f"{place[1]}.{found[place]}" for place in journal._dead_letters)
            return {p: f"m1:{p}.{found[journal._responses[p]]}:{letters}" for p in assignments}

        journal.marks = ends

    Engine.__init__ = built


_MISTAKES = {"match-without-timestamp": _match_without_timestamp, "mark-the-end": _mark_the_end}


def _shorten_delivery(seconds: float) -> None:
    from gigaoffice_worker.broker import clients

    clients.DELIVERY_TIMEOUT = seconds
    clients.REQUEST_TIMEOUT = min(clients.REQUEST_TIMEOUT, seconds / 2)


def _fail_fetches(every: int) -> None:
    """Raise where the client sends its next fetches: it may have taken records that nobody has seen."""
    from kafka.consumer.fetcher import Fetcher

    send = Fetcher.send_fetches
    rounds = itertools.count(1)

    def send_or_fail(self: Any) -> Any:
        number = next(rounds)
        if number % every == 0:
            raise ssl.SSLError("injected") if number // every % 2 else MemoryError("injected")
        return send(self)

    Fetcher.send_fetches = send_or_fail


def _bend_clock(file: str) -> None:
    real = time.time
    step = read_at = 0.0

    def bent() -> float:
        nonlocal step, read_at
        if time.monotonic() - read_at > CLOCK_EVERY:
            read_at = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                step = float(Path(file).read_text(encoding="ascii"))
        return real() + step

    time.time = bent


if kill := os.environ.get("CHAOS_KILL"):
    place, _, times = kill.partition(":")
    _PLACES[place](_Fuse(int(times)))
if mistake := os.environ.get("CHAOS_BREAK"):
    _MISTAKES[mistake]()
if delivery_timeout := os.environ.get("CHAOS_DELIVERY_TIMEOUT"):
    _shorten_delivery(float(delivery_timeout))
if fetches := os.environ.get("CHAOS_FETCH"):
    _fail_fetches(int(fetches))
if clock := os.environ.get("CHAOS_CLOCK"):
    _bend_clock(clock)
