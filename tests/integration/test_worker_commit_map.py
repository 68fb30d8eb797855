"""What travels with a commit: work that is done behind a slow request is not paid for again, however much it is."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest

from tests.support import wire
from tests.support.releases import OwnKafka
from tests.support.scene import Scene, ask, ids
from tests.support.waiting import eventually

STATIC = {"KAFKA_CONSUMER_GROUP_INSTANCE_ID": "one"}


def answered(scene, prefix):
    return {name for name in ids(scene.responses()) if name.startswith(prefix)}


def kill(worker):
    time.sleep(1.2)  # the contract's second between the end of a request and its commit
    worker.signal(signal.SIGKILL)
    worker.wait(10)


def test_thousand_quick_requests_behind_five_thousand_of_one_slow_key_are_called_once(scene):
    scene.make()
    gate = scene.file("gate")
    hanging = {"do": "while_file", "then": "hang", "file": str(gate)}
    slow = [ask(f"slow-{n}", "slow", **hanging) for n in range(5000)]
    quick = [ask(f"quick-{n}", f"k{n % 40}") for n in range(1000)]
    scene.send(*slow, *quick)
    worker = scene.ready(WORKER_CONCURRENCY="4", **STATIC)
    eventually(lambda: scene.count(scene.topics.responses) >= 1000, "the quick ones to be answered")
    kill(worker)
    gate.unlink()
    worker.start()
    scene.wait_committed(60)
    assert worker.stop() == 0
    calls = scene.starts()
    assert {calls[f"quick-{n}"] for n in range(1000)} == {1}
    assert Counter(calls.values()) == Counter({1: 5999, 2: 1})  # the running one


@pytest.fixture
def small_commits(topic_set, tmp_path):
    """A scene on a Kafka that takes 300 bytes of metadata with a commit."""
    with (
        OwnKafka(properties={"offset.metadata.max.bytes": "300"}) as cluster,
        Scene(cluster.bootstrap_servers, topic_set, tmp_path) as scene,
    ):
        yield scene


def test_nothing_is_begun_whose_end_a_small_commit_could_not_tell(small_commits):
    scene = small_commits.make()
    gate = scene.file("gate")
    waiting = {"do": "while_file", "then": "fail", "file": str(gate)}
    # Every third one waits for its retry, so that what is unfinished lies scattered.
    sent = [
        ask("slow", "slow", do="while_file", then="hang", file=str(gate)),
        *[ask(f"r{n}", f"k{n}", **(waiting if n % 3 == 0 else {})) for n in range(6000)],
    ]
    scene.send(*sent)
    retries = {"WORKER_RETRY_DELAY": "600", "WORKER_RETRY_MAX_DELAY": "600", "WORKER_STORM_GUARD": "off"}
    worker = scene.ready(WORKER_CONCURRENCY="4", **retries, **STATIC)
    # As far as the map reaches, and no further.
    eventually(lambda: "commit map" in worker.ask("/status")[1], "intake to stop for the commit map", timeout=30)
    eventually(lambda: scene.count(scene.topics.responses) > 500, "what is received to be answered")
    settled = -1
    while settled != (settled := scene.count(scene.topics.responses)):
        time.sleep(1.0)
    kill(worker)
    done = answered(scene, "r")
    assert len(done) < 4000
    gate.unlink()
    worker.start()
    scene.wait_committed(60)
    assert worker.stop() == 0
    calls = scene.starts()
    assert [name for name in done if calls[name] != 1] == []
    assert not any("shrinks" in line["event"] for line in worker.logs())
    (_, metadata), *_ = wire.committed(scene.bootstrap, scene.topics.group, scene.topics.requests).values()
    assert not metadata.startswith("gw")  # nothing is finished beyond the position any more
