"""When a partition is paused and when it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.backpressure import PartitionQuota

SHARE = PartitionQuota(records=100, bytes=1000)


def test_intake_stops_at_the_share_of_records_or_bytes() -> None:
    assert SHARE.full(99, 999, paused=False) is None
    assert SHARE.full(100, 0, paused=False) == "records"
    assert SHARE.full(0, 1000, paused=False) == "bytes"


def test_a_paused_partition_goes_on_only_below_half_of_its_share() -> None:
    assert SHARE.full(50, 0, paused=True) == "records"
    assert SHARE.full(49, 500, paused=True) == "bytes"
    assert SHARE.full(49, 499, paused=True) is None


@given(st.integers(0, 300), st.integers(0, 3000))
def test_what_stops_a_partition_also_keeps_it_stopped(records: int, size: int) -> None:
    if SHARE.full(records, size, paused=False) is not None:
        assert SHARE.full(records, size, paused=True) is not None


@given(st.lists(st.integers(-10, 20), max_size=200))
def test_a_partition_that_holds_nothing_is_always_read(steps: list[int]) -> None:
    held, paused = 0, False
    for step in steps:
        held = max(0, held + step) if step < 0 or not paused else held
        paused = SHARE.full(held, 0, paused=paused) is not None
        # It never holds more than its share and one more batch.
        assert held < SHARE.records + 20
    assert SHARE.full(0, 0, paused=True) is None


@pytest.mark.parametrize(
    "partitions, expected", [(0, (8192, 1 << 25)), (1, (8192, 1 << 25)), (8, (1024, 1 << 22)), (10_000, (16, 1 << 18))]
)
def test_partitions_share_evenly_but_none_gets_too_little_to_be_worth_a_fetch(
    partitions: int, expected: tuple[int, int]
) -> None:
    assert PartitionQuota.of(partitions, 8192, 1 << 25) == PartitionQuota(*expected)
