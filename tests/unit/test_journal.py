"""The journal: marks, floors and what matches; and its consumer side, on a reader that is told its answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.journal import (
    Findings,
    Floors,
    Mark,
    MarkError,
    split_metadata,
    with_mark,
    worth_a_commit,
)
from gigaoffice_worker.core.messages import MAX_REQUEST_BYTES, RecordEncoder
from gigaoffice_worker.core.records import Failure, Outcome, OutgoingRecord, Reason, Record
from gigaoffice_worker.engine.journal import Journal
from gigaoffice_worker.engine.journal_reader import Answer, Skipped
from gigaoffice_worker.observe.metrics import Metrics
from tests.support.making import TOPIC, Partition, assignment, record, report

ENCODER = RecordEncoder("responses", "dlq", "group", "1")
OFFSETS = st.dictionaries(st.integers(0, 200), st.integers(0, 2**62))


def written(record: OutgoingRecord) -> Record:
    """Return what was sent as it is read back."""
    return Record(record.topic, record.partition or 0, 0, 1_800_000_000.0, record.key, record.value, record.headers)


def response_to(request: Record) -> Record:
    return written(ENCODER.response(request, b"{}"))


def dead_letter_of(request: Record, reason: Reason = Reason.REJECTED) -> Record:
    return written(ENCODER.dead_letter(request, reason, Failure("RejectedError", "no"), 3, 0.0))


# Marks


@given(OFFSETS, OFFSETS)
def test_mark_comes_back_as_it_was(responses, dead_letters):
    mark = Mark(responses, dead_letters)
    assert mark.encode().isascii()
    assert Mark.decode(mark.encode()) == mark


@pytest.mark.parametrize("text", ["", "m2:0.1:", "m1:0.1", "m1:0.x:", "m1:0:", "m1:0.-1:", "m1:0.1:0.1:9", "gw1:0:AA"])
def test_foreign_or_damaged_mark_is_refused(text):
    with pytest.raises(MarkError):
        Mark.decode(text)


@pytest.mark.parametrize("commit_map", ["", "gw1:7:AAAA", "gw2:7:9:AAAA"])
@pytest.mark.parametrize("mark", ["", "m1:0.5:0.7"])
def test_map_and_mark_travel_in_one_text(commit_map, mark):
    assert split_metadata(with_mark(commit_map, mark)) == (commit_map, mark)


def test_mark_alone_is_committed_where_it_appears_goes_or_lags_far():
    mark = with_mark("", Mark({0: 5}, {0: 1}).encode())
    assert worth_a_commit("", mark)
    assert worth_a_commit(mark, "")
    assert not worth_a_commit(mark, mark)
    assert not worth_a_commit(mark, with_mark("", Mark({0: 900}, {0: 3}).encode()))
    assert worth_a_commit(mark, with_mark("", Mark({0: 20_000}, {0: 1}).encode()))
    assert worth_a_commit(mark, with_mark("", Mark({0: 5, 1: 0}, {0: 1}).encode()))
    assert worth_a_commit(mark, with_mark("gw1:7:AAAA", Mark({0: 5}, {0: 1}).encode()))


# Floors


def test_floor_of_before_stays_as_it_was():
    floors = Floors()
    floors.raise_to({("responses", 0): 5, ("dlq", 0): 2})
    before = floors.now
    floors.raise_to({("responses", 0): 9})
    assert before.mark([("responses", 0)], [("dlq", 0)]) == Mark({0: 5}, {0: 2})
    assert floors.now.mark([("responses", 0)], [("dlq", 0)]) == Mark({0: 9}, {0: 2})
    assert before.number < floors.now.number


def test_floor_never_sinks():
    floors = Floors()
    floors.raise_to({("responses", 0): 5})
    newest = floors.now
    floors.raise_to({("responses", 0): 4})
    assert floors.now is newest


def test_nothing_known_of_the_responses_makes_no_mark_and_of_dead_letters_half_a_one():
    floors = Floors()
    floors.raise_to({("responses", 0): 5})
    assert floors.now.mark([("responses", 0), ("responses", 1)], []) is None
    assert floors.now.mark([("responses", 0)], [("dlq", 0)]) == Mark({0: 5}, {})


# What matches


def test_response_is_found_by_the_whole_identity():
    request = record(offset=7, key=b"k")
    findings = Findings(TOPIC, 0, 0)
    findings.add_response(response_to(request))
    assert findings.answered(request)
    for other in (
        request._replace(offset=8),
        request._replace(timestamp=request.timestamp + 0.001),
        request._replace(key=b"other"),
        request._replace(key=None),
    ):
        assert not findings.answered(other)


@pytest.mark.parametrize("key", [None, b"", b"k", b"x" * 64, b"x" * 65, b"x" * 100_000])
def test_keys_of_any_length_match_themselves_only(key):
    findings = Findings(TOPIC, 0, 0)
    findings.add_response(response_to(record(key=key)))
    assert findings.answered(record(key=key))
    assert not findings.answered(record(key=(key or b"") + b"y"))


def test_other_partitions_topics_and_what_is_committed_are_passed_over():
    findings = Findings(TOPIC, 0, position=5)
    findings.add_response(response_to(record(offset=7, partition=1)))
    findings.add_response(response_to(record(offset=7)._replace(topic="other")))
    findings.add_response(response_to(record(offset=4)))
    assert not findings


@pytest.mark.parametrize("missing", ["source-topic", "source-partition", "source-offset", "source-timestamp"])
def test_response_without_an_identity_is_nothing(missing):
    found = response_to(record())
    findings = Findings(TOPIC, 0, 0)
    findings.add_response(found._replace(headers=[(n, v) for n, v in found.headers if n != missing]))
    findings.add_response(found._replace(headers=[(n, b"\xb2" if n == missing else v) for n, v in found.headers]))
    assert not findings


def test_dead_letter_tells_how_its_request_ended():
    request = record(offset=3, key=b"k", headers=[("source-offset", b"9"), ("dlq-reason", b"mine")])
    findings = Findings(TOPIC, 0, 0)
    findings.add_dead_letter(dead_letter_of(request))
    found = findings.dead_letter(request)
    assert found is not None
    assert found.outcome == Outcome(failure=Failure("RejectedError", "no"), reason=Reason.REJECTED)
    assert found.attempts == 3
    assert not findings.answered(request)


def test_dead_letter_of_a_reason_that_nobody_knows_is_nothing():
    letter = dead_letter_of(record())
    changed = [(name, b"unheard-of" if name == "dlq-reason" else value) for name, value in letter.headers]
    findings = Findings(TOPIC, 0, 0)
    findings.add_dead_letter(letter._replace(headers=changed))
    assert not findings


# The consumer's side


class ToldReader:
    """A reader that answers what the test says."""

    def __init__(self):
        self.asked = []
        self.ready = []

    def ask(self, query):
        self.asked.append(query)

    def answers(self):
        answers, self.ready = self.ready, []
        return answers


class Scene:
    def __init__(self, *, on=True, partitions=1, **rights):
        self.reader, self.floors, self.metrics = ToldReader(), Floors(), Metrics("1")
        self.now = 0.0
        self.journal = Journal(
            self.reader,
            self.floors,
            self.metrics,
            on=on,
            timeout=10.0,
            max_request_bytes=MOST_BYTES,
            clock=lambda: self.now,
        )
        counts = {TOPIC: partitions, "responses": partitions, "dlq": 1}
        self.journal.know(report(counts, rights), TOPIC, "responses", "dlq")

    def answer(self, *, ends=None, found=(), skipped=None):
        query = self.reader.asked[-1]
        findings = None
        if skipped is None:
            findings = Findings(TOPIC, query.assignment.partition, query.assignment.committed)
            for each in found:
                (findings.add_response if each.topic == "responses" else findings.add_dead_letter)(each)
        self.reader.ready.append(Answer(query, ends or {}, findings, skipped))
        return self.journal.hear()

    def skipped(self, reason: Skipped) -> float:
        return self.metrics.registry.get_sample_value(
            "gigaoffice_worker_journal_skipped_total", {"reason": reason.value}
        )


MARK = Mark({0: 5}, {0: 1}).encode()
# More than the default.
MOST_BYTES = 16 * 1024 * 1024


def test_partition_waits_for_its_answer_and_then_knows_what_is_done():
    scene, held = Scene(), Partition()
    scene.journal.ask(held.assignment, MARK)
    assert scene.journal.waits(held.assignment)
    works = [held.work(key) for key in (b"a", b"b", b"c")]
    assert scene.answer(
        ends={("responses", 0): 9, ("dlq", 0): 4},
        found=[response_to(works[0].record), dead_letter_of(works[1].record)],
    )
    assert not scene.journal.waits(held.assignment)
    works[1].worth_until = 1.0
    known = scene.journal.look_up(works)
    assert known == {works[0]: None, works[1]: Outcome(failure=Failure("RejectedError", "no"), reason=Reason.REJECTED)}
    assert (works[1].id, works[1].attempt, works[1].worth_until) == ("b", 3, math.inf)


def test_dead_letter_that_nobody_can_be_told_of_is_the_whole_outcome():
    scene, held = Scene(), Partition()
    scene.journal.ask(held.assignment, MARK)
    work = held.work(None, value=b"no request")
    scene.answer(found=[dead_letter_of(work.record, Reason.INVALID_REQUEST)])
    assert scene.journal.look_up([work]) == {work: None}


def test_dead_letter_of_a_large_request_without_a_key_has_its_response_still_owed():
    scene, held = Scene(), Partition()
    scene.journal.ask(held.assignment, MARK)
    work = held.work(None, value=b'{"id":"r-1","text":"%s"}' % (b"x" * (MAX_REQUEST_BYTES + 1)))
    scene.answer(found=[dead_letter_of(work.record)])
    assert scene.journal.look_up([work]) == {
        work: Outcome(failure=Failure("RejectedError", "no"), reason=Reason.REJECTED)
    }
    assert work.id == "r-1"


def test_next_owner_is_told_to_look_from_the_same_place_until_all_that_was_found_is_received():
    scene, held = Scene(), Partition()
    scene.journal.ask(held.assignment, MARK)
    work = held.work(b"a")
    ends = {("responses", 0): 9, ("dlq", 0): 4}
    assert scene.journal.marks({0: held.assignment}, {}) == {0: MARK}
    scene.answer(ends=ends, found=[response_to(work.record)])
    assert scene.journal.marks({0: held.assignment}, {}) == {0: MARK}
    held.assignment.tracker.start(0, work)
    assert scene.journal.marks({0: held.assignment}, {}) == {0: Mark({0: 9}, {0: 4}).encode()}


def test_next_owner_finds_a_dead_letter_as_long_as_its_response_is_owed():
    scene, held = Scene(), Partition()
    scene.journal.ask(held.assignment, MARK)
    work = held.work(b"a")
    scene.answer(ends={("responses", 0): 9, ("dlq", 0): 4}, found=[dead_letter_of(work.record)])
    scene.journal.look_up([work])
    held.assignment.receive(work)
    assert scene.journal.marks({0: held.assignment}, {}) == {0: Mark({0: 9}, {0: 1}).encode()}
    held.assignment.settle(work)
    assert scene.journal.marks({0: held.assignment}, {}) == {0: Mark({0: 9}, {0: 4}).encode()}


def test_mark_is_the_floor_of_the_oldest_outcome_on_its_way():
    scene, held = Scene(), assignment()
    scene.floors.raise_to({("responses", 0): 5, ("dlq", 0): 0})
    oldest = scene.floors.now
    scene.floors.raise_to({("responses", 0): 50})
    assert scene.journal.marks({0: held}, {held: oldest}) == {0: Mark({0: 5}, {0: 0}).encode()}
    assert scene.journal.marks({0: held}, {}) == {0: Mark({0: 50}, {0: 0}).encode()}


def test_one_output_partition_is_enough_where_both_topics_have_as_many():
    scene = Scene(partitions=2)
    scene.floors.raise_to({("responses", 0): 5, ("responses", 1): 6, ("dlq", 0): 0})
    assert scene.journal.marks({1: assignment(1)}, {}) == {1: Mark({1: 6}, {0: 0}).encode()}
    scene.journal.know(report({TOPIC: 3, "responses": 2, "dlq": 1}, {}), TOPIC, "responses", "dlq")
    assert scene.journal.marks({1: assignment(1)}, {}) == {1: Mark({0: 5, 1: 6}, {0: 0}).encode()}


@pytest.mark.parametrize("reason", list(Skipped))
def test_giving_up_is_counted_and_the_partition_goes_on(reason):
    scene, held = Scene(), assignment()
    scene.journal.ask(held, MARK)
    assert scene.answer(skipped=reason)
    assert not scene.journal.waits(held)
    assert scene.skipped(reason) == 1
    assert held.findings is None


def test_partition_waits_no_longer_than_it_may_whatever_the_reading_does():
    scene, held = Scene(), assignment()
    scene.journal.ask(held, MARK)
    scene.now = 10.0
    assert not scene.journal.hear()
    scene.now = 10.1
    assert scene.journal.hear()
    assert scene.skipped(Skipped.TIMEOUT) == 1
    # What comes too late changes nothing.
    scene.answer(found=[response_to(record())])
    assert held.findings is None


def test_partition_that_was_lost_meanwhile_is_waited_for_no_more():
    scene, held = Scene(), assignment()
    scene.journal.ask(held, MARK)
    held.lost = True
    assert scene.journal.hear()
    assert not scene.skipped(Skipped.TIMEOUT)


def test_damaged_mark_is_counted_and_the_ends_are_still_looked_for():
    scene, held = Scene(), assignment()
    scene.journal.ask(held, "m9:what")
    assert scene.skipped(Skipped.DAMAGED) == 1
    assert scene.reader.asked[-1].mark is None
    scene.answer(ends={("responses", 0): 9, ("dlq", 0): 4}, skipped=Skipped.FAILED)
    assert scene.journal.marks({0: held}, {}) == {0: Mark({0: 9}, {0: 4}).encode()}
    assert not scene.skipped(Skipped.FAILED)  # there was nothing to be skipped


@pytest.mark.parametrize("arguments", [{"on": False}, {"responses": {"WRITE", "DESCRIBE"}}])
def test_journal_that_is_off_asks_nothing_and_marks_nothing(arguments):
    scene, held = Scene(**arguments), assignment()
    scene.journal.ask(held, MARK)
    scene.floors.raise_to({("responses", 0): 9})
    assert not scene.reader.asked
    assert not scene.journal.waits(held)
    assert scene.journal.marks({0: held}, {}) == {}


def test_dead_letters_that_may_not_be_read_are_left_out():
    scene, held = Scene(dlq={"WRITE"}), assignment()
    scene.floors.raise_to({("responses", 0): 9})
    scene.journal.ask(held, "")
    assert scene.reader.asked[-1].dead_letters == ()
    scene.answer()
    assert scene.journal.marks({0: held}, {}) == {0: Mark({0: 9}, {}).encode()}
