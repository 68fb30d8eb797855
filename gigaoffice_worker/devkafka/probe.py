"""Ask a broker which brokers it knows, in Kafka's own protocol: one Metadata request, no client."""

from __future__ import annotations

import socket
import struct

from gigaoffice_worker.devkafka.ports import LOOPBACK

_METADATA, _VERSION, _CORRELATION_ID = 3, 1, 7
_REQUEST = struct.pack(">hhihi", _METADATA, _VERSION, _CORRELATION_ID, -1, 0)  # no client id, no topics


def known_brokers(port: int, timeout: float = 1.0) -> frozenset[int]:
    """Return the ids of the brokers that the one at `port` (plaintext) counts as running; OSError if none answers.

    A broker appears here once the controller lets it serve, which is later than when its port opens.
    """
    with socket.create_connection((LOOPBACK, port), timeout) as connection:
        connection.sendall(struct.pack(">i", len(_REQUEST)) + _REQUEST)
        with connection.makefile("rb") as stream:
            (size,) = struct.unpack(">i", _exactly(stream.read(4), 4))
            return _broker_ids(_exactly(stream.read(size), size))


def _broker_ids(response: bytes) -> frozenset[int]:
    _, count = struct.unpack_from(">ii", response)
    ids, at = set(), 8
    for _ in range(count):
        broker, host_length = struct.unpack_from(">ih", response, at)
        at += 6 + host_length + 4  # host, port
        (rack_length,) = struct.unpack_from(">h", response, at)
        at += 2 + max(rack_length, 0)
        ids.add(broker)
    return frozenset(ids)


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ConnectionResetError("the broker closed the connection")
    return data
