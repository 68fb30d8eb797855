"""The one thread that reads responses: who waits for it, for how long, and what of its troubles is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from gigaoffice_worker.broker.response_thread import ResponseThread
from gigaoffice_worker.core.errors import AccessError, UnreachableError, WorkerError
from gigaoffice_worker.core.records import Record
from tests.support.making import record

LONG = 30.0


class Topic:
    """A response topic whose reader connects once it may, and reads what the test has written."""

    def __init__(self) -> None:
        self.connecting = threading.Event()
        self.may_connect = threading.Event()
        self.refusal: Exception | None = None
        self.connects = 0
        self.written: SimpleQueue[list[Record] | Exception] = SimpleQueue()
        self.taken: SimpleQueue[Record] = SimpleQueue()
        self.closed = threading.Event()
        self.now = 100.0
        self.thread = ResponseThread(self.connect, self.taken.put, lambda: self.now)

    def connect(self) -> Topic:
        self.connects += 1
        self.connecting.set()
        self.may_connect.wait(LONG)
        if self.refusal is not None:
            raise self.refusal
        return self

    def poll(self, timeout: float) -> list[Record]:
        found = self.written.get() if not self.written.empty() else threading.Event().wait(timeout) or []
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def topic() -> Iterator[Topic]:
    found = Topic()
    yield found
    found.may_connect.set()
    found.thread.close()


def test_nobody_waits_longer_than_he_has_time_and_all_share_one_attempt(topic: Topic) -> None:
    def wait(_: int) -> str:
        with pytest.raises(UnreachableError) as caught:
            topic.thread.wait_reading(0.01)
        return str(caught.value)

    with ThreadPoolExecutor(6) as pool:
        told = set(pool.map(wait, range(6)))
    assert told == {"no connection to read responses within 0.01 s; the request is not sent"}
    topic.may_connect.set()
    topic.thread.wait_reading(LONG)
    topic.thread.wait_reading(0.0)
    assert topic.connects == 1


def test_all_who_wait_are_told_the_error_and_so_is_who_comes_right_behind(topic: Topic) -> None:
    topic.refusal = AccessError("not authorized", hint="Grant the user READ.")
    topic.may_connect.set()
    for _ in range(3):
        with pytest.raises(AccessError, match="not authorized") as caught:
            topic.thread.wait_reading(LONG)
        assert caught.value.hint == "Grant the user READ."
    assert topic.connects == 1


def test_another_attempt_is_made_after_a_second(topic: Topic) -> None:
    topic.refusal = OSError("broken")
    topic.may_connect.set()
    with pytest.raises(WorkerError, match="connecting to read responses"):
        topic.thread.wait_reading(LONG)
    topic.refusal = None
    topic.now += 1.0
    topic.thread.wait_reading(LONG)
    assert topic.connects == 2


def test_closing_ends_the_wait_while_it_still_connects(topic: Topic) -> None:
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(topic.thread.wait_reading, LONG)
        assert topic.connecting.wait(LONG)
        closes = pool.submit(topic.thread.close)
        waits.result(LONG / 2)
        assert not topic.may_connect.is_set()
        topic.may_connect.set()
        closes.result(LONG)
    assert topic.closed.wait(LONG)


def test_a_closed_one_connects_no_more(topic: Topic) -> None:
    topic.thread.close()
    topic.thread.wait_reading(LONG)
    assert topic.connects == 0


def test_records_are_handed_on_and_trouble_is_told_until_it_is_over(topic: Topic) -> None:
    topic.may_connect.set()
    topic.thread.wait_reading(LONG)
    topic.written.put([record(1), record(2)])
    assert [topic.taken.get(timeout=LONG).offset for _ in range(2)] == [1, 2]
    topic.written.put(UnreachableError("the cluster is gone"))
    topic.written.put([record(3)])
    assert topic.taken.get(timeout=LONG).offset == 3
    assert topic.thread.trouble == ""
    topic.thread.close()
    assert topic.closed.is_set()
