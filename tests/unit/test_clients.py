"""What the three clients are told, and how the reasons that they only log are heard."""

from __future__ import annotations

import logging
import threading

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.consumer.subscription_state import SubscriptionState

from gigaoffice_worker.broker import clients
from gigaoffice_worker.broker.connection_log import ConnectionErrors
from gigaoffice_worker.broker.security import security_kwargs
from gigaoffice_worker.config import load
from gigaoffice_worker.core.errors import ConfigurationError, UnreachableError

SASL = {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_PASSWORD": "hunter2"}


@pytest.mark.parametrize(
    "client, kwargs",
    [
        (KafkaAdminClient, clients.admin_kwargs(load(SASL), 3.0)),
        (KafkaConsumer, clients.consumer_kwargs(load(SASL))),
        (KafkaProducer, clients.producer_kwargs(load(SASL))),
    ],
)
def test_the_client_knows_everything_that_it_is_told(client, kwargs):
    assert kwargs.keys() <= client.DEFAULT_CONFIG.keys()


@pytest.mark.parametrize("acks, told", [("all", "all"), ("1", 1), ("0", 0)])
def test_the_producer_is_idempotent_exactly_when_all_replicas_acknowledge(acks, told):
    kwargs = clients.producer_kwargs(load({"KAFKA_PRODUCER_ACKS": acks}))
    assert (kwargs["acks"], kwargs["enable_idempotence"]) == (told, acks == "all")
    assert "max_in_flight_requests_per_connection" not in kwargs


def test_the_producer_keeps_out_of_the_way_of_the_topics_limit_and_never_creates_one():
    kwargs = clients.producer_kwargs(load({}), "2")
    assert kwargs["max_request_size"] >= 32 * 1024 * 1024
    assert kwargs["delivery_timeout_ms"] == 120_000 == clients.DELIVERY_TIMEOUT * 1000
    assert kwargs["max_block_ms"] <= 1000
    assert kwargs["allow_auto_create_topics"] is False
    assert kwargs["client_id"] == "gigaoffice-worker-2"
    assert (kwargs["compression_type"], kwargs["linger_ms"]) == ("gzip", 1)


def test_the_consumer_never_commits_creates_or_starts_over_by_itself():
    kwargs = clients.consumer_kwargs(load({"KAFKA_CONSUMER_ENABLE_AUTO_COMMIT": "true"}))
    assert kwargs["enable_auto_commit"] is False
    assert kwargs["allow_auto_create_topics"] is False
    assert kwargs["isolation_level"] == "read_committed"
    assert SubscriptionState(kwargs["auto_offset_reset"]).has_default_offset_reset_policy() is False
    assert kwargs["fetch_max_bytes"] < kwargs["receive_message_max_bytes"]
    assert kwargs["max_partition_fetch_bytes"] <= 256 * 1024
    assert "key_deserializer" not in kwargs


def test_the_consumer_offers_the_assignors_that_check_holds_a_group_against():
    offered = clients.consumer_kwargs(load({}))["partition_assignment_strategy"]
    assert tuple(each.name for each in offered) == clients.ASSIGNORS == ("range", "roundrobin")


@pytest.mark.parametrize("session", ["6000", "10000", "600000", "1800000"])
def test_the_consumers_times_fit_together_whatever_the_session(session):
    environ = {"KAFKA_CONSUMER_SESSION_TIMEOUT_MS": session, "KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS": "1800000"}
    kwargs = clients.consumer_kwargs(load(environ))
    assert kwargs["session_timeout_ms"] == int(session)
    assert kwargs["session_timeout_ms"] < kwargs["request_timeout_ms"] < kwargs["connections_max_idle_ms"]


def test_credentials_are_given_only_with_a_mechanism():
    kwargs = security_kwargs(load({}).kafka)
    assert kwargs["security_protocol"] == "PLAINTEXT"
    assert not any(name.startswith("sasl") for name in kwargs)
    kwargs = security_kwargs(load(SASL).kafka)
    assert kwargs["security_protocol"] == "SASL_PLAINTEXT"
    assert (kwargs["sasl_plain_username"], kwargs["sasl_plain_password"]()) == ("worker", "hunter2")
    assert "hunter2" not in repr(kwargs)


def test_the_reason_that_the_client_logs_is_heard_without_the_connections_name():
    connection = "<BrokerConnection client_id=x, node_id=1 host=h:9092 <authenticating> [IPv4 ('127.0.0.1', 9092)]>"
    log = logging.getLogger("kafka.conn")
    with ConnectionErrors() as heard:
        log.error("%s: SaslAuthenticate error: %s (%s)", connection, "SaslAuthenticationFailedError", "no")
        log.error("%s: Closing connection. %s", connection, "KafkaConnectionError: reset")
        log.info("%s: Closing connection. ", connection)
    log.error("nobody listens")
    assert heard.refusal == "SaslAuthenticate error: SaslAuthenticationFailedError (no)"
    assert heard.newest == "KafkaConnectionError: reset"


def test_what_other_threads_log_is_heard_only_on_request():
    with ConnectionErrors() as ours, ConnectionErrors(every_thread=True) as everybodys:
        thread = threading.Thread(target=logging.getLogger("kafka.conn").error, args=("elsewhere",))
        thread.start()
        thread.join()
    assert (ours.newest, everybodys.newest) == ("", "elsewhere")


def test_a_broker_that_does_not_tell_its_version_counts_as_unreachable():
    """A broker that wakes up takes connections before it answers, and the client asserts that it is an ancient one."""
    with (
        pytest.raises(UnreachableError, match="connecting: the broker does not tell which version it has") as told,
        clients.constructing("connecting", load({})),
    ):
        raise AssertionError("Transactional/Idempotent producer requires >= Kafka 0.11 Brokers")
    assert told.value.exit_code == 69
    assert "Kafka 2.1" in told.value.hint


def test_the_client_guesses_that_a_broker_without_a_version_is_an_ancient_one():
    """What the client asserts, in its own words."""
    with (
        pytest.raises(UnreachableError),
        clients.constructing("connecting", load({})),
    ):
        KafkaProducer(bootstrap_servers="127.0.0.1:1", api_version=(0, 10, 2), enable_idempotence=True, acks="all")


def test_a_missing_compression_library_is_named_with_what_to_do():
    with (
        pytest.raises(ConfigurationError, match="the library for snappy compression is not installed") as told,
        clients.constructing("connecting", load({})),
    ):
        raise AssertionError("Libraries for snappy compression codec not found")
    assert told.value.exit_code == 78
    assert "KAFKA_PRODUCER_COMPRESSION_TYPE" in told.value.hint
