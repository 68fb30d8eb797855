"""How many workers are wanted, and that the autoscaler that is asked for them kills none in mid-call."""

from __future__ import annotations

import math
from pathlib import Path

import promql_parser
import yaml

from gigaoffice_worker.cli.check_times import stop_time
from gigaoffice_worker.config import load
from gigaoffice_worker.core.admission import LimitsSeen
from gigaoffice_worker.observe.health import PartitionStatus
from gigaoffice_worker.observe.metrics import PREFIX, Metrics
from tests.support.making import snapshot

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy/kubernetes"


def partition(number, *, unread=0, in_hand=0, parked=0, lag=0):
    return PartitionStatus(
        partition=number,
        epoch=1,
        position=1000,
        committed=1000,
        high_watermark=1000 + unread,
        lag=lag,
        lag_seconds=0.0,
        in_hand=in_hand,
        bytes_in_hand=0,
        parked=parked,
        oldest=None,
        paused=None,
        quarantined=None,
    )


def wanted(*workers, concurrency=16, shares=None):
    """Return what the autoscaler sees of a group: a list of partitions for each worker, and its share."""
    total = 0.0
    for number, partitions in enumerate(workers):
        limits = LimitsSeen(share=shares[number], group=sum(shares)) if shares else LimitsSeen()
        seen = snapshot(partitions=partitions, concurrency=concurrency, limits=limits)
        metrics = Metrics("1")
        metrics.observe(lambda seen=seen: seen)
        total += metrics.registry.get_sample_value(PREFIX + "wanted_workers")
    return math.ceil(total)


def test_workers_without_work_are_not_wanted():
    assert wanted([partition(0)], [partition(1)], [partition(2)]) == 0


def test_a_small_backlog_wants_one_worker_however_many_share_it():
    assert wanted([partition(0, unread=3)], [partition(1, in_hand=3)], [partition(2, parked=3)]) == 1


def test_a_large_backlog_wants_one_worker_for_each_partition_and_no_more():
    assert wanted([partition(number, unread=10_000) for number in range(6)]) == 6
    assert wanted([partition(0, unread=10_000)], [partition(1)], [partition(2)]) == 1
    assert wanted([]) == 0


def test_no_more_workers_are_wanted_than_the_groups_limit_can_use():
    busy = [[partition(number, unread=500)] for number in range(12)]
    assert wanted(*busy, concurrency=1, shares=[1, 1, 1] + [0] * 9) == 3
    assert wanted(*busy, concurrency=2, shares=[1, 1, 1] + [0] * 9) == 2
    assert wanted([partition(0, unread=500), partition(1, unread=500)], concurrency=16, shares=[10]) == 1


def test_what_is_done_behind_a_slow_request_wants_nobody():
    assert wanted([partition(0, in_hand=1, lag=100_000)], concurrency=1) == 1


def test_a_worker_that_does_not_know_its_backlog_keeps_its_place():
    assert wanted(*[[partition(number, lag=None)] for number in range(3)]) == 3


def scaled_object():
    return yaml.safe_load((KUBERNETES / "keda.yaml").read_text())["spec"]


def documents():
    return {each["kind"]: each for each in yaml.safe_load_all((KUBERNETES / "gigaoffice-worker.yaml").read_text())}


def test_the_autoscaler_asks_for_that_and_for_no_more_workers_than_partitions():
    spec = scaled_object()
    (trigger,) = spec["triggers"]
    query = promql_parser.parse(trigger["metadata"]["query"])
    assert query.func.name == "ceil"
    assert query.args[0].expr.name == PREFIX + "wanted_workers"
    assert trigger["metadata"]["threshold"] == "1"
    deployed = documents()["Deployment"]["metadata"]["name"]
    assert spec["scaleTargetRef"] == {"kind": "Deployment", "name": deployed}
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"] == load({}).topics.requests.partitions
    assert spec["fallback"]["replicas"] <= spec["maxReplicaCount"]


def test_a_worker_that_is_taken_away_ends_its_calls_first():
    given = {name: value for name, value in documents()["ConfigMap"]["data"].items() if not name.endswith("_FILE")}
    config = load({**given, "KAFKA_SASL_PASSWORD": "x"})
    pod = documents()["Deployment"]["spec"]["template"]["spec"]
    assert config.worker.drain_timeout >= config.worker.attempt_timeout
    assert pod["terminationGracePeriodSeconds"] >= stop_time(config)
