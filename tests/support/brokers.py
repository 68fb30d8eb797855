"""Which Kafka the tests run against: one that is named, else one in a container, else the embedded one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import releases
from tests.support.releases import OwnKafka
from tests.support.zookeeper import ZooKeeperKafka

NAMED = "KAFKA_TEST_BOOTSTRAP"
# Seconds
ENGINE_LIMIT = 10.0
IMAGE_LIMIT = 240.0
START_LIMIT = 120

# In processes of their own, so that their time is limited, and their open sockets and warnings are not ours.
_ASK_ENGINE = """
from testcontainers.core.docker_client import DockerClient
DockerClient(timeout=3).client.ping()
"""
_FETCH_IMAGE = """
import sys
import docker.errors
from testcontainers.core.docker_client import DockerClient
images = DockerClient().client.images
try:
    images.get(sys.argv[1])
except docker.errors.ImageNotFound:
    images.pull(sys.argv[1])
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
    if release := releases.named():
        old = release.version in releases.WITH_ZOOKEEPER
        with ZooKeeperKafka(release) if old else OwnKafka() as running:
            at = running.bootstrap_servers
            yield Broker(at, f"Apache Kafka {release.version} at {at}, named by {releases.VERSION}")
        return
    with contextlib.ExitStack() as stack:
        why_not = "no Docker engine answers"
        if docker_answers():
            try:
                yield Broker(stack.enter_context(_container()), "a container (testcontainers)")
                return
            except _ContainerError as error:
                why_not = f"the container did not start: {error}"
        cluster = stack.enter_context(OwnKafka())
        yield Broker(cluster.bootstrap_servers, f"embedded Apache Kafka at {cluster.bootstrap_servers} ({why_not})")


def docker_answers() -> bool:
    """Tell whether a Docker engine can be used, within ENGINE_LIMIT seconds."""
    return _said_by(_ASK_ENGINE, limit=ENGINE_LIMIT) == ""


def _said_by(program: str, *arguments: str, limit: float) -> str:
    """Run a program and return the last line of its error, nothing when it ended well."""
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {limit:g} s"
    return "" if done.returncode == 0 else (done.stderr.strip() or "it failed without a word").splitlines()[-1]


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
        from testcontainers.core.config import testcontainers_config

        if "TESTCONTAINERS_RYUK_DISABLED" not in os.environ:
            # Its cleaner is a second image, which wants the engine's socket and rights that podman does not give.
            testcontainers_config.ryuk_disabled = True
        container = KafkaContainer().with_kraft().with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        if error := _said_by(_FETCH_IMAGE, container.image, limit=IMAGE_LIMIT):
            raise _ContainerError(f"{container.image} cannot be had: {error}")
        try:
            container.start(timeout=START_LIMIT)
        except Exception as error:  # a missing image, a refused mount: whatever it is, there is the embedded Kafka
            with contextlib.suppress(Exception):
                container.stop()
            raise _ContainerError(f"{type(error).__name__}: {error}") from error
        try:
            yield container.get_bootstrap_server()
        finally:
            container.stop()
