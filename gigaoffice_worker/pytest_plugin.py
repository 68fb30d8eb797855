"""A pytest fixture: a real Kafka of its own and a worker on it, for tests of a handler as a whole.

In the project's conftest.py:

    pytest_plugins = ["gigaoffice_worker.pytest_plugin"]

and then, in a test:

    def test_sums_are_answered(start_worker):
        worker = start_worker(handle)
        assert worker.client.ask({"query": "1 + 1"}).result == {"answer": 2}

The Kafka is started once for all tests (it needs the extra `dev`), unless GIGAOFFICE_TEST_KAFKA names a cluster; each
worker has topics of its own.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from gigaoffice_worker.client import Client
    from gigaoffice_worker.testing import DeadLetter

_CLUSTER: Final = "GIGAOFFICE_TEST_KAFKA"
_READY_WITHIN: Final = 60.0
_STOPPED_WITHIN: Final = 40.0

StartWorker = Callable[..., "RunningWorker"]


@dataclass(frozen=True)
class RunningWorker:
    """A worker that runs in this process, and a client of it. `settings` are its variables."""

    client: Client
    settings: dict[str, str]

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters that the worker has written."""
        from gigaoffice_worker.config import load  # noqa: PLC0415  # loading the plugin must cost nothing
        from gigaoffice_worker.core.dead_letters import Filters  # noqa: PLC0415
        from gigaoffice_worker.operations.dead_letter_reader import DeadLetterReader  # noqa: PLC0415
        from gigaoffice_worker.testing import read_dead_letter  # noqa: PLC0415

        with DeadLetterReader(load(self.settings), 30.0) as reader:
            batches = reader.batches(reader.spans(Filters()))
            return [read_dead_letter(record.headers, None) for batch in batches for record in batch.records]


@pytest.fixture(scope="session")
def embedded_kafka() -> Iterator[str]:
    """Start a real single-node Kafka for all tests; its bootstrap servers."""
    if named := os.environ.get(_CLUSTER):
        yield named
        return
    from gigaoffice_worker.devkafka import KafkaCluster  # noqa: PLC0415

    with KafkaCluster() as cluster:
        yield cluster.bootstrap_servers


@pytest.fixture
def start_worker(embedded_kafka: str) -> Iterator[StartWorker]:
    """Give a function that starts a worker: `start_worker(handler, WORKER_MAX_ATTEMPTS="2")`; it ends with the test."""
    with ExitStack() as stack:

        def start(handler: Any, **settings: str) -> RunningWorker:
            return _started(stack, handler, _settings(embedded_kafka, settings))

        yield start


def _settings(servers: str, settings: dict[str, str]) -> dict[str, str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    return {
        "KAFKA_BOOTSTRAP_SERVERS": servers,
        "KAFKA_TOPIC_REQUESTS": f"{name}-requests",
        "KAFKA_TOPIC_RESPONSES": f"{name}-responses",
        "KAFKA_TOPIC_DLQ": f"{name}-dlq",
        "KAFKA_CONSUMER_GROUP": name,
        "METRICS_PORT": "0",
        "WORKER_RETRY_DELAY": "0.01",
        **settings,
    }


def _started(stack: ExitStack, handler: Any, settings: dict[str, str]) -> RunningWorker:
    from gigaoffice_worker.client import Client  # noqa: PLC0415
    from gigaoffice_worker.config import load  # noqa: PLC0415
    from gigaoffice_worker.worker import Worker  # noqa: PLC0415

    worker = Worker(load(settings), handler)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001  # told to the test, which waits
            ended.append(error)

    thread = threading.Thread(target=run, name="worker-under-test")
    thread.start()
    stack.callback(_stop, worker.stop, thread)
    _wait_ready(worker, thread, ended)
    client = Client(settings["KAFKA_BOOTSTRAP_SERVERS"], settings=settings)
    stack.callback(client.close)
    return RunningWorker(client, settings)


def _wait_ready(worker: Any, thread: threading.Thread, ended: list[BaseException]) -> None:
    for _ in range(round(_READY_WITHIN / 0.1)):
        if worker.get_health_status()["status"] == "healthy":
            return
        thread.join(0.1)
        if ended:
            raise ended[0]
    pytest.fail(f"the worker was not ready within {_READY_WITHIN:g} s: {worker.get_health_status()}")


def _stop(stop: Callable[[], None], thread: threading.Thread) -> None:
    stop()
    thread.join(_STOPPED_WITHIN)
    if thread.is_alive():
        pytest.fail(f"the worker did not stop within {_STOPPED_WITHIN:g} s")
