"""The topic workflow: validate, list, create what is missing, verify. Each step is tried again where that may help.

An attempt (listing, creating one topic, verifying) has the configured creation timeout, connecting included. The
connection is kept from step to step until an attempt fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final, NamedTuple, TypeVar

import structlog
from kafka.errors import TopicAlreadyExistsError

from gigaoffice_worker.broker.admin import MAX_MESSAGE_BYTES, Admin, TopicState, admin
from gigaoffice_worker.broker.error_table import Kind, classify, describe, is_timeout, rule, to_worker_error
from gigaoffice_worker.broker.verification import (
    OpenAdmin,
    TopicReport,
    describe_patiently,
    examine,
    limits_of,
    warn,
)
from gigaoffice_worker.config import Config, TopicSpec
from gigaoffice_worker.config.values import partitions_trouble, replication_trouble, topic_name_trouble
from gigaoffice_worker.core.errors import ConfigurationError, UnreachableError

log = structlog.get_logger(__name__)

DEFAULT_MAX_MESSAGE_BYTES: Final = 1_048_588
"""Kafka's default, where the cluster does not tell."""
_DEAD_LETTER_ALLOWANCE: Final = 64 * 1024
"""What a dead letter needs more than its request: the headers behind the original ones."""
_UNPACKED_ALLOWANCE: Final = 1024 * 1024
"""What it may need more than the largest value, for the original headers too: a request comes compressed, and the codec
that its dead letter is written with may do worse, or be none."""

_SETTLING: Final = 2.0

Result = TypeVar("Result")


def dead_letter_limit(requests: int, largest_value: int) -> int:
    """Return the max.message.bytes that a dead letter topic needs, for its request packed or unpacked.

    `requests` is the request topic's, `largest_value` what a request's value may have once it is unpacked, in bytes.
    """
    return min(max(requests + _DEAD_LETTER_ALLOWANCE, largest_value + _UNPACKED_ALLOWANCE), 2**31 - 1)


class _Step(NamedTuple):
    """What the attempts of a step are called in the log."""

    during: str
    again: str
    timeout: str
    failed: str
    fatal: str


_LISTING: Final = _Step(
    "listing the topics",
    "Topic listing failed, trying again",
    "Timeout listing topics",
    "Topic listing failed",
    "Fatal error listing topics",
)
_CREATION: Final = _Step(
    "creating a topic",
    "Topic creation failed, trying again",
    "Timeout creating topic",
    "Topic creation failed",
    "Fatal error creating topic",
)
_VERIFICATION: Final = _Step(
    "verifying the topics",
    "Topic verification failed, trying again",
    "Timeout verifying topics",
    "Topic verification failed",
    "Fatal error verifying topics",
)


class _StoppedError(Exception):
    """Somebody asked to stop while we waited for the next attempt."""


def _ignore(_: str) -> None:
    pass


def ensure_topics(
    config: Config,
    open_admin: OpenAdmin = admin,
    *,
    on_created: Callable[[str], None] = _ignore,
    on_error: Callable[[str], None] = _ignore,
    stop: threading.Event | None = None,
    dry_run: bool = False,
) -> TopicReport | None:
    """See to it that the topics exist, as far as we may, and report on them; None if `stop` was set on the way.

    `on_created` hears the name of each topic that we created, `on_error` of each failed creation attempt: `timeout`,
    `retriable` or `fatal`. `dry_run` has the cluster validate what would be created, and creates nothing.
    Raises ConfigurationError, AccessError, or UnreachableError when the attempts are used up, after an ERROR line.
    """
    workflow = _Workflow(config, open_admin, on_created, on_error, stop or threading.Event(), dry_run=dry_run)
    try:
        return workflow.run()
    except _StoppedError:
        return None
    finally:
        workflow.close()


class _Workflow:
    def __init__(
        self,
        config: Config,
        open_admin: OpenAdmin,
        on_created: Callable[[str], None],
        on_error: Callable[[str], None],
        stop: threading.Event,
        *,
        dry_run: bool,
    ) -> None:
        self._config = config
        self._open_admin = open_admin
        self._on_created = on_created
        self._on_error = on_error
        self._stop = stop
        self._dry_run = dry_run
        self._admin: Admin | None = None

    def run(self) -> TopicReport:
        topics = self._config.topics
        if not topics.auto_create:
            log.info("Topic creation skipped", reason="KAFKA_TOPIC_AUTO_CREATE is false")
        _validate(self._config)
        existing = self._listed()
        if topics.auto_create:
            for spec in topics:
                if spec.name not in existing:
                    self._create(spec)
        expected = [spec.name for spec in topics] if topics.auto_create and not self._dry_run else list(existing)
        return self._verified(expected)

    def close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    # The steps

    def _listed(self) -> dict[str, TopicState]:
        names = [spec.name for spec in self._config.topics]
        log.debug("Topic listing started", topics=names)
        existing = self._attempts(_LISTING, lambda client: client.describe(names))
        log.debug("Topic listing succeeded", existing=sorted(existing))
        log.info("Cluster reached", servers=self._config.kafka.bootstrap_servers)
        return existing

    def _create(self, spec: TopicSpec) -> None:
        facts = {"topic": spec.name, "partitions": spec.partitions, "replication": spec.replication}
        if not self._dry_run:
            log.info("Topic creation started", **facts)
        settings = self._attempts(_CREATION, lambda client: self._create_once(client, spec), topic=spec.name)
        if settings is None:
            log.info("Topic creation: topic already exists", topic=spec.name)
        elif self._dry_run:
            log.info("Topic creation: dry run, the cluster would create the topic", **facts, settings=settings)
        else:
            log.info("Topic creation succeeded", **facts, settings=settings)
            self._on_created(spec.name)

    def _create_once(self, client: Admin, spec: TopicSpec) -> dict[str, str] | None:
        """Return the settings that the topic was created with, None if somebody else was quicker."""
        settings = dict(spec.settings)
        if spec.role == "dlq" and MAX_MESSAGE_BYTES not in settings:
            settings[MAX_MESSAGE_BYTES] = str(self._dead_letter_limit(client))
        try:
            delay = client.create(spec, settings, validate_only=self._dry_run)
        except TopicAlreadyExistsError:
            return None
        if delay > 0:
            log.warning(
                "Topic creation throttled by a quota of the cluster, waiting",
                topic=spec.name,
                seconds=round(delay, 1),
                hint="raise controller_mutation_rate for the user or the client id",
            )
            self._stop.wait(delay)
        return settings

    def _dead_letter_limit(self, client: Admin) -> int:
        """Return how large a dead letter may be with the request topic that there is."""
        requests = self._config.topics.requests
        if not self._dry_run:
            # Created a moment ago, it may not have reached the broker that we ask.
            patience = min(_SETTLING, self._config.topics.creation_timeout / 4)
            describe_patiently(client, [requests.name], [requests.name], patience, self._stop)
        known = limits_of(client, [requests.name]).get(requests.name)
        configured = requests.settings.get(MAX_MESSAGE_BYTES, "")
        if known is None:
            known = int(configured) if configured.isdecimal() else DEFAULT_MAX_MESSAGE_BYTES
        return dead_letter_limit(known, self._config.worker.max_request_bytes)

    def _verified(self, expected: list[str]) -> TopicReport:
        report = self._attempts(
            _VERIFICATION, lambda client: examine(self._config, client, wanted=expected, stop=self._stop)
        )
        if self._dry_run:
            log.info("Topic verification: dry run", existing=report.existing, missing=report.missing)
            return report
        warn(self._config, report)
        if not report.missing:
            log.info("Topic verification succeeded", topics=report.existing)
        return report

    # Trying again

    def _attempts(self, step: _Step, work: Callable[[Admin], Result], **facts: object) -> Result:
        for attempt in count(1):
            if self._stop.is_set():
                break
            try:
                return work(self._fresh_admin())
            except Exception as error:  # noqa: BLE001  # told apart in `error_table`
                self.close()
                self._failed(step, error, attempt, facts)
        raise _StoppedError

    def _fresh_admin(self) -> Admin:
        """Return a connection for one attempt, with all the time of an attempt before it."""
        timeout = self._config.topics.creation_timeout
        if self._admin is None:
            self._admin = self._open_admin(self._config, timeout)
        else:
            self._admin.renew(timeout)
        return self._admin

    def _failed(self, step: _Step, error: Exception, attempt: int, facts: dict[str, object]) -> None:
        """Log a failed attempt and wait for the next one, or raise if there is none."""
        topics = self._config.topics
        timed_out, fatal = is_timeout(error), classify(error) is Kind.FATAL
        if step is _CREATION:
            self._on_error("fatal" if fatal else "timeout" if timed_out else "retriable")
        during = f"creating topic {facts['topic']}" if step is _CREATION else step.during
        told = {**facts, "attempt": attempt, "error": describe(error), "hint": rule(error).hint}
        if fatal:
            log.error(step.fatal, **told)
            raise to_worker_error(error, during) from error
        last = attempt > topics.creation_retries
        if timed_out or not last:
            again = {} if last else {"retry_in": topics.creation_retry_delay}
            log.warning(step.timeout if timed_out else step.again, **told, **again)
        if last:
            log.error(step.failed, **told)
            raise UnreachableError(str(to_worker_error(error, during)), hint=rule(error).hint) from error
        self._stop.wait(topics.creation_retry_delay)


def _validate(config: Config) -> None:
    """Check the topics' figures in the guide's words, before anything is asked of the cluster."""
    problems = [problem for spec in config.topics for problem in _problems(spec)]
    if problems:
        log.error("Topic creation: the configuration is invalid", error="; ".join(problems))
        raise ConfigurationError("; ".join(problems), hint="Mend the KAFKA_TOPIC_… variables.")


def _problems(spec: TopicSpec) -> Iterator[str]:
    yield from filter(
        None,
        (
            topic_name_trouble(spec.name),
            partitions_trouble(spec.name, spec.partitions),
            replication_trouble(spec.name, spec.replication),
        ),
    )
