"""One answer for one id: what is remembered, for how long, and what a request beside it has to do."""

from __future__ import annotations

import pytest

from gigaoffice_worker.core.dedupe import Answers, Verdict, read_answer
from gigaoffice_worker.core.judgement import Retry
from gigaoffice_worker.core.messages import RecordEncoder, digest
from gigaoffice_worker.core.records import Answer, Attempt, AttemptEnd, Failure, Outcome, Record, Source
from gigaoffice_worker.engine.dispatcher import Late
from gigaoffice_worker.engine.processor import Processor
from tests.support.making import TOPIC, Partition, dispatcher, record

ENCODER = RecordEncoder("responses", "dlq", "group", "1", digests=True)
VALUE = b'{"request_id": "r", "status": "completed"}'


class Scene:
    def __init__(self, window=60.0, limit=1 << 20):
        self.now, self.forgotten = 1000.0, 0
        self.answers = Answers(window, limit, lambda: self.now, self.forget)
        self.held = Partition()

    def forget(self):
        self.forgotten += 1

    def begin(self, request_id="r", value=b"{}", **options):
        work = self.held.work(b"k", value=value, request_id=request_id)
        return work, self.answers.begin(work, digest(value), **options)

    def answered(self, request_id="r", value=b"{}", response=VALUE):
        work, verdict = self.begin(request_id, value)
        assert verdict is Verdict.RUN
        self.answers.ended(work, response)
        return work


def test_second_request_gets_the_answer_of_the_first():
    scene = Scene()
    first = scene.answered()
    assert scene.begin()[1] == Answer(VALUE, first.record.source, digest(b"{}"))


def test_second_request_waits_while_the_first_runs_and_runs_when_that_failed():
    scene = Scene()
    first, verdict = scene.begin()
    assert verdict is Verdict.RUN
    second, verdict = scene.begin()
    assert verdict is Verdict.WAIT
    assert scene.answers.begin(first, digest(b"{}")) is Verdict.RUN  # its own retry
    scene.answers.ended(first, None)
    assert scene.answers.begin(second, digest(b"{}")) is Verdict.RUN


def test_another_value_runs_whether_the_first_runs_or_was_answered():
    scene = Scene()
    first, _ = scene.begin()
    assert scene.begin(value=b'{"a": 1}')[1] is Verdict.RUN_OTHER_VALUE
    scene.answers.ended(first, VALUE)
    assert scene.begin(value=b'{"a": 2}')[1] is Verdict.RUN_OTHER_VALUE


def test_replayed_request_always_runs():
    scene = Scene()
    scene.answered()
    assert scene.begin(replayed=True)[1] is Verdict.RUN


def test_other_ids_and_partitions_have_answers_of_their_own():
    scene = Scene()
    scene.answered()
    assert scene.begin("other")[1] is Verdict.RUN
    scene.held = Partition(1)
    assert scene.begin()[1] is Verdict.RUN


def test_answer_is_forgotten_when_its_time_is_up():
    scene = Scene(window=60.0)
    scene.answered()
    scene.now += 59.9
    assert isinstance(scene.begin()[1], Answer)
    scene.now += 0.1
    assert scene.begin()[1] is Verdict.RUN
    assert scene.forgotten == 0


def test_what_does_not_fit_is_forgotten_oldest_first_and_counted():
    scene = Scene(limit=3000)
    for n in range(5):
        scene.answered(f"r{n}", response=b"x" * 400)
    assert (len(scene.answers), scene.forgotten) == (3, 2)
    assert scene.begin("r1")[1] is Verdict.RUN
    assert isinstance(scene.begin("r2")[1], Answer)


def test_nobody_waits_for_a_request_of_a_lost_partition():
    scene = Scene()
    first, _ = scene.begin()
    first.assignment.lost = True
    scene.held = Partition()
    assert scene.begin()[1] is Verdict.RUN


def test_run_of_a_lost_partition_that_has_ended_lets_go_of_its_own_entry_only():
    scene = Scene()
    first, _ = scene.begin()
    first.assignment.lost = True
    scene.held = Partition(epoch=2)
    anew, _ = scene.begin()
    scene.answers.forget([first])
    scene.answers.ended(anew, VALUE)
    scene.held = Partition(epoch=3, position=1)
    assert scene.begin()[1] == Answer(VALUE, anew.record.source, digest(b"{}"))


# What is read back


def read_back(outgoing, at=900.0):
    return Record("responses", 0, 0, at, outgoing.key, outgoing.value, outgoing.headers)


def test_request_that_was_received_anew_while_its_call_ran_is_remembered_with_its_answer():
    scene = Scene()
    first, _ = scene.begin()
    first.assignment.lost = True
    scene.held = Partition(epoch=2)
    scene.answers.ended(scene.held.work(b"k", request_id="r"), VALUE)
    assert scene.begin()[1] == Answer(VALUE, first.record.source, digest(b"{}"))


def test_answer_is_restored_from_the_response_topic():
    scene = Scene()
    request = record(offset=7)
    found = read_answer(read_back(ENCODER.response(request, VALUE), at=950.0), TOPIC, 0)
    assert found is not None
    scene.answers.restore(found)
    assert scene.begin(value=request.value)[1] == Answer(VALUE, Source(TOPIC, 0, 7), digest(request.value))
    scene.now = 1010.0
    assert scene.begin("r", request.value)[1] is Verdict.RUN


@pytest.mark.parametrize("value", [b"", b"no JSON", b"[]", b'{"request_id": "r", "status": "failed"}'])
def test_what_is_no_completed_response_is_not_restored(value):
    assert read_answer(read_back(ENCODER.response(record(), value)), TOPIC, 0) is None


def test_responses_without_a_digest_of_others_and_copies_are_not_restored():
    plain = RecordEncoder("responses", "dlq", "group", "1").response(record(), VALUE)
    assert read_answer(read_back(plain), TOPIC, 0) is None
    assert read_answer(read_back(ENCODER.response(record(), VALUE)), TOPIC, 1) is None
    copied = Outcome(copied=Answer(VALUE, Source(TOPIC, 0, 3), b"d"))
    [copy] = ENCODER.outgoing(record(offset=9), "r", copied, seconds=0, attempts=0, at=0)
    assert (copy.value, dict(copy.headers)["duplicate-of"]) == (VALUE, b"requests-0-3")
    assert dict(copy.headers)["source-offset"] == b"9"
    assert read_answer(read_back(copy), TOPIC, 0) is None


# In the engine


def test_duplicate_needs_no_call_and_one_that_waits_looks_again():
    scene = Scene()
    processor = Processor(lambda _request: pytest.fail("called"), 10.0, answers=scene.answers)
    queue = dispatcher()
    value = b'{"id": "r"}'
    first, _ = scene.begin(value=value)
    second = scene.held.work(None, value=value)
    queue.offer([second])
    assert queue.take() is second
    made = processor.attempt(second)
    assert made.ended is AttemptEnd.WAITS
    assert isinstance(queue.conclude(second, second.run, made), Retry)
    scene.answers.ended(first, VALUE)
    assert queue.take() is second
    judged = queue.conclude(second, second.run, processor.attempt(second))
    assert judged.copied == Answer(VALUE, first.record.source, digest(value))
    assert second.attempt == 0


def test_requests_of_a_lost_partition_are_let_go_of_once_they_run_no_more():
    """Each would keep its partition in memory, with all that was in hand of it."""
    scene = Scene()
    queue = dispatcher(answers=scene.answers)
    works = [scene.held.work(None, request_id=name) for name in ("waits for a retry", "runs", "delivered", "queued")]
    queue.offer(works)
    for work in works[:3]:
        assert queue.take() is work
        scene.answers.begin(work, b"digest")
    retried, running, delivered, _ = works
    failed = Attempt(AttemptEnd.FAILED, 1.0, failure=Failure("ValueError", "bad"))
    assert isinstance(queue.conclude(retried, retried.run, failed), Retry)
    assert isinstance(queue.conclude(delivered, delivered.run, Attempt(AttemptEnd.ANSWERED, 1.0, b"{}")), Outcome)
    queue.forget(scene.held.assignment)
    assert [found.work for found in scene.answers._running.values()] == [running, delivered]
    scene.answers.ended(delivered, VALUE)
    assert queue.conclude(running, running.run, failed) is Late.LOST
    Processor(lambda _request: None, 10.0, answers=scene.answers).forget(running)
    assert scene.answers._running == {}
