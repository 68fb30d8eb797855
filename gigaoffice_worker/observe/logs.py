"""The structured log of the process: one JSON object a line, from structlog's and the standard library's loggers."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from types import FrameType, ModuleType
from typing import Any, Literal, TextIO

import structlog

from gigaoffice_worker.observe.log_bridge import FLOORS, StdlibBridge
from gigaoffice_worker.observe.log_lines import LineFormat
from gigaoffice_worker.observe.log_writer import CAPACITY, BackgroundWriter
from gigaoffice_worker.observe.repeats import OwnRepeats, RateLimiter

_EXIT_FLUSH = 2.0  # seconds for the last lines of a process that ends without close()
_MAX_STACKS = 100
_MAX_STACK_FRAMES = 30


class LogSink:
    """Where all log lines of the process go: rendered by the caller's thread, written by one of the sink's own."""

    level: str
    """The least level that is logged."""

    def __init__(self, lines: LineFormat, writer: BackgroundWriter) -> None:
        self._lines = lines
        self._writer = writer
        self._undo: list[Callable[[], object]] = []
        self._tells_all = False
        self._own = OwnRepeats(self.emit)
        self._others: StdlibBridge | None = None

    def hide(self, secret: str) -> None:
        """Print asterisks instead of `secret` from now on, wherever it turns up (at least four characters)."""
        self._lines.hide(secret)

    def set_level(self, level: str) -> None:
        """Log lines of this level and above from now on, also through loggers that exist. Raises ValueError."""
        threshold = logging.getLevelNamesMapping().get(level.upper())
        if not threshold:
            raise ValueError(f"{level!r} is no level: DEBUG, INFO, WARNING, ERROR or CRITICAL")
        self.level = level.upper()
        self._tells_all = threshold <= logging.DEBUG
        if self._others is not None:
            self._others.tells_all = self._tells_all
        _let_pass(threshold)

    def tell(self, level: str, event: object, facts: Mapping[str, object], created: float) -> None:
        """Write one record of ours, unless it repeats a cause that was told often just now; at DEBUG all are told."""
        left_out = 0 if self._tells_all else self._own.admit(level, event, facts, created)
        if left_out is not None:
            self.emit(level, event, {**facts, "suppressed": left_out} if left_out else facts, created)

    def emit(self, level: str, event: object, facts: Mapping[str, object], created: float) -> None:
        """Write one record of the moment `created` (Unix seconds). Never blocks, never raises."""
        self._writer.write(self._lines.line(level, event, facts, created))

    def tell_left_out(self) -> None:
        """Say how many repeated lines were left out and not told yet."""
        self._own.tell(time.time(), idle=0.0)
        if self._others is not None:
            self._others.flush_summaries(time.time())

    def listen_by(self, bridge: StdlibBridge) -> None:
        """Let `bridge` hand the records of other loggers to this sink; what they left out is told at the end."""
        self._others = bridge
        self.on_close(self.tell_left_out)

    def close(self, timeout: float = _EXIT_FLUSH) -> None:
        """Write what is queued, for at most `timeout` seconds, and give stdlib logging and the hooks back."""
        while self._undo:
            self._undo.pop()()
        self._writer.close(timeout)

    def on_close(self, undo: Callable[[], object]) -> None:
        """Call `undo` when the sink closes, in reverse order."""
        self._undo.append(undo)


def configure(
    level: str,
    format: Literal["auto", "json", "console"],  # noqa: A002 - the variable is called LOG_FORMAT
    *,
    stream: TextIO | None = None,
    on_dropped: Callable[[int], None] = lambda dropped: None,  # noqa: ARG005
    capacity: int = CAPACITY,
) -> LogSink:
    """Send everything that is logged from now on to `stream` (standard output unless given), until the sink is closed.

    `level` is the least level, by name; `auto` means JSON unless the stream is a terminal. `on_dropped(n)` hears of
    lines that could not be written; it is called from the writing thread. `capacity` bounds the waiting lines in bytes.
    Raises RuntimeError while an earlier sink is open.
    """
    chain_end = _chain_end()
    if chain_end.sink is not None:
        raise RuntimeError("logs are configured already; close the sink first")
    output = sys.stdout if stream is None else stream
    terminal = _is_terminal(output)
    lines = LineFormat(console=format == "console" or (format == "auto" and terminal), colour=terminal)

    def gap(missing: int) -> str:
        return lines.line("warning", "Log lines dropped", {"dropped": missing}, time.time())

    sink = LogSink(lines, BackgroundWriter(output, gap=gap, on_dropped=on_dropped, capacity=capacity))
    _bind_structlog(chain_end, sink)
    _bind_stdlib(sink)
    sink.set_level(level)
    _bind_hooks(sink)
    atexit.register(sink.close)
    sink.on_close(partial(atexit.unregister, sink.close))
    return sink


def set_level(level: str) -> None:
    """Set the least level that is logged, by name. Raises ValueError for one that there is none of."""
    sink = _chain_end().sink
    if sink is not None:
        sink.set_level(level)


def tell_left_out() -> None:
    """Say how many repeated lines were left out, before a line that is to be the last one."""
    sink = _chain_end().sink
    if sink is not None:
        sink.tell_left_out()


def dump_stacks(log: structlog.typing.FilteringBoundLogger, reason: str) -> None:
    """Log the stack of every thread, one WARNING a thread: where the process is when it doesn't get on."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001 - CPython's documented way to see other threads
    for ident, frame in list(frames.items())[:_MAX_STACKS]:
        thread = threads.get(ident)
        name = thread.name if thread is not None else f"unknown-{ident}"
        log.warning("Thread stack", reason=reason, thread=name, threads=len(frames), stack=_format_stack(frame))


def _format_stack(frame: FrameType) -> str:
    innermost = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=_MAX_STACK_FRAMES)
    return "".join(reversed(innermost.format())).rstrip()


class _ChainEnd:
    """The end of structlog's chain, kept while sinks come and go: loggers remember it from their first use on."""

    def __init__(self) -> None:
        self.sink: LogSink | None = None
        self.processors: list[structlog.typing.Processor] = [structlog.contextvars.merge_contextvars, self.emit]

    def __call__(self, *args: object) -> _ChainEnd:  # noqa: ARG002 - structlog calls it as its logger factory
        return self

    def emit(self, logger: object, method: str, event_dict: MutableMapping[str, Any]) -> str:  # noqa: ARG002
        """Write the record: as structlog's last processor, so that nothing is left for the logger's methods."""
        if self.sink is not None:
            event = event_dict.pop("event", "")
            self.sink.tell(_LEVEL_OF_METHOD.get(method, method), event, event_dict, time.time())
        return ""

    def ignore(self, line: str) -> None: ...

    debug = info = warning = warn = error = exception = critical = fatal = log = msg = ignore


_METHODS = (
    *("debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log", "msg"),
    *("is_enabled_for", "get_effective_level"),
)
_LEVEL_OF_METHOD = {"warn": "warning", "exception": "error", "fatal": "critical", "msg": "info", "log": "info"}


def _chain_end() -> _ChainEnd:
    factory = structlog.get_config()["logger_factory"]
    return factory if isinstance(factory, _ChainEnd) else _ChainEnd()


class _Logger(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc]  # made at run time
    """What every logger becomes at its first use and stays: so a new level is set on the class, not on each of them."""

    @classmethod
    def let_pass(cls, threshold: int) -> None:
        """Do nothing from now on for what is below `threshold`."""
        filtering = structlog.make_filtering_bound_logger(threshold)
        for name in _METHODS:
            setattr(cls, name, getattr(filtering, name))


def _let_pass(threshold: int) -> None:
    _Logger.let_pass(threshold)
    logging.getLogger().setLevel(threshold)
    for name, floor in FLOORS.items():
        logging.getLogger(name).setLevel(max(floor, threshold))


def _bind_structlog(chain_end: _ChainEnd, sink: LogSink) -> None:
    chain_end.sink = sink
    structlog.configure(
        processors=chain_end.processors,
        wrapper_class=_Logger,
        logger_factory=chain_end,
        cache_logger_on_first_use=True,
    )
    sink.on_close(partial(setattr, chain_end, "sink", None))
    sink.on_close(partial(_Logger.let_pass, logging.DEBUG))


def _bind_stdlib(sink: LogSink) -> None:
    bridge = StdlibBridge(sink.emit, context=structlog.contextvars.get_contextvars, limiter=RateLimiter())
    root = logging.getLogger()
    sink.listen_by(bridge)
    for logger in (root, *map(logging.getLogger, FLOORS)):
        sink.on_close(partial(logger.setLevel, logger.level))
    root.addHandler(bridge)
    sink.on_close(partial(root.removeHandler, bridge))
    logging.captureWarnings(True)
    sink.on_close(partial(logging.captureWarnings, False))


def _bind_hooks(sink: LogSink) -> None:
    """Log what ends the process or one of its threads, and what the interpreter can only print."""

    def process(kind: type[BaseException], error: BaseException, trace: object) -> None:  # noqa: ARG001
        if issubclass(kind, KeyboardInterrupt):
            return
        sink.emit("critical", "Unexpected error ended the process", {"exc_info": error}, time.time())

    def thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or isinstance(args.exc_value, SystemExit):
            return
        name = args.thread.name if args.thread is not None else "unknown"
        facts = {"thread": name, "exc_info": args.exc_value}
        sink.emit("critical", "Unexpected error ended a thread", facts, time.time())

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        facts = {"where": args.err_msg or "in a finalizer", "object": args.object, "exc_info": args.exc_value}
        sink.emit("error", "Unexpected error nobody could handle", facts, time.time())

    _replace_hook(sink, sys, "excepthook", process)
    _replace_hook(sink, threading, "excepthook", thread)
    _replace_hook(sink, sys, "unraisablehook", unraisable)


def _replace_hook(sink: LogSink, module: ModuleType, name: str, hook: Callable[..., None]) -> None:
    former = getattr(module, name)
    setattr(module, name, hook)

    def restore() -> None:
        if getattr(module, name) is hook:
            setattr(module, name, former)

    sink.on_close(restore)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (ValueError, AttributeError):  # closed, or hardly a stream
        return False
