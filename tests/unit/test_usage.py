"""What handlers report of their calls: checked, added up, written into a header and counted by model."""

from __future__ import annotations

import json

import pytest

from gigaoffice_worker import Request
from gigaoffice_worker.core.records import Attempt, AttemptEnd, Failure, Outcome
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.usage import Usage, summed
from gigaoffice_worker.observe.metrics import Metrics
from tests.support.making import Partition, dispatcher


def test_reports_of_one_request_add_up():
    request = Request({})
    request.usage(input_tokens=10, output_tokens=2, model="big", cost=0.5)
    request.usage(input_tokens=1, cost=0.25)

    total = summed(request.used)

    assert json.loads(total.encode()) == {"input_tokens": 11, "output_tokens": 2, "model": "big", "cost": 0.75}
    assert total.tokens == 13


def test_only_what_was_reported_is_told():
    assert json.loads(Usage.reported(None, 7, None, None).encode()) == {"output_tokens": 7}
    assert summed([]) is None


@pytest.mark.parametrize(
    "report, error",
    [
        ({"input_tokens": -1}, "input_tokens must be at least 0"),
        ({"output_tokens": 1.5}, "output_tokens must be a whole number"),
        ({"input_tokens": True}, "input_tokens must be a whole number"),
        ({"cost": "free"}, "cost must be a number"),
        ({"cost": float("nan")}, "cost must be at least 0"),
        ({"model": 4}, "model must be a text"),
    ],
)
def test_a_report_that_is_none_says_what_is_wrong_with_it(report, error):
    with pytest.raises((TypeError, ValueError), match=error):
        Request({}).usage(**report)


def test_the_outcome_carries_what_all_attempts_used():
    now = [0.0]
    asked = dispatcher(RetryPolicy(3, delay=0.0), clock=lambda: now[0], rng=lambda: 0.0)
    asked.offer([Partition().work(b"k")])
    failed = Attempt(AttemptEnd.FAILED, 1.0, failure=Failure("ValueError", ""), used=(Usage(input_tokens=5),))

    first = asked.take()
    asked.conclude(first, first.run, failed)
    second = asked.take()
    outcome = asked.conclude(second, second.run, failed._replace(ended=AttemptEnd.ANSWERED, result=b"{}"))

    assert isinstance(outcome, Outcome)
    assert json.loads(outcome.usage) == {"input_tokens": 10}


def test_only_so_many_models_have_series_of_their_own():
    metrics = Metrics("0")
    for number in range(100):
        metrics.used([Usage(input_tokens=1, output_tokens=2, model=f"model-{number}", cost=0.5)])

    models = {sample.labels["model"] for family in metrics.tokens.collect() for sample in family.samples}
    assert len(models) == 21
    assert metrics.tokens.labels("input", "other")._value.get() == 80
    assert metrics.cost.labels("other")._value.get() == 40
