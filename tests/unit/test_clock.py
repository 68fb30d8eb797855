"""The client library measures its times with a clock that does not jump."""

from __future__ import annotations

import time

import kafka.conn
import kafka.coordinator.heartbeat
import kafka.producer.record_accumulator
import kafka.record.default_records
import kafka.util
import pytest

from gigaoffice_worker.broker.kafka_python.clock import STEADY, steady_the_client


def test_steady_time_goes_with_the_monotonic_clock():
    before = time.monotonic()
    first, second = STEADY.time(), STEADY.time()
    after = time.monotonic()
    assert 0 <= second - first <= after - before
    assert first > 1e9


def test_everything_else_is_the_module_itself():
    assert STEADY.sleep is time.sleep
    assert STEADY.monotonic is time.monotonic


@pytest.mark.parametrize(
    "module", [kafka.conn, kafka.coordinator.heartbeat, kafka.producer.record_accumulator, kafka.util]
)
def test_modules_that_measure_get_the_steady_clock(module):
    steady_the_client()
    assert module.time is STEADY


def test_records_are_stamped_by_the_wall_clock():
    steady_the_client()
    assert kafka.record.default_records.time is time
