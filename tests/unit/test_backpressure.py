"""When a partition is paused and when it goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.core.backpressure import HoldingLimits, PartitionQuota
from tests.support.making import assignment

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


def reasons(*paused: int, everywhere: str | None = None, **held: int) -> dict[int, str]:
    """Ask for five partitions: 1 has no position, 2 is in quarantine, 3 has a full commit map, 4 holds `held`."""
    assignments = {number: assignment(number) for number in (0, 2, 3, 4)}
    assignments[4].held_records = held.get("records", 0)
    assignments[4].held_bytes = held.get("bytes", 0)
    return HoldingLimits(max_records=400, max_bytes=1 << 22).reasons(
        assignments,
        paused,
        everywhere=everywhere,
        sweeping=(),
        unpositioned={1},
        undecodable=lambda partition: partition == 2,
        map_full={3},
    )


def test_each_partition_is_paused_for_a_reason_of_its_own() -> None:
    alone = {1: "position unknown", 2: "undecodable record", 3: "commit map"}
    assert reasons() == alone
    assert reasons(records=100) == alone | {4: "records"}
    assert reasons(records=60) == alone
    assert reasons(4, records=60) == alone | {4: "records"}
    assert reasons(bytes=1 << 20) == alone | {4: "bytes"}


def test_a_reason_for_all_leaves_only_what_cannot_be_decoded_its_own() -> None:
    shut = {0: "draining", 1: "position unknown", 2: "undecodable record", 3: "draining", 4: "draining"}
    assert reasons(everywhere="draining") == shut


def test_partitions_that_hold_more_than_all_may_together_stop_each_other() -> None:
    assert reasons(bytes=1 << 22)[4] == "bytes"
    assert 0 not in reasons(bytes=1 << 22)
    assert reasons(bytes=(1 << 22) + 1)[0] == "bytes"
