"""TLS and SASL out of the configuration, and the client's own words when either is refused."""

from __future__ import annotations

import logging
import ssl
import threading
from typing import Any

from gigaoffice_worker.broker.login import ConnectionListener, Password, log_in_late
from gigaoffice_worker.config import Kafka
from gigaoffice_worker.core.errors import ConfigurationError


def security_kwargs(kafka: Kafka) -> dict[str, Any]:
    """Return the client's arguments for reaching the cluster safely.

    The password is asked for at each login, so that clients follow a rotation of its file. Raises ConfigurationError
    if a TLS file does not serve.
    """
    kwargs: dict[str, Any] = {
        "bootstrap_servers": list(kafka.bootstrap_servers),
        "security_protocol": kafka.security_protocol,
        "ssl_context": ssl_context(kafka),
    }
    if kafka.sasl_mechanism:
        log_in_late()
        kwargs |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": Password(kafka),
        }
    return kwargs


def ssl_context(kafka: Kafka) -> ssl.SSLContext | None:
    """Return what a TLS connection is made with, TLS 1.2 at least and the broker verified; None without TLS.

    Raises ConfigurationError if the files hold no certificates, or the key does not fit them or its password.
    """
    if not kafka.use_ssl:
        return None
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_cafile)
    except OSError as error:
        message = f"KAFKA_SSL_CAFILE={kafka.ssl_cafile!r}: {_reason(error)}"
        raise ConfigurationError(message, hint="It must hold certificates in PEM form.") from error
    context.check_hostname = kafka.ssl_check_hostname
    if kafka.ssl_certfile:
        _load_client_certificate(context, kafka)
    return context


def _load_client_certificate(context: ssl.SSLContext, kafka: Kafka) -> None:
    asked = False

    def password() -> str:
        # Without a password of ours OpenSSL would ask the terminal for one.
        nonlocal asked
        asked = True
        return kafka.ssl_password.reveal() if kafka.ssl_password else ""

    try:
        context.load_cert_chain(kafka.ssl_certfile or "", kafka.ssl_keyfile, password=password)
    except (OSError, ValueError) as error:
        files = f"KAFKA_SSL_CERTFILE={kafka.ssl_certfile!r} with KAFKA_SSL_KEYFILE={kafka.ssl_keyfile!r}"
        why = "does not open it" if kafka.ssl_password else "is not set"
        locked = f"the key is encrypted, and KAFKA_SSL_PASSWORD {why}"
        raise ConfigurationError(
            f"{files}: {locked if asked else _reason(error)}",
            hint="Both must be in PEM form and belong together; KAFKA_SSL_PASSWORD must open the key.",
        ) from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    return str(reason).replace("_", " ").lower()


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
