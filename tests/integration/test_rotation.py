"""A password that is changed while the worker runs: noticed, told, and healed by its file alone."""

from __future__ import annotations

import json
import time

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from gigaoffice_worker.devkafka import KafkaCluster
from tests.support.scene import Scene, ask, check_once
from tests.support.waiting import eventually

FIRST, SECOND = "first-password-1", "second-password-2"
LOST = "authentication-lost"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@pytest.fixture
def cluster():
    """A cluster that ends each connection whose login is two seconds old."""
    properties = {
        "listener.name.client.sasl.enabled.mechanisms": "SCRAM-SHA-256",
        "listener.name.client.scram-sha-256.sasl.jaas.config": SCRAM,
        "listener.name.client.scram-sha-256.connections.max.reauth.ms": "2000",
    }
    scram = ["--add-scram", f"SCRAM-SHA-256=[name=worker,password={FIRST}]"]
    with KafkaCluster(listeners={"CLIENT": "SASL_PLAINTEXT"}, properties=properties, format_options=scram) as running:
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
        "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": "45000",
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
