"""Mini-workers, each with one well-known mistake, so that the checker can show that it would see it.

`python -m tests.chaos.broken MISTAKE` runs one. They read the worker's environment variables and call its test handler.
`sound` makes no mistake: it settles one request after the other, slowly and correctly.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from gigaoffice_worker import RejectedError, Request
from gigaoffice_worker.core.records import Deadline
from tests.support.handlers import handle

LIMIT = 20.0
ATTEMPTS = 5
REST = {"processing_time": 0, "timestamp": ""}


class MiniWorker:
    """Settles requests one by one: handle, dead letter, response, each acknowledged, then commit."""

    linger_ms = 0
    threads = 1

    def __init__(self) -> None:
        servers = {"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"]}
        self.requests = os.environ["KAFKA_TOPIC_REQUESTS"]
        group = os.environ["KAFKA_CONSUMER_GROUP"]
        self.consumer = Consumer({**servers, "group.id": group, "enable.auto.commit": False})
        self.producer = Producer({**servers, "acks": "all", "linger.ms": self.linger_ms})

    def run(self) -> None:
        """Read all partitions without joining the group, from what is committed on."""
        metadata = self.consumer.list_topics(self.requests, LIMIT).topics[self.requests]
        mine = [TopicPartition(self.requests, partition) for partition in metadata.partitions]
        committed = self.consumer.committed(mine, LIMIT)
        self.consumer.assign([TopicPartition(p.topic, p.partition, max(0, p.offset)) for p in committed])
        with ThreadPoolExecutor(self.threads) as pool:
            while True:
                batch = [message for message in self.consumer.consume(self.threads, 0.1) if message.error() is None]
                list(pool.map(self.settle, batch))
                self.batch_done(batch)

    def settle(self, message: Message) -> None:
        self.publish(message, *self.outcome(message))
        self.commit(message)

    def batch_done(self, batch: list[Message]) -> None:
        pass

    def outcome(self, message: Message) -> tuple[dict[str, Any], str | None]:
        """Return the response and the reason of a dead letter."""
        payload = json.loads(message.value())
        body = {"request_id": payload["id"], "status": "failed", "result": None, "error": {}, **REST}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                result = handle(_request(message, payload, attempt))
            except RejectedError:
                return body, "rejected"
            except ValueError:
                continue
            answered = not (isinstance(result, dict) and result.get("success") is False)
            return {**body, "status": "completed" if answered else "failed", "result": result}, None
        return body, "attempts-exhausted"

    def publish(self, message: Message, response: dict[str, Any], reason: str | None) -> None:
        source = [
            ("source-topic", message.topic().encode()),
            ("source-partition", str(message.partition()).encode()),
            ("source-offset", str(message.offset()).encode()),
        ]
        if reason is not None:
            original = [(name, value or b"") for name, value in message.headers() or []]
            self.dead_letter(message, [*original, ("dlq-reason", reason.encode()), *source])
        self.send(os.environ["KAFKA_TOPIC_RESPONSES"], message.key(), json.dumps(response).encode(), source)

    def dead_letter(self, message: Message, headers: list[tuple[str, bytes]]) -> None:
        self.send(os.environ["KAFKA_TOPIC_DLQ"], message.key(), message.value(), headers)

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        """Write a record and wait for its acknowledgement."""
        errors: list[object] = []
        self.producer.produce(topic, value, key, on_delivery=lambda error, _: errors.append(error), headers=headers)
        # An error of this client must not be held against None: that leaves a TypeError behind, for whoever comes next.
        if self.producer.flush(LIMIT) or not errors or errors[0] is not None:
            raise RuntimeError(f"not acknowledged: {', '.join(map(str, errors))}")

    def commit(self, message: Message) -> None:
        place = TopicPartition(message.topic(), message.partition(), message.offset() + 1)
        self.consumer.commit(offsets=[place], asynchronous=False)


class CommitsFirst(MiniWorker):
    """Commits before the work is done."""

    def settle(self, message: Message) -> None:
        self.commit(message)
        self.publish(message, *self.outcome(message))


class CommitsHighest(MiniWorker):
    """Works on several requests at once and commits the highest that is finished."""

    threads = 4

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.highest: dict[int, int] = {}

    def commit(self, message: Message) -> None:
        with self.lock:
            if message.offset() > self.highest.get(message.partition(), -1):
                self.highest[message.partition()] = message.offset()
                super().commit(message)


class FiresAndForgets(MiniWorker):
    """Hands responses to the client and takes that for delivered."""

    # Longer than a test: whenever it is killed, something is still with the client.
    linger_ms = 120_000

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        self.producer.produce(topic, value, key, headers=headers)
        self.producer.poll(0)


class SwallowsDeadLetters(MiniWorker):
    """Logs a dead letter that could not be written, and goes on."""

    def dead_letter(self, message: Message, headers: list[tuple[str, bytes]]) -> None:
        try:
            super().dead_letter(message, headers)
        except RuntimeError as error:
            print(error, flush=True)


class RewritesDeadLetters(MiniWorker):
    """Reads the value and writes it anew."""

    def dead_letter(self, message: Message, headers: list[tuple[str, bytes]]) -> None:
        value = json.dumps(json.loads(message.value()), indent=1).encode()
        self.send(os.environ["KAFKA_TOPIC_DLQ"], message.key(), value, headers)


class MixesKeys(MiniWorker):
    """Works on several requests of one key at once; it commits correctly, behind the whole batch."""

    threads = 4

    def settle(self, message: Message) -> None:
        self.publish(message, *self.outcome(message))

    def batch_done(self, batch: list[Message]) -> None:
        for message in batch:
            self.commit(message)


class PublishesTwice(MiniWorker):
    """Sends a response again although it was acknowledged."""

    def publish(self, message: Message, response: dict[str, Any], reason: str | None) -> None:
        super().publish(message, response, reason)
        super().publish(message, response, reason)


class GivesNoUp(MiniWorker):
    """Tries once more than it may."""

    def outcome(self, message: Message) -> tuple[dict[str, Any], str | None]:
        response, reason = super().outcome(message)
        if reason == "attempts-exhausted":
            try:
                handle(_request(message, json.loads(message.value()), ATTEMPTS + 1))
            except ValueError:
                return response, reason
        return response, reason


MISTAKES: dict[str, Callable[[], MiniWorker]] = {
    "sound": MiniWorker,
    "commits-first": CommitsFirst,
    "commits-highest": CommitsHighest,
    "fires-and-forgets": FiresAndForgets,
    "swallows-dead-letters": SwallowsDeadLetters,
    "rewrites-dead-letters": RewritesDeadLetters,
    "mixes-keys": MixesKeys,
    "publishes-twice": PublishesTwice,
    "tries-too-often": GivesNoUp,
}


def _request(message: Message, payload: dict[str, Any], attempt: int) -> Request:
    return Request(
        payload,
        payload["id"],
        message.key(),
        {},
        attempt,
        Deadline(time.monotonic() + LIMIT),
        message.topic(),
        message.partition(),
        message.offset(),
        time.time(),
    )


if __name__ == "__main__":
    MISTAKES[sys.argv[1]]().run()
