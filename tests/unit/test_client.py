"""Which request a response belongs to, whatever comes first: the acknowledgement or the response."""

from __future__ import annotations

import pytest

from gigaoffice_worker.client import Pending, Waiting, WorkerError
from gigaoffice_worker.core.documents import Response
from gigaoffice_worker.core.records import Record, Source
from tests.support.making import record

PLACE, OTHER = Source("requests", 0, 7), Source("requests", 0, 8)
ANSWER = record(99)


def pending(*, answers: bool = True) -> Pending:
    return Pending("r-1", None, answers=answers)


def acknowledged(waiting: Waiting, one: Pending, place: Source) -> Record | None:
    one.note(place=place)
    return waiting.acknowledged(one, place)


def test_a_response_behind_the_acknowledgement_finds_its_request_once() -> None:
    waiting, one = Waiting(), pending()
    waiting.handed_over(one)
    assert acknowledged(waiting, one, PLACE) is None
    assert waiting.all() == [one]
    assert waiting.arrived(OTHER, ANSWER) is None
    assert waiting.arrived(PLACE, ANSWER) is one
    assert waiting.arrived(PLACE, ANSWER) is None
    assert waiting.all() == []


def test_a_response_before_the_acknowledgement_is_kept_for_it() -> None:
    waiting, one = Waiting(), pending()
    waiting.handed_over(one)
    assert waiting.arrived(PLACE, ANSWER) is None
    assert acknowledged(waiting, one, PLACE) is ANSWER
    assert waiting.all() == []


def test_nothing_is_kept_when_every_request_is_acknowledged() -> None:
    waiting, one, two = Waiting(), pending(), pending()
    assert waiting.arrived(PLACE, ANSWER) is None
    waiting.handed_over(one)
    assert acknowledged(waiting, one, PLACE) is None
    assert waiting.arrived(OTHER, ANSWER) is None
    waiting.handed_over(two)
    assert acknowledged(waiting, two, OTHER) is None
    assert waiting.all() == [one, two]


def test_no_more_is_kept_than_is_allowed_and_the_newest_of_it() -> None:
    waiting, first, last = Waiting(most_early=2), pending(), pending()
    waiting.handed_over(first)
    waiting.handed_over(last)
    for offset in range(3):
        waiting.arrived(Source("requests", 0, offset), ANSWER)
    assert acknowledged(waiting, first, Source("requests", 0, 0)) is None
    assert acknowledged(waiting, last, Source("requests", 0, 2)) is ANSWER


def test_no_more_bytes_are_kept_than_are_allowed_and_the_newest_of_them() -> None:
    waiting, first, last = Waiting(most_early_bytes=250), pending(), pending()
    waiting.handed_over(first)
    waiting.handed_over(last)
    for offset in range(3):
        waiting.arrived(Source("requests", 0, offset), record(offset, value=b"x" * 100))
    assert acknowledged(waiting, first, Source("requests", 0, 0)) is None
    assert acknowledged(waiting, last, Source("requests", 0, 2)) == record(2, value=b"x" * 100)


def test_bytes_of_what_is_taken_replaced_or_dropped_are_free_again() -> None:
    waiting, large = Waiting(most_early_bytes=250), record(value=b"x" * 100)
    for offset in range(10):
        one = pending()
        waiting.handed_over(one)
        for _ in range(3):
            waiting.arrived(Source("requests", 0, offset), large)
        waiting.arrived(Source("requests", 1, offset), large)
        assert acknowledged(waiting, one, Source("requests", 0, offset)) is large


def test_what_came_before_the_oldest_request_in_doubt_is_dropped() -> None:
    waiting, first, second, third = Waiting(), pending(), pending(), pending()
    waiting.handed_over(first)
    waiting.arrived(PLACE, ANSWER)
    waiting.handed_over(second)
    waiting.arrived(OTHER, ANSWER)
    acknowledged(waiting, first, Source("requests", 0, 1))
    waiting.handed_over(third)
    assert acknowledged(waiting, third, PLACE) is None
    assert acknowledged(waiting, second, OTHER) is ANSWER


def test_nothing_is_kept_for_a_request_that_was_forgotten() -> None:
    waiting, forgotten, one = Waiting(), pending(), pending()
    waiting.handed_over(forgotten)
    waiting.arrived(PLACE, ANSWER)
    waiting.handed_over(one)
    waiting.forget(forgotten)
    assert acknowledged(waiting, one, PLACE) is None
    assert waiting.all() == [one]


def test_a_request_that_was_forgotten_is_not_waited_for_when_it_is_acknowledged_late() -> None:
    waiting, early, late = Waiting(), pending(), pending()
    waiting.handed_over(early)
    acknowledged(waiting, early, PLACE)
    waiting.forget(early)
    waiting.handed_over(late)
    waiting.forget(late)
    acknowledged(waiting, late, OTHER)
    assert waiting.all() == []


def test_a_request_goes_on_waiting_after_what_was_no_response() -> None:
    waiting, one = Waiting(), pending()
    waiting.handed_over(one)
    acknowledged(waiting, one, PLACE)
    assert waiting.arrived(PLACE, ANSWER) is one
    waiting.goes_on(one)
    assert waiting.arrived(PLACE, ANSWER) is one


def test_a_request_that_was_not_written_waits_for_nothing() -> None:
    waiting, one = Waiting(), pending()
    waiting.handed_over(one)
    waiting.arrived(PLACE, ANSWER)
    assert waiting.acknowledged(one, None) is None
    assert waiting.all() == []


def test_closing_finds_who_waits_for_the_acknowledgement_and_who_for_the_response() -> None:
    waiting, written, answered, under_way = Waiting(), pending(), pending(), pending(answers=False)
    for each in (written, answered, under_way):
        waiting.handed_over(each)
    acknowledged(waiting, written, PLACE)
    acknowledged(waiting, answered, OTHER)
    waiting.arrived(OTHER, ANSWER)
    assert waiting.close() == [under_way, written]


def test_nothing_is_handed_over_once_the_client_is_closed() -> None:
    waiting, late = Waiting(), pending()
    assert waiting.close() == []
    with pytest.raises(WorkerError, match="the client is closed"):
        waiting.handed_over(late)
    assert waiting.all() == []


def test_a_request_without_a_response_is_over_once_it_is_acknowledged() -> None:
    one = pending(answers=False)
    assert not one.over
    one.note(place=PLACE)
    assert one.over
    assert one.wait_acknowledged(0) == PLACE


def test_whoever_waits_gets_the_response_or_the_error() -> None:
    told: list[Pending] = []
    one = Pending("r-1", told.append, answers=True)
    assert one.wait_acknowledged(0) is None
    one.note(place=PLACE)
    assert (one.over, one.wait(0)) == (False, None)
    response = Response("r-1", "completed", 1, None, 0.1, "", {})
    one.note(response=response)
    assert (one.over, one.wait(0)) == (True, response)
    assert told == [one, one]
    two = pending()
    two.note(error=WorkerError("no"))
    two.note(error=WorkerError("what comes of it"))
    with pytest.raises(WorkerError, match="no"):
        two.wait(0)
    with pytest.raises(WorkerError, match="no"):
        two.wait_acknowledged(0)
