"""What the client gets wrong when brokers freeze or move, against real brokers that do."""

from __future__ import annotations

import contextlib
import time

import pytest
from kafka.errors import KafkaTimeoutError

from gigaoffice_worker.broker import clients
from gigaoffice_worker.broker.consumer import Committed, Consumer
from gigaoffice_worker.broker.errors import CommitRetriableError
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.config import load
from gigaoffice_worker.core.records import OutgoingRecord
from gigaoffice_worker.devkafka import KafkaCluster
from gigaoffice_worker.devkafka.ports import ReservedPorts
from tests.chaos.proxy import Proxy
from tests.support import wire
from tests.support.waiting import eventually

# librdkafka needs 8 s, of which our 5 s of patience are the most.
BACK_WITHIN = 15.0
QUESTIONS = {
    "one": lambda consumer: consumer.committed(0, 1.0),
    "several": lambda consumer: consumer.all_committed([0], 1.0).get(0),
}


def settings(bootstrap, topic_set):
    return load(
        {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA_TOPIC_REQUESTS": topic_set.requests,
            "KAFKA_CONSUMER_GROUP": topic_set.group,
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
    """A producer; yields a function that sends a record and returns whether it is acknowledged within `limit`."""
    producer = Producer(clients.producer(config, "test"))

    def send(limit):
        told = []
        record = OutgoingRecord(config.topics.requests.name, None, b"{}", [], 0)
        producer.send(record, lambda *place: told.append(place), told.append)
        deadline = time.monotonic() + limit
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(told) and isinstance(told[0], tuple)

    try:
        yield send
    finally:
        producer.force_stop(5.0)


@pytest.mark.parametrize("ask", QUESTIONS)
def test_late_answer_about_what_is_committed_is_not_taken_for_a_newer_question(topic_set, ask):
    with KafkaCluster() as cluster:
        wire.create_topics(cluster.bootstrap_servers, {topic_set.requests: 1})
        with member(settings(cluster.bootstrap_servers, topic_set)) as (consumer, poll):
            eventually(lambda: poll() or consumer.membership(), "the member to join")
            cluster.freeze(1)
            question = QUESTIONS[ask]
            with pytest.raises((CommitRetriableError, KafkaTimeoutError)):
                question(consumer)
            cluster.thaw(1)
            time.sleep(0.5)  # the answer to the first question has come
            consumer.commit({0: Committed(100, "map")}, 5.0)
            assert question(consumer) == Committed(100, "map")


def test_cluster_that_comes_back_under_other_addresses_is_found_at_the_configured_ones(topic_set, tmp_path):
    """The proxy is a load balancer in front of brokers that name their own addresses."""
    with contextlib.ExitStack() as stack:
        ports = stack.enter_context(contextlib.closing(ReservedPorts()))
        before = KafkaCluster(data_dir=tmp_path)
        stack.enter_context(before)
        old = before.port(1)
        wire.create_topics(before.bootstrap_servers, {topic_set.requests: 1})
        balancer = stack.enter_context(Proxy(ports.take_any(), old))
        config = settings(f"127.0.0.1:{balancer.port}", topic_set)
        consumer, poll = stack.enter_context(member(config))
        send = stack.enter_context(writer(config))
        assert send(10.0)
        eventually(poll, "the first record")
        before.stop()
        eventually(lambda: poll() and consumer.silent_for() > 0, "the consumer to see that nobody answers")
        after = stack.enter_context(KafkaCluster(data_dir=tmp_path))
        assert after.port(1) != old
        balancer.target = after.port(1)
        moved = time.monotonic()
        assert send(BACK_WITHIN), "the producer does not find the cluster"
        eventually(lambda: len(poll()) == 2, "the second record", timeout=BACK_WITHIN)
        assert time.monotonic() - moved < BACK_WITHIN
        assert consumer.silent_for() == 0
