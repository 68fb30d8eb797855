from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType
from confluent_kafka.admin import ResourceType as Resource

from gigaoffice_worker.devkafka import DevKafkaError, KafkaCluster
from gigaoffice_worker.devkafka.distribution import install
from gigaoffice_worker.devkafka.ports import ReservedPorts
from gigaoffice_worker.devkafka.probe import known_brokers
from tests.chaos.proxy import Proxy
from tests.support import wire
from tests.support.listeners import AUTHORIZED, scram_user, with_login
from tests.support.waiting import eventually

OWNER = """
import sys, time
from gigaoffice_worker.devkafka import KafkaCluster
cluster = KafkaCluster(2)
cluster.start()
print(cluster.pid(1), cluster.pid(2), cluster.log(1).parent.parent, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster():
    with KafkaCluster() as cluster:
        yield cluster


def values(cluster, topic):
    return [rec.value for rec in wire.read_all(cluster.bootstrap_servers, topic)]


def directory(cluster) -> Path:
    return cluster.log(1).parent.parent


def descendants():
    return set(psutil.Process().children(recursive=True))


def test_records_come_back_as_they_were_sent(cluster):
    wire.create_topics(cluster.bootstrap_servers, {"round-trip": 1})
    places = wire.produce(
        cluster.bootstrap_servers, "round-trip", [(b"k", b"v", [("h", b"1"), ("h", None)]), (None, None, [])]
    )
    assert places == [(0, 0), (0, 1)]
    first, second = wire.read_all(cluster.bootstrap_servers, "round-trip")
    assert (first.key, first.value, first.headers) == (b"k", b"v", [("h", b"1"), ("h", None)])
    assert (second.key, second.value, second.headers) == (None, None, [])
    assert wire.end_offsets(cluster.bootstrap_servers, "round-trip") == {0: 2}
    assert wire.committed(cluster.bootstrap_servers, "nobody", "round-trip") == {}


def test_a_topic_is_not_created_by_using_it(cluster):
    with pytest.raises(KafkaException) as caught:
        wire.produce(cluster.bootstrap_servers, "never-made", [(None, b"v", [])], message_timeout_ms=2000)
    assert caught.value.args[0].code() in {KafkaError._UNKNOWN_TOPIC, KafkaError._MSG_TIMED_OUT}
    assert "never-made" not in wire.topics(cluster.bootstrap_servers)


def test_a_killed_node_comes_back_with_its_data_at_its_address(cluster):
    before = cluster.bootstrap_servers
    wire.create_topics(before, {"killed": 1})
    wire.produce(before, "killed", [(None, b"1", [])])
    cluster.kill(1)
    assert not cluster.running(1)
    cluster.restart(1)
    wire.produce(before, "killed", [(None, b"2", [])])
    assert cluster.bootstrap_servers == before
    assert values(cluster, "killed") == [b"1", b"2"]


def test_a_frozen_node_is_silent_until_it_is_thawed(cluster):
    port = cluster.port(1, "BROKER")
    cluster.freeze(1)
    try:
        with pytest.raises(TimeoutError):
            known_brokers(port, timeout=0.5)
    finally:
        cluster.thaw(1)
    eventually(lambda: 1 in known_brokers(port, timeout=10), "the node to serve again")


def test_a_frozen_node_can_be_stopped_and_restarted(cluster):
    cluster.freeze(1)
    cluster.stop_node(1)
    assert not cluster.running(1)
    with pytest.raises(DevKafkaError, match="node 1 is not running"):
        cluster.freeze(1)
    cluster.restart(1)
    assert cluster.running(1)


def test_a_node_that_does_not_exist_is_refused(cluster):
    with pytest.raises(DevKafkaError, match="no Kafka node 2; nodes: 1"):
        cluster.kill(2)


def test_stop_leaves_no_process_and_no_directory():
    before = descendants()
    cluster = KafkaCluster()
    cluster.start()
    data = directory(cluster)
    assert cluster.pid(1) in {process.pid for process in descendants() - before}
    cluster.stop()
    assert descendants() <= before
    assert not data.exists()
    cluster.stop()


def test_brokers_and_data_go_when_their_owner_is_killed():
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        try:
            first, second, data = owner.stdout.readline().split()
        finally:
            owner.kill()
    pids = [int(first), int(second)]
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "the brokers end with their owner", timeout=20)
    eventually(lambda: not Path(data).exists(), "the guard removes the data", timeout=20)


def test_an_interrupt_at_the_terminal_reaches_the_owner_only(cluster):
    assert os.getpgid(cluster.pid(1)) != os.getpgrp()


def test_a_port_that_is_taken_is_refused_and_leaves_nothing(cluster):
    before = descendants()
    port = cluster.port(1)
    with pytest.raises(DevKafkaError, match=f"port {port} on 127.0.0.1 cannot be used"):
        KafkaCluster(port=port).start()
    assert descendants() <= before


def test_the_first_node_listens_on_the_port_that_was_asked_for():
    with contextlib.closing(ReservedPorts()) as ports:
        port = ports.take_any()  # none that a connection is given meanwhile
    with KafkaCluster(port=port) as cluster:
        assert cluster.bootstrap_servers == f"127.0.0.1:{port}"
        assert wire.topics(cluster.bootstrap_servers) == {}


def test_a_broker_that_cannot_start_is_reported_with_its_last_words(tmp_path):
    before = descendants()
    with pytest.raises(DevKafkaError, match=r"node 1 (could not prepare|ended while)(?s:.*)num\.network\.threads"):
        KafkaCluster(data_dir=tmp_path, properties={"num.network.threads": "none"}).start()
    with pytest.raises(DevKafkaError, match=r"node 1 ended while it was starting(?s:.*)NoSuchOption"):
        KafkaCluster(java_options=["-XX:NoSuchOption"]).start()
    assert descendants() <= before


def test_data_in_a_directory_of_ones_own_outlive_the_cluster(tmp_path):
    with KafkaCluster(data_dir=tmp_path) as cluster:
        wire.create_topics(cluster.bootstrap_servers, {"kept": 1})
        wire.produce(cluster.bootstrap_servers, "kept", [(None, b"v", [])])
    with KafkaCluster(data_dir=tmp_path) as cluster:
        assert values(cluster, "kept") == [b"v"]


def test_each_node_has_ids_of_its_own_although_storage_is_prepared_by_a_copy(tmp_path):
    found = []
    for name in ("one", "other"):
        with KafkaCluster(data_dir=tmp_path / name):
            [meta] = (tmp_path / name).rglob("meta.properties")
            found.append(dict(line.split("=") for line in meta.read_text().splitlines() if "=" in line))
    one, other = found
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == {"cluster.id", "directory.id"}


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "foreign", "damaged"])
def test_a_start_up_archive_that_does_not_fit_does_no_harm(content, tmp_path):
    distribution = install(print)
    archive = tmp_path / "archive.aot"
    if content is None:
        damaged = bytearray(distribution.archive.read_bytes())
        middle = len(damaged) // 2
        damaged[middle : middle + 100_000] = b"\xff" * 100_000
        content = bytes(damaged)
    archive.write_bytes(content)
    with KafkaCluster(distribution=replace(distribution, archive=archive)) as cluster:
        assert wire.topics(cluster.bootstrap_servers) == {}


def test_three_nodes_survive_the_loss_of_one():
    with KafkaCluster(3, properties={"broker.session.timeout.ms": "10000"}) as cluster:
        wire.create_topics(cluster.bootstrap_servers, {"replicated": 3}, replication=3)
        thirty = [(b"%d" % i, b"v", []) for i in range(30)]
        wire.produce(cluster.bootstrap_servers, "replicated", thirty, enable_idempotence="true")
        cluster.kill(1)
        wire.produce(cluster.bootstrap_servers, "replicated", thirty, enable_idempotence="true")
        assert len(values(cluster, "replicated")) == 60
        cluster.restart(1)
        back = lambda: known_brokers(cluster.port(1, "BROKER"), timeout=10) == {1, 2, 3}  # noqa: E731
        eventually(back, "the killed node is back in the cluster", timeout=60)


def test_clients_can_be_asked_for_a_password_and_held_to_acls():
    with KafkaCluster(
        listeners={"CLIENT": "SASL_PLAINTEXT"},
        properties={**AUTHORIZED, **with_login("client", ["SCRAM-SHA-256"])},
        format_options=scram_user("worker", "secret"),
    ) as cluster:
        wire.create_topics(cluster.bootstrap("BROKER"), {"allowed": 1, "forbidden": 1})
        allow = AclBinding(
            Resource.TOPIC,
            "allowed",
            ResourcePatternType.LITERAL,
            "User:worker",
            "*",
            AclOperation.WRITE,
            AclPermissionType.ALLOW,
        )
        wire.create_acls(cluster.bootstrap("BROKER"), [allow])
        login = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-256",
            "sasl_username": "worker",
            "sasl_password": "secret",
        }
        assert wire.produce(cluster.bootstrap_servers, "allowed", [(None, b"v", [])], **login) == [(0, 0)]
        with pytest.raises(KafkaException) as caught:
            wire.produce(cluster.bootstrap_servers, "forbidden", [(None, b"v", [])], **login)
        assert caught.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_clients_are_sent_to_the_advertised_port():
    with contextlib.closing(ReservedPorts()) as ports:
        port = ports.take_any()
        # The client may already ask at the port that it was told, so somebody serves there.
        with KafkaCluster(advertised={1: port}) as cluster, Proxy(port, cluster.port(1)):
            assert cluster.bootstrap_servers == f"127.0.0.1:{port}"
            producer = Producer({"bootstrap.servers": f"127.0.0.1:{cluster.port(1)}"})
            (broker,) = producer.list_topics(timeout=wire.LIMIT).brokers.values()
            assert broker.port == port
