"""Which Kafka the tests run against: one that is named, else one in a container, else the embedded one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from gigaoffice_worker.devkafka import KafkaCluster

NAMED = "KAFKA_TEST_BOOTSTRAP"
ENGINE_LIMIT = 10.0

# In a process of its own, so that its time is limited, and its open sockets and warnings are not ours.
_ASK_ENGINE = """
from testcontainers.core.docker_client import DockerClient
DockerClient(timeout=3).client.ping()
"""


class Broker(NamedTuple):
    bootstrap: str
    description: str


@contextlib.contextmanager
def any_broker() -> Iterator[Broker]:
    """Give a running Kafka for as long as the context lasts."""
    if named := os.environ.get(NAMED):
        yield Broker(named, f"{named}, named by {NAMED}")
        return
    with contextlib.ExitStack() as stack:
        why_not = "no Docker engine answers"
        if docker_answers():
            try:
                yield Broker(stack.enter_context(_container()), "a container (testcontainers)")
                return
            except _ContainerError as error:
                why_not = f"the container did not start: {error}"
        cluster = stack.enter_context(KafkaCluster())
        yield Broker(cluster.bootstrap_servers, f"embedded Apache Kafka at {cluster.bootstrap_servers} ({why_not})")


def docker_answers() -> bool:
    """Tell whether a Docker engine can be used, within ENGINE_LIMIT seconds."""
    command = [sys.executable, "-c", _ASK_ENGINE]
    try:
        return subprocess.run(command, capture_output=True, timeout=ENGINE_LIMIT, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class _ContainerError(Exception):
    pass


@contextlib.contextmanager
def _container() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its modules have moved, and warn of it in one place or the other
        try:
            from testcontainers.community.kafka import KafkaContainer
        except ImportError:
            from testcontainers.kafka import KafkaContainer
        container = KafkaContainer().with_kraft().with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        try:
            container.start(timeout=120)
        except Exception as error:  # a missing image, a refused mount: whatever it is, there is the embedded Kafka
            with contextlib.suppress(Exception):
                container.stop()
            raise _ContainerError(str(error)) from error
        try:
            yield container.get_bootstrap_server()
        finally:
            container.stop()
