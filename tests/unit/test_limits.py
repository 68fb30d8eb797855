"""The limiter on a model of a provider: the limit is used whole, refusals are few, an outage is probed seldom."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from gigaoffice_worker.core.limits import AdaptiveConcurrency, ProviderLimits
from gigaoffice_worker.core.retry import RetryPolicy
from tests.support.provider_model import Played, Provider, play

POLICY = RetryPolicy()
SEEDS = (101, 102, 103)


def played(provider: dict, **options) -> list[Played]:
    return [play(Provider(**provider), seed=seed, **options) for seed in SEEDS]


# Held a little below what is reachable with other seeds; today's gate alone used 0.78 of ten streams with 129 refusals.
@pytest.mark.parametrize(
    "provider, options, used, refused",
    [
        ({"streams": 1}, {}, 0.97, 15),
        ({"streams": 2}, {}, 0.95, 8),
        ({"streams": 10}, {}, 0.94, 7),
        ({"streams": 7}, {"call": 3.5}, 0.94, 7),
        ({"per_minute": 20}, {"seconds": 1500.0}, 0.87, 5),
        ({"per_minute": 60}, {"seconds": 1500.0}, 0.87, 5),
        ({"per_minute": 250}, {"seconds": 1500.0}, 0.87, 5),
        ({"streams": 10}, {"workers": 3}, 0.94, 8),
        ({"per_minute": 60}, {"workers": 3, "seconds": 1500.0}, 0.94, 6),
        ({"per_minute": 20}, {"workers": 3, "seconds": 1500.0}, 0.89, 15),
        ({"streams": 10, "retry_after": 1.0}, {}, 0.8, 10),
    ],
)
def test_the_limit_is_used_and_refusals_are_few(provider, options, used, refused):
    runs = played(provider, **options)

    assert mean(run.used for run in runs) >= used
    assert mean(run.refused_in_100 for run in runs) <= refused


def test_an_unlimited_provider_is_called_with_every_thread():
    run = play(Provider(), threads=16, call=2.0, seconds=100.0)

    assert run.refusals == []
    assert len(run.answers) >= 0.9 * 16 * 100.0 / 2.0


def test_a_limit_that_halves_and_recovers_is_followed():
    for run in played({"streams": 10, "drop": (250.0, 310.0)}):
        assert run.used >= 0.9
        assert sum(250.0 <= at < 310.0 for at in run.refusals) <= 20


def test_an_outage_is_probed_seldom_and_its_end_is_noticed_soon():
    for run in played({"streams": 10, "outage": (250.0, 370.0)}):
        in_outage = [at for at in run.refusals if 251.0 <= at < 370.0]
        assert len(in_outage) <= 20
        soon = [at for at in run.answers if 380.0 <= at < 390.0]
        assert len(soon) >= 0.7 * 10 * 10.0 / 2.0


def test_what_was_never_refused_waits_for_nothing_but_threads():
    limits = ProviderLimits(4, POLICY.ceiling, random.Random(1).random)

    assert [limits.begins_at(now, running) for now, running in ((0.0, 0), (0.1, 3))] == [0.0, 0.1]


def test_calls_of_one_flight_cut_once():
    limits = ProviderLimits(16, POLICY.ceiling, random.Random(1).random)
    for _ in range(16):
        limits.started(0.0)

    for running in range(15, 9, -1):
        limits.refused(0.05, 0.0, running, None)

    # 15 were left at the first refusal, 10 at the last: ten are taken, and only the first refusal cut below its level.
    assert limits.concurrency.level == 10.0
    assert limits.concurrency.limit == 10.0


def test_a_cut_is_taken_back_when_all_that_followed_was_refused():
    limits = ProviderLimits(8, POLICY.ceiling, lambda: 0.0)
    limits.started(0.0)
    limits.passed(1.0, 0.0)
    for _ in range(8):
        limits.started(1.0)
    for running in range(7, -1, -1):
        limits.refused(1.05, 1.0, running, None)

    assert limits.gate.closed(1.1)
    assert limits.concurrency.whole == 8


def test_a_pause_that_was_too_short_grows_as_long_as_nothing_gets_through():
    limits = ProviderLimits(8, POLICY.ceiling, lambda: 0.0)
    now, pauses = 0.0, []
    for _ in range(7):
        limits.started(now)
        opens = limits.refused(now, now, 0, 2.0)
        pauses.append(opens - now)
        now = opens

    assert pauses == [2.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]


def test_retry_after_shuts_the_gate_and_opens_it_for_one():
    limits = ProviderLimits(8, POLICY.ceiling, lambda: 0.0)
    limits.started(0.0)
    limits.started(0.0)

    assert limits.refused(0.1, 0.0, 1, 30.0) == pytest.approx(30.1)
    assert limits.begins_at(1.0, 1) == pytest.approx(30.1)

    opened = 31.0
    assert limits.begins_at(opened, 0) == opened
    limits.started(opened)
    # Refusals take 0.1 s here, so after four times that one that was not refused is taken to be let through.
    assert limits.begins_at(opened, 1) == pytest.approx(opened + 0.4)
    limits.passed(opened + 0.5, opened)
    assert limits.begins_at(opened + 0.5, 0) == opened + 0.5


@pytest.mark.parametrize("ceiling", [1, 5, 64])
def test_the_limit_stays_within_its_bounds(ceiling):
    rng = random.Random(7)
    limits = ProviderLimits(ceiling, POLICY.ceiling, rng.random)
    now, running = 0.0, []
    for _ in range(3000):
        now += rng.random()
        if limits.begins_at(now, len(running)) <= now and len(running) < ceiling:
            limits.started(now)
            running.append(now)
        elif running:
            began = running.pop(rng.randrange(len(running)))
            if rng.random() < 0.3:
                limits.refused(now, began, len(running), rng.choice([None, None, 0.5]))
            else:
                limits.passed(now, began)
        assert 1 <= limits.concurrency.whole <= ceiling


# Another ceiling


def test_a_ceiling_that_was_never_felt_moves_the_limit_with_it() -> None:
    calls = AdaptiveConcurrency(16)
    calls.resize(4)
    assert (calls.whole, calls.ceiling) == (4, 4)
    calls.resize(32)
    assert calls.whole == 32


def test_what_the_provider_has_taught_stays_below_another_ceiling() -> None:
    calls = AdaptiveConcurrency(16)
    calls.cut(5)
    learnt = calls.limit
    calls.resize(32)
    assert calls.limit == learnt
    calls.resize(2)
    assert calls.whole == 2
