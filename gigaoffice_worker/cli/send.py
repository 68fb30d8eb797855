"""`gigaoffice-worker send`: sends requests and shows their responses."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.cli.outgoing import Request, read_request, read_requests
from gigaoffice_worker.core.errors import WorkerError
from gigaoffice_worker.core.visible import visible, visible_json

if TYPE_CHECKING:
    from gigaoffice_worker.config import Config
    from gigaoffice_worker.core.records import Source
    from gigaoffice_worker.operations.requests import Exchange, Response, Sent

_MOST_UNANSWERED = 1000
_LOOK = 0.1  # seconds that one look for responses may take
_DIAGNOSIS_LIMIT = 5.0

_DESCRIPTION = """\
Send one request, wait for its response and print it. REQUEST is a JSON object, or plain text that becomes
{"query": TEXT}; @FILE reads it from a file, - or nothing from standard input. Without an "id" it gets one.
With --file each line of FILE is a request; responses are printed as they arrive, one JSON line each.
Exit code 0: completed; 1: failed, or no answer in time.
"""


class Options(NamedTuple):
    """How requests are sent: `key` None means the request's id."""

    key: bytes | None
    headers: Mapping[str, bytes]
    timeout: float
    wait: bool


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    parser = commands.add("send", act, "send a request and print its response", _DESCRIPTION)
    parser.add_argument("request", nargs="?", metavar="REQUEST", help="a JSON object, plain text, @FILE, or -")
    parser.add_argument("--file", type=Path, metavar="FILE", help="send each line of FILE, JSON or plain text")
    parser.add_argument("--key", metavar="KEY", help="record key; requests of one key are answered in order "
                        "(default: the request's id)")  # fmt: skip
    parser.add_argument(
        "--header", action="append", type=_header, default=[], metavar="NAME=VALUE", help="record header; repeatable"
    )
    parser.add_argument(
        "--timeout",
        type=terminal.seconds,
        default=60.0,
        metavar="SECONDS",
        help="wait so long for an answer, with --file for the next one (default: %(default)g)",
    )
    parser.add_argument("--no-wait", action="store_true", help="print where the request stands, and end")


def act(asked: argparse.Namespace) -> int:
    """Send what is asked for; 0 if all of it was completed."""
    from gigaoffice_worker.config import load

    if asked.file is not None and asked.request is not None:
        raise terminal.UsageError("REQUEST and --file: only one of them can be given")
    config = load()
    key = None if asked.key is None else os.fsencode(asked.key)
    options = Options(key, dict(asked.header), asked.timeout, wait=not asked.no_wait)
    try:
        with terminal.command_logs(config):
            if asked.file is None:
                return _send_one(config, read_request(_given(asked.request)), options)
            with _opened(asked.file) as lines:
                return send_many(config, read_requests(lines), options)
    except UnicodeDecodeError as error:
        raise terminal.UsageError("what is to be sent is not UTF-8 text") from error


# One request


def _send_one(config: Config, request: Request, options: Options) -> int:
    from gigaoffice_worker.operations.requests import Exchange

    progress = terminal.Progress()
    with Exchange(config, options.timeout, answers=options.wait) as exchange:
        place = _acknowledged(exchange, request, options)
        if not options.wait:
            print(visible_json({"id": request.id, **place._asdict()}))
            return 0
        started = time.monotonic()
        while (waited := time.monotonic() - started) < options.timeout:
            for response in exchange.responses(_LOOK):
                progress.clear()
                _print_response(response)
                return _verdict(config, response)
            progress.show(f"waiting for the response to {request.id}: {waited:.0f} s of {options.timeout:g} s")
        progress.clear()
    raise _no_answer(config, request, place, options.timeout)


def _acknowledged(exchange: Exchange, request: Request, options: Options) -> Source:
    _send(exchange, request, options)
    # The client has a limit of its own, and a moment more to tell that it was reached.
    outcome = exchange.sent(options.timeout + 5.0)
    if outcome is None or outcome.place is None:
        raise (outcome.error if outcome else None) or _not_acknowledged(options.timeout)
    return outcome.place


def _send(exchange: Exchange, request: Request, options: Options) -> None:
    key = request.id.encode() if options.key is None else options.key
    exchange.send(request.id, request.value, key, options.headers)


def _not_acknowledged(timeout: float) -> WorkerError:
    return terminal.FoundWantingError(
        f"the cluster did not acknowledge the request within {timeout:g} s; it may have been written all the same",
        hint="`gigaoffice-worker check` tries the cluster step by step.",
    )


def _no_answer(config: Config, request: Request, place: Source, timeout: float) -> WorkerError:
    from gigaoffice_worker.operations.requests import why_no_answer

    why = why_no_answer(config, place, _DIAGNOSIS_LIMIT)
    return terminal.FoundWantingError(
        f"no response to request {visible(request.id)} within {timeout:g} s (it stands at {place})",
        hint=" ".join(filter(None, (why, "Look at `gigaoffice-worker health` and the worker's log."))),
    )


def _verdict(config: Config, response: Response) -> int:
    document = response.document
    if document.get("status") == "completed":
        if sys.stderr.isatty():
            print(f"completed in {response.latency:.3f} s", file=sys.stderr)
        return 0
    error = document.get("error")
    told = f"{error.get('type')}: {error.get('message')}" if isinstance(error, dict) else "no reason given"
    raise terminal.FoundWantingError(
        f"the request failed after {response.latency:.3f} s: {visible(told)}",
        hint=f"If it could not be processed it stands in {config.topics.dlq.name}; the worker's log has the details.",
    )


def _print_response(response: Response) -> None:
    indent = 2 if sys.stdout.isatty() else None
    print(visible_json(response.document, indent=indent), flush=True)


# Many requests


class _Tally:
    """Counts what became of many requests, and prints it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []

    def sent(self, sent: Sent, *, wait: bool) -> None:
        """Count an acknowledged request, or report one that could not be sent."""
        if sent.error is not None:
            self.refused(sent.error)
            return
        self.counts["sent"] += 1
        if not wait and sent.place is not None:
            print(visible_json({"id": sent.request_id, **sent.place._asdict()}), flush=True)

    def refused(self, error: WorkerError) -> None:
        """Report a request that was not sent."""
        self.counts["not sent"] += 1
        terminal.report(error)

    def answered(self, response: Response) -> None:
        """Print a response and count it."""
        self.counts["completed" if response.document.get("status") == "completed" else "failed"] += 1
        self.latencies.append(response.latency)
        print(visible_json(response.document), flush=True)

    def summary(self, seconds: float, unanswered: int) -> str:
        """Return the last line of all."""
        counts = {name: self.counts[name] for name in ("sent", "completed", "failed")}
        rare = {"without an answer": unanswered, "not sent": self.counts["not sent"]}
        counts |= {name: count for name, count in rare.items() if count}
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        if not self.latencies:
            return f"{told} in {seconds:.1f} s"
        middle, longest = sorted(self.latencies)[len(self.latencies) // 2], max(self.latencies)
        return f"{told} in {seconds:.1f} s; latency median {middle:.3f} s, longest {longest:.3f} s"


def send_many(
    config: Config,
    requests: Iterable[Request | WorkerError],
    options: Options,
    until: Callable[[], bool] = lambda: False,
) -> int:
    """Send requests, print their responses as they come and a summary; 0 if every request was completed.

    At most _MOST_UNANSWERED are under way at once. It gives up when no answer came for `options.timeout` seconds,
    or when `until` says so.
    """
    from gigaoffice_worker.operations.requests import Exchange

    tally, started = _Tally(), time.monotonic()
    with Exchange(config, options.timeout, answers=options.wait) as exchange:
        given_up = False
        for request in requests:
            if isinstance(request, WorkerError):
                tally.refused(request)
                continue
            given_up = not _settle(exchange, tally, options, _MOST_UNANSWERED - 1, until)
            if given_up:
                break
            try:
                _send(exchange, request, options)
            except WorkerError as error:
                tally.refused(error)
        _ = given_up or _settle(exchange, tally, options, 0, until)
        unanswered = exchange.unanswered
    print(tally.summary(time.monotonic() - started, len(unanswered)), file=sys.stderr)
    if unanswered:
        raise terminal.FoundWantingError(
            f"no further response within {options.timeout:g} s; without an answer: {visible(_some(unanswered))}",
            hint="Look at `gigaoffice-worker health` and the worker's log.",
        )
    return 1 if tally.counts["failed"] or tally.counts["not sent"] else 0


def _settle(exchange: Exchange, tally: _Tally, options: Options, leave: int, until: Callable[[], bool]) -> bool:
    """Take what has come until no more than `leave` requests are under way; False to give up on the others."""
    progress = terminal.Progress()
    latest = time.monotonic()
    while True:
        under_way = max(exchange.unacknowledged, len(exchange.unanswered))
        pause = _LOOK if under_way > leave else 0.0
        news = 0
        for response in exchange.responses(pause):
            progress.clear()
            tally.answered(response)
            news += 1
        while sent := exchange.sent(0.0 if options.wait or news else pause):
            tally.sent(sent, wait=options.wait)
            news += 1
        if pause == 0.0:
            progress.clear()
            return True
        latest = time.monotonic() if news else latest
        if time.monotonic() - latest > options.timeout or until():
            progress.clear()
            return False
        progress.show(f"waiting for {under_way} responses")


def _some(ids: list[str]) -> str:
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(ids[:5]) + more


# What is given


def _given(request: str | None) -> str:
    if request is None and sys.stdin.isatty():
        raise terminal.UsageError("there is nothing to send", hint="Give a REQUEST, as in: send 'Sum column A'")
    if request is None or request == "-":
        return sys.stdin.read()
    if request.startswith("@"):
        with _opened(Path(request[1:])) as file:
            return file.read()
    return request


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig")
    except OSError as error:
        raise terminal.UsageError(f"{path} cannot be read: {error.strerror}") from error


def _header(text: str) -> tuple[str, bytes]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, os.fsencode(value)
