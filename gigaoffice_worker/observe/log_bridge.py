"""The standard library's loggers in our form: the Kafka client's, the HTTP server's, those of a handler's libraries."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Emit = Callable[[str, str, Mapping[str, object], float], None]

# The least level of loggers that would otherwise say too much: at DEBUG the Kafka client prints passwords and payloads
# and the HTTP client's transport prints headers; at INFO the HTTP client prints a line for each call.
FLOORS: Mapping[str, int] = {
    "kafka": logging.INFO,
    "gigachat": logging.ERROR,  # warns of each refusal, with its address; the handler's error says it too
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "urllib3": logging.ERROR,  # sends the spans; what fails there is told by the exporter
    "waitress": logging.WARNING,
    "waitress.queue": logging.ERROR,
}
# As the log cuts it.
LONGEST_EVENT = 256
RATE_LIMITED = frozenset({"kafka", "opentelemetry", "waitress"})

_EVENTS: Mapping[str, str] = {
    "kafka": "Kafka client message",
    "opentelemetry": "Tracing message",
    "waitress": "Side port message",
    "py": "Python warning",
}
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


class StdlibBridge(logging.Handler):
    """Hand the records of all stdlib loggers to `emit(level, event, facts, created)`.

    What the worker's own libraries say is data: it goes to the fact `message`, and `event` is a constant. Of all other
    loggers, the handler's and those of its libraries, the message is the event. `context` gives facts to add.
    """

    def __init__(self, emit: Emit, *, context: Callable[[], Mapping[str, object]], limiter: RateLimiter) -> None:
        super().__init__()
        self._emit = emit
        self._context = context
        self._limiter = limiter

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what can't be read becomes a line that says so."""
        root = record.name.partition(".")[0]
        if record.levelno < _floor(record.name):  # somebody lowered the level of one of its children
            return
        suppressed = 0
        if root in RATE_LIMITED:
            for old in self._limiter.sweep(record.created):
                self._summarize(old, record.created)
            allowed = self._limiter.admit((record.name, str(record.msg)), record.created)
            if allowed is None:
                return
            suppressed = allowed
        facts = {**self._context(), **_facts(record)}
        if suppressed:
            facts["suppressed"] = suppressed
        self._emit(level_name(record.levelno), _event(root, facts), facts, record.created)

    def flush_summaries(self, now: float) -> None:
        """Say how many lines were left out and not yet told."""
        for old in self._limiter.sweep(now, idle=0.0):
            self._summarize(old, now)

    def _summarize(self, old: Suppressed, now: float) -> None:
        facts = {"logger": old.logger, "template": old.template, "suppressed": old.lines}
        self._emit("info", "Repeated messages left out", facts, now)


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Lines of one logger and one message template that were left out; an empty template stands for many."""

    logger: str
    template: str
    lines: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float  # when, in the caller's seconds
    suppressed: int = 0

    def take(self, now: float, *, burst: float, per_second: float) -> bool:
        self.tokens = min(burst, self.tokens + max(0.0, now - self.filled) * per_second)
        self.filled = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class RateLimiter:
    """A token bucket for each (logger, message template): `burst` lines at once, then one every `interval` seconds.

    The first line of a template always passes, unless dozens of templates are new: then they are data in disguise
    (a message put together before it was logged) and share one bucket. At most `size` templates are remembered.
    """

    def __init__(self, *, burst: int = 3, interval: float = 10.0, new_burst: int = 50, size: int = 256) -> None:
        self._burst = float(burst)
        self._per_second = 1.0 / interval
        self._new_burst = float(new_burst)
        self._new = _Bucket(tokens=float(new_burst), filled=0.0)
        self._size = size
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()
        self._forgotten: list[Suppressed] = []
        self._swept = 0.0

    def admit(self, key: tuple[str, str], now: float) -> int | None:
        """Return how many lines like this one were left out before it, or None when it is to be left out itself."""
        logger, template = key[0], _NUMBERS.sub("#", key[1][:300])
        bucket = self._buckets.get((logger, template))
        if bucket is None:
            if not self._new.take(now, burst=self._new_burst, per_second=1.0):
                self._new.suppressed += 1
                return None
            bucket = self._remember((logger, template), now)
        self._buckets.move_to_end((logger, template))
        if not bucket.take(now, burst=self._burst, per_second=self._per_second):
            bucket.suppressed += 1
            return None
        suppressed, bucket.suppressed = bucket.suppressed, 0
        return suppressed

    def sweep(self, now: float, *, idle: float = 60.0) -> list[Suppressed]:
        """Return, at most every `idle` seconds, what was left out by templates that did not come again."""
        if now - self._swept < idle:
            return []
        self._swept = now
        found, self._forgotten = self._forgotten, []
        for (logger, template), bucket in list(self._buckets.items()):
            if bucket.suppressed and now - bucket.filled >= idle:
                found.append(Suppressed(logger, template, bucket.suppressed))
                bucket.suppressed = 0
        if self._new.suppressed:
            found.append(Suppressed("", "", self._new.suppressed))
            self._new.suppressed = 0
        return found

    def _remember(self, key: tuple[str, str], now: float) -> _Bucket:
        if len(self._buckets) >= self._size:
            (logger, template), oldest = self._buckets.popitem(last=False)
            if oldest.suppressed and len(self._forgotten) < self._size:
                self._forgotten.append(Suppressed(logger, template, oldest.suppressed))
        return self._buckets.setdefault(key, _Bucket(tokens=self._burst, filled=now))


def level_name(number: int) -> str:
    """Name a stdlib level, also one between the usual ones."""
    if number >= logging.CRITICAL:
        return "critical"
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"


def _floor(name: str) -> int:
    while name:
        if name in FLOORS:
            return FLOORS[name]
        name = name.rpartition(".")[0]
    return logging.NOTSET


def _event(root: str, facts: dict[str, Any]) -> str:
    constant = _EVENTS.get(root)
    if constant is not None:
        return constant
    event: str = facts["message"]
    if len(event) <= LONGEST_EVENT:  # else the event is cut, and the fact has it whole
        del facts["message"]
    return event


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {"logger": record.name, "message": _message(record)}
    facts.update((key, value) for key, value in record.__dict__.items() if key not in _STANDARD)
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, OSError) and record.name.startswith("kafka."):
        # A connection that breaks is no puzzle: brokers restart.
        facts.update(error_type=type(error).__name__, error=str(error))
    elif record.exc_info:
        facts["exc_info"] = record.exc_info
    if record.stack_info:
        facts["stack"] = record.stack_info
    return facts


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - arguments that don't fit the template, or can't be printed
        return f"{record.msg!s:.500} (arguments not shown: {type(error).__name__})"
