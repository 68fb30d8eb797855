"""What the cluster says of the three topics, held against the configuration. Only looks, never changes anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import structlog
from kafka.errors import KafkaError

from gigaoffice_worker.broker.admin import Admin, TopicState, admin
from gigaoffice_worker.broker.error_table import is_fatal, to_worker_error
from gigaoffice_worker.config import Config, TopicSpec

log = structlog.get_logger(__name__)

OpenAdmin = Callable[[Config, float], Admin]

_LOOK_EVERY: Final = 0.2
_PATIENCE: Final = 0.8
"""The share of an attempt's time for which a new topic may stay invisible or without a leader."""
DEFAULT_COMMIT_METADATA: Final = 4096
"""How many bytes of metadata Kafka takes with a commit unless it is configured otherwise."""
_LIMIT_WITHIN: Final = 5.0


class Mismatch(NamedTuple):
    """A figure of a topic that is not the configured one."""

    topic: str
    what: str
    configured: int
    found: int


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What one verification found; mappings are by topic name and lack what could not be found out."""

    existing: tuple[str, ...]
    missing: tuple[str, ...]
    without_leader: tuple[str, ...]
    """Topics of which a partition has no leader at the moment: nothing can be read from or written to it."""
    mismatches: tuple[Mismatch, ...]
    verified_at: datetime
    limits: Mapping[str, int | None]
    """The `max.message.bytes` of each existing topic, None where we may not know it (DESCRIBE_CONFIGS)."""
    partitions: Mapping[str, int]
    operations: Mapping[str, frozenset[str]]
    """What we may do with each existing topic, in Kafka's names: READ, WRITE, DESCRIBE, …"""


class TopicVerifier:
    """Verifies the topics again and again over a connection of its own. For one thread at a time."""

    def __init__(self, config: Config, open_admin: OpenAdmin = admin) -> None:
        self._config = config
        self._open_admin = open_admin
        self._admin: Admin | None = None

    def verify(self, previous: TopicReport | None = None) -> TopicReport:
        """Verify once, within the configured creation timeout; warn of what `previous` does not say already.

        Without `previous` nothing is logged. Raises WorkerErrors only.
        """
        until = time.monotonic() + self._config.topics.creation_timeout
        try:
            report = self._over_the_old_connection(until) or self._over_a_new_connection(until)
        except Exception as error:
            self.close()
            raise to_worker_error(error, "verifying the topics") from error
        if previous is not None:
            warn(self._config, report, previous)
        return report

    def _over_the_old_connection(self, until: float) -> TopicReport | None:
        if self._admin is None:
            return None
        try:
            self._admin.renew(until - time.monotonic())
            return examine(self._config, self._admin)
        except KafkaError:
            # Broken by a restart that was over long ago, as likely as not: the new one will tell.
            self.close()
            return None

    def _over_a_new_connection(self, until: float) -> TopicReport:
        self._admin = self._open_admin(self._config, max(_LOOK_EVERY, until - time.monotonic()))
        return examine(self._config, self._admin)

    def commit_metadata_limit(self) -> int | None:
        """Return how many bytes of metadata every broker takes with a commit; None where the cluster does not tell.

        It tells whoever may DESCRIBE_CONFIGS on it. Waits for it a few seconds at most, and never raises.
        """
        try:
            if self._admin is None:
                self._admin = self._open_admin(self._config, _LIMIT_WITHIN)
            self._admin.renew(_LIMIT_WITHIN)
            return self._admin.commit_metadata_limit()
        except Exception as error:  # noqa: BLE001  # a refusal is learnt from later, too
            self.close()
            log.debug("Limit of commit metadata not known", error=str(error))
            return None

    def close(self) -> None:
        """Free the connection."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None


def examine(
    config: Config, client: Admin, wanted: Collection[str] = (), stop: threading.Event | None = None
) -> TopicReport:
    """Describe the topics, waiting a while for those that are `wanted` to be visible and to have leaders.

    Raises the client's errors.
    """
    required = tuple(spec.name for spec in config.topics)
    states = describe_patiently(client, required, wanted, config.topics.creation_timeout * _PATIENCE, stop)
    existing = tuple(name for name in required if name in states)
    limits = limits_of(client, existing)
    return TopicReport(
        existing=existing,
        missing=tuple(name for name in required if name not in states),
        without_leader=tuple(name for name in existing if not states[name].has_leaders),
        mismatches=tuple(
            mismatch for spec in config.topics if spec.name in states for mismatch in _compare(spec, states[spec.name])
        ),
        verified_at=datetime.now(UTC),
        limits={name: limits.get(name) for name in existing},
        partitions={name: states[name].partitions for name in existing},
        operations={name: states[name].operations for name in existing},
    )


def describe_patiently(
    client: Admin, names: Collection[str], wanted: Collection[str], patience: float, stop: threading.Event | None
) -> dict[str, TopicState]:
    """Describe topics, for up to `patience` seconds until those `wanted` are visible and have their leaders."""
    until = time.monotonic() + patience
    pause = stop or threading.Event()
    while True:
        states = client.describe(names)
        late = [name for name in wanted if name not in states or not states[name].has_leaders]
        if not late or time.monotonic() + _LOOK_EVERY > until or pause.wait(_LOOK_EVERY):
            return states


def limits_of(client: Admin, names: Collection[str]) -> dict[str, int]:
    """Return the topics' `max.message.bytes`, as far as the cluster tells it to us."""
    try:
        return client.max_message_bytes(names)
    except KafkaError as error:
        if is_fatal(error):
            return {}
        raise


def _compare(spec: TopicSpec, state: TopicState) -> Iterator[Mismatch]:
    """Yield what is short of the configuration: more partitions than configured are nobody's harm."""
    if state.partitions < spec.partitions:
        yield Mismatch(spec.name, "partitions", spec.partitions, state.partitions)
    if state.replication != spec.replication:
        yield Mismatch(spec.name, "replication factor", spec.replication, state.replication)


def warn(config: Config, report: TopicReport, previous: TopicReport | None = None) -> None:
    """Log a warning for everything in a report that an operator should know and that `previous` does not say."""
    known = previous or _NOTHING
    hint = (
        "it is not visible yet, or somebody deleted it: then create it, or restart the worker to have it created"
        if config.topics.auto_create
        else "create the topic, or set KAFKA_TOPIC_AUTO_CREATE=true; the worker waits for it"
    )
    for name in report.missing:
        if name not in known.missing:
            log.warning("Topic verification: topic is missing", topic=name, hint=hint)
    for name in report.without_leader:
        if name not in known.without_leader:
            log.warning(
                "Topic verification: topic has a partition without a leader", topic=name, hint="check the brokers"
            )
    for mismatch in report.mismatches:
        if mismatch not in known.mismatches:
            log.warning(
                "Topic verification: topic differs from the configuration",
                **mismatch._asdict(),
                hint="nothing is changed: alter the topic, or configure what it has",
            )


_NOTHING: Final = TopicReport((), (), (), (), datetime.fromtimestamp(0, UTC), {}, {}, {})
