"""The broker's side: topics, what is put into them, and what is found there afterwards. Through librdkafka."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from benchmarks.workloads import Request

LIMIT = 60.0
_MAX_BYTES = 16 * 1024 * 1024  # of a request, and of a batch of them


class Response(NamedTuple):
    """One response as it lies in the log; `written_at` is the broker's clock, in seconds."""

    written_at: float
    number: int
    started: float
    ended: float


class Stage:
    """One cluster, seen by whoever sets up a run and looks at what came of it."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})  # the cluster ends before it
        self._partitions: dict[str, int] = {}  # of the topics created here

    def create(self, topic: str, partitions: int) -> None:
        """Create a topic whose records carry the broker's clock."""
        settings = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(_MAX_BYTES)}
        new = NewTopic(topic, partitions, 1, config=settings)
        self._partitions[topic] = partitions
        self._admin.create_topics([new], operation_timeout=LIMIT)[topic].result(LIMIT)
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            try:
                self.count(topic)
                return
            except KafkaException:  # a leader is elected before it knows
                self._admin.list_topics(topic, timeout=LIMIT)  # or the client would go on asking who it knows
                time.sleep(0.02)
        raise TimeoutError(f"topic {topic} has no leader for each partition")

    def delete(self, topics: Iterable[str]) -> None:
        """Delete those of the topics that exist."""
        there = self._admin.list_topics(timeout=LIMIT).topics
        if known := [topic for topic in topics if topic in there]:
            for future in self._admin.delete_topics(known, operation_timeout=LIMIT).values():
                future.result(LIMIT)

    def fill(self, topic: str, requests: Iterable[Request]) -> None:
        """Put requests into a topic."""
        settings = {"compression.type": "lz4", "linger.ms": 20, "message.max.bytes": _MAX_BYTES}
        producer = Producer({"bootstrap.servers": self.bootstrap, **settings})
        for request in requests:
            while True:
                try:
                    producer.produce(topic, request.value, request.key)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        if producer.flush(LIMIT):
            raise TimeoutError(f"topic {topic} could not be filled within {LIMIT:.0f} s")

    def count(self, topic: str) -> int:
        """Return how many records a topic holds."""
        wanted = dict.fromkeys(self._each_partition(topic), OffsetSpec.latest())
        return sum(future.result(LIMIT).offset for future in self._admin.list_offsets(wanted).values())

    def places(self, topic: str) -> list[TopicPartition]:
        """Return the beginnings of a topic's partitions."""
        return [TopicPartition(topic, each.partition, OFFSET_BEGINNING) for each in self._each_partition(topic)]

    def _each_partition(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in range(self._partitions[topic])]

    def committed(self, group: str, topic: str) -> int:
        """Return how many records a group has committed."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
        try:
            places = consumer.committed(self._each_partition(topic), timeout=LIMIT)
            return sum(max(0, place.offset) for place in places)
        finally:
            consumer.close()

    def wait_for_members(self, group: str, count: int) -> None:
        """Wait until a group is stable with so many members that have partitions."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):  # the coordinator is no longer, or not yet, that of the group
                found = self._admin.describe_consumer_groups([group])[group].result(LIMIT)
                busy = [member for member in found.members if member.assignment and member.assignment.topic_partitions]
                if found.state.name == "STABLE" and len(busy) >= count:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"group {group} did not come to {count} members within {LIMIT:.0f} s")

    def responses(self, topic: str) -> list[Response]:
        """Return all responses of a topic, in the order in which they were written."""
        return sorted(map(_response, self._values(topic)))

    def _values(self, topic: str) -> list[tuple[int, bytes]]:
        count = self.count(topic)
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "benchmarks-reader"})
        try:
            consumer.assign(self.places(topic))
            found: list[tuple[int, bytes]] = []
            deadline = time.monotonic() + LIMIT
            while len(found) < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"topic {topic} was not read to its end within {LIMIT:.0f} s")
                for message in consumer.consume(1000, 0.2):
                    if message.error() is not None:
                        raise KafkaException(message.error())
                    found.append((message.timestamp()[1], message.value()))
            return found
        finally:
            consumer.close()


def _response(record: tuple[int, bytes]) -> Response:
    """Take a record apart. A response that tells of a failure is none that counts."""
    milliseconds, value = record
    body = json.loads(value)
    if body["status"] != "completed":
        raise ValueError(f"a request failed: {body['error']}")
    result = body["result"]
    return Response(milliseconds / 1000, result["number"], result["started"], result["ended"])
