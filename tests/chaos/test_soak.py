"""Everything at once for a long time: and at the end nothing is lost, and the worker holds no more than at first."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import pytest

from gigaoffice_worker.core.errors import UnreachableError
from gigaoffice_worker.devkafka.settings import BROKER
from tests.chaos.load import mixture
from tests.chaos.stage import longest_silence, report
from tests.support import wire
from tests.support.waiting import eventually

MINUTES = float(os.environ.get("CHAOS_MINUTES", "10"))
MEGABYTE = 1024 * 1024
# What the interpreter's allocator may keep after storms that it has seen: no leak of every request or rebuild is as
# small over thousands of them.
SPARE_MEMORY = 24 * MEGABYTE
# Connections come and go with brokers; a leak of each reconnect would be hundreds.
SPARE_FILES = 6
UNREACHABLE = UnreachableError.exit_code


class Held(NamedTuple):
    """What a process holds."""

    memory: int
    threads: int
    files: int

    @classmethod
    def by(cls, pid: int) -> Held:
        process = psutil.Process(pid)
        return cls(process.memory_info().rss, process.num_threads(), process.num_fds())

    def __str__(self) -> str:
        return f"{self.memory / MEGABYTE:.1f} MB, {self.threads} threads, {self.files} files"


class Havoc:
    """Faults, each a context: what it breaks is whole again behind it."""

    def __init__(self, cluster, stage, workers, seed: int) -> None:
        self.dice = random.Random(seed)
        self.cluster = cluster
        self.stage = stage
        # The first one is measured, so its process stays the same.
        self.steady, *self.others = workers
        self.made: Counter[str] = Counter()
        self.to_workers: list[Callable[[], Iterator[None]]] = [
            self.worker_killed,
            self.worker_stopped,
            self.worker_frozen,
            self.steady_worker_frozen,
        ]
        self.to_brokers: list[Callable[[], Iterator[None]]] = [
            self.broker_killed,
            self.broker_stopped,
            self.broker_frozen,
            self.all_brokers_frozen,
        ]

    def once(self) -> None:
        """Make a fault, or one on either side at once, and wait until the cluster is whole."""
        self.supervise()
        worker, broker = self.dice.choice(self.to_workers), self.dice.choice(self.to_brokers)
        chosen = self.dice.choice([[worker], [broker], [worker, broker]])
        faults = [contextmanager(fault)() for fault in chosen]
        for fault in chosen:
            self.made[fault.__name__.replace("_", " ")] += 1
        for fault in faults:
            fault.__enter__()
        time.sleep(self.dice.uniform(1.0, 9.0))
        for fault in reversed(faults):
            fault.__exit__(None, None, None)
        names = [*self.stage.topics[:3], "__consumer_offsets"]
        eventually(lambda: wire.in_sync(self.stage.bootstrap, names), "replicas to be in sync", timeout=90)
        time.sleep(self.dice.uniform(0.5, 4.0))

    def supervise(self) -> None:
        """Wait until all workers listen; one whose start fell into an outage is started again, as a service is."""

        def listen() -> bool:
            for worker in self.others:
                if (code := worker.process.poll()) is not None:
                    assert code == UNREACHABLE
                    worker.start()
            return all(worker.ask("/livez")[0] for worker in self.others)

        eventually(listen, "the workers to listen", timeout=60)

    def worker_killed(self) -> Iterator[None]:
        worker = self.dice.choice(self.others)
        worker.signal(signal.SIGKILL)
        worker.wait(10)
        yield
        worker.start()

    def worker_stopped(self) -> Iterator[None]:
        worker = self.dice.choice(self.others)
        worker.signal(signal.SIGTERM)
        yield
        # In an outage of the brokers it may have to give up what it could not deliver.
        assert worker.wait(45) in (0, 70, UNREACHABLE)
        worker.start()

    def worker_frozen(self) -> Iterator[None]:
        yield from _frozen(self.dice.choice(self.others))

    def steady_worker_frozen(self) -> Iterator[None]:
        yield from _frozen(self.steady)

    def broker_killed(self) -> Iterator[None]:
        node = self.dice.randint(1, 3)
        self.cluster.kill(node)
        yield
        self.cluster.restart(node)

    def broker_stopped(self) -> Iterator[None]:
        node = self.dice.randint(1, 3)
        self.cluster.stop_node(node)
        yield
        self.cluster.restart(node)

    def broker_frozen(self) -> Iterator[None]:
        node = self.dice.randint(1, 3)
        self.cluster.freeze(node)
        yield
        self.cluster.thaw(node)

    def all_brokers_frozen(self) -> Iterator[None]:
        self.cluster.freeze()
        yield
        self.cluster.thaw()


def _frozen(worker) -> Iterator[None]:
    worker.signal(signal.SIGSTOP)
    yield
    worker.signal(signal.SIGCONT)


def _settled_down(worker) -> Held:
    """Return what the worker holds when it has been at rest for a while."""
    time.sleep(15.0)
    return Held.by(worker.pid)


@pytest.mark.timeout(MINUTES * 60 + 600)
def test_minutes_of_mixed_chaos_lose_nothing_and_leave_nothing_behind(secured_kafkas, make_stage):
    cluster, login = secured_kafkas
    stage = make_stage(cluster, direct=cluster.bootstrap(BROKER), **login).make(6, replication=3)
    workers = [stage.worker(f"worker-{n}").start() for n in range(3)]
    for worker in workers:
        worker.wait_ready()
    steady = workers[0]
    # Everything that is made on first use is there before it is measured.
    stage.load(mixture(seed=0), rate=40)
    time.sleep(20.0)
    stage.wait_settled()
    at_first = _settled_down(steady)

    stage.load(mixture(seed=2), rate=40)
    havoc = Havoc(cluster, stage, workers, seed=int(os.environ.get("CHAOS_SEED", "7")))
    began = time.time()
    while time.time() - began < MINUTES * 60:
        havoc.once()
    ended = time.time()
    havoc.supervise()
    for worker in workers:
        worker.wait_ready(60)
    stage.wait_settled(120)
    at_last = _settled_down(steady)
    print(f"\n{dict(havoc.made)}\nat first: {at_first}; at last: {at_last}")

    findings, evidence = stage.conclude(timeout=120, resent=True, rewound=True)
    assert at_last.threads == at_first.threads
    assert at_last.files <= at_first.files + SPARE_FILES
    assert at_last.memory <= at_first.memory + SPARE_MEMORY
    silence = longest_silence(evidence, began, ended)
    report(
        f"{MINUTES:g} minutes of all of this, mixed, with TLS and SASL",
        findings,
        runs=havoc.made.total(),
        recovery=silence,
    )
