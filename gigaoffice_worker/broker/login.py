"""Logging in with the password of the moment, and noticing that the cluster no longer accepts it.

The client keeps the password that a connection was made with. Here each login reads it again, so that a rotated
password file is followed by the connections of all clients, without a restart of anything.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from kafka.errors import SaslAuthenticationFailedError
from kafka.sasl import register_sasl_mechanism
from kafka.sasl.abc import SaslMechanism
from kafka.sasl.plain import SaslMechanismPlain
from kafka.sasl.scram import SaslMechanismScram

from gigaoffice_worker.config import Kafka
from gigaoffice_worker.config.files import read_secret

_MECHANISMS: Final = {
    "PLAIN": SaslMechanismPlain,
    "SCRAM-SHA-256": SaslMechanismScram,
    "SCRAM-SHA-512": SaslMechanismScram,
}
_CONNECTION: Final = re.compile(r"^<BrokerConnection .*?>: (?:Closing connection\. )?")
# The client tries a refused login again after two seconds at most, topics are verified every fifteen: without a new
# refusal for as long, somebody was let in.
_FORGOTTEN_AFTER: Final = 30.0


class Password(NamedTuple):
    """Where a password is found when it is needed. Called, it returns the text."""

    kafka: Kafka

    def __call__(self) -> str:
        """Return the password. Raises the client's authentication error if its file does not serve."""
        path = self.kafka.sasl_password_file
        if path is None:
            return self.kafka.sasl_password.reveal() if self.kafka.sasl_password else ""
        try:
            return read_secret(path)
        except (OSError, ValueError) as error:
            raise SaslAuthenticationFailedError(f"KAFKA_SASL_PASSWORD_FILE={path!r} cannot be used: {error}") from error


class _LateLogin(SaslMechanism):  # type: ignore[misc]  # the client ships no types
    """One of the client's mechanisms, made when its first words are due rather than with the connection."""

    def __init__(self, **config: Any) -> None:
        self._config = config
        self._login: Any = None

    def auth_bytes(self) -> bytes:
        if self._login is None:
            password: Callable[[], str] = self._config["sasl_plain_password"]
            make = _MECHANISMS[self._config["sasl_mechanism"]]
            self._login = make(**{**self._config, "sasl_plain_password": password()})
        return bytes(self._login.auth_bytes())

    def receive(self, auth_bytes: bytes) -> None:
        self._login.receive(auth_bytes)

    def is_done(self) -> bool:
        return self._login is not None and bool(self._login.is_done())

    def is_authenticated(self) -> bool:
        return self._login is not None and bool(self._login.is_authenticated())

    def auth_details(self) -> str:
        return str(self._login.auth_details())


def log_in_late() -> None:
    """Have every login from now on ask for its password; the client's `sasl_plain_password` is then a `Password`."""
    for name in _MECHANISMS:
        register_sasl_mechanism(name, _LateLogin, overwrite=True)


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
