"""One answer for one id: which requests were answered lately, and which of them run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

import msgspec

from gigaoffice_worker.core.journal import Identity
from gigaoffice_worker.core.records import Answer, Record, Source
from gigaoffice_worker.core.work import Work

_Name = tuple[int, str]
"""The request topic's partition, and an id."""

# Python's own objects around an answer.
_ENTRY_COST: Final = 512


class Verdict(Enum):
    """What is to be done with a request beside what is remembered."""

    RUN = auto()
    RUN_OTHER_VALUE = auto()
    """Its id was answered, or runs, with another value."""
    WAIT = auto()
    """The first request of its id and value still runs."""


@dataclass(slots=True)
class _Running:
    work: Work
    digest: bytes


@dataclass(slots=True)
class _Answered:
    answer: Answer
    until: float

    @property
    def size(self) -> int:
        return len(self.answer.value) + _ENTRY_COST


class Found(NamedTuple):
    """A completed response as it is read back: its request's id, and when it was given (seconds since the epoch)."""

    request_id: str
    answer: Answer
    answered_at: float


def read_answer(response: Record, topic: str, partition: int) -> Found | None:
    """Read a record of the response topic; None for what is no first, completed answer to one of this partition."""
    said = dict(response.headers)
    identity, digest = Identity.named_by(response, topic, partition), said.get("request-digest")
    if identity is None or not digest or "duplicate-of" in said:
        return None
    try:
        document = _decode(response.value or b"")
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    if document.status != "completed":
        return None
    answer = Answer(response.value or b"", Source(topic, partition, identity.offset), digest)
    return Found(document.request_id, answer, response.timestamp)


class _Response(msgspec.Struct):
    request_id: str
    status: str


_decode = msgspec.json.Decoder(_Response).decode


class Answers:
    """The completed answers of the last `window` seconds, as many as fit into `limit` bytes. Thread-safe.

    `clock` gives seconds since the epoch: what is read back from the response topic has no other time. `forgotten` is
    called for each answer that had to go for want of room.
    """

    def __init__(
        self, window: float, limit: int, clock: Callable[[], float], forgotten: Callable[[], None] = lambda: None
    ) -> None:
        self.window = window
        self._limit = limit
        self._clock = clock
        self._forgotten = forgotten
        self._lock = threading.Lock()
        # Each is in hand, or runs although its partition is lost: its answer counts still if that returns.
        self._running: dict[_Name, _Running] = {}
        # The oldest first.
        self._answered: OrderedDict[_Name, _Answered] = OrderedDict()
        self._bytes = 0

    def begin(self, work: Work, digest: bytes, *, replayed: bool = False) -> Answer | Verdict:
        """Return the answer to a request that was given already, or what is to be done with it."""
        name = (work.record.partition, work.id)
        with self._lock:
            self._drop_old()
            if replayed:
                return Verdict.RUN
            running, known = self._running.get(name), self._answered.get(name)
            if known is not None and known.answer.digest == digest and known.answer.source != work.record.source:
                return known.answer
            if running is not None and running.work is not work and not running.work.assignment.lost:
                return Verdict.WAIT if running.digest == digest else Verdict.RUN_OTHER_VALUE
            self._running[name] = _Running(work, digest)
            return Verdict.RUN_OTHER_VALUE if known is not None and known.answer.digest != digest else Verdict.RUN

    def ended(self, work: Work, value: bytes | None) -> None:
        """Note the response to a request that was completed, or None for one that ended otherwise."""
        name = (work.record.partition, work.id)
        with self._lock:
            running = self._running.get(name)
            # The same request may have been received anew while its call ran.
            if running is None or running.work.record.source != work.record.source:
                return
            del self._running[name]
            if value is not None:
                self._keep(name, Answer(value, work.record.source, running.digest), self._clock() + self.window)

    def forget(self, works: Iterable[Work]) -> None:
        """Let go of requests of a lost partition that do not run, or no more: nothing comes of them here."""
        with self._lock:
            for work in works:
                name = (work.record.partition, work.id)
                running = self._running.get(name)
                # The same request may have been received anew, and run by now.
                if running is not None and running.work is work:
                    del self._running[name]

    def restore(self, found: Found) -> None:
        """Note an answer that was found in the response topic."""
        with self._lock:
            name = (found.answer.source.partition, found.request_id)
            until = found.answered_at + self.window
            known = self._answered.get(name)
            if until > self._clock() and (known is None or known.until < until):
                self._keep(name, found.answer, until)

    def _keep(self, name: _Name, answer: Answer, until: float) -> None:
        if (old := self._answered.pop(name, None)) is not None:
            self._bytes -= old.size
        kept = self._answered[name] = _Answered(answer, until)
        self._bytes += kept.size
        while self._bytes > self._limit:
            self._drop_first()
            self._forgotten()

    def _drop_old(self) -> None:
        now = self._clock()
        while self._answered and next(iter(self._answered.values())).until <= now:
            self._drop_first()

    def _drop_first(self) -> None:
        self._bytes -= self._answered.popitem(last=False)[1].size

    def __len__(self) -> int:
        return len(self._answered)
