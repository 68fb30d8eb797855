"""Reading back for several partitions at once, from logs that the test writes."""

from __future__ import annotations

import threading
import time
from typing import Self

import pytest

from gigaoffice_worker.broker.errors import OutOfRangeError
from gigaoffice_worker.core.errors import AccessError, UnreachableError
from gigaoffice_worker.core.journal import MOST_RECORDS, Mark
from gigaoffice_worker.core.messages import RecordEncoder
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.engine.journal_reader import JournalReader, Query, Skipped
from tests.support.making import assignment, record
from tests.support.waiting import eventually

ENCODER = RecordEncoder("responses", "dlq", "group", "1")
LETTERS = ("dlq", 0)


class Logs:
    """The logs of the output topics, behind what a reader is asked. `leaderless` partitions are not there."""

    def __init__(self):
        self.records: dict[tuple[str, int], list[Record | None]] = {LETTERS: []}
        self.first: dict[tuple[str, int], int] = {}
        self.leaderless: set[tuple[str, int]] = set()
        self.raises: Exception | None = None
        self.opened = self.closed = 0
        self._reading: dict[tuple[str, int], int] = {}

    def add(self, partition: int, *requests: Record) -> None:
        log = self.records.setdefault(("responses", partition), [])
        for request in requests:
            answer = ENCODER.response(request, b"{}")
            log.append(Record("responses", partition, len(log), 1.0, answer.key, answer.value, answer.headers))

    def open(self, _timeout: float) -> Logs:
        self.opened += 1
        if self.raises:
            raise self.raises
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self.closed += 1

    def ends(self, places):
        return {place: len(self.records[place]) for place in set(places) - self.leaderless if place in self.records}

    def starts(self, places):
        return {place: self.first.get(place, 0) for place in set(places) - self.leaderless}

    def read_from(self, positions):
        self._reading = dict(positions)

    def poll(self, timeout):
        for place, at in self._reading.items():
            found = self.records[place][at : at + 2]
            if found:
                self._reading[place] = at + len(found)
                return [each for each in found if each is not None]
        time.sleep(min(timeout, 0.01))
        return []

    def position(self, place):
        return self._reading.get(place)


@pytest.fixture
def logs():
    return Logs()


@pytest.fixture
def reader(logs):
    died = []
    reader = JournalReader(logs.open, died.append)
    reader.start()
    yield reader
    reader.stop()
    assert reader.join(20)
    assert not died


def query(logs, mark: Mark | None, partition=0, *, within=5.0, places=None):
    now = time.monotonic()
    places = places or [place for place in logs.records if place[0] == "responses"]
    return Query(assignment(partition), mark, places, [LETTERS], places, now, now + within)


def answers(reader, count, timeout=10.0):
    found = []

    def enough():
        found.extend(reader.answers())
        return len(found) >= count

    eventually(enough, f"{count} answers", timeout=timeout, interval=0.005)
    return found


def test_what_stands_behind_the_mark_is_found_and_the_ends_are_told(logs, reader):
    requests = [record(offset=n, key=b"k") for n in range(7)]
    logs.add(0, *requests)
    reader.ask(query(logs, Mark({0: 2}, {0: 0})))
    [answer] = answers(reader, 1)
    assert [answer.findings.answered(request) for request in requests] == [False] * 2 + [True] * 5
    assert answer.ends == {("responses", 0): 7, LETTERS: 0}
    assert (logs.opened, logs.closed) == (1, 1)


def test_last_records_may_be_none(logs, reader):
    logs.add(0, record(offset=0))
    logs.records["responses", 0] += [None, None, None]  # a transaction's marker, compaction
    reader.ask(query(logs, Mark({0: 0}, {})))
    [answer] = answers(reader, 1)
    assert len(answer.findings) == 1


def test_nothing_is_read_where_the_mark_is_the_end_and_without_a_mark(logs, reader):
    logs.add(0, record())
    logs.poll = None
    reader.ask(query(logs, Mark({0: 1}, {0: 0})))
    [answer] = answers(reader, 1)
    assert len(answer.findings) == 0
    reader.ask(query(logs, None))
    [answer] = answers(reader, 1)
    assert answer.findings is None
    assert answer.skipped is None


@pytest.mark.parametrize("mark", [Mark({0: 2}, {}), Mark({0: 0}, {}), Mark({0: 1}, {0: 1})])
def test_mark_outside_of_the_log_is_told(logs, reader, mark):
    logs.add(0, record())
    logs.first["responses", 0] = 1
    reader.ask(query(logs, mark))
    [answer] = answers(reader, 1)
    assert answer.skipped is Skipped.OUTSIDE
    assert answer.ends["responses", 0] == 1


def test_too_much_is_not_begun(logs, reader):
    logs.records["responses", 0] = [None] * (MOST_RECORDS + 1)
    logs.poll = None
    reader.ask(query(logs, Mark({0: 0}, {})))
    [answer] = answers(reader, 1)
    assert answer.skipped is Skipped.TOO_MUCH


def test_partition_without_a_leader_holds_up_nobody_else(logs, reader):
    logs.add(0, record())
    logs.add(1, record(partition=1))
    logs.leaderless.add(("responses", 0))
    stuck = query(logs, Mark({0: 0}, {}), 0)
    reader.ask(stuck)
    reader.ask(query(logs, Mark({1: 0}, {}), 1))
    [answer] = answers(reader, 1)
    assert answer.query.assignment.partition == 1
    logs.leaderless.clear()
    [answer] = answers(reader, 1)
    assert answer.query is stuck
    assert len(answer.findings) == 1


def test_nobody_goes_on_for_one_who_waits_no_more(logs, reader):
    logs.add(0, record())
    logs.add(1, record(partition=1))
    logs.leaderless.add(("responses", 0))
    reader.ask(query(logs, Mark({0: 0}, {}), 0, within=0.3))
    eventually(lambda: logs.closed, "the reader to be closed")
    reader.ask(query(logs, Mark({1: 0}, {}), 1))
    [answer] = answers(reader, 1)
    assert answer.query.assignment.partition == 1


@pytest.mark.parametrize(
    "error, reason",
    [
        (AccessError("no"), Skipped.NOT_PERMITTED),
        (OutOfRangeError({0: 1}), Skipped.OUTSIDE),
        (UnreachableError("nobody there"), Skipped.FAILED),
        (OSError(9, "bad file descriptor"), Skipped.FAILED),
    ],
)
def test_no_error_ends_the_reading_for_good(logs, reader, error, reason):
    logs.add(0, record())
    logs.raises = error
    reader.ask(query(logs, Mark({0: 0}, {})))
    assert [answer.skipped for answer in answers(reader, 1)] == [reason]
    logs.raises = None
    reader.ask(query(logs, Mark({0: 0}, {})))
    assert [answer.skipped for answer in answers(reader, 1)] == [None]


def test_thread_that_waits_for_work_ends_when_asked(logs):
    reader = JournalReader(logs.open, pytest.fail)
    reader.start()
    assert threading.active_count() > 1
    reader.stop()
    assert reader.join(20)
