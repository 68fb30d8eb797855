"""Whom a request is for and how urgent it is: what is read, and that nothing breaks by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.ready import ByArrival, ByTenant, Ready
from gigaoffice_worker.core.scheduler import Scheduler
from gigaoffice_worker.core.tenancy import Urgency, step
from gigaoffice_worker.core.work import Work
from tests.support.making import assignment, record

FIELDS = Urgency("user_id", "priority").reader()
HEADERS = Urgency("header:tenant", "header:priority").reader()


@pytest.mark.parametrize(
    "value, expected",
    [
        (b'{"user_id": "anna", "priority": 3}', ("anna", 3.0)),
        (b'{"priority": -1.5, "other": {"user_id": "nested"}, "user_id": 17}', ("17", -1.5)),
        (b'{"user_id": true, "priority": "2"}', ("True", 2.0)),
        (b'{"user_id": null, "priority": null}', ("", 0.0)),
        (b'{"user_id": ["a"], "priority": {"a": 1}}', ("", 0.0)),
        (b'{"user_id": "\\u0430", "priority": "high"}', ("\u0430", 0.0)),
        (b'{"user_id": "a", "priority": true}', ("a", 0.0)),
        (b'{"user_id": "a", "priority": 1e400}', ("", 0.0)),  # no number that JSON could be read to
        (b'{"user_id": "a", "priority": 1e300}', ("a", 1e6)),
        (b"{}", ("", 0.0)),
        (b"[]", ("", 0.0)),
        (b'{"user_id": "a"', ("", 0.0)),
        (None, ("", 0.0)),
        (b'{"user_id": "%s"}' % (b"x" * 1000), ("x" * 256, 0.0)),
    ],
)
def test_fields_of_the_request(value: bytes | None, expected: tuple[str, float]) -> None:
    assert FIELDS(record(value=value)) == expected


def test_headers_the_last_of_a_name_counts() -> None:
    headers = [("tenant", b"first"), ("tenant", "имя".encode()), ("priority", b"4.5")]
    assert HEADERS(record(headers=headers)) == ("имя", 4.5)
    assert HEADERS(record(headers=[("tenant", b"\xff"), ("priority", None)])) == ("\ufffd", 0.0)
    assert HEADERS(record(headers=[("priority", b"nan")])) == ("", 0.0)


def test_one_of_them_alone_and_both_in_one_place() -> None:
    assert Urgency(priority="p").reader()(record(value=b'{"p": 1}')) == ("", 1.0)
    assert Urgency("x", "x").reader()(record(value=b'{"x": 5}')) == ("5", 5.0)
    assert Urgency("x", "header:p").reader()(record(value=b'{"x": "a"}', headers=[("p", b"2")])) == ("a", 2.0)


def test_value_that_is_too_large_to_be_decoded_is_not_looked_into() -> None:
    assert Urgency("x", most_bytes=10).reader()(record(value=b'{"x":     "a"}')) == ("", 0.0)


@given(st.binary(max_size=40), st.lists(st.tuples(st.sampled_from(["tenant", "priority"]), st.binary(max_size=8))))
def test_no_record_breaks_it(value: bytes, headers: list[tuple[str, bytes]]) -> None:
    for read in (FIELDS, HEADERS):
        tenant, priority = read(record(value=value, headers=headers))
        assert isinstance(tenant, str)
        assert -1e6 <= priority <= 1e6


# What runs next


def work(offset: int, tenant: str = "", priority: float = 0.0, key: bytes | None = None, decoded: int = 0) -> Work:
    found = Work(record(offset, key), PLACE, 1, 0.0, float(offset), decoded=decoded)
    found.tenant, found.priority = tenant, priority
    return found


PLACE = assignment()


def drained(scheduler: Scheduler, seconds: float = 1.0) -> list[int]:
    found = []
    while (taken := scheduler.take(0.0)) is not None:
        found.append(taken.record.offset)
        scheduler.ended(taken, seconds)
        scheduler.free(taken, 0.0)
    return found


def test_tenants_take_turns_and_priorities_order_what_is_each_ones_own() -> None:
    scheduler = Scheduler("key", ByTenant(60.0))
    for offset in range(4):
        scheduler.add(work(offset, "a", priority=float(offset == 3)), 0.0)
    scheduler.add(work(9, "b"), 0.0)
    found = drained(scheduler)
    assert found.index(9) <= 1
    assert [offset for offset in found if offset != 9] == [3, 0, 1, 2]


def test_waiting_raises_a_request_by_a_step_in_each_time() -> None:
    scheduler = Scheduler("key", ByTenant(10.0))
    scheduler.add(work(0), 0.0)
    scheduler.add(work(5, priority=1.0), 0.0)
    scheduler.add(work(15, priority=1.0), 0.0)
    assert drained(scheduler) == [5, 0, 15]


@pytest.mark.parametrize("ready", [ByArrival, lambda: ByTenant(60.0)], ids=["arrival", "tenants"])
def test_both_orders_keep_the_books(ready) -> None:
    queue: Ready = ready()
    works = [work(offset, f"t{offset % 2}") for offset in range(6)]
    for number, each in enumerate(works):
        each.number = number
        queue.add(each, fresh=number % 3 > 0)
    assert sorted(each.record.offset for each in queue) == list(range(6))
    assert queue.remove(works[4])
    assert not queue.remove(works[4])
    queue.put_back(works[4])
    first = queue.first()
    assert queue.pop() is first
    queue.ended(first, 0.5)
    queue.keep(lambda each: each.record.offset != 5)
    assert len(queue) == 3
    assert {queue.pop(), queue.pop(), queue.pop(), queue.pop()} <= {*works[:4], None}
    assert len(queue) == 0


def test_large_request_of_a_tenant_is_not_charged_while_it_is_set_aside() -> None:
    scheduler = Scheduler("key", ByTenant(60.0))
    large = [work(offset, "a", decoded=100 << 20) for offset in range(2)]
    for each in (*large, work(5, "b"), work(6, "b")):
        scheduler.add(each, 0.0)
    first = scheduler.take(0.0)
    others = [scheduler.take(0.0), scheduler.take(0.0)]
    assert {each.record.offset for each in (first, *others)} == {0, 5, 6}
    assert scheduler.take(0.0) is None
    assert scheduler.ended(large[0], 1.0)
    assert scheduler.take(0.0) is large[1]


def test_steps_of_priority_are_few_and_in_the_order_of_priorities():
    priorities = [-1e6, -100, -3, -1, -0.9, 0, 0.9, 1, 3, 9, 100, 1000, 1e6]
    steps = [step(each) for each in priorities]
    assert steps == sorted(steps) == [-7, -6, -2, -1, 0, 0, 0, 1, 2, 3, 6, 7, 7]
