"""Dead letters as whoever looks after them sees them: what one says, which are meant, what goes back as a request."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

from gigaoffice_worker.core.expiry import EXPIRES_AT, TTL
from gigaoffice_worker.core.messages import (
    LARGEST_REQUEST,
    MOST_REPLAYS,
    NULL_HEADERS,
    REPLAYS,
    answerable_id,
    replays_in,
)
from gigaoffice_worker.core.records import Headers, Record, Source

_ABOUT: Final = "dlq-"
_FIRST: Final = "dlq-reason"
"""The first of the headers that the worker puts behind those of the request."""
_SOURCE: Final = ("source-topic", "source-partition", "source-offset", "source-timestamp")
_NOT_REPLAYED: Final = frozenset({EXPIRES_AT, TTL})
"""Until when the request was worth a call: whoever replays it has decided that it is worth one now."""

_UNNAMED: Final = re.compile(r",\+\d+ of \d+,$")
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Facts(NamedTuple):
    """What a dead letter says of itself; a header that it lacks is an empty text.

    `source` is where the request stood, `timestamp` when the dead letter was written, in seconds since the epoch.
    """

    partition: int
    offset: int
    timestamp: float
    request_id: str
    reason: str
    error_type: str
    error_message: str
    error_at: str
    attempts: str
    replays: int
    consumer_group: str
    worker_version: str
    source: Source | None

    @property
    def place(self) -> str:
        """Where the dead letter stands in the dead letter topic, as the commands take it."""
        return f"{self.partition}:{self.offset}"


def facts(dead_letter: Record) -> Facts:
    """Read a dead letter; any record will do, since others may write to the topic too."""
    said = {name: (value or b"").decode("utf-8", "replace") for name, value in dead_letter.headers}
    source = _source(said)
    return Facts(
        dead_letter.partition,
        dead_letter.offset,
        dead_letter.timestamp,
        _request_id(dead_letter, source),
        said.get(_FIRST, ""),
        said.get("dlq-error-type", ""),
        said.get("dlq-error-message", ""),
        said.get("dlq-error-at", ""),
        said.get("dlq-attempts", ""),
        replays_in(dict(dead_letter.headers).get(REPLAYS)),
        said.get("dlq-consumer-group", ""),
        said.get("dlq-worker-version", ""),
        source,
    )


def request_headers(dead_letter: Record) -> Headers:
    """Return the headers of the original request: without what the worker added, and with their null values back."""
    behind = _count_of_original(dead_letter.headers)
    nulls = _named_nulls(dead_letter.headers, behind)
    headers: list[tuple[str, bytes | None]] = []
    for index, (name, value) in enumerate(dead_letter.headers):
        if name.startswith(_ABOUT) or (index >= behind and name in _SOURCE):
            continue
        is_null = index < behind and value == b"" and f",{name}," in nulls
        headers.append((name, None if is_null else value))
    return headers


def replay_headers(dead_letter: Record) -> Headers:
    """Return the headers with which a dead letter goes back: those of the request, and how often it has been replayed.

    Those that say until when the request is worth a call stay behind.
    """
    replays = min(facts(dead_letter).replays + 1, MOST_REPLAYS)
    kept = [(name, value) for name, value in request_headers(dead_letter) if name not in _NOT_REPLAYED]
    return [*kept, (REPLAYS, b"%d" % replays)]


def names_all_nulls(dead_letter: Record) -> bool:
    """Say whether the dead letter names every header that had no value: it has room for some of them only."""
    return not _UNNAMED.search(_named_nulls(dead_letter.headers, _count_of_original(dead_letter.headers)))


def _named_nulls(headers: Headers, behind: int) -> str:
    own = dict(headers[behind:])
    return f",{(own.get(NULL_HEADERS) or b'').decode('utf-8', 'replace')},"


def _count_of_original(headers: Headers) -> int:
    """Return how many headers are the request's: those before the last `dlq-reason`, or all of them without one."""
    found = [index for index, (name, _) in enumerate(headers) if name == _FIRST]
    return found[-1] if found else len(headers)


def _source(said: dict[str, str]) -> Source | None:
    topic, partition, offset = (said.get(name, "") for name in _SOURCE[:3])
    numbers = number(partition), number(offset)
    if not topic or numbers[0] is None or numbers[1] is None:
        return None
    return Source(topic, numbers[0], numbers[1])


def _request_id(dead_letter: Record, source: Source | None) -> str:
    original = dead_letter if source is None else dead_letter._replace(**source._asdict())
    return answerable_id(original, LARGEST_REQUEST) or str(original.source)


def number(text: str) -> int | None:
    """Read a number that a header holds; None where it is none, or longer than any that the worker writes."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


# Which dead letters are meant


class Moment(NamedTuple):
    """A point in time: `at` in seconds since the epoch, `text` the same for everybody who means the same."""

    at: float
    text: str
    moves: bool = False
    """Whether the same words will mean another point in time later."""


def read_moment(text: str, now: float) -> Moment:
    """Read a time (ISO 8601, UTC unless it says otherwise) or an age such as `2h`. Raises ValueError."""
    if ago := _AGO.fullmatch(text):
        return Moment(now - float(ago[1]) * _SECONDS[ago[2]], text, moves=True)
    at = datetime.fromisoformat(text)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return Moment(at.timestamp(), at.isoformat())


@dataclass(frozen=True, slots=True)
class Filters:
    """Which dead letters are meant: those that fit every filter that is set, and of each filter one of its values.

    `since` belongs to the time that is meant, `until` does not.
    """

    reasons: frozenset[str] = frozenset()
    error_types: frozenset[str] = frozenset()
    request_ids: frozenset[str] = frozenset()
    partitions: frozenset[int] = frozenset()
    since: Moment | None = None
    until: Moment | None = None

    def match(self, dead_letter: Facts) -> bool:
        """Say whether a dead letter is meant."""
        one_of: tuple[tuple[frozenset[str], str], ...] = (
            (self.reasons, dead_letter.reason),
            (self.error_types, dead_letter.error_type),
            (self.request_ids, dead_letter.request_id),
        )
        return (
            all(not wanted or found in wanted for wanted, found in one_of)
            and (not self.partitions or dead_letter.partition in self.partitions)
            and (self.since is None or dead_letter.timestamp >= self.since.at)
            and (self.until is None or dead_letter.timestamp < self.until.at)
        )

    def group(self, worker_group: str, dlq: str, requests: str) -> str:
        """Return the consumer group that keeps the progress of a replay: one for the same dead letters and topics."""
        said = {
            "dlq": dlq,
            "requests": requests,
            "reasons": sorted(self.reasons),
            "error_types": sorted(self.error_types),
            "request_ids": sorted(self.request_ids),
            "partitions": sorted(self.partitions),
            "since": self.since.text if self.since else None,
            "until": self.until.text if self.until else None,
        }
        digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]
        return f"{worker_group}-dlq-replay-{digest}"


# Where reading begins and ends


class Span(NamedTuple):
    """The offsets of a partition from `begin` to before `end`."""

    begin: int
    end: int


def progressed(log: Span, committed: int | None) -> Span:
    """Return what a replay has still to look at; a position outside the log is of another topic by that name."""
    if committed is None or committed > log.end:
        return log
    return Span(max(log.begin, committed), log.end)


# What becomes of them


class Fate(StrEnum):
    """What became of a dead letter that the filters mean."""

    REPLAYED = "replayed"
    SKIPPED = "skipped"
    """It has been replayed as often as it may be."""
    REFUSED = "refused"
    """The request topic does not take it: it is too large."""


class Examined(NamedTuple):
    """One dead letter and what became of it; with `nulls_lost` its null headers came back as empty ones."""

    dead_letter: Facts
    fate: Fate
    nulls_lost: bool = False
