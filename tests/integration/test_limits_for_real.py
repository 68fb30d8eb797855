"""What the worker promises of a provider's limits, in real time: each three times, and the medians count.

They wait rather than compute, half an hour and more in all. `make test-limits` puts what they saw into the table of
docs/limits.md.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from statistics import median
from typing import NamedTuple

import pytest

from tests.conftest import TopicSet
from tests.support import tables
from tests.support.limited_provider import LimitedProvider
from tests.support.scene import Scene, Sent, ask, check_once
from tests.support.services import Service
from tests.support.waiting import eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]

RUNS = int(os.environ.get("LIMITS_RUNS", "3"))
OFF = {"WORKER_ADAPTIVE": "off"}
OUTAGE = 120.0
# A provider's limit of 10 is 10 partitions: each has one slot, so shares fit what is queued.
TEN = 10


class Run(NamedTuple):
    """One run of a scenario: workers of one group, and the provider that they call."""

    scene: Scene
    provider: LimitedProvider
    service: Service

    def start(self, workers: int = 1, **environment: str) -> None:
        """Start workers, and wait until they share all partitions."""
        settings = {"WORKER_HANDLER": "http", "HTTP_HANDLER_URL": self.service.url, **environment}
        for number in range(workers):
            self.scene.worker(f"worker-{number}", **settings).start()
        for worker in self.scene.workers:
            worker.wait_ready()
        owned = [lambda worker=worker: worker.metric("assigned_partitions") > 0 for worker in self.scene.workers]
        eventually(lambda: all(own() for own in owned), "partitions for every worker", timeout=60)
        time.sleep(3.0)  # a rebalance that is still to come would come now

    def send(self, number: int, name: str = "r", *, partitions: int = 0) -> list[str]:
        """Send requests and return their ids; with `partitions` as many to each."""
        requests = [ask(f"{name}{each}", f"{name}{each}") for each in range(number)]
        if not partitions:
            self.scene.send(*requests)
        for partition in range(partitions):
            self.scene.send(*requests[partition::partitions], partition=partition)
        return [f"{name}{each}" for each in range(number)]

    def done(self, ids: list[str], timeout: float = 300.0) -> None:
        """Wait until each of these requests, and no other, has its one response."""
        check_once(self.scene.wait_responses(len(ids), timeout=timeout), ids)

    def dead_letters(self) -> int:
        return self.scene.count(self.scene.topics.dlq)


Runs = Callable[..., AbstractContextManager[Run]]


@pytest.fixture
def run(kafka_bootstrap, topic_set, tmp_path) -> Runs:
    """Make surroundings for one run: run(LimitedProvider(...), partitions=3)."""
    numbers = count(1)

    @contextmanager
    def make(provider: LimitedProvider, *, partitions: int = 3) -> Iterator[Run]:
        number = next(numbers)
        names = TopicSet(*(f"{name}-{number}" for name in topic_set))
        directory = tmp_path / str(number)
        directory.mkdir()
        with Service() as service, Scene(kafka_bootstrap, names, directory) as scene:
            service.answer = provider
            yield Run(scene.make(requests=partitions), provider, service)

    return make


def medians(play: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """Play a scenario RUNS times and return the median of each figure."""
    seen = [play() for _ in range(RUNS)]
    print(f"\nruns: {[tuple(round(figure, 2) for figure in figures) for figures in seen]}")
    return tuple(median(figures) for figures in zip(*seen, strict=True))


def tell(setting: str, promised: str, seen: str) -> None:
    """Print the scenario's row and write it."""
    print(f"\n{setting} | {promised} | {seen}")
    tables.write("limits", setting=setting, promised=promised, seen=seen)


# Nothing configured


@pytest.mark.parametrize(
    "streams, retry_after, number, seconds, longest, most",
    [(10, None, 200, 2.0, 44.0, 20), (10, "1", 200, 1.0, 25.0, 20), (1, None, 30, 1.0, 33.0, 20)],
    ids=["ten", "ten-told", "one"],
)
def test_streams_are_used_whole(run, streams, retry_after, number, seconds, longest, most):
    def play():
        provider = LimitedProvider(streams=streams, seconds=seconds, retry_after=retry_after)
        with run(provider) as this:
            this.start()
            this.done(this.send(number))
            assert this.dead_letters() == 0
        return provider.seconds_taken, provider.refused

    took, refused = medians(play)
    told = f" that says `Retry-After: {retry_after}`" if retry_after else ""
    tell(
        f"nothing; {streams} at once{told}, {number} calls of {seconds:g} s",
        f"at most {longest:g} s ({number * seconds / streams:g} are possible), {most} refusals",
        f"{took:.1f} s, {refused:.0f} refusals",
    )
    assert took <= longest
    assert refused <= most


def test_a_limit_that_halves_for_a_minute_is_followed(run):
    minute = 60.0

    def play():
        provider = LimitedProvider(streams=10, seconds=2.0)
        with run(provider) as this:
            this.start()
            this.send(1200)
            eventually(lambda: provider.taken, "the first call")
            began = time.monotonic()
            time.sleep(minute)
            provider.streams = 5
            time.sleep(minute)
            provider.streams = 10
            time.sleep(minute + 2 * provider.seconds)
            assert this.dead_letters() == 0
        possible = minute * (10 + 5 + 10)
        # Calls that were running when the limit fell are more than it allows: they count no more than it.
        used = sum(
            min(provider.busy_seconds(at, at + 1.0), 5 if minute <= at - began < 2 * minute else 10)
            for at in (began + second for second in range(180))
        )
        return used / possible, sum(began <= at < began + 3 * minute for at in provider.refusals)

    used, refused = medians(play)
    tell(
        "nothing; 10 at once, 5 for a minute, then 10 again; calls of 2 s for 3 minutes",
        "0.85 of the limit used",
        f"{used:.2f} used, {refused:.0f} refusals",
    )
    assert used >= 0.85


# The group's limits


@pytest.mark.parametrize("adaptive", ["on", "off"])
def test_three_workers_use_the_groups_calls_at_once(run, adaptive):
    def play():
        provider = LimitedProvider(streams=TEN, seconds=1.0)
        with run(provider, partitions=TEN) as this:
            this.start(3, WORKER_GROUP_CONCURRENCY=str(TEN), WORKER_ADAPTIVE=adaptive)
            this.done(this.send(1000, partitions=TEN))
        return provider.seconds_taken, provider.refused, provider.most_at_once

    took, refused, most = medians(play)
    tell(
        f"`WORKER_GROUP_CONCURRENCY=10`, `WORKER_ADAPTIVE={adaptive}`; 10 partitions, 3 workers, 1,000 calls of 1 s",
        "at most 110 s (100 are possible), 0 refusals, never more than 10 at once",
        f"{took:.1f} s, {refused:.0f} refusals, {most:.0f} at once",
    )
    assert took <= 110.0
    assert most <= TEN
    assert refused == 0


def test_a_rolling_restart_overruns_the_groups_calls_at_once_by_two_at_most(run):
    def play():
        provider = LimitedProvider(seconds=1.0)
        with run(provider, partitions=TEN) as this:
            this.start(3, WORKER_GROUP_CONCURRENCY=str(TEN), **OFF)
            ids = this.send(1000, partitions=TEN)
            for worker in this.scene.workers:
                time.sleep(8.0)
                assert worker.stop() == 0
                worker.start().wait_ready()
            this.done(ids)
        return provider.most_at_once, provider.longest_above(TEN), provider.seconds_taken

    most, longest, took = medians(play)
    tell(
        "`WORKER_GROUP_CONCURRENCY=10`, `WORKER_ADAPTIVE=off`; the same, each worker restarted in turn",
        "at most 12 at once, for no longer than a call",
        f"{most:.0f} at once, more than 10 for {longest:.1f} s; {took:.0f} s",
    )
    assert most <= 12
    assert longest <= 1.1


def test_three_workers_use_the_groups_rate(run):
    def play():
        provider = LimitedProvider(per_time=(60, 60.0), seconds=0.5)
        with run(provider, partitions=12) as this:
            this.start(3, WORKER_GROUP_RATE="60/60")
            time.sleep(62.0)  # a share begins empty
            this.done(this.send(120, partitions=12))
        return provider.seconds_taken, provider.refused

    took, refused = medians(play)
    tell(
        "`WORKER_GROUP_RATE=60/60`; 60 in any 60 s, 3 workers, 120 calls",
        "at most 65 s (60.5 are possible), 2 refusals",
        f"{took:.1f} s, {refused:.0f} refusals",
    )
    assert took <= 65.0
    assert refused <= 2


def test_one_call_for_twelve_partitions_serves_them_all(run):
    """Turns last a minute, so the runs are made at the same time."""
    partitions = 12
    with ExitStack() as stack:
        runs = []
        for _ in range(RUNS):
            provider = LimitedProvider(streams=1, seconds=0.5)
            runs.append(stack.enter_context(run(provider, partitions=partitions)))
            runs[-1].start(3, WORKER_GROUP_CONCURRENCY="1", **OFF)
        for each in runs:
            ids = each.send(5 * partitions, partitions=partitions)
        for each in runs:
            each.done(ids, timeout=13 * 60.0)
        took = median(each.provider.seconds_taken for each in runs)
        refused = median(each.provider.refused for each in runs)
    tell(
        "`WORKER_GROUP_CONCURRENCY=1`, `WORKER_ADAPTIVE=off`; 12 partitions, 3 workers",
        "every partition is served",
        f"all within {took / 60:.1f} minutes, {refused:.0f} refusals",
    )
    assert refused == 0


def test_the_groups_tokens_are_not_overrun(run):
    budget, seconds = 60_000, 60
    rng = random.Random(5)

    def request(number: int) -> Sent:
        tokens = int(rng.lognormvariate(6.8, 0.5))
        usage = {"input_tokens": tokens // 2, "output_tokens": tokens - tokens // 2}
        return ask(f"{tokens}-{number}", f"k{number}", do="use", usage=usage, seconds=rng.uniform(1.0, 3.0))

    def play():
        with run(LimitedProvider(), partitions=6) as this:
            this.start(3, WORKER_HANDLER="tests.support.handlers:handle", WORKER_GROUP_TOKENS=f"{budget}/{seconds}")
            this.scene.send(*(request(number) for number in range(400)))
            time.sleep(2 * seconds + 10.0)
            ends = [call for call in this.scene.journal() if call.moment == "end"]
        spent = sorted((call.at, int(call.id.partition("-")[0])) for call in ends)
        first = spent[0][0]
        windows = [sum(tokens for at, tokens in spent if since <= at < since + seconds) for since, _ in spent]
        used = sum(tokens for at, tokens in spent if at < first + 2 * seconds)
        return max(windows) / budget, used / (2 * budget)

    worst, used = medians(play)
    tell(
        "`WORKER_GROUP_TOKENS=60000/60`; 3 workers, calls of some 1,000 tokens for 2 minutes",
        "at most 1.1 of the budget in any 60 s",
        f"{worst:.2f} at most, {used:.2f} used",
    )
    assert worst <= 1.1


# A provider that fails


@pytest.mark.parametrize("kind", ["503", "refused"])
def test_an_outage_of_two_minutes_costs_no_request_and_few_calls(run, kind):
    def play():
        provider = LimitedProvider(streams=10, seconds=1.0, retry_after="2" if kind == "503" else None)
        with run(provider) as this:
            this.start()
            ids = this.send(400)
            eventually(lambda: len(provider.calls) >= 100, "calls to be made at full speed", timeout=60)
            attempts = _calls_made(this)
            began = time.monotonic()
            if kind == "503":
                provider.refuses_with, provider.down = 503, True
                time.sleep(2.0)
                at_first = _calls_made(this)
                time.sleep(OUTAGE - 2.0)
                provider.down, provider.refuses_with, provider.retry_after = False, 429, None
            else:
                with this.service.gone():
                    time.sleep(2.0)
                    at_first = _calls_made(this)
                    time.sleep(OUTAGE - 2.0)
            probes, over = _calls_made(this) - at_first, time.monotonic()
            this.done(ids)
            assert this.dead_letters() == 0
        # How long until ten calls ran in each of two seconds, or nearly.
        back = next(
            at for at in (0.5 * step for step in range(200)) if provider.busy_seconds(over + at, over + at + 2) >= 18.0
        )
        print(f"{attempts} before, {at_first} at first, {over - began:.0f} s")
        return probes, back

    probes, back = medians(play)
    what = "`503` with `Retry-After: 2`" if kind == "503" else "connections refused"
    tell(
        f"nothing; an outage of two minutes, {what}; 10 at once, calls of 1 s",
        "no dead letter, at most 20 calls in it, full speed within 10 s",
        f"none, {probes:.0f} calls, after {back:.1f} s",
    )
    assert probes <= 20
    assert back <= 10.0


def _calls_made(this: Run) -> float:
    return this.scene.workers[0].metric("handler_attempts_total")


def test_five_requests_that_are_always_refused_leave_the_others_their_pace(run):
    bad = [f"bad{number}" for number in range(5)]

    def play():
        alone = LimitedProvider(streams=10, seconds=1.0)
        with run(alone) as this:
            this.start()
            this.done(this.send(300))
        provider = LimitedProvider(streams=10, seconds=1.0, poisoned=frozenset(bad))
        with run(provider) as this:
            this.start()
            requests = [ask(f"r{number}", f"r{number}") for number in range(300)]
            for number, name in enumerate(bad):
                requests.insert(60 * number, ask(name, name))
            this.scene.send(*requests)
            ids = [f"r{number}" for number in range(300)] + bad
            this.done(ids, timeout=900)
            assert this.dead_letters() == len(bad)
            ended = time.monotonic() - provider.began
        return alone.seconds_taken / provider.seconds_taken, ended

    pace, ended = medians(play)
    tell(
        "nothing; 5 requests that are always refused among 300 good ones; 10 at once, calls of 1 s",
        "the good ones keep 0.8 of their pace, the 5 become dead letters",
        f"{pace:.2f}; dead letters after {ended:.0f} s",
    )
    assert pace >= 0.8
