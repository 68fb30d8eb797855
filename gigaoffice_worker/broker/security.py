"""TLS and SASL out of the configuration.

The client keeps the password that a connection was made with. Here each login reads it again, so that the connections
of all clients follow a rotated password file, without a restart of anything.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import structlog
from kafka.errors import SaslAuthenticationFailedError
from kafka.sasl import register_sasl_mechanism
from kafka.sasl.abc import SaslMechanism
from kafka.sasl.plain import SaslMechanismPlain
from kafka.sasl.scram import SaslMechanismScram

from gigaoffice_worker.broker.msk import login_of
from gigaoffice_worker.broker.oauth import TokenProvider, token_source
from gigaoffice_worker.config import Kafka
from gigaoffice_worker.config.files import read_secret
from gigaoffice_worker.core.errors import ConfigurationError

log = structlog.get_logger(__name__)

_MECHANISMS: Final = {
    "PLAIN": SaslMechanismPlain,
    "SCRAM-SHA-256": SaslMechanismScram,
    "SCRAM-SHA-512": SaslMechanismScram,
}


def security_kwargs(kafka: Kafka) -> dict[str, Any]:
    """Return the client's arguments for reaching the cluster safely.

    The password is asked for at each login, so that clients follow a rotation of its file. Raises ConfigurationError
    if a TLS file does not serve; for OAUTHBEARER what `TokenSource.token` raises.
    """
    kwargs: dict[str, Any] = {
        "bootstrap_servers": list(kafka.bootstrap_servers),
        "security_protocol": kafka.security_protocol,
        "ssl_context": RereadingContext(kafka) if kafka.use_ssl else None,
    }
    if kafka.sasl_mechanism:
        kwargs |= {"sasl_mechanism": kafka.sasl_mechanism, **_login(kafka)}
    return kwargs


def _login(kafka: Kafka) -> dict[str, Any]:
    if kafka.sasl_mechanism == "OAUTHBEARER":
        source = token_source(kafka)
        source.token()  # what is wrong with the endpoint is told here, and not as the login of some connection
        return {"sasl_oauth_token_provider": TokenProvider(source)}
    if kafka.sasl_mechanism == "AWS_MSK_IAM":
        register_sasl_mechanism("AWS_MSK_IAM", login_of(kafka.sasl_aws_region or ""), overwrite=True)
        return {}
    log_in_late()
    return {"sasl_plain_username": kafka.sasl_username, "sasl_plain_password": Password(kafka)}


class RereadingContext:
    """Makes each TLS connection with what the files hold by then: certificates are renewed while a worker runs.

    It stands in for an `ssl.SSLContext`, of which the client uses `wrap_socket` only. Where the files do not serve at
    the moment, those of the last connection are used.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._context = _tls_context(kafka)

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        """Wrap a connected socket as `ssl.SSLContext.wrap_socket` does."""
        try:
            self._context = _tls_context(self._kafka)
        except ConfigurationError as error:
            log.warning("TLS files cannot be used, the last ones are", error=str(error), hint=error.hint)
        return self._context.wrap_socket(sock, **options)


def ssl_context(kafka: Kafka) -> ssl.SSLContext | None:
    """Return what a TLS connection is made with, TLS 1.2 at least and the broker verified; None without TLS.

    Raises ConfigurationError if the files hold no certificates, or the key does not fit them or its password.
    """
    return _tls_context(kafka) if kafka.use_ssl else None


def _tls_context(kafka: Kafka) -> ssl.SSLContext:
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
