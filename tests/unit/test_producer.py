"""The producer around the client's own sender and accumulator, without a broker."""

from __future__ import annotations

import math
import random
import weakref
from types import SimpleNamespace

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.future import Future
from kafka.partitioner import DefaultPartitioner
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.sender import PartitionResponse, Sender
from kafka.record.memory_records import MemoryRecords

from gigaoffice_worker.broker.errors import HeldBackError, TopicUnavailableError
from gigaoffice_worker.broker.kafka_python.batching import BatchSpacing
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.core.records import OutgoingRecord

AT = TopicPartition("responses", 1)


class Scene:
    """A producer whose batches the test answers for, and what it has told of its records."""

    def __init__(self, acks: int = -1, linger_ms: int = 1) -> None:
        self.accumulator = RecordAccumulator(message_version=2, linger_ms=linger_ms, batch_size=400)
        metadata = SimpleNamespace(
            partitions_for_topic=lambda _: self.partitions,
            available_partitions_for_topic=lambda _: self.partitions,
            leader_for_partition=lambda _: 7,
            request_update=self._ask,
        )
        self.partitions: set[int] | None = {0, 1}
        self.answers, self.asked = True, 0
        self.under_way = 0
        self.woken = 0
        self.waits: list[object] = []
        network = SimpleNamespace(
            wakeup=self._wake,
            poll=lambda timeout_ms, future: self.waits.append(timeout_ms),
            send=lambda node, request: Future().success(None) if request == "no answer" else Future(),
            _sending=set(),
            _topics=set(),
            _conns={7: "connection"},
            cluster=metadata,
            in_flight_request_count=lambda node: self.under_way * (node == 7),
        )
        self.sender = Sender(network, metadata, self.accumulator, retries=0, metrics=None)
        client = SimpleNamespace(
            config={"acks": acks, "max_in_flight_requests_per_connection": 1, "max_request_size": 3_000_000},
            _accumulator=self.accumulator,
            _sender=self.sender,
            _metadata=metadata,
            partitions_for=lambda _: self.partitions,
            _transaction_manager=None,
        )
        self.producer = Producer(client, in_order=True)
        self.network = network
        self.told: dict[str, object] = {}

    def _wake(self) -> None:
        self.woken += 1

    def _ask(self) -> Future:
        self.asked += 1
        return Future().success(None) if self.answers else Future()

    def send(self, *names: str) -> None:
        for name in names:
            record = OutgoingRecord(AT.topic, name.encode(), b"x" * 100, [], AT.partition)
            self.producer.send(
                record,
                lambda partition, offset, name=name: self.told.update({name: (partition, offset)}),
                lambda error, name=name: self.told.update({name: error}),
            )

    def on_the_wire(self):
        return self.accumulator._batches[AT].popleft()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_each_record_of_a_batch_hears_where_it_landed(scene):
    scene.send("a", "b", "c", "d", "e")
    first, second = scene.on_the_wire(), scene.on_the_wire()
    scene.sender._complete_batch(second, PartitionResponse(error=None, base_offset=40, log_append_time=-1))
    assert scene.told == {"d": (1, 40), "e": (1, 41)}
    scene.sender._complete_batch(first, PartitionResponse(error=None, base_offset=7, log_append_time=-1))
    assert [scene.told[name] for name in "abc"] == [(1, 7), (1, 8), (1, 9)]


def test_newest_batch_of_a_partition_keeps_nothing_alive_once_it_is_answered(scene):
    class Outcome:
        def acknowledged(self, partition, offset):
            """Somebody's outcome is durable."""

    outcome = Outcome()
    alive = weakref.ref(outcome)
    record = OutgoingRecord(AT.topic, b"a", b"x", [], AT.partition)
    scene.producer.send(record, outcome.acknowledged, pytest.fail)
    scene.sender._complete_batch(scene.on_the_wire(), PartitionResponse(error=None, base_offset=7, log_append_time=-1))
    del outcome, record
    assert alive() is None


@pytest.mark.parametrize("refused", [{1: "too old"}, {0: "too old", 1: "too new"}])
def test_each_record_of_a_refused_batch_hears_the_error_of_the_batch_in_its_own_words(scene, refused):
    scene.send("a", "b", "c")
    answer = PartitionResponse(
        error=kafka_errors.InvalidTimestampError, record_errors=list(refused.items()), error_message="refused"
    )
    scene.sender._complete_batch(scene.on_the_wire(), answer)
    assert {type(error) for error in scene.told.values()} == {kafka_errors.InvalidTimestampError}
    words = [refused.get(number, "refused") for number in range(3)]
    assert [scene.told[name].args for name in "abc"] == [(each,) for each in words]


def test_each_record_of_a_batch_that_failed_hears_that_error(scene):
    scene.send("a", "b")
    answer = PartitionResponse(error=kafka_errors.TopicAuthorizationFailedError)
    scene.sender._complete_batch(scene.on_the_wire(), answer)
    assert {(type(error), error.args) for error in scene.told.values()} == {
        (kafka_errors.TopicAuthorizationFailedError, (AT.topic,))
    }


def refuse(scene, batch) -> None:
    scene.sender._complete_batch(batch, PartitionResponse(error=kafka_errors.TopicAuthorizationFailedError))


def test_what_waits_behind_a_failed_batch_is_taken_back_until_it_may_go(scene, monkeypatch):
    monkeypatch.setattr(scene.sender, "is_alive", lambda: True)
    scene.send("a", "b", "c", "d", "e", "f", "g")
    first = scene.on_the_wire()
    refuse(scene, first)
    assert isinstance(scene.told["a"], kafka_errors.TopicAuthorizationFailedError)
    assert {name: type(scene.told[name]) for name in "defg"} == dict.fromkeys("defg", HeldBackError)
    assert not scene.accumulator._batches[AT]
    assert not scene.accumulator.has_incomplete or scene.accumulator._incomplete.all() == [first]
    with pytest.raises(HeldBackError):
        scene.send("h")
    scene.producer.go_on()
    scene.send("a", "b")
    scene.sender._complete_batch(scene.on_the_wire(), PartitionResponse(error=None, base_offset=7, log_append_time=-1))
    assert (scene.told["a"], scene.told["b"]) == ((1, 7), (1, 8))


def test_another_partition_goes_on_behind_a_failed_batch(scene, monkeypatch):
    monkeypatch.setattr(scene.sender, "is_alive", lambda: True)
    other = OutgoingRecord(AT.topic, b"k", b"v", [], 0)
    scene.producer.send(other, lambda *at: scene.told.update(other=at), lambda error: None)
    scene.send("a")
    refuse(scene, scene.on_the_wire())
    scene.producer.send(other, lambda *at: None, lambda error: None)
    assert [batch.record_count for batch in scene.accumulator._batches[TopicPartition(AT.topic, 0)]] == [2]


def test_record_beyond_what_the_client_may_send_fails_by_its_size(scene):
    told = []
    record = OutgoingRecord(AT.topic, b"k", b"x" * 3_000_001, [], AT.partition)
    scene.producer.send(record, lambda *at: None, told.append)
    assert [type(error) for error in told] == [kafka_errors.MessageSizeTooLargeError]


def test_record_for_no_partition_goes_where_its_key_belongs(scene):
    for key in (b"a", b"b", b"a", b"c", b"d"):
        scene.producer.send(OutgoingRecord(AT.topic, key, b"v", []), lambda *at: None, lambda error: None)
    found = {}
    for partition in (0, 1):
        for batch in scene.accumulator._batches[TopicPartition(AT.topic, partition)]:
            batch.records.close()
            found |= {each.key: partition for each in MemoryRecords(batch.records.buffer()).next_batch()}
    assert found == {key: DefaultPartitioner()(key, [0, 1], [0, 1]) for key in (b"a", b"b", b"c", b"d")}


def test_topic_without_partitions_is_unavailable(scene):
    scene.partitions = None
    with pytest.raises(TopicUnavailableError, match="responses"):
        scene.send("a")


def test_request_that_is_not_tried_again_fails_its_records(scene):
    scene.send("a")
    scene.sender._failed_produce([scene.on_the_wire()], 0, kafka_errors.RequestTimedOutError("too slow"))
    assert isinstance(scene.told["a"], kafka_errors.RequestTimedOutError)
    assert "too slow" in str(scene.told["a"])


def test_sender_is_woken_for_a_new_batch_but_not_while_it_waits_for_an_answer(scene):
    scene.send("a", "b")
    assert scene.woken == 1
    scene.under_way = 1
    scene.send("c", "d", "e", "f")
    assert scene.woken == 1
    assert len(scene.accumulator._batches[AT]) == 2
    scene.under_way = 0
    scene.send("g", "h")
    assert scene.woken == 2


def test_batch_that_comes_alone_leaves_at_once_and_others_together():
    scene = Scene(linger_ms=60_000)
    scene.send("a")
    ready, _, _ = scene.accumulator.ready(scene.sender._metadata)
    assert ready == {7}
    scene.on_the_wire()
    scene.send("b")
    ready, left, _ = scene.accumulator.ready(scene.sender._metadata)
    assert ready == set()
    assert 0 < left <= 60


def test_record_that_must_be_small_has_a_batch_of_its_own_packed_by_zstd(scene):
    scene.send("a")
    value = random.Random(7).randbytes(300_000).hex().encode() * 3
    record = OutgoingRecord(AT.topic, b"k", value, [("h", b"v")], AT.partition)
    scene.producer.send(record, lambda *at: scene.told.update(small=at), lambda error: None, smallest=True)
    scene.send("b")
    assert [batch.record_count for batch in scene.accumulator._batches[AT]] == [1, 1, 1]
    scene.on_the_wire()
    batch = scene.on_the_wire()
    batch.records.set_producer_state(9, 0, 5, is_transactional=False)
    batch.records.close()
    assert batch.records.size_in_bytes() < 330_000
    read = MemoryRecords(batch.records.buffer()).next_batch()
    assert (read.compression_type, read.producer_id, read.base_sequence) == (4, 9, 5)
    assert read.validate_crc()
    assert [(each.key, each.value, each.headers) for each in read] == [(b"k", value, [("h", b"v")])]
    scene.sender._complete_batch(batch, PartitionResponse(error=None, base_offset=7, log_append_time=-1))
    assert scene.told["small"] == (1, 7)


def test_topic_that_the_client_does_not_know_is_asked_for_once(scene):
    assert scene.producer.knows(AT.topic, 0.0)
    assert scene.asked == 0
    scene.partitions = None
    assert scene.producer.knows(AT.topic, 0.0) is False
    assert (scene.asked, scene.woken) == (1, 2)
    scene.answers = False
    assert scene.producer.knows(AT.topic, 0.0) is None


@pytest.mark.parametrize(
    "begun, left",
    [
        ([0, 100, 200], [0, 100, 200]),
        ([0, 1, 2, 3.9, 4.5, 8.1], [0, 4, 4, 4, 8, 12]),
        ([0, 5, 6, 20, 21], [0, 5, 9, 20, 24]),
    ],
)
def test_batches_leave_apart(begun, left):
    spacing = BatchSpacing(4)
    assert [spacing.leaves_at(at) for at in begun] == left


def test_nothing_is_held_back_where_the_configuration_asks_for_no_linger():
    spacing = BatchSpacing(0)
    assert [spacing.leaves_at(at) for at in (0, 0.1, 0.2)] == [0, 0.1, 0.2]


def test_batches_keep_within_the_limit_of_the_topic(scene):
    scene.producer.limit_batches(250)
    scene.send("a", "b", "c")
    sizes = [batch.records.size_in_bytes() for batch in scene.accumulator._batches[AT]]
    assert len(sizes) == 3
    assert max(sizes) <= 250
    scene.producer.limit_batches(1 << 30)
    assert scene.accumulator.config["batch_size"] == 400


@pytest.mark.parametrize("wait, slept", [(0.4, 1), (3.0, 3), (3.2, 4), (math.inf, math.inf), (None, None)])
def test_sender_sleeps_whole_milliseconds(scene, wait, slept):
    scene.network.poll(timeout_ms=wait)
    assert scene.waits == [slept]


def test_request_without_an_answer_is_written_at_once():
    network = Scene(acks=0).network
    network.send(7, "answered later")
    assert network._sending == set()
    network.send(7, "no answer")
    assert network._sending == {"connection"}


def test_stopped_producer_frees_its_thread():
    client = KafkaProducer(bootstrap_servers="127.0.0.1:1", api_version=(2, 1, 0), acks=1, enable_idempotence=False)
    producer = Producer(client)
    assert not producer.broken
    assert producer.force_stop(5.0)
    assert producer.broken
