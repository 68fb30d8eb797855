"""What a request's value takes in memory once it is decoded, and how much of that may be there at once.

Eight megabytes of `{"":0},` become 250 MB of objects, and of brackets 350 MB: up to 42 times their size (measured with
msgspec 0.20 and CPython 3.11). Ordinary requests take three to five times theirs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
Who = TypeVar("Who", bound=Hashable)

LARGE: Final = 16 * 1024
"""From this size on a value is looked at: smaller ones take less than a megabyte, whatever is in them."""
MOST_DECODED: Final = 128 * 1024 * 1024
"""Bytes that the large values of all running calls may take together; a single larger one runs alone."""
LONGEST_WAIT: Final = 30.0
"""Seconds after which no other large value passes one that waits for room."""

# Bytes of memory for what a character of JSON begins, a little more than was measured.
_OBJECT: Final = 210
_ARRAY: Final = 88
_QUOTE: Final = 30
_COMMA: Final = 32
_WITHOUT_COLLECTION: Final = 128 * 1024


def decoded_size(value: bytes | None) -> int:
    """Return how many bytes a value takes decoded, about and rather too many; 0 for one that is not large."""
    if value is None or len(value) < LARGE:
        return 0
    text = len(value) if value.isascii() else 4 * len(value)
    return (
        text
        + _OBJECT * value.count(b"{")
        + _ARRAY * value.count(b"[")
        + _QUOTE * value.count(b'"')
        + _COMMA * value.count(b",")
    )


def decode_at_once(decode: Callable[[bytes], T], value: bytes) -> T:
    """Decode without looking for garbage meanwhile: with a million new objects that takes ten times as long.

    No other thread runs until a value is decoded, also not the one that sends heartbeats.
    """
    if len(value) < _WITHOUT_COLLECTION or not gc.isenabled():
        return decode(value)
    gc.disable()
    try:
        return decode(value)
    finally:
        gc.enable()


class DecodedRoom(Generic[Who]):
    """How much of what may be decoded at once is taken. Not thread-safe: the dispatcher's lock guards it.

    What has no room lets others pass, but not for ever: where large values come without end, there would never be room
    for one that is larger than all of it.
    """

    def __init__(self, most: int = MOST_DECODED) -> None:
        self._most = most
        self._taken = 0
        # Since when each has waited for room, the first one first.
        self.waiting: dict[Who, float] = {}

    def fits(self, who: Who, size: int, now: float) -> bool:
        """Say whether one more value has room; one that is larger than all of it has, once nothing else is there."""
        if not size:
            return True
        return self.due(now) in {None, who} and (not self._taken or self._taken + size <= self._most)

    def due(self, now: float) -> Who | None:
        """Return who has waited for so long that no other large value may pass."""
        for who, since in self.waiting.items():
            return who if now - since > LONGEST_WAIT else None
        return None

    def wait(self, who: Who, now: float) -> None:
        """Note that somebody found no room."""
        self.waiting.setdefault(who, now)

    def take(self, who: Who, size: int) -> None:
        self._taken += size
        self.waiting.pop(who, None)

    def free(self, size: int) -> None:
        self._taken -= size

    def keep(self, wanted: Callable[[Who], bool]) -> None:
        """Wait no more for all others."""
        self.waiting = {who: since for who, since in self.waiting.items() if wanted(who)}
