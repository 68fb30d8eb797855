"""Batches whose records are believed only where they stand inside the batch, in rising order.

A broker looks into compressed batches and not into others: it takes records there whose offsets repeat, fall, or lie
far beyond the batch, and the client hands them on. Believed, they move the position past records that nobody has seen,
or past the end of the log. So a batch is looked through before the first of its records is handed on.

Decoding is our own as well: the client makes two objects of each record and asks them for a dozen properties, which
takes as long as everything else that the consumer thread does with a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from gigaoffice_worker.core.records import Record

_KEPT_RECORDS: Final = 10_000
_KEPT_BYTES: Final = 4 * 1024 * 1024
"""A batch that is no larger is decoded once, and its records are kept; larger ones are decoded twice instead."""


class LyingOffsetsError(CorruptRecordError):  # type: ignore[misc]  # the client ships no types
    """The offsets of a batch's records do not rise, or lie outside of the batch."""

    def __init__(self) -> None:
        super().__init__("offsets of the records do not rise, or lie outside of their batch")


class CheckedBatch(DefaultRecordBatch):  # type: ignore[misc]  # the client ships no types
    """A batch of today's format. What raises in it raises before a record is handed on that would hide it."""

    def records(self, topic: str, partition: int) -> Iterator[Record]:
        """Yield what the batch holds. Raises LyingOffsetsError, and CorruptRecordError behind what can be decoded."""
        self._maybe_uncompress()
        content = bytes(self._buffer)
        keep = self._num_records <= _KEPT_RECORDS and len(content) <= _KEPT_BYTES
        kept: list[Record] = []
        failed: Exception | None = None
        last = self.base_offset - 1
        try:
            for record in self._decode(content, topic, partition):
                last = record.offset
                if keep:
                    kept.append(record)
        except LyingOffsetsError:
            raise
        except CorruptRecordError as error:
            if last >= self.last_offset:  # nothing would be left to stop before
                raise
            failed = error
        if not keep:
            yield from self._decode(content, topic, partition)
            return
        yield from kept
        if failed is not None:
            raise failed

    def _decode(self, content: bytes, topic: str, partition: int) -> Iterator[Record]:
        """Decode one record after the other. Raises CorruptRecordError, LyingOffsetsError among them."""
        base, last, end = self.base_offset, self.base_offset - 1, self.last_offset
        # The broker's clock is the same for all of a batch.
        written = self.max_timestamp if self.timestamp_type == self.LOG_APPEND_TIME else None
        first, at = self.first_timestamp, self._pos
        try:
            for _ in range(self._num_records):
                length, at = decode_varint(content, at)
                behind = at + length
                if content[at] > 0x7F:
                    # The client reads the attributes as a number of any length; where they were more than one byte
                    # long, it would take what follows for something else.
                    raise CorruptRecordError("unknown attributes of a record")
                elapsed, at = decode_varint(content, at + 1)
                delta, at = decode_varint(content, at)
                key = value = None
                size, at = decode_varint(content, at)
                if size >= 0:
                    key = content[at : at + size]
                    at += size
                size, at = decode_varint(content, at)
                if size >= 0:
                    value = content[at : at + size]
                    at += size
                count, at = decode_varint(content, at)
                headers, at = _headers(content, at, count) if count else ((), at)
                if at != behind or at > len(content):
                    raise CorruptRecordError(f"a record of {length} bytes does not fill them, or needs more")
                if not last < base + delta <= end:
                    raise LyingOffsetsError
                last = base + delta
                moment = first + elapsed if written is None else written
                yield Record(topic, partition, last, max(0, moment) / 1000, key, value, headers)
        except (ValueError, IndexError) as error:
            raise CorruptRecordError(f"invalid structure of a record: {type(error).__name__}") from error
        if at != len(content):
            raise CorruptRecordError(f"{len(content) - at} unconsumed bytes behind the last record")


def _headers(content: bytes, at: int, count: int) -> tuple[list[tuple[str, bytes | None]], int]:
    """Return the headers that begin at a place, and the place behind them."""
    if count < 0:
        raise CorruptRecordError(f"a record has {count} headers")
    found: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, at = decode_varint(content, at)
        if size < 0:
            raise CorruptRecordError(f"the name of a header has {size} bytes")
        name = content[at : at + size].decode()
        size, at = decode_varint(content, at + size)
        found.append((name, content[at : at + size] if size >= 0 else None))
        at += max(size, 0)
    return found, at
