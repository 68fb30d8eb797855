"""`gigaoffice-worker send`: sends requests and shows their responses."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.cli.outgoing import Request, given, opened, read_request, read_requests
from gigaoffice_worker.core.errors import WorkerError
from gigaoffice_worker.core.visible import visible, visible_json

if TYPE_CHECKING:
    from gigaoffice_worker.client import Pending
    from gigaoffice_worker.config import Config
    from gigaoffice_worker.core.documents import Response
    from gigaoffice_worker.core.records import Source

_FIELDS: Final = ("request_id", "status", "result", "error", "processing_time", "timestamp")
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
    with terminal.command_logs(config):
        if asked.file is None:
            return _send_one(config, read_request(given(asked.request)), options)
        with opened(asked.file) as lines:
            return send_many(config, read_requests(lines), options)


# One request


def _send_one(config: Config, request: Request, options: Options) -> int:
    from gigaoffice_worker.client import Client

    progress = terminal.Progress()
    with Client.of(config, options.timeout) as client:
        pending = client.submit(request.id, request.value, *_key_and_headers(request, options), answers=options.wait)
        # The client has a limit of its own, and a moment more to tell that it was reached.
        place = pending.wait_acknowledged(options.timeout + 5.0)
        if place is None:
            raise _not_acknowledged(options.timeout)
        if not options.wait:
            print(visible_json({"id": request.id, **place._asdict()}))
            return 0
        started = time.monotonic()
        while (waited := time.monotonic() - started) < options.timeout:
            if (response := pending.wait(_LOOK)) is not None:
                progress.clear()
                _print_response(response)
                return _verdict(config, response, pending.seconds)
            progress.show(f"waiting for the response to {request.id}: {waited:.0f} s of {options.timeout:g} s")
        progress.clear()
        raise _no_answer(config, request, place, options.timeout, client.trouble)


def _key_and_headers(request: Request, options: Options) -> tuple[bytes, dict[str, bytes]]:
    """Return key and headers of a request; one whose answer is waited for is worth nothing once nobody waits."""
    limit = {"ttl-ms": b"%d" % round(options.timeout * 1000)} if options.wait else {}
    return request.id.encode() if options.key is None else options.key, {**limit, **options.headers}


def _not_acknowledged(timeout: float) -> WorkerError:
    return terminal.FoundWantingError(
        f"the cluster did not acknowledge the request within {timeout:g} s; it may have been written all the same",
        hint="`gigaoffice-worker check` tries the cluster step by step.",
    )


def _no_answer(config: Config, request: Request, place: Source, timeout: float, trouble: str) -> WorkerError:
    from gigaoffice_worker.operations.requests import why_no_answer

    why = why_no_answer(config, place, _DIAGNOSIS_LIMIT)
    because = f"; responses could not be read: {trouble}" if trouble else ""
    return terminal.FoundWantingError(
        f"no response to request {visible(request.id)} within {timeout:g} s (it stands at {place}){because}",
        hint=" ".join(filter(None, (why, "Look at `gigaoffice-worker health` and the worker's log."))),
    )


def _verdict(config: Config, response: Response, seconds: float) -> int:
    if response.completed:
        if sys.stderr.isatty():
            terminal.say(f"completed in {seconds:.3f} s")
        return 0
    error = response.error
    told = f"{error['type']}: {error['message']}" if error else "no reason given"
    raise terminal.FoundWantingError(
        f"the request failed after {seconds:.3f} s: {visible(told)}",
        hint=f"`gigaoffice-worker dlq show {shlex.quote(visible(response.request_id))}` tells more if it stands in "
        f"{config.topics.dlq.name}; the worker's log has where in the handler it failed.",
    )


def _print_response(response: Response) -> None:
    indent = 2 if sys.stdout.isatty() else None
    print(visible_json(response_document(response), indent=indent), flush=True)


def response_document(response: Response) -> dict[str, Any]:
    """Return the six fields of a response, as its record has them."""
    return {name: getattr(response, name) for name in _FIELDS}


# Many requests


class _Tally:
    """Counts what became of many requests, prints it, and knows which are under way."""

    def __init__(self, *, wait: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.under_way: dict[Pending, bool] = {}  # and whether each is acknowledged
        self._wait = wait

    def take(self, pending: Pending) -> None:
        """Take note of news of a request."""
        acknowledged = self.under_way.get(pending)
        if acknowledged is None:  # its end was told already
            return
        if pending.error is not None:
            del self.under_way[pending]
            self.refused(pending.error)
            return
        if not acknowledged and pending.place is not None:
            self.under_way[pending] = True
            self.counts["sent"] += 1
            if not self._wait:
                print(visible_json({"id": pending.request_id, **pending.place._asdict()}), flush=True)
        if pending.response is not None:
            self._answered(pending.response, pending.seconds)
        if pending.over:
            del self.under_way[pending]

    def refused(self, error: WorkerError) -> None:
        """Report a request that was not sent."""
        self.counts["not sent"] += 1
        terminal.report(error)

    def _answered(self, response: Response, seconds: float) -> None:
        self.counts["completed" if response.completed else "failed"] += 1
        self.latencies.append(seconds)
        print(visible_json(response_document(response)), flush=True)

    def summary(self, seconds: float) -> str:
        """Return the last line of all."""
        counts = {name: self.counts[name] for name in ("sent", "completed", "failed")}
        rare = {"without an answer": len(self.under_way), "not sent": self.counts["not sent"]}
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
    from gigaoffice_worker.client import Client

    tally, started = _Tally(wait=options.wait), time.monotonic()
    news: SimpleQueue[Pending] = SimpleQueue()
    with Client.of(config, options.timeout) as client:
        given_up = False
        for request in requests:
            if isinstance(request, WorkerError):
                tally.refused(request)
                continue
            given_up = not _settle(news, tally, options, _MOST_UNANSWERED - 1, until)
            if given_up:
                break
            key, headers = _key_and_headers(request, options)
            pending = client.submit(request.id, request.value, key, headers, answers=options.wait, tell=news.put)
            tally.under_way[pending] = False
        _ = given_up or _settle(news, tally, options, 0, until)
    terminal.say(tally.summary(time.monotonic() - started))
    if unanswered := [pending.request_id for pending in tally.under_way]:
        raise terminal.FoundWantingError(
            f"no further response within {options.timeout:g} s; without an answer: {visible(_some(unanswered))}",
            hint="Look at `gigaoffice-worker health` and the worker's log.",
        )
    return 1 if tally.counts["failed"] or tally.counts["not sent"] else 0


def _settle(news: SimpleQueue[Pending], tally: _Tally, options: Options, leave: int, until: Callable[[], bool]) -> bool:
    """Take what has come until no more than `leave` requests are under way; False to give up on the others."""
    progress = terminal.Progress()
    latest = time.monotonic()
    while len(tally.under_way) > leave or not news.empty():
        try:
            pending = news.get(timeout=_LOOK)
        except Empty:
            if time.monotonic() - latest > options.timeout or until():
                progress.clear()
                return False
            progress.show(f"waiting for {len(tally.under_way)} responses")
        else:
            progress.clear()
            tally.take(pending)
            latest = time.monotonic()
    progress.clear()
    return True


def _some(ids: list[str]) -> str:
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(ids[:5]) + more


# What is given


def _header(text: str) -> tuple[str, bytes]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, os.fsencode(value)
