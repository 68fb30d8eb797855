"""How the worker ends: what it finishes, what it leaves, and that it ends on time."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter

import pytest
from confluent_kafka import Consumer

from tests.support import wire
from tests.support.scene import ask, check_once, ids
from tests.support.waiting import eventually

# A static member takes its place again at once.
STATIC = {"KAFKA_CONSUMER_GROUP_INSTANCE_ID": "one"}


def draining(worker):
    return "drain" in worker.ask("/readyz")[1]


def test_sigterm_finishes_what_runs_and_leaves_what_waits(scene):
    scene.make()
    worker = scene.ready(WORKER_CONCURRENCY="3")
    gate, failing = scene.file("gate"), scene.file("failing")
    sent = [
        ask("waits-for-its-retry", "c", do="while_file", then="transient", retry_after=60, file=str(failing)),
        ask("runs-1", "a", do="hang", file=str(gate)),
        ask("runs-2", "b", do="hang", file=str(gate)),
        ask("runs-3", None, do="hang", file=str(gate)),
        ask("behind-1", "a"),
        ask("behind-2", "b"),
        ask("no-thread", None),
    ]
    scene.send(*sent)
    scene.wait_started("waits-for-its-retry", "runs-1", "runs-2", "runs-3")
    eventually(lambda: worker.metric("requests_waiting_retry") == 1, "the retry to wait")
    worker.signal(signal.SIGTERM)
    eventually(lambda: draining(worker), "the worker to drain")

    # While it drains it is alive, says so, and has paused what it holds.
    assert worker.ask("/livez")[0] == 200
    code, health = worker.ask("/health")
    assert (code, json.loads(health)["status"], json.loads(health)["consumer_running"]) == (200, "degraded", True)
    assert worker.ask("/readyz")[0] == 503
    assert worker.metric("not_ready", reason="draining") == 1
    eventually(lambda: worker.metric("paused_partitions") == 1, "the partition to be paused")
    assert "drain" in worker.status()["partitions"][0]["paused"]
    scene.send(ask("came-later", "z"))
    assert worker.process.poll() is None

    gate.unlink()
    assert worker.wait(40) == 0
    check_once(scene.responses(), ["runs-1", "runs-2", "runs-3"])
    assert scene.starts() == Counter(["waits-for-its-retry", "runs-1", "runs-2", "runs-3"])

    failing.unlink()
    worker.start().wait_ready()
    everything = [json.loads(value)["id"] for _, value, _ in sent] + ["came-later"]
    check_once(scene.wait_responses(len(everything)), everything)
    assert scene.starts() == Counter([*everything, "waits-for-its-retry"])
    scene.wait_committed()
    assert worker.stop() == 0


def test_sigterm_of_an_idle_worker_ends_it_at_once_and_leaves_the_group(scene):
    scene.make(requests=2)
    scene.environment["KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS"] = "300"
    scene.environment["KAFKA_CONSUMER_SESSION_TIMEOUT_MS"] = "60000"
    first, second = scene.ready("first"), scene.ready("second")
    eventually(lambda: first.metric("assigned_partitions") == 1, "the partitions to be shared")
    assert second.stop(20) == 0
    # Without leaving it would take the session time-out.
    eventually(lambda: first.metric("assigned_partitions") == 2, "the partitions to come back", timeout=20)


def test_sighup_is_ignored_and_sigint_acts_as_sigterm(scene):
    scene.make()
    worker = scene.ready()
    gate = scene.file("gate")
    worker.signal(signal.SIGHUP)
    scene.send(ask("after-sighup", "a"), ask("running", "b", do="hang", file=str(gate)))
    scene.wait_responses(1)
    scene.wait_started("running")
    worker.signal(signal.SIGINT)
    eventually(lambda: draining(worker), "the worker to drain")
    worker.signal(signal.SIGHUP)
    gate.unlink()
    assert worker.wait(40) == 0
    check_once(scene.responses(), ["after-sighup", "running"])
    assert scene.committed() == {0: 2}


def test_drain_ends_in_time_with_70_although_a_handler_hangs(scene):
    scene.make()
    worker = scene.ready(WORKER_DRAIN_TIMEOUT="1", WORKER_CONCURRENCY="2")
    gate = scene.file("gate")
    scene.send(ask("hangs", "a", do="hang", file=str(gate)), *[ask(f"done-{n}", "b") for n in range(20)])
    scene.wait_responses(20)
    scene.wait_started("hangs")
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 70
    assert time.monotonic() - began > 0.9
    assert scene.committed() == {0: 0}

    gate.unlink()
    worker.start().wait_ready()
    answers = scene.wait_responses(21)
    check_once(answers, ["hangs", *[f"done-{n}" for n in range(20)]])
    assert scene.starts()["hangs"] == 2
    scene.wait_committed()


def test_second_signal_ends_the_wait_at_once(scene):
    scene.make()
    worker = scene.ready(WORKER_DRAIN_TIMEOUT="120")
    scene.send(ask("done", "a"), ask("hangs", "b", do="hang"))
    scene.wait_started("hangs")
    scene.wait_responses(1)
    worker.signal(signal.SIGTERM)
    eventually(lambda: draining(worker), "the worker to drain")
    worker.signal(signal.SIGTERM)
    assert worker.wait(30) == 70
    assert ids(scene.responses()) == ["done"]


def test_worker_that_waits_for_the_cluster_ends_on_sigterm(scene):
    worker = scene.worker(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", KAFKA_TOPIC_CREATION_RETRIES="1000").start()
    worker.wait_until(lambda: worker.ask("/livez")[0] == 200, 20, "the side port to open")
    assert worker.stop(20) == 0


def test_worker_that_waits_for_its_topics_ends_on_sigterm(scene):
    worker = scene.worker(KAFKA_TOPIC_AUTO_CREATE="false").start()
    worker.wait_until(lambda: scene.topics.dlq in worker.ask("/readyz")[1], 20, "the missing topics to be told")
    assert worker.stop(20) == 0
    assert not {scene.topics.requests, scene.topics.responses, scene.topics.dlq} & wire.topics(scene.bootstrap).keys()


def test_clean_restarts_under_load_repeat_no_call(scene):
    scene.make(requests=2, responses=2)
    worker = scene.ready(WORKER_CONCURRENCY="4", **STATIC)
    names = [f"r{n}" for n in range(600)]
    scene.send(*[ask(name, f"k{n % 30}", seconds=0.01) for n, name in enumerate(names)])
    for share in (100, 250, 400):
        eventually(lambda share=share: len(scene.starts()) > share, "some of the work to be done", interval=0.01)
        assert worker.stop() == 0
        worker.start()
    check_once(scene.wait_responses(len(names)), names)
    scene.wait_committed()
    assert max(scene.starts().values()) == 1
    assert worker.stop() == 0


def test_two_signals_at_once_end_an_idle_worker_with_0(scene):
    scene.make()
    worker = scene.ready()
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0


def test_drain_time_of_zero_lets_an_idle_worker_end_with_0(scene):
    scene.make()
    worker = scene.ready(WORKER_DRAIN_TIMEOUT="0")
    scene.send(ask("a", "k"))
    scene.wait_committed()
    assert worker.stop() == 0


@pytest.mark.parametrize("after", ["Side port open", "Topic verification succeeded", "Partitions assigned"])
def test_sigterm_during_the_start_ends_it_with_0(scene, after):
    scene.make()
    worker = scene.worker().start()
    eventually(lambda: any(line["event"] == after for line in worker.logs()), after, interval=0.002)
    assert worker.stop() == 0


def test_log_that_nobody_reads_stops_neither_the_work_nor_the_end(scene):
    scene.make()
    worker = scene.worker(LOG_LEVEL="DEBUG", WORKER_STORM_GUARD="off")
    os.mkfifo(worker.log_file)
    unread = os.open(worker.log_file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        worker.start()
        worker.log_file.unlink()  # it holds the pipe open; to the test there is no log
        worker.wait_ready()
        scene.send(*[ask(f"r{n}", None, do="reject") for n in range(3000)])
        scene.wait_committed(40)
        assert worker.metric("requests_total") == 3000
        assert worker.stop(15) == 0
    finally:
        os.close(unread)


class SlowMember:
    """A member of the group that gives its partitions up only when it is let go. Sorted behind the worker by its id."""

    def __init__(self, scene) -> None:
        self._let_go = threading.Event()
        self._done = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": scene.bootstrap,
                "group.id": scene.topics.group,
                "client.id": "slow",
                "partition.assignment.strategy": "range",
                "heartbeat.interval.ms": 300,
            }
        )
        self.assigned = threading.Event()
        self._consumer.subscribe([scene.topics.requests], on_assign=self._note, on_revoke=self._hold)
        self._thread = threading.Thread(target=self._run)

    def _note(self, _consumer, partitions) -> None:
        if partitions:
            self.assigned.set()

    def _hold(self, _consumer, _partitions) -> None:
        self._let_go.wait(60)

    def _run(self) -> None:
        while not self._done.is_set():
            self._consumer.poll(0.1)
        self._consumer.close()

    def let_go(self) -> None:
        self._let_go.set()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go.set()
        self._done.set()
        self._thread.join(30)


@pytest.fixture(params=["busy"])
def rebalancing(scene, request):
    """A worker whose call lasts into a rebalance that another member holds up, until `gate` is gone; or without one."""
    scene.make(requests=2)
    worker = scene.ready(
        KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS="300",
        WORKER_REBALANCE_WAIT="0.2",
        WORKER_DRAIN_TIMEOUT="12",
        KAFKA_CONSUMER_AUTO_OFFSET_RESET="earliest",
    )
    with SlowMember(scene) as slow:
        eventually(slow.assigned.is_set, "the other member to be there", timeout=30)
        eventually(lambda: [row["partition"] for row in worker.status()["partitions"]] == [0], "partition 0 to be ours")
        if request.param == "busy":
            scene.send(ask("running", "a", do="hang", file=str(scene.file("gate"))), partition=0)
            scene.wait_started("running")
        with SlowMember(scene) as comes:
            eventually(lambda: not worker.status()["partitions"], "the rebalance to begin")
            yield scene, worker, slow
            comes.let_go()


def test_stop_in_the_middle_of_a_rebalance_commits_when_that_is_over(rebalancing):
    scene, worker, slow = rebalancing
    worker.signal(signal.SIGTERM)
    (scene.directory / "gate").unlink()
    scene.wait_responses(1)
    time.sleep(1.0)
    assert worker.process.poll() is None
    slow.let_go()
    assert worker.wait(40) == 0
    assert scene.committed()[0] == 1
    assert scene.starts()["running"] == 1


@pytest.mark.parametrize("rebalancing", ["idle"], indirect=True)
def test_stop_in_the_middle_of_a_rebalance_with_nothing_to_commit_is_quick(rebalancing):
    _, worker, _ = rebalancing
    worker.signal(signal.SIGTERM)
    assert worker.wait(11) == 0  # before the time for draining is up, on a busy machine too


def test_stop_that_could_not_commit_says_so(rebalancing):
    scene, worker, _ = rebalancing
    worker.signal(signal.SIGTERM)
    (scene.directory / "gate").unlink()
    scene.wait_responses(1)
    assert worker.wait(40) == 70
    assert scene.committed().get(0, 0) == 0
