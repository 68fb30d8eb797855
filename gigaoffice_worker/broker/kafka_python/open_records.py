"""The records of a batch that is still open, each encoded in one go.

The client writes a record byte by byte, with a call for each number in it: a third of what a response costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import zstandard
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import encode_varint

# Kafka's numbers for the newest format of batches and for zstd, and the level behind which zstd takes more memory than
# it saves.
_MAGIC, _ZSTD, _TIGHTEST = 2, 4, 19
_NO_ATTRIBUTES: Final = b"\0"


class _Varints(dict[int, bytes]):
    """Numbers as Kafka writes them. Lengths and places repeat, so the small ones are kept."""

    def __missing__(self, number: int) -> bytes:
        written = bytearray()
        encode_varint(number, written.append)
        encoded = bytes(written)
        if -1 <= number < 1 << 13:
            self[number] = encoded
        return encoded


_VARINTS: Final = _Varints()


@lru_cache(maxsize=1024)
def _sized_name(name: str) -> bytes:
    content = name.encode()
    return _VARINTS[len(content)] + content


class OpenRecords(MemoryRecordsBuilder):  # type: ignore[misc]  # the client ships no types
    """The client's builder of one batch, with a quicker way to add a record. `size` in bytes bounds all but the first.

    With `smallest` it is packed as tightly as Kafka's codecs can: zstd, and not at the level that the client takes.
    """

    _builder: Any  # None once the batch is on its way
    _next_offset: int

    def __init__(self, compression: int, size: int, *, smallest: bool = False) -> None:
        super().__init__(_MAGIC, _ZSTD if smallest else compression, size)
        if smallest:
            self._builder = _SmallestBatchBuilder(
                _MAGIC, _ZSTD, is_transactional=False, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=0
            )

    def add(self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> int | None:
        """Add a record that is written now, and return its place in the batch; None when that is full, or on its way.

        A record is its length, attributes, milliseconds since the first one, place, key, value and headers.
        """
        builder = self._builder
        if builder is None:
            return None
        numbers, place, now = _VARINTS, self._next_offset, int(time.time() * 1000)
        first = builder._first_timestamp
        parts = [_NO_ATTRIBUTES, numbers[0 if first is None else now - first], numbers[place]]
        for content in (key, value):
            parts += (numbers[-1],) if content is None else (numbers[len(content)], content)
        parts.append(numbers[len(headers)])
        for name, content in headers:
            parts.append(_sized_name(name))
            parts += (numbers[-1],) if content is None else (numbers[len(content)], content)
        record = b"".join(parts)
        length, buffer = numbers[len(record)], builder._buffer
        if first is None:
            builder._first_timestamp = builder._max_timestamp = now
        elif len(buffer) + len(length) + len(record) > builder._batch_size:
            return None
        builder._max_timestamp = max(builder._max_timestamp, now)
        builder._num_records += 1
        builder._last_offset = place
        self._next_offset = place + 1
        buffer += length
        buffer += record
        return place


class _SmallestBatchBuilder(DefaultRecordBatchBuilder):  # type: ignore[misc]  # the client ships no types
    """A batch that is packed by zstd at its tightest."""

    def _maybe_compress(self) -> bool:
        header = self.HEADER_STRUCT.size
        packed = zstandard.ZstdCompressor(level=_TIGHTEST).compress(bytes(self._buffer[header:]))
        if header + len(packed) >= len(self._buffer):
            return False
        self._buffer[header:] = packed
        return True
