"""What the side port says, and how."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gigaoffice_worker import __version__
from tests.support.scene import MARKER, ask
from tests.support.waiting import eventually
from tests.support.workers import ANSWER_LIMIT

PREFIX = "gigaoffice_worker_"
STATISTICS = {"messages_sent", "messages_received", "messages_failed", "topics_created", "topic_creation_errors"}
# Every name of the contract, with its label.
METRICS = {
    "messages_received_total": None,
    "messages_sent_total": "topic",
    "messages_failed_total": "reason",
    "topics_created_total": None,
    "topic_creation_errors_total": "kind",
    "last_topic_verification_timestamp_seconds": None,
    "requests_total": "outcome",
    "handler_attempts_total": "result",
    "handler_duration_seconds": None,
    "queue_wait_seconds": None,
    "end_to_end_seconds": None,
    "requests_in_flight": None,
    "requests_waiting_retry": None,
    "unsettled_outcomes": None,
    "consumer_lag_records": "partition",
    "consumer_lag_seconds": "partition",
    "committed_offset": "partition",
    "assigned_partitions": None,
    "paused_partitions": None,
    "rebalances_total": None,
    "commits_total": "result",
    "offset_resets_total": None,
    "oldest_in_flight_seconds": None,
    "last_poll_timestamp_seconds": None,
    "producer_rebuilds_total": None,
    "late_results_dropped_total": None,
    "handler_abandoned_threads": None,
    "dlq_blocked": None,
    "gate_closed": None,
    "storm_guard_open": None,
    "not_ready": "reason",
    "log_dropped_total": None,
    "build_info": "version",
}


class Busy:
    """A worker with something of everything in hand."""

    def __init__(self, scene):
        self.scene = scene.make(requests=2)
        self.gate = scene.file("gate")
        self.worker = scene.ready(
            WORKER_CONCURRENCY="2",
            WORKER_MAX_ATTEMPTS="9",
            KAFKA_TOPIC_REQUESTS_PARTITIONS="2",
            KAFKA_TOPIC_RESPONSES_PARTITIONS="1",
        )
        scene.send(
            ask("answered", "a"),
            ask("rejected", "b", do="reject"),
            ask("runs", "c", do="hang", file=str(self.gate)),
            ask("behind", "c"),
            ask("waits", "d", do="while_file", then="transient", retry_after=30, file=str(self.gate)),
            partition=0,
        )
        scene.send(ask("other", "a"), partition=1)
        scene.wait_started("runs", "waits")
        scene.wait_responses(3)
        eventually(lambda: self.worker.metric("requests_waiting_retry") == 1, "the retry to wait")
        # The cluster knows of a commit before the worker does.
        eventually(lambda: self.committed() == [2, 1], "the commits to be shown")

    def committed(self):
        return [row["committed"] for row in self.worker.status()["partitions"]]

    def get(self, path, method="GET", **headers):
        """Return (status, content type, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.worker.port(), timeout=ANSWER_LIMIT)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def busy(shared_scene):
    return Busy(shared_scene)


def test_all_six_paths_answer(busy):
    for path in ("/livez", "/readyz", "/health", "/health/topics", "/status", "/metrics"):
        assert busy.get(path)[0] == 200
    for path in ("/health", "/health/topics", "/status"):
        assert busy.get(path)[1].startswith("application/json")
    assert busy.get("/nothing")[0] == 404
    assert busy.get("/health", method="POST")[0] == 405


def test_service_health_has_exactly_the_guides_fields(busy):
    found = json.loads(busy.get("/health")[2])
    assert list(found) == ["status", "bootstrap_servers", "consumer_running", "statistics", "configuration"]
    assert found["status"] == "healthy"
    assert found["bootstrap_servers"] == busy.scene.bootstrap
    assert found["consumer_running"] is True
    assert found["statistics"].keys() == STATISTICS
    assert {type(number) for number in found["statistics"].values()} == {int}
    assert found["configuration"] == {"auto_create_topics": True, "creation_retries": 3, "creation_timeout": 30}
    assert found["statistics"]["messages_received"] == 6
    assert found["statistics"]["messages_sent"] == 4
    assert found["statistics"]["messages_failed"] == 1


def test_topic_health_has_exactly_the_guides_fields(busy):
    found = json.loads(busy.get("/health/topics")[2])
    assert list(found) == ["status", "required_topics", "existing_topics", "missing_topics", "last_verification"]
    names = [busy.scene.topics.requests, busy.scene.topics.responses, busy.scene.topics.dlq]
    assert (found["status"], found["required_topics"]) == ("healthy", names)
    assert (found["existing_topics"], found["missing_topics"]) == (names, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", found["last_verification"])
    verified = datetime.fromisoformat(found["last_verification"]).replace(tzinfo=UTC)
    assert abs(time.time() - verified.timestamp()) < 60


def test_every_metric_of_the_contract_is_there_with_its_label(busy):
    families = {family.name: family for family in text_string_to_metric_families(busy.get("/metrics")[2])}
    for name, label in METRICS.items():
        # The parser names a family without its suffix, if it has one.
        family = families[PREFIX + (name if PREFIX + name in families else re.sub("_(total|info)$", "", name))]
        assert family.documentation
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        assert labels == ({label} if label and family.samples else set()), name
    of = busy.worker.metric
    assert of("build_info", version=__version__) == 1
    assert (of("assigned_partitions"), of("paused_partitions"), of("dlq_blocked"), of("not_ready")) == (2, 0, 0, 0)
    assert (of("committed_offset", partition="0"), of("committed_offset", partition="1")) == (2, 1)
    assert (of("consumer_lag_records", partition="0"), of("consumer_lag_records", partition="1")) == (3, 0)
    assert of("consumer_lag_seconds", partition="0") > 0 == of("consumer_lag_seconds", partition="1")
    assert (of("requests_in_flight"), of("requests_waiting_retry"), of("unsettled_outcomes")) == (1, 1, 0)
    assert of("oldest_in_flight_seconds") > 0
    assert of("commits_total", result="ok") >= 1
    assert of("rebalances_total") >= 1
    eventually(lambda: abs(of("last_poll_timestamp_seconds") - time.time()) < 5, "a poll of just now")
    assert abs(of("last_topic_verification_timestamp_seconds") - time.time()) < 60
    assert (of("requests_total", outcome="completed"), of("requests_total", outcome="dead_lettered")) == (2, 1)


def test_metrics_come_as_openmetrics_when_asked_for(busy):
    _, kind, text = busy.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    _, kind, text = busy.get("/metrics")
    assert kind.startswith("text/plain")
    assert "# EOF" not in text


def test_status_shows_what_holds_the_commit_back(busy):
    found = json.loads(busy.get("/status")[2])
    first, second = found["partitions"]
    assert (first["partition"], first["position"], first["committed"], first["lag"]) == (0, 5, 2, 3)
    oldest = first["oldest"]
    assert (oldest["offset"], oldest["attempt"], oldest["stage"]) == (2, 1, "running")
    assert oldest["age"] > 0
    assert (second["position"], second["committed"], second["lag"], second["oldest"]) == (1, 1, 0, None)
    assert first["paused"] is None
    assert found["last_error"] is not None
    assert "Error" in json.dumps(found["last_error"])
    assert MARKER not in json.dumps(found)


def test_picked_port_is_logged_written_to_a_file_and_open_on_loopback_only(busy):
    port = busy.worker.port()
    [opened] = [line for line in busy.worker.logs() if line["event"] == "Side port open"]
    assert opened["port"] == port
    # All of 127/8 is this machine, but only 127.0.0.1 was asked for.
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass


def test_what_was_in_hand_is_finished_when_it_can_be(busy):
    busy.gate.unlink()
    busy.scene.wait_responses(5)
    eventually(lambda: busy.worker.metric("oldest_in_flight_seconds") == 0, "nothing in flight")
    assert busy.worker.stop() == 0
    assert busy.worker.ask("/livez")[0] == 0
