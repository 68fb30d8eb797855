"""The time limits of a worker, held against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gigaoffice_worker.config import Config

# What leaving the group and closing clients may take behind the drain, and a margin.
_CLOSING: Final = 10.0
_BEATS: Final = 3


def summary(config: Config, delivery_timeout: float) -> str:
    """Say what holds, in one line."""
    worker, consumer = config.worker, config.consumer
    return (
        f"attempt {worker.attempt_timeout:g} s, drain {worker.drain_timeout:g} s, delivery {delivery_timeout:g} s, "
        f"heartbeat {consumer.heartbeat_interval:g} s, session {consumer.session_timeout:g} s, "
        f"poll interval {consumer.max_poll_interval:g} s; systemd's TimeoutStopSec, a container's stop period: "
        f"{stop_time(config):g} s or more"
    )


def stop_time(config: Config) -> float:
    """Return the seconds that a stop may take before somebody kills."""
    return config.worker.drain_timeout + _CLOSING


def remarks(config: Config) -> Iterator[str]:
    """Yield what does not fit together, each with what to do."""
    worker, consumer = config.worker, config.consumer
    if consumer.heartbeat_interval * _BEATS > consumer.session_timeout:
        yield (
            "One or two lost heartbeats end the session: set KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS to a third of "
            f"KAFKA_CONSUMER_SESSION_TIMEOUT_MS ({consumer.session_timeout * 1000 / _BEATS:.0f}) or less."
        )
    if worker.rebalance_wait >= consumer.session_timeout:
        yield (
            "Other members wait for this one longer than its session lasts: set WORKER_REBALANCE_WAIT below "
            f"KAFKA_CONSUMER_SESSION_TIMEOUT_MS ({consumer.session_timeout:g} s)."
        )
    if worker.drain_timeout <= 0:
        yield "Every stop gives up what is running, and it is paid for again: set WORKER_DRAIN_TIMEOUT above 0."
    if worker.retry_delay > worker.retry_max_delay:
        yield "WORKER_RETRY_DELAY has no effect above WORKER_RETRY_MAX_DELAY: lower the one or raise the other."


def note(config: Config) -> str:
    """Say what a stop does to calls that may last longer than the drain."""
    worker = config.worker
    if worker.drain_timeout >= worker.attempt_timeout:
        return ""
    return f"; a stop gives up calls that need more than {worker.drain_timeout:g} s (exit 70), they are redelivered"
