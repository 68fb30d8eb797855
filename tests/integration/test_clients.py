"""TLS, passwords and rights against a real Kafka that asks for them, and the clients that come out of it."""

from __future__ import annotations

import dataclasses
import socket
import time
from threading import Event, Thread

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from kafka import TopicPartition
from kafka.producer.sender import Sender
from structlog.testing import capture_logs

from gigaoffice_worker.broker import clients
from gigaoffice_worker.broker.admin import admin
from gigaoffice_worker.broker.topics import ensure_topics
from gigaoffice_worker.config import load
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError
from gigaoffice_worker.operations import cluster_check
from tests.support import wire
from tests.support.certificates import Authority
from tests.support.listeners import AUTHORIZED, scram_user, with_login, with_tls
from tests.support.releases import OwnKafka

USERS = ("worker", "reader", "nobody")
PASSWORD = "correct horse"
LISTENERS = {"SASL": "SASL_PLAINTEXT", "TLS": "SSL", "BOTH": "SASL_SSL"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def cluster(authority):
    certificate, mechanisms = authority.issue("localhost"), ["PLAIN", "SCRAM-SHA-256"]
    users = dict.fromkeys(USERS, PASSWORD)
    properties = {
        **AUTHORIZED,
        **with_tls("tls", *certificate),
        **with_tls("both", *certificate),
        **with_login("sasl", mechanisms, **users),
        **with_login("both", mechanisms, **users),
    }
    scram = scram_user("worker", PASSWORD)
    with OwnKafka(listeners=LISTENERS, properties=properties, format_options=scram) as running:
        allow(running, "worker", ResourceType.BROKER, "kafka-cluster", AclOperation.CREATE)
        allow(running, "worker", ResourceType.GROUP, "*", AclOperation.READ)
        for operation in (AclOperation.READ, AclOperation.WRITE):
            allow(running, "worker", ResourceType.TOPIC, "*", operation)
        yield running


def allow(cluster, user, kind, name, operation):
    principal, allowed = f"User:{user}", AclPermissionType.ALLOW
    binding = AclBinding(kind, name, ResourcePatternType.LITERAL, principal, "*", operation, allowed)
    wire.create_acls(cluster.bootstrap("BROKER"), [binding])


def settings(cluster, listener, authority, topic_set, user=None, password=PASSWORD, mechanism="PLAIN", **environ):
    tls = {"KAFKA_USE_SSL": "true", "KAFKA_SSL_CAFILE": authority.file, "KAFKA_SSL_CHECK_HOSTNAME": "false"}
    sasl = {"KAFKA_SASL_MECHANISM": mechanism, "KAFKA_SASL_USERNAME": user, "KAFKA_SASL_PASSWORD": password}
    return load(
        {
            "KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap(listener),
            "KAFKA_TOPIC_REQUESTS": topic_set.requests,
            "KAFKA_TOPIC_RESPONSES": topic_set.responses,
            "KAFKA_TOPIC_DLQ": topic_set.dlq,
            "KAFKA_CONSUMER_GROUP": topic_set.group,
            **({} if LISTENERS[listener].endswith("PLAINTEXT") else tls),
            **(sasl if user else {}),
            **environ,
        }
    )


def refusal(kind, config):
    started = time.monotonic()
    with capture_logs() as logs, pytest.raises(kind) as caught:
        ensure_topics(config)
    assert time.monotonic() - started < 20.0
    assert type(caught.value) is kind
    assert PASSWORD not in f"{caught.value}{caught.value.hint}{logs}"
    # One line: nothing was tried again.
    (line,) = [entry for entry in logs if entry["log_level"] in {"warning", "error"}]
    return line


@pytest.mark.parametrize(
    "listener, user, mechanism",
    [
        ("SASL", "worker", "PLAIN"),
        ("SASL", "worker", "SCRAM-SHA-256"),
        ("TLS", None, None),
        ("BOTH", "worker", "PLAIN"),
        ("BOTH", "worker", "SCRAM-SHA-256"),
    ],
)
def test_every_way_of_security_creates_topics_writes_and_reads(
    cluster, authority, topic_set, listener, user, mechanism
):
    config = settings(cluster, listener, authority, topic_set, user, mechanism=mechanism)
    assert ensure_topics(config).missing == ()
    producer, consumer = clients.producer(config, "test"), clients.consumer(config)
    try:
        producer.send(topic_set.requests, b"hello", partition=0).get(timeout=20)
        place = TopicPartition(topic_set.requests, 0)
        consumer.assign([place])
        consumer.seek(place, 0)
        deadline = time.monotonic() + 20
        while not (found := consumer.poll(timeout_ms=200)):
            assert time.monotonic() < deadline
        assert [record.value for record in found[place]] == [b"hello"]
    finally:
        consumer.close(autocommit=False, timeout_ms=5000)
        producer.close(timeout=5)


@pytest.mark.parametrize("listener", ["SASL", "BOTH"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_wrong_password_is_an_authentication_failure_at_once(cluster, authority, topic_set, listener, mechanism):
    config = settings(cluster, listener, authority, topic_set, "worker", "wrong", mechanism)
    line = refusal(AccessError, config)
    assert line["event"] == "Fatal error listing topics"
    assert "authentication failed" in line["error"]
    assert "SaslAuthenticat" in line["error"]
    assert "KAFKA_SASL_PASSWORD" in line["hint"]


def test_a_login_at_a_port_that_asks_for_none_says_so(cluster, authority, topic_set):
    config = settings(
        cluster, "SASL", authority, topic_set, "worker", KAFKA_BOOTSTRAP_SERVERS=cluster.bootstrap("BROKER")
    )
    line = refusal(ConfigurationError, config)
    assert line["error"].endswith("this port asks for no login")
    assert "KAFKA_SASL_MECHANISM" in line["hint"]


def test_a_mechanism_that_the_broker_lacks_is_an_authentication_failure(cluster, authority, topic_set):
    config = settings(cluster, "SASL", authority, topic_set, "worker", mechanism="SCRAM-SHA-512")
    text = refusal(AccessError, config)["error"]
    assert "authentication failed: " in text
    # The client loses the broker's answer when the end of the connection comes with it.
    assert "UnsupportedSaslMechanismError" in text or "does it offer SCRAM-SHA-512?" in text


def test_without_the_right_to_describe_listing_is_refused(cluster, authority, topic_set):
    ensure_topics(settings(cluster, "SASL", authority, topic_set, "worker"))
    line = refusal(AccessError, settings(cluster, "SASL", authority, topic_set, "nobody"))
    assert line["event"] == "Fatal error listing topics"
    assert "authorization failed: no permission for the topic" in line["error"]
    assert "DESCRIBE" in line["hint"]


def test_without_the_right_to_create_creation_is_refused(cluster, authority, topic_set):
    for name in topic_set[:3]:
        allow(cluster, "reader", ResourceType.TOPIC, name, AclOperation.DESCRIBE)
    line = refusal(AccessError, settings(cluster, "SASL", authority, topic_set, "reader"))
    assert line["event"] == "Fatal error creating topic"
    assert "authorization failed: no permission" in line["error"]
    assert "CREATE" in line["hint"]


def test_the_right_to_describe_is_enough_when_nothing_is_to_be_created(cluster, authority, topic_set):
    ensure_topics(settings(cluster, "SASL", authority, topic_set, "worker"))
    for name in topic_set[:3]:
        allow(cluster, "reader", ResourceType.TOPIC, name, AclOperation.DESCRIBE)
    off = {"KAFKA_TOPIC_AUTO_CREATE": "false"}
    report = ensure_topics(settings(cluster, "SASL", authority, topic_set, "reader", **off))
    assert report.existing == topic_set[:3]
    assert report.limits == dict.fromkeys(topic_set[:3])
    assert report.operations[topic_set.requests] == {"DESCRIBE"}


def test_without_the_right_to_write_idempotently_the_producer_is_refused_at_once(cluster, authority, topic_set):
    config = settings(cluster, "SASL", authority, topic_set, "nobody")
    started = time.monotonic()
    with pytest.raises(AccessError, match="connecting the producer: authorization failed") as caught:
        clients.producer(config)
    assert time.monotonic() - started < 20.0
    assert caught.value.exit_code == 77
    assert "IDEMPOTENT_WRITE" in caught.value.hint
    client = clients.producer(settings(cluster, "SASL", authority, topic_set, "nobody", KAFKA_PRODUCER_ACKS="1"))
    client.close(timeout=5)


def test_the_check_names_the_right_to_write_idempotently(cluster, authority, topic_set):
    def found(user, **environ):
        config = settings(cluster, "SASL", authority, topic_set, user, **environ)
        return {each.step: each for each in cluster_check.steps(config)}

    refused = found("nobody")["idempotent writes"]
    assert (refused.mark, refused.exit_code) == (cluster_check.Mark.BAD, 77)
    assert "IDEMPOTENT_WRITE" in refused.hint
    assert found("worker")["idempotent writes"].mark is cluster_check.Mark.GOOD
    assert "idempotent writes" not in found("nobody", KAFKA_PRODUCER_ACKS="1")


def test_a_strangers_certificate_is_refused_by_us(cluster, topic_set, tmp_path):
    line = refusal(AccessError, settings(cluster, "TLS", Authority(tmp_path, "stranger"), topic_set))
    assert "certificate not trusted" in line["error"]


def test_the_certificate_must_name_the_host(cluster, authority, topic_set):
    config = settings(cluster, "TLS", authority, topic_set, KAFKA_SSL_CHECK_HOSTNAME="true")
    assert "IP address mismatch" in refusal(AccessError, config)["error"]


def test_the_certificate_must_name_the_advertised_address_too(cluster, authority, topic_set):
    by_name = cluster.bootstrap("TLS").replace("127.0.0.1", "localhost")
    checked = {"KAFKA_BOOTSTRAP_SERVERS": by_name, "KAFKA_SSL_CHECK_HOSTNAME": "true"}
    line = refusal(AccessError, settings(cluster, "TLS", authority, topic_set, **checked))
    assert "certificate is not trusted" in line["error"]
    assert "at an address that the cluster advertises" in line["error"]


def test_tls_to_a_port_without_tls_says_so(cluster, authority, topic_set):
    config = settings(cluster, "TLS", authority, topic_set, KAFKA_BOOTSTRAP_SERVERS=cluster.bootstrap("BROKER"))
    once = dataclasses.replace(config, topics=dataclasses.replace(config.topics, creation_retries=0))
    line = refusal(UnreachableError, once)
    assert "closes the connection during the TLS handshake" in line["error"]
    assert "KAFKA_USE_SSL=false" in line["hint"]


def test_no_tls_to_a_port_with_tls_says_so(cluster, authority, topic_set):
    plain = {"KAFKA_USE_SSL": "false", "KAFKA_TOPIC_CREATION_RETRIES": "0", "KAFKA_TOPIC_CREATION_TIMEOUT": "10"}
    line = refusal(ConfigurationError, settings(cluster, "TLS", authority, topic_set, **plain))
    assert line["error"].endswith("speaks TLS")
    assert "KAFKA_USE_SSL=true" in line["hint"]


def test_a_frozen_broker_holds_an_attempt_no_longer_than_its_time(cluster, authority, topic_set):
    config = settings(cluster, "SASL", authority, topic_set, "worker")
    with admin(config, 20.0) as client:
        client.describe([topic_set.requests])
        cluster.freeze(1)
        try:
            started = time.monotonic()
            client.renew(1.0)
            with pytest.raises(Exception, match=r"Timeout|used up") as caught:
                client.describe([topic_set.requests])
            assert time.monotonic() - started < 10.0
            assert "Timeout" in type(caught.value).__name__ or "TimedOut" in type(caught.value).__name__
        finally:
            cluster.thaw(1)


def test_a_creation_that_finds_the_broker_frozen_is_a_time_out_and_succeeds_later(cluster, authority, topic_set):
    environ = {"KAFKA_TOPIC_CREATION_TIMEOUT": "6", "KAFKA_TOPIC_CREATION_RETRY_DELAY": "0.1"}
    config = settings(cluster, "SASL", authority, topic_set, "worker", **environ)
    errors, created = [], []
    froze = []

    class FreezingOnce:
        def __init__(self, client):
            self._client = client

        def create(self, spec, settings, *, validate_only):
            if not froze:
                froze.append(cluster.freeze(1))
            return self._client.create(spec, settings, validate_only=validate_only)

        def __getattr__(self, name):
            return getattr(self._client, name)

    def on_error(kind):
        errors.append(kind)
        cluster.thaw(1)

    with capture_logs() as logs:
        report = ensure_topics(
            config,
            lambda config, timeout: FreezingOnce(admin(config, timeout)),
            on_created=created.append,
            on_error=on_error,
        )
    assert report.missing == ()
    assert errors[0] == "timeout"
    # The request that found nobody awake may have been carried out after all.
    assert created in (list(topic_set[:3]), list(topic_set[1:3]))
    line = next(entry for entry in logs if entry["event"] == "Timeout creating topic")
    assert (line["log_level"], line["topic"], line["attempt"]) == ("warning", topic_set.requests, 1)


def test_nobody_there_is_told_by_every_constructor(topic_set):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = load({"KAFKA_BOOTSTRAP_SERVERS": address})
    for make in (clients.consumer, clients.producer, lambda config: admin(config, 1.0)):
        with pytest.raises(UnreachableError, match="connection refused"):
            make(config)


def test_an_argument_that_the_client_does_not_take_is_a_configuration_error():
    config = load({})
    with (
        pytest.raises(ConfigurationError, match="connecting: the Kafka client refuses its configuration"),
        clients.constructing("connecting", config),
    ):
        raise AssertionError("Unrecognized option")


def test_a_login_beside_another_thread_that_polls_takes_no_time(cluster, authority, topic_set):
    """Before, one of the two took the other's answer, and waited for its own until the request time-out of 30 s."""
    config = settings(cluster, "SASL", authority, topic_set, "worker", mechanism="SCRAM-SHA-256")
    consumer = clients.consumer(config)
    network, over = consumer._client, Event()
    longest = {"ours": 0.0, "heartbeats": 0.0}

    def poll(whose):
        began = time.monotonic()
        network.poll(timeout_ms=20)
        longest[whose] = max(longest[whose], time.monotonic() - began)

    def send_heartbeats():
        while not over.is_set():
            poll("heartbeats")

    thread = Thread(target=send_heartbeats)
    thread.start()
    try:
        for _ in range(30):
            with network._lock:
                if (broker := network._conns.get(1)) is not None:
                    broker.close()
            deadline = time.monotonic() + 60
            while not network.is_ready(1, metadata_priority=False):
                assert time.monotonic() < deadline, longest
                network.maybe_connect(1)
                poll("ours")
    finally:
        over.set()
        thread.join()
        consumer.close(autocommit=False)
    assert max(longest.values()) < 10, longest


def test_nothing_in_the_network_of_a_producer_is_exchanged_once_its_thread_uses_it(
    cluster, authority, topic_set, monkeypatch
):
    used = {}

    def start(sender):
        used.update(vars(sender._client))
        Thread.start(sender)

    monkeypatch.setattr(Sender, "start", start)
    producer = clients.producer(settings(cluster, "TLS", authority, topic_set, user=None))
    try:
        network = vars(producer._sender._client)
        plain = (bool, int, float, type(None))  # what is counted and noted
        assert {
            name for name in network if network[name] is not used.get(name) and not isinstance(network[name], plain)
        } == set()
        assert "reach" in network
    finally:
        producer.close(timeout=5)
