"""The topics: seen to at start, and verified again and again by a thread, so that what is said of them stays true."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from gigaoffice_worker.broker.topics import ensure_topics
from gigaoffice_worker.broker.verification import DEFAULT_COMMIT_METADATA, TopicReport, TopicVerifier
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.errors import UnreachableError, WorkerError
from gigaoffice_worker.observe.health import TopicsSeen
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

_EVERY = 15.0
# What keeps the worker from being ready is looked at more often, so that it is ready again soon after.
_WRONG_EVERY = 2.0


class TopicWatch:
    """Keeps the newest report on the topics, and the error that the last verification ended with, if any.

    `changed` hears of every report.
    """

    def __init__(self, config: Config, metrics: Metrics, changed: Callable[[TopicReport], None]) -> None:
        self._config = config
        self._metrics = metrics
        self._changed = changed
        self._verifier = TopicVerifier(config)
        self._stop = threading.Event()
        self.report: TopicReport | None = None
        self.error: WorkerError | None = None
        self.thread = threading.Thread(target=self._run, name="topics", daemon=True)

    def ensure(self, stop: threading.Event, missing: Callable[[Sequence[str]], None]) -> bool:
        """Create and verify the topics, and wait for those that must not be created; False when asked to stop.

        `missing` hears again and again of the topics that are waited for. Raises WorkerError as `ensure_topics` does.
        """
        report = ensure_topics(
            self._config,
            on_created=lambda _topic: self._metrics.topics_created.inc(),
            on_error=lambda kind: self._metrics.topic_creation_errors.labels(kind).inc(),
            stop=stop,
        )
        if report is None:
            return False
        self._note(report)
        while report.missing:
            missing(report.missing)
            if stop.wait(_WRONG_EVERY):
                return False
            report = self._verify() or report
        return not stop.is_set()

    def commit_metadata_limit(self) -> int:
        """Return how many characters of metadata a commit may have; Kafka's default where the cluster does not tell."""
        found = self._verifier.commit_metadata_limit()
        return DEFAULT_COMMIT_METADATA if found is None else min(found, DEFAULT_COMMIT_METADATA)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        """Close the connection to the cluster, unless the thread is just using it."""
        if not self.thread.is_alive():
            self._verifier.close()

    @property
    def seen(self) -> TopicsSeen:
        """What the last verification found, for the side port."""
        report, reachable = self.report, self.error is None
        if report is None:
            return TopicsSeen(reachable=reachable)
        return TopicsSeen(report.existing, report.verified_at, differ=bool(report.mismatches), reachable=reachable)

    def _run(self) -> None:
        while not self._stop.wait(pause(self.report, self.error)):
            self._verify()

    def _verify(self) -> TopicReport | None:
        """Verify once; None when it failed, with the reason in `error`."""
        try:
            report = self._verifier.verify(previous=self.report)
        except WorkerError as error:
            if self.error is None or str(self.error) != str(error):
                log.warning("Topic verification failed", error=str(error), hint=error.hint)
            self.error = error
            return None
        self._note(report)
        return report

    def _note(self, report: TopicReport) -> None:
        if self.error is not None:
            log.info("Topic verification succeeds again")
        self.report, self.error = report, None
        self._metrics.last_topic_verification.set(report.verified_at.timestamp())
        self._changed(report)


def pause(report: TopicReport | None, error: WorkerError | None) -> float:
    """Return the seconds to the next verification. A login that was refused is not tried more often for it."""
    missing = report is not None and bool(report.missing)
    return _WRONG_EVERY if isinstance(error, UnreachableError) or (missing and error is None) else _EVERY
