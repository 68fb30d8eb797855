"""Where a thread is within its handler call, for calls that do not come back."""

from __future__ import annotations

import sys
import threading
import traceback
from types import TracebackType
from typing import NamedTuple

from gigaoffice_worker.core.frames import own_frame
from gigaoffice_worker.engine.processor import Processor

_MAX_FRAMES = 30
_ENTRY = Processor.attempt.__code__


class CallStack(NamedTuple):
    """A handler call that runs: `at` is the innermost frame of the handler's own code, `text` has a frame a line."""

    at: str
    text: str


def call_stack(thread: threading.Thread) -> CallStack:
    """Return where the handler call of `thread` is; empty texts when it has just come back."""
    outermost = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - CPython's documented way to see other threads
    called: TracebackType | None = None
    lines: list[str] = []
    for frame, line in traceback.walk_stack(outermost) if outermost is not None else ():
        code = frame.f_code
        if code is _ENTRY:
            own = own_frame(called)
            return CallStack(str(own) if own is not None else "", "\n".join(lines[-1 : -_MAX_FRAMES - 1 : -1]))
        called = TracebackType(called, frame, frame.f_lasti, line)
        lines.append(f"{code.co_filename}:{line} {code.co_qualname}")
    return CallStack("", "")
