"""A password or a certificate that is changed while the worker runs: told, and healed by its file alone."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from gigaoffice_worker.devkafka.ports import ReservedPorts
from tests.chaos.proxy import Proxy
from tests.support.certificates import Authority
from tests.support.listeners import scram_user, with_login, with_tls
from tests.support.releases import OwnKafka
from tests.support.scene import Scene, ask, check_once
from tests.support.waiting import eventually

FIRST, SECOND = "first-password-1", "second-password-2"
LOST = "authentication-lost"


@pytest.fixture
def cluster():
    """A cluster that ends each connection whose login is two seconds old."""
    properties = {
        **with_login("client", ["SCRAM-SHA-256"]),
        "listener.name.client.scram-sha-256.connections.max.reauth.ms": "2000",
    }
    user = scram_user("worker", FIRST)
    with OwnKafka(listeners={"CLIENT": "SASL_PLAINTEXT"}, properties=properties, format_options=user) as running:
        yield running


def change_password(cluster, password):
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
    change = UserScramCredentialUpsertion("worker", info, password.encode())
    door = AdminClient({"bootstrap.servers": cluster.bootstrap("BROKER")})
    for future in door.alter_user_scram_credentials([change]).values():
        future.result(20)


def test_a_rotated_password_is_noticed_told_and_healed_by_its_file(cluster, topic_set, tmp_path):
    file = tmp_path / "password"
    file.write_text(FIRST)
    login = {
        "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
        "KAFKA_SASL_USERNAME": "worker",
        "KAFKA_SASL_PASSWORD_FILE": str(file),
        # Whoever is locked out beyond his session loses his partitions, and what was not committed is repeated.
        "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": "120000",
    }
    with Scene(cluster.bootstrap("BROKER"), topic_set, tmp_path) as scene:
        scene.make()
        worker = scene.ready(**login)
        scene.send(*(ask(f"before-{number}", f"{number}") for number in range(10)))
        scene.wait_responses(10)
        time.sleep(2.5)  # past the age at which connections are ended: the client makes new ones
        scene.send(ask("renewed", "r"))
        scene.wait_responses(11)
        assert worker.metric("not_ready", reason=LOST) == 0

        began = time.monotonic()
        change_password(cluster, SECOND)
        scene.send(*(ask(f"during-{number}", f"{number}") for number in range(10)))
        worker.wait_until(lambda: LOST in worker.ask("/readyz")[1], 15, "the refused login to be told")
        print(f"noticed after {time.monotonic() - began:.1f} s")
        code, why = worker.ask("/readyz")
        assert code == 503
        assert "SaslAuthenticate" in why
        assert worker.metric("not_ready", reason=LOST) == 1
        assert worker.ask("/livez")[0] == 200

        file.unlink()
        worker.wait_until(lambda: "no such file" in worker.ask("/readyz")[1], 15, "the missing file to be told")

        began = time.monotonic()
        file.write_text(SECOND)
        check_once(
            scene.wait_responses(21), ["renewed", *(f"{when}-{n}" for when in ("before", "during") for n in range(10))]
        )
        worker.wait_until(lambda: LOST not in worker.ask("/readyz")[1], 15, "the login to be told as accepted")
        print(f"healed after {time.monotonic() - began:.1f} s")
        assert worker.metric("not_ready", reason=LOST) == 0
        eventually(lambda: events(worker, "Authenticated again"), "the end to be told")
        (lost,) = events(worker, "Authentication lost: the cluster refuses new connections")
        assert lost["level"] == "error"
        assert "KAFKA_SASL_PASSWORD_FILE" in lost["hint"]
        assert worker.stop() == 0
        said = json.dumps(worker.logs()) + worker.errors()
        assert FIRST not in said
        assert SECOND not in said


def events(worker, event):
    return [line for line in worker.logs() if line["event"] == event]


@pytest.fixture
def tls(tmp_path):
    """A cluster behind a proxy, whose certificate is signed by `ours`; yields it, the proxy and the authority."""
    ours = Authority(tmp_path, "ours")
    with contextlib.closing(ReservedPorts()) as ports:
        port = ports.take_any()
        listeners, properties = {"CLIENT": "SSL"}, keystore(ours)
        with (
            OwnKafka(listeners=listeners, advertised={1: port}, properties=properties) as cluster,
            Proxy(port, cluster.port(1)) as proxy,
        ):
            yield cluster, proxy, ours


def keystore(authority):
    return with_tls("client", *authority.issue("127.0.0.1"))


def change_certificate(cluster, authority):
    changes = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        for name, value in keystore(authority).items()
    ]
    resource = ConfigResource(ConfigResource.Type.BROKER, "1", incremental_configs=changes)
    door = AdminClient({"bootstrap.servers": cluster.bootstrap("BROKER")})
    for future in door.incremental_alter_configs([resource]).values():
        future.result(20)


def test_a_broker_whose_certificate_is_renewed_ends_no_worker_and_is_trusted_by_the_file_alone(
    tls, topic_set, tmp_path
):
    cluster, proxy, ours = tls
    theirs = Authority(tmp_path, "theirs")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(ours.file).read_bytes())
    settings = {
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{proxy.port}",
        "KAFKA_USE_SSL": "true",
        "KAFKA_SSL_CAFILE": str(trusted),
        "KAFKA_SSL_CHECK_HOSTNAME": "false",
        "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": "120000",
    }
    with Scene(cluster.bootstrap("BROKER"), topic_set, tmp_path) as scene:
        scene.make()
        worker = scene.ready(**settings)
        scene.send(*(ask(f"before-{number}") for number in range(10)))
        scene.wait_responses(10)
        change_certificate(cluster, theirs)
        # Commits and their questions meet the new certificate as well as polls do.
        for number in range(10):
            scene.send(ask(f"during-{number}"))
            proxy.break_connections()
            time.sleep(0.5)
        assert worker.ask("/livez")[0] == 200
        trusted.write_bytes(Path(theirs.file).read_bytes())
        check_once(scene.wait_responses(20), [f"{when}-{n}" for when in ("before", "during") for n in range(10)])
        scene.wait_committed()
        assert worker.stop() == 0
