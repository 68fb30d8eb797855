"""Handlers that don't come back: given up, retried, replaced, and in the end the process with them."""

from __future__ import annotations

import json

from gigaoffice_worker.core.commit_map import CommitMap
from gigaoffice_worker.core.journal import split_metadata
from tests.support import wire
from tests.support.scene import ask, check_once
from tests.support.waiting import eventually

IMPATIENT = {"WORKER_ATTEMPT_TIMEOUT": "0.4", "WORKER_RETRY_DELAY": "0.02", "WORKER_RETRY_MAX_DELAY": "0.05"}


def test_overdue_attempts_are_retried_and_their_late_results_dropped_while_the_pool_stays_whole(scene):
    scene.make()
    # Time enough for the calls that are to end, on a busy machine too.
    worker = scene.ready(WORKER_CONCURRENCY="3", **{**IMPATIENT, "WORKER_ATTEMPT_TIMEOUT": "6"})
    gate = scene.file("gate")
    hanging = [ask(f"hangs-{n}", f"h{n}", do="hang", file=str(gate), until_attempt=2) for n in range(3)]
    scene.send(*hanging, ask("behind-one-that-hangs", "h0"))
    scene.wait_responses(4)
    assert worker.metric("handler_abandoned_threads") == 3
    assert worker.metric("handler_attempts_total", result="timed-out") == 3
    assert worker.metric("late_results_dropped_total") == 0

    # Every thread of the pool hangs, and there are as many as before.
    calm = scene.file("calm")
    together = [f"together-{n}" for n in range(3)]
    scene.send(*[ask(name, None, do="hang", file=str(calm)) for name in together])
    scene.wait_started(*together)
    calm.unlink()
    scene.wait_responses(7)

    gate.unlink()
    eventually(lambda: worker.metric("late_results_dropped_total") == 3, "the late results to be dropped")
    eventually(lambda: worker.metric("handler_abandoned_threads") == 0, "the abandoned threads to end")
    scene.wait_committed()
    responses = scene.responses()
    check_once(responses, [*[f"hangs-{n}" for n in range(3)], "behind-one-that-hangs", *together])
    assert all(answer.status == "completed" for answer in responses)
    assert {answer.result["attempt"] for answer in responses if answer.id.startswith("hangs")} == {2}
    assert worker.ask("/readyz")[0] == 200
    assert worker.stop() == 0
    assert [line["event"] for line in worker.logs()].count("Late result dropped") == 3


def test_more_hanging_calls_than_the_pool_has_threads_end_the_process_with_70(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="2", WORKER_MAX_ATTEMPTS="9", **IMPATIENT)
    scene.send(*[ask(f"hangs-{n}", None, do="hang") for n in range(6)])
    assert worker.wait(40) == 70
    # More than twice as many threads hang as the pool has; what ended is delivered and committed.
    assert sum(scene.starts().values()) >= 5
    letters = scene.dead_letters()
    assert letters
    assert {letter.header("dlq-reason") for letter in letters} == {b"timed-out"}
    assert len(scene.responses()) == len(letters)
    [(position, text)] = wire.committed(scene.bootstrap, scene.topics.group, scene.topics.requests).values()
    text, _ = split_metadata(text)
    beyond = CommitMap.decode(text, position) if text else CommitMap(position, position, ())
    assert position + beyond.horizon - beyond.base - len(beyond.unfinished) == len(letters)
    [last] = [line for line in worker.logs() if line["level"] == "error"]
    assert "hang" in json.dumps(last)


def test_four_requests_that_always_hang_end_in_the_dead_letter_queue_and_the_worker_lives_on(scene):
    scene.make()
    # Time enough for the others, on a busy machine too.
    worker = scene.ready(WORKER_ATTEMPT_TIMEOUT="6", WORKER_RETRY_DELAY="0.1")
    others = [ask(f"r{n}", f"k{n}") for n in range(40)]
    scene.send(*others[:20], *[ask(f"hangs-{n}", None, do="hang") for n in range(4)], *others[20:])
    responses = scene.wait_responses(44, timeout=60)
    letters = scene.dead_letters()
    assert [letter.header("dlq-reason") for letter in letters] == [b"timed-out"] * 4
    assert {letter.header("dlq-attempts") for letter in letters} == {b"2"}
    assert sum(answer.status == "completed" for answer in responses) == 40
    assert [scene.starts()[f"hangs-{n}"] for n in range(4)] == [2] * 4
    scene.wait_committed()
    assert worker.metric("handler_abandoned_threads") == 8
    assert worker.stop() == 0
    stacks = [line for line in worker.logs() if line["event"].startswith("Handler call hangs")]
    assert {line["request_id"] for line in stacks} == {f"hangs-{n}" for n in range(4)}
    assert len(stacks) == 4
    assert all("hang" in line["stack"] and line["at"] for line in stacks)


def test_a_result_that_comes_late_but_before_the_retry_is_taken(scene):
    scene.make()
    # A delay is drawn from zero on.
    day = {"WORKER_RETRY_DELAY": "86400", "WORKER_RETRY_MAX_DELAY": "86400"}
    worker = scene.ready(WORKER_ATTEMPT_TIMEOUT="0.5", WORKER_MAX_ATTEMPTS="2", **day)
    gate = scene.file("gate")
    scene.send(ask("late", "k", do="hang", file=str(gate)), ask("behind", "k"))
    eventually(lambda: worker.metric("handler_abandoned_threads") == 1, "the call to be given up")
    gate.unlink()
    late, behind = scene.wait_responses(2)
    assert (late.id, late.status, behind.id) == ("late", "completed", "behind")
    assert json.loads(late.rec.value)["processing_time"] >= 0.5
    assert scene.starts() == {"late": 1, "behind": 1}
    assert worker.metric("late_results_dropped_total") == 0


def test_a_call_that_hangs_at_the_stop_is_told_when_the_wait_begins_and_at_its_end(scene):
    scene.make()
    worker = scene.ready(WORKER_DRAIN_TIMEOUT="3")
    scene.send(ask("hangs", "h", do="hang"))
    scene.wait_started("hangs")
    assert worker.stop() == 70
    waits, ends = (line for line in worker.logs() if "stack" in line)
    assert waits["event"] == "Stop waits for a handler call"
    assert ends["event"] == "Stop abandons a handler call that still runs"
    assert {waits["request_id"], ends["request_id"]} == {"hangs"}
    assert waits["at"]
    assert ends["seconds"] > waits["seconds"]


def test_a_hanging_call_delays_nobody_but_its_key(scene):
    scene.make()
    # The others must be through before it is given up, on a busy machine too.
    scene.ready(WORKER_CONCURRENCY="2", WORKER_MAX_ATTEMPTS="1", **{**IMPATIENT, "WORKER_ATTEMPT_TIMEOUT": "6"})
    gate = scene.file("gate")
    scene.send(
        ask("hangs", "h", do="hang", file=str(gate)), *[ask(f"r{n}", f"k{n}") for n in range(30)], ask("behind", "h")
    )
    responses = scene.wait_responses(32)
    assert [answer.id for answer in responses][-2:] == ["hangs", "behind"]
    [letter] = scene.dead_letters()
    assert letter.header("dlq-reason") == b"timed-out"
    gate.unlink()
    scene.wait_committed()
