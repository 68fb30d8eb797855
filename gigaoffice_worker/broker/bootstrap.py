"""Asking each bootstrap server, before the client does: the client knows one answer for every failure, we need all.

| found | ends as |
|---|---|
| name not known, refused, unreachable, silent, closed during the handshake | UnreachableError, 69 |
| the certificate is from a stranger, for another host, or out of date; ours is refused | AccessError, 77 |
| the server does not speak TLS, or none that we speak, or it does and we do not | ConfigurationError, 78 |
| it answers, and not as Kafka does | ConfigurationError, 78 |
"""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import struct
import threading
import time
from typing import Final, NamedTuple

from gigaoffice_worker.broker.security import ssl_context
from gigaoffice_worker.config import Kafka
from gigaoffice_worker.core import strict_certificates
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError, WorkerError

LIMIT: Final = 5.0
"""Seconds that a server has at most."""
_LATECOMERS: Final = 0.2
"""Seconds for the other servers once one has answered: the client needs one, the rest is for the report."""
_REFUSAL: Final = 0.2
"""Seconds in which a server refuses our certificate: TLS 1.3 tells only after the handshake."""

# The request that every broker answers, also before a login: which versions of what it speaks. Its length, number,
# version and correlation id, and no client id. The answer begins with its length and the same correlation id.
_CORRELATION: Final = 1
_HELLO: Final = struct.pack(">ihhih", 10, 18, 0, _CORRELATION, -1)
_ANSWER: Final = struct.Struct(">ii")
_LONGEST_ANSWER: Final = 1024 * 1024
_TLS_ALERT: Final = b"\x15\x03"
_NOT_KAFKA: Final = "accepts connections but does not answer as Kafka does"
_NOT_KAFKA_HINT: Final = "Check that the broker has started, and whether its port expects TLS (KAFKA_USE_SSL)."

# Numbers of OpenSSL for what is wrong with a certificate.
_OUT_OF_DATE: Final = (9, 10)
_OTHER_HOST: Final = (62, 64)
_TELLING: Final[tuple[type[WorkerError], ...]] = (AccessError, ConfigurationError, UnreachableError)
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


class ServerAnswer(NamedTuple):
    """What became of one server; no error means that it can be used."""

    server: str
    error: WorkerError | None


def usable_servers(kafka: Kafka, timeout: float) -> tuple[str, ...]:
    """Return the bootstrap servers that can be used; raise the most telling error within `timeout` seconds if none can.

    A server that answers and refuses tells more than one that is silent.
    """
    answers = ask_servers(kafka, timeout)
    if usable := tuple(each.server for each in answers if each.error is None):
        return usable
    errors = [each.error for each in answers if each.error]
    telling = min(errors, key=lambda each: _TELLING.index(type(each)))
    raise type(telling)(f"no bootstrap server can be used: {'; '.join(map(str, errors))}", hint=telling.hint)


def ask_servers(kafka: Kafka, timeout: float, *, only_connect: bool = False) -> list[ServerAnswer]:
    """Ask all servers at once; each has at most LIMIT seconds, all together `timeout`.

    With `only_connect` it is enough that a server can be connected to.
    """
    context = ssl_context(kafka)
    deadline = time.monotonic() + min(LIMIT, timeout)
    answers: queue.SimpleQueue[ServerAnswer] = queue.SimpleQueue()
    for server in kafka.bootstrap_servers:
        # Daemons, because the name service has no time limit.
        threading.Thread(
            target=lambda server=server: answers.put(
                ServerAnswer(server, _failure(server, context, deadline, only_connect))
            ),
            name=f"bootstrap-{server}",
            daemon=True,
        ).start()
    return _collect(kafka.bootstrap_servers, answers, deadline)


def _collect(servers: tuple[str, ...], answers: queue.SimpleQueue[ServerAnswer], deadline: float) -> list[ServerAnswer]:
    found: dict[str, ServerAnswer] = {}
    until = deadline + _REFUSAL
    while len(found) < len(set(servers)):
        try:
            answer = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        found[answer.server] = answer
        if answer.error is None:
            until = min(until, time.monotonic() + _LATECOMERS)
    late = UnreachableError("no answer in time", hint="Check the name service and the network.")
    return [
        found.get(server) or ServerAnswer(server, type(late)(f"{server}: {late}", hint=late.hint)) for server in servers
    ]


def _failure(server: str, context: ssl.SSLContext | None, deadline: float, only_connect: bool) -> WorkerError | None:  # noqa: FBT001
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        with _connect(host, int(port), deadline) as connection:
            if not only_connect:
                connection.settimeout(_left(deadline))
                _talk(host, context, connection, deadline)
    except WorkerError as error:
        return type(error)(f"{server}: {error}", hint=error.hint)
    return None


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise UnreachableError(
            "host name not known", hint="Check KAFKA_BOOTSTRAP_SERVERS and the name service."
        ) from error
    problem: OSError = TimeoutError()
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        connection = socket.socket(family, kind, protocol)
        # One that is silent must leave time for those behind it.
        connection.settimeout(_left(deadline) / (len(addresses) - number))
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            problem = error
        else:
            return connection
    raise _unreachable(problem)


def _unreachable(problem: OSError) -> UnreachableError:
    if isinstance(problem, TimeoutError):
        return UnreachableError("no answer in time", hint="Check the network, the firewall and that the broker runs.")
    if isinstance(problem, ConnectionRefusedError):
        return UnreachableError("connection refused", hint="Check that the broker runs and listens on this port.")
    return UnreachableError(problem.strerror or str(problem), hint="Check the network.")


def _talk(host: str, context: ssl.SSLContext | None, connection: socket.socket, deadline: float) -> None:
    if context is None:
        _check_kafka(connection, deadline)
        return
    shaken = False
    try:
        with context.wrap_socket(connection, server_hostname=host) as tls:
            shaken = True
            _wait_for_refusal(tls)
            _check_kafka(tls, deadline)
    except TimeoutError:
        message = "accepts connections but does not answer the TLS handshake in time"
        hint = "Check that the broker runs and that the port speaks TLS."
        raise UnreachableError(_NOT_KAFKA if shaken else message, hint=hint) from None
    except OSError as error:
        raise _tls_error(error) from error


def _wait_for_refusal(tls: ssl.SSLSocket) -> None:
    """Give a server the time to refuse our certificate: what we send meanwhile would make its words be lost."""
    tls.settimeout(_REFUSAL)
    with contextlib.suppress(TimeoutError):
        if not tls.recv(1):
            raise ConnectionResetError


def _check_kafka(connection: socket.socket, deadline: float) -> None:
    """See whether a server answers as Kafka does. Over TLS, raises the errors of the connection as they are."""
    answer = b""
    try:
        connection.sendall(_HELLO)
        while len(answer) < _ANSWER.size:
            connection.settimeout(_left(deadline))
            more = connection.recv(_ANSWER.size - len(answer))
            if not more:
                raise ConnectionResetError
            answer += more
    except OSError:
        if answer:
            raise _another_protocol(answer) from None
        if isinstance(connection, ssl.SSLSocket):
            raise
        raise UnreachableError(_NOT_KAFKA, hint=_NOT_KAFKA_HINT) from None
    length, correlation = _ANSWER.unpack(answer)
    if correlation != _CORRELATION or not _ANSWER.size <= length <= _LONGEST_ANSWER:
        raise _another_protocol(answer)


def _another_protocol(answer: bytes) -> ConfigurationError:
    if answer.startswith(_TLS_ALERT):
        return ConfigurationError("speaks TLS", hint="Set KAFKA_USE_SSL=true, or name the port that speaks no TLS.")
    begins = answer.decode("ascii", "replace")
    message = f"does not speak Kafka: its answer begins with {begins!r}"
    return ConfigurationError(message, hint="KAFKA_BOOTSTRAP_SERVERS must name a port that brokers listen on.")


def _tls_error(error: OSError) -> WorkerError:
    """Tell from how a handshake failed whose fault it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AccessError(f"certificate not trusted: {error.verify_message}", hint=_trust_hint(error.verify_code))
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    if reason in _NO_TLS:
        return ConfigurationError(
            "does not speak TLS", hint="Set KAFKA_USE_SSL=false or name the port that speaks TLS."
        )
    if "ALERT" in reason and "VERSION" not in reason:
        message = f"refuses our certificate: {reason.replace('_', ' ').lower()}"
        return AccessError(
            message, hint="Check KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE: the broker asks for a client certificate."
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        message = f"TLS handshake failed: {reason.replace('_', ' ').lower()}"
        return ConfigurationError(message, hint="The broker must offer TLS 1.2 or newer.")
    return UnreachableError(
        "closes the connection during the TLS handshake",
        hint="A port without TLS does so too: set KAFKA_USE_SSL=false or name the port that speaks TLS.",
    )


def _trust_hint(code: int) -> str:
    if code in _OTHER_HOST:
        return "The certificate must name the host that KAFKA_BOOTSTRAP_SERVERS names."
    if code in _OUT_OF_DATE:
        return "Renew the broker's certificate, or set this machine's clock."
    if strict_certificates.is_strictness(code):
        return strict_certificates.HINT
    return "KAFKA_SSL_CAFILE must hold the authority that signed the broker's certificate."
