"""What a bootstrap server can do wrong, each told in its own words and within its time."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from kafka.errors import SaslAuthenticationFailedError
from structlog.testing import capture_logs

from gigaoffice_worker.broker.bootstrap import ask_servers, usable_servers
from gigaoffice_worker.broker.security import RereadingContext, security_kwargs, ssl_context
from gigaoffice_worker.config import Secret, load
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError
from tests.support.certificates import DAY, Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def speaks_kafka(connection):
    """Answer which versions are spoken: with none, which is all that matters here."""
    asked = connection.recv(14)
    if asked:
        connection.sendall(struct.pack(">iihi", 10, struct.unpack(">ihhih", asked)[3], 0, 0))
        connection.recv(1)


@contextlib.contextmanager
def server(talk=speaks_kafka):
    """Listen on loopback; `talk(connection)` serves one connection after the other, None serves none of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve():
            while not over.is_set():
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if not over.is_set():
                        talk(connection)

        thread = threading.Thread(target=serve) if talk else None
        if thread:
            thread.start()
        port = listener.getsockname()[1]
        try:
            yield f"localhost:{port}"
        finally:
            if thread:
                over.set()
                socket.create_connection(("127.0.0.1", port)).close()
                thread.join()


def speaks_tls(certificate, *, clients=None):
    """Serve TLS with a (certificate, key) pair; clients need certificates signed by the authority in `clients`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)

    def talk(connection):
        connection.settimeout(5)
        with context.wrap_socket(connection, server_side=True) as tls:
            speaks_kafka(tls)

    return talk


def settings(*servers, cafile=None, **changes):
    kafka = load({"KAFKA_BOOTSTRAP_SERVERS": ",".join(servers)}).kafka
    return dataclasses.replace(kafka, ssl_cafile=cafile, use_ssl=cafile is not None, **changes)


def refusal(kind, kafka, timeout=5.0):
    with pytest.raises(kind) as caught:
        usable_servers(kafka, timeout)
    assert type(caught.value) is kind
    assert caught.value.hint
    return f"{caught.value} {caught.value.hint}"


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_listens_will_do():
    with server() as address:
        assert usable_servers(settings(address), 5.0) == (address,)


def test_a_silent_address_of_a_name_leaves_time_for_the_next(monkeypatch):
    with server() as address, socket.socket() as silent, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        silent.bind(("127.0.0.2", port))
        silent.listen(0)
        for _ in range(4):  # more than its queue takes: who comes now hears nothing
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(("127.0.0.2", port))
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert usable_servers(settings(address), 2.0) == (address,)


def test_a_refused_connection_says_so():
    address = closed_port()
    assert f"{address}: connection refused" in refusal(UnreachableError, settings(address))


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n"])
def test_a_port_that_is_not_kafkas_says_so_at_once(greeting):
    started = time.monotonic()
    with server(lambda connection: (connection.recv(100), connection.sendall(greeting))) as address:
        text = refusal(ConfigurationError, settings(address), timeout=30.0)
    assert f"{address}: does not speak Kafka" in text
    assert "a port that brokers listen on" in text
    assert time.monotonic() - started < 15.0


def test_a_port_that_speaks_tls_to_who_does_not_says_so_at_once():
    alert = b"\x15\x03\x03\x00\x02\x02F"
    with server(lambda connection: (connection.recv(100), connection.sendall(alert))) as address:
        text = refusal(ConfigurationError, settings(address), timeout=30.0)
    assert f"{address}: speaks TLS" in text
    assert "KAFKA_USE_SSL=true" in text


def test_a_port_that_closes_says_so_at_once():
    with server(lambda connection: connection.recv(1)) as address:
        text = refusal(UnreachableError, settings(address), timeout=30.0)
    assert "does not answer as Kafka does" in text
    assert "KAFKA_USE_SSL" in text


def test_a_silent_port_says_so_in_time():
    started = time.monotonic()
    with server(None) as address:
        text = refusal(UnreachableError, settings(address), timeout=30.0)
    assert "does not answer as Kafka does" in text
    assert time.monotonic() - started < 20.0


def test_an_unknown_name_says_so():
    assert "host name not known" in refusal(UnreachableError, settings("[fe80::1%no-such-interface]:9092"))
    assert "host name not known" in refusal(UnreachableError, settings(f"{'a' * 64}:9092"))


def test_only_the_servers_that_answer_are_handed_on():
    dead = closed_port()
    with server() as one, server() as other:
        assert usable_servers(settings(dead, one, other), 5.0) == (one, other)


def test_each_server_is_told_on_its_own():
    dead = closed_port()
    with server() as alive:
        found = ask_servers(settings(dead, alive), 5.0)
    assert [(each.server, type(each.error)) for each in found] == [(dead, UnreachableError), (alive, type(None))]


def test_a_trusted_certificate_for_the_right_host_will_do(authority):
    with server(speaks_tls(authority.issue("localhost"))) as address:
        assert usable_servers(settings(address, cafile=authority.file), 5.0) == (address,)


def test_a_strangers_certificate_is_not_trusted(authority, tmp_path):
    other = Authority(tmp_path, "other authority")
    with server(speaks_tls(other.issue("localhost"))) as address:
        text = refusal(AccessError, settings(address, cafile=authority.file))
    assert "certificate not trusted: unable to get local issuer certificate" in text
    assert "KAFKA_SSL_CAFILE" in text


def test_a_certificate_without_key_identifiers_is_refused_by_python_3_13_and_the_hint_says_so(tmp_path):
    lax = Authority(tmp_path, "lax authority", strict=False)
    with server(speaks_tls(lax.issue("localhost"))) as address:
        if sys.version_info < (3, 13):
            assert usable_servers(settings(address, cafile=lax.file), 5.0) == (address,)
        else:
            text = refusal(AccessError, settings(address, cafile=lax.file))
            assert "certificate not trusted: Missing Authority Key Identifier" in text
            assert "Python 3.13 and newer ask for what RFC 5280 asks for" in text


def test_a_certificate_for_another_host_is_not_trusted_unless_that_is_switched_off(authority):
    with server(speaks_tls(authority.issue("kafka.example"))) as address:
        text = refusal(AccessError, settings(address, cafile=authority.file))
        assert "Hostname mismatch" in text
        assert "must name the host" in text
        unchecked = settings(address, cafile=authority.file, ssl_check_hostname=False)
        assert usable_servers(unchecked, 5.0) == (address,)


def test_an_expired_certificate_says_so(authority):
    certificate = authority.issue("localhost", starts=-3 * DAY, ends=-DAY)
    with server(speaks_tls(certificate)) as address:
        text = refusal(AccessError, settings(address, cafile=authority.file))
    assert "certificate has expired" in text
    assert "Renew" in text


def test_a_missing_client_certificate_is_told_although_the_handshake_succeeds(authority):
    with server(speaks_tls(authority.issue("localhost"), clients=authority.file)) as address:
        text = refusal(AccessError, settings(address, cafile=authority.file))
        assert "refuses our certificate" in text
        certificate, key = authority.issue("client")
        ours = settings(address, cafile=authority.file, ssl_certfile=certificate, ssl_keyfile=key)
        assert usable_servers(ours, 5.0) == (address,)


def test_a_port_that_answers_something_else_does_not_speak_tls(authority):
    with server(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        text = refusal(ConfigurationError, settings(address, cafile=authority.file))
    assert "does not speak TLS" in text


def test_a_port_that_hangs_up_on_tls_says_so(authority):
    with server(lambda connection: connection.recv(1)) as address:
        text = refusal(UnreachableError, settings(address, cafile=authority.file))
    assert "closes the connection during the TLS handshake" in text
    assert "KAFKA_USE_SSL=false" in text


def test_a_silent_peer_costs_no_more_than_the_time_that_is_given(authority):
    started = time.monotonic()
    with server(None) as address:
        text = refusal(UnreachableError, settings(address, cafile=authority.file), timeout=0.5)
    assert "does not answer the TLS handshake in time" in text
    assert time.monotonic() - started < 10.0


def test_a_server_that_refuses_tells_more_than_one_that_is_silent(authority, tmp_path):
    other = Authority(tmp_path, "other authority")
    dead = closed_port()
    with server(speaks_tls(other.issue("localhost"))) as address:
        text = refusal(AccessError, settings(dead, address, cafile=authority.file))
    assert f"{dead}: connection refused; {address}: certificate not trusted" in text


def test_tls_below_1_2_is_never_spoken(authority):
    context = ssl_context(settings("localhost:1", cafile=authority.file))
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_key_that_its_password_does_not_open_is_a_configuration_error(authority, password):
    certificate, key = authority.issue("client", password=b"right")
    kafka = settings("localhost:1", cafile=authority.file, ssl_certfile=certificate, ssl_keyfile=key)
    with pytest.raises(ConfigurationError, match="KAFKA_SSL_KEYFILE") as caught:
        ssl_context(dataclasses.replace(kafka, ssl_password=password and Secret(password)))
    assert "KAFKA_SSL_PASSWORD must open the key" in caught.value.hint
    assert ssl_context(dataclasses.replace(kafka, ssl_password=Secret("right"))) is not None


def test_a_key_of_another_certificate_or_a_file_without_certificates_is_a_configuration_error(authority):
    certificate, other_key = authority.issue("client")[0], authority.issue("other")[1]
    kafka = settings("localhost:1", cafile=authority.file, ssl_certfile=certificate, ssl_keyfile=other_key)
    with pytest.raises(ConfigurationError, match="key values mismatch"):
        ssl_context(kafka)
    with pytest.raises(ConfigurationError, match="KAFKA_SSL_CAFILE"):
        ssl_context(settings("localhost:1", cafile=other_key))


def test_a_rotated_password_is_read_from_its_file_again(tmp_path):
    file = tmp_path / "password"
    file.write_text("old\n")
    environ = {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD_FILE": str(file)}
    password = security_kwargs(load(environ).kafka)["sasl_plain_password"]
    file.write_text("new\n")
    assert password() == "new"
    file.unlink()
    with pytest.raises(SaslAuthenticationFailedError, match=r"KAFKA_SASL_PASSWORD_FILE=.*there is no such file"):
        password()


def connected(context, address):
    host, _, port = address.rpartition(":")
    with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host):
        return True


def test_each_connection_is_made_with_the_certificates_of_the_moment(tmp_path):
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(ours.file).read_bytes())
    context = RereadingContext(settings("localhost:1", cafile=str(trusted)))
    with server(speaks_tls(theirs.issue("localhost"))) as address:
        with pytest.raises(ssl.SSLCertVerificationError):
            connected(context, address)
        trusted.write_bytes(Path(theirs.file).read_bytes())
        assert connected(context, address)
        trusted.write_text("being written at this very moment")
        with capture_logs() as logs:
            assert connected(context, address)
    [line] = logs
    assert "trusted.pem" in line["error"]
    assert line["log_level"] == "warning"
