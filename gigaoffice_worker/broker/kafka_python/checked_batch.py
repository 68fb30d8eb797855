"""Batches whose records are believed only where they stand inside the batch, in rising order.

A broker looks into compressed batches and not into others: it takes records there whose offsets repeat, fall, or lie
far beyond the batch, and the client hands them on. Believed, they move the position past records that nobody has seen,
or past the end of the log. So a batch is looked through before the first of its records is handed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch

_KEPT_RECORDS: Final = 10_000
_KEPT_BYTES: Final = 4 * 1024 * 1024
"""A batch that is no larger is decoded once, and its records are kept; larger ones are decoded twice instead."""


class LyingOffsetsError(CorruptRecordError):  # type: ignore[misc]  # the client ships no types
    """The offsets of a batch's records do not rise, or lie outside of the batch."""

    def __init__(self) -> None:
        super().__init__("offsets of the records do not rise, or lie outside of their batch")


class CheckedBatch(DefaultRecordBatch):  # type: ignore[misc]  # the client ships no types
    """A batch of today's format. What raises in it raises before a record is handed on that would hide it."""

    _pos: int

    def __iter__(self) -> Iterator[Any]:
        self._maybe_uncompress()
        return self._checked()

    def _checked(self) -> Iterator[Any]:
        begin = self._pos
        keep = self._num_records <= _KEPT_RECORDS and len(self._buffer) <= _KEPT_BYTES
        kept, failed = self._look_through(keep=keep)
        if keep:
            yield from kept
            if failed is not None:
                raise failed
        else:
            self._pos, self._next_record_index = begin, 0
            yield from self._read()

    def _look_through(self, *, keep: bool) -> tuple[list[Any], Exception | None]:
        """Return the records, if they are to be kept, and what the client cannot decode behind them.

        Raises LyingOffsetsError, and what the client raises where nothing of the batch may be handed on.
        """
        kept: list[Any] = []
        last, end = self.base_offset - 1, self.last_offset
        records = self._read()
        while True:
            try:
                record = next(records, None)
            except Exception as error:
                if last >= end:  # nothing would be left to stop before
                    raise
                return kept, error
            if record is None:
                return kept, None
            if not last < record.offset <= end:
                raise LyingOffsetsError
            last = record.offset
            if keep:
                kept.append(record)

    def _read(self) -> Iterator[Any]:
        """Decode the records one after the other. Raises what the client raises."""
        decode, buffer = self.__next__, self._buffer
        for _ in range(self._num_records):
            at = self._pos
            # The client reads the attributes as a number of any length; where they were more than one byte long, it
            # would take what follows for something else.
            while buffer[at] > 0x7F:
                at += 1
            if buffer[at + 1] > 0x7F:
                raise CorruptRecordError("unknown attributes of a record")
            yield decode()
        with suppress(StopIteration):
            decode()
