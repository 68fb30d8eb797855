"""A thread that verifies the topics again and again, so that what it says of them stays true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from gigaoffice_worker.broker.topics import TopicReport
from gigaoffice_worker.core.errors import WorkerError

log = structlog.get_logger(__name__)

EVERY = 15.0


class TopicWatch:
    """Keeps the newest report on the topics, and the error that the last verification ended with, if any.

    `verify` does one verification with a time limit of its own; `changed` hears of every report.
    """

    def __init__(
        self, verify: Callable[[], TopicReport], changed: Callable[[TopicReport], None], *, every: float = EVERY
    ) -> None:
        self._verify = verify
        self._changed = changed
        self._every = every
        self._stop = threading.Event()
        self.report: TopicReport | None = None
        self.error: WorkerError | None = None
        self.failing_since: float | None = None
        self.thread = threading.Thread(target=self._run, name="topics", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stop.set()

    @property
    def running(self) -> bool:
        """Whether a verification may be under way in the thread."""
        return self.thread.is_alive()

    def note(self, report: TopicReport) -> None:
        """Take over the report of a verification that succeeded."""
        if self.error is not None:
            log.info("Topic verification succeeds again")
        self.report, self.error, self.failing_since = report, None, None
        self._changed(report)

    def verify_now(self) -> TopicReport | None:
        """Verify once; None when it failed, with the reason in `error`."""
        try:
            report = self._verify()
        except WorkerError as error:
            if self.error is None or str(self.error) != str(error):
                log.warning("Topic verification failed", error=str(error), hint=error.hint)
            self.failing_since = self.failing_since or time.monotonic()
            self.error = error
            return None
        self.note(report)
        return report

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.verify_now()
