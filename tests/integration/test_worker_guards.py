"""What may stop new handler calls or intake: the shared gate, the storm guard and the limits of memory."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import time
from collections.abc import Callable

import psutil
import pytest

from tests.support import batches
from tests.support.scene import ask, check_once, overlapping
from tests.support.waiting import eventually

QUICK = {"WORKER_RETRY_MAX_DELAY": "0.1", "WORKER_CONCURRENCY": "4"}


def test_shared_gate_holds_all_calls_and_counts_no_attempt(scene):
    scene.make()
    worker = scene.ready(WORKER_MAX_ATTEMPTS="1", **QUICK)
    limited = scene.file("limited")
    slow = scene.file("slow")
    scene.send(ask("running", "s", do="hang", file=str(slow)))
    scene.wait_started("running")
    scene.send(ask("limited", "a", do="while_file", then="shared", retry_after=1, file=str(limited)))
    scene.wait_started("limited")
    eventually(lambda: worker.metric("gate_closed") == 1, "the gate to close", interval=0.01)
    began = len(scene.journal())
    scene.send(*[ask(f"held-{n}", f"k{n}") for n in range(20)])
    slow.unlink()  # What runs already is not held.
    scene.wait_responses(1)
    eventually(lambda: worker.status()["gate"]["closed"], "the gate to be shown")
    assert worker.ask("/readyz")[0] == 200
    # Let the limit hold for several openings of the gate: each lets calls through, and the first failure closes it.
    eventually(lambda: scene.starts()["limited"] >= 3, "the limited one to be tried again")
    limited.unlink()
    responses = scene.wait_responses(22)
    check_once(responses, ["running", "limited", *[f"held-{n}" for n in range(20)]])
    assert {answer.result["attempt"] for answer in responses} == {1}
    assert scene.count(scene.topics.dlq) == 0
    assert worker.metric("handler_attempts_total", result="shared") == scene.starts()["limited"] - 1

    # Nothing was called between one closing of the gate and its opening a second later.
    starts = [call for call in scene.journal()[began:] if call.moment == "start"]
    closed_at = next(call.at for call in scene.journal() if call.id == "limited" and call.moment == "end")
    assert min(call.at for call in starts) >= closed_at + 0.95
    assert worker.metric("gate_closed") == 0


def test_gate_without_a_time_opens_by_itself(scene):
    scene.make()
    scene.ready(WORKER_MAX_ATTEMPTS="1", **QUICK)
    limited = scene.file("limited")
    scene.send(ask("limited", "a", do="while_file", then="shared", file=str(limited)), ask("other", "b"))
    eventually(lambda: scene.starts()["limited"] >= 4, "several tries")
    limited.unlink()
    check_once(scene.wait_responses(2), ["limited", "other"])


@pytest.mark.parametrize("asked_for", [None, 31_536_000], ids=["without a time", "for a year"])
def test_requests_that_the_provider_alone_refuses_hold_nobody_back_and_end(scene, asked_for):
    scene.make(requests=2)
    worker = scene.ready(WORKER_MAX_ATTEMPTS="2", WORKER_RETRY_MAX_DELAY="1", WORKER_RETRY_AFTER_MAX="0.5")
    refused = [ask(f"refused-{n}", f"r{n}", do="shared", retry_after=asked_for) for n in range(5)]
    others = [f"other-{n}" for n in range(60)]
    began = time.monotonic()
    scene.send(*refused, *[ask(name, f"k{n % 40}", seconds=0.3) for n, name in enumerate(others)])

    def all_answered():
        return worker.metric("requests_total", outcome="completed") >= 60

    eventually(all_answered, "the others to be answered", timeout=45 - (time.monotonic() - began))
    # From the eleventh time that they alone are refused, each counts as an attempt: other calls must pass meanwhile.
    # No more than are taken: the refusals may have taught a pace, and who is refused goes behind all that waits.
    sent = 0

    def all_ended():
        nonlocal sent
        if worker.metric("requests_total", outcome="completed") >= 60 + sent:
            scene.send(*[ask(f"more-{sent + n}", None) for n in range(5)])
            sent += 5
        return scene.count(scene.topics.dlq) == 5

    eventually(all_ended, "the refused ones to be given up", timeout=90, interval=0.5)
    scene.wait_committed()
    letters = scene.dead_letters()
    assert {letter.header("dlq-reason") for letter in letters} == {b"attempts-exhausted"}
    assert sum(answer.status == "completed" for answer in scene.responses()) == 60 + sent


def test_storm_guard_stops_intake_probes_one_request_at_a_time_and_heals(scene):
    scene.make()
    worker = scene.ready(WORKER_MAX_ATTEMPTS="2", WORKER_STORM_GUARD_MIN_REQUESTS="5", **QUICK)
    broken = scene.file("broken")
    # Rejections are the requests' own fault, however many.
    scene.send(*[ask(f"rejected-{n}", None, do="reject") for n in range(4)])
    scene.wait_committed()
    assert worker.metric("storm_guard_open") == 0
    failing = [ask(f"r{n}", f"k{n % 10}", do="while_file", then="fail", file=str(broken)) for n in range(60)]
    scene.send(*failing)
    eventually(lambda: worker.metric("storm_guard_open") == 1, "the storm guard to trip")
    tripped = len(scene.journal())
    eventually(lambda: worker.metric("requests_in_flight") <= 1, "what was running to end", interval=0.01)
    eventually(lambda: worker.metric("unsettled_outcomes") == 0, "its dead letters to be written")
    dead = scene.count(scene.topics.dlq)
    assert 4 + 5 <= dead < 40

    code, reason = worker.ask("/readyz")
    assert code == 503
    assert "storm" in reason
    assert "ValueError" in reason
    assert worker.metric("not_ready", reason="storm-guard") == 1
    assert worker.status()["storm_guard"] == {"open": True, "error_type": "ValueError"}
    assert worker.ask("/livez")[0] == 200
    assert json.loads(worker.ask("/health")[1])["status"] == "degraded"
    assert worker.metric("assigned_partitions") == 1
    # For one second in five it is not.
    eventually(lambda: worker.status()["partitions"][0]["paused"] == "storm-guard", "the partition to be paused")
    scene.send(ask("came-later", "later", do="while_file", then="fail", file=str(broken)))

    # One request at a time probes, again and again, and nothing more is given up.
    eventually(lambda: len(scene.journal()) > tripped + 48, "twenty probes")
    probes = scene.journal()[tripped + 8 :]
    assert overlapping(probes[probes[0].moment == "end" :], lambda call: "any") == []
    # Each time another one: all ten keys have had a turn before one has its second, in any order.
    assert len({call.id for call in probes}) >= 10
    assert scene.count(scene.topics.dlq) == dead

    broken.unlink()
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to heal")
    everything = [*[f"rejected-{n}" for n in range(4)], *[f"r{n}" for n in range(60)], "came-later"]
    responses = scene.wait_responses(len(everything))
    check_once(responses, everything)
    assert sum(answer.status == "completed" for answer in responses) == len(everything) - dead
    assert scene.count(scene.topics.dlq) == dead
    scene.wait_committed()
    told = lambda: [line["event"] for line in worker.logs() if "torm" in line["event"]]  # noqa: E731
    eventually(lambda: len(told()) >= 2, "the trip and the end to be told")
    assert len(told()) == len(set(told())) == 2, told()
    assert worker.metric("storm_guard_open") == 0


@pytest.mark.parametrize("key", ["one-tenant", None], ids=["one key", "no key"])
def test_forty_poisoned_requests_hold_nobody_back_for_long(scene, key):
    scene.make(requests=2)
    worker = scene.ready(WORKER_MAX_ATTEMPTS="2")
    scene.send(*[ask(None, key, do="fail") for _ in range(40)])
    eventually(lambda: worker.metric("storm_guard_open") == 1, "the storm guard to trip", timeout=60)
    good = [f"good-{n}" for n in range(180)]
    began = time.monotonic()
    scene.send(*[ask(name, f"k{n % 50}") for n, name in enumerate(good)])

    def all_answered():
        return worker.metric("requests_total", outcome="completed") >= 180

    eventually(all_answered, "the good ones to be answered", timeout=60 - (time.monotonic() - began))
    scene.wait_committed(60)
    check_once([answer for answer in scene.responses() if answer.status == "completed"], good)
    assert scene.count(scene.topics.dlq) == 40


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_four_hundred_poisoned_requests_among_a_thousand_keep_no_good_one_from_its_answer(scene):
    scene.make(requests=3)
    good = [f"good-{n}" for n in range(600)]
    everything = [ask(name, f"k{n % 200}") for n, name in enumerate(good)]
    everything += [ask(f"bad-{n}", f"b{n % 100}", do="fail") for n in range(400)]
    random.Random(7).shuffle(everything)
    scene.send(*everything)
    worker = scene.ready(WORKER_MAX_ATTEMPTS="2")
    began = time.monotonic()
    eventually(
        lambda: worker.metric("requests_total", outcome="completed") >= 600, "the good ones", timeout=180, interval=0.5
    )
    print(f"\n600 good ones among 400 poisoned after {time.monotonic() - began:.0f} s")
    eventually(lambda: scene.count(scene.topics.dlq) == 400, "the others' dead letters", timeout=900, interval=1.0)
    print(f"the poisoned ones in the DLQ after {time.monotonic() - began:.0f} s")
    check_once(scene.responses(), [*good, *(f"bad-{n}" for n in range(400))])
    scene.wait_committed(60)


def test_results_that_are_no_json_are_told_and_stop_the_intake(scene):
    scene.make()
    worker = scene.ready(WORKER_STORM_GUARD_MIN_REQUESTS="5", **QUICK)
    scene.send(*[ask(f"r{n}", f"k{n}", do="unserialisable") for n in range(40)])
    eventually(lambda: worker.metric("storm_guard_open") == 1, "the storm guard to trip")
    assert "UnusableResult" in worker.ask("/readyz")[1]
    eventually(lambda: worker.metric("requests_in_flight") <= 1, "what was running to end", interval=0.01)
    eventually(lambda: worker.metric("unsettled_outcomes") == 0, "its dead letters to be written")
    letters = scene.dead_letters()
    assert 5 <= len(letters) < 20
    assert {letter.header("dlq-reason") for letter in letters} == {b"unusable-result"}
    assert "UnusableResult" in worker.ask("/status")[1]
    line = next(line for line in worker.logs() if line.get("reason") == "unusable-result")
    assert (line["level"], line["type"], line["in_result"]) == ("warning", "object", "result['answer']")


def test_whatever_a_result_or_an_error_does_when_it_is_looked_at_the_process_lives(scene):
    scene.make()
    worker = scene.ready(WORKER_MAX_ATTEMPTS="2", **QUICK)
    results, errors = ["result.get", "result.property"], ["str", "retry_after", "shared", "class"]
    others = [f"r{n}" for n in range(20)]
    odd = [ask(when, when, do="misbehave", when=when) for when in [*results, *errors]]
    scene.send(*odd, *[ask(name) for name in others])
    responses = scene.wait_responses(26)
    check_once(responses, [*results, *errors, *others])
    failed = {answer.id for answer in responses if answer.status == "failed"}
    assert {*errors} <= failed <= {*errors, *results}
    scene.wait_committed()
    assert worker.ask("/livez")[0] == 200
    assert worker.stop() == 0


def test_a_forged_timestamp_does_not_jump_the_queue_or_distort_the_latencies(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="1")
    gate = scene.file("gate")
    scene.send(ask("first", "k", do="hang", file=str(gate)))
    scene.wait_started("first")
    # Of few keys, so that they become ready in turns; the forged ones have a key of their own.
    older = [ask(f"older-{n}", f"k{n % 3}") for n in range(300)]
    scene.send(*older)
    soon = int(time.time() * 1000) + 50 * 60_000  # the broker takes no more than an hour
    for timestamp in (1, soon):
        forged = batches.RawRecord(b"forged", json.dumps({"id": f"forged-{timestamp}"}).encode())
        batches.produce(scene.bootstrap, scene.topics.requests, batches.batch([forged], timestamp=timestamp))
    eventually(lambda: worker.metric("requests_queued") == 302, "all to be received")
    gate.unlink()
    scene.wait_committed()
    order = [call.id for call in scene.journal() if call.moment == "start"]
    places = [place for place, name in enumerate(order) if name.startswith("forged")]
    assert min(places) >= 290
    seconds = re.search(r"^gigaoffice_worker_end_to_end_seconds_sum (\S+)", worker.ask("/metrics")[1], re.MULTILINE)
    assert seconds is not None
    assert float(seconds[1]) < 305 * 60


def test_rejections_alone_trip_no_storm_guard(scene):
    scene.make()
    worker = scene.ready(WORKER_STORM_GUARD_MIN_REQUESTS="5", **QUICK)
    scene.send(*[ask(f"r{n}", None, do="reject") for n in range(30)], *[(None, b"no request", [])] * 30)
    scene.wait_committed()
    assert worker.metric("storm_guard_open") == 0
    assert worker.ask("/readyz")[0] == 200
    assert scene.count(scene.topics.dlq) == 60


def test_storm_guard_can_be_switched_off(scene):
    scene.make()
    worker = scene.ready(
        WORKER_STORM_GUARD="off", WORKER_STORM_GUARD_MIN_REQUESTS="5", WORKER_MAX_ATTEMPTS="1", **QUICK
    )
    scene.send(*[ask(f"r{n}", None, do="fail") for n in range(30)])
    scene.wait_committed()
    assert worker.metric("storm_guard_open") == 0
    assert scene.count(scene.topics.dlq) == 30


def test_backlog_beyond_the_limit_of_records_is_paused_with_a_reason_and_finished_later(scene):
    scene.make(requests=3)  # of which each may hold a third of the limit
    gate = scene.file("gate")
    scene.send(*[ask(f"r{n}", None, do="hang", file=str(gate)) for n in range(3500)], partition=1)
    worker = scene.ready()
    paused: Callable[[], bool] = lambda: (  # noqa: E731
        [row["paused"] for row in worker.status()["partitions"]] == [None, "records", None]
    )
    eventually(paused, "the partition to be paused")
    assert worker.ask("/readyz")[0] == 200
    assert worker.metric("messages_received_total") < 3500
    eventually(lambda: worker.metric("requests_in_flight") == 16, "every thread to have a call")

    # What comes while it is paused shows in the lag all the same.
    scene.send(*[ask(f"more-{n}", None) for n in range(100)], partition=1)
    eventually(lambda: worker.metric("consumer_lag_records", partition="1") == 3600, "the lag to be refreshed")
    assert worker.metric("consumer_lag_seconds", partition="1") > 0
    assert worker.metric("paused_partitions") == 1

    gate.unlink()
    scene.wait_committed(60)
    assert scene.count(scene.topics.responses) == 3600
    assert max(scene.starts().values()) == 1
    eventually(lambda: worker.metric("consumer_lag_records") == worker.metric("paused_partitions") == 0, "no lag")
    assert worker.metric("consumer_lag_seconds") == 0


def test_backlog_of_large_requests_is_paused_and_memory_stays_bounded(scene):
    scene.make()
    gate = scene.file("gate")
    ballast = base64.b64encode(os.urandom(600_000)).decode()
    for _ in range(6):
        scene.send(
            *[ask(None, None, do="hang", file=str(gate), ballast=ballast) for n in range(25)], batch_size=900_000
        )
    worker = scene.ready(WORKER_CONCURRENCY="2")
    eventually(lambda: worker.status()["partitions"][0]["paused"] == "bytes", "the partition to be paused")
    gate.unlink()
    process = psutil.Process(worker.pid)
    highest = 0

    def done():
        nonlocal highest
        highest = max(highest, process.memory_info().rss)
        return worker.metric("requests_total") == 150

    eventually(done, "the backlog to be finished", timeout=60)
    scene.wait_committed()
    assert highest < 250 * 1024 * 1024, f"{highest >> 20} MiB for a backlog of 115 MiB"
