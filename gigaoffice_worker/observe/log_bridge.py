"""The standard library's loggers in our form: the Kafka client's, the HTTP server's, those of a handler's libraries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from gigaoffice_worker.observe.repeats import LEFT_OUT, RateLimiter, Suppressed, template

Emit = Callable[[str, str, Mapping[str, object], float], None]

# The least level of loggers that would otherwise say too much: at DEBUG the Kafka client prints passwords and payloads
# and the HTTP client's transport prints headers; at INFO the HTTP client prints a line for each call.
FLOORS: Mapping[str, int] = {
    "kafka": logging.INFO,  # and told from WARNING on, see StdlibBridge
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


class StdlibBridge(logging.Handler):
    """Hand the records of all stdlib loggers to `emit(level, event, facts, created)`.

    What the worker's own libraries say is data: it goes to the fact `message`, and `event` is a constant. Of all other
    loggers, the handler's and those of its libraries, the message is the event. `context` gives facts to add.
    What the Kafka client says at INFO is left out unless `tells_all`: what matters of it the worker says itself. It is
    logged all the same, because the broker room listens to it.
    """

    def __init__(self, emit: Emit, *, context: Callable[[], Mapping[str, object]], limiter: RateLimiter) -> None:
        super().__init__()
        self._emit = emit
        self._context = context
        self._limiter = limiter
        self.tells_all = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what can't be read becomes a line that says so."""
        root = record.name.partition(".")[0]
        if record.levelno < _floor(record.name):  # somebody lowered the level of one of its children
            return
        if root == "kafka" and record.levelno < logging.WARNING and not self.tells_all:
            return
        suppressed = 0
        if root in RATE_LIMITED:
            for old in self._limiter.sweep(record.created):
                self._summarize(old, record.created)
            allowed = self._limiter.admit((record.name, template(str(record.msg))), record.created, record.levelno)
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
        logger, text = old.cause or ("", "")
        facts = {"logger": logger, "template": text, "suppressed": old.lines}
        self._emit(level_name(old.level), LEFT_OUT, facts, now)


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
