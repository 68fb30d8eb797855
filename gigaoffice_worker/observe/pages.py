"""The documents of the side port: what `/livez`, `/readyz`, `/health`, `/health/topics`, `/status` and `/` answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gigaoffice_worker.config import Config
from gigaoffice_worker.core.visible import visible
from gigaoffice_worker.observe.health import Snapshot, Trouble
from gigaoffice_worker.observe.metrics import Metrics, total
from gigaoffice_worker.observe.page import status_page
from gigaoffice_worker.observe.server import Answer


class Pages:
    """Answers from a snapshot of the moment in which a page is asked for.

    `not_live` is asked by itself for `/livez`: that page has to answer even where a snapshot would wait for a lock.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        version: str,
        snapshot: Callable[[], Snapshot],
        not_live: Callable[[], Sequence[Trouble]],
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._version = version
        self._snapshot = snapshot
        self._not_live = not_live

    def by_path(self) -> dict[str, Callable[[], Answer]]:
        """Return the pages as the side port wants them: path → function."""
        return {
            "/livez": lambda: _verdict("live", self._not_live()),
            "/readyz": self._readyz,
            "/health": self._health,
            "/health/topics": lambda: Answer(200, self.topic_health()),
            "/status": lambda: Answer(200, self._status()),
            "/": lambda: Answer(200, status_page(self._status()), "text/html; charset=utf-8"),
        }

    def service_health(self) -> dict[str, Any]:
        """Return the guide's service health document: status, statistics and configuration."""
        now, metrics, config = self._snapshot(), self._metrics, self._config
        timeout = config.topics.creation_timeout
        return {
            "status": _service_status(now),
            "bootstrap_servers": ",".join(config.kafka.bootstrap_servers),
            "consumer_running": now.consumer_running,
            "statistics": {
                "messages_sent": total(metrics.messages_sent),
                "messages_received": total(metrics.messages_received),
                "messages_failed": total(metrics.messages_failed),
                "topics_created": total(metrics.topics_created),
                "topic_creation_errors": total(metrics.topic_creation_errors),
            },
            "configuration": {
                "auto_create_topics": config.topics.auto_create,
                "creation_retries": config.topics.creation_retries,
                "creation_timeout": int(timeout) if float(timeout).is_integer() else timeout,
            },
        }

    def topic_health(self) -> dict[str, Any]:
        """Return the guide's topic health document: required, existing and missing topics, and when it was found."""
        required = [spec.name for spec in self._config.topics]
        seen = self._snapshot().topics
        missing = [topic for topic in required if topic not in seen.existing]
        status = "degraded" if missing else "healthy"
        if seen.verified_at is None or not seen.reachable:
            status = "unhealthy"
        return {
            "status": status,
            "required_topics": required,
            "existing_topics": [topic for topic in required if topic in seen.existing],
            "missing_topics": missing,
            "last_verification": seen.verified_at.strftime("%Y-%m-%dT%H:%M:%S") if seen.verified_at else None,
        }

    def _readyz(self) -> Answer:
        now = self._snapshot()
        return _verdict("ready (standby: no partition assigned)" if now.standby else "ready", now.not_ready)

    def _health(self) -> Answer:
        document = self.service_health()
        return Answer(503 if document["status"] == "unhealthy" else 200, document)

    def _status(self) -> dict[str, Any]:
        config = self._config
        facts = {
            "version": self._version,
            "group": config.consumer.group,
            "topics": {spec.role: spec.name for spec in config.topics},
            "handler": config.worker.handler,
            "ordering": config.worker.ordering,
            "totals": self._metrics.totals(),
        }
        return status_document(self._snapshot(), facts)


def status_document(now: Snapshot, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the worker is doing now, for `/status`."""
    return {
        **facts,
        "concurrency": now.concurrency,
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
        "limits": {**now.limits._asdict(), "calls": now.limits.calls, "in_words": now.limits.in_words()},
        "gate": {"closed": now.gate_closed, "opens_in_seconds": round(now.gate_opens_in, 3)},
        "storm_guard": {"open": now.storm_reason is not None, "error_type": now.storm_reason},
        "tenants": [asdict(tenant) for tenant in now.tenants],
        "partitions": [asdict(partition) for partition in now.partitions],
        "last_error": now.failures[0] if now.failures else None,
        "failures": list(now.failures),
    }


def _service_status(now: Snapshot) -> str:
    if now.not_live or not now.consumer_running:
        return "unhealthy"
    return "degraded" if now.not_ready or now.topics.differ else "healthy"


def _verdict(good: str, troubles: Sequence[Trouble]) -> Answer:
    if not troubles:
        return Answer(200, f"{good}\n")
    return Answer(503, "".join(visible(f"{trouble.code}: {trouble.text}") + "\n" for trouble in troubles))
