"""`gigaoffice-worker dlq`: looks at dead letters and puts them back on the request topic."""

from __future__ import annotations

import argparse
import math
import re
import time

from gigaoffice_worker.cli import dlq_reading, dlq_replay, terminal
from gigaoffice_worker.core.dead_letters import Filters, Moment, read_moment
from gigaoffice_worker.core.records import Reason

_DESCRIPTION = """\
Dead letters are requests that could not be processed. Nothing is ever deleted from their topic: what `replay` puts
back on the request topic stays there too, until the topic's retention takes it.
"""
_LIST = """\
Count the dead letters by reason and show the newest. With --json: one JSON object a line, all of them, as they stand.
Payloads are not shown. Exit code 0: there are some; 1: none fits.
"""
_SHOW = """\
Show what is known of one dead letter: DEAD_LETTER is its PARTITION:OFFSET in the dead letter topic, as `dlq list` shows
it, or the id of a request, of which all dead letters are shown. Exit code 0: shown; 1: there is none.
"""
_REPLAY = """\
Put dead letters back on the request topic, with their original key, value and headers, and wait for the cluster to
acknowledge them. How far it has come is remembered for the filters that are given, in a consumer group of their own:
the same command goes on where the last one ended, also after it was broken off. Dead letters that arrive while it runs
are for the next run. Exit code 0: all replayed; 1: none fits, or some could not be replayed.
"""
_MOMENT = "an ISO 8601 time (UTC unless it says otherwise) or an age such as 90s, 30m, 2h, 7d"
_PLACE = re.compile(r"(\d{1,9}):(\d{1,18})")


def add(commands: terminal.Commands) -> None:
    """Declare the command and its three subcommands."""
    parser = commands.add("dlq", dlq_reading.act_list, "look at dead letters and replay them", _DESCRIPTION)
    subparsers = parser.add_subparsers(required=True, title="commands", metavar="COMMAND")
    inner = terminal.Commands(subparsers, commands.everywhere)
    _add_list(inner)
    _add_show(inner)
    _add_replay(inner)


def _add_list(commands: terminal.Commands) -> None:
    parser = commands.add("list", dlq_reading.act_list, "count and list dead letters", _LIST)
    _add_filters(parser)
    parser.add_argument(
        "--limit", type=terminal.whole_number, metavar="N", help="show the N newest (default: 50, with --json all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    _add_timeout(parser)


def _add_show(commands: terminal.Commands) -> None:
    parser = commands.add("show", dlq_reading.act_show, "show one dead letter", _SHOW)
    parser.add_argument(
        "dead_letter", type=_dead_letter, metavar="DEAD_LETTER", help="PARTITION:OFFSET, or a request's id"
    )
    parser.add_argument("--payload", action="store_true", help="show the request itself too")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    _add_timeout(parser)


def _add_replay(commands: terminal.Commands) -> None:
    parser = commands.add("replay", dlq_replay.act, "put dead letters back on the request topic", _REPLAY)
    _add_filters(parser)
    parser.add_argument("--rate", type=_rate, metavar="N", help="put back no more than N dead letters a second")
    parser.add_argument(
        "--max-replays",
        type=terminal.whole_number,
        default=3,
        metavar="N",
        help="skip, and name, dead letters that have been replayed N times already (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what would be replayed, and change nothing")
    parser.add_argument("--restart", action="store_true", help="forget what was replayed before, and begin anew")
    _add_timeout(parser)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    filters = parser.add_argument_group("filters (a repeated one means any of its values)")
    reasons = [each.value for each in Reason]
    filters.add_argument(
        "--reason", action="append", default=[], choices=reasons, metavar="REASON", help=f"one of {', '.join(reasons)}"
    )
    filters.add_argument("--error-type", action="append", default=[], metavar="TYPE")
    filters.add_argument("--request-id", action="append", default=[], metavar="ID")
    filters.add_argument(
        "--partition", action="append", default=[], type=_partition, metavar="N", help="of the dead letter topic"
    )
    filters.add_argument("--since", type=_moment, metavar="TIME", help=f"written then or later: {_MOMENT}")
    filters.add_argument("--until", type=_moment, metavar="TIME", help="written before then")
    parser.set_defaults(filters=filters_of)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=terminal.seconds,
        default=30.0,
        metavar="SECONDS",
        help="give up when the cluster is silent for so long (default: %(default)g)",
    )


def filters_of(asked: argparse.Namespace) -> Filters:
    """Return the filters that were asked for. Raises UsageError for a time that ends before it begins."""
    if asked.since and asked.until and asked.since.at >= asked.until.at:
        raise terminal.UsageError("--since is not before --until, so no dead letter can fit")
    return Filters(
        frozenset(asked.reason),
        frozenset(asked.error_type),
        frozenset(asked.request_id),
        frozenset(asked.partition),
        asked.since,
        asked.until,
    )


def _dead_letter(text: str) -> tuple[int, int] | str:
    place = _PLACE.fullmatch(text)
    return (int(place[1]), int(place[2])) if place else text


def _moment(text: str) -> Moment:
    try:
        return read_moment(text, time.time())
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_MOMENT}") from error


def _partition(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a partition")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.001 <= rate <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of dead letters a second")
    return rate
