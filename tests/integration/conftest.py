"""Fixtures for tests of the running worker and of the commands."""

from __future__ import annotations

import re
import uuid

import pytest

from tests.conftest import RUN, TopicSet, settings
from tests.support.commands import Cli
from tests.support.forked import PATHS
from tests.support.scene import Scene


@pytest.fixture
def scene(kafka_bootstrap, topic_set, tmp_path):
    """The surroundings of this test's workers; the topics are not made yet."""
    with Scene(kafka_bootstrap, topic_set, tmp_path) as scene:
        yield scene


@pytest.fixture(scope="module")
def shared_scene(kafka_bootstrap, tmp_path_factory, request):
    """The surroundings of workers that the tests of a module share."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.module.__name__.rpartition(".")[2])
    unique = f"{RUN}-{name}-{uuid.uuid4().hex[:6]}"
    names = TopicSet(f"{unique}-requests", f"{unique}-responses", f"{unique}-dlq", f"{unique}-group")
    with Scene(kafka_bootstrap, names, tmp_path_factory.mktemp("shared")) as scene:
        yield scene


@pytest.fixture
def cli(kafka_bootstrap, topic_set):
    """Commands for this test's topics, which are not made yet."""
    return Cli({"PYTHONPATH": PATHS, **settings(kafka_bootstrap, topic_set)})


@pytest.fixture
def names(topic_set):
    return {topic_set.requests, topic_set.responses, topic_set.dlq}
