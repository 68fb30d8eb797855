"""The topic workflow against a real Kafka: who creates, who does not, and how each failure is told."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter

import pytest
from structlog.testing import capture_logs

from gigaoffice_worker.broker.admin import admin
from gigaoffice_worker.broker.topics import ensure_topics
from gigaoffice_worker.broker.verification import TopicVerifier
from gigaoffice_worker.config import load
from gigaoffice_worker.core.errors import ConfigurationError, UnreachableError
from tests.support import wire


@pytest.fixture
def settings(kafka_bootstrap, topic_set):
    """Make the configuration for this test's topics, with changes by variable."""

    def make(**environ):
        return load(
            {
                "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
                "KAFKA_TOPIC_REQUESTS": topic_set.requests,
                "KAFKA_TOPIC_RESPONSES": topic_set.responses,
                "KAFKA_TOPIC_DLQ": topic_set.dlq,
                "KAFKA_CONSUMER_GROUP": topic_set.group,
                "KAFKA_TOPIC_CREATION_RETRY_DELAY": "0.1",
                **environ,
            }
        )

    return make


class Statistics:
    def __init__(self):
        self.created = []
        self.errors = []

    def __call__(self, config, **options):
        return ensure_topics(config, on_created=self.created.append, on_error=self.errors.append, **options)


def events(logs, level=None):
    return [entry["event"] for entry in logs if level in (None, entry["log_level"])]


def line(logs, event):
    (entry,) = [entry for entry in logs if entry["event"] == event]
    return entry


def test_missing_topics_are_created_with_their_settings_and_verified(settings, topic_set, kafka_bootstrap):
    run = Statistics()
    config = settings(
        KAFKA_TOPIC_REQUESTS_PARTITIONS="2",
        KAFKA_TOPIC_REQUESTS_CONFIG="cleanup.policy=compact,delete,max.message.bytes=2000000",
        KAFKA_TOPIC_RESPONSES_CONFIG="retention.ms=60000",
    )
    with capture_logs() as logs:
        report = run(config)
    assert run.created == list(topic_set[:3])
    assert run.errors == []
    assert report.existing == topic_set[:3]
    assert (report.missing, report.mismatches, report.without_leader) == ((), (), ())
    assert report.partitions == {topic_set.requests: 2, topic_set.responses: 3, topic_set.dlq: 1}
    assert report.limits[topic_set.requests] == 2_000_000
    assert report.limits[topic_set.dlq] == 8_388_608 + 1_048_576
    assert {"READ", "WRITE"} <= report.operations[topic_set.requests]
    assert report.verified_at.utcoffset().total_seconds() == 0
    assert abs(report.verified_at.timestamp() - time.time()) < 30
    assert events(logs, "info") == [
        "Cluster reached",
        *("Topic creation started", "Topic creation succeeded") * 3,
        "Topic verification succeeded",
    ]
    assert events(logs, "debug") == ["Topic listing started", "Topic listing succeeded"]
    assert set(events(logs, "warning") + events(logs, "error")) == set()
    ours = {name: count for name, count in wire.topics(kafka_bootstrap).items() if name in topic_set}
    assert ours == report.partitions


def test_topics_that_exist_are_left_alone(settings, made_topics):
    run = Statistics()
    with capture_logs() as logs:
        report = run(settings())
    assert run.created == []
    assert report.missing == ()
    assert events(logs, "info") == ["Cluster reached", "Topic verification succeeded"]


def test_a_dead_letter_topic_follows_the_request_topic_that_exists(settings, topic_set, make_topics):
    make_topics({topic_set.requests: 3}, config={"max.message.bytes": "30000000"})
    report = ensure_topics(settings())
    assert report.limits[topic_set.dlq] == 30_000_000 + 65_536


def test_a_dead_letter_topic_has_room_for_the_largest_request_unpacked(settings, topic_set):
    report = ensure_topics(settings(WORKER_MAX_REQUEST_BYTES="5000000"))
    assert report.limits[topic_set.dlq] == 5_000_000 + 1_048_576


def test_a_configured_dead_letter_limit_wins(settings, topic_set):
    report = ensure_topics(settings(KAFKA_TOPIC_DLQ_CONFIG="max.message.bytes=5000000"))
    assert report.limits[topic_set.dlq] == 5_000_000


def test_of_several_workers_exactly_one_creates_each_topic_and_none_fails(settings, topic_set):
    config = settings()
    workers = [Statistics() for _ in range(4)]
    reports = []
    together = threading.Barrier(len(workers))

    def work(run):
        opened = []

        def open_together(config, timeout):
            if not opened:
                together.wait(30)
            opened.append(admin(config, timeout))
            return opened[-1]

        reports.append(run(config, open_admin=open_together))

    threads = [threading.Thread(target=work, args=(run,)) for run in workers]
    with capture_logs() as logs:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter(name for run in workers for name in run.created) == dict.fromkeys(topic_set[:3], 1)
    assert [run.errors for run in workers] == [[]] * 4
    assert [report.missing for report in reports] == [()] * 4
    assert set(events(logs)) - {"Topic creation: topic already exists"} == {
        "Cluster reached",
        "Topic listing started",
        "Topic listing succeeded",
        "Topic creation started",
        "Topic creation succeeded",
        "Topic verification succeeded",
    }
    assert {each["log_level"] for each in logs if "already exists" in each["event"]} <= {"info"}


def test_a_topic_that_somebody_creates_behind_our_listing_is_expected(settings, topic_set, make_topics):
    run = Statistics()
    make_topics({topic_set.requests: 3})

    class Blind:
        """An administration client whose first listing is older than everything."""

        def __init__(self, client):
            self._client = client
            self._listings = 0

        def describe(self, names):
            self._listings += 1
            return {} if self._listings == 1 else self._client.describe(names)

        def __getattr__(self, name):
            return getattr(self._client, name)

    with capture_logs() as logs:
        report = run(settings(), open_admin=lambda config, timeout: Blind(admin(config, timeout)))
    assert run.created == list(topic_set[1:3])
    assert run.errors == []
    entry = line(logs, "Topic creation: topic already exists")
    assert (entry["topic"], entry["log_level"]) == (topic_set.requests, "info")
    assert report.missing == ()


def test_with_creation_off_nothing_is_created_and_missing_topics_are_named(settings, topic_set, make_topics):
    make_topics({topic_set.requests: 3})
    run = Statistics()
    started = time.monotonic()
    with capture_logs() as logs:
        report = run(settings(KAFKA_TOPIC_AUTO_CREATE="false"))
    assert time.monotonic() - started < 20
    assert run.created == []
    assert report.existing == (topic_set.requests,)
    assert report.missing == (topic_set.responses, topic_set.dlq)
    assert events(logs, "info") == ["Topic creation skipped", "Cluster reached"]
    warned = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [(entry["event"], entry["topic"]) for entry in warned] == [
        ("Topic verification: topic is missing", topic_set.responses),
        ("Topic verification: topic is missing", topic_set.dlq),
    ]
    assert all("KAFKA_TOPIC_AUTO_CREATE" in entry["hint"] for entry in warned)


def test_a_topic_short_of_partitions_is_a_warning_with_both_figures_and_is_not_changed(
    settings, made_topics, kafka_bootstrap
):
    with capture_logs() as logs:
        report = ensure_topics(settings(KAFKA_TOPIC_REQUESTS_PARTITIONS="5", KAFKA_TOPIC_DLQ_REPLICATION="2"))
    assert report.mismatches == (
        (made_topics.requests, "partitions", 5, 3),
        (made_topics.dlq, "replication factor", 2, 1),
    )
    warned = [entry for entry in logs if entry["log_level"] == "warning"]
    assert {entry["event"] for entry in warned} == {"Topic verification: topic differs from the configuration"}
    assert (warned[0]["configured"], warned[0]["found"]) == (5, 3)
    assert wire.topics(kafka_bootstrap)[made_topics.requests] == 3


def test_more_partitions_than_configured_are_fine(settings, made_topics):
    assert ensure_topics(settings(KAFKA_TOPIC_REQUESTS_PARTITIONS="1")).mismatches == ()


@pytest.mark.parametrize(
    "environ, words",
    [
        ({"KAFKA_TOPIC_REQUESTS_REPLICATION": "3"}, "replication factor"),
        ({"KAFKA_TOPIC_REQUESTS_CONFIG": "retention.ms=never"}, "configuration"),
        ({"KAFKA_TOPIC_REQUESTS_CONFIG": "no.such.setting=1"}, "Unknown topic config name: no.such.setting"),
    ],
)
def test_what_the_cluster_refuses_is_fatal_at_once(settings, kafka_bootstrap, topic_set, environ, words):
    run = Statistics()
    with capture_logs() as logs, pytest.raises(ConfigurationError) as caught:
        run(settings(**environ))
    assert caught.value.exit_code == 78
    assert words in str(caught.value)
    assert run.errors == ["fatal"]
    entry = line(logs, "Fatal error creating topic")
    assert (entry["log_level"], entry["topic"], entry["attempt"]) == ("error", topic_set.requests, 1)
    assert words in entry["error"]
    assert "KAFKA_TOPIC_" in entry["hint"]
    assert topic_set.requests not in wire.topics(kafka_bootstrap)


def test_a_dry_run_says_what_the_cluster_would_do_and_changes_nothing(settings, topic_set, kafka_bootstrap):
    run = Statistics()
    with capture_logs() as logs:
        report = run(settings(), dry_run=True)
    assert run.created == []
    assert report.missing == topic_set[:3]
    assert events(logs, "info") == [
        "Cluster reached",
        *["Topic creation: dry run, the cluster would create the topic"] * 3,
        "Topic verification: dry run",
    ]
    assert not set(topic_set) & set(wire.topics(kafka_bootstrap))
    with pytest.raises(ConfigurationError, match="replication factor"):
        run(settings(KAFKA_TOPIC_DLQ_REPLICATION="3"), dry_run=True)


def test_nobody_at_the_address_ends_unreachable_when_the_attempts_are_used_up(settings):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    run = Statistics()
    started = time.monotonic()
    with capture_logs() as logs, pytest.raises(UnreachableError) as caught:
        run(settings(KAFKA_BOOTSTRAP_SERVERS=address, KAFKA_TOPIC_CREATION_RETRIES="2"))
    assert time.monotonic() - started < 10
    assert caught.value.exit_code == 69
    assert f"{address}: connection refused" in str(caught.value)
    assert events(logs, "warning") == ["Topic listing failed, trying again"] * 2
    assert [entry["attempt"] for entry in logs if entry["log_level"] == "warning"] == [1, 2]
    assert events(logs, "error") == ["Topic listing failed"]
    assert run.errors == []


def test_a_silent_peer_takes_no_longer_than_the_attempts_have(settings):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        config = settings(
            KAFKA_BOOTSTRAP_SERVERS=address, KAFKA_TOPIC_CREATION_RETRIES="1", KAFKA_TOPIC_CREATION_TIMEOUT="1"
        )
        started = time.monotonic()
        with capture_logs() as logs, pytest.raises(UnreachableError) as caught:
            ensure_topics(config)
    assert 2 < time.monotonic() - started < 12
    assert "does not answer as Kafka does" in str(caught.value)
    assert events(logs, "error") == ["Topic listing failed"]


def test_a_stop_ends_the_wait_for_the_next_attempt(settings):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = settings(KAFKA_BOOTSTRAP_SERVERS=address, KAFKA_TOPIC_CREATION_RETRY_DELAY="60")
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    assert ensure_topics(config, stop=stop) is None
    assert time.monotonic() - started < 30


def test_verifying_sees_what_has_changed_and_warns_of_news_only(settings, made_topics, kafka_bootstrap):
    config = settings()
    verifier = TopicVerifier(config)
    try:
        first = verifier.verify()
        assert first.missing == ()
        wire.delete_topics(kafka_bootstrap, [made_topics.dlq])
        deadline = time.monotonic() + 30
        with capture_logs() as logs:
            while not (second := verifier.verify(first)).missing:
                assert time.monotonic() < deadline
            third = verifier.verify(second)
    finally:
        verifier.close()
    assert second.missing == third.missing == (made_topics.dlq,)
    assert third.verified_at > second.verified_at > first.verified_at
    assert line(logs, "Topic verification: topic is missing")["topic"] == made_topics.dlq


def test_a_verification_over_a_broken_connection_makes_a_new_one(settings, made_topics):
    opened = []

    def open_admin(config, timeout):
        opened.append(admin(config, timeout))
        return opened[-1]

    verifier = TopicVerifier(settings(), open_admin)
    try:
        verifier.verify()
        verifier.verify()
        assert len(opened) == 1
        for connection in opened[0]._client._client._conns.values():
            connection._sock.shutdown(socket.SHUT_RDWR)
        assert verifier.verify().missing == ()
    finally:
        verifier.close()


def test_verifying_without_a_cluster_raises_ours_and_the_next_one_may_succeed(settings, made_topics, kafka_bootstrap):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(UnreachableError, match="connection refused"):
        TopicVerifier(settings(KAFKA_BOOTSTRAP_SERVERS=address)).verify()
    verifier = TopicVerifier(settings())
    try:
        assert verifier.verify().missing == ()
    finally:
        verifier.close()
