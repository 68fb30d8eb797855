"""Requests in hand for the unit tests: records, assignments and work, with as little in them as a test can do with."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

from gigaoffice_worker.broker.verification import TopicReport
from gigaoffice_worker.core.admission import Admission
from gigaoffice_worker.core.dedupe import Answers
from gigaoffice_worker.core.group_share import GroupLimits
from gigaoffice_worker.core.judgement import Judgement
from gigaoffice_worker.core.limits import ProviderLimits
from gigaoffice_worker.core.offsets import OffsetTracker
from gigaoffice_worker.core.records import Failure, Headers, Outcome, Reason, Record
from gigaoffice_worker.core.results import encode_result
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.scheduler import Ordering, Scheduler
from gigaoffice_worker.core.storm import StormGuard, StormLimits
from gigaoffice_worker.core.work import Assignment, Work
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.observe.health import Snapshot, State

TOPIC = "requests"
_THREADS = 1024


def record(
    offset: int = 0,
    key: bytes | None = None,
    value: bytes | None = b'{"id": "r"}',
    headers: Headers = (),
    partition: int = 0,
) -> Record:
    return Record(TOPIC, partition, offset, 1_700_000_000.0, key, value, headers)


def answered(result: object, failure: Failure | None = None, reason: Reason | None = None) -> Outcome:
    """Return the outcome of a request whose handler returned `result`."""
    return Outcome(encode_result(result), failure, reason)


def assignment(partition: int = 0, position: int = 0, epoch: int = 1) -> Assignment:
    return Assignment(TOPIC, partition, epoch, OffsetTracker(position), position)


class Partition:
    """One assigned partition that hands out work with rising offsets."""

    def __init__(self, partition: int = 0, epoch: int = 1, position: int = 0) -> None:
        self.assignment = assignment(partition, position, epoch=epoch)
        self._offsets = itertools.count(position)

    def work(self, key: bytes | None = None, *, value: bytes | None = b"{}", request_id: str = "") -> Work:
        found = record(next(self._offsets), key, value, partition=self.assignment.partition)
        return Work(found, self.assignment, found.size, 0.0, id=request_id)


def dispatcher(
    policy: RetryPolicy | None = None,
    *,
    ordering: Ordering = "key",
    scheduler: Scheduler | None = None,
    storm: StormLimits | None = None,
    clock: Callable[[], float] = time.monotonic,
    rng: Callable[[], float] = random.random,
    adaptive: bool = False,
    threads: int = _THREADS,
    group: GroupLimits | None = None,
    answers: Answers | None = None,
) -> Dispatcher:
    """Return a dispatcher, without a storm guard unless `storm` has its limits."""
    policy = policy or RetryPolicy()
    limits = ProviderLimits(threads, policy.ceiling, rng, adaptive=adaptive)
    admission = Admission(limits, group or GroupLimits(time.time), StormGuard(storm or StormLimits(enabled=False)))
    judgement = Judgement(policy, admission, rng=rng)
    return Dispatcher(scheduler or Scheduler(ordering), admission, judgement, answers, clock=clock)


def report(partitions: Mapping[str, int], operations: Mapping[str, Iterable[str]]) -> TopicReport:
    """Return what a verification found: topics with their numbers of partitions, and what we may do with some."""
    return TopicReport(
        existing=tuple(partitions),
        missing=(),
        without_leader=(),
        mismatches=(),
        verified_at=datetime.fromtimestamp(0, UTC),
        limits={},
        partitions=partitions,
        operations={topic: frozenset(found) for topic, found in operations.items()},
    )


def snapshot(**facts) -> Snapshot:
    """Return what a worker says of itself that runs and has nothing to do, but for `facts`."""
    idle = dict.fromkeys(
        ("queued", "running", "waiting_retry", "delivering", "abandoned_threads", "unsettled_bytes"), 0
    )
    seconds = dict.fromkeys(("uptime", "oldest_in_flight", "gate_opens_in"), 0.0)
    no = dict.fromkeys(("dlq_blocked", "gate_closed", "standby"), False)
    nothing = {"partitions": [], "holds": [], "not_live": [], "not_ready": [], "storm_reason": None, "failures": []}
    return Snapshot(**{"state": State.RUNNING, **idle, **seconds, **no, **nothing, **facts})
