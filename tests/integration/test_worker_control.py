"""What an operator does to a running worker over its control socket."""

from __future__ import annotations

import stat

from tests.support.scene import ask, overlapping
from tests.support.waiting import eventually


def test_intake_is_paused_and_resumed_and_the_membership_is_kept(scene):
    worker = scene.make().ready()
    socket = worker.control_socket
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    rebalances = worker.metric("rebalances_total")
    assert worker.ctl("pause").returncode == 0
    status, told = worker.ask("/readyz")
    assert status == 503
    assert "paused: an operator stopped intake" in told
    assert worker.ask("/livez")[0] == 200
    scene.send(ask("r-1"))
    eventually(lambda: worker.status()["partitions"][0]["paused"] == "operator", "intake to stop")
    waits = lambda: worker.metric("consumer_lag_seconds", partition="0") > 0.5  # noqa: E731
    eventually(waits, "the time to be told for which it waits")
    assert scene.responses() == []
    done = worker.ctl("resume")
    assert (done.returncode, done.stdout) == (0, "running\n")
    scene.wait_responses(1)
    assert worker.ask("/readyz")[0] == 200
    assert worker.metric("rebalances_total") == rebalances
    assert worker.ctl("resume").stdout == "running: it was not paused\n"
    assert worker.stop() == 0
    assert not socket.exists()


def test_calls_at_once_are_lowered_and_raised_while_the_worker_runs(scene):
    worker = scene.make().ready(WORKER_CONCURRENCY="4")
    assert worker.ctl("concurrency", "1").stdout == "1 handler calls at once, until the worker ends\n"
    scene.send(*(ask(f"slow-{number}", seconds=0.2) for number in range(6)))
    scene.wait_responses(6)
    assert overlapping(scene.journal(), lambda _call: "any") == []
    assert worker.status()["concurrency"] == 1
    assert worker.ctl("concurrency", "8").returncode == 0
    gate = scene.file("gate")
    scene.send(*(ask(f"wide-{number}", do="hang", file=str(gate)) for number in range(8)))
    eventually(lambda: worker.status()["requests"]["running"] == 8, "eight calls at once")
    gate.unlink()
    refused = worker.ctl("concurrency", "0")
    assert refused.returncode == 1
    assert "a whole number from 1 to 1024" in refused.stderr
    assert worker.stop() == 0


def test_a_paused_worker_stops_in_order(scene):
    worker = scene.make().ready()
    assert worker.ctl("pause").returncode == 0
    scene.send(ask("r-1"))
    assert worker.stop() == 0
    scene.ready("successor")
    scene.wait_responses(1)


def test_the_log_level_is_changed_while_the_worker_runs(scene):
    worker = scene.make().ready()
    scene.send(ask("quiet"))
    scene.wait_responses(1)
    assert worker.ctl("log-level", "debug").returncode == 0
    scene.send(ask("told"))
    scene.wait_responses(2)

    def at_debug():
        return {line.get("request_id") for line in worker.logs() if line["level"] == "debug"}

    worker.wait_until(lambda: "told" in at_debug(), 20, "a line about the request")
    assert "quiet" not in at_debug()
    assert worker.ctl("log-level", "warning").returncode == 0
    assert worker.stop() == 0
    told = [line["event"] for line in worker.logs() if line["event"] != "Repeated messages left out"]
    assert told[-1] == "Command of an operator"
