"""Decoding, at its edges: any bytes have one outcome, and what the client cannot decode is told without quoting it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import kafka.record.default_records as records_of_the_client
import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher

from gigaoffice_worker.broker.errors import UndecodableError
from gigaoffice_worker.broker.kafka_python import checked_batch, fetching
from gigaoffice_worker.broker.kafka_python.fetching import (
    batch_end,
    limit_the_client,
    set_aside,
    watch,
)
from gigaoffice_worker.core.messages import InvalidRequestError, RecordEncoder, decode_request, encode_response
from gigaoffice_worker.core.records import Failure, Reason
from gigaoffice_worker.engine.quarantine import LONGEST_WAIT, Quarantine
from tests.support import corpus
from tests.support.batches import RawRecord, batch, set_codec
from tests.support.making import answered, record
from tests.unit.test_messages import AT, NEARLY_JSON

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
PLACE = TopicPartition("requests", 3)
SECRET = b"text-that-nobody-may-see"


@pytest.mark.parametrize("case", corpus.cases(), ids=lambda case: case.name)
def test_corpus_says_what_comes_of_it(case):
    assert corpus.outcome_of(case.key, case.value) == case.outcome


def test_table_of_the_document_is_that_of_the_corpus():
    """The corpus is held against a running worker by integration/test_bad_input.py."""
    assert f"<!-- bad-input:begin -->\n{corpus.table()}\n<!-- bad-input:end -->" in DOCUMENT.read_text()


NAMES = st.text(max_size=8) | st.sampled_from(["traceparent", "tracestate", "dlq-reason", "dlq-replays"])
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=12)), max_size=6)


@given(NEARLY_JSON | st.binary(), st.none() | st.binary(max_size=12), HEADERS)
def test_any_record_has_a_response_or_a_dead_letter(value, key, headers):
    source, wire = record(7, key, value, headers), RecordEncoder("responses", "dlq", "group", "1")
    try:
        request_id, payload = decode_request(source)
    except InvalidRequestError as error:
        message = f"{error}"
        letter = wire.dead_letter(source, Reason.INVALID_REQUEST, Failure("InvalidRequest", message), 0, AT)
        assert message.isprintable()
        assert (letter.key, letter.value) == (key, value)
        assert letter.headers[: len(headers)] == [(name, text or b"") for name, text in headers]
        return
    response = wire.response(source, encode_response(request_id, answered(payload), 0.1, AT))
    assert json.loads(response.value)["request_id"] == request_id
    assert all(text is not None for _, text in response.headers)


# What the client cannot decode


class Reader:
    """The client's own fetcher, fed by hand: one partition, from `position` on."""

    def __init__(self, content: bytes, position: int = 0, error_code: int = 0) -> None:
        state = SimpleNamespace(position=SimpleNamespace(offset=position), highwater=None)
        subscriptions = SimpleNamespace(
            is_fetchable=lambda _: True,
            is_assigned=lambda _: True,
            position=lambda _: state.position,
            move_partition_to_end=lambda _: None,
            has_default_offset_reset_policy=lambda: False,
            assignment={PLACE: state},
        )
        self.fetcher = Fetcher(SimpleNamespace(), subscriptions, metrics=None)
        self.client = SimpleNamespace(_fetcher=self.fetcher)
        watch(self.client)
        completed = SimpleNamespace(
            topic_partition=PLACE,
            fetched_offset=position,
            response_version=10,
            partition_data=(error_code, 10, -1, 0, [], content),
            metric_aggregator=None,
        )
        self.fetcher._completed_fetches.append(completed)

    def read(self) -> list[int]:
        found, _ = self.fetcher.fetched_records(100)
        return [each.offset for each in found.get(PLACE, [])]


def at(base: int, content: bytes) -> bytes:
    """Return a batch as it stands in a log, from offset `base` on."""
    return base.to_bytes(8, "big") + content[8:]


def good(count: int = 1) -> bytes:
    return batch([RawRecord(b"k", b"{}")] * count)


def changed(change: Callable[[bytearray], None]) -> bytes:
    content = bytearray(good())
    change(content)
    return bytes(content)


NOT_UTF_8 = batch([RawRecord(b"k", SECRET, ((b"\xff" + SECRET, SECRET),)), RawRecord(b"k", b"{}")])


def test_what_stands_before_is_read_and_then_the_place_is_named():
    reader = Reader(at(0, good(2)) + at(2, NOT_UTF_8) + at(4, good()))
    assert reader.read() == [0, 1]
    with pytest.raises(UndecodableError) as caught:
        reader.read()
    error = caught.value
    assert (error.partition, error.offset, error.behind) == (3, 2, 4)
    assert error.reason == "a header name is not UTF-8"
    assert SECRET.decode() not in str(error)
    set_aside(reader.client, 3)
    assert reader.read() == []


def test_place_that_is_named_never_lies_before_the_one_that_was_asked_for():
    """An operator may have stepped over the one bad record of a batch, whose others are behind it."""
    content = at(2, batch([RawRecord(b"k", SECRET, ((b"\xff" + SECRET, SECRET),)), *[RawRecord(b"k", b"{}")] * 3]))
    for position in (2, 3, 5):
        with pytest.raises(UndecodableError) as caught:
            Reader(content, position).read()
        assert (caught.value.offset, caught.value.behind) == (position, 6)


@pytest.mark.parametrize(
    "content, reason",
    [
        (good()[:-1] + b"\xff", "failed crc check"),
        (changed(set_codec(5)), "Unrecognized compression type"),
        (changed(set_codec(1)), "BadGzipFile"),
        (batch([RawRecord(None, SECRET)], codec=3, pack=lambda _: SECRET), "RuntimeError"),
        (batch([RawRecord(None, SECRET)], codec=2, pack=lambda _: SECRET), ""),
        (batch([RawRecord(None, b"")], pack=lambda content: content + SECRET), "unconsumed bytes"),
        (batch([RawRecord(None, b"")], codec=4, pack=lambda _: zstandard.compress(b"\0" * 80_000_000)), "unpacks to"),
    ],
    ids=["checksum", "codec", "gzip", "lz4", "snappy", "left-over", "bomb"],  # the batches hold today's time
)
def test_damaged_batch_is_told_without_quoting_it(content, reason):
    limit_the_client()
    reader = Reader(content)
    with pytest.raises(UndecodableError) as caught:
        [reader.read() for _ in range(2)]  # the first may still find something
    assert caught.value.partition == 3
    assert reason in caught.value.reason
    assert SECRET.decode() not in caught.value.reason


def lying(*deltas: int) -> bytes:
    return batch([RawRecord(b"k", b"{}", delta=delta) for delta in deltas])


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("deltas", [(0, 0, 0), (2, 1, 0), (0, 1_000_000), (-1,), (5, 1), (1,), (0, 2, 1)], ids=str)
def test_nothing_is_handed_on_of_a_batch_whose_offsets_lie(deltas, large, monkeypatch):
    """Else the first of them would move the position past others, or past the end of the log."""
    limit_the_client()
    if large:
        monkeypatch.setattr(checked_batch, "_KEPT_RECORDS", 0)
    reader = Reader(at(20, good()) + at(21, lying(*deltas)) + at(21 + len(deltas), good()), position=20)
    assert reader.read() == [20]
    with pytest.raises(UndecodableError) as caught:
        reader.read()
    assert (caught.value.offset, caught.value.behind) == (21, 21 + len(deltas))
    assert "do not rise" in caught.value.reason


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_records_before_a_damaged_one_of_their_batch_are_read(large, monkeypatch):
    limit_the_client()
    if large:
        monkeypatch.setattr(checked_batch, "_KEPT_RECORDS", 0)
    odd = RawRecord(b"k", b"{}", attributes=0xFF)
    reader = Reader(at(4, batch([RawRecord(b"k", b"{}"), odd, RawRecord(b"k", b"{}")])), position=4)
    assert reader.read() == [4]
    with pytest.raises(UndecodableError) as caught:
        reader.read()
    assert (caught.value.offset, caught.value.behind) == (5, 7)


def test_batch_that_holds_more_than_it_says_is_waited_before():
    """Behind its last record the position would be the next batch's, and what is left over forgotten."""
    limit_the_client()
    reader = Reader(batch([RawRecord(None, b"{}")] * 2, pack=lambda content: content + SECRET))
    with pytest.raises(UndecodableError) as caught:
        reader.read()
    assert (caught.value.offset, caught.value.behind) == (0, 2)


def test_offsets_missing_from_a_batch_are_no_lie():
    """Compaction removes records, also the first and the last of a batch."""
    limit_the_client()
    kept = bytearray(batch([RawRecord(b"k", b"{}", delta=1), RawRecord(b"k", b"{}", delta=3)]))
    kept[23:27] = (5).to_bytes(4, "big")
    set_codec(0)(kept)
    reader = Reader(bytes(kept))
    assert reader.read() == [1, 3]
    assert reader.fetcher._subscriptions.position(PLACE).offset == 6


@pytest.mark.parametrize("error_code", [2, -1, 76])
def test_what_the_broker_cannot_read_is_undecodable_too(error_code):
    with pytest.raises(UndecodableError) as caught:
        Reader(b"", 5, error_code).read()
    assert (caught.value.partition, caught.value.offset, caught.value.behind) == (3, 5, None)


def test_answer_without_a_whole_batch_is_undecodable():
    with pytest.raises(UndecodableError):
        Reader(good()[:-1]).read()


@pytest.mark.parametrize("error_code, kind", [(29, kafka_errors.TopicAuthorizationFailedError), (1, None)])
def test_refused_right_and_lost_position_are_told_as_before(error_code, kind):
    with pytest.raises(kind or kafka_errors.OffsetOutOfRangeError):
        Reader(b"", 5, error_code).read()


def test_healthy_data_at_hand_is_not_blamed_for_another_error():
    reader = Reader(good(3))
    assert len(reader.fetcher.fetched_records(1)[0][PLACE]) == 1
    set_aside(reader.client, 4)
    assert reader.read() == [1, 2]


def test_poll_ends_where_it_has_returned_enough():
    limit_the_client()
    large = batch([RawRecord(b"k", b"x" * (fetching.POLL_BYTES // 2))])
    reader = Reader(b"".join(at(offset, large) for offset in range(5)))
    assert [reader.read() for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_read_data_are_not_held_on_to():
    reader = Reader(good(3))
    part = reader.fetcher._parse_fetched_data(reader.fetcher._completed_fetches.popleft())
    assert part._raw
    assert len(part.take(100)) == 3
    assert part._raw == b""


def test_end_of_a_batch_is_found_behind_others():
    content = at(5, good(2)) + at(7, good()) + at(20, good(3))
    assert [batch_end(content, offset) for offset in (5, 6, 7, 21, 22, 23)] == [7, 7, 8, 23, 23, None]
    assert batch_end(b"", 0) is None
    assert batch_end(changed(lambda one: one.__setitem__(slice(8, 12), b"\xff\xff\xff\xf0")), 0) is None


PACKERS = {"gzip_decode": gzip.compress, "lz4_decode": lz4.frame.compress, "zstd_decode": zstandard.compress}


@pytest.mark.parametrize("name", PACKERS)
def test_client_unpacks_as_much_as_it_is_let_and_no_more(name):
    limit_the_client()
    decode, pack = getattr(records_of_the_client, name), PACKERS[name]
    assert decode is getattr(fetching, name)
    for text in (b"", b"short", SECRET * 100_000):
        assert decode(pack(text)) == text
    packed = pack(b"\0" * (fetching.UNPACKED_AT_LEAST + 1))
    with pytest.raises(fetching.TooLargeUnpackedError):
        decode(packed)


# Quarantine


def undecodable(offset: int = 41, partition: int = 0) -> UndecodableError:
    return UndecodableError(partition, offset, ValueError("broken"), offset + 1)


def test_quarantined_partition_is_looked_at_again_ever_more_seldom():
    quarantine, now, looks = Quarantine("requests"), 0.0, []
    quarantine.admit(undecodable(), now)
    while now < 600:
        now += 0.5
        if not quarantine.shuts_in(0, now):
            looks.append(now)
            quarantine.admit(undecodable(), now)
    waits = [later - earlier for earlier, later in pairwise(looks)]
    assert waits[:5] == [2, 4, 8, 16, 32]
    assert set(waits[5:]) == {LONGEST_WAIT}
    assert quarantine.held == {0: (41, "ValueError: broken")}


def test_partition_that_is_read_on_leaves_quarantine():
    quarantine = Quarantine("requests")
    quarantine.admit(undecodable(), 0.0)
    quarantine.admit(undecodable(partition=1), 0.0)
    quarantine.let_out({0: 41, 1: None}.get)
    assert set(quarantine.held) == {0, 1}
    quarantine.let_out({0: 42, 1: 41}.get)
    assert set(quarantine.held) == {1}
    assert not quarantine.shuts_in(0, 0.0)
    quarantine.keep({})
    assert quarantine.held == {}
