"""Until when a request is worth a call, and what happens to those that are not while they wait."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from gigaoffice_worker.core.expiry import Worth, expired, is_expired, worth
from gigaoffice_worker.core.judgement import Retry
from gigaoffice_worker.core.messages import MAX_REQUEST_BYTES
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome, Reason
from gigaoffice_worker.core.work import Stage
from gigaoffice_worker.engine.expiry import Expiry
from gigaoffice_worker.engine.processor import Processor
from gigaoffice_worker.observe.metrics import Metrics
from tests.support.making import Partition, dispatcher, record

WRITTEN = 1_700_000_000.0
AT = b"%d" % (1_700_000_000_000 + 7_500)


@pytest.mark.parametrize(
    "ttl, headers, until",
    [
        (None, [], math.inf),
        (None, [("other", b"5")], math.inf),
        (300.0, [], WRITTEN + 300),
        (None, [("expires-at", AT)], WRITTEN + 7.5),
        (None, [("ttl-ms", b"2500")], WRITTEN + 2.5),
        (5.0, [("expires-at", AT), ("ttl-ms", b"6000")], WRITTEN + 5),
        (None, [("ttl-ms", b"1000"), ("ttl-ms", b"2000")], WRITTEN + 2),
        (None, [("ttl-ms", b"0")], WRITTEN),
    ],
)
def test_request_is_worth_a_call_until_the_earliest_of_its_limits(ttl, headers, until):
    assert worth(record(headers=headers), ttl) == Worth(until, 0)


@pytest.mark.parametrize("value", [None, b"", b"-1", b"1.5", b" 1", b"1e3", "٣".encode(), b"\xb2", b"9" * 19])
@pytest.mark.parametrize("name", ["expires-at", "ttl-ms"])
def test_header_that_cannot_be_read_is_ignored_and_counted(name, value):
    assert worth(record(headers=[(name, value)]), None) == Worth(math.inf, 1)
    assert worth(record(headers=[(name, value)]), 10.0) == Worth(WRITTEN + 10, 1)


def test_record_without_a_timestamp_expires_by_the_clock_only():
    request = record(headers=[("ttl-ms", b"1"), ("expires-at", AT)])._replace(timestamp=0.0)
    assert worth(request, 1.0) == Worth(WRITTEN + 7.5, 0)


def test_only_what_expired_looks_like_it():
    assert is_expired(expired(to_dlq=False))
    assert is_expired(expired(to_dlq=True))
    assert not is_expired(Outcome(b"{}"))
    assert not is_expired(Outcome(b"{}", Failure("HandlerFailure", "")))
    assert not is_expired(Outcome(failure=Failure("Expired", ""), reason=Reason.ATTEMPTS_EXHAUSTED))


# While it waits


def waiting(scene, key, until):
    work = scene.held.work(key)
    work.worth_until = until
    return work


class Scene:
    def __init__(self):
        self.now = 0.0
        self.held = Partition()
        self.dispatcher = dispatcher(clock=lambda: self.now)

    def offer(self, *requests):
        works = [waiting(self, *request) for request in requests]
        self.dispatcher.offer(works)
        return works

    def expire(self, now):
        return self.dispatcher.expire([self.held.assignment], now)


def test_what_waits_is_taken_back_when_its_time_is_up_and_not_before():
    scene = Scene()
    first, second, _ = scene.offer((b"a", 10.0), (b"b", 20.0), (b"c", math.inf))
    assert scene.expire(9.9) == []
    assert scene.expire(10.0) == [first]
    assert first.stage is Stage.DELIVERING
    assert scene.expire(19.0) == []
    assert scene.expire(25.0) == [second]
    assert scene.expire(1e12) == []
    assert scene.dispatcher.counts().queued == 1
    assert scene.dispatcher.counts().delivering == 2


@pytest.mark.parametrize("to_dlq", [False, True])
def test_what_expired_while_it_waited_is_answered_under_its_id_and_told(to_dlq):
    scene, delivered = Scene(), []
    delivery = SimpleNamespace(deliver=lambda work, outcome: delivered.append((work, outcome)) or True)
    expiry = Expiry(
        scene.dispatcher, delivery, Metrics("0"), ttl=None, to_dlq=to_dlq, max_request_bytes=2 * MAX_REQUEST_BYTES
    )
    work = scene.held.work(None, value=b'{"id":"r-1","text":"%s"}' % (b"x" * MAX_REQUEST_BYTES))
    work.worth_until = 10.0
    scene.dispatcher.offer([work])
    with capture_logs() as logs:
        expiry.answer_expired([scene.held.assignment])
    assert delivered == [(work, expired(to_dlq=to_dlq))]
    assert work.id == "r-1"
    [told] = [line for line in logs if line.get("request_id") == "r-1"]
    assert told["log_level"] == ("warning" if to_dlq else "debug")
    assert told.get("reason") == ("expired" if to_dlq else None)


def test_expired_first_of_its_key_opens_the_way_once_it_is_delivered():
    scene = Scene()
    first, second = scene.offer((b"k", 10.0), (b"k", math.inf))
    assert scene.expire(10.0) == [first]
    scene.dispatcher.free(first)
    assert scene.dispatcher.take() is second


def test_expired_behind_a_running_request_of_its_key_lets_nobody_pass_it():
    scene = Scene()
    running, gone, last = scene.offer((b"k", math.inf), (b"k", 10.0), (b"k", math.inf))
    assert scene.dispatcher.take() is running
    assert scene.expire(10.0) == [gone]
    scene.dispatcher.free(gone)  # its response was delivered late
    assert scene.dispatcher.counts().queued == 1
    assert scene.dispatcher.take(running) is last


def test_running_call_is_not_cut_short_and_its_retry_is_not_begun():
    scene = Scene()
    [work] = scene.offer((b"k", 10.0))
    assert scene.dispatcher.take() is work
    assert scene.expire(11.0) == []
    made = Attempt(AttemptEnd.FAILED, 0.1, failure=Failure("ValueError", "no"))
    assert isinstance(scene.dispatcher.conclude(work, work.run, made), Retry)
    assert scene.expire(12.0) == [work]
    assert scene.dispatcher.counts().waiting_retry == 0


def test_result_that_came_in_time_counts_however_old_its_request_is():
    scene = Scene()
    [work] = scene.offer((b"k", 10.0))
    scene.dispatcher.take()
    assert scene.expire(11.0) == []
    judged = scene.dispatcher.conclude(work, work.run, Attempt(AttemptEnd.ANSWERED, 0.1, b"{}"))
    assert judged == Outcome(b"{}")
    assert scene.expire(12.0) == []


def test_many_are_taken_back_in_batches():
    scene = Scene()
    scene.offer(*[(b"%d" % n, 1.0) for n in range(1200)])
    assert [len(scene.expire(2.0)) for _ in range(4)] == [500, 500, 200, 0]
    assert scene.dispatcher.counts().queued == 0


def test_request_that_expired_in_the_last_moment_is_not_handed_to_the_handler():
    held = Partition()
    work = held.work(b"k")
    work.worth_until = 1.0
    made = Processor(lambda _request: pytest.fail("called"), 10.0).attempt(work)
    assert made.ended is AttemptEnd.EXPIRED
    scene = Scene()
    [work] = scene.offer((b"k", 1.0))
    scene.dispatcher.take()
    judged = scene.dispatcher.conclude(work, work.run, made)
    assert is_expired(judged)
    assert work.attempt == 0
