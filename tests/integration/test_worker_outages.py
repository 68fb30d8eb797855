"""What the worker says while its cluster, or a part of it, cannot be reached or read; and that the rest goes on."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from confluent_kafka import Producer

from tests.chaos.stage import hooked
from tests.support import wire
from tests.support.releases import OwnKafka
from tests.support.scene import Scene, ask, check_once, ids
from tests.support.waiting import eventually


@pytest.fixture
def own(topic_set, tmp_path):
    """A scene on a Kafka of its own, of one node, and that Kafka."""
    with OwnKafka(killed=True) as cluster, Scene(cluster.bootstrap_servers, topic_set, tmp_path) as scene:
        yield scene.make(), cluster


def at(line):
    """Return when a line was logged, in seconds of the clock."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_cluster_out_of_reach_is_told_within_15_s_and_its_return_too(own, fault):
    scene, cluster = own
    worker = scene.ready()
    scene.send(ask("before", "k"))
    scene.wait_responses(1)
    scene.wait_committed()
    eventually(lambda: worker.metric("consumer_lag_records") == 0, "no lag to be shown")
    gone = time.time()
    (cluster.kill if fault == "kill" else cluster.freeze)(1)
    told = lambda: "cluster-unreachable" in worker.ask("/readyz")[1]  # noqa: E731
    eventually(told, "the outage to be told", timeout=40)
    said = lambda event: next((at(line) for line in worker.logs() if line["event"] == event), None)  # noqa: E731
    # The worker's clock tells when, however late we look.
    since = eventually(lambda: said("Cluster out of reach"), "a line that the cluster is out of reach") - gone
    assert 5.0 < since < 20.5  # 13 s, and a pause of the worker
    assert worker.ask("/livez")[0] == 200
    assert worker.metric("not_ready", reason="cluster-unreachable") == 1
    [row] = worker.status()["partitions"] or [{"lag": None, "lag_seconds": 99.0}]  # while it rejoins it has none
    assert row["lag"] is None
    assert row["lag_seconds"] > 5.0
    (cluster.restart if fault == "kill" else cluster.thaw)(1)
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again", timeout=60)
    scene.send(ask("after", "k"))
    check_once(scene.wait_responses(2), ["before", "after"])
    eventually(lambda: said("Cluster within reach again"), "a line that the cluster is back")


def test_partition_without_a_leader_holds_up_no_other_and_is_named(topic_set, tmp_path):
    with OwnKafka(3) as cluster, Scene(cluster.bootstrap_servers, topic_set, tmp_path) as scene:
        wire.create_topics(scene.bootstrap, {scene.topics.responses: 1, scene.topics.dlq: 1}, replication=3)
        wire.create_spread(scene.bootstrap, scene.topics.requests, [1, 2, 3], 6)
        healthy, stuck = [0, 1, 3, 4], [2, 5]
        for partition in range(6):
            scene.send(*[ask(f"r{partition}-{n}", "k") for n in range(10)], partition=partition)
        cluster.kill(3)
        scene.wait_without_leader(scene.topics.requests, stuck)
        worker = scene.worker().start()
        expected = [f"r{partition}-{n}" for partition in healthy for n in range(10)]
        check_once(scene.wait_responses(len(expected), timeout=60), expected)
        scene.send(*[ask(f"later-{n}", "k") for n in range(10)], partition=healthy[0])
        scene.wait_responses(len(expected) + 10, timeout=60)

        def named():
            lines = [line for line in worker.ask("/readyz")[1].splitlines() if line.startswith("position-unknown")]
            return lines and all(f"{partition}: the partition has no leader" in lines[0] for partition in stuck)

        eventually(named, "both partitions to be named")
        cluster.restart(3)
        scene.wait_responses(70, timeout=60)
        cluster.kill(3)
        scene.wait_without_leader(scene.topics.requests, stuck)
        without = lambda: "partition-without-leader" in worker.ask("/readyz")[1]  # noqa: E731
        eventually(without, "the partitions that lost their leader to be named", timeout=40)

        def stalled():
            rows = worker.status()["partitions"]
            return {row["partition"]: row["stalled"]["reason"] for row in rows if row["stalled"]}

        eventually(lambda: stalled() == dict.fromkeys(stuck, "no leader"), "both partitions to be shown")
        scene.send(*[ask(f"last-{n}", "k") for n in range(10)], partition=healthy[0])
        scene.wait_responses(80, timeout=60)


def test_open_transaction_is_told_with_its_age_and_lag_seconds_grow(scene):
    scene.make(requests=2)
    worker = scene.ready()
    scene.send(*[ask(f"r{n}", "k") for n in range(5)], partition=0)
    scene.wait_responses(5)
    producer = Producer({"bootstrap.servers": scene.bootstrap, "transactional.id": scene.topics.group})
    producer.init_transactions(20)
    producer.begin_transaction()
    key, value, _ = ask("open", "k")
    producer.produce(scene.topics.requests, value, key, partition=0)
    producer.flush(20)
    scene.send(ask("behind", "k"), partition=0)
    scene.send(ask("beside", "k"), partition=1)
    scene.wait_responses(6)
    told = lambda: "open-transaction" in worker.ask("/readyz")[1]  # noqa: E731
    eventually(told, "the transaction to be told", timeout=25)
    ages = {row["partition"]: row["lag_seconds"] for row in worker.status()["partitions"]}
    assert 9.0 < ages[0] < 60.0
    assert ages[1] == 0.0
    assert worker.status()["partitions"][0]["stalled"]["reason"] == "open transaction"
    producer.commit_transaction(20)
    check_once(scene.wait_responses(8), [*(f"r{n}" for n in range(5)), "open", "behind", "beside"])
    eventually(lambda: worker.ask("/readyz")[0] == 200, "the worker to be ready again")
    eventually(lambda: worker.metric("consumer_lag_seconds") == 0, "no lag to be shown")


def test_errors_where_the_client_sends_its_fetches_lose_no_request(scene):
    scene.make(requests=3)
    worker = scene.worker(**hooked(fetch="5"), KAFKA_CONSUMER_MAX_POLL_RECORDS="20").start().wait_ready()
    sent = [ask(f"r{n}", f"k{n % 7}") for n in range(3000)]
    scene.send(*sent)
    check_once(scene.wait_responses(3000, timeout=120), [f"r{n}" for n in range(3000)])
    scene.wait_committed()
    assert sorted(ids(scene.responses())) == sorted(f"r{n}" for n in range(3000))
    assert set(scene.starts().values()) == {1}
    assert worker.stop() == 0
