"""What handlers report of their calls: checked, added up, written into a header and counted by model."""

from __future__ import annotations

import json

import pytest
from prometheus_client import generate_latest

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


NOT_A_REPORT = [
    ({"input_tokens": -1}, "input_tokens must be between 0 and 1,000,000,000,000,000"),
    ({"output_tokens": 10**15 + 1}, "output_tokens must be between 0 and"),
    ({"input_tokens": 10**400}, "input_tokens must be between 0 and"),
    ({"input_tokens": 10**5000}, "input_tokens must be between 0 and"),
    ({"output_tokens": 1.5}, "output_tokens must be a whole number"),
    ({"input_tokens": True}, "input_tokens must be a whole number"),
    ({"cost": "free"}, "cost must be a number"),
    ({"cost": float("nan")}, "cost must be between 0 and"),
    ({"cost": float("inf")}, "cost must be between 0 and"),
    ({"cost": 1.7e308}, "cost must be between 0 and"),
    ({"cost": 10**400}, "cost must be between 0 and"),
    ({"model": 4}, "model must be a text"),
]


@pytest.mark.parametrize("report, error", NOT_A_REPORT)
def test_a_report_that_is_none_says_what_is_wrong_with_it(report, error):
    with pytest.raises((TypeError, ValueError), match=error):
        Request({}).usage(**report)


def test_a_report_can_be_made_by_nothing_else():
    request = Request({})
    request.usage(input_tokens=1)
    with pytest.raises(AttributeError):
        request.used = 5
    with pytest.raises(AttributeError):
        request.used[0].input_tokens = 10**400


def test_the_largest_reports_have_a_sum_that_any_reader_of_json_takes():
    request = Request({})
    for _ in range(3):
        request.usage(input_tokens=10**15, output_tokens=1, cost=1e15)
    assert json.loads(summed(request.used).encode()) == {"input_tokens": 10**15, "output_tokens": 3, "cost": 1e15}


class Odd(int):
    """A number that is another one whenever somebody looks."""

    def __int__(self) -> int:
        return 10**400

    def __le__(self, other: object) -> bool:
        return True

    def __ge__(self, other: object) -> bool:
        return True

    def __float__(self) -> float:
        return float("nan")


class OddText(str):
    """A text that is none whenever somebody looks."""

    __slots__ = ()

    def __getitem__(self, part: object) -> str:
        return "\ud800"

    def encode(self, *_: object) -> bytes:
        raise ValueError


def test_a_report_consists_of_plain_values():
    found = Usage.reported(Odd(1), Odd(2), OddText("big"), Odd(3))
    assert found == Usage(1, 2, "big", 3.0)
    assert [type(each) for each in (found.input_tokens, found.output_tokens, found.model, found.cost)] == [
        int,
        int,
        str,
        float,
    ]


@pytest.mark.parametrize(
    "model, told",
    [
        ("большая", "большая"),
        ("\ud800", "\\ud800"),
        ("a\nb\x00", "a\\nb\\u0000"),
        ("x" * 100, "x" * 64),
        ("\x1b" * 64, ("\\u001b" * 11)[:64]),
    ],
    ids=["plain", "half a surrogate pair", "controls", "long", "long when escaped"],
)
def test_any_name_of_a_model_is_a_line_that_metrics_and_header_can_tell(model, told):
    request = Request({})
    request.usage(input_tokens=1, model=model)
    metrics = Metrics("0")
    metrics.used(request.used)

    assert json.loads(summed(request.used).encode())["model"] == told
    label = told.replace("\\", "\\\\")
    series = f'gigaoffice_worker_tokens_total{{direction="input",model="{label}"}} 1.0'
    assert series in generate_latest(metrics.registry).decode().splitlines()


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
