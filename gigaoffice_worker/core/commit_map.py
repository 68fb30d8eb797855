"""What travels with a commit: which offsets beyond the committed position are finished."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

_VERSION = "gw1"
# A step is written in groups of seven bits, so 64 bits take ten bytes.
_LONGEST_STEP = 10


class CommitMapError(ValueError):
    """Commit metadata that is not a commit map of this version, or is damaged."""


@dataclass(frozen=True, slots=True)
class CommitMap:
    """What is finished beyond a committed position: everything in [base, horizon) but `unfinished`.

    It travels as the commit's metadata, so that a restart or another member does not repeat what is done although a
    slow request holds the committed position back. Offsets that were never received (removed by compaction, or
    transaction markers) count as finished: nobody will ever receive them.
    """

    base: int
    horizon: int
    unfinished: tuple[int, ...]

    @property
    def says_more(self) -> bool:
        """Whether anything is finished beyond the base that its position alone does not say."""
        return self.horizon - self.base > len(self.unfinished)

    def encode(self, limit: int) -> tuple[str, bool]:
        """Return the map as ASCII text of at most `limit` characters, and whether all of it went in.

        A map that does not fit is cut at the highest unfinished offset that does: what lies behind counts as not
        done, which costs a repetition after a crash and never a loss.
        """
        head = f"{_VERSION}:{self.base}:"
        room = (limit - len(head)) // 4 * 3
        if room < 2 * _LONGEST_STEP:
            return "", False
        body = bytearray()
        last = self.base
        for offset in self.unfinished:
            # Keep room for the horizon, which is written as one more step.
            step = _varint(offset - last)
            if len(body) + len(step) + _LONGEST_STEP > room:
                return head + _text(body + _varint(0)), False
            body += step
            last = offset
        body += _varint(self.horizon - last)
        return head + _text(body), True

    @classmethod
    def decode(cls, text: str, committed: int) -> Self:
        """Read the map that came with position `committed`. Raises CommitMapError for anything else."""
        version, _, rest = text.partition(":")
        base, _, body = rest.partition(":")
        if version != _VERSION or base != str(committed):
            message = "commit metadata is not this worker's" if version != _VERSION else "commit map of another offset"
            raise CommitMapError(message)
        try:
            steps = list(_steps(base64.b64decode(body, altchars=b"-_", validate=True)))
        except (binascii.Error, ValueError) as error:
            message = "commit map is damaged"
            raise CommitMapError(message) from error
        if not steps or any(step == 0 for step in steps[1:-1]):
            message = "commit map is damaged"
            raise CommitMapError(message)
        offsets, last = [], committed
        for step in steps:
            last += step
            offsets.append(last)
        horizon = offsets.pop()
        # In a map that was cut the last unfinished offset is the horizon itself.
        return cls(committed, horizon, tuple(offset for offset in offsets if offset < horizon))


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _steps(body: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            message = "number too long"
            raise ValueError(message)
        if byte < 0x80:
            yield number
            number = shift = 0
    if shift:
        message = "number cut off"
        raise ValueError(message)


def _text(body: bytes | bytearray) -> str:
    return base64.b64encode(bytes(body), altchars=b"-_").decode("ascii")
