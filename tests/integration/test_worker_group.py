"""Several workers in one group: what a rebalance may not do to what is in hand."""

from __future__ import annotations

import itertools
import signal
import threading
import time

import pytest

from tests.support.scene import ask, check_once, ids, overlapping
from tests.support.waiting import eventually

WHAT = ("running-0", "running-1", "retry", "queued")


@pytest.fixture
def scene(scene):
    """Workers hear of a rebalance by their heartbeat."""
    scene.environment["KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS"] = "300"
    return scene


def partitions(worker):
    return {row["partition"] for row in worker.status().get("partitions", [])}


def share(count, *workers):
    """Wait until the workers have `count` partitions among them, and each its part."""
    least = count // len(workers)

    def shared():
        held = [partitions(worker) for worker in workers]
        return len(set().union(*held)) == sum(map(len, held)) == count and min(map(len, held)) >= least

    eventually(shared, f"{count} partitions to be shared by {len(workers)}", timeout=30)


def test_running_calls_on_partitions_that_stay_are_not_repeated_by_a_member_that_comes_and_goes(scene):
    scene.make(requests=4)
    gates = [scene.file(f"gate-{n}") for n in range(4)]
    # Whoever is slow must not find the last attempt made.
    scene.environment["WORKER_MAX_ATTEMPTS"] = "100"
    stays = scene.ready("stays", WORKER_REBALANCE_WAIT="0.3")
    for n, gate in enumerate(gates):
        retrying = ask(f"retry-{n}", "t", do="while_file", then="transient", retry_after=0.4, file=str(gate))
        running = [ask(f"running-{k}-{n}", f"k{k}", do="hang", file=str(gate)) for k in (0, 1)]
        scene.send(*running, retrying, ask(f"queued-{n}", "k0"), partition=n)
    scene.wait_started(*[f"running-{k}-{n}" for n in range(4) for k in (0, 1)])

    comes = scene.ready("comes")
    share(4, stays, comes)
    kept, moved = partitions(stays), partitions(comes)
    # Nothing that waited starts at the member that has lost it.
    for n in moved:
        gates[n].unlink()
    scene.wait_answered(*(f"{what}-{n}" for what in WHAT for n in moved))
    assert comes.stop() == 0
    share(4, stays)
    for n in kept:
        gates[n].unlink()
    expected = [f"{what}-{n}" for what in WHAT for n in range(4)]
    check_once(scene.wait_responses(len(expected)), expected)
    scene.wait_committed()
    starts = scene.starts()
    assert {name: starts[name] for n in kept for name in (f"running-0-{n}", f"running-1-{n}", f"queued-{n}")} == {
        name: 1 for n in kept for name in (f"running-0-{n}", f"running-1-{n}", f"queued-{n}")
    }
    begun = [call for call in scene.journal() if call.moment == "start"]
    assert {call.pid for call in begun if call.id in {f"queued-{n}" for n in moved}} == {comes.pid}
    # What moved was running at its old owner, whose results count for nothing any more.
    eventually(lambda: stays.metric("late_results_dropped_total") == 2 * len(moved), "the late results to be dropped")
    assert stays.stop() == 0


def running_for_one_that_moved_and_returned(scene):
    """Return a worker with calls that run until a file is gone: some are of a partition that was away meanwhile."""
    scene.make(requests=2)
    gate = scene.file("gate")
    stays = scene.ready("stays", WORKER_REBALANCE_WAIT="0.3")
    for n in range(2):
        running = [ask(f"{key}-{n}", key, do="hang", file=str(gate)) for key in ("k", "other", None)]
        scene.send(*running, ask(f"behind-{n}", "k"), partition=n)
    scene.wait_started(*[f"{key}-{n}" for key in ("k", "other", None) for n in range(2)])

    comes = scene.ready("comes", WORKER_DRAIN_TIMEOUT="1")
    share(2, stays, comes)
    [moved] = partitions(comes)
    eventually(lambda: scene.starts()[f"k-{moved}"] == 2, "the other member to call, too")
    assert comes.stop() == 70
    share(2, stays)
    eventually(
        lambda: {row["position"] for row in stays.status()["partitions"]} == {4},
        "what moved to be read anew",
        timeout=20,
    )
    return stays, gate


def test_calls_are_not_made_beside_those_that_still_run_when_a_partition_moves_and_returns(scene):
    """Another member had it in between, so it is read anew; what then waits is answered with what was paid for."""
    stays, gate = running_for_one_that_moved_and_returned(scene)
    time.sleep(1.0)  # for calls that must not be made
    mine = [call for call in scene.journal() if call.pid == stays.pid]
    assert overlapping(mine, lambda call: (call.partition, call.key, call.key or call.id)) == []
    gate.unlink()
    everything = [f"{what}-{n}" for what in ("k", "other", None, "behind") for n in range(2)]
    check_once(scene.wait_responses(len(everything)), everything)
    scene.wait_committed()
    mine = [call.id for call in scene.journal() if (call.pid, call.moment) == (stays.pid, "start")]
    assert sorted(mine) == sorted(everything)
    assert stays.metric("late_results_dropped_total") == 0
    assert stays.stop() == 0


def test_stop_delivers_what_still_runs_for_a_partition_that_has_moved_and_returned(scene):
    stays, gate = running_for_one_that_moved_and_returned(scene)
    stays.signal(signal.SIGTERM)
    eventually(lambda: "drain" in stays.ask("/readyz")[1], "the worker to drain")
    gate.unlink()
    assert stays.wait(40) == 0
    paid = [f"{key}-{n}" for key in ("k", "other", None) for n in range(2)]
    behind = [f"behind-{n}" for n in range(2)]
    check_once(scene.responses(), paid)
    follows = scene.ready("follows")
    check_once(scene.wait_responses(8), [*paid, *behind])
    assert sorted(call.id for call in follows.calls() if call.pid == follows.pid) == behind
    assert follows.stop() == 0


def test_stop_does_not_wait_for_a_call_whose_partition_has_moved(scene):
    scene.make(requests=2)
    gates = [scene.file(f"gate-{n}") for n in range(2)]
    leaves = scene.ready("leaves", WORKER_REBALANCE_WAIT="0.3")
    for n, gate in enumerate(gates):
        scene.send(ask(f"running-{n}", do="hang", file=str(gate)), partition=n)
    scene.wait_started("running-0", "running-1")
    stays = scene.ready("stays")
    share(2, leaves, stays)
    [moved] = partitions(stays)
    gates[1 - moved].unlink()
    scene.wait_answered(f"running-{1 - moved}")
    asked = time.monotonic()
    assert leaves.stop() == 0
    assert time.monotonic() - asked < 10  # the drain may take 25 s, and the call goes on
    gates[moved].unlink()
    check_once(scene.wait_responses(2), ["running-0", "running-1"])
    scene.wait_committed()
    assert stays.stop() == 0


def test_rolling_restart_of_three_workers_under_load_repeats_no_call_and_no_response(scene):
    scene.make(requests=6, responses=6)
    workers = [scene.ready(name, WORKER_CONCURRENCY="4") for name in ("one", "two", "three")]
    share(6, *workers)
    enough = threading.Event()
    sent: list[str] = []

    def load():
        for n in itertools.count():
            if enough.is_set():
                return
            batch = [f"r{n}-{k}" for k in range(5)]
            scene.send(*[ask(name, f"k{(n + k) % 40}", seconds=0.01) for k, name in enumerate(batch)])
            sent.extend(batch)
            enough.wait(0.03)

    producing = threading.Thread(target=load)
    producing.start()
    try:
        for worker in workers:
            assert worker.stop() == 0
            others = [other for other in workers if other is not worker]
            share(6, *others)
            worker.start().wait_ready()
            share(6, *workers)
    finally:
        enough.set()
        producing.join(20)
    responses = scene.wait_responses(len(sent))
    scene.wait_committed()
    check_once(responses, sent)
    assert max(scene.starts().values()) == 1
    assert all(worker.stop() == 0 for worker in workers)
    assert scene.count(scene.topics.responses) == len(sent)


def test_worker_without_a_partition_is_ready_as_standby_and_takes_over(scene):
    scene.make()
    first = scene.ready("first")
    second = scene.ready("second")
    share(1, first, second)
    [standby] = [worker for worker in (first, second) if not partitions(worker)]
    owner = first if standby is second else second
    code, text = standby.ask("/readyz")
    assert (code, "standby" in text) == (200, True)
    assert standby.status()["standby"] is True
    assert owner.status()["standby"] is False
    assert standby.metric("assigned_partitions") == 0
    scene.send(ask("a", "k"))
    scene.wait_responses(1)
    assert owner.stop() == 0
    share(1, standby)
    scene.send(ask("b", "k"))
    assert ids(scene.wait_responses(2)) == ["a", "b"]
    assert max(scene.starts().values()) == 1


def test_static_member_comes_back_to_its_partitions_without_a_rebalance(scene):
    scene.make(requests=2)
    scene.environment["KAFKA_CONSUMER_SESSION_TIMEOUT_MS"] = "60000"
    a = scene.ready("a", KAFKA_CONSUMER_GROUP_INSTANCE_ID="a")
    b = scene.ready("b", KAFKA_CONSUMER_GROUP_INSTANCE_ID="b")
    share(2, a, b)
    mine, rebalances = partitions(b), a.metric("rebalances_total")
    assert b.stop() == 0
    b.start().wait_ready()
    share(2, a, b)
    assert partitions(b) == mine
    assert a.metric("rebalances_total") == rebalances
    scene.send(ask("r0", "k"), partition=0)
    scene.send(ask("r1", "k"), partition=1)
    check_once(scene.wait_responses(2), ["r0", "r1"])


def test_second_holder_of_a_group_instance_id_ends_the_first_with_78(scene):
    scene.make()
    first = scene.ready("first", KAFKA_CONSUMER_GROUP_INSTANCE_ID="same")
    second = scene.worker("second", KAFKA_CONSUMER_GROUP_INSTANCE_ID="same").start()
    eventually(lambda: first.process.poll() is not None, "the fenced one to end", timeout=60)
    assert first.wait(5) == 78
    assert any("KAFKA_CONSUMER_GROUP_INSTANCE_ID" in str(line) for line in first.logs() if line["level"] == "error")
    second.wait_ready()
    scene.send(ask("r", "k"))
    scene.wait_responses(1)


def test_member_that_was_killed_delays_nobody_else_and_its_heir_repeats_only_what_was_running(scene):
    scene.make(requests=2)
    scene.environment["KAFKA_CONSUMER_SESSION_TIMEOUT_MS"] = "15000"
    stays, dies = scene.ready("stays"), scene.ready("dies")
    share(2, stays, dies)
    [own], [other] = partitions(stays), partitions(dies)
    gate = scene.file("gate")
    done = [f"done-{n}" for n in range(50)]
    scene.send(ask("slow", "s", do="hang", file=str(gate)), *[ask(name, "k") for name in done], partition=other)
    scene.wait_responses(50)
    time.sleep(1.0)  # the contract's second between the end of a request and its commit
    dies.process.kill()
    dies.wait(10)
    began = time.monotonic()
    scene.send(ask("own", "k"), partition=own)
    scene.send(ask("other", "k"), partition=other)
    check_once(scene.wait_responses(51), [*done, "own"])
    assert time.monotonic() - began < 12  # before anybody knows that it is dead, on a busy machine too
    gate.unlink()
    check_once(scene.wait_responses(53, timeout=60), [*done, "own", "slow", "other"])
    scene.wait_committed()
    assert {name: count for name, count in scene.starts().items() if count > 1} == {"slow": 2}
    assert partitions(stays) == {own, other}
