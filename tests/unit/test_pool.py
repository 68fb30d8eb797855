"""The handler threads, with a dispatcher, a processor and a handler that the test holds back."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from gigaoffice_worker.core.dedupe import Answers
from gigaoffice_worker.core.errors import TransientError
from gigaoffice_worker.core.records import Outcome, Reason, Request
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.dispatcher import Counts
from gigaoffice_worker.engine.failure_log import FailureLog
from gigaoffice_worker.engine.pool import Pool
from gigaoffice_worker.engine.processor import Processor
from gigaoffice_worker.observe.metrics import Metrics, total
from tests.support.making import Partition, answered, dispatcher
from tests.support.waiting import eventually


class Call:
    """One handler call that goes on until the test ends it, once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._end = threading.Event()
        self._made: Callable[[], Any] = lambda: None

    def wait(self) -> Any:
        assert self._end.wait(20)
        return self._made()

    def end(self, made: Callable[[], Any]) -> None:
        self._made = made
        self._end.set()

    def answer(self, result: object) -> None:
        self.end(lambda: result)

    def fail(self, error: BaseException) -> None:
        def fails() -> None:
            raise error

        self.end(fails)


class Scene:
    """A pool whose clock the test puts forward: no call needs to take as long as it seems to have taken."""

    def __init__(
        self,
        size: int,
        *,
        attempts: int = 3,
        delay: float = 0.0,
        deliver: Callable[[Work, Outcome], bool] | None = None,
        answers: Answers | None = None,
    ) -> None:
        self.passed = 0.0
        policy = RetryPolicy(attempts, delay, max_delay=delay)
        self.dispatcher = dispatcher(policy, clock=lambda: time.monotonic() + self.passed)
        self.metrics = Metrics("0")
        self.calls: queue.Queue[Call] = queue.Queue()
        self.made: list[Call] = []
        self.delivered: queue.Queue[tuple[Work, Outcome]] = queue.Queue()
        self.died: list[BaseException] = []
        self.partition = Partition()
        self.pool = Pool(
            size,
            self.dispatcher,
            Processor(self._handler, 30.0, 300.0, answers=answers),
            deliver or self._deliver,
            self.metrics,
            FailureLog(attempts),
            self.died.append,
        )

    def _handler(self, request: Request) -> Any:
        call = Call(request)
        self.made.append(call)
        self.calls.put(call)
        return call.wait()

    def _deliver(self, work: Work, outcome: Outcome) -> bool:
        self.dispatcher.settle([work])
        self.delivered.put((work, outcome))
        return True

    def offer(self, *keys: bytes | None) -> None:
        self.dispatcher.offer([self.partition.work(key) for key in keys])

    def call(self) -> Call:
        """Return the next handler call that has begun."""
        return self.calls.get(timeout=30)

    def outcome(self) -> tuple[int, Outcome]:
        work, outcome = self.delivered.get(timeout=30)
        return work.record.offset, outcome

    def overdue(self) -> None:
        """Let ten seconds pass and look after what runs for too long."""
        self.passed += 10
        self.pool.abandon_overdue(9.0)

    @property
    def alive(self) -> int:
        return sum(thread.name.startswith("handler-") for thread in threading.enumerate())

    def dropped(self) -> int:
        return total(self.metrics.late_results_dropped)


@contextmanager
def running(size: int = 2, **more: Any) -> Iterator[Scene]:
    scene = Scene(size, **more)
    scene.pool.start()
    try:
        yield scene
    finally:
        scene.dispatcher.stop()
        for call in scene.made:
            call.answer(None)
        assert scene.pool.join(20)
        eventually(lambda: scene.pool.abandoned == 0, "abandoned threads end with their calls", interval=0.001)


def test_as_many_calls_run_as_the_pool_has_threads() -> None:
    with running(3) as scene:
        scene.offer(*[None] * 5)
        calls = [scene.call() for _ in range(3)]
        assert scene.dispatcher.counts() == Counts(2, 3, 0, 0)
        calls[1].answer({"a": 1})
        assert scene.outcome() == (calls[1].request.offset, answered({"a": 1}))
        assert scene.call().request.offset == 3


def test_a_key_goes_on_as_soon_as_its_outcome_is_handed_over() -> None:
    with running(2) as scene:
        scene.offer(b"k", b"k")
        first = scene.call()
        assert scene.dispatcher.counts() == Counts(1, 1, 0, 0)
        first.answer(None)
        assert scene.call().request.offset == 1


def test_a_key_stays_closed_while_delivery_keeps_it() -> None:
    delivered: list[Work] = []

    def keep(work: Work, _verdict: Outcome) -> bool:
        delivered.append(work)
        return False

    with running(2, deliver=keep) as scene:
        scene.offer(b"k", b"k", b"other")
        calls = {call.request.offset: call for call in (scene.call(), scene.call())}
        calls[0].answer(None)
        calls[2].answer(None)
        eventually(lambda: len(delivered) == 2, "both are handed over", interval=0.001)
        assert scene.dispatcher.counts() == Counts(1, 0, 0, 2)
        scene.dispatcher.free(next(work for work in delivered if work.record.key == b"k"))
        assert scene.call().request.offset == 1


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_handler_raises_its_thread_lives_on(error: BaseException) -> None:
    with running(1, attempts=2) as scene:
        scene.offer(None)
        scene.call().fail(error)
        second = scene.call()
        assert second.request.attempt == 2
        second.fail(error)
        offset, outcome = scene.outcome()
        assert (offset, outcome.reason) == (0, Reason.ATTEMPTS_EXHAUSTED)
        assert outcome.failure is not None
        assert outcome.failure.type == type(error).__name__
        scene.offer(None)
        scene.call().answer(1)
        assert scene.outcome() == (1, answered(1))
        assert scene.died == []


@pytest.mark.parametrize(
    "report",
    [{"input_tokens": 10**400}, {"output_tokens": 10**5000}, {"cost": 10**400}, {"input_tokens": 1, "model": "\ud800"}],
    ids=["beyond a float", "beyond what Python prints", "cost", "half a surrogate pair"],
)
def test_whatever_a_handler_reports_its_thread_lives_on(report: dict[str, Any]) -> None:
    with running(1, attempts=1) as scene:
        scene.offer(b"k", b"k")
        call = scene.call()
        call.end(lambda: call.request.usage(**report))
        assert scene.outcome()[0] == 0
        scene.call().answer({})
        assert scene.outcome() == (1, answered({}))
        assert scene.died == []


def test_an_overdue_call_is_abandoned_its_thread_replaced_and_its_late_result_dropped() -> None:
    with running(1) as scene:
        scene.offer(None)
        hanging = scene.call()
        scene.pool.abandon_overdue(9.0)
        assert scene.pool.abandoned == 0
        scene.overdue()
        assert scene.pool.abandoned == 1
        again = scene.call()
        assert (again.request.offset, again.request.attempt) == (0, 2)
        hanging.answer("too late")
        eventually(lambda: scene.pool.abandoned == 0, "the abandoned thread ends", interval=0.001)
        assert scene.dropped() == 1
        assert scene.alive == 1
        again.answer("in time")
        assert scene.outcome() == (0, answered("in time"))
        assert scene.delivered.empty()


def test_a_request_whose_last_attempt_hangs_is_dead_lettered_as_timed_out() -> None:
    with running(1, attempts=2) as scene:
        scene.offer(b"k", b"k")
        for _ in range(2):
            scene.call()
            scene.overdue()
        offset, outcome = scene.outcome()
        assert (offset, outcome.reason) == (0, Reason.TIMED_OUT)
        assert outcome.failure is not None
        assert outcome.failure.type == "AttemptTimeout"
        assert "9 seconds" in outcome.failure.message
        # Its key goes on.
        assert scene.call().request.offset == 1


def test_hanging_calls_are_counted_until_there_are_more_than_twice_the_threads() -> None:
    with running(2, attempts=10) as scene:
        scene.offer(*[None] * 4)
        calls = [scene.call(), scene.call()]
        for _ in range(2):
            scene.overdue()
            assert not scene.pool.too_many_hang
            calls += [scene.call(), scene.call()]
        assert scene.pool.abandoned == 4
        scene.overdue()
        assert scene.pool.abandoned == 6
        assert scene.pool.too_many_hang
        for call in calls[:2]:
            call.answer(None)
        eventually(lambda: not scene.pool.too_many_hang, "some have come back", interval=0.001)


def test_a_pool_that_is_made_smaller_lets_no_more_hanging_calls_end_the_worker() -> None:
    with running(4) as scene:
        scene.offer(*[None] * 3)
        for _ in range(3):
            scene.call()
        scene.overdue()
        scene.pool.resize(1)
        assert scene.pool.abandoned == 3
        assert not scene.pool.too_many_hang


def test_a_result_that_comes_before_the_retry_is_delivered_and_its_thread_ends() -> None:
    with running(1, delay=600.0) as scene, capture_logs() as logs:
        scene.offer(b"k", b"k")
        hanging = scene.call()
        scene.overdue()
        assert scene.pool.abandoned == 1
        hanging.answer("late, but paid for")
        assert scene.outcome() == (0, answered("late, but paid for"))
        assert scene.call().request.offset == 1
        eventually(lambda: scene.pool.abandoned == 0, "its thread ends", interval=0.001)
        assert scene.alive == 1
        assert scene.dropped() == 0
    events = [line["event"] for line in logs]
    assert "Overdue call came back before its request was tried again" in events
    assert "Request ended without a call" not in events


def test_the_stack_of_a_hanging_call_is_logged_once_for_its_request() -> None:
    with running(1, attempts=9) as scene, capture_logs() as logs:
        scene.offer(None)
        for _ in range(2):
            scene.call()
            scene.overdue()
        _, outcome = scene.outcome()
    [line] = [line for line in logs if line["event"] == "Handler call hangs: given up, its thread replaced"]
    assert (line["request_id"], line["seconds"]) == ("requests-0-0", 9.0)
    assert line["at"].endswith("Call.wait")
    assert "Scene._handler" in line["stack"].splitlines()[0]
    assert "Event.wait" in line["stack"]
    assert outcome.failure is not None
    assert outcome.failure.at == line["at"]


def test_calls_that_run_are_told_with_their_stacks() -> None:
    with running(2) as scene, capture_logs() as logs:
        scene.offer(None)
        scene.call()
        scene.pool.tell_running("Stop waits for a handler call")
    [line] = logs
    assert (line["request_id"], line["attempt"], line["calls"]) == ("requests-0-0", 1, 1)
    assert "Call.wait" in line["stack"]


def test_a_failed_attempt_is_told_with_its_place_and_what_happens_next() -> None:
    with running(1, attempts=2, delay=0.001) as scene, capture_logs() as logs:
        scene.offer(None)
        for _ in range(2):
            scene.call().fail(ValueError("the customer's secret"))
        _, outcome = scene.outcome()
    retried, dead = logs
    assert (retried["attempt"], retried["max_attempts"], retried["error_type"]) == (1, 2, "ValueError")
    assert 0 <= retried["retry_in"] <= 0.001
    assert (dead["attempt"], dead["reason"]) == (2, "attempts-exhausted")
    for line in logs:
        assert line["at"].endswith("Call.fail.<locals>.fails")
        assert line["traceback"].splitlines()[0] == "ValueError"
        assert "secret" not in repr(line)
    assert outcome.failure is not None
    assert outcome.failure.at == dead["at"]


def test_an_abandoned_call_of_a_lost_partition_is_neither_delivered_nor_tried_again() -> None:
    with running(1) as scene, capture_logs() as logs:
        scene.offer(None)
        hanging = scene.call()
        scene.dispatcher.forget(scene.partition.assignment)
        scene.overdue()
        assert scene.pool.abandoned == 1
        assert [line["event"] for line in logs] == []
        hanging.answer(None)
        eventually(lambda: scene.dropped() == 1, "the late result is dropped", interval=0.001)
        assert scene.delivered.empty()
        scene.partition = Partition(0, epoch=2)
        scene.offer(None)
        scene.call().answer(1)
        assert scene.outcome() == (0, answered(1))


def test_a_result_for_a_lost_partition_is_dropped_and_its_thread_goes_on() -> None:
    with running(1) as scene, capture_logs() as logs:
        scene.offer(None)
        call = scene.call()
        scene.dispatcher.forget(scene.partition.assignment)
        scene.partition = Partition(0, epoch=2, position=1)
        scene.offer(None)
        call.answer("for nobody")
        scene.call().answer(1)
        assert scene.outcome() == (1, answered(1))
        assert scene.dropped() == 1
        assert {"event": "Late result dropped", "reason": "partition-lost"}.items() <= logs[0].items()


@pytest.mark.parametrize("hangs", [False, True])
def test_nothing_is_remembered_of_a_run_whose_partition_is_lost(hangs: bool) -> None:  # noqa: FBT001
    answers = Answers(60.0, 1 << 20, time.time)
    with running(1, answers=answers) as scene:
        scene.offer(None)
        call = scene.call()
        scene.dispatcher.forget(scene.partition.assignment)
        assert len(answers._running) == 1
        if hangs:
            scene.overdue()
        else:
            call.answer("for nobody")
        eventually(lambda: answers._running == {}, "it is let go of", interval=0.001)


@pytest.mark.parametrize("key", [b"k", None])
def test_a_result_answers_its_request_where_the_lost_partition_has_returned(key: bytes | None) -> None:
    with running(2) as scene, capture_logs() as logs:
        scene.offer(key)
        call = scene.call()
        scene.dispatcher.forget(scene.partition.assignment)
        scene.partition = Partition(0, epoch=2)
        scene.offer(key, key)
        if key is None:
            scene.call().answer("the second")
            assert scene.outcome() == (1, answered("the second"))
        call.answer("the first")
        assert scene.outcome() == (0, answered("the first"))
        if key is not None:
            scene.call().answer("the second")
            assert scene.outcome() == (1, answered("the second"))
        assert len(scene.made) == 2
        assert scene.partition.assignment.tracker.committable == 2
        assert scene.dropped() == 0
        assert "Result kept: its partition was lost and has returned" in [line["event"] for line in logs]


def test_a_result_is_delivered_to_a_returned_partition_also_while_the_worker_drains() -> None:
    with running(1) as scene:
        scene.offer(b"k")
        call = scene.call()
        scene.dispatcher.forget(scene.partition.assignment)
        scene.partition = Partition(0, epoch=2)
        scene.offer(b"k", b"k")
        scene.dispatcher.hold("draining")
        call.answer("paid for")
        assert scene.outcome() == (0, answered("paid for"))
        eventually(lambda: scene.dispatcher.in_hand.wait_quiet(0.0), "nothing is in flight", interval=0.001)
        assert scene.partition.assignment.tracker.committable == 1
        assert scene.metrics.handler_calls.count_and_sum()[0] == 1
        scene.dispatcher.release("draining")
        scene.call().answer("the second")
        assert scene.outcome() == (1, answered("the second"))


def test_a_bug_of_ours_in_a_handler_thread_is_reported() -> None:
    def breaks(_work: Work, _verdict: Outcome) -> bool:
        raise LookupError("a bug of ours")

    with running(1, deliver=breaks) as scene:
        scene.offer(None)
        scene.call().answer(None)
        eventually(lambda: scene.died != [], "the death is reported", interval=0.001)
        assert [type(error) for error in scene.died] == [LookupError]


def test_attempts_are_counted_by_how_they_ended() -> None:
    with running(1, attempts=2) as scene:
        scene.offer(None)
        scene.call().fail(ValueError())
        scene.call()
        scene.overdue()
        scene.outcome()
        found = {
            result: scene.metrics.registry.get_sample_value(
                "gigaoffice_worker_handler_attempts_total", {"result": result}
            )
            for result in ("answered", "failed", "timed-out")
        }
        assert found == {"answered": 0, "failed": 1, "timed-out": 1}
        waits = scene.metrics.registry.get_sample_value("gigaoffice_worker_queue_wait_seconds_count")
        assert waits == 1


def test_a_value_that_is_no_request_counts_no_attempt() -> None:
    with running(1) as scene:
        scene.dispatcher.offer([scene.partition.work(b"k", value=b"[]")])
        offset, outcome = scene.outcome()
        assert (offset, outcome.reason) == (0, Reason.INVALID_REQUEST)
        assert scene.metrics.handler_calls.count_and_sum() == (0, 0.0)


def test_a_pool_that_is_still_busy_says_so() -> None:
    with running(1) as scene:
        scene.offer(None)
        call = scene.call()
        scene.dispatcher.stop()
        assert not scene.pool.join(0.01)
        call.answer(None)
        assert scene.pool.join(20)


def test_nobody_waits_for_an_abandoned_call() -> None:
    with running(1, attempts=1) as scene:
        scene.offer(None)
        scene.call()
        scene.overdue()
        scene.outcome()
        scene.dispatcher.stop()
        assert scene.pool.join(20)
        assert scene.pool.abandoned == 1


def test_the_wait_for_a_thread_is_measured_once_also_when_an_attempt_does_not_count() -> None:
    with running(1) as scene:
        scene.offer(None)
        scene.call().fail(TransientError(retry_after=0.0, shared=True))
        again = scene.call()
        assert again.request.attempt == 1
        again.answer(None)
        scene.outcome()
        waits = scene.metrics.registry.get_sample_value("gigaoffice_worker_queue_wait_seconds_count")
        assert waits == 1


def test_no_message_of_a_handler_is_logged() -> None:
    with capture_logs() as logs, running(1, attempts=1) as scene:
        scene.offer(None)
        scene.call().fail(ValueError("the customer's secret"))
        scene.outcome()
    assert "Request goes to the dead letter queue" in [line["event"] for line in logs]
    assert "secret" not in repr(logs)
