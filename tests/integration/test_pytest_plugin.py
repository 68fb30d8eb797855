"""The fixture for handlers' tests: a worker with the test's own handler on a real Kafka."""

from __future__ import annotations

import pytest

from gigaoffice_worker import RejectedError, Request
from gigaoffice_worker.pytest_plugin import start_worker  # noqa: F401  # a fixture is used by its name


@pytest.fixture(scope="session")
def embedded_kafka(kafka_bootstrap):
    """Stand in for the fixture's own Kafka: these tests share one already."""
    return kafka_bootstrap


def test_a_handler_of_the_test_answers_over_kafka(start_worker):  # noqa: F811
    def add(request: Request) -> dict[str, int]:
        if "numbers" not in request.payload:
            raise RejectedError("numbers are missing")
        return {"sum": sum(request.payload["numbers"])}

    worker = start_worker(add, WORKER_MAX_ATTEMPTS="2")
    assert worker.client.ask({"numbers": [1, 2]}, timeout=30).result == {"sum": 3}
    assert worker.client.ask({"query": "x"}, timeout=30).error == {
        "type": "RejectedError",
        "message": "numbers are missing",
    }
    broken = worker.client.ask({"numbers": 5}, timeout=30)
    assert (broken.status, broken.error["type"]) == ("failed", "TypeError")
    letters = sorted(worker.dead_letters(), key=lambda each: each.reason)
    assert [(each.reason, each.attempts) for each in letters] == [("attempts-exhausted", 2), ("rejected", 1)]
    assert letters[0].at.endswith(".add")


def test_each_worker_has_topics_of_its_own(start_worker):  # noqa: F811
    first, second = start_worker(lambda _: 1), start_worker(lambda _: 2)
    assert (first.client.ask({}, timeout=30).result, second.client.ask({}, timeout=30).result) == (1, 2)
