"""Handlers that don't come back: given up, retried, replaced, and in the end the process with them."""

from __future__ import annotations

import json

from tests.support.scene import ask, check_once
from tests.support.waiting import eventually

IMPATIENT = {"WORKER_ATTEMPT_TIMEOUT": "0.4", "WORKER_RETRY_DELAY": "0.02", "WORKER_RETRY_MAX_DELAY": "0.05"}


def test_overdue_attempts_are_retried_and_their_late_results_dropped_while_the_pool_stays_whole(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="3", **IMPATIENT)
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
    scene.send(*[ask(name, None, do="hang", file=str(calm), hang_seconds=0.3) for name in together])
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
    assert [line["event"] for line in worker.logs()].count("Late result dropped") == 3
    assert worker.ask("/readyz")[0] == 200
    assert worker.stop(10) == 0


def test_more_hanging_calls_than_the_pool_has_threads_end_the_process_with_70(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="2", WORKER_MAX_ATTEMPTS="9", **IMPATIENT)
    scene.send(*[ask(f"hangs-{n}", None, do="hang") for n in range(3)])
    assert worker.wait(20) == 70
    assert len(scene.starts()) == 3
    assert scene.responses() == []
    assert scene.committed() == {0: 0}
    [last] = [line for line in worker.logs() if line["level"] == "error"]
    assert "hang" in json.dumps(last)


def test_a_hanging_call_delays_nobody_but_its_key(scene):
    scene.make()
    scene.ready(WORKER_CONCURRENCY="2", WORKER_MAX_ATTEMPTS="1", **IMPATIENT)
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
