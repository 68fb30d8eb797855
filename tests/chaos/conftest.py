"""Fixtures for the scenarios: a stage on the shared Kafka, or clusters of the scenario's own to break."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gigaoffice_worker.devkafka import KafkaCluster
from gigaoffice_worker.devkafka.ports import ReservedPorts
from tests.chaos.proxy import Proxy
from tests.chaos.stage import Stage
from tests.support.certificates import Authority
from tests.support.listeners import scram_user, with_login, with_tls

MECHANISM, PASSWORD = "SCRAM-SHA-512", "correct-horse-7"


@pytest.fixture(autouse=True)
def silent_client() -> Iterator[None]:
    """The watch reads through all outages; what its client says of them would bury what a failed test has to say."""
    logger = logging.getLogger("kafka")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


@pytest.fixture
def stage(kafka_bootstrap, topic_set, tmp_path) -> Iterator[Stage]:
    """A stage on the Kafka that all tests share; its topics are not made yet."""
    with Stage(kafka_bootstrap, topic_set, tmp_path) as stage:
        yield stage


@pytest.fixture
def make_stage(topic_set, tmp_path) -> Iterator[Callable[..., Stage]]:
    """Make a stage on a cluster of the test's own: make_stage(cluster, WORKER_CONCURRENCY="4")."""
    with ExitStack() as stack:

        def make(cluster: KafkaCluster, **arguments: str) -> Stage:
            return stack.enter_context(Stage(cluster.bootstrap_servers, topic_set, tmp_path, **arguments))

        yield make


@pytest.fixture
def own_kafka() -> Iterator[KafkaCluster]:
    """A Kafka of the test's own, of one node."""
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def three_kafkas() -> Iterator[KafkaCluster]:
    """A Kafka of the test's own, of three nodes."""
    with KafkaCluster(3) as cluster:
        yield cluster


@pytest.fixture
def secured_kafkas(tmp_path) -> Iterator[tuple[KafkaCluster, dict[str, str]]]:
    """A Kafka of three nodes whose clients come with TLS and SASL, and the variables with which a worker does."""
    authority = Authority(tmp_path)
    properties = {
        **with_tls("secured", *authority.issue("localhost")),
        **with_login("secured", [MECHANISM]),
    }
    login = scram_user("worker", PASSWORD, MECHANISM)
    with KafkaCluster(3, listeners={"SECURED": "SASL_SSL"}, properties=properties, format_options=login) as cluster:
        environment = {
            "KAFKA_USE_SSL": "true",
            "KAFKA_SSL_CAFILE": authority.file,
            "KAFKA_SSL_CHECK_HOSTNAME": "false",  # it names localhost, and the cluster tells 127.0.0.1
            "KAFKA_SASL_MECHANISM": MECHANISM,
            "KAFKA_SASL_USERNAME": "worker",
            "KAFKA_SASL_PASSWORD": PASSWORD,
        }
        yield cluster, environment


@pytest.fixture
def proxied_kafka() -> Iterator[tuple[KafkaCluster, Proxy]]:
    """A Kafka whose clients are told the port of a proxy; around it leads its listener BROKER."""
    with contextlib.closing(ReservedPorts()) as ports:
        port = ports.take_any()
        with KafkaCluster(advertised={1: port}) as cluster, Proxy(port, cluster.port(1)) as proxy:
            yield cluster, proxy
