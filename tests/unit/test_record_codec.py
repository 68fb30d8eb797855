"""What we encode and decode by ourselves, against the client's own code for the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from gigaoffice_worker.broker.kafka_python.checked_batch import CheckedBatch
from gigaoffice_worker.broker.kafka_python.open_records import OpenRecords

CONTENT = st.none() | st.binary(max_size=300) | st.just(b"x" * 20_000)
HEADERS = st.lists(st.tuples(st.text(max_size=80), CONTENT), max_size=5)
RECORDS = st.lists(st.tuples(CONTENT, CONTENT, HEADERS), min_size=1, max_size=8)
CODECS = st.sampled_from([0, 1, 3, 4])
LZ4 = 3
NO_LIMIT = 1 << 30


def by_the_client(batch):
    return [(each.offset, each.timestamp, each.key, each.value, each.headers) for each in batch]


def by_us(batch):
    return [
        (each.offset, round(each.timestamp * 1000), each.key, each.value, list(each.headers))
        for each in batch.records("requests", 3)
    ]


@given(RECORDS, CODECS)
def test_the_client_reads_what_we_write(records, codec):
    written = OpenRecords(codec, NO_LIMIT)
    assert [written.add(*each) for each in records] == list(range(len(records)))
    written.close()
    assert written.add(b"k", b"too late", []) is None
    found = by_the_client(DefaultRecordBatch(written.buffer()))
    assert [(key, value, headers) for _, _, key, value, headers in found] == records
    assert [offset for offset, *_ in found] == list(range(len(records)))
    assert DefaultRecordBatch(written.buffer()).max_timestamp == max(at for _, at, *_ in found)


@given(RECORDS, CODECS, st.lists(st.integers(0, 1 << 40), min_size=8, max_size=8))
def test_we_read_what_the_client_writes(records, codec, moments):
    written = MemoryRecordsBuilder(2, codec, NO_LIMIT)
    for moment, each in zip(moments, records, strict=False):
        written.append(moment, *each)
    written.close()
    assert by_us(CheckedBatch(written.buffer())) == by_the_client(DefaultRecordBatch(written.buffer()))


@given(RECORDS, st.data())
def test_damage_has_a_name_whatever_it_hits(records, data):
    """The checksum would find it: this is for a producer that signs what it has written wrongly."""
    written = OpenRecords(0, NO_LIMIT)
    for each in records:
        written.add(*each)
    written.close()
    damaged = bytearray(written.buffer())
    at = data.draw(st.integers(DefaultRecordBatch.HEADER_STRUCT.size, len(damaged) - 1))
    damaged[at] = data.draw(st.integers(0, 255))
    try:
        found = by_us(CheckedBatch(bytes(damaged)))
    except CorruptRecordError:
        return
    assert [offset for offset, *_ in found] == sorted({offset for offset, *_ in found})


def test_batch_takes_records_up_to_its_size_and_one_in_any_case():
    small, one = OpenRecords(LZ4, 400), OpenRecords(LZ4, 10)
    assert [small.add(b"key", b"x" * 100, []) for _ in range(4)] == [0, 1, 2, None]
    assert [one.add(b"key", b"x" * 100, []) for _ in range(2)] == [0, None]


def test_a_record_cut_short_by_its_length_is_not_handed_on():
    written = OpenRecords(0, NO_LIMIT)
    written.add(b"k", b"0123456789", [])
    written.close()
    with pytest.raises(CorruptRecordError):
        list(CheckedBatch(written.buffer()[:-4]).records("requests", 0))
