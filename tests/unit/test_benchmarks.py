from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import figures, report
from benchmarks.ideal import ideal_seconds
from benchmarks.provider import Limits, Provider
from benchmarks.report import Results
from benchmarks.runs import Measurement
from benchmarks.workloads import W9

CALLS = st.lists(st.tuples(st.floats(0.001, 10.0), st.integers(0, 5)), min_size=1, max_size=40)


def test_one_slot_takes_as_long_as_all_calls_together():
    assert ideal_seconds([1.0, 2.0, 3.0], ["a", "b", "c"], 1) == 6.0


def test_calls_of_one_key_wait_for_each_other_however_many_slots_are_free():
    assert ideal_seconds([1.0, 1.0, 1.0], ["a", "a", "a"], 64) == 3.0


def test_a_slot_passes_over_a_key_that_is_busy():
    # The second call waits for the first; the third, of another key, runs beside both.
    assert ideal_seconds([1.0, 1.0, 2.0], ["a", "a", "b"], 2) == 2.0


def test_a_free_slot_takes_the_first_call_in_the_log_that_may_run():
    # Were the long call taken first, it would be over at 3.0.
    assert ideal_seconds([1.0, 1.0, 3.0], ["a", "b", "c"], 2) == 4.0


def test_nothing_to_do_takes_no_time():
    assert ideal_seconds([], [], 4) == 0.0


@given(CALLS, st.integers(1, 8))
def test_no_schedule_beats_the_slots_or_the_longest_key(calls, slots):
    durations = [seconds for seconds, _ in calls]
    keys = [key for _, key in calls]
    took = ideal_seconds(durations, keys, slots)
    longest = max(sum(s for s, k in calls if k == key) for key in keys)
    assert took >= max(sum(durations) / slots, longest) - 1e-9
    assert took <= sum(durations) + 1e-9


def test_spread_tells_the_median_between_the_least_and_the_greatest():
    assert figures.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_percentile_is_a_value_that_was_measured():
    values = [float(n) for n in range(100, 0, -1)]
    assert figures.percentile(values, 50) == 50.0
    assert figures.percentile(values, 99) == 99.0
    assert figures.percentile(values, 99.9) == 100.0
    assert figures.percentile([7.0], 1) == 7.0


@pytest.mark.parametrize("figure", [figures.spread, lambda values: figures.percentile(values, 50)])
def test_figures_of_nothing_are_refused(figure):
    with pytest.raises(ValueError, match="measured"):
        figure([])


def test_ratios_compare_only_runs_of_the_same_round():
    assert figures.ratios({0: 10.0, 1: 30.0, 2: 5.0}, {0: 5.0, 1: 10.0}) == [2.0, 3.0]


def test_a_moment_between_two_samples_lies_on_the_line_between_them():
    assert figures.at(1.5, [1.0, 2.0], [10.0, 20.0]) == 15.0
    assert figures.at(2.0, [1.0, 2.0], [10.0, 20.0]) == 20.0


def test_a_moment_outside_of_the_samples_has_the_value_of_the_nearest():
    assert figures.at(0.0, [1.0, 2.0], [10.0, 20.0]) == 10.0
    assert figures.at(9.0, [1.0, 2.0], [10.0, 20.0]) == 20.0


def test_calls_that_overlap_or_change_places_are_seen():
    assert not figures.overlapping([(0.0, 1.0), (1.0, 2.0), (5.0, 6.0)])
    assert figures.overlapping([(0.0, 1.0), (0.9, 2.0)])
    assert figures.overlapping([(2.0, 3.0), (0.0, 1.0)])


def test_a_table_tells_ratios_to_the_plain_loop_of_the_same_round():
    results = Results("a machine", {}, rounds={})
    for number, ours, base in [(0, 20.0, 10.0), (1, 60.0, 20.0)]:
        results.measurements += [
            Measurement("W1", "ours", number, 1, complete=True, in_order=True, rate=ours),
            Measurement("W1", "kafka-python", number, 1, complete=True, in_order=True, rate=base),
        ]
    row = next(line for line in report.tables(results).splitlines() if "gigaoffice" in line)
    assert "| 40 (20-60) | 2.50 (2.00-3.00) |" in row


def test_one_run_out_of_order_is_enough_for_a_no():
    results = Results("a machine", {}, rounds={})
    results.measurements = [
        Measurement("W2", "arroyo", number, 1, complete=True, in_order=in_order)
        for number, in_order in enumerate([True, False])
    ]
    assert report.tables(results).splitlines()[-1].endswith("| no |")


def test_a_late_request_that_was_not_answered_in_time_is_told():
    results = Results("a machine", {}, rounds={})
    for peer, waits in [("ours-fair", [0.5, 0.7]), ("arroyo", [12.0, None])]:
        results.measurements += [
            Measurement("W9", peer, number, 1, complete=True, in_order=True, late_wait=wait)
            for number, wait in enumerate(waits)
        ]
    ours, arroyo = report.tables(results).splitlines()[-2:]
    assert "| 0.6 (0.5-0.7) |" in ours
    assert "| more than 40 |" in arroyo


def test_the_last_requests_are_those_of_the_tenants_that_come_late():
    tenants = [json.loads(request.value)["tenant"] for request in replace(W9, requests=100).generate()]
    assert tenants[:40] == ["first"] * 40
    assert Counter(tenants[40:]) == {f"tenant-{number}": 6 for number in range(10)}


def test_a_row_tells_what_a_record_costs_at_each_size_that_was_measured():
    results = Results("a machine", {}, rounds={})
    for name, seconds in [("partitions-4", 30e-6), ("partitions-400", 65e-6)]:
        made = Measurement(name, "ours", 0, 1, complete=True, in_order=True, cpu_per_record=seconds)
        made.peak_memory = 60 * report.MIB
        results.measurements.append(made)
    assert report.tables(results).splitlines()[-1] == "| partitions | 4 · 400 | 30 · 65 | 60 · 60 |"


def test_only_what_stands_between_the_markers_is_replaced(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nbehind\n")
    report.into_document(document, "new")
    report.into_document(document, "newer")
    assert document.read_text() == f"before\n{report.BEGIN}\nnewer\n{report.END}\nbehind\n"


def test_a_document_without_markers_is_left_alone(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("no markers")
    with pytest.raises(ValueError, match="has no"):
        report.into_document(document, "new")
    assert document.read_text() == "no markers"


def test_a_provider_takes_what_its_limits_allow_and_counts_what_it_refuses():
    with Provider(Limits(streams=2, number=3, window=60.0)) as provider:
        assert [provider.begin(0.0), provider.begin(0.0), provider.begin(0.0)] == [True, True, False]
        provider.end()
        assert provider.begin(59.0)
        provider.end()
        assert not provider.begin(59.9)  # three in a minute
        assert provider.begin(60.0)
        assert (provider.taken, provider.refused, provider.refusals_per_100) == (4, 2, 50.0)


def test_the_least_time_for_calls_is_what_streams_or_windows_allow():
    assert Limits(streams=10).ideal_seconds(200, 2.0) == 40.0
    assert Limits(number=60).ideal_seconds(60, 1.0) == 1.0
    assert Limits(number=60).ideal_seconds(120, 1.0) == 61.0
    assert Limits(streams=1, number=60).ideal_seconds(120, 1.0) == 120.0


def test_a_call_that_is_beyond_the_limit_is_refused_with_the_providers_time():
    with Provider(Limits(streams=1, retry_after=7)) as provider:
        assert provider.begin(0.0)
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{provider.url}0.0", timeout=5.0)  # noqa: S310  # our own
        with refused.value as error:
            assert (error.code, error.headers["Retry-After"]) == (429, "7")
        provider.end()
        with urlopen(f"{provider.url}0.0", timeout=5.0) as answered:  # noqa: S310
            assert answered.status == 200
