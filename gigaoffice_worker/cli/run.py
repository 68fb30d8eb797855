"""`gigaoffice-worker run`: the daemon."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from gigaoffice_worker._version import __version__
from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import ConfigurationError, WorkerError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from gigaoffice_worker.config import Config
    from gigaoffice_worker.observe.logs import LogSink
    from gigaoffice_worker.observe.metrics import Metrics

_NOTHING_DONE = 0
_UNEXPECTED = 1
_METRICS_IN_FILES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")

_DESCRIPTION = """\
Create and verify the topics, then read requests, have each one handled and publish its response, until SIGTERM
or SIGINT: then what is in flight is finished and committed. A second signal ends the wait. SIGHUP is ignored.
"""


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    commands.add("run", act, "the worker itself, until SIGTERM", _DESCRIPTION)


def act(asked: argparse.Namespace) -> NoReturn:  # noqa: ARG001  # it has no arguments of its own
    """Run the worker and end the process with its exit code."""
    from gigaoffice_worker.config import load

    _listen_to_signals_from_the_start()
    ignored = _ignore_other_programs_metrics()
    from gigaoffice_worker.observe.metrics import Metrics

    try:
        config = load()
    except ConfigurationError as error:
        _end(_refused(error), None)
    metrics = Metrics(__version__)
    sink = _open_logs(config, metrics)
    for name in ignored:
        event = "Variable ignored: this worker is one process and keeps its metrics in memory"
        _log().warning(event, variable=name)
    _end(_outcome(config, metrics), sink)


def _log() -> FilteringBoundLogger:
    # Imported late: the other commands declare themselves in a fraction of the time that structlog takes to load.
    import structlog

    log: FilteringBoundLogger = structlog.get_logger(__name__)
    return log


def _outcome(config: Config, metrics: Metrics) -> int:
    """Let the worker live; return the exit code, with the reason as the last line of the log."""
    from gigaoffice_worker.observe.logs import tell_left_out
    from gigaoffice_worker.observe.printed import prints_as_log_lines

    try:
        from gigaoffice_worker.worker import Worker

        _tune_the_interpreter()
        for warning in config.warnings:
            _log().warning("Configuration warning", warning=warning)
        with prints_as_log_lines():
            return Worker(config, metrics=metrics).run()
    except WorkerError as error:
        tell_left_out()
        _log().error("Worker stopped", error=str(error), hint=error.hint, exit_code=error.exit_code)
        _tell_whoever_does_not_read_the_log(error)
        return error.exit_code
    except BaseException as error:  # noqa: BLE001  # SystemExit too, out of somebody's handler: the log has to know it
        tell_left_out()
        _log().critical("Worker stopped", error=repr(error), exit_code=_UNEXPECTED, exc_info=error)
        return _UNEXPECTED


def _ignore_other_programs_metrics() -> list[str]:
    """Take the variables away that make prometheus_client keep every metric in files; return those that were set.

    They are meant for servers of many processes. Inherited from one, its files would be counted as ours, and a
    directory that is not there would end the process. The client looks at them when it is first imported.
    """
    return [name for name in _METRICS_IN_FILES if os.environ.pop(name, None) is not None]


def _tune_the_interpreter() -> None:
    """Suit the interpreter to a few busy threads and thousands of requests in hand (each figure from benchmarks/).

    The collector would walk everything in hand again and again, and threads that take the interpreter from each other
    every few milliseconds get less done together.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(0.02)


def _open_logs(config: Config, metrics: Metrics) -> LogSink:
    from gigaoffice_worker.observe.logs import configure

    sink = configure(config.logs.level, config.logs.format, on_dropped=metrics.log_dropped.inc)
    terminal.hide_secrets(config, sink)
    return sink


def _refused(error: ConfigurationError) -> int:
    """Report a configuration that cannot be read, in the log too where the log is what is collected."""
    from gigaoffice_worker.observe.logs import configure

    terminal.report(error)
    if not sys.stdout.isatty():
        sink = configure("INFO", "auto")
        _log().error("Worker stopped", error=str(error), hint=error.hint, exit_code=error.exit_code)
        sink.close()
    return error.exit_code


def _tell_whoever_does_not_read_the_log(error: WorkerError) -> None:
    # Where both lead to one place (a terminal, the journal, one file) the log line has just been read by the same eyes.
    if not _lead_to_one_place(sys.stdout, sys.stderr):
        terminal.report(error)


def _lead_to_one_place(*streams: TextIO) -> bool:
    try:
        return len({(found.st_dev, found.st_ino) for found in (os.fstat(stream.fileno()) for stream in streams)}) == 1
    except (OSError, ValueError):  # closed, or none of the system's
        return False


def _listen_to_signals_from_the_start() -> None:
    """End at once on a signal that comes before the worker listens itself: nothing has been begun.

    The default action would do so too, with another exit code, and not at all for the first process of a container.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        os._exit(_NOTHING_DONE)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _end(code: int, sink: LogSink | None) -> NoReturn:
    """End the process now: no daemon thread and no exit hook of the client may delay it or print over its last line."""
    if sink is not None:
        sink.close()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # whoever read it is gone
            continue
    os._exit(code)
