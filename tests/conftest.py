"""Fixtures for all tests: one Kafka per run, fresh topics and group per test, no thread left behind."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings as hypothesis_settings

from tests.support import brokers, wire
from tests.support.workers import WorkerProcess

THREAD_GRACE = 15.0
CHAOS_TIMEOUT = 900

RUN = uuid.uuid4().hex[:6]
BROKER = pytest.StashKey[brokers.Broker]()
GIVEN = "kafka"

# How long one example takes says more about the machine's other work than about the code. The same examples every time:
# a run that fails tells of the change, not of luck. New ones are tried with `--hypothesis-profile explore`.
hypothesis_settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis_settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis_settings.load_profile("repeatable")


class TopicSet(NamedTuple):
    """Names that no other test uses; nothing by these names exists yet."""

    requests: str
    responses: str
    dlq: str
    group: str


@pytest.fixture(scope="session")
def kafka_bootstrap(pytestconfig: pytest.Config) -> Iterator[str]:
    """The bootstrap servers of a real Kafka, the same for the whole run, however many processes it has."""
    with contextlib.ExitStack() as stack:
        given = getattr(pytestconfig, "workerinput", {}).get(GIVEN)
        broker = brokers.Broker(*given) if given else stack.enter_context(brokers.any_broker())
        pytestconfig.stash[BROKER] = broker
        yield broker.bootstrap
        ours = [name for name in wire.topics(broker.bootstrap) if name.startswith(f"{RUN}-")]
        if ours:
            wire.delete_topics(broker.bootstrap, ours)


class OneKafka:
    """Gives all processes of a parallel run the same Kafka, started before the first of them."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._broker: brokers.Broker | None = None

    def pytest_configure_node(self, node: Any) -> None:
        if self._broker is None:
            self._broker = node.config.stash[BROKER] = self._stack.enter_context(brokers.any_broker())
        node.workerinput[GIVEN] = tuple(self._broker)

    def pytest_unconfigure(self) -> None:
        self._stack.close()


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(OneKafka())


@pytest.fixture
def topic_set(request: pytest.FixtureRequest) -> TopicSet:
    """Names for the topics and the group of this test."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")
    unique = f"{RUN}-{name}-{uuid.uuid4().hex[:6]}"
    return TopicSet(f"{unique}-requests", f"{unique}-responses", f"{unique}-dlq", f"{unique}-group")


@pytest.fixture
def make_topics(kafka_bootstrap: str) -> Callable[..., None]:
    """Create topics: make_topics({"name": partitions}, config={...}); returns when they can be used."""

    def make(partitions: Mapping[str, int], *, config: Mapping[str, str] | None = None) -> None:
        wire.create_topics(kafka_bootstrap, partitions, config=config)

    return make


@pytest.fixture
def made_topics(topic_set: TopicSet, make_topics: Callable[..., None]) -> TopicSet:
    """The topic set, created as the worker would: 3 request, 3 response and 1 dead letter partitions."""
    make_topics({topic_set.requests: 3, topic_set.responses: 3, topic_set.dlq: 1})
    return topic_set


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Collect no garbage: what a collection calls, finalisers and listeners, has no room at the end of the stack."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def no_thread_outlives_the_test() -> Iterator[None]:
    """Fail a test that leaves a thread running for THREAD_GRACE seconds after it."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREAD_GRACE
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in set(threading.enumerate()) - before]
    if left:
        pytest.fail(f"threads outlived the test: {', '.join(sorted(left))}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        room = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if room in {"integration", "chaos"}:
            item.add_marker("integration")
        if room == "chaos":
            item.add_marker("chaos")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(CHAOS_TIMEOUT))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    ran = {
        report.nodeid
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" and "integration" in report.keywords
    }
    broker = config.stash.get(BROKER, brokers.Broker("", "none was needed"))
    terminalreporter.section("Kafka")
    terminalreporter.line(f"{len(ran)} integration tests ran")
    terminalreporter.line(f"the Kafka they share: {broker.description}")


@pytest.fixture
def worker(kafka_bootstrap: str, topic_set: TopicSet, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Make worker processes on this test's topics: worker("name", WORKER_CONCURRENCY="4"); all ended at the end."""
    made: list[WorkerProcess] = []

    def make(name: str = "worker", **environment: str) -> WorkerProcess:
        process = WorkerProcess(tmp_path, {**settings(kafka_bootstrap, topic_set), **environment}, name=name)
        made.append(process)
        return process

    yield make
    for process in made:
        process.end()
    for process in made:
        process.check_secrets()


def settings(bootstrap: str, topics: TopicSet) -> dict[str, str]:
    """Return the environment that puts a worker on these topics."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "KAFKA_TOPIC_REQUESTS": topics.requests,
        "KAFKA_TOPIC_RESPONSES": topics.responses,
        "KAFKA_TOPIC_DLQ": topics.dlq,
        "KAFKA_CONSUMER_GROUP": topics.group,
    }
