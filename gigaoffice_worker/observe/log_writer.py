"""A thread that writes log lines, so that a slow reader, a full disk or a closed pipe is never the caller's problem."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Protocol, TextIO

CAPACITY = 4 * 1024 * 1024  # bytes of lines that wait to be written

_PIPE_BUF = 4096  # what a pipe that poll() calls writable takes at once, without blocking (POSIX PIPE_BUF on Linux)
_STALL_CHECK = 0.25  # seconds after which a blocked writer looks up


class _OutOfTimeError(Exception):
    """The stream takes nothing, and the time for the last lines is over."""


class _Output(Protocol):
    def write(self, data: bytes, wait: Callable[[], None]) -> None: ...
    def close(self) -> None: ...


class BackgroundWriter:
    """Write lines to `stream` in their order, from a thread of its own, out of a queue with a bound in bytes.

    When the queue is full the *newest* line is dropped: the lines that began an incident say why, what follows mostly
    repeats, and the gap's place in the output is exact. Nothing is taken again until half of the queue is free, then
    `gap(n)` gives a line that says how many are missing. A line that the stream refuses is dropped too.
    `on_dropped(n)` is called from the writing thread only: the code that logs must never meet a foreign lock.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        gap: Callable[[int], str],
        on_dropped: Callable[[int], None],
        capacity: int = CAPACITY,
    ) -> None:
        self._output = _open(stream)
        self._gap = gap
        self._on_dropped = on_dropped
        self._capacity = capacity
        # Re-entrant, because the garbage collector can run a finalizer that logs while this very lock is held.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._waiting = 0  # bytes
        self._missing = 0  # lines dropped since the last gap line
        self._unreported = 0  # lines dropped since the last on_dropped
        self._full = False
        self._deadline: float | None = None  # set when closing
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line. Never blocks, never raises; after close() the line is dropped."""
        data = line.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._refuses(len(data)):
                self._missing += 1
                self._unreported += 1
                return
            if self._missing:
                self._append(self._gap(self._missing).encode())
                self._missing = 0
            self._append(data)
            self._changed.notify()

    def close(self, timeout: float) -> None:
        """Write what is queued, for at most `timeout` seconds, and end the thread; what remains is dropped."""
        with self._changed:
            if self._deadline is None:
                self._deadline = monotonic() + timeout
            self._changed.notify()
        self._thread.join(timeout + 2 * _STALL_CHECK)  # a stream that isn't a file can hold the thread: leave it behind

    def _refuses(self, size: int) -> bool:
        if self._deadline is not None:
            return True
        if self._full and self._waiting > self._capacity // 2:
            return True
        self._full = self._waiting + size > self._capacity
        return self._full

    def _append(self, data: bytes) -> None:
        self._lines.append(data)
        self._waiting += len(data)

    def _run(self) -> None:
        try:
            while (data := self._next()) is not None:
                try:
                    self._output.write(data, self._while_stalled)
                except _OutOfTimeError:
                    self._drop(1)
                    break
                except Exception:  # noqa: BLE001 - disk full, reader gone, or a closed Python stream
                    self._drop(1)
                self._took(len(data))
                self._report()
        finally:
            self._drop(len(self._lines))
            self._report()
            self._output.close()

    def _next(self) -> bytes | None:
        with self._changed:
            while not self._lines and self._deadline is None:
                self._changed.wait()
            if not self._lines or (self._deadline is not None and monotonic() > self._deadline):
                return None
            return self._lines.popleft()

    def _took(self, size: int) -> None:
        with self._changed:
            self._waiting -= size

    def _drop(self, lines: int) -> None:
        with self._changed:
            self._missing += lines
            self._unreported += lines

    def _while_stalled(self) -> None:
        self._report()
        if self._deadline is not None and monotonic() > self._deadline:
            raise _OutOfTimeError

    def _report(self) -> None:
        with self._changed:
            dropped, self._unreported = self._unreported, 0
        if dropped:
            with suppress(Exception):
                self._on_dropped(dropped)


def _open(stream: TextIO) -> _Output:
    with suppress(Exception):  # what was printed before comes before
        stream.flush()
    try:
        return _FileOutput(os.dup(stream.fileno()))
    except (OSError, ValueError, AttributeError):  # io.StringIO and the like, or a stream that is closed already
        return _StreamOutput(stream)


class _FileOutput:
    """A descriptor of our own: if somebody closes the stream, its number may soon mean another file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._torn = False

    def write(self, data: bytes, wait: Callable[[], None]) -> None:
        left = memoryview(b"\n" + data if self._torn else data)
        while left:
            while not self._poll.poll(_STALL_CHECK * 1000):
                wait()
            with suppress(BlockingIOError):  # somebody made the descriptor non-blocking
                left = left[os.write(self._descriptor, left[:_PIPE_BUF]) :]
                self._torn = bool(left)

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


class _StreamOutput:
    """A Python stream without a descriptor, as tests pass."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, data: bytes, wait: Callable[[], None]) -> None:  # noqa: ARG002
        self._stream.write(data.decode())
        self._stream.flush()

    def close(self) -> None:
        """Leave the stream open: it belongs to whoever passed it."""
