"""The client for whoever requests, against a real worker and a real Kafka."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gigaoffice_worker.client import Client, ResponseTimeoutError, WorkerError
from tests.support import wire
from tests.support.scene import Scene


@pytest.fixture
def scene(kafka_bootstrap, topic_set, tmp_path):
    with Scene(kafka_bootstrap, topic_set, tmp_path, LOG_LEVEL="DEBUG") as scene:
        yield scene


@pytest.fixture
def client(scene):
    scene.make(requests=3, responses=3)
    names = {"KAFKA_TOPIC_REQUESTS": scene.topics.requests, "KAFKA_TOPIC_RESPONSES": scene.topics.responses}
    with Client(scene.bootstrap, settings=names, connect_timeout=20) as client:
        yield client


def readers() -> int:
    return sum(thread.name == "gigaoffice-responses" for thread in threading.enumerate())


def test_requests_of_many_threads_each_get_their_own_response(scene, client):
    scene.ready(WORKER_HANDLER="echo")
    assert readers() == 0
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda number: client.ask({"query": "q", "number": number}, timeout=30), range(400)))
    assert [each.result["number"] for each in found] == list(range(400))
    assert all(each.completed and each.status == "completed" and each.error is None for each in found)
    assert len({each.request_id for each in found}) == 400
    assert all(each.headers["source-topic"] == scene.topics.requests.encode() for each in found)
    assert readers() == 1


def test_a_failed_response_is_returned(scene, client):
    scene.ready(WORKER_HANDLER="tests.support.handlers:handle", PYTHONPATH=".")
    response = client.ask({"id": "r-1", "do": "reject", "message": "no"}, timeout=30)
    assert (response.request_id, response.status, response.completed, response.result) == ("r-1", "failed", False, None)
    assert response.error == {"type": "RejectedError", "message": "no"}
    assert response.processing_time >= 0
    assert response.timestamp.endswith("Z")


def test_without_an_answer_in_time_it_says_where_the_request_stands(scene, client):
    started = time.monotonic()
    with pytest.raises(ResponseTimeoutError) as caught:
        # Connecting to read, and the cluster's acknowledgement, come out of the same time.
        client.ask({"id": "r-1"}, timeout=8.0)
    assert time.monotonic() - started < 18
    assert isinstance(caught.value, TimeoutError)
    (sent,) = wire.read_all(scene.bootstrap, scene.topics.requests)
    assert (caught.value.request_id, caught.value.place) == (
        "r-1",
        (scene.topics.requests, sent.partition, sent.offset),
    )
    assert str(caught.value).startswith("no response to request r-1 within 8 s; it stands at ")
    assert dict(sent.headers) == {"ttl-ms": b"8000"}
    assert sent.key == b"r-1"


def test_a_request_can_be_sent_without_waiting(scene, client):
    request_id = client.send({"query": "q"}, headers={"tenant": b"a"})
    named = client.send({"id": "mine", "query": "q"}, key=b"customer")
    assert (len(request_id), named) == (36, "mine")
    sent = {json.loads(each.value)["id"]: each for each in wire.read_all(scene.bootstrap, scene.topics.requests)}
    assert (sent["mine"].key, sent["mine"].headers) == (b"customer", [])
    assert (sent[request_id].key, sent[request_id].headers) == (request_id.encode(), [("tenant", b"a")])
    assert readers() == 0


def test_nobody_elses_response_is_taken_whatever_id_it_names(scene, client):
    forged = {
        "request_id": "r-1",
        "status": "completed",
        "result": "forged",
        "error": None,
        "processing_time": 0.0,
        "timestamp": "2026-01-01T00:00:00Z",
    }
    stop = threading.Event()

    def forge() -> None:
        place = [("source-topic", scene.topics.requests.encode()), ("source-partition", b"0")]
        while not stop.wait(0.05):
            for headers in ([], [*place, ("source-offset", b"999")], [*place, ("source-offset", b"x")]):
                wire.produce(scene.bootstrap, scene.topics.responses, [(b"r-1", json.dumps(forged).encode(), headers)])

    forger = threading.Thread(target=forge)
    forger.start()
    try:
        with pytest.raises(ResponseTimeoutError):
            client.ask({"id": "r-1"}, timeout=1.5)
        scene.ready(WORKER_HANDLER="echo")
        assert client.ask({"id": "r-1", "query": "q"}, timeout=30).result == {"id": "r-1", "query": "q"}
    finally:
        stop.set()
        forger.join()


def test_responses_in_partitions_that_came_later_are_read(scene, client):
    scene.ready(WORKER_HANDLER="echo")
    assert client.ask({"query": "q"}, timeout=30).completed
    wire.add_partitions(scene.bootstrap, scene.topics.responses, 6)
    until = time.monotonic() + 120
    seen: set[bytes] = set()
    while time.monotonic() < until and len(seen) < 6:
        client.ask({"query": "q"}, timeout=30)
        seen = {b"%d" % each.partition for each in wire.read_all(scene.bootstrap, scene.topics.responses)}
    assert len(seen) == 6


def test_what_is_wrong_is_said_as_such(kafka_bootstrap, topic_set, scene):
    with pytest.raises(WorkerError, match="there is no topic"):
        Client(kafka_bootstrap, settings={"KAFKA_TOPIC_REQUESTS": topic_set.requests}, connect_timeout=10)
    with pytest.raises(WorkerError, match="connection refused"):
        Client("127.0.0.1:1", connect_timeout=5)
    with pytest.raises(WorkerError, match="KAFKA_USE_SSL"):
        Client(kafka_bootstrap, settings={"KAFKA_USE_SSL": "perhaps"})


def test_a_closed_client_and_an_id_that_is_none_are_refused(client):
    for payload in ({"id": ""}, {"id": 5}):
        with pytest.raises(WorkerError, match="non-empty string"):
            client.send(payload)
    client.close()
    with pytest.raises(WorkerError, match="closed"):
        client.send({})
