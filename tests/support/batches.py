"""Record batches built by hand, as no client would build them, and a way to write them to a real broker.

`produce` speaks the protocol itself: the broker checks the checksum and the structure of what it is given. What it
would refuse is put into the segment of a stopped broker by `tamper`.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
LIMIT = 20.0

_PRODUCE = 0
_NOT_YET = (3, 5, 6)  # a topic that has just been made
_BEFORE_CHECKSUM = struct.Struct(">qiib")
_BEHIND_CHECKSUM = struct.Struct(">hiqqqhii")
_CHECKSUM_AT = 17
_ATTRIBUTES_AT = 21
_RECORDS_AT = 61


class RawRecord(NamedTuple):
    """A record whose header names are bytes. `delta` None is its place in the batch."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...] = ()
    delta: int | None = None
    attributes: int = 0


def varint(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def encoded(place: int, record: RawRecord) -> bytes:
    """Return a record as it stands at a place in a batch."""
    delta = place if record.delta is None else record.delta
    parts = [
        bytes([record.attributes]),
        varint(0),
        varint(delta),
        _sized(record.key),
        _sized(record.value),
        varint(len(record.headers)),
    ]
    for name, value in record.headers:
        parts += [_sized(name), _sized(value)]
    body = b"".join(parts)
    return varint(len(body)) + body


def batch(
    records: Iterable[RawRecord],
    *,
    codec: int = 0,
    pack: Callable[[bytes], bytes] = bytes,
    timestamp: int | None = None,
) -> bytes:
    """Return a batch of the records, its content packed by `pack`, and with `codec` in its attributes."""
    records = list(records)
    content = pack(b"".join(encoded(place, record) for place, record in enumerate(records)))
    at = int(time.time() * 1000) if timestamp is None else timestamp
    behind = _BEHIND_CHECKSUM.pack(codec, len(records) - 1, at, at, -1, -1, -1, len(records)) + content
    before = _BEFORE_CHECKSUM.pack(0, 4 + 1 + 4 + len(behind), -1, 2)
    return before + struct.pack(">I", crc32c(behind)) + behind


def produce(bootstrap: str, topic: str, content: bytes, *, partition: int = 0) -> int:
    """Write a batch and return the offset of its first record; RuntimeError with the code of a refusal."""
    until = time.monotonic() + LIMIT
    while True:
        refused, offset = _produce(bootstrap, topic, content, partition)
        if not refused:
            return offset
        if refused not in _NOT_YET or time.monotonic() > until:
            raise RuntimeError(f"the broker refused the batch with code {refused}")
        time.sleep(0.05)


def _produce(bootstrap: str, topic: str, content: bytes, partition: int) -> tuple[int, int]:
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    body = _text(None) + struct.pack(">hii", -1, int(LIMIT * 1000), 1) + _text(topic)
    body += struct.pack(">iii", 1, partition, len(content)) + content
    request = struct.pack(">hhi", _PRODUCE, 7, 1) + _text("by-hand") + body
    with socket.create_connection((host, int(port)), LIMIT) as peer:
        peer.sendall(struct.pack(">i", len(request)) + request)
        answer = _read(peer, struct.unpack(">i", _read(peer, 4))[0])
    _, refused, offset = struct.unpack_from(">ihq", answer, 4 + 4 + 2 + len(topic.encode()) + 4)
    return int(refused), int(offset)


class Batch(NamedTuple):
    """Where a batch stands in a segment: its first and last offset, and its place and size in bytes."""

    first: int
    last: int
    at: int
    size: int


def batches(segment: bytes) -> list[Batch]:
    found, at = [], 0
    while at + _RECORDS_AT <= len(segment):
        first, length = struct.unpack_from(">qi", segment, at)
        if length <= 0:  # space that was reserved
            break
        (delta,) = struct.unpack_from(">i", segment, at + 23)
        found.append(Batch(first, first + delta, at, length + 12))
        at += length + 12
    return found


def tamper(data: Path, topic: str, change: Callable[[bytearray], None], *, offset: int, partition: int = 0) -> None:
    """Change the batch that holds `offset` in the log of a stopped broker, byte for byte, at the same size."""
    [segment] = sorted((data / f"{topic}-{partition}").glob("*.log"))
    content = bytearray(segment.read_bytes())
    [found] = [each for each in batches(content) if each.first <= offset <= each.last]
    one = content[found.at : found.at + found.size]
    change(one)
    assert len(one) == found.size
    content[found.at : found.at + found.size] = one
    segment.write_bytes(content)


# Changes


def flip_a_bit(one: bytearray) -> None:
    """As a disk may: the checksum is wrong."""
    one[-1] ^= 1


def set_codec(codec: int) -> Callable[[bytearray], None]:
    def change(one: bytearray) -> None:
        one[_ATTRIBUTES_AT : _ATTRIBUTES_AT + 2] = struct.pack(">h", codec)
        sign(one)

    return change


def set_content(content: bytes) -> Callable[[bytearray], None]:
    """Put other bytes at the beginning of the records."""

    def change(one: bytearray) -> None:
        one[_RECORDS_AT : _RECORDS_AT + len(content)] = content
        sign(one)

    return change


def set_length(length: int) -> Callable[[bytearray], None]:
    """Let the batch claim another length: the broker cannot read it either."""

    def change(one: bytearray) -> None:
        one[8:12] = struct.pack(">i", length)

    return change


def sign(one: bytearray) -> None:
    one[_CHECKSUM_AT : _CHECKSUM_AT + 4] = struct.pack(">I", crc32c(bytes(one[_ATTRIBUTES_AT:])))


def _sized(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


def _text(text: str | None) -> bytes:
    return struct.pack(">h", -1) if text is None else struct.pack(">h", len(text)) + text.encode()


def _read(peer: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        chunk = peer.recv(size - len(found))
        if not chunk:
            raise ConnectionError("the broker closed the connection")
        found += chunk
    return found
