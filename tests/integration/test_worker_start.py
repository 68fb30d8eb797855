"""How a start goes wrong, and what is waited for."""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests.support import wire
from tests.support.forked import ROOT
from tests.support.scene import ask, check_once
from tests.support.waiting import eventually

NOWHERE = "127.0.0.1:1"


def end_of(worker, timeout=30.0):
    """Return the exit code and the last error of a worker that ends by itself."""
    code = worker.start().wait(timeout)
    errors = [line for line in worker.logs() if line.get("level") == "error"]
    assert errors, (code, worker.logs()[-3:], worker.errors())
    assert errors[-1]["error"]
    return code, json.dumps(errors[-1], ensure_ascii=False)


def test_topics_that_are_missing_are_waited_for_where_creation_is_off(scene):
    names = scene.topics
    wire.create_topics(scene.bootstrap, {names.requests: 2})
    scene.send(ask("early", "a"))
    worker = scene.worker(KAFKA_TOPIC_AUTO_CREATE="false").start()
    worker.wait_until(lambda: names.dlq in worker.ask("/readyz")[1], 20, "the missing topics to be told")
    code, why = worker.ask("/readyz")
    assert code == 503
    assert names.responses in why
    assert names.requests not in why
    assert worker.metric("not_ready", reason="topic-missing") == 1
    warned = [json.dumps(line) for line in worker.logs() if line["level"] == "warning"]
    assert sum(names.dlq in line for line in warned) == sum(names.responses in line for line in warned) == 1
    health = json.loads(worker.ask("/health/topics")[1])
    assert health["status"] == "degraded"
    assert health["existing_topics"] == [names.requests]
    assert health["missing_topics"] == [names.responses, names.dlq]
    assert worker.ask("/livez")[0] == 200
    assert json.loads(worker.ask("/health")[1])["configuration"]["auto_create_topics"] is False
    assert not {names.responses, names.dlq} & wire.topics(scene.bootstrap).keys()

    wire.create_topics(scene.bootstrap, {names.responses: 1})
    time.sleep(0.5)
    assert worker.ask("/readyz")[0] == 503
    wire.create_topics(scene.bootstrap, {names.dlq: 1})
    worker.wait_ready()
    check_once(scene.wait_responses(1), ["early"])
    assert json.loads(worker.ask("/health/topics")[1])["status"] == "healthy"
    health = json.loads(worker.ask("/health")[1])
    assert health["statistics"]["topics_created"] == 0
    # Ready, but with one partition less than configured for requests, and two for responses.
    assert (worker.ask("/readyz")[0], health["status"]) == (200, "degraded")


def test_worker_is_not_ready_before_it_has_joined_its_group(scene):
    worker = scene.worker().start()
    while worker.ask("/readyz")[0] != 200:
        assert worker.process.poll() is None
    assert worker.metric("rebalances_total") >= 1
    assert json.loads(worker.ask("/health")[1])["status"] == "healthy"


@pytest.mark.parametrize("creation", ["true", "false"])
def test_cluster_out_of_reach_ends_the_start_with_69_after_its_retries(scene, creation):
    worker = scene.worker(
        KAFKA_BOOTSTRAP_SERVERS=NOWHERE,
        KAFKA_TOPIC_AUTO_CREATE=creation,
        KAFKA_TOPIC_CREATION_RETRIES="2",
        KAFKA_TOPIC_CREATION_RETRY_DELAY="0.5",
        KAFKA_TOPIC_CREATION_TIMEOUT="1",
    )
    began = time.monotonic()
    code, error = end_of(worker)
    assert code == 69
    assert 1.0 < time.monotonic() - began < 20
    assert NOWHERE in error
    retried = [line for line in worker.logs() if line["level"] == "warning" and "again" in line["event"]]
    assert len(retried) == 2


def test_worker_that_waits_for_the_cluster_is_alive_and_says_that_it_is_not_ready(scene):
    worker = scene.worker(KAFKA_BOOTSTRAP_SERVERS=NOWHERE, KAFKA_TOPIC_CREATION_RETRIES="100").start()
    worker.wait_until(lambda: worker.ask("/livez")[0] == 200, 20, "the side port to open")
    code, health = worker.ask("/health")
    assert (code, json.loads(health)["status"], json.loads(health)["consumer_running"]) == (503, "unhealthy", False)
    topics = json.loads(worker.ask("/health/topics")[1])
    assert (topics["status"], topics["last_verification"], topics["existing_topics"]) == ("unhealthy", None, [])
    code, why = worker.ask("/readyz")
    assert code == 503
    assert why.strip()
    assert worker.ask("/status")[0] == worker.ask("/metrics")[0] == 200
    assert worker.metric("not_ready") >= 1
    assert worker.stop() == 0


def test_replication_factor_beyond_the_cluster_ends_with_78_and_the_guides_words(scene):
    worker = scene.worker(KAFKA_TOPIC_RESPONSES_REPLICATION="99")
    code, error = end_of(worker)
    assert code == 78
    assert scene.topics.responses in error
    fatal = [line for line in worker.logs() if line["event"] == "Fatal error creating topic"]
    assert len(fatal) == 1
    assert fatal[0]["level"] == "error"
    assert fatal[0]["topic"] == scene.topics.responses
    assert "replication factor" in fatal[0]["error"]
    assert "KAFKA_TOPIC_RESPONSES_REPLICATION" in fatal[0]["hint"] or "replication" in fatal[0]["hint"].lower()


@pytest.mark.parametrize("settings", ["retention.ms=soon", "no.such.setting=1"])
def test_topic_settings_that_the_cluster_refuses_end_with_78(scene, settings):
    code, error = end_of(scene.worker(KAFKA_TOPIC_DLQ_CONFIG=settings))
    assert code == 78
    assert settings.partition("=")[0] in error


def test_session_timeout_that_the_broker_refuses_ends_with_78(scene):
    code, error = end_of(
        scene.worker(KAFKA_CONSUMER_SESSION_TIMEOUT_MS="1000", KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS="300")
    )
    assert code == 78
    assert "KAFKA_CONSUMER_SESSION_TIMEOUT_MS" in error


def test_side_port_that_is_taken_ends_with_78(scene):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, error = end_of(scene.worker(METRICS_PORT=port, METRICS_PORT_WAIT="0.5"))
    assert code == 78
    assert "METRICS_PORT" in error
    assert port in error
    assert scene.topics.requests not in wire.topics(scene.bootstrap)


def test_side_port_that_is_freed_in_time_does_not_keep_a_restart_down(scene):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with scene.worker(METRICS_PORT=str(port)) as worker:
            worker.wait_until(
                lambda: any(line["event"].startswith("Side port taken") for line in worker.logs()), 20, "the wait"
            )
            taken.close()
            event = eventually(
                lambda: next((line for line in worker.logs() if line["event"] == "Side port open"), None), "the port"
            )
            assert event["port"] == port
            assert worker.stop() == 0


@pytest.mark.parametrize(
    "handler, says",
    [
        ("no_such_module:handle", "no_such_module"),
        ("tests.support.handlers:missing", "missing"),
        ("tests.support.handlers:__doc__", "__doc__"),
        ("broken_module:handle", "ZeroDivisionError"),
        ("broken_class:Handler", "cannot begin"),
        ("nonsense", "nonsense"),
    ],
)
def test_handler_that_cannot_be_loaded_ends_with_78(scene, handler, says):
    (scene.directory / "broken_module.py").write_text("1 / 0\n")
    (scene.directory / "broken_class.py").write_text(
        "class Handler:\n    def __init__(self):\n        raise RuntimeError('cannot begin')\n"
    )
    code, error = end_of(scene.worker(WORKER_HANDLER=handler, PYTHONPATH=f"{ROOT}:{scene.directory}"))
    assert code == 78
    assert says in error
    assert "WORKER_HANDLER" in error


def test_wrong_variables_are_all_named_at_once_with_78(scene):
    worker = scene.worker(
        KAFKA_TOPIC_REQUESTS_PARTITIONS="0",
        KAFKA_TOPIC_RESPONSES_REPLICATION="0",
        KAFKA_TOPIC_DLQ="räume",
        KAFKA_TOPIC_RESPONSES="x" * 250,
        KAFKA_TOPIC_AUTO_CREATE="false",
        WORKER_CONCURRENCY="many",
        WORKER_ORDERING="chaos",
        METRICS_PORT="65536",
        KAFKA_PRODUCER_ACKS="2",
        KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS="20000",
    )
    code, error = end_of(worker)
    assert code == 78
    for said in (
        f"Partition count must be greater than 0 for topic {scene.topics.requests}",
        f"Replication factor must be greater than 0 for topic {'x' * 20}",
        "Topic name must be between 1 and 249 characters",
        "Topic name contains invalid characters",
        "WORKER_CONCURRENCY",
        "WORKER_ORDERING",
        "METRICS_PORT",
        "KAFKA_PRODUCER_ACKS",
        "KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS",
    ):
        assert said in error, said


def test_unknown_variables_are_warned_of_with_the_nearest_known_name(scene):
    worker = scene.ready(WORKER_CONCURENCY="3", KAFKA_TOPIC_REQUEST="x", KAFKA_CONSUMER_ENABLE_AUTO_COMMIT="true")
    warnings = [json.dumps(line) for line in worker.logs() if line["level"] == "warning"]
    for unknown, nearest in (
        ("WORKER_CONCURENCY", "WORKER_CONCURRENCY"),
        ("KAFKA_TOPIC_REQUEST", "KAFKA_TOPIC_REQUESTS"),
    ):
        assert sum(unknown in text and nearest in text for text in warnings) == 1
    assert sum("KAFKA_CONSUMER_ENABLE_AUTO_COMMIT" in text for text in warnings) == 1


def test_topics_are_created_as_configured(scene):
    worker = scene.ready(
        KAFKA_TOPIC_REQUESTS_PARTITIONS="4",
        KAFKA_TOPIC_RESPONSES_PARTITIONS="2",
        KAFKA_TOPIC_REQUESTS_CONFIG="max.message.bytes=2000000,retention.ms=3600000",
    )
    names, made = scene.topics, wire.topics(scene.bootstrap)
    assert {name: made[name] for name in (names.requests, names.responses, names.dlq)} == {
        names.requests: 4,
        names.responses: 2,
        names.dlq: 1,
    }
    assert worker.metric("topics_created_total") == 3
    # A request as large as the topic takes fits into the dead letter queue, with the reason behind it.
    scene.send(ask("large", "a", do="reject", ballast="x" * 1_900_000), message_max_bytes=2_000_000)
    check_once(scene.wait_responses(1), ["large"])
    eventually(lambda: scene.count(names.dlq) == 1, "the dead letter")
    told = [line["topic"] for line in worker.logs() if line["event"] == "Topic creation succeeded"]
    assert told == [names.requests, names.responses, names.dlq]


def test_start_position_without_a_commit_is_the_configured_one_and_committed_at_once(scene):
    scene.make(requests=2)
    scene.send(*[ask(f"old-{n}", None) for n in range(4)], partition=0)
    worker = scene.ready(KAFKA_CONSUMER_AUTO_OFFSET_RESET="latest")
    assert scene.committed() == {0: 4, 1: 0}
    assert worker.stop() == 0
    scene.send(ask("between", "k"), partition=1)
    worker.start().wait_ready()
    check_once(scene.wait_responses(1), ["between"])
    assert scene.starts().keys() == {"between"}
