"""What an operator may ask of a running worker: the commands of the control socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gigaoffice_worker.engine.engine import Engine
from gigaoffice_worker.observe import logs
from gigaoffice_worker.observe.control import Command

MOST_CALLS = 1024


class Orders:
    """Carries out what `gigaoffice-worker ctl` says; `engine` gives the running parts, None before they run."""

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._engine = engine

    def commands(self) -> Mapping[str, Command]:
        """Return the commands by name. Each says what is so now, or raises ValueError."""
        return {
            "pause": self._pause,
            "resume": self._resume,
            "concurrency": self._concurrency,
            "log-level": self._log_level,
        }

    def _running(self) -> Engine:
        engine = self._engine()
        if engine is None:
            raise ValueError("the worker is still starting: it reads no requests yet")
        return engine

    def _pause(self, _argument: str) -> str:
        self._running().pause()
        return "paused: no request is started any more, running ones end; /readyz is red until `ctl resume`"

    def _resume(self, _argument: str) -> str:
        engine = self._running()
        if not engine.paused:
            return "running: it was not paused"
        engine.resume()
        return "running"

    def _concurrency(self, argument: str) -> str:
        if not (argument.isascii() and argument.isdecimal() and 1 <= int(argument[:5]) <= MOST_CALLS):
            raise ValueError(f"concurrency must be a whole number from 1 to {MOST_CALLS}, not {argument[:20]!r}")
        self._running().pool.resize(int(argument))
        return f"{int(argument)} handler calls at once, until the worker ends"

    def _log_level(self, argument: str) -> str:
        logs.set_level(argument)
        return f"log lines of level {argument.upper()} and above are written"
