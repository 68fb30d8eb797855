"""What `dev` shows of its worker's log: a line for each request, what the handler says, and what deserves a look."""

from __future__ import annotations

import json
import sys
import threading
from datetime import datetime
from typing import IO, Any, Final

from gigaoffice_worker.core.visible import visible
from gigaoffice_worker.observe.log_lines import LineFormat

# What a developer wants to see although it is no warning.
_TOLD: Final = frozenset(
    {"Request answered", "Request ended without a call", "Worker running", "Worker draining", "Worker stopped"}
)
# The worker says on standard error why it ends.
_TOLD_ALREADY: Final = ("error", "Worker stopped")
_SERIOUS: Final = frozenset({"warning", "error", "critical"})
# Where a request stands is no matter on a Kafka of one's own.
_LEFT_OUT: Final = frozenset({"topic", "partition", "offset", "trace_id", "span_id"})
# Loggers whose lines have an event of ours are the worker's libraries; all others are the handler's.
_OURS: Final = frozenset({"kafka", "opentelemetry", "waitress"})

# The settings with which the worker writes what is read here.
SETTINGS: Final = {"LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG", "LOG_TRACEBACKS": "full"}


class Output:
    """Reads a worker's log, in a thread, and prints what is worth it."""

    def __init__(self, lines: IO[bytes]) -> None:
        self._format = LineFormat(console=True, colour=sys.stdout.isatty())
        self._lines = lines
        self._thread = threading.Thread(target=self._run, name="worker-output", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait until the worker's last line is printed."""
        self._thread.join(timeout)
        self._lines.close()

    def _run(self) -> None:
        for line in self._lines:
            if text := self.shown(line.decode("utf-8", "replace")):
                print(text, end="", flush=True)

    def shown(self, line: str) -> str:
        """Return how a line of the log is shown; nothing for one that is not."""
        record = _record(line)
        if record is None:
            return f"{visible(line.rstrip())}\n"
        level, event = str(record.pop("level", "info")), str(record.pop("event", ""))
        created = _moment(record.pop("timestamp", None))
        if not _is_told(level, event, record):
            return ""
        facts = {name: value for name, value in record.items() if name not in _LEFT_OUT}
        return self._format.line("info" if level == "debug" else level, event, facts, created)


def _is_told(level: str, event: str, facts: dict[str, Any]) -> bool:
    if (level, event) == _TOLD_ALREADY:
        return False
    if level in _SERIOUS or event in _TOLD:
        return True
    logger = str(facts.get("logger", ""))
    return bool(logger) and level != "debug" and logger.partition(".")[0] not in _OURS


def _record(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _moment(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
