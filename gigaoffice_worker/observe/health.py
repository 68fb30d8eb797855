"""What the worker says about itself: one snapshot, and the documents made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any


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
    oldest: OldestRequest | None
    paused: str | None
    quarantined: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the side port shows, read in one moment. Times in seconds."""

    state: str
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
    last_error: Mapping[str, Any] | None

    @property
    def not_ready_codes(self) -> list[str]:
        return sorted({trouble.code for trouble in self.not_ready})


def status_document(now: Snapshot, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the worker is doing now, for `/status`."""
    return {
        **facts,
        "state": now.state,
        "uptime_seconds": round(now.uptime, 1),
        "live": not now.not_live,
        "ready": not now.not_ready,
        "not_live": [trouble.text for trouble in now.not_live],
        "not_ready": [trouble.text for trouble in now.not_ready],
        "standby": now.standby,
        "requests": {
            "queued": now.queued,
            "running": now.running,
            "waiting_retry": now.waiting_retry,
            "unsettled_outcomes": now.delivering,
            "oldest_in_flight_seconds": round(now.oldest_in_flight, 3),
            "abandoned_threads": now.abandoned_threads,
            "unsettled_bytes": now.unsettled_bytes,
        },
        "handler_calls_held_by": list(now.holds),
        "gate": {"closed": now.gate_closed, "opens_in_seconds": round(now.gate_opens_in, 3)},
        "storm_guard": {"open": now.storm_reason is not None, "error_type": now.storm_reason},
        "partitions": [asdict(partition) for partition in now.partitions],
        "last_error": now.last_error,
    }


@dataclass(frozen=True, slots=True)
class Statistics:
    """The guide's statistics. `messages_sent` counts acknowledged responses and dead letters."""

    messages_sent: int
    messages_received: int
    messages_failed: int
    topics_created: int
    topic_creation_errors: int


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What the service health document says of the configuration."""

    bootstrap_servers: str
    auto_create_topics: bool
    creation_retries: int
    creation_timeout: float


def service_health(
    now: Snapshot, statistics: Statistics, facts: ServiceFacts, *, consumer_running: bool, topics_differ: bool
) -> dict[str, Any]:
    """Return the guide's service health document."""
    if now.not_live or not consumer_running:
        status = "unhealthy"
    elif now.not_ready or topics_differ:
        status = "degraded"
    else:
        status = "healthy"
    timeout = facts.creation_timeout
    return {
        "status": status,
        "bootstrap_servers": facts.bootstrap_servers,
        "consumer_running": consumer_running,
        "statistics": asdict(statistics),
        "configuration": {
            "auto_create_topics": facts.auto_create_topics,
            "creation_retries": facts.creation_retries,
            "creation_timeout": int(timeout) if float(timeout).is_integer() else timeout,
        },
    }


def topic_health(
    required: Sequence[str], existing: Sequence[str], verified_at: datetime | None, *, reachable: bool
) -> dict[str, Any]:
    """Return the guide's topic health document. `verified_at` is UTC."""
    missing = [topic for topic in required if topic not in existing]
    status = "degraded" if missing else "healthy"
    if verified_at is None or not reachable:
        status = "unhealthy"
    return {
        "status": status,
        "required_topics": list(required),
        "existing_topics": [topic for topic in required if topic in existing],
        "missing_topics": missing,
        "last_verification": verified_at.strftime("%Y-%m-%dT%H:%M:%S") if verified_at else None,
    }
