"""The proxy is as slow, mute and broken as it is told to be."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing

import pytest

from gigaoffice_worker.devkafka.ports import LOOPBACK, ReservedPorts
from tests.chaos.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.quick


def echo(listener: socket.socket) -> None:
    """Send back what one connection after the other sends, until the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            while data := _received(connection):
                connection.sendall(data)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@pytest.fixture
def proxy():
    """A proxy in front of an echo server."""
    with socket.create_server((LOOPBACK, 0)) as listener, closing(ReservedPorts()) as ports:
        server = threading.Thread(target=echo, args=(listener,))
        server.start()
        with Proxy(ports.take_any(), listener.getsockname()[1]) as proxy:
            yield proxy
        listener.shutdown(socket.SHUT_RDWR)
        server.join(5)


@pytest.fixture
def connection(proxy):
    with socket.create_connection((LOOPBACK, proxy.port), timeout=20) as connection:
        yield connection


def exchange(connection: socket.socket, size: int = 4) -> float:
    """Send and receive so many bytes and return the seconds that it took."""
    began = time.monotonic()
    connection.sendall(b"x" * size)
    left = size
    while left:
        received = connection.recv(left)
        assert received, "the connection was closed"
        left -= len(received)
    return time.monotonic() - began


def quickest(connection: socket.socket, size: int = 4) -> float:
    """Return the seconds of the quickest of several exchanges: a busy machine holds up some."""
    return min(exchange(connection, size) for _ in range(3))


def test_left_alone_it_forwards(proxy, connection):
    assert quickest(connection, 300_000) < 2.0
    # What has arrived may not be counted yet.
    eventually(lambda: proxy.forwarded == 3 * 600_000, "all bytes to be counted")


def test_latency_is_added_each_way(proxy, connection):
    proxy.latency = 0.2
    assert 0.4 <= quickest(connection) < 2.0


def test_rate_is_limited(proxy, connection):
    proxy.rate = 100_000
    exchange(connection)
    assert exchange(connection, 150_000) > 0.8


def test_mute_holds_everything_back_and_loses_nothing(proxy, connection):
    proxy.mute = True
    connection.settimeout(0.5)
    connection.sendall(b"held")
    with pytest.raises(TimeoutError):
        connection.recv(4)
    proxy.mute = False
    connection.settimeout(20)
    assert connection.recv(4) == b"held"


def test_broken_connection_ends_and_the_next_one_works(proxy, connection):
    exchange(connection)
    proxy.break_connections()
    assert _received(connection) == b""
    with socket.create_connection((LOOPBACK, proxy.port), timeout=20) as another:
        exchange(another)
