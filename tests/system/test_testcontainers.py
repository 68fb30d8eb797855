"""The tests' Kafka in a container: testcontainers against the Docker-compatible API of podman."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.brokers import NAMED
from tests.system import kafka_image, stage
from tests.system.conftest import need
from tests.system.containers import Engine


@pytest.fixture(scope="module")
def engine(request, tmp_path_factory):
    packages = "debootstrap buildah podman runc containernetworking-plugins iptables"
    need("debootstrap", "buildah", "podman", "runc", "iptables", because=packages)
    debian = request.getfixturevalue("debian")
    directory = tmp_path_factory.mktemp("testcontainers")
    extra = directory / "extra"
    extra.mkdir()
    with Engine(directory / "engine") as engine:
        engine.import_root(debian, "localhost/debian:12")
        engine.lay_over("localhost/debian:12", kafka_image.lay_out(extra), kafka_image.NAME)
        yield engine


@pytest.fixture(scope="module")
def socket(engine):
    with engine.service() as socket:
        yield socket


def run_tests(socket, *words, **environment):
    """Run tests with the engine at `socket` and return what pytest said."""
    outer = {name: value for name, value in os.environ.items() if name != NAMED}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *words],
        # The mode that testcontainers would choose by itself where /.dockerenv is there asks podman what it cannot say.
        env={
            **outer,
            "DOCKER_HOST": f"unix://{socket}",
            "TESTCONTAINERS_CONNECTION_MODE": "docker_host",
            **environment,
        },
        cwd=stage.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_integration_tests_pass_on_a_kafka_in_a_container(socket):
    said = run_tests(socket, "tests/integration/test_worker_order.py")
    assert "the Kafka they share: a container (testcontainers)" in said


def test_container_is_gone_when_the_tests_are_over(engine):
    assert engine.names() == []


def test_image_that_cannot_be_had_is_said_and_the_embedded_kafka_is_taken(socket):
    said = run_tests(
        socket,
        "tests/integration/test_worker_order.py",
        "-k",
        "empty_key",
        TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX="127.0.0.1:1/",
    )
    assert "embedded Apache Kafka" in said
    assert "127.0.0.1:1/confluentinc/cp-kafka:7.6.0 cannot be had" in said
