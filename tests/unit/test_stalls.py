"""Partitions that stand still: which, since when, and why."""

from __future__ import annotations

import pytest

from gigaoffice_worker.engine.stalls import Cause, StallWatch


class Log:
    """A partition as a consumer sees it: read up to 5 of 8, and readable to the end."""

    def __init__(self) -> None:
        self.read_to: int | None = 5
        self.end: int | None = 8
        self.readable: int | None = 8
        self.led = True

    def position(self, partition: int) -> int | None:
        return self.read_to

    def watermark(self, partition: int) -> int | None:
        return self.end

    def readable_end(self, partition: int) -> int | None:
        return self.readable

    def has_leader(self, partition: int) -> bool:
        return self.led


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def watch(log: Log) -> StallWatch:
    return StallWatch(log)


def look(watch: StallWatch, *, paused: bool = False) -> Cause | None:
    watch._next_look = 0.0
    watch.look({0}, {0} if paused else set())
    stall = watch.held.get(0)
    return stall.cause if stall else None


def test_records_that_do_not_come_are_a_stall(log, watch):
    assert look(watch) is Cause.NOT_ANSWERED
    log.read_to = 8
    assert look(watch) is None


@pytest.mark.parametrize("paused", [False, True])
def test_what_waits_behind_a_position_is_timed_whether_it_is_paused_or_not(log, watch, paused):
    look(watch, paused=paused)
    first = watch.behind[0]
    log.end = 9
    look(watch, paused=paused)
    assert watch.behind == {0: first}
    log.read_to = 6
    look(watch, paused=paused)
    assert watch.behind[0].position == 6
    assert watch.behind[0].since > first.since
    log.read_to = 9
    look(watch, paused=paused)
    assert watch.behind == {}


def test_partition_that_is_readable_only_up_to_here_waits_behind_an_open_transaction(log, watch):
    log.readable = 5
    assert look(watch) is Cause.OPEN_TRANSACTION


def test_partition_without_a_leader_stalls_even_where_all_is_read_or_it_is_paused(log, watch):
    log.led, log.read_to = False, 8
    assert look(watch) is Cause.NO_LEADER
    assert look(watch, paused=True) is Cause.NO_LEADER


def test_what_we_have_paused_or_have_not_begun_stands_still_by_our_will(log, watch):
    assert look(watch, paused=True) is None
    log.read_to = None
    assert look(watch) is None


def test_stall_begins_anew_wherever_reading_moved(log, watch):
    look(watch)
    first = watch.held[0]
    look(watch)
    assert watch.held[0].since == first.since
    log.read_to = 6
    look(watch)
    assert watch.held[0].since > first.since


def test_stall_is_told_and_asked_about_only_when_it_lasts(log, watch):
    look(watch)
    stall = watch.held[0]
    assert watch.to_ask_about() == []
    assert not stall.told(stall.since + 9.0)
    assert stall.told(stall.since + 10.0)
