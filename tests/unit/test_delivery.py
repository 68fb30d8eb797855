"""Delivery against a producer whose acknowledgements the test gives or withholds."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import errors as kafka_errors
from structlog.testing import capture_logs

from gigaoffice_worker.broker.errors import HeldBackError, TopicUnavailableError
from gigaoffice_worker.core.messages import RecordEncoder, last_values
from gigaoffice_worker.core.records import Failure, Outcome, OutgoingRecord, Reason
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.delivery import BLOCKED_AFTER, Delivery
from gigaoffice_worker.engine.output_topic import State
from gigaoffice_worker.engine.supervised_producer import ABANDON_AFTER
from gigaoffice_worker.observe.metrics import Metrics, total
from tests.support.making import Partition, answered
from tests.support.waiting import eventually

RESPONSES, DLQ = "responses", "dead-letters"
TIMEOUT = 120.0
TOO_LARGE = kafka_errors.MessageSizeTooLargeError("too large")
REFUSED = kafka_errors.TopicAuthorizationFailedError("not allowed")
HELD_BACK = HeldBackError("behind a failed one")
STUCK = kafka_errors.KafkaTimeoutError("batch expired")

ANSWER = answered({"a": 1})
DEAD = Outcome(failure=Failure("ValueError", "bad"), reason=Reason.ATTEMPTS_EXHAUSTED)
INVALID = Outcome(failure=Failure("InvalidRequest", "not JSON"), reason=Reason.INVALID_REQUEST)


@dataclass(eq=False)
class Sent:
    """A record in the hands of a producer, and how to answer for it."""

    record: OutgoingRecord
    acknowledge: Callable[[int, int], None]
    fail: Callable[[BaseException], None]
    smallest: bool = False

    @property
    def offset(self) -> int:
        """The offset of the request that it is about."""
        return int(last_values(self.record.headers)["source-offset"])

    def __repr__(self) -> str:
        return f"{self.record.topic}-{self.offset}"


class FakeProducer:
    """A producer that keeps what it is given until the test answers."""

    def __init__(self) -> None:
        self.on_wire: list[Sent] = []
        self.broken = False
        self.topics = {RESPONSES, DLQ}
        self.silent = False
        self.sizes: list[int] = []
        self.went_on = 0
        self.batch_limit = 0
        self.raises: Exception | None = None
        self.ends = True
        self.stopped = False

    def send(
        self,
        record: OutgoingRecord,
        acknowledged: Callable[[int, int], None],
        failed: Callable[[BaseException], None],
        *,
        smallest: bool = False,
    ) -> None:
        if self.raises is not None:
            raise self.raises
        self.on_wire.append(Sent(record, acknowledged, failed, smallest))
        self.sizes.append(record.size)

    def go_on(self) -> None:
        assert self.on_wire == []
        self.went_on += 1

    def limit_batches(self, size: int) -> None:
        self.batch_limit = size

    def knows(self, topic: str, timeout: float) -> bool | None:
        return None if self.silent else topic in self.topics

    def force_stop(self, timeout: float) -> bool:
        self.stopped = True
        return self.ends


class HandlerCalls:
    """What the dispatcher would be told."""

    def __init__(self) -> None:
        self.freed: list[int] = []
        self.held = False
        self.holds = 0

    def free(self, work: Work) -> None:
        self.freed.append(work.record.offset)

    def hold(self, reason: str) -> None:
        assert not self.held
        self.held = True
        self.holds += 1

    def release(self, reason: str) -> None:
        assert self.held
        self.held = False


class Ended(NamedTuple):
    offset: int
    reason: Reason | None


@dataclass
class Scene:
    """A delivery whose thread is the test: it turns when told to, at a time that the test sets."""

    now: float = 1000.0
    partitions: int = 4
    producers: dict[str, list[FakeProducer]] = field(default_factory=lambda: {RESPONSES: [], DLQ: []})
    unreachable: Exception | None = None
    died: list[BaseException] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.partition = Partition()
        self.calls = HandlerCalls()
        self.metrics = Metrics("0")
        self.delivery = self.make_delivery(clock=lambda: self.now)
        self.know(1_000_000)
        for topic in self.delivery._topics.values():
            topic.producer.start()

    def make_delivery(self, **options: Any) -> Delivery:
        return Delivery(
            RecordEncoder(RESPONSES, DLQ, "group", "0"),
            self._make_producer,
            self.calls,
            self.metrics,
            self.died.append,
            delivery_timeout=TIMEOUT,
            **options,
        )

    @property
    def freed(self) -> list[int]:
        return self.calls.freed

    @property
    def held(self) -> bool:
        return self.calls.held

    @property
    def holds(self) -> int:
        return self.calls.holds

    @property
    def sent(self) -> dict[str, float]:
        samples = next(iter(self.metrics.messages_sent.collect())).samples
        return {sample.labels["topic"]: sample.value for sample in samples}

    @property
    def rebuilt(self) -> int:
        return total(self.metrics.producer_rebuilds)

    @property
    def failed_sends(self) -> float:
        return total(self.metrics.publish_failures)

    def _make_producer(self, suffix: str) -> Any:
        if self.unreachable is not None:
            raise self.unreachable
        made = FakeProducer()
        self.producers[DLQ if suffix else RESPONSES].append(made)
        return made

    def know(self, limit: int, *topics: str) -> None:
        for topic in topics or (RESPONSES, DLQ):
            self.delivery.know(topic, max_message_bytes=limit, partitions=self.partitions)
        self.delivery.request_partitions = 4

    # What handler threads do

    def deliver(
        self, outcome: Outcome = ANSWER, *, key: bytes | None = b"k", request_id: str = "r", value: bytes = b"{}"
    ) -> Work:
        work = self.partition.work(key, value=value, request_id=request_id)
        if self.delivery.deliver(work, outcome):
            self.freed.append(work.record.offset)
        return work

    # What the cluster does

    @property
    def producer(self) -> FakeProducer:
        """The producer of responses."""
        return self.producers[RESPONSES][-1]

    @property
    def dlq_producer(self) -> FakeProducer:
        return self.producers[DLQ][-1]

    def in_flight(self, topic: str | None = None) -> list[Sent]:
        return [sent for name in (DLQ, RESPONSES) if topic in (None, name) for sent in self.producers[name][-1].on_wire]

    def on_wire(self, topic: str = RESPONSES) -> list[int]:
        return [sent.offset for sent in self.in_flight(topic)]

    def answer(self, *, error: BaseException | None = None, topic: str | None = None, count: int | None = None) -> None:
        """Answer for the first `count` letters on their way, or for all."""
        chosen = self.in_flight(topic)[:count]
        assert chosen
        for sent in chosen:
            self.producers[sent.record.topic][-1].on_wire.remove(sent)
            if error is None:
                sent.acknowledge(0, 7)
            else:
                sent.fail(error)

    # What the threads of the worker do

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.delivery._turn(self.now)

    def collect(self) -> list[Ended]:
        found = [Ended(done.work.record.offset, done.outcome.reason) for done in self.delivery.collect()]
        self.ended += found
        return found

    def let_all_through(self) -> None:
        """Answer whatever is sent with an acknowledgement until nothing is left to do."""
        for _ in range(200):
            self.turn(0.25)
            if not self.in_flight():
                if all(t.state is State.OPEN and t.oldest() is None for t in self.delivery._topics.values()):
                    self.turn()
                    self.collect()
                    return
                continue
            self.answer()
        raise AssertionError("delivery does not come to rest")


def response(sent: Sent) -> dict[str, Any]:
    assert sent.record.value is not None
    found: dict[str, Any] = json.loads(sent.record.value)
    return found


# An outcome's way


def test_an_answer_opens_its_key_when_handed_over_and_counts_when_acknowledged() -> None:
    scene = Scene()
    work = scene.deliver()
    assert scene.freed == [0]
    assert response(scene.producer.on_wire[0])["result"] == {"a": 1}
    assert scene.collect() == []
    assert scene.delivery.unsettled_bytes == scene.producer.on_wire[0].record.size
    scene.answer()
    (delivered,) = scene.delivery.collect()
    assert (delivered.work, delivered.outcome) == (work, ANSWER)
    assert scene.sent == {RESPONSES: 1}
    assert scene.delivery.unsettled_bytes == 0
    scene.turn()
    assert scene.delivery.collect() == []
    assert scene.freed == [0]


def test_a_dead_letter_is_acknowledged_before_its_response_is_sent() -> None:
    scene = Scene()
    scene.deliver(DEAD)
    assert (scene.on_wire(DLQ), scene.on_wire(), scene.freed) == ([0], [], [])
    scene.turn()
    assert scene.on_wire() == []
    scene.answer()
    assert scene.collect() == []
    scene.turn()
    assert scene.on_wire() == [0]
    assert response(scene.producer.on_wire[0])["error"] == {"type": "ValueError", "message": "bad"}
    assert scene.freed == [0]
    scene.answer()
    assert scene.collect() == [Ended(0, Reason.ATTEMPTS_EXHAUSTED)]
    assert scene.sent == {DLQ: 1, RESPONSES: 1}
    assert scene.delivery.unsettled_bytes == 0


def test_what_cannot_be_answered_is_only_dead_lettered() -> None:
    scene = Scene()
    scene.deliver(INVALID, request_id="")
    assert scene.freed == [0]
    scene.answer()
    scene.turn()
    assert scene.producer.on_wire == []
    assert scene.collect() == [Ended(0, Reason.INVALID_REQUEST)]


@pytest.mark.parametrize("partitions, expected", [(4, 3), (5, None)])
def test_responses_stand_in_the_partition_of_their_request_where_the_topics_match(
    partitions: int, expected: int | None
) -> None:
    scene = Scene(partitions=partitions)
    scene.partition = Partition(3)
    scene.deliver()
    assert scene.producer.on_wire[0].record.partition == expected


# Failures


def test_after_a_failure_nothing_newer_passes_and_the_first_order_is_kept() -> None:
    scene = Scene()
    for _ in range(4):
        scene.deliver()
    scene.answer(count=1)
    scene.answer(error=REFUSED)
    scene.deliver()
    scene.turn()
    scene.turn(0.19)
    assert scene.on_wire() == []
    scene.deliver()
    scene.turn(0.02)
    assert scene.on_wire() == [1]
    scene.answer()
    scene.turn()
    assert scene.on_wire() == [2, 3, 4, 5]
    scene.answer()
    scene.turn()
    scene.deliver()
    assert scene.on_wire() == [6]
    scene.answer()
    assert [offset for offset, _ in [*scene.ended, *scene.collect()]] == [0, 1, 2, 3, 4, 5, 6]
    assert scene.freed == [0, 1, 2, 3, 4, 5, 6]
    assert scene.failed_sends == 3
    assert scene.delivery.unsettled_bytes == 0


def test_nothing_is_sent_again_while_an_older_send_has_no_answer() -> None:
    scene = Scene()
    for _ in range(3):
        scene.deliver()
    scene.answer(error=REFUSED, count=1)
    scene.turn()
    scene.turn(5)
    assert scene.on_wire() == [1, 2]
    scene.answer()
    scene.turn()
    assert scene.on_wire() == [0]


def test_one_topic_in_trouble_does_not_hold_the_other_back() -> None:
    scene = Scene()
    scene.deliver(DEAD)
    scene.answer(error=REFUSED)
    scene.deliver()
    scene.turn()
    assert (scene.on_wire(DLQ), scene.on_wire()) == ([], [1])
    scene.answer()
    assert scene.collect() == [Ended(1, None)]


def test_a_refused_topic_is_tried_with_growing_distance_and_heals() -> None:
    scene, gaps, since = Scene(), [], 0.0
    for _ in range(3):
        scene.deliver()
    scene.answer(error=REFUSED)
    while len(gaps) < 9:
        scene.turn(0.1)
        since += 0.1
        if scene.producer.on_wire:
            assert scene.on_wire() == [0]
            scene.answer(error=REFUSED)
            gaps.append(since)
            since = 0.0
    assert gaps == pytest.approx([0.3, 0.4, 0.8, 1, 1, 1, 1, 1, 1], abs=0.25)
    trouble = scene.delivery.trouble()[RESPONSES]
    assert "TopicAuthorizationFailedError not allowed. Grant the user" in trouble
    assert scene.rebuilt == 0
    scene.let_all_through()
    assert scene.ended == [Ended(0, None), Ended(1, None), Ended(2, None)]
    assert scene.delivery.trouble() == {}
    # A new trouble begins with a short wait again.
    scene.deliver()
    scene.answer(error=REFUSED)
    scene.turn()
    scene.turn(0.21)
    assert scene.on_wire() == [3]


@pytest.mark.parametrize("error", [TopicUnavailableError("no such topic"), TOO_LARGE, REFUSED])
def test_a_send_that_raises_is_sent_again_like_one_that_fails(error: Exception) -> None:
    scene = Scene()
    scene.producer.raises = error
    scene.deliver()
    scene.deliver()
    assert scene.producer.on_wire == []
    scene.producer.raises = None
    scene.let_all_through()
    assert [ended.offset for ended in scene.ended] == [0, 1]
    assert scene.rebuilt == 0


def test_what_was_held_back_follows_behind_what_failed_and_is_no_failure() -> None:
    scene = Scene()
    for _ in range(4):
        scene.deliver()
    # As the producer does it: the newer ones are taken back before the older ones are told.
    older, newer = scene.in_flight()[:2], scene.in_flight()[2:]
    scene.producer.on_wire.clear()
    for sent in newer:
        sent.fail(HELD_BACK)
    scene.turn()
    assert scene.on_wire() == []
    for sent in older:
        sent.fail(REFUSED)
    scene.turn()
    assert scene.producer.went_on == 0
    assert "TopicAuthorizationFailedError" in scene.delivery._responses.trouble
    scene.turn(0.21)
    assert scene.producer.went_on == 1
    assert scene.on_wire() == [0]
    scene.let_all_through()
    assert [offset for offset, _ in scene.ended] == [0, 1, 2, 3]
    assert scene.failed_sends == 2


def test_a_send_that_comes_just_behind_a_failure_follows_in_its_order() -> None:
    scene = Scene()
    scene.deliver()
    scene.producer.raises = HELD_BACK
    scene.deliver()
    scene.answer(error=REFUSED)
    scene.producer.raises = None
    scene.let_all_through()
    assert [offset for offset, _ in scene.ended] == [0, 1]
    assert scene.failed_sends == 1


# Sizes


def test_batches_keep_within_what_their_topic_takes_also_those_of_a_new_producer() -> None:
    scene = Scene()
    scene.know(4000, RESPONSES)
    assert (scene.producer.batch_limit, scene.dlq_producer.batch_limit) == (4000, 1_000_000)
    scene.producer.broken = True
    scene.turn()
    assert (len(scene.producers[RESPONSES]), scene.producer.batch_limit) == (2, 4000)


def test_a_batch_that_is_too_large_is_sent_one_by_one_and_only_the_culprit_is_replaced() -> None:
    scene = Scene()
    scene.deliver()
    scene.deliver(answered("x" * 5000))
    scene.deliver()
    scene.answer(error=TOO_LARGE)
    seen = []
    with capture_logs() as logs:
        for _ in range(3):
            scene.turn()
            seen.append(scene.on_wire())
            scene.answer(topic=RESPONSES, error=TOO_LARGE if scene.on_wire() == [1] else None)
    assert seen == [[0], [1], [2]]
    scene.turn()
    dead = scene.dlq_producer.on_wire[0].record
    assert last_values(dead.headers)["dlq-reason"] == b"response-too-large"
    assert dead.value == b"{}"
    [told] = [line for line in logs if line["event"] == "Request goes to the dead letter queue"]
    assert (told["log_level"], told["request_id"], told["reason"]) == ("warning", "r", "response-too-large")
    scene.answer()
    scene.turn()
    small = response(scene.producer.on_wire[0])
    assert (small["status"], small["result"], small["error"]["type"]) == ("failed", None, "ResponseTooLarge")
    scene.answer()
    scene.turn()
    assert sorted(scene.collect()) == [Ended(0, None), Ended(1, Reason.RESPONSE_TOO_LARGE), Ended(2, None)]
    assert scene.freed == [0, 1, 2]
    assert scene.delivery.unsettled_bytes == 0


def test_a_culprit_that_was_replaced_leaves_its_topic_in_no_trouble() -> None:
    scene = Scene()
    scene.know(2000, RESPONSES)
    scene.deliver(answered("x" * 5000))
    scene.turn()
    scene.answer(error=TOO_LARGE)
    scene.let_all_through()
    scene.deliver()
    scene.deliver()
    assert scene.on_wire() == [1, 2]
    # The next failure is the first of its series.
    scene.answer(error=REFUSED)
    scene.turn()
    scene.turn(0.21)
    assert scene.on_wire() == [1]


def test_a_response_that_may_not_fit_goes_alone_and_keeps_its_key_closed_until_it_is_acknowledged() -> None:
    scene = Scene()
    scene.know(1000)
    scene.deliver()
    scene.deliver(answered("x" * 900))
    scene.deliver()
    assert (scene.on_wire(), scene.freed) == ([0], [0, 2])
    scene.turn()
    assert scene.on_wire() == [0]
    scene.answer()
    scene.turn()
    assert scene.on_wire() == [1]
    scene.answer()
    assert scene.freed == [0, 2]
    scene.turn()
    assert (scene.on_wire(), scene.freed) == ([2], [0, 2, 1])
    scene.answer()
    scene.turn()
    assert [offset for offset, _ in scene.collect()] == [0, 1, 2]
    assert scene.freed == [0, 2, 1]


def test_a_response_that_may_not_fit_behind_a_dead_letter_keeps_its_key_closed_too() -> None:
    scene = Scene()
    scene.know(700, RESPONSES)
    scene.deliver(DEAD._replace(failure=Failure("ValueError", "x" * 700)))
    scene.answer()
    scene.turn()
    scene.turn()
    assert (scene.on_wire(), scene.freed) == ([0], [])
    scene.answer()
    scene.turn()
    assert scene.freed == [0]
    assert scene.collect() == [Ended(0, Reason.ATTEMPTS_EXHAUSTED)]


def test_when_no_response_fits_the_dead_letter_is_the_outcome() -> None:
    scene = Scene()
    scene.know(100, RESPONSES)
    scene.deliver(answered("x" * 900), key=b"k" * 200)
    scene.turn()
    scene.answer(error=TOO_LARGE, topic=RESPONSES)
    scene.turn()
    scene.answer(topic=DLQ)
    scene.turn()
    scene.turn()
    scene.answer(error=TOO_LARGE, topic=RESPONSES)
    scene.let_all_through()
    assert scene.ended == [Ended(0, Reason.RESPONSE_TOO_LARGE)]
    assert scene.sent == {DLQ: 1}
    assert scene.freed == [0]
    assert scene.delivery.unsettled_bytes == 0


def refused_dead_letter(scene: Scene) -> int:
    """Deliver a dead letter that is refused in a batch, alone, and packed as small as can be; return its offset."""
    offset = scene.deliver(DEAD, key=b"large").record.offset
    for packed in (False, False, True):
        assert scene.on_wire(DLQ) == [offset]
        assert scene.in_flight(DLQ)[0].smallest is packed
        scene.answer(error=TOO_LARGE, topic=DLQ)
        scene.turn()
    return offset


def test_a_dead_letter_that_its_topic_refuses_is_packed_smaller() -> None:
    scene = Scene()
    scene.deliver(DEAD)
    for _ in range(2):
        scene.answer(error=TOO_LARGE, topic=DLQ)
        scene.turn()
    assert scene.in_flight(DLQ)[0].smallest
    scene.let_all_through()
    assert scene.ended == [Ended(0, Reason.ATTEMPTS_EXHAUSTED)]
    assert scene.delivery.trouble() == {}


def test_a_dead_letter_that_its_topic_refuses_holds_no_other_one_back_and_is_never_given_up() -> None:
    scene = Scene()
    refused_dead_letter(scene)
    scene.deliver(DEAD)
    assert scene.on_wire(DLQ) == [1]
    scene.answer()
    scene.turn()
    scene.answer()
    assert scene.collect() == [Ended(1, Reason.ATTEMPTS_EXHAUSTED)]
    gaps, since = [], 0.0
    while len(gaps) < 9:
        scene.turn(0.1)
        since += 0.1
        if scene.in_flight(DLQ):
            assert scene.in_flight(DLQ)[0].smallest
            scene.answer(error=TOO_LARGE, topic=DLQ)
            gaps.append(since)
            since = 0.0
    assert gaps == pytest.approx([0.3, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10], abs=0.25)
    assert not scene.held
    size = scene.dlq_producer.sizes[-1]
    assert scene.delivery.trouble() == {DLQ: f"the topic refuses a record of {size} bytes: raise its max.message.bytes"}
    scene.turn()
    scene.let_all_through()
    assert scene.ended == [Ended(1, Reason.ATTEMPTS_EXHAUSTED), Ended(0, Reason.ATTEMPTS_EXHAUSTED)]
    assert scene.freed == [1, 0]
    assert scene.delivery.unsettled_bytes == 0


def test_once_the_smallest_refused_dead_letter_passes_the_others_follow() -> None:
    scene = Scene()
    for _ in range(3):
        refused_dead_letter(scene)
    scene.turn(0.1)
    assert scene.on_wire(DLQ) == []
    scene.turn(10)
    for _ in range(3):
        assert len(scene.on_wire(DLQ)) == 1
        scene.answer(topic=DLQ)
        scene.turn()
    scene.let_all_through()
    assert sorted(ended.offset for ended in scene.ended) == [0, 1, 2]


def test_a_refused_dead_letter_is_tried_as_soon_as_its_topic_is_known_to_take_more() -> None:
    scene = Scene()
    refused_dead_letter(scene)
    for _ in range(8):
        scene.turn(10)
        scene.answer(error=TOO_LARGE, topic=DLQ)
        scene.turn()
    scene.know(2_000_000, DLQ)
    scene.turn(0.25)
    assert scene.on_wire(DLQ) == [0]


def test_a_refused_dead_letter_of_a_lost_partition_is_dropped_and_those_of_ours_stay() -> None:
    scene, lost, ours = Scene(), Partition(0), Partition(1, position=10)
    for scene.partition in (lost, ours):
        refused_dead_letter(scene)
    lost.assignment.lost = True
    scene.turn()
    [letter] = scene.delivery._dlq._set_aside
    assert (letter.outcome.work.assignment, scene.delivery.unsettled_bytes) == (ours.assignment, letter.size)
    ours.assignment.lost = True
    scene.turn(6)
    assert scene.delivery.unsettled_bytes == 0
    assert scene.delivery.trouble() == {}
    scene.turn(60)
    assert scene.in_flight() == []
    assert (scene.freed, scene.ended) == ([], [])


def test_a_refused_dead_letter_whose_partition_is_lost_while_it_is_tried_again_is_dropped_behind_that() -> None:
    scene = Scene()
    refused_dead_letter(scene)
    scene.turn(10)
    assert scene.on_wire(DLQ) == [0]
    scene.partition.assignment.lost = True
    scene.turn(6)
    assert "raise its max.message.bytes" in scene.delivery.trouble()[DLQ]
    scene.partition = Partition(1, position=1)
    scene.deliver(DEAD)
    scene.answer(error=TOO_LARGE, topic=DLQ)
    scene.turn()
    scene.turn()
    assert scene.on_wire(DLQ) == [1]
    scene.let_all_through()
    assert scene.ended == [Ended(1, Reason.ATTEMPTS_EXHAUSTED)]
    assert scene.delivery.unsettled_bytes == 0


def test_a_refused_dead_letter_shares_no_batch_when_it_is_tried_again() -> None:
    scene = Scene()
    refused_dead_letter(scene)
    scene.deliver(DEAD)
    scene.turn(10)
    assert scene.on_wire(DLQ) == [1]
    scene.answer(topic=DLQ)
    scene.turn()
    assert scene.on_wire(DLQ) == [0]
    scene.deliver(DEAD)
    assert scene.on_wire(DLQ) == [0]
    scene.answer(topic=DLQ, error=TOO_LARGE)
    scene.turn()
    assert scene.on_wire(DLQ) == [2]


def test_a_missing_topic_is_not_sent_to_before_it_is_back() -> None:
    scene = Scene()
    scene.dlq_producer.topics.clear()
    scene.deliver(DEAD)
    scene.answer(error=TopicUnavailableError("no metadata"))
    for _ in range(40):
        scene.turn(0.25)
        assert scene.on_wire(DLQ) == []
    assert "missing" in scene.delivery.trouble()[DLQ]
    scene.dlq_producer.topics.add(DLQ)
    for _ in range(5):
        scene.turn(0.25)
    assert scene.on_wire(DLQ) == [0]
    scene.let_all_through()
    assert scene.ended == [Ended(0, Reason.ATTEMPTS_EXHAUSTED)]


# A producer in doubt


def test_a_stuck_producer_is_stopped_and_all_that_has_no_answer_is_sent_again_in_its_first_order() -> None:
    scene = Scene()
    for _ in range(5):
        scene.deliver()
    scene.deliver(DEAD)
    old, other = scene.producer, scene.dlq_producer
    scene.answer(count=2, topic=RESPONSES)
    scene.answer(error=STUCK, count=1, topic=RESPONSES)
    scene.turn()
    assert old.stopped
    assert scene.producer is not old
    scene.turn()
    # One record to try it with, then the rest.
    assert scene.on_wire() == [2]
    scene.answer()
    scene.turn()
    assert scene.on_wire() == [3, 4, 5]
    scene.let_all_through()
    assert [offset for offset, _ in scene.ended] == [0, 1, 2, 3, 4, 5]
    assert scene.rebuilt == 1
    assert scene.delivery.unsettled_bytes == 0
    # Dead letters have a producer of their own, which is not in doubt.
    assert scene.dlq_producer is other
    assert not other.stopped


def test_a_stuck_producer_of_dead_letters_is_replaced_and_no_response_is_sent_twice() -> None:
    scene = Scene()
    scene.deliver()
    scene.deliver(DEAD)
    responses, old = scene.producer, scene.dlq_producer
    scene.answer(error=STUCK, topic=DLQ)
    scene.turn()
    assert (old.stopped, responses.stopped) == (True, False)
    assert scene.on_wire() == [0]
    assert not scene.held
    scene.let_all_through()
    assert [offset for offset, _ in scene.ended] == [0, 1]


def test_late_answers_of_the_old_producer_count_for_nothing() -> None:
    scene = Scene()
    for _ in range(3):
        scene.deliver()
    old = list(scene.producer.on_wire)
    scene.producer.broken = True
    scene.turn()
    scene.turn()
    assert scene.on_wire() == [0, 1, 2]
    old[0].acknowledge(0, 7)
    old[1].fail(STUCK)
    old[2].fail(TOO_LARGE)
    scene.turn()
    assert scene.collect() == []
    assert scene.on_wire() == [0, 1, 2]
    assert (scene.rebuilt, scene.failed_sends) == (1, 0)
    scene.let_all_through()
    assert [offset for offset, _ in scene.ended] == [0, 1, 2]
    assert scene.delivery.unsettled_bytes == 0


def test_a_topic_in_trouble_is_tried_with_one_letter_also_by_a_new_producer() -> None:
    scene = Scene()
    for _ in range(3):
        scene.deliver()
    scene.answer(error=REFUSED)
    scene.turn()
    scene.turn(1)
    assert scene.on_wire() == [0]
    scene.producer.broken = True
    scene.turn()
    scene.turn()
    assert scene.on_wire() == [0]
    scene.let_all_through()
    assert [offset for offset, _ in scene.ended] == [0, 1, 2]


def test_a_send_without_an_answer_past_every_time_out_is_doubted() -> None:
    scene = Scene()
    scene.deliver()
    scene.turn(TIMEOUT + ABANDON_AFTER)
    assert scene.rebuilt == 0
    scene.turn(0.1)
    assert scene.rebuilt == 1


@pytest.mark.parametrize("rebuilt", [0, 1])
def test_a_client_without_an_answer_about_its_topic_is_doubted_but_not_one_whose_topic_is_missing(rebuilt: int) -> None:
    scene = Scene()
    scene.deliver()
    scene.answer(error=REFUSED)
    scene.turn()
    scene.producer.topics.clear()
    scene.producer.silent = rebuilt == 1
    scene.turn(1)
    scene.turn(TIMEOUT + ABANDON_AFTER)
    assert scene.rebuilt == 0
    scene.turn(0.1)
    assert scene.rebuilt == rebuilt


def test_an_outcome_that_has_waited_long_does_not_cast_doubt_on_the_client_that_sends_it_now() -> None:
    scene = Scene()
    scene.deliver()
    for _ in range(30):
        scene.answer(error=REFUSED)
        scene.turn()
        scene.turn(10)
        # The answer takes its time, and other threads wake delivery meanwhile.
        for _ in range(5):
            scene.turn(0.5)
        assert scene.on_wire() == [0]
    assert scene.rebuilt == 0


@pytest.mark.parametrize("error", [STUCK, kafka_errors.OutOfOrderSequenceNumberError(), RuntimeError("client bug")])
def test_whatever_a_send_fails_with_it_is_sent_again(error: Exception) -> None:
    scene = Scene()
    scene.deliver()
    scene.answer(error=error)
    scene.let_all_through()
    assert scene.ended == [Ended(0, None)]
    assert scene.rebuilt == 1


def test_a_producer_is_rebuilt_until_the_cluster_is_back_and_everything_waits_for_it() -> None:
    scene, tries = Scene(), 0
    scene.deliver()
    scene.unreachable = ConnectionError("no broker")
    scene.answer(error=STUCK)
    for _ in range(240):
        before = scene.delivery._responses.producer._rebuilds.due
        scene.turn(0.25)
        tries += scene.delivery._responses.producer._rebuilds.due != before
        scene.deliver()
    assert 5 < tries < 15
    assert scene.rebuilt == 0
    assert scene.producer.on_wire == []
    scene.unreachable = None
    scene.now += 10
    scene.let_all_through()
    assert [offset for offset, _ in scene.ended] == list(range(241))
    assert scene.rebuilt == 1
    assert scene.delivery.unsettled_bytes == 0


def test_a_producer_that_does_not_end_is_kept_and_not_listened_to() -> None:
    scene = Scene()
    scene.deliver()
    old = scene.producer
    old.ends = False
    old.broken = True
    scene.turn()
    assert scene.delivery._responses.producer._retired == [old]
    old.on_wire[0].acknowledge(0, 7)
    assert scene.collect() == []
    scene.let_all_through()
    assert scene.ended == [Ended(0, None)]


# Holding handler calls


def test_handler_calls_are_held_while_an_outcome_is_undelivered_for_too_long() -> None:
    scene = Scene()
    scene.deliver()
    scene.turn(BLOCKED_AFTER)
    assert not scene.held
    scene.turn(0.1)
    assert scene.held
    assert scene.delivery.trouble() == {RESPONSES: "no acknowledgement from the cluster"}
    scene.turn(1)
    scene.answer()
    scene.turn()
    assert not scene.held
    assert scene.holds == 1
    assert scene.delivery.trouble() == {}


def test_handler_calls_stay_held_while_responses_wait_to_be_sent_again() -> None:
    scene = Scene()
    scene.deliver()
    scene.answer(error=REFUSED)
    scene.turn(BLOCKED_AFTER + 0.1)
    assert scene.held
    for _ in range(20):
        scene.turn(2)
        assert scene.held
        if scene.producer.on_wire:
            scene.answer(error=REFUSED)
    scene.unreachable = ConnectionError("no broker")
    scene.producer.broken = True
    for _ in range(5):
        scene.turn(2)
        assert scene.held
    scene.unreachable = None
    scene.now += 10
    scene.let_all_through()
    scene.turn()
    assert not scene.held
    assert scene.holds == 1


def test_handler_calls_go_on_while_only_dead_letters_cannot_be_delivered() -> None:
    scene = Scene()
    scene.deliver(DEAD)
    scene.answer(error=REFUSED)
    for _ in range(20):
        scene.turn(2)
        if scene.in_flight(DLQ):
            scene.answer(error=REFUSED)
    scene.unreachable = ConnectionError("no broker")
    scene.dlq_producer.broken = True
    for _ in range(5):
        scene.turn(2)
        scene.deliver()
        scene.answer(topic=RESPONSES)
    assert scene.holds == 0
    assert list(scene.delivery.trouble()) == [DLQ]
    assert len(scene.collect()) == 5


# The thread


def test_the_thread_sends_the_response_as_soon_as_the_dead_letter_is_acknowledged() -> None:
    scene = Scene()
    scene.delivery = scene.make_delivery()
    scene.delivery.start()
    try:
        scene.deliver(DEAD)
        scene.answer()
        eventually(lambda: scene.on_wire() == [0], "the response is sent", interval=0.001)
        scene.answer()
        eventually(lambda: scene.collect() == [Ended(0, Reason.ATTEMPTS_EXHAUSTED)], "it is durable", interval=0.001)
    finally:
        scene.delivery.stop()
        assert scene.delivery.join(20)
        scene.delivery.close(1.0)
    assert scene.producer.stopped
    assert scene.died == []


def test_a_thread_that_dies_says_so() -> None:
    scene = Scene()
    scene.delivery = scene.make_delivery()

    def breaks(reason: str) -> None:
        raise LookupError("a bug of ours")

    scene.calls.hold = breaks  # type: ignore[method-assign]
    scene.delivery.start()
    scene.producer.broken = True
    assert scene.delivery.join(20)
    assert [type(error) for error in scene.died] == [LookupError]


def test_a_first_producer_that_cannot_be_made_is_the_callers_affair() -> None:
    scene = Scene(unreachable=None)
    scene.unreachable = ConnectionError("no broker")
    with pytest.raises(ConnectionError):
        scene.delivery.start()
    assert not scene.delivery.thread.is_alive()


# Whatever happens


class Random(NamedTuple):
    """One step of a run: what happens, and to how many."""

    what: str
    count: int


STEPS = st.lists(
    st.builds(
        Random,
        st.sampled_from(
            ["answer", "dead", "big", "ack", "ack", "refuse", "too large", "stick", "turn", "wait", "break"]
        ),
        st.integers(1, 4),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_fails_every_outcome_is_delivered_once_and_no_byte_is_left(steps: list[Random]) -> None:
    scene = Scene()
    scene.know(2000, RESPONSES)
    offered = itertools.count()
    for what, count in steps:
        if what in ("answer", "dead", "big"):
            outcome = {"answer": ANSWER, "dead": DEAD, "big": answered("x" * 5000)}[what]
            for _ in range(count):
                scene.deliver(outcome)
                next(offered)
        elif what == "turn":
            scene.turn(0.1 * count)
        elif what == "wait":
            scene.turn(40.0 * count)
        elif what == "break":
            scene.producer.broken = True
        elif scene.in_flight():
            errors = {"ack": None, "refuse": REFUSED, "too large": TOO_LARGE, "stick": STUCK}
            scene.answer(error=errors[what], count=count)
        scene.collect()
    scene.let_all_through()
    scene.let_all_through()
    total = next(offered)
    assert sorted(ended.offset for ended in scene.ended) == list(range(total))
    assert sorted(scene.freed) == list(range(total))
    assert scene.delivery.unsettled_bytes == 0
    scene.turn()
    assert not scene.held


@given(st.lists(st.sampled_from(["answer", "ack", "refuse", "stick", "turn", "wait", "break"]), max_size=60))
def test_responses_keep_their_order_through_every_failure_of_what_is_on_its_way(steps: list[str]) -> None:
    scene = Scene()
    total = 0
    for what in steps:
        if what == "answer":
            scene.deliver()
            total += 1
        elif what in ("turn", "wait"):
            scene.turn(0.3 if what == "turn" else 40.0)
        elif what == "break":
            scene.producer.broken = True
        elif scene.in_flight():
            scene.answer(
                error={"ack": None, "refuse": REFUSED, "stick": STUCK}[what], count=1 if what == "ack" else None
            )
        scene.collect()
    scene.let_all_through()
    assert [ended.offset for ended in scene.ended] == list(range(total))


def test_many_threads_hand_over_while_acknowledgements_and_failures_come_in() -> None:
    """The client's thread, handler threads and the thread of repairs meet in one delivery."""
    scene = Scene()
    scene.delivery = scene.make_delivery()
    scene.know(1_000_000)
    made = Partition()
    works = [made.work(b"k", request_id="r") for _ in range(2000)]
    rounds = itertools.count()
    stop = threading.Event()

    def cluster() -> None:
        while not stop.is_set():
            for wire in (scene.producer.on_wire, scene.dlq_producer.on_wire):
                while wire:
                    sent = wire.pop(0)
                    if next(rounds) % 97 == 96:
                        sent.fail(TOO_LARGE)
                    else:
                        sent.acknowledge(0, 7)
            stop.wait(0.0005)

    def handler(number: int) -> None:
        for work in works[number::4]:
            scene.delivery.deliver(work, DEAD if work.record.offset % 10 == 0 else ANSWER)

    threads = [threading.Thread(target=handler, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=cluster))
    scene.delivery.start()
    try:
        for thread in threads:
            thread.start()
        eventually(lambda: scene.collect() is not None and len(scene.ended) >= 2000, "all is delivered", interval=0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
        scene.delivery.stop()
        assert scene.delivery.join(20)
    assert sorted(ended.offset for ended in scene.ended) == list(range(2000))
    assert scene.delivery.unsettled_bytes == 0
    assert scene.died == []
