"""The bounds of a retry's delay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.retry import RetryPolicy

SECONDS = st.floats(0, 1e6)
RANDOM = st.floats(0, 1, exclude_max=True)
POLICIES = st.builds(RetryPolicy, st.integers(1, 100), SECONDS, SECONDS)


def test_the_last_attempt_is_the_one_that_was_allowed() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert [policy.exhausted(attempt) for attempt in (1, 2, 3, 4)] == [False, False, True, True]
    assert RetryPolicy(max_attempts=1).exhausted(1)


def test_the_ceiling_doubles_up_to_the_longest_delay() -> None:
    policy = RetryPolicy(delay=1.0, max_delay=60.0)
    assert [policy.ceiling(attempt) for attempt in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert policy.ceiling(100_000) == 60


@given(POLICIES, st.integers(1, 10_000), RANDOM)
def test_a_delay_is_jittered_over_all_of_its_range(policy: RetryPolicy, attempt: int, draw: float) -> None:
    delay = policy.delay_after(attempt, lambda: draw)
    assert 0 <= delay <= policy.ceiling(attempt) <= policy.max_delay
    assert policy.delay_after(attempt, lambda: 0.0) == 0
    assert policy.delay_after(attempt, lambda: 0.5) == pytest.approx(policy.ceiling(attempt) / 2)


@given(POLICIES, st.integers(1, 10_000), RANDOM, SECONDS)
def test_what_a_handler_asks_for_is_the_least_and_not_much_less_than_the_most(
    policy: RetryPolicy, attempt: int, draw: float, asked_for: float
) -> None:
    delay = policy.delay_after(attempt, lambda: draw, asked_for)
    assert asked_for <= delay <= asked_for * 1.1 + policy.delay + 1e-6


def test_requests_refused_together_do_not_come_back_together() -> None:
    policy = RetryPolicy()
    assert len({policy.delay_after(1, lambda draw=draw: draw, 30.0) for draw in (0.0, 0.3, 0.6)}) == 3


@given(POLICIES, st.integers(1, 10_000), RANDOM)
def test_a_delay_asked_for_in_the_past_is_none(policy: RetryPolicy, attempt: int, draw: float) -> None:
    assert 0 <= policy.delay_after(attempt, lambda: draw, -5.0) <= policy.delay
