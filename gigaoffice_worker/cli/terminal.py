"""What all commands share: how they are declared, how they speak to whoever runs them, where their logs go."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from gigaoffice_worker.core.errors import WorkerError
from gigaoffice_worker.core.visible import visible, visible_lines

if TYPE_CHECKING:
    from gigaoffice_worker.config import Config, Secret
    from gigaoffice_worker.observe.logs import LogSink

_PATIENCE = 1.0  # seconds after which somebody at a terminal wants to know what is going on
_REWRITE = 0.25  # seconds between two states of the progress line
_CLEAR_LINE = "\r\x1b[K"
_TRACING_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")


class UsageError(WorkerError):
    """What a command was given makes no sense, in a way that the parser cannot see."""

    exit_code = 2


class FoundWantingError(WorkerError):
    """A command's question has an answer, and it is not the good one."""

    exit_code = 1


class Commands(NamedTuple):
    """Where a command adds itself."""

    subparsers: Any  # argparse has no public name for it
    everywhere: argparse.ArgumentParser

    def add(
        self, name: str, act: Callable[[argparse.Namespace], int], summary: str, description: str
    ) -> argparse.ArgumentParser:
        """Add a command that `act` carries out and return its parser; `act` returns the exit code."""
        parser: argparse.ArgumentParser = self.subparsers.add_parser(
            name,
            parents=[self.everywhere],
            help=summary,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(act=act)
        return parser


def seconds(text: str) -> float:
    """Read a time limit from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def whole_number(text: str) -> int:
    """Read a number of things from the command line."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def say(text: str, end: str = "\n") -> None:
    """Print on standard error, or nowhere if that takes nothing: the exit code must be the same either way."""
    with contextlib.suppress(OSError, ValueError):  # its reader is gone, its disk is full, or it was closed
        print(text, end=end, file=sys.stderr, flush=True)


def report(error: WorkerError) -> None:
    """Say on standard error what went wrong and what to do."""
    say(f"error: {visible_lines(str(error))}")
    if error.hint:
        say(f"hint: {visible_lines(error.hint)}")


def warn(text: str) -> None:
    """Say on standard error what deserves a second look."""
    say(f"warning: {visible_lines(text)}")


class Progress:
    """One line on standard error about what takes longer than `patience` seconds; silent where nobody looks at it."""

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._wanted = sys.stderr.isatty()
        self._due = time.monotonic() + patience
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the line; too early or too often it does nothing."""
        if self._wanted and time.monotonic() >= self._due:
            self._due = time.monotonic() + _REWRITE
            self._shown = True
            say(f"{_CLEAR_LINE}{visible(text)}", end="")

    def clear(self) -> None:
        """Remove the line, before something else is printed; the next one has to wait again."""
        if self._shown:
            say(_CLEAR_LINE, end="")
            self._shown = False
        self._due = time.monotonic() + self._patience


@contextlib.contextmanager
def command_logs(config: Config, *, least: str | None = None) -> Iterator[LogSink]:
    """Keep log lines off standard output, which is for a command's result.

    Those of level `least` and above go to standard error, by default none: the command itself says what matters, and
    what the Kafka client has to say is in its errors. With LOG_LEVEL=DEBUG all lines do.
    """
    from gigaoffice_worker.observe.logs import configure

    with contextlib.ExitStack() as stack:
        stream = sys.stderr
        if config.logs.level == "DEBUG":
            least = "DEBUG"
        else:
            _keep_the_client_quiet(stack)
            if least is None:
                least, stream = "ERROR", stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
        sink = configure(least, config.logs.format, stream=stream)
        stack.callback(sink.close)
        hide_secrets(config, sink)
        yield sink


def _keep_the_client_quiet(stack: contextlib.ExitStack) -> None:
    import logging

    # Its loggers go on, because the broker room listens to what they say of refused connections.
    client = logging.getLogger("kafka")
    stack.callback(setattr, client, "propagate", client.propagate)
    client.propagate = False


def hide_secrets(config: Config, sink: LogSink) -> None:
    """See to it that no log line shows a secret of the configuration."""
    for secret in _secrets(config):
        sink.hide(secret.reveal())
    for name in _TRACING_HEADERS:
        # The exporter quotes what it cannot read.
        for header in os.environ.get(name, "").split(","):
            sink.hide(header.strip())
            sink.hide(header.partition("=")[2].strip())


def _secrets(value: object) -> Iterator[Secret]:
    import dataclasses

    from gigaoffice_worker.config import Secret

    if isinstance(value, Secret):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _secrets(getattr(value, field.name))
