"""The state of the worker in one moment: what the side port, the gauges and the service manager are told from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from gigaoffice_worker.core.admission import LimitsSeen


class State(StrEnum):
    """Where the worker is in its life."""

    STARTING = "starting"
    VERIFYING_TOPICS = "verifying topics"
    WAITING_FOR_TOPICS = "waiting for topics"
    JOINING = "joining"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"

    @property
    def is_ending(self) -> bool:
        return self in {State.DRAINING, State.STOPPED}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the worker is not ready or not alive: a short code for metrics, and a sentence for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class OldestRequest:
    """The unfinished request that holds a partition's committed offset back. `age` is seconds since it arrived."""

    offset: int
    request_id: str
    age: float
    attempt: int
    stage: str


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One assigned partition. `position` is the next offset to be read; the lags are up to the end of the log."""

    partition: int
    epoch: int
    position: int | None
    committed: int | None
    high_watermark: int | None
    lag: int | None
    lag_seconds: float | None
    in_hand: int
    bytes_in_hand: int
    parked: int
    oldest: OldestRequest | None
    paused: str | None
    quarantined: Mapping[str, Any] | None
    # Why nothing can be read although it is not paused, and for how many seconds: "reason" and "seconds".
    stalled: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """How many requests of a tenant wait, and how many of them are parked. The name is cut to 64 characters."""

    tenant: str
    waiting: int
    parked: int


@dataclass(frozen=True, slots=True)
class TopicsSeen:
    """What the last verification of the topics found. `verified_at` is UTC, None before the first one."""

    existing: Sequence[str] = ()
    verified_at: datetime | None = None
    differ: bool = False
    # Whether the newest verification got its answers.
    reachable: bool = True


NO_LIMITS: Final = LimitsSeen()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the side port shows, read in one moment. Times in seconds."""

    state: State
    uptime: float
    queued: int
    running: int
    waiting_retry: int
    delivering: int
    partitions: Sequence[PartitionStatus]
    oldest_in_flight: float
    abandoned_threads: int
    unsettled_bytes: int
    dlq_blocked: bool
    gate_closed: bool
    gate_opens_in: float
    storm_reason: str | None
    holds: Sequence[str]
    standby: bool
    not_live: Sequence[Trouble]
    not_ready: Sequence[Trouble]
    failures: Sequence[Mapping[str, Any]]
    # The tenants with most waiting.
    tenants: Sequence[TenantStatus] = ()
    consumer_running: bool = False
    topics: TopicsSeen = TopicsSeen()
    # WORKER_CONCURRENCY, or what an operator made of it.
    concurrency: int = 1
    limits: LimitsSeen = NO_LIMITS

    @property
    def not_ready_codes(self) -> list[str]:
        return sorted({trouble.code for trouble in self.not_ready})
