"""Every way to get TLS and SASL right or wrong,: message, time, exit code."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import settings
from tests.support import tables
from tests.support.certificates import Authority
from tests.support.forked import ROOT
from tests.support.listeners import scram_user, with_login, with_tls
from tests.support.releases import OwnKafka
from tests.support.workers import run_command

PASSWORD, KEY_PASSWORD = "correct-horse-7", "battery-staple-8"
LISTENERS = {"SASL": "SASL_PLAINTEXT", "TLS": "SSL", "MUTUAL": "SSL", "BOTH": "SASL_SSL", "OLD": "SSL"}
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class Place(NamedTuple):
    cluster: OwnKafka
    authority: Authority
    stranger: Authority
    silent: int
    """A port that takes connections and says nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("ours"))
    stranger = Authority(tmp_path_factory.mktemp("strange"), "stranger")
    good = authority.issue("localhost")
    day = timedelta(days=1)
    old = authority.issue("localhost", starts=-3 * day, ends=-day)
    properties = {
        **with_tls("tls", *good),
        **with_tls("mutual", *good),
        **with_tls("both", *good),
        **with_tls("old", *old),
        **with_login("sasl", MECHANISMS, worker=PASSWORD),
        **with_login("both", MECHANISMS[:2], worker=PASSWORD),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.mutual.ssl.truststore.type": "PEM",
        "listener.name.mutual.ssl.truststore.certificates": Path(authority.file).read_text(),
    }
    scram = scram_user("worker", PASSWORD, *MECHANISMS[1:])
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        OwnKafka(listeners=LISTENERS, properties=properties, format_options=scram) as cluster,
    ):
        yield Place(cluster, authority, stranger, silent.getsockname()[1])


def tls(place: Place, listener: str = "TLS", **other: str) -> dict[str, str]:
    server = place.cluster.bootstrap(listener).replace("127.0.0.1", "localhost")
    # The certificates name localhost, and the cluster advertises 127.0.0.1.
    loose = {"KAFKA_SSL_CHECK_HOSTNAME": "false"}
    return {
        "KAFKA_BOOTSTRAP_SERVERS": server,
        "KAFKA_USE_SSL": "true",
        "KAFKA_SSL_CAFILE": place.authority.file,
        **loose,
        **other,
    }


def sasl(place: Place, mechanism: str, listener: str = "SASL", **other: str) -> dict[str, str]:
    login = {
        "KAFKA_SASL_MECHANISM": mechanism,
        "KAFKA_SASL_USERNAME": "worker",
        "KAFKA_SASL_PASSWORD": PASSWORD,
        "KAFKA_BOOTSTRAP_SERVERS": place.cluster.bootstrap(listener),
    }
    return {**(tls(place, listener) if listener == "BOTH" else {}), **login, **other}


def client(authority: Authority, password: bytes | None = None) -> dict[str, str]:
    certificate, key = authority.issue("worker-locked" if password else "worker", password=password)
    return {"KAFKA_SSL_CERTFILE": certificate, "KAFKA_SSL_KEYFILE": key}


LOCKED = KEY_PASSWORD.encode()

GOOD: dict[str, Callable[[Place], dict[str, str]]] = {
    "TLS, server only": tls,
    "TLS, mutual": lambda p: tls(p, "MUTUAL", **client(p.authority)),
    "TLS, mutual, encrypted key": lambda p: tls(
        p, "MUTUAL", **client(p.authority, LOCKED), KAFKA_SSL_PASSWORD=KEY_PASSWORD
    ),
    "PLAIN without TLS": lambda p: sasl(p, "PLAIN"),
    "SCRAM-SHA-256 without TLS": lambda p: sasl(p, "SCRAM-SHA-256"),
    "SCRAM-SHA-512 without TLS": lambda p: sasl(p, "SCRAM-SHA-512"),
    "PLAIN over TLS": lambda p: sasl(p, "PLAIN", "BOTH"),
    "SCRAM-SHA-256 over TLS": lambda p: sasl(p, "SCRAM-SHA-256", "BOTH"),
}


SHORT = {"KAFKA_TOPIC_CREATION_TIMEOUT": "2"}
"""For whom the whole time is waited."""


class Bad(NamedTuple):
    environment: Callable[[Place], dict[str, str]]
    exit_code: int
    says: str
    """A pattern of what the error must say."""


BAD: dict[str, Bad] = {
    "wrong CA": Bad(lambda p: tls(p, KAFKA_SSL_CAFILE=p.stranger.file), 77, "certificate not trusted"),
    "wrong host name": Bad(
        lambda p: tls(p, KAFKA_BOOTSTRAP_SERVERS=p.cluster.bootstrap("TLS"), KAFKA_SSL_CHECK_HOSTNAME="true"),
        77,
        "IP address mismatch",
    ),
    "right host name, wrong advertised one": Bad(
        lambda p: tls(p, KAFKA_SSL_CHECK_HOSTNAME="true"), 77, "at an address that the cluster advertises"
    ),
    "expired certificate of the broker": Bad(lambda p: tls(p, "OLD"), 77, "certificate has expired"),
    "no client certificate where one is asked for": Bad(lambda p: tls(p, "MUTUAL"), 77, "refuses our certificate"),
    "client certificate of a stranger": Bad(
        lambda p: tls(p, "MUTUAL", **client(p.stranger)), 77, "refuses our certificate"
    ),
    "CA file missing": Bad(lambda p: tls(p, KAFKA_SSL_CAFILE="/nowhere/ca.pem"), 78, "there is no such file"),
    "wrong key password": Bad(
        lambda p: tls(p, "MUTUAL", **client(p.authority, LOCKED), KAFKA_SSL_PASSWORD="wrong"),
        78,
        "the key is encrypted, and KAFKA_SSL_PASSWORD does not open it",
    ),
    "no password for an encrypted key": Bad(
        lambda p: tls(p, "MUTUAL", **client(p.authority, LOCKED)),
        78,
        "the key is encrypted, and KAFKA_SSL_PASSWORD is not set",
    ),
    "wrong SASL password, PLAIN": Bad(
        lambda p: sasl(p, "PLAIN", KAFKA_SASL_PASSWORD="wrong"), 77, "authentication failed: .*SaslAuthenticat"
    ),
    "wrong SASL password, SCRAM-SHA-512": Bad(
        lambda p: sasl(p, "SCRAM-SHA-512", KAFKA_SASL_PASSWORD="wrong"), 77, "authentication failed: .*SaslAuthenticat"
    ),
    "wrong SASL password over TLS": Bad(
        lambda p: sasl(p, "SCRAM-SHA-256", "BOTH", KAFKA_SASL_PASSWORD="wrong"),
        77,
        "authentication failed: .*SaslAuthenticat",
    ),
    "mechanism that the broker lacks": Bad(
        lambda p: sasl(p, "SCRAM-SHA-512", "BOTH"),
        77,
        r"authentication failed: (.*UnsupportedSaslMechanism|.*does it offer SCRAM-SHA-512\?)",
    ),
    "TLS client, port without TLS": Bad(
        lambda p: tls(p, KAFKA_BOOTSTRAP_SERVERS=p.cluster.bootstrap("BROKER")),
        69,
        "closes the connection during the TLS handshake",
    ),
    "client without TLS, TLS port": Bad(
        lambda p: {"KAFKA_BOOTSTRAP_SERVERS": p.cluster.bootstrap("TLS")},
        78,
        "speaks TLS",
    ),
    "silent peer, TLS": Bad(
        lambda p: tls(p, KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{p.silent}", **SHORT),
        69,
        "does not answer the TLS handshake",
    ),
    "silent peer, no TLS": Bad(
        lambda p: {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{p.silent}", **SHORT},
        69,
        "does not answer as Kafka does",
    ),
}
# One attempt, as long as a broker may take to answer on a busy machine.
ONCE = {"KAFKA_TOPIC_CREATION_RETRIES": "0", "KAFKA_TOPIC_CREATION_TIMEOUT": "20"}
LIMIT = 12.0


def run(command: str, topic_set, environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    done = run_command({"METRICS_PORT": "0", **settings("", topic_set), **environment}, command)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    for secret in (PASSWORD, KEY_PASSWORD):
        assert secret not in said
    return done, time.monotonic() - began


@pytest.mark.parametrize("case", GOOD)
def test_what_is_configured_rightly_gets_in(place, topic_set, case):
    done, seconds = run("topics", topic_set, GOOD[case](place))
    assert done.returncode == 0, done.stdout + done.stderr
    tables.write("tls", case=case, message="topics created", seconds=f"{seconds:.1f}", exit="0")


@pytest.mark.parametrize("case", BAD)
def test_what_is_configured_wrongly_says_so_in_time_and_ends_with_its_code(place, topic_set, case):
    bad = BAD[case]
    done, seconds = run("run", topic_set, {**ONCE, **bad.environment(place)})
    assert done.returncode == bad.exit_code, done.stdout + done.stderr
    assert seconds < LIMIT
    (error, hint) = message(done.stderr)
    assert re.search(bad.says, error), error
    assert hint
    tables.write("tls", case=case, message=general(error), seconds=f"{seconds:.1f}", exit=str(bad.exit_code))


@pytest.mark.parametrize(
    "case, warning",
    [
        ("PLAIN without TLS", "KAFKA_SASL_MECHANISM=PLAIN without TLS"),
        ("TLS, server only", "KAFKA_SSL_CHECK_HOSTNAME=false"),
    ],
)
def test_what_is_weak_is_warned_of_once_at_start_and_in_check(place, topic_set, case, warning):
    environment = GOOD[case](place)
    assert run("check", topic_set, environment)[0].stdout.count(warning) == 1
    # A worker that goes on until it is stopped would take longer to end: this one has no handler.
    failing = {**environment, "WORKER_HANDLER": "no_such_module:handle"}
    assert run("run", topic_set, failing)[0].stdout.count(warning) == 1


def test_the_table_has_every_case():
    document = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert tables.first_cells(document, "tls") == [*GOOD, *BAD]


def message(text: str) -> tuple[str, str]:
    """Return the error and the hint that a command ended with."""
    error, _, hint = text.partition("\nhint: ")
    return " ".join(error.removeprefix("error: ").split()), hint.strip()


def general(text: str) -> str:
    """Leave out what differs from run to run: ports and directories."""
    text = re.sub(r"(localhost|127\.0\.0\.1):\d+", "HOST:PORT", text)
    return re.sub(r"'/[^']*/([^/']+)'", r"'\1'", text)
