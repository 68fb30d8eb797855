"""What the output topics tell of requests that were answered before a crash, and from where on they are to be read.

A *floor* is the lowest offset at which something that is sent from now on can stand in a partition: just above what was
acknowledged there. The *mark* of a request partition is the floor of its oldest unsettled outcome, and travels with the
commit, behind the commit map. Whoever takes the partition over reads from there.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, Self

from gigaoffice_worker.core.records import Failure, Headers, Outcome, Reason, Record

Place = tuple[str, int]
"""A partition of an output topic, as (topic, partition)."""

MOST_RECORDS: Final = 100_000
"""More than this is not read back for one partition."""

_VERSION: Final = "m1"
_BEHIND_THE_MAP: Final = ";"
_LONGEST_NUMBER: Final = 19
_LONGEST_KEY: Final = 64
# A mark that is only a little low costs its reader less than a commit of its own would cost every second.
_WORTH_A_COMMIT: Final = 10_000


class MarkError(ValueError):
    """A mark of another version, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Mark:
    """From which offset on each partition of the output topics is to be read: `{partition: offset}`.

    Without `dead_letters` that topic is not read.
    """

    responses: Mapping[int, int]
    dead_letters: Mapping[int, int]

    def encode(self) -> str:
        """Return the mark as ASCII text, such as `m1:3.1204:0.77` (partition and offset, comma-separated)."""
        parts = (self.responses, self.dead_letters)
        texts = (",".join(f"{partition}.{offset}" for partition, offset in sorted(part.items())) for part in parts)
        return ":".join((_VERSION, *texts))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read a mark. Raises MarkError."""
        version, *parts = text.split(":")
        if version != _VERSION or len(parts) != 2:
            message = "the mark is not of a version that this worker knows"
            raise MarkError(message)
        return cls(*map(_offsets, parts))


def _offsets(text: str) -> dict[int, int]:
    found = {}
    for pair in filter(None, text.split(",")):
        partition, _, offset = pair.partition(".")
        if not (_is_number(partition) and _is_number(offset)):
            message = "the mark is damaged"
            raise MarkError(message)
        found[int(partition)] = int(offset)
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER


# With the commit map in one text


def with_mark(commit_map: str, mark: str) -> str:
    """Return what is committed as metadata: the map, and behind it the mark; either may be empty."""
    return f"{commit_map}{_BEHIND_THE_MAP}{mark}" if mark else commit_map


def split_metadata(text: str) -> tuple[str, str]:
    """Return the map and the mark of commit metadata."""
    commit_map, _, mark = text.partition(_BEHIND_THE_MAP)
    return commit_map, mark


def worth_a_commit(committed: str, metadata: str) -> bool:
    """Say whether metadata is to be committed in the place of what is, at the same position."""
    (old_map, old_mark), (new_map, new_mark) = split_metadata(committed), split_metadata(metadata)
    if old_map != new_map:
        return True
    if old_mark == new_mark:
        return False
    try:
        old, new = Mark.decode(old_mark), Mark.decode(new_mark)
    except MarkError:
        return True
    if old.responses.keys() != new.responses.keys() or old.dead_letters.keys() != new.dead_letters.keys():
        return True
    gained = sum(new.responses.values()) - sum(old.responses.values())
    gained += sum(new.dead_letters.values()) - sum(old.dead_letters.values())
    return gained > _WORTH_A_COMMIT


# Floors


class Floor(NamedTuple):
    """The lowest offsets at which what is sent from now on can stand.

    Of two floors, the one with the lower `number` is older, and nowhere higher.
    """

    number: int
    offsets: Mapping[Place, int]

    def mark(self, responses: Iterable[Place], dead_letters: Iterable[Place]) -> Mark | None:
        """Return the mark for these partitions; None where nothing is known of one of the responses'."""
        known = {place: self.offsets.get(place) for place in (*responses, *dead_letters)}
        wanted = {partition: known[topic, partition] for topic, partition in responses}
        dead = {partition: known[topic, partition] for topic, partition in dead_letters}
        return None if None in wanted.values() else Mark(_whole(wanted), _whole(dead))


def _whole(offsets: Mapping[int, int | None]) -> Mapping[int, int]:
    found = {partition: offset for partition, offset in offsets.items() if offset is not None}
    return found if len(found) == len(offsets) else {}


class Floors:
    """The newest floor. Any thread may read `now`; one thread raises it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.now = Floor(0, MappingProxyType({}))

    def raise_to(self, ends: Mapping[Place, int]) -> None:
        """Note that partitions reach as far as `ends`: positions behind a record that was acknowledged or seen."""
        before = self.now.offsets
        higher = {place: end for place, end in ends.items() if end > before.get(place, -1)}
        if higher:
            self.now = Floor(next(self._numbers), MappingProxyType({**before, **higher}))


# What is found


class Identity(NamedTuple):
    """What tells one request of a partition from all others that ever stood there. The timestamp is in milliseconds.

    The timestamp and the key are for a topic that was deleted and created again: offsets begin anew there.
    """

    offset: int
    timestamp: int
    key: bytes | None

    @classmethod
    def of(cls, request: Record) -> Self:
        return cls(request.offset, round(request.timestamp * 1000), _brief(request.key))

    @classmethod
    def named_by(cls, written: Record, topic: str, partition: int) -> Self | None:
        """Return which request of a partition a response or a dead letter is about, None for another partition's."""
        said = dict(written.headers)
        if said.get("source-topic") != topic.encode() or said.get("source-partition") != b"%d" % partition:
            return None
        offset, timestamp = said.get("source-offset") or b"", said.get("source-timestamp") or b""
        if not (offset.isdigit() and timestamp.isdigit() and len(offset) <= _LONGEST_NUMBER >= len(timestamp)):
            return None
        return cls(int(offset), int(timestamp), _brief(written.key))


class DeadLetter(NamedTuple):
    """A dead letter that was found: how its request ended, and after how many attempts."""

    outcome: Outcome
    attempts: int


class Findings:
    """The requests of one partition, from `position` on, of which an outcome stands in the output topics."""

    def __init__(self, topic: str, partition: int, position: int) -> None:
        self._topic = topic
        self._partition = partition
        self._position = position
        self._answered: set[Identity] = set()
        self._dead: dict[Identity, DeadLetter] = {}

    def __len__(self) -> int:
        return len(self._answered | self._dead.keys())

    def add_response(self, response: Record) -> None:
        """Take note of a record of the response topic."""
        if identity := self._identity(response):
            self._answered.add(identity)

    def add_dead_letter(self, dead_letter: Record) -> None:
        """Take note of a record of the dead letter topic."""
        identity = self._identity(dead_letter)
        if identity and (dead := _read_dead_letter(dead_letter.headers)):
            self._dead[identity] = dead

    def _identity(self, written: Record) -> Identity | None:
        identity = Identity.named_by(written, self._topic, self._partition)
        return identity if identity and identity.offset >= self._position else None

    def answered(self, request: Record) -> bool:
        """Say whether the response to a request stands in the log: then its dead letter does, too, if it has one."""
        return Identity.of(request) in self._answered

    def dead_letter(self, request: Record) -> DeadLetter | None:
        """Return the dead letter of a request; whether its response is there as well, `answered` says."""
        return self._dead.get(Identity.of(request))

    @property
    def end(self) -> int:
        """The position behind the last request that was found."""
        return max((identity.offset + 1 for identity in (*self._answered, *self._dead)), default=self._position)


def _read_dead_letter(headers: Headers) -> DeadLetter | None:
    """Read what a dead letter says of itself; None where it gives no reason that this version knows."""
    said = {name: (value or b"").decode("utf-8", "replace") for name, value in headers}
    try:
        reason = Reason(said.get("dlq-reason", ""))
    except ValueError:
        return None
    attempts = said.get("dlq-attempts", "")
    failure = Failure(said.get("dlq-error-type", ""), said.get("dlq-error-message", ""))
    return DeadLetter(Outcome(failure=failure, reason=reason), int(attempts) if _is_number(attempts) else 0)


def _brief(key: bytes | None) -> bytes | None:
    """Return a key, or its hash where it is long: many are remembered at once."""
    if key is None or len(key) <= _LONGEST_KEY:
        return key
    return b"blake2b:" + hashlib.blake2b(key, digest_size=32).digest()
