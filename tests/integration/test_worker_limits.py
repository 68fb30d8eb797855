"""The provider's limit and the group's: used, kept, and no reason for anybody to wait for ever."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.limited_provider import LimitedProvider
from tests.support.scene import ask, check_once
from tests.support.services import Service
from tests.support.waiting import eventually


@pytest.fixture
def serve():
    """Serve a provider, and return the settings of a worker that calls it."""
    with Service() as service:

        def start(provider: LimitedProvider) -> dict[str, str]:
            service.answer = provider
            return {"WORKER_HANDLER": "http", "HTTP_HANDLER_URL": service.url}

        yield start


def requests(count: int, name: str = "r"):
    return [ask(f"{name}{number}", f"{name}{number}") for number in range(count)]


def ids(count: int, name: str = "r") -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.mark.parametrize("streams, count, seconds", [(10, 150, 0.4), (1, 20, 0.3)])
def test_the_streams_of_a_provider_are_found_with_few_refusals(scene, serve, streams, count, seconds):
    provider = LimitedProvider(streams=streams, seconds=seconds)
    settings = serve(provider)
    scene.make(requests=3)
    scene.send(*requests(count))
    worker = scene.ready(**settings, WORKER_MAX_ATTEMPTS="1")

    check_once(scene.wait_responses(count, timeout=90.0), ids(count))

    assert provider.most_at_once == streams
    assert provider.refused <= 20  # one for each call without adapting: over two hundred
    assert scene.count(scene.topics.dlq) == 0
    limits = worker.status()["limits"]
    assert limits["configured"] == 16
    assert limits["adapted"] <= streams + 1
    assert limits["refusals"] == worker.metric("provider_rejections_total") == provider.refused
    assert worker.metric("concurrency_limit", source="adapted") == limits["adapted"]
    assert worker.metric("rate_limited_seconds_total") > 0


def test_without_adapting_a_refusal_closes_the_gate(scene, serve):
    provider = LimitedProvider(streams=2, seconds=0.1)
    settings = serve(provider)
    scene.make()
    scene.send(*requests(6))
    worker = scene.ready(**settings, WORKER_ADAPTIVE="off", WORKER_MAX_ATTEMPTS="1", WORKER_RETRY_DELAY="0.3")

    check_once(scene.wait_responses(6, timeout=60.0), ids(6))

    assert 'source="adapted"' not in worker.ask("/metrics")[1]


def test_three_workers_keep_the_groups_calls_at_once(scene, serve):
    provider = LimitedProvider(streams=10, seconds=0.5)
    settings = {**serve(provider), "WORKER_GROUP_CONCURRENCY": "10", "WORKER_ADAPTIVE": "off"}
    scene.make(requests=12)
    for number in range(3):
        scene.ready(f"w{number}", **settings)
    scene.send(*requests(120))

    check_once(scene.wait_responses(120, timeout=90.0), ids(120))

    assert provider.refused == 0
    assert provider.most_at_once <= 10
    shares = lambda: sum(worker.status()["limits"]["share"] for worker in scene.workers)  # noqa: E731
    eventually(lambda: shares() == 10, "the whole limit to be shared out", timeout=40)


def test_one_call_for_the_group_serves_every_partition(scene, serve):
    provider = LimitedProvider(streams=1, seconds=0.05)
    settings = {**serve(provider), "WORKER_GROUP_CONCURRENCY": "1", "WORKER_ADAPTIVE": "off"}
    scene.make(requests=4)
    for partition in range(4):
        scene.send(*requests(3, f"p{partition}-"), partition=partition)
    scene.ready(**settings)

    check_once(scene.wait_responses(12, timeout=60.0), [f"p{p}-{number}" for p in range(4) for number in range(3)])

    assert provider.refused == 0


def test_the_groups_rate_is_kept(scene, serve):
    provider = LimitedProvider(per_time=(10, 5.0), seconds=0.05)
    settings = {**serve(provider), "WORKER_GROUP_RATE": "10/5", "WORKER_ADAPTIVE": "off"}
    scene.make(requests=4)
    for number in range(2):
        scene.ready(f"w{number}", **settings)
    scene.send(*requests(30))

    check_once(scene.wait_responses(30, timeout=60.0), ids(30))

    # A call that is late for the provider by a pause of its own may cost one; without any rate 20 are refused at once.
    assert provider.refused <= 8


def test_a_budget_of_tokens_slows_calls_and_usage_is_told(scene):
    scene.make()
    usage = {"input_tokens": 90, "output_tokens": 10, "model": "small", "cost": 0.25}
    scene.send(*[ask(f"r{number}", f"r{number}", do="use", usage=usage) for number in range(12)])
    worker = scene.ready(WORKER_GROUP_TOKENS="6000/60", WORKER_CONCURRENCY="4")

    responses = scene.wait_responses(12, timeout=60.0)

    check_once(responses, ids(12))
    assert {response.rec.header("usage") for response in responses} == {
        json.dumps(usage, separators=(",", ":")).encode()
    }
    assert worker.metric("tokens_total", direction="input", model="small") == 12 * 90
    assert worker.metric("tokens_total", direction="output", model="small") == 12 * 10
    assert worker.metric("cost_total", model="small") == 3.0
    assert worker.metric("rate_limited_seconds_total") > 0


def test_requests_that_are_always_refused_end_while_the_others_pass(scene, serve):
    poisoned = frozenset(ids(3, "bad"))
    provider = LimitedProvider(streams=8, seconds=0.2, poisoned=poisoned)
    settings = serve(provider)
    scene.make(requests=3)
    scene.send(*requests(3, "bad"), *requests(200))
    scene.ready(**settings, WORKER_MAX_ATTEMPTS="2", WORKER_RETRY_DELAY="0.05", WORKER_RETRY_MAX_DELAY="0.2")

    scene.wait_responses(200, timeout=60.0)
    scene.send(*requests(100, "later"))
    responses = scene.wait_responses(303, timeout=120.0)

    check_once(responses, [*ids(200), *ids(100, "later"), *poisoned])
    assert {letter.header("dlq-reason") for letter in scene.dead_letters()} == {b"attempts-exhausted"}
    assert {response.id for response in responses if response.status == "failed"} == poisoned


def test_an_outage_of_the_provider_costs_no_request_and_few_probes(scene, serve):
    provider = LimitedProvider(streams=10, seconds=0.1)
    provider.down = True
    settings = serve(provider)
    scene.make(requests=3)
    scene.send(*requests(60))
    worker = scene.ready(**settings, WORKER_MAX_ATTEMPTS="1")
    while provider.refused < 20 and worker.status()["gate"]["opens_in_seconds"] < 5.0:
        time.sleep(0.1)
    # The first sixteen came at once; from then on the gate lets one call through at a time.
    assert provider.refused <= 16 + 8
    provider.down = False

    check_once(scene.wait_responses(60, timeout=60.0), ids(60))
    assert scene.count(scene.topics.dlq) == 0
