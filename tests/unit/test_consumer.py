"""The consumer around the client's own, without a broker: its session, its rounds of polling, what is committed."""

from __future__ import annotations

import ssl
from types import SimpleNamespace

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.future import Future
from kafka.structs import OffsetAndMetadata

from gigaoffice_worker.broker.consumer import Committed, Consumer
from gigaoffice_worker.broker.errors import CommitRetriableError
from gigaoffice_worker.broker.kafka_python.clock import STEADY, steady_the_client
from tests.support.batches import RawRecord, batch

SESSION = 6.0
PLACE = TopicPartition("requests", 0)


@pytest.fixture
def client():
    steady_the_client()
    made = KafkaConsumer(
        bootstrap_servers="127.0.0.1:1",
        api_version=(2, 1, 0),
        group_id="group",
        session_timeout_ms=6000,
        metrics_enabled=False,
        enable_auto_commit=False,
        auto_offset_reset="none",
    )
    yield made
    made.close(autocommit=False, timeout_ms=0)


@pytest.fixture
def heartbeat(client):
    return client._coordinator.heartbeat


@pytest.fixture
def consumer(client):
    return Consumer(client, "requests")


def test_rebalance_that_a_poll_left_pending_is_gone_on_with(consumer):
    """The client forgets it otherwise, and with it the assignment."""
    asked = []
    consumer._client._poll_once = lambda *_: {}
    coordinator = consumer._client._coordinator
    coordinator.request_rejoin = lambda: asked.append(True)
    coordinator.join_future = None
    assert consumer.poll(0.0, 10) == {}
    assert asked == []
    coordinator.join_future = object()
    assert consumer.poll(0.0, 10) == {}
    assert asked == [True]


def test_session_is_whole_before_the_first_heartbeat(consumer):
    assert consumer.contact.session_left() == pytest.approx(SESSION, abs=0.5)


def test_answered_heartbeat_renews_the_session(consumer, heartbeat):
    consumer._session._confirmed_at -= 5.0
    assert consumer.contact.session_left() == pytest.approx(1.0, abs=0.5)
    heartbeat.sent_heartbeat()
    assert consumer.contact.session_left() == pytest.approx(1.0, abs=0.5)
    heartbeat.received_heartbeat()
    assert consumer.contact.session_left() == pytest.approx(SESSION, abs=0.5)


def test_answer_that_was_read_late_renews_it_only_from_when_it_was_asked_for(consumer, heartbeat):
    consumer._session._confirmed_at -= 12.0
    heartbeat.sent_heartbeat()
    heartbeat.last_send -= 9.0
    heartbeat.received_heartbeat()
    assert consumer.contact.session_left() == pytest.approx(SESSION - 9.0, abs=0.5)


def test_coordinator_that_was_only_found_again_renews_nothing(consumer, heartbeat):
    consumer._session._confirmed_at -= 9.0
    heartbeat.reset_timeouts()
    assert heartbeat.last_reset == pytest.approx(STEADY.time(), abs=0.5)
    assert consumer.contact.session_left() < 0


def fetched(client, content, position=0):
    """Put an answer to a fetch where the client finds it."""
    client.assign([PLACE])
    client.seek(PLACE, position)
    client._coordinator.poll = lambda timeout_ms=None: True
    completed = SimpleNamespace(
        topic_partition=PLACE,
        fetched_offset=position,
        response_version=10,
        partition_data=(0, 10, -1, 0, [], content),
        metric_aggregator=SimpleNamespace(record=lambda *_: None),
    )
    client._fetcher._completed_fetches.append(completed)


def broken(*_, **__):
    raise ssl.SSLError(1, "bad record mac")


def test_records_that_were_taken_are_returned_although_the_network_fails_behind_them(client, consumer):
    fetched(client, batch([RawRecord(b"k", b"{}")] * 3))
    client._fetcher.send_fetches = broken
    assert [record.offset for record in consumer.poll(0.0, 10)[0]] == [0, 1, 2]
    assert consumer.position(0) == 3
    with pytest.raises(ssl.SSLError):
        consumer.poll(0.0, 10)
    consumer.seek(0, 1)
    assert consumer.position(0) == 1


def test_partition_without_a_position_does_not_hold_up_the_others(client, consumer):
    fetched(client, batch([RawRecord(b"k", b"{}")]))
    client.assign([PLACE, TopicPartition("requests", 1)])
    client.seek(PLACE, 0)
    assert list(consumer.poll(0.0, 10)) == [0]
    assert consumer.position(1) is None


def test_what_is_committed_is_asked_anew_each_time(client, consumer):
    questions = []
    coordinator = client._coordinator
    coordinator.ensure_coordinator_ready = lambda timeout_ms=None: True

    def ask(places):
        questions.append(Future())
        return questions[-1]

    coordinator._send_offset_fetch_request = ask
    with pytest.raises(CommitRetriableError):
        consumer.all_committed([0], 0.05)
    [late] = questions
    late.success({})
    client._client.poll = lambda timeout_ms=None, future=None: future.success({PLACE: OffsetAndMetadata(100, "", -1)})
    assert consumer.all_committed([0], 1.0)[0].position == 100
    assert len(questions) == 2


@pytest.mark.parametrize("error", [ssl.SSLError(1, "unknown ca"), OSError(113, "No route to host"), MemoryError()])
def test_whatever_the_network_raises_from_a_commit_may_pass(client, consumer, error):
    def fail(**_):
        raise error

    client._coordinator.ensure_coordinator_ready = fail
    with pytest.raises(CommitRetriableError):
        consumer.all_committed([0], 1.0)
    with pytest.raises(CommitRetriableError):
        consumer.commit({0: Committed(1, "")}, 1.0)
