"""What only the client's log tells of its connections: why one failed, and that a login was refused."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

_CONNECTION: Final = re.compile(r"^<BrokerConnection .*?>: (?:Closing connection\. )?")
# The client tries a refused login again after two seconds at most, topics are verified every fifteen: without a new
# refusal for as long, logins work again.
_FORGOTTEN_AFTER: Final = 30.0


class ConnectionListener(logging.Handler):
    """A context that listens to what the client logs of its connections."""

    def __enter__(self) -> Self:
        logging.getLogger("kafka.conn").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logging.getLogger("kafka.conn").removeHandler(self)

    @staticmethod
    def text(record: logging.LogRecord) -> str:
        """Return a message without the connection that it begins with."""
        return _CONNECTION.sub("", record.getMessage())


class LoginWatch(ConnectionListener):
    """A context that listens to the logins of all clients: nothing but the client's log tells of a refused one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.INFO)
        self._clock = clock
        self._refused: tuple[float, str] | None = None

    @property
    def refusal(self) -> str | None:
        """The broker's words while it refuses us; None before, and once somebody was let in again."""
        refused = self._refused
        return refused[1] if refused and self._clock() - refused[0] < _FORGOTTEN_AFTER else None

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a refused login, or of one that succeeded."""
        text = self.text(record)
        if record.levelno >= logging.ERROR and "Sasl" in text:
            # What closes the connection says less than the broker's answer before it.
            told = text if text.startswith("SaslAuthenticate error") else self.refusal or text
            self._refused = (self._clock(), told)
        elif text.startswith("Authenticated as "):
            self._refused = None


class ConnectionErrors(ConnectionListener):
    """A context that listens to what the client logs of failed connections: it tells the reason nowhere else.

    Only the thread that made it is listened to, unless `every_thread`.
    """

    def __init__(self, *, every_thread: bool = False) -> None:
        super().__init__(logging.ERROR)
        self._thread = None if every_thread else threading.get_ident()
        self.newest = ""
        self.refusal = ""
        """The newest text that says that authentication was refused."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message without the connection that it begins with."""
        if self._thread not in {None, record.thread}:
            return
        self.newest = self.text(record)
        if "Sasl" in self.newest:
            self.refusal = self.newest
