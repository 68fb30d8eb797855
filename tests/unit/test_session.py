"""Membership of the group as the client tells of it: the session by its heartbeats, and a pending rebalance."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kafka.coordinator.heartbeat import Heartbeat

from gigaoffice_worker.broker.consumer import Consumer
from gigaoffice_worker.broker.kafka_python.clock import STEADY, steady_the_client

SESSION = 6.0


@pytest.fixture
def heartbeat():
    steady_the_client()
    return Heartbeat()


@pytest.fixture
def consumer(heartbeat):
    coordinator = SimpleNamespace(heartbeat=heartbeat)
    config = {"session_timeout_ms": 6000}
    client = SimpleNamespace(config=config, _coordinator=coordinator, _poll_once=lambda *_: {})
    return Consumer(client, "requests")


def test_rebalance_that_a_poll_left_pending_is_gone_on_with(consumer):
    """The client forgets it otherwise, and with it the assignment."""
    asked = []
    coordinator = consumer._client._coordinator
    coordinator.request_rejoin = lambda: asked.append(True)
    coordinator.join_future = None
    assert consumer.poll(0.0, 10) == {}
    assert asked == []
    coordinator.join_future = object()
    assert consumer.poll(0.0, 10) == {}
    assert asked == [True]


def test_session_is_whole_before_the_first_heartbeat(consumer):
    assert consumer.session_left() == pytest.approx(SESSION, abs=0.5)


def test_answered_heartbeat_renews_the_session(consumer, heartbeat):
    consumer._session._confirmed_at -= 5.0
    assert consumer.session_left() == pytest.approx(1.0, abs=0.5)
    heartbeat.sent_heartbeat()
    assert consumer.session_left() == pytest.approx(1.0, abs=0.5)
    heartbeat.received_heartbeat()
    assert consumer.session_left() == pytest.approx(SESSION, abs=0.5)


def test_answer_that_was_read_late_renews_it_only_from_when_it_was_asked_for(consumer, heartbeat):
    consumer._session._confirmed_at -= 12.0
    heartbeat.sent_heartbeat()
    heartbeat.last_send -= 9.0
    heartbeat.received_heartbeat()
    assert consumer.session_left() == pytest.approx(SESSION - 9.0, abs=0.5)


def test_coordinator_that_was_only_found_again_renews_nothing(consumer, heartbeat):
    consumer._session._confirmed_at -= 9.0
    heartbeat.reset_timeouts()
    assert heartbeat.last_reset == pytest.approx(STEADY.time(), abs=0.5)
    assert consumer.session_left() < 0
