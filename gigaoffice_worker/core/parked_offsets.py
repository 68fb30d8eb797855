"""Which offsets of a partition are parked: known as unfinished, without anything of their records in memory."""

from __future__ import annotations

from collections.abc import Iterator


class ParkedOffsets:
    """A set of offsets as a bitmap, so that a hundred thousand of them take a few kilobytes.

    The bitmap begins in bytes of the offsets themselves, as that of a commit map does.
    """

    def __init__(self) -> None:
        # The offset of the first bit.
        self._start = 0
        self._bits = bytearray()
        self._count = 0
        # No byte before this one has anything in it.
        self._first = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, offset: int) -> bool:
        byte, bit = (offset - self._start) >> 3, offset & 7
        return 0 <= byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def __iter__(self) -> Iterator[int]:
        """Walk over the offsets in rising order."""
        for number in range(self._first, len(self._bits)):
            if byte := self._bits[number]:
                at = self._start + number * 8
                yield from (at + bit for bit in range(8) if byte >> bit & 1)

    @property
    def lowest(self) -> int | None:
        """The lowest offset; None where there is none."""
        if not self._count:
            return None
        while not self._bits[self._first]:
            self._first += 1
        byte = self._bits[self._first]
        return self._start + self._first * 8 + (byte & -byte).bit_length() - 1

    def add(self, offset: int) -> None:
        """Add an offset that is higher than any before."""
        if not self._count:
            self._start, self._first = offset & ~7, 0
            self._bits.clear()
        elif self._first > 4096 and self._first * 2 > len(self._bits):
            del self._bits[: self._first]
            self._start, self._first = self._start + self._first * 8, 0
        byte = (offset - self._start) >> 3
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        self._bits[byte] |= 1 << (offset & 7)
        self._count += 1

    def discard(self, offset: int) -> bool:
        """Take an offset out; False where it is not in."""
        if offset not in self:
            return False
        self._bits[(offset - self._start) >> 3] &= ~(1 << (offset & 7))
        self._count -= 1
        return True

    def bitmap(self, base: int) -> bytearray:
        """Return a bit for each offset from the byte that holds `base` on, as far as there are any.

        Nothing may be parked in front of `base`.
        """
        if not self._count:
            return bytearray()
        skipped = ((base & ~7) - self._start) >> 3
        return self._bits[skipped:] if skipped >= 0 else bytearray(-skipped) + self._bits
