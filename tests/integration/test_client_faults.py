"""What the client gets wrong when brokers freeze or move, against real brokers that do."""

from __future__ import annotations

import contextlib
import json
import os
import time
from functools import partial

import pytest
from kafka.errors import InvalidTimestampError, KafkaTimeoutError, MessageSizeTooLargeError

from gigaoffice_worker.broker import clients
from gigaoffice_worker.broker.consumer import Committed, Consumer
from gigaoffice_worker.broker.error_table import SendFailure, describe, send_failure
from gigaoffice_worker.broker.errors import CommitLostError, CommitRetriableError
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.broker.verification import TopicVerifier
from gigaoffice_worker.client import Client
from gigaoffice_worker.config import load
from gigaoffice_worker.core.records import OutgoingRecord
from gigaoffice_worker.devkafka.ports import ReservedPorts
from tests.chaos.proxy import Proxy
from tests.support import wire
from tests.support.releases import OwnKafka, too_old_setting
from tests.support.waiting import eventually

# librdkafka needs 8 s, of which our 5 s of patience are the most.
BACK_WITHIN = 30.0
QUESTIONS = {
    "one": lambda consumer, limit: consumer.committed(0, limit),
    "several": lambda consumer, limit: consumer.all_committed([0], limit).get(0),
}


def settings(bootstrap, topic_set):
    return load(
        {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA_TOPIC_REQUESTS": topic_set.requests,
            "KAFKA_CONSUMER_GROUP": topic_set.group,
            "KAFKA_CONSUMER_SESSION_TIMEOUT_MS": "120000",  # nobody polls while another one waits
        }
    )


@contextlib.contextmanager
def member(config):
    """A consumer of the request topic that seeks to its beginning; yields it and a function that polls once."""
    consumer = Consumer(clients.consumer(config), config.topics.requests.name)
    received = []

    def assigned(partitions):
        for partition in partitions:
            consumer.seek(partition, 0)

    def poll():
        for records in consumer.poll(0.1, 100).values():
            received.extend(records)
        return received

    consumer.subscribe(lambda: None, assigned)
    try:
        yield consumer, poll
    finally:
        consumer.close(3.0)


@contextlib.contextmanager
def writer(config):
    """A producer; yields it, and a function that sends a record and returns its place, its error, or None in time."""
    producer = Producer(clients.producer(config, "test"))

    def send(limit):
        told = []
        record = OutgoingRecord(config.topics.requests.name, None, b"{}", [], 0)
        producer.send(record, lambda *place: told.append(place), told.append)
        deadline = time.monotonic() + limit
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        return told[0] if told else None

    try:
        yield producer, send
    finally:
        producer.force_stop(5.0)


def test_records_that_the_brokers_find_too_old_are_refused_and_the_producer_is_not_in_doubt(
    kafka_bootstrap, topic_set, make_topics
):
    """As those of a machine whose clock is wrong."""
    make_topics({topic_set.requests: 1}, config={too_old_setting(): "0"})
    with writer(settings(kafka_bootstrap, topic_set)) as (producer, send):
        # A record that is written in the millisecond of its own time is none too old, and is taken.
        error = eventually(lambda: isinstance(told := send(10.0), Exception) and told, "a record to be refused")
        assert isinstance(error, InvalidTimestampError)
        assert send_failure(error) is SendFailure.REFUSED
        assert "clock" in describe(error)
        wire.alter_topic(kafka_bootstrap, topic_set.requests, {too_old_setting(): "3600000"})
        eventually(lambda: isinstance(send(10.0), tuple), "the same producer to be let write")
        assert not producer.broken


def test_batches_within_the_topics_limit_are_taken_whole(kafka_bootstrap, topic_set, make_topics):
    make_topics({topic_set.requests: 1}, config={"max.message.bytes": "2000"})
    with writer(settings(kafka_bootstrap, topic_set)) as (producer, _):
        refused = write_at_once(producer, topic_set.requests, 40)
        assert any(isinstance(each, MessageSizeTooLargeError) for each in refused)
        producer.limit_batches(2000)
        places = write_at_once(producer, topic_set.requests, 40)
        assert [partition for partition, _ in places] == [0] * 40
        offsets = [offset for _, offset in places]
        assert offsets == sorted(offsets)


def write_at_once(producer, topic, count):
    """Send records of 150 bytes that nothing can pack; returns the place or the error of each."""
    told = {}
    for number in range(count):
        record = OutgoingRecord(topic, None, os.urandom(150), [], 0)
        note = partial(told.__setitem__, number)
        producer.send(record, lambda *place, note=note: note(place), note)
    eventually(lambda: len(told) == count, "all answers")
    return [told[number] for number in range(count)]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_late_answer_about_what_is_committed_is_not_taken_for_a_newer_question(topic_set, ask):
    with OwnKafka() as cluster:
        wire.create_topics(cluster.bootstrap_servers, {topic_set.requests: 1})
        with member(settings(cluster.bootstrap_servers, topic_set)) as (consumer, poll):
            eventually(lambda: poll() or consumer.contact.membership(), "the member to join")
            cluster.freeze(1)
            question = QUESTIONS[ask]
            with pytest.raises((CommitRetriableError, KafkaTimeoutError)):
                question(consumer, 1.0)
            cluster.thaw(1)
            time.sleep(0.5)  # the answer to the first question has come

            def committed() -> bool:
                poll()  # a member that was silent for long may have to join again
                with contextlib.suppress(CommitLostError, CommitRetriableError):
                    consumer.commit({0: Committed(100, "map")}, 5.0)
                    return True
                return False

            eventually(committed, "the commit to be taken")
            assert question(consumer, 10.0) == Committed(100, "map")


@pytest.mark.parametrize("server", ["load balancer", "second of two"])
def test_cluster_that_comes_back_under_other_addresses_is_found_at_the_configured_ones(topic_set, tmp_path, server):
    """Brokers name their own addresses; of two configured servers only the first answers at the start."""
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(contextlib.closing(ReservedPorts()))
        port = ports.take_any()
        before = stack.enter_context(OwnKafka(data_dir=tmp_path))
        old = before.port(1)
        wire.create_topics(before.bootstrap_servers, {topic_set.requests: 1})
        door = Proxy(port, old)
        if server == "load balancer":
            stack.enter_context(door)
            config = settings(f"127.0.0.1:{port}", topic_set)
        else:
            config = settings(f"127.0.0.1:{old},127.0.0.1:{port}", topic_set)
        verifier = stack.enter_context(contextlib.closing(TopicVerifier(config)))
        assert topic_set.requests in verifier.verify().existing
        consumer, poll = stack.enter_context(member(config))
        _, send = stack.enter_context(writer(config))
        assert isinstance(send(10.0), tuple)
        eventually(poll, "the first record")
        before.stop()
        eventually(lambda: poll() and consumer.contact.silent_for() > 0, "the consumer to see that nobody answers")
        after = stack.enter_context(OwnKafka(data_dir=tmp_path))
        assert after.port(1) != old
        door.target = after.port(1)
        if server == "second of two":
            stack.enter_context(door)
        moved = time.monotonic()
        assert isinstance(send(BACK_WITHIN), tuple), "the producer does not find the cluster"
        eventually(lambda: len(poll()) == 2, "the second record", timeout=BACK_WITHIN)
        assert time.monotonic() - moved < BACK_WITHIN
        assert consumer.contact.silent_for() == 0
        assert topic_set.requests in verifier.verify().existing


def test_requester_finds_a_cluster_at_a_configured_server_that_was_not_there_when_it_connected(topic_set, tmp_path):
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(contextlib.closing(ReservedPorts()))
        port = ports.take_any()
        before = stack.enter_context(OwnKafka(data_dir=tmp_path))
        old = before.port(1)
        wire.create_topics(before.bootstrap_servers, {topic_set.requests: 1, topic_set.responses: 1})
        servers = [f"127.0.0.1:{old}", f"127.0.0.1:{port}"]
        names = {"KAFKA_TOPIC_REQUESTS": topic_set.requests, "KAFKA_TOPIC_RESPONSES": topic_set.responses}
        client = stack.enter_context(Client(servers, settings=names))
        asked = client.submit("r", b'{"id": "r"}', b"r", {})
        assert asked.wait_acknowledged(10.0) is not None
        before.stop()
        after = stack.enter_context(OwnKafka(data_dir=tmp_path))
        assert after.port(1) != old
        stack.enter_context(Proxy(port, after.port(1)))
        source = {"topic": topic_set.requests, "partition": "0", "offset": str(asked.place.offset)}
        answer = {"request_id": "r", "status": "completed", "result": 1, "error": None}
        answer |= {"processing_time": 0, "timestamp": "2026-01-01T00:00:00+00:00"}
        headers = [(f"source-{name}", value.encode()) for name, value in source.items()]
        wire.produce(after.bootstrap_servers, topic_set.responses, [(b"r", json.dumps(answer).encode(), headers)])
        assert asked.wait(BACK_WITHIN) is not None, f"the response is not read: {client.trouble}"
        assert client.send({"id": "s"}) == "s"
