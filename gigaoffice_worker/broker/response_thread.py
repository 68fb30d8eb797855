"""The thread that reads responses for all threads of a program, and connects by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from gigaoffice_worker.broker.requester import told
from gigaoffice_worker.core.errors import UnreachableError, WorkerError
from gigaoffice_worker.core.records import Record

log = structlog.get_logger(__name__)

_LOOK: Final = 0.2  # seconds that one look for responses may take
_RETRY: Final = 0.5
_FAILURE_STANDS: Final = 1.0
_CLOSE_LIMIT: Final = 2.0


class Reader(Protocol):
    """What reads the response topic."""

    def poll(self, timeout: float) -> list[Record]:
        """Return the records that have come. Raises WorkerErrors."""

    def close(self) -> None:
        """Close the connections."""


class ResponseThread:
    """Hands each record of the response topic to `take`, from the first `wait_reading` on until `close`. Thread-safe.

    `connect` returns a reader whose position is fixed. It is called on the thread, so that nobody waits for it longer
    than he has time, and all who wait share one attempt. Its error stands for a second: one who had no part in the
    attempt, and comes right behind it, has no reason to expect better.
    """

    def __init__(
        self,
        connect: Callable[[], Reader],
        take: Callable[[Record], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._take = take
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._reading = False
        self._failure: WorkerError | None = None
        self._failed_at = 0.0
        self.trouble = ""
        """Why responses could not be read at last; empty while they can."""

    def wait_reading(self, timeout: float) -> None:
        """Return once responses are read. Raises WorkerError where they cannot be, or not within `timeout` seconds."""
        with self._changed:
            self._begin()
            self._changed.wait_for(lambda: self._reading or self._failure or self._closed.is_set(), timeout)
            if self._reading or self._closed.is_set():
                return  # once closed, nothing is handed over any more
            if self._failure is None:
                limit = f"{max(0.0, timeout):.3g} s"
                raise UnreachableError(f"no connection to read responses within {limit}; the request is not sent")
            # An error of his own for each thread, since raising adds to its traceback.
            raise type(self._failure)(str(self._failure), hint=self._failure.hint) from self._failure

    def close(self) -> None:
        """Read no more, and let nobody wait for it."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LOOK + _CLOSE_LIMIT)

    def _begin(self) -> None:
        """Start the thread, unless it runs, or has ended a moment ago because it could not connect."""
        if self._failure is not None and self._clock() - self._failed_at >= _FAILURE_STANDS:
            self._thread = self._failure = None
        if self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._run, name="gigaoffice-responses", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            reader = self._connect()
        except Exception as error:  # noqa: BLE001  # whatever the client raises is told to who waits
            with self._changed:
                self._failure, self._failed_at = told(error, "connecting to read responses"), self._clock()
                self._changed.notify_all()
            return
        with self._changed:
            self._reading = True
            self._changed.notify_all()
        self._read(reader)
        reader.close()

    def _read(self, reader: Reader) -> None:
        while not self._closed.is_set():
            try:
                records = reader.poll(_LOOK)
            except Exception as error:  # noqa: BLE001  # told once; the cluster may come back
                if str(error) != self.trouble:
                    log.warning("Responses cannot be read", error=str(error))
                self.trouble = str(error)
                self._closed.wait(_RETRY)
                continue
            if records:
                self.trouble = ""
            for record in records:
                self._take(record)
