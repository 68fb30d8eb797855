"""The checker sees what it is there to see: workers with one mistake each, on a real Kafka and on made-up evidence."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from gigaoffice_worker.core.commit_map import CommitMap
from tests.chaos.checker import Death, Findings, Flight, Life, examine, flights, stale_repeats
from tests.chaos.evidence import TIMED_BY_BROKER, Evidence, Place, Sample
from tests.chaos.load import request
from tests.support import wire
from tests.support.forked import ROOT
from tests.support.waiting import eventually
from tests.support.wire import Rec
from tests.support.workers import Call

pytestmark = pytest.mark.quick


# Mini-workers


@contextlib.contextmanager
def broken_worker(stage, mistake):
    """Run a mini-worker with one mistake; killed at the end."""
    log = stage.directory / "broken.log"
    environment = {
        **os.environ,
        **stage.environment,
        "PYTHONPATH": str(ROOT),
        "TEST_JOURNAL": str(stage.directory / "journal.jsonl"),
    }
    with log.open("ab") as output:
        command = [sys.executable, "-m", "tests.chaos.broken", mistake]
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


REQUESTS = [
    request(n, f"k{n % 3}", seconds=0.02)
    if n % 8
    else request(n, f"k{n % 3}", do="reject", expect="rejected", headers=[("a", None), ("a", b"2")])
    for n in range(36)
] + [request("last", "k0", do="fail", expect="attempts-exhausted")]


def run(stage, mistake, requests=REQUESTS, *, kill_after=None) -> Findings:
    """Let a mini-worker settle the requests, killed once where wanted, and examine what came of it."""
    stage.send(requests)
    if kill_after is not None:
        with broken_worker(stage, mistake):
            stage.wait_calls(kill_after)
    return settle(stage, mistake)


def hanging(stage, name):
    """Return a request whose call lasts for as long as there is a `gate` in the stage's directory."""
    gate = stage.directory / "gate"
    gate.touch()
    return request(name, do="hang", file=str(gate))


def wait_seen(stage, position: int) -> None:
    """Wait until the watch has seen that this position is committed."""

    def seen() -> bool:
        samples = stage.watch.samples
        return bool(samples) and samples[-1].committed.get(0, (0, ""))[0] == position

    eventually(seen, f"the watch to see position {position}", timeout=60)


def settle(stage, mistake, *, answered: int = 0) -> Findings:
    """Let a mini-worker settle what is left, and examine what came of it all.

    One that commits too early is given until so many requests are `answered`.
    """
    with broken_worker(stage, mistake) as worker:

        def enough() -> bool:
            sources = {tuple(rec.headers) for rec in wire.read_all(stage.bootstrap, stage.topics.responses)}
            return len(sources) >= answered

        def done_or_dead() -> bool:
            return (stage.lag() == 0 and (not answered or enough())) or worker.poll() is not None

        eventually(done_or_dead, "the mini-worker to commit everything", timeout=60, interval=0.1)
        eventually(lambda: stage.watch.samples, "the watch to see a commit")
    return examine(stage.evidence())


def test_nothing_is_wrong_with_a_sound_worker_that_is_killed(stage):
    stage.make(2)
    findings = run(stage, "sound", kill_after=15)
    findings.require()
    assert findings.requests == len(REQUESTS)
    assert findings.samples >= 3
    # What was in its hands.
    assert findings.repeated_calls <= 1
    assert findings.duplicate_outcomes <= 1


def test_commit_before_the_work_is_seen_even_where_nothing_is_lost(stage):
    stage.make(1)
    requests = [*REQUESTS, hanging(stage, "slow")]
    stage.send(requests)
    with broken_worker(stage, "commits-first"):
        # Until the watch has seen the commit; and all is committed before the last response is written.
        wait_seen(stage, len(requests))
        (stage.directory / "gate").unlink()
        eventually(lambda: stage.count(stage.topics.responses) == len(requests), "every response")
    findings = examine(stage.evidence())
    assert not findings.lost
    assert any("was committed before" in fault for fault in findings.faults)


def test_commit_before_the_work_loses_what_a_kill_interrupts(stage):
    stage.make(1)
    stage.send([hanging(stage, "slow"), *REQUESTS])
    with broken_worker(stage, "commits-first"):
        stage.wait_calls(1)
    findings = settle(stage, "commits-first", answered=len(REQUESTS))
    assert findings.lost == [Place(0, 0)]


def test_commit_of_the_highest_offset_seen_is_seen(stage):
    stage.make(1)
    stage.send([hanging(stage, "slow"), *[request(n, f"k{n}") for n in range(15)]])
    with broken_worker(stage, "commits-highest"):
        # All that it has in hand but the one that hangs, and a commit beyond that.
        beyond = lambda: stage.lag() < 16 and stage.count(stage.topics.responses) == 3  # noqa: E731
        eventually(beyond, "a commit beyond the one that hangs")
    (stage.directory / "gate").unlink()
    findings = settle(stage, "commits-highest", answered=15)
    assert any("was committed before" in fault for fault in findings.faults)
    assert findings.lost == [Place(0, 0)]


def test_response_that_is_only_handed_to_the_client_is_missed(stage):
    stage.make(1)
    findings = run(stage, "fires-and-forgets", kill_after=20)
    assert findings.lost
    assert any("was committed before" in fault for fault in findings.faults)


def test_dead_letter_that_could_not_be_written_is_missed(stage):
    names = stage.topics
    wire.create_topics(stage.bootstrap, {names.requests: 1, names.responses: 1}, config=TIMED_BY_BROKER)
    wire.create_topics(stage.bootstrap, {names.dlq: 1}, config={**TIMED_BY_BROKER, "max.message.bytes": "2000"})
    large = request("large", "k0", do="reject", expect="rejected", text=os.urandom(2000).hex())
    findings = run(stage, "swallows-dead-letters", [*REQUESTS[:10], large, *REQUESTS[10:20]])
    assert findings.lost == [Place(0, 10)]


@pytest.mark.parametrize(
    "mistake, fault",
    [
        ("rewrites-dead-letters", "key or value differ"),
        ("mixes-keys", "was called while"),
        ("publishes-twice", "has 2 outcomes out of 1 deliveries"),
        ("tries-too-often", "attempt 6 of 5"),
    ],
)
def test_mistake_is_seen(stage, mistake, fault):
    stage.make(1)
    findings = run(stage, mistake)
    assert not findings.lost
    assert any(fault in found for found in findings.faults), findings.faults


# Made-up evidence


def record(offset, value, *, key=b"k", timestamp=0, headers=(), partition=0):
    return Rec(partition, offset, key, value, list(headers), timestamp)


def source(offset):
    return [("source-topic", b"t"), ("source-partition", b"0"), ("source-offset", str(offset).encode())]


def response(at, offset, *, status="completed", request_id=None, timestamp=100):
    body = {"request_id": request_id or f"r{offset}", "status": status, "result": None, "error": None}
    value = json.dumps({**body, "processing_time": 0, "timestamp": ""}).encode()
    return record(at, value, timestamp=timestamp, headers=source(offset))


def calls(*offsets, pid=1, key="k"):
    """Return whole handler calls, one after the other."""
    return [
        Call(moment=moment, id=f"r{offset}", key=key, partition=0, offset=offset, attempt=1, pid=pid, at=0.0)
        for offset in offsets
        for moment in ("start", "end")
    ]


def evidence(**changes) -> Evidence:
    """Return three requests that were answered in order."""
    good = Evidence(
        "t",
        [record(n, json.dumps({"id": f"r{n}"}).encode()) for n in range(3)],
        [response(n, n, timestamp=100 + n) for n in range(3)],
        [],
        calls(0, 1, 2),
        [Sample(101, {0: (2, "")}), Sample(102, {0: (3, "")})],
        frozenset({Place(0, 0), Place(0, 1), Place(0, 2)}),
    )
    return good.but(**changes)


def test_evidence_without_fault_passes():
    findings = examine(evidence())
    findings.require()
    assert (findings.requests, findings.repeated_calls, findings.duplicate_outcomes, findings.samples) == (3, 0, 0, 2)


def test_map_that_claims_what_is_not_done_is_seen():
    honest = CommitMap(0, 3, (0, 2)).encode(4096)[0]
    claiming = CommitMap(0, 3, (0,)).encode(4096)[0]
    examine(evidence(samples=[Sample(101, {0: (0, honest)})])).require()
    faults = examine(evidence(samples=[Sample(101, {0: (0, claiming)})])).faults
    assert faults == ["the commit map of partition 0 at 0 claims 2, which were not done"]


def test_damaged_map_is_seen():
    assert "cannot be read" in examine(evidence(samples=[Sample(200, {0: (1, "gw1:1:?")})])).faults[0]


def test_commit_before_the_outcome_was_in_the_cluster_is_seen():
    faults = examine(evidence(samples=[Sample(101, {0: (3, "")})])).faults
    assert faults == ["position 3 of partition 0 was committed before 2 were done"]


def test_commit_that_goes_back_is_seen():
    samples = [Sample(200, {0: (3, "")}), Sample(201, {0: (1, "")})]
    assert examine(evidence(samples=samples)).faults == ["the committed position of partition 0 went back to 1"]


def test_responses_of_a_key_out_of_order_are_seen():
    swapped = [response(0, 1), response(1, 0), response(2, 2)]
    assert "stands behind that to offset 1" in examine(evidence(responses=swapped, samples=[])).faults[0]


@pytest.mark.parametrize("times, frozen, seen", [(1, False, 0), (2, False, 1), (2, True, 0), (3, True, 1)])
def test_response_that_was_owed_behind_a_dead_letter_may_come_from_a_frozen_worker_too(times, frozen, seen):
    rejected = record(0, json.dumps({"id": "r0", "expect": "rejected"}).encode())
    letter = record(0, rejected.value, timestamp=100, headers=[*source(0), ("dlq-reason", b"rejected")])
    found = evidence(
        requests=[rejected],
        responses=[response(n, 0, status="failed", timestamp=101 + n) for n in range(times)],
        dead_letters=[letter],
        calls=calls(0),
        samples=[],
        sent=frozenset({Place(0, 0)}),
    )
    faults = [fault for fault in examine(found, frozen=frozen).faults if "outcomes out of" in fault]
    assert len(faults) == seen


def test_second_response_behind_a_later_one_is_a_duplicate_and_no_disorder():
    again = [response(0, 0), response(1, 1), response(2, 0), response(3, 2)]
    twice = [*calls(0, 1), *calls(0, pid=2), *calls(2)]
    findings = examine(evidence(responses=again, calls=twice, samples=[]))
    findings.require()
    assert findings.duplicates == {Place(0, 0): 1}
    assert findings.repeated == {Place(0, 0): 1}


def test_calls_of_a_key_out_of_order_are_seen():
    assert "was first called after offset 1" in examine(evidence(calls=calls(1, 0, 2))).faults[0]


def test_response_without_a_request_is_seen():
    assert "names no request" in examine(evidence(responses=[response(n, n) for n in range(4)], samples=[])).faults[0]


def test_wrong_status_and_wrong_request_are_seen():
    wrong = [response(0, 0, status="failed"), response(1, 1, request_id="other"), response(2, 2)]
    assert len(examine(evidence(responses=wrong, samples=[])).faults) == 2


def test_missing_response_is_a_loss():
    findings = examine(evidence(responses=[response(0, 0), response(1, 1)], samples=[]))
    assert findings.lost == [Place(0, 2)]
    with pytest.raises(AssertionError, match="lost: 0-2"):
        findings.require()


def test_request_that_the_cluster_lost_is_told_apart():
    faults = examine(evidence(sent=frozenset({Place(0, 0), Place(0, 7)}))).faults
    assert faults == ["the cluster itself lost requests: 0-7"]


def test_attempt_that_is_left_out_is_seen():
    third = [call._replace(attempt=3) for call in calls(2)]
    assert examine(evidence(calls=[*calls(0, 1), *third])).faults[0] == "0-2: attempt 3 after 0"


@pytest.mark.parametrize(
    "done, deaths, told",
    [
        (10.1, [10.5, 20.0], []),
        (10.1, [12.0], ["0-0 was called again, done 1.9 s before a death"]),
        (10.1, [9.0], ["0-0 was called again although nothing had died since it was done"]),
        # Sent, and durable only after its worker had died: the death behind the next call is not the one that counts.
        (10.6, [10.5, 20.0], []),
    ],
)
def test_repeated_call_is_stale_where_its_outcome_was_old_at_the_death_that_it_comes_of(done, deaths, told):
    requests = [Rec(0, 0, b"k", b'{"id": "r0"}', [], 0)]
    names = [("source-topic", b"t"), ("source-partition", b"0"), ("source-offset", b"0")]
    responses = [Rec(0, 0, b"k", b"{}", names, int(done * 1000))]
    calls = [
        Call(moment, "r0", "k", 0, 0, 1, pid, at)
        for moment, pid, at in (("start", 1, 9.9), ("end", 1, 10.0), ("start", 2, 25.0))
    ]
    died = [Death(death, death) for death in deaths]
    assert stale_repeats(Evidence("t", requests, responses, [], calls), died) == told


def test_flight_tells_what_a_dead_process_had_in_hand_and_which_repeats_that_does_not_excuse():
    """Offset 0 was answered before the next one took over, 1 had ended and was answered after it, 2 still ran."""
    answers = [response(n, n, timestamp=at) for n, at in enumerate((9_000, 11_000, 12_000))]
    first = [*calls(0, 1, pid=1), calls(2, pid=1)[0]]
    found = flights(
        evidence(responses=answers, calls=[*first, *calls(0, 1, 2, pid=2)]),
        [Life(1, 5.0, 9.5), Life(2, 10.0)],
    )
    zero, one, two = (frozenset({Place(0, offset)}) for offset in range(3))
    assert found == [Flight(two, dict.fromkeys(one, 0.0), zero | one | two)]
    assert found[0].unexcused == zero
