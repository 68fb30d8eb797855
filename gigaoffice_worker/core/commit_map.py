"""What travels with a commit: which offsets beyond the committed position are finished.

Two formats are read. `gw1` names each unfinished offset by its distance from the one before it: it is written while it
fits, so that members of an older version can read it during a rolling upgrade. `gw2` is a deflated bitmap, which holds
some ten times as much. Whether a map will fit is known before the work is begun: see `fitting`.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import sub
from typing import Self

_STEPS, _BITMAP = "gw1", "gw2"
# A step is written in groups of seven bits, so 64 bits take ten bytes.
_LONGEST_STEP = 10
# A bitmap of so many offsets at most (2 MiB), written or read: who reads it must not be made to unpack any more.
_LONGEST_BITMAP = 1 << 24
# The second finds every run, so it is never longer than `_most_bits` says; the others are shorter on most maps.
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE, zlib.Z_HUFFMAN_ONLY)
_DEFLATE_LEVEL = 4
# What deflate's fixed codes make of a bitmap at most, in bits: a byte with an unfinished offset, which may become any
# byte; a zero byte; 258 repetitions of the byte before; fewer of them.
_LITERAL, _ZERO, _REPEAT, _LAST_REPEAT = 9, 8, 13, 18
# The rest of a repetition that is broken by other bytes: three literals and another repetition.
_BREAK = 3 * _LITERAL + _LAST_REPEAT
# Bytes for the heads and ends of blocks.
_OVERHEAD = 8


class CommitMapError(ValueError):
    """Commit metadata that is not a commit map of a version that we know, or is damaged."""


@dataclass(frozen=True, slots=True)
class CommitMap:
    """What is finished beyond a committed position: everything in [base, horizon) but `unfinished`, which rises.

    It travels as the commit's metadata, so that a restart or another member does not repeat what is done although a
    slow request holds the committed position back. Offsets that were never received (removed by compaction, or
    transaction markers) count as finished: nobody will ever receive them. `parked` are more unfinished offsets, as a
    bitmap that begins where that of the map does.
    """

    base: int
    horizon: int
    unfinished: tuple[int, ...]
    parked: bytes = b""

    @property
    def says_more(self) -> bool:
        """Whether anything is finished beyond the base that its position alone does not say."""
        return self.horizon - self.base > len(self.unfinished) + self._parked_count

    @property
    def _parked_count(self) -> int:
        return int.from_bytes(self.parked, "little").bit_count()

    def encode(self, limit: int) -> tuple[str, bool]:
        """Return the map as ASCII text of at most `limit` characters, and whether all of it went in.

        A map that does not fit is cut at an unfinished offset: what lies behind counts as not done, which costs a
        repetition after a crash and never a loss.
        """
        if self.parked:
            small = len(self.unfinished) + self._parked_count < limit
            text = None if small else self._as_bitmap(limit)
            return (text, True) if text else self._one_by_one().encode(limit)
        text = self._as_steps(limit) or self._as_bitmap(limit)
        return (text, True) if text else (self._cut(limit), False)

    def _one_by_one(self) -> CommitMap:
        """Return the same map, with what is parked named offset by offset."""
        offsets = sorted((*self.unfinished, *_set_bits(self.parked, _byte_start(self.base))))
        return CommitMap(self.base, self.horizon, tuple(offsets))

    def _as_steps(self, limit: int) -> str | None:
        room = _room(limit, f"{_STEPS}:{self.base}:")
        if len(self.unfinished) >= room:
            return None
        marks = (*self.unfinished, self.horizon)
        steps = list(map(sub, marks, (self.base, *self.unfinished)))
        body = bytes(steps) if max(steps) < 0x80 else b"".join(map(_varint, steps))
        return f"{_STEPS}:{self.base}:{_text(body)}" if len(body) <= room else None

    def _as_bitmap(self, limit: int) -> str | None:
        head = f"{_BITMAP}:{self.base}:{self.horizon}:"
        room = _room(limit, head)
        bits = self._bits() if room > 0 else None
        if bits is None:
            return None
        for strategy in _STRATEGIES:
            deflate = zlib.compressobj(_DEFLATE_LEVEL, zlib.DEFLATED, -15, strategy=strategy)
            body = deflate.compress(bits) + deflate.flush()
            if len(body) <= room:
                return head + _text(body)
        return None

    def _bits(self) -> bytes | None:
        """Return a bit for each offset up to the last unfinished one, set for these; None where that is too much."""
        start = _byte_start(self.base)
        last = self.unfinished[-1] if self.unfinished else start - 1
        if max(last - start, 8 * len(self.parked)) >= _LONGEST_BITMAP:
            return None
        bits = bytearray(self.parked)
        bits.extend(bytes(max(0, (last - start) // 8 + 1 - len(bits))))
        for offset in self.unfinished:
            at = offset - start
            bits[at >> 3] |= 1 << (at & 7)
        return bytes(bits)

    def _cut(self, limit: int) -> str:
        """Return as much of the map as fits, in halves of what is left; empty when that is nothing."""
        low, high, best = 0, len(self.unfinished) - 1, ""
        while low <= high:
            middle = (low + high) // 2
            shorter = CommitMap(self.base, self.unfinished[middle], self.unfinished[:middle])
            if text := shorter._as_steps(limit) or shorter._as_bitmap(limit):
                best, low = text, middle + 1
            else:
                high = middle - 1
        return best

    @classmethod
    def decode(cls, text: str, committed: int) -> Self:
        """Read the map that came with position `committed`. Raises CommitMapError for anything else."""
        version, _, rest = text.partition(":")
        base, _, body = rest.partition(":")
        if version not in {_STEPS, _BITMAP}:
            message = "commit metadata is not this worker's"
            raise CommitMapError(message)
        if base != str(committed):
            message = "commit map of another offset"
            raise CommitMapError(message)
        try:
            return cls(committed, *(_read_steps if version == _STEPS else _read_bitmap)(body, committed))
        except (binascii.Error, ValueError, zlib.error) as error:
            message = "commit map is damaged"
            raise CommitMapError(message) from error


def reach(base: int, limit: int) -> int:
    """Return the offset below which everything may be begun: a map of `limit` characters has a bit for each up to it.

    A bitmap that deflate cannot shorten is stored as it is.
    """
    return _byte_start(base) + _room_for_bits(base, limit) * 8


def fitting(base: int, unfinished: Sequence[int], more: Sequence[int], limit: int) -> int:
    """Return how many of the offsets `more` may be begun, so that a map of `limit` characters fits whatever ends.

    `unfinished` and `more` rise, and `more` lies behind. Whichever of all these offsets are finished at the time of a
    commit, a map for position `base` or a higher one has room for that.
    """
    start, plain, room = _byte_start(base), reach(base, limit), _room_for_bits(base, limit)
    if not more or more[-1] < plain:
        return len(more)
    bits, at = _most_bits(start, unfinished)
    for count, offset in enumerate(more):
        byte = (offset - start) >> 3
        if byte != at:
            bits += _gap(byte - at - 1) + _LITERAL
            at = byte
        if (bits > room * 8 and offset >= plain) or offset - start >= _LONGEST_BITMAP:
            return count
    return len(more)


def fits_beside(base: int, parked: bytes | bytearray, unfinished: Sequence[int], limit: int, share: float) -> bool:
    """Say whether a map takes no more than a `share` of its room whichever of `unfinished` end, and no one of `parked`.

    `unfinished` rises. Each byte of the bitmap with one of them may become any byte, and each run of such bytes may
    break a repetition in two; all else is as long as deflate makes it with its fixed codes.
    """
    start, room = _byte_start(base), _room_for_bits(base, limit)
    deflate = zlib.compressobj(_DEFLATE_LEVEL, zlib.DEFLATED, -15, strategy=zlib.Z_FIXED)
    bits = 8 * (len(deflate.compress(parked)) + len(deflate.flush()))
    at = -2
    for offset in unfinished:
        byte = (offset - start) >> 3
        if byte != at:
            bits += _LITERAL if byte == at + 1 else _LITERAL + _BREAK
            at = byte
    return bits <= room * 8 * share and at * 8 < _LONGEST_BITMAP


def _set_bits(bits: bytes, start: int) -> Iterator[int]:
    """Walk over the offsets of a bitmap that begins at `start`."""
    for number, byte in enumerate(bits):
        if byte:
            yield from (start + number * 8 + bit for bit in range(8) if byte >> bit & 1)


def _room_for_bits(base: int, limit: int) -> int:
    # The horizon may have one digit more than the base has now.
    return max(0, _room(limit, f"{_BITMAP}:{base}:{base}0:") - _OVERHEAD)


def _most_bits(start: int, unfinished: Sequence[int]) -> tuple[int, int]:
    """Return how many bits a deflated bitmap from `start` on can need at most, and the number of its last byte."""
    bits, at = 0, -1
    for offset in unfinished:
        byte = (offset - start) >> 3
        if byte != at:
            bits += _gap(byte - at - 1) + _LITERAL
            at = byte
    return bits, at


def _gap(zeros: int) -> int:
    """Return how many bits so many zero bytes take: one literal, then repetitions of it, 258 at once."""
    if zeros <= 3:
        return zeros * _ZERO
    repeats, rest = divmod(zeros - 1, 258)
    return _ZERO + repeats * _REPEAT + (_LAST_REPEAT if rest >= 3 else rest * _ZERO)


def _byte_start(base: int) -> int:
    """Return the offset of a bitmap's first bit: in bytes of the offsets themselves, so that none moves with `base`."""
    return base & ~7


def _read_steps(body: str, committed: int) -> tuple[int, tuple[int, ...]]:
    steps = list(_steps(_bytes(body)))
    if not steps or any(step == 0 for step in steps[1:-1]):
        message = "no steps, or an offset named twice"
        raise ValueError(message)
    offsets, last = [], committed
    for step in steps:
        last += step
        offsets.append(last)
    horizon = offsets.pop()
    # In a map that was cut the last unfinished offset is the horizon itself.
    return horizon, tuple(offset for offset in offsets if offset < horizon)


def _read_bitmap(body: str, committed: int) -> tuple[int, tuple[int, ...]]:
    """Read `horizon:bitmap`; what a later version may add behind another colon is not looked at."""
    text, packed, *_ = body.split(":")
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        message = "no horizon"
        raise ValueError(message)
    horizon, start = int(text), _byte_start(committed)
    inflate = zlib.decompressobj(-15)
    bits = inflate.decompress(_bytes(packed), _LONGEST_BITMAP // 8 + 1)
    if not inflate.eof or inflate.unused_data or horizon < committed:
        message = "cut off, or too long"
        raise ValueError(message)
    found = tuple(_set_bits(bits, start))
    if found and not committed <= found[0] <= found[-1] < horizon:
        message = "an offset outside of the map"
        raise ValueError(message)
    return horizon, found


def _room(limit: int, head: str) -> int:
    """Return how many bytes may stand behind a head."""
    return (limit - len(head)) // 4 * 3


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
        if shift > 7 * _LONGEST_STEP:
            message = "number too long"
            raise ValueError(message)
        if byte < 0x80:
            yield number
            number = shift = 0
    if shift:
        message = "number cut off"
        raise ValueError(message)


def _text(body: bytes) -> str:
    return base64.b64encode(body, altchars=b"-_").decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, altchars=b"-_", validate=True)
