"""A log that lost its end: a replica that was not in sync became leader, and new records stand under old offsets."""

from __future__ import annotations

import signal
import time

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from gigaoffice_worker.devkafka import KafkaCluster
from tests.support import wire
from tests.support.scene import Scene, ask, ids
from tests.support.waiting import eventually

UNCLEAN = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
LEADER, FOLLOWER = 2, 3


@pytest.fixture
def scene(topic_set, tmp_path):
    """A scene whose request topic has one partition, on a leader and a follower; and its cluster."""
    with KafkaCluster(3) as cluster, Scene(cluster.bootstrap_servers, topic_set, tmp_path) as scene:
        # The others on the node that is never down.
        places = {topic_set.requests: [LEADER, FOLLOWER], topic_set.responses: [1], topic_set.dlq: [1]}
        new = [
            NewTopic(name, num_partitions=1, replica_assignment=[nodes], config=UNCLEAN)
            for name, nodes in places.items()
        ]
        admin = AdminClient({"bootstrap.servers": scene.bootstrap})  # kept, or its futures would end with it
        for made in admin.create_topics(new).values():
            made.result(20)
        eventually(lambda: wire.leaders(scene.bootstrap, topic_set.requests) == {0: LEADER}, "the leader to be there")
        scene.cluster = cluster
        yield scene


def lose_the_end(scene):
    """Let the follower, which was down, lead: all that was written meanwhile is gone."""
    scene.cluster.kill(LEADER)
    scene.cluster.restart(FOLLOWER)
    requests = scene.topics.requests
    eventually(lambda: wire.leaders(scene.bootstrap, requests) == {0: FOLLOWER}, "the follower to lead", timeout=60)


def write_and_answer(scene, gate):
    """Answer 40 requests behind one that hangs, of which the follower has the first 10 only."""
    hanging = ask("hanging", "h", do="while_file", then="hang", file=str(gate))
    scene.send(hanging, *[ask(f"old-{n}", f"k{n}") for n in range(10)])
    eventually(lambda: scene.count(scene.topics.responses) == 10, "the first answers", timeout=60)
    scene.cluster.kill(FOLLOWER)
    eventually(lambda: wire.leaders(scene.bootstrap, scene.topics.requests) == {0: LEADER}, "metadata")
    scene.send(*[ask(f"gone-{n}", f"k{n}") for n in range(30)], acks=1)
    eventually(lambda: scene.count(scene.topics.responses) == 40, "all answers", timeout=60)
    time.sleep(1.5)  # the contract's second between the end of a request and its commit


def check_the_new_ones(scene, worker):
    expected = {f"new-{n}" for n in range(15)}
    scene.send(*[ask(name, f"k{name}") for name in sorted(expected)])
    eventually(lambda: expected <= set(ids(scene.responses())), "the new requests to be answered", timeout=90)
    assert worker.metric("log_truncations_total") + worker.metric("offset_resets_total") > 0
    assert [line["level"] for line in worker.logs() if line["event"].startswith("Log truncated")] == ["error"]


def test_commit_map_of_a_log_that_is_gone_does_not_skip_new_requests(scene):
    gate = scene.file("gate")
    worker = scene.worker().start().wait_ready()
    write_and_answer(scene, gate)
    worker.signal(signal.SIGKILL)
    worker.wait(10)
    lose_the_end(scene)
    gate.unlink()
    worker.start()
    check_the_new_ones(scene, worker)
    assert worker.stop() == 0


def test_log_that_loses_its_end_at_run_time_does_not_skip_new_requests(scene):
    gate = scene.file("gate")
    worker = scene.worker().start().wait_ready()
    write_and_answer(scene, gate)
    lose_the_end(scene)
    check_the_new_ones(scene, worker)
    gate.unlink()
    assert worker.stop() in {0, 70}
