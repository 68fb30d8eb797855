"""What a fetch holds as our records; and what cannot be decoded: in which partition, at which offset, and what follows.

The client raises from somewhere within `poll`, often without a word about the partition, and would come back to the
same dead data in a loop without end. So its fetcher is watched where it decodes. It also decompresses whatever a batch
claims to be: a batch of a megabyte that unpacks to gigabytes is within a topic's limits and would end the process.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import READ_COMMITTED, Fetcher
from kafka.record import default_records, legacy_records, memory_records

from gigaoffice_worker.broker.errors import UndecodableError
from gigaoffice_worker.broker.kafka_python.checked_batch import CheckedBatch, LyingOffsetsError
from gigaoffice_worker.core.records import Record

UNPACKED_AT_LEAST: Final = 64 * 1024 * 1024
UNPACKED_TIMES: Final = 20
"""A batch may unpack to 64 MiB, or to twenty times its size where that is more. JSON seldom shrinks so far."""

POLL_BYTES: Final = 4 * 1024 * 1024
"""What one poll returns of values, and at most one value more."""

_CHUNK: Final = 1024 * 1024
_LZ4_SHRINKS_TO: Final = 256
"""LZ4 shrinks nothing to less than a 255th."""

# Base offset, length, leader epoch, magic, checksum, attributes, last offset delta.
_HEADER: Final = struct.Struct(">qiibIhi")
_BEFORE_LENGTH_COUNTS: Final = 12
_MAGIC_AT: Final = 16

# What the broker answered instead of records: it cannot read them either.
_UNREADABLE: Final = (
    kafka_errors.CorruptRecordError,
    kafka_errors.UnknownError,
    kafka_errors.UnsupportedCompressionTypeError,
)


class TooLargeUnpackedError(Exception):
    """A batch unpacks to more than is taken."""


def watch(client: KafkaConsumer) -> None:
    """Let a consumer return our own `Record`s, and every failure to decode as an UndecodableError."""
    limit_the_client()
    fetcher = client._fetcher
    parse = fetcher._parse_fetched_data

    def watched(completed: Any) -> Any:
        try:
            return parse(completed)
        except kafka_errors.KafkaError as error:
            # A refused right and a position outside of the log are no matter of decoding. The bare class is the
            # client's word for an answer in which no batch is complete.
            if isinstance(error, _UNREADABLE) or type(error) is kafka_errors.KafkaError:
                raise UndecodableError(completed.topic_partition.partition, completed.fetched_offset, error) from error
            raise

    fetcher._parse_fetched_data = watched
    _limit_polls(fetcher)


def _limit_polls(fetcher: Any) -> None:
    """Let one poll return no more than about POLL_BYTES: the client counts records, whatever they unpack to."""
    room = _Room()
    fetch, append = fetcher.fetched_records, fetcher._append

    def fetched_records(*arguments: Any, **options: Any) -> Any:
        room.left = POLL_BYTES
        return fetch(*arguments, **options)

    def appended(drained: Any, part: Any, max_records: int, update_offsets: bool) -> int:  # noqa: FBT001
        taken: int = append(drained, part, max_records, update_offsets)
        return taken if room.left > 0 else max_records  # which the client takes for enough

    fetcher.fetched_records, fetcher._append = fetched_records, appended
    fetcher.PartitionRecords = partial(_Records, room)


def set_aside(client: KafkaConsumer, partition: int) -> None:
    """Drop the fetched data of a partition that raised, or the client would come back to its dead iterator."""
    fetcher = client._fetcher
    data = fetcher._next_partition_records
    if data and data.topic_partition.partition == partition:
        data.drain()
        fetcher._next_partition_records = None


class _Room:
    """How many bytes of records a poll may still take."""

    left = POLL_BYTES


class _Records(Fetcher.PartitionRecords):  # type: ignore[misc]  # the client ships no types
    """One partition's part of a fetch, which says where it could not be decoded."""

    def __init__(
        self, room: _Room, fetch_offset: int, tp: TopicPartition, records: Any, *arguments: Any, **options: Any
    ) -> None:
        super().__init__(fetch_offset, tp, records, *arguments, **options)
        self._room = room
        self._raw: bytes = records._buffer
        # Formats before Kafka 0.11 have no batch that could be checked as a whole.
        self._before_checks = self._raw[_MAGIC_AT : _MAGIC_AT + 1] in {b"\0", b"\1"}

    def take(self, n: int | None = None) -> list[Record]:
        offset = self.next_fetch_offset
        try:
            self._maybe_raise_next_inline_exception()
            records = self._take(n)
            if self._before_checks:
                _require_rising(records, offset)
        except Exception as error:
            if not self._before_checks:
                # Behind batches that hold no records for us, and never before the place that was asked for.
                offset = max(self.next_fetch_offset, self.fetch_offset)
            behind = batch_end(self._raw, offset)
            raise UndecodableError(self.topic_partition.partition, offset, error, behind) from error
        return records

    def _take(self, most: int | None) -> list[Record]:
        """Do what the client's `take` does, until the room is used up."""
        records: list[Record] = []
        room = self._room
        try:
            for record in itertools.islice(self.record_iterator, most):
                records.append(record)
                room.left -= len(record.value or b"")
                if room.left <= 0:
                    break
        except Exception as error:
            if not records:
                raise
            self._next_inline_exception = error  # for the next call
        return records

    def _unpack_records(self, tp: TopicPartition, records: Any, *deserializers: Any) -> Iterator[Record]:
        """Do what the client's method does, batch by batch; each batch decodes its own records."""
        if self._before_checks:
            yield from map(_as_record, super()._unpack_records(tp, records, *deserializers))
            return
        while (batch := records.next_batch()) is not None:
            if self.check_crcs and not batch.validate_crc():
                raise kafka_errors.CorruptRecordError(f"batch at offset {batch.base_offset} failed crc check")
            self.leader_epoch = batch.leader_epoch
            if not (self._is_aborted(batch) or batch.is_control_batch):
                for record in batch.records(tp.topic, tp.partition):
                    self.next_fetch_offset = record.offset + 1
                    yield record
                self.records_read += batch.records_count
                self.bytes_read += batch.size_in_bytes
            # Also past records at the end of a batch that compaction has removed.
            self.next_fetch_offset = batch.next_offset
        self.drain()

    def _is_aborted(self, batch: Any) -> bool:
        """Say whether a transaction that was given up wrote a batch, where such are not to be read."""
        if self.isolation_level != READ_COMMITTED or not batch.has_producer_id():
            return False
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return False
        return bool(self._is_batch_aborted(batch))

    def drain(self) -> None:
        super().drain()
        self._raw = b""


def _as_record(found: Any) -> Record:
    timestamp = found.timestamp / 1000 if found.timestamp is not None and found.timestamp >= 0 else 0.0
    return Record(found.topic, found.partition, found.offset, timestamp, found.key, found.value, found.headers)


def _require_rising(records: list[Record], position: int) -> None:
    for record in records:
        if record.offset < position:
            raise LyingOffsetsError
        position = record.offset + 1


def batch_end(raw: bytes, offset: int) -> int | None:
    """Return the offset behind the batch that holds `offset`; None where the batches in `raw` do not say."""
    at = 0
    while at + _HEADER.size <= len(raw):
        base, length, _, magic, _, _, delta = _HEADER.unpack_from(raw, at)
        if magic != 2 or length + _BEFORE_LENGTH_COUNTS < _HEADER.size or delta < 0:  # nothing that it says counts
            return None
        end: int = base + delta + 1
        if offset < end:
            return end
        at += _BEFORE_LENGTH_COUNTS + length
    return None


def limit_the_client() -> None:
    """Give the client batches that are checked, and decoders that stop where one unpacks to too much."""
    memory_records.DefaultRecordBatch = CheckedBatch
    for module in (default_records, legacy_records):
        for name, decode in (("gzip_decode", gzip_decode), ("lz4_decode", lz4_decode), ("zstd_decode", zstd_decode)):
            if hasattr(module, name):
                setattr(module, name, decode)


def gzip_decode(packed: bytes | memoryview) -> bytes:
    """Unpack a batch. Raises TooLargeUnpackedError, and what the codec raises."""
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        return _limited(stream.read, packed)


def lz4_decode(packed: bytes) -> bytes:
    """Unpack a batch. Raises TooLargeUnpackedError, and what the codec raises."""
    if len(packed) * _LZ4_SHRINKS_TO < UNPACKED_AT_LEAST:  # nearly every batch; the stream takes ten times as long
        return bytes(lz4.frame.decompress(packed))
    with lz4.frame.LZ4FrameFile(io.BytesIO(packed)) as stream:
        return _limited(stream.read, packed)


def zstd_decode(packed: bytes) -> bytes:
    """Unpack a batch. Raises TooLargeUnpackedError, and what the codec raises."""
    decoder = zstandard.ZstdDecompressor()
    with decoder.stream_reader(io.BytesIO(packed), read_across_frames=True) as stream:
        return _limited(stream.read, packed)


# Snappy cannot shrink anything to less than a twentieth, so it needs no limit.


def _limited(read: Callable[[int], bytes], packed: bytes | memoryview) -> bytes:
    left = limit = max(UNPACKED_AT_LEAST, UNPACKED_TIMES * len(packed))
    unpacked = []
    while chunk := read(_CHUNK):  # a buffer as large as the limit would cost each small batch dearly
        unpacked.append(chunk)
        left -= len(chunk)
        if left < 0:
            raise TooLargeUnpackedError(f"a batch of {len(packed)} bytes unpacks to more than {limit} bytes")
    return unpacked[0] if len(unpacked) == 1 else b"".join(unpacked)
