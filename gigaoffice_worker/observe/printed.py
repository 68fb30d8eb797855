"""What a handler prints, as log lines: standard output is a stream of JSON, and one foreign line would break it."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import structlog

from gigaoffice_worker.observe.log_bridge import LONGEST_EVENT

log = structlog.get_logger(__name__)

_LONGEST_LINE: Final = 8192
_STANDARD_OUTPUT: Final = 1
_STANDARD_ERROR: Final = 2


@contextmanager
def prints_as_log_lines() -> Iterator[None]:
    """Let each line that is printed become a log line, of level info, or warning on standard error.

    What is written past Python, by a child process or by a library in C, goes to standard error. The log itself must
    be open: it writes through a descriptor of its own.
    """
    former = sys.stdout, sys.stderr
    sys.stdout = PrintedLines("stdout", log.info, _STANDARD_OUTPUT)
    sys.stderr = PrintedLines("stderr", log.warning, _STANDARD_ERROR)
    kept = _lead_to_standard_error(former[0])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, PrintedLines):
                stream.end()
        sys.stdout, sys.stderr = former
        if kept is not None:
            os.dup2(kept, _STANDARD_OUTPUT)
            os.close(kept)


class PrintedLines(io.TextIOBase):
    """A text stream whose lines are handed to `tell`, each whole: threads that print at once do not mix theirs."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, name: str, tell: Callable[..., object], descriptor: int) -> None:
        self.name = name
        self._tell = tell
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._begun: dict[int, str] = {}
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        """Take what is printed; whole lines are told at once."""
        me = threading.get_ident()
        with self._lock:
            *lines, rest = (self._begun.pop(me, "") + text).replace("\r", "\n").split("\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], ""
            if rest:
                self._begun[me] = rest
        self._tell_all(lines)
        return len(text)

    def end(self) -> None:
        """Tell the lines that were begun and not ended."""
        with self._lock:
            rest, self._begun = list(self._begun.values()), {}
        self._tell_all(rest)

    def _tell_all(self, lines: list[str]) -> None:
        for line in lines:
            text = line.rstrip()
            if text:
                # A longer one would be cut as an event.
                more = {} if len(text) <= LONGEST_EVENT else {"message": text}
                self._tell(text, logger=self.name, **more)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Stay open: a handler that closes its output must not take that of the others away."""


class _Bytes(io.RawIOBase):
    """The binary side of a text stream."""

    def __init__(self, lines: PrintedLines) -> None:
        self._lines = lines

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        content = bytes(memoryview(data))  # type: ignore[arg-type]  # whatever has bytes
        self._lines.write(content.decode("utf-8", "backslashreplace"))
        return len(content)

    def close(self) -> None:
        """Stay open."""


def _lead_to_standard_error(output: object) -> int | None:
    """Let descriptor 1 lead to standard error; return a copy of what it was, None where it cannot be changed."""
    if getattr(output, "fileno", lambda: None)() != _STANDARD_OUTPUT:
        return None  # somebody else has put something of theirs in its place
    kept = None
    with suppress(OSError):  # one of them is closed
        kept = os.dup(_STANDARD_OUTPUT)
        os.dup2(_STANDARD_ERROR, _STANDARD_OUTPUT)
    return kept
