"""One scenario's stage: its topics, its workers, the load on them, and what is made of it all at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.checker import Findings, examine
from tests.chaos.evidence import TIMED_BY_BROKER, CommitWatch, Evidence, Place, gather, read_journal
from tests.chaos.load import Load, Sent
from tests.chaos.rows import Row, write
from tests.conftest import TopicSet, settings
from tests.support import wire
from tests.support.forked import ROOT
from tests.support.waiting import eventually
from tests.support.workers import Call, WorkerProcess

HOOKS = Path(__file__).parent / "hooks"
# Shorter than the defaults, so that a scenario takes seconds.
ENVIRONMENT = {
    "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": "6000",
    "KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS": "1000",
    "WORKER_CONCURRENCY": "8",
    "WORKER_RETRY_DELAY": "0.1",
    "WORKER_RETRY_MAX_DELAY": "0.5",
}


class Stage(AbstractContextManager["Stage"]):
    """Topics, workers and load. `direct` is a way to the cluster around what the workers' way goes through."""

    def __init__(
        self, bootstrap: str, topics: TopicSet, directory: Path, *, direct: str | None = None, **environment: str
    ) -> None:
        self.bootstrap = direct or bootstrap
        self.topics = topics
        self.directory = directory
        self.environment = {**settings(bootstrap, topics), **ENVIRONMENT, **environment}
        self.workers: list[WorkerProcess] = []
        self.watch = CommitWatch(self.bootstrap, topics)
        self._open = ExitStack()
        self._loads: list[Load] = []
        self._sent: set[Place] = set()

    def __enter__(self) -> Self:
        self._open.enter_context(self.watch)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.__exit__(kind, error, tb)
        for worker in self.workers:
            worker.__exit__(kind, error, tb)

    # Setting it

    def make(self, partitions: int = 3, *, replication: int = 1, config: dict[str, str] | None = None) -> Self:
        """Create the topics; outcomes are stamped by the broker, for the checker."""
        names = self.topics
        few = {"min.insync.replicas": str(min(2, replication)), **(config or {})}
        wire.create_topics(self.bootstrap, {names.requests: partitions}, replication=replication, config=few)
        outcomes = {names.responses: partitions, names.dlq: 1}
        wire.create_topics(self.bootstrap, outcomes, replication=replication, config={**few, **TIMED_BY_BROKER})
        return self

    def worker(self, name: str = "worker", **environment: str) -> WorkerProcess:
        """Return a worker process on these topics, not started yet."""
        worker = WorkerProcess(self.directory, {**self.environment, **environment}, name=name)
        self.workers.append(worker)
        return worker

    def send(self, requests: Iterable[Sent], *, partition: int = -1) -> list[Place]:
        """Write requests at once and return where they stand."""
        found = wire.produce(self.bootstrap, self.topics.requests, requests, partition=partition)
        places = [Place(*place) for place in found]
        self._sent.update(places)
        return places

    def load(self, requests: Iterable[Sent], *, rate: float) -> Load:
        """Start to write requests at a steady pace; it ends with the stage at the latest."""
        load = Load(self.bootstrap, self.topics.requests, requests, rate=rate)
        self._loads.append(load)
        return self._open.enter_context(load)

    # Looking at it

    def calls(self, moment: str | None = "start") -> list[Call]:
        """Return the handler calls so far, in order; with None starts and ends."""
        calls = read_journal(self.directory / "journal.jsonl")
        return [call for call in calls if moment in (None, call.moment)]

    def lag(self) -> int:
        return wire.lag(self.bootstrap, self.topics.group, self.topics.requests)

    def count(self, topic: str) -> int:
        """Return how many records a topic has taken."""
        return sum(wire.end_offsets(self.bootstrap, topic).values())

    def wait_calls(self, count: int, timeout: float = 60.0) -> None:
        """Wait until handlers were called `count` times."""
        eventually(lambda: len(self.calls()) >= count, f"{count} handler calls", timeout=timeout, interval=0.02)

    def wait_settled(self, timeout: float = 90.0) -> None:
        """Wait until everything that was sent is committed."""
        for load in self._loads:
            load.stop()
        eventually(lambda: self.lag() == 0, "all to be committed", timeout=timeout, interval=0.2, state=self._state)

    def _state(self) -> str:
        return "; ".join(worker.ask("/readyz")[1].strip()[:500] for worker in self.workers)

    # Judging it

    def evidence(self, *, max_attempts: int = 5) -> Evidence:
        """Read everything that the run left behind."""
        sent = frozenset(self._sent).union(*(load.sent for load in self._loads))
        journal = self.directory / "journal.jsonl"
        return gather(self.bootstrap, self.topics, journal, self.watch.samples, sent, max_attempts=max_attempts)

    def stop_workers(self) -> None:
        """Drain the workers that run; each must end with 0."""
        running = [worker for worker in self.workers if worker.process.poll() is None]
        codes = {worker.log_file.stem: worker.stop(45.0) for worker in running}
        assert set(codes.values()) <= {0}, f"exit codes: {codes}"

    def conclude(
        self, *, timeout: float = 90.0, resent: bool = False, rewound: bool = False, frozen: bool = False
    ) -> tuple[Findings, Evidence]:
        """Wait until everything is settled, end the workers, and require what holds always."""
        self.wait_settled(timeout)
        self.stop_workers()
        evidence = self.evidence()
        findings = examine(evidence, resent=resent, rewound=rewound, frozen=frozen)
        findings.require()
        assert len(evidence.samples) > 1, "the commits were never seen"
        for worker in self.workers:
            check_log(worker)
        return findings, evidence


def report(fault: str, findings: Findings, *, runs: int = 1, recovery: float | None = None) -> None:
    """Write the scenario's row."""
    write(
        Row(
            fault,
            runs,
            findings.requests,
            len(findings.lost),
            findings.repeated_calls,
            findings.duplicate_outcomes,
            recovery,
        )
    )


def recovered_after(evidence: Evidence, moment: float, until: float | None = None) -> float:
    """Return how many seconds after `moment` (of the clock) every partition with work left had an outcome again.

    Only outcomes before `until` are looked at.
    """
    since, end = moment * 1000, until * 1000 if until is not None else math.inf
    first: dict[int, int] = {}
    for rec in evidence.responses:
        if since <= rec.timestamp < end:
            partition = int(rec.header("source-partition") or b"")
            first[partition] = min(first.get(partition, rec.timestamp), rec.timestamp)
    return max((at - since for at in first.values()), default=0.0) / 1000


def longest_silence(evidence: Evidence, since: float, until: float) -> float:
    """Return the most seconds between two moments of the clock in which a partition had no outcome."""
    times: dict[int, list[int]] = {}
    for rec in evidence.responses:
        if since * 1000 <= rec.timestamp <= until * 1000:
            times.setdefault(int(rec.header("source-partition") or b""), []).append(rec.timestamp)
    return max((max(b - a for a, b in pairwise(sorted(found))) for found in times.values()), default=0.0) / 1000


def hooked(**hooks: str) -> dict[str, str]:
    """Return the environment in which a worker carries these hooks; see hooks/sitecustomize.py."""
    return {"PYTHONPATH": f"{HOOKS}:{ROOT}", **{f"CHAOS_{name.upper()}": value for name, value in hooks.items()}}


def wait_listening(worker: WorkerProcess) -> None:
    """Wait until a worker that was just started listens to signals: before, SIGTERM ends the interpreter itself."""
    eventually(lambda: worker.ask("/livez")[0], "the worker to listen", timeout=30)


def check_log(worker: WorkerProcess) -> None:
    """Fail for a traceback or a dead thread in a worker's log. A kill may cut a line off, so raw text is let pass."""
    for line in worker.logs():
        text = str(line)
        assert "Traceback" not in text, f"{worker.log_file.name}: {text[:3000]}"
        assert line.get("event") != "Thread died", f"{worker.log_file.name}: {text[:3000]}"


def sleep_until(moment: float) -> None:
    """Sleep until a moment of the monotonic clock."""
    time.sleep(max(0.0, moment - time.monotonic()))
