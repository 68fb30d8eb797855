"""The side port of a worker at work is abused: consumption keeps its pace, and probes are answered."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import psutil
import pytest

from tests.support import tables
from tests.support.forked import ROOT
from tests.support.scene import ask

CALL = 0.05
CONCURRENCY = 8
SECONDS = 2.0
ENDING = " HTTP/1.1\r\nHost: localhost\r\n\r\n"
KEPT = 0.6
"""The least share of the pace that is kept. The abuser has the same two cores, so less than all is no fault."""


@contextlib.contextmanager
def idle(port):
    """A thousand connections that say nothing."""
    with connections(port, 1000, b""):
        yield


@contextlib.contextmanager
def slow_headers(port):
    """Five hundred requests whose headers never end."""
    with connections(port, 500, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
        yield


@contextlib.contextmanager
def huge(port):
    """Requests with a mebibyte in the URI, in a header, in the body, one after the other."""
    mib = b"a" * 2**20
    forms = (
        b"GET /" + mib + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nX: " + mib + b"\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n" + mib,
    )
    with repeated(lambda number: say(port, forms[number % 3]), 0.05):
        yield


@contextlib.contextmanager
def wrong(port):
    """Wrong methods, HEAD, and ten pipelined requests at once."""
    forms = [
        f"{method} /status HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for method in ("DELETE", "PUT", "HEAD", "X")
    ]
    forms.append(f"GET /status{ENDING}".encode() * 10)
    with repeated(lambda number: say(port, forms[number % 5]), 0.02):
        yield


@contextlib.contextmanager
def scrapes(port):
    """A hundred scrapes a second."""
    with repeated(lambda _number: say(port, f"GET /metrics{ENDING}".encode()), 0.01):
        yield


ABUSES = {
    "1,000 idle connections": idle,
    "500 headers that never end": slow_headers,
    "URIs, headers and bodies of 1 MiB": huge,
    "wrong methods, HEAD, pipelining": wrong,
    "100 scrapes a second": scrapes,
}


@contextlib.contextmanager
def connections(port, count, first):
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            # The server drops those that are too many.
            with contextlib.suppress(OSError):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                connection.sendall(first)
        yield


@contextlib.contextmanager
def repeated(act, every):
    stop = threading.Event()

    def run():
        number, due = 0, time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            act(number)
            number, due = number + 1, due + every

    thread = threading.Thread(target=run, name="abuser")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def say(port, request):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(request)
        while connection.recv(65536):
            pass


@pytest.fixture(scope="module")
def worker(shared_scene):
    """A worker with a minute's work before it, of which the handler sets the pace."""
    shared_scene.make()
    running = shared_scene.ready(WORKER_CONCURRENCY=str(CONCURRENCY), WORKER_DRAIN_TIMEOUT="2")
    shared_scene.send(*(ask(f"r-{number}", None, seconds=CALL) for number in range(int(60 * CONCURRENCY / CALL))))
    running.wait_until(shared_scene.journal, 20, "the first call")
    return running


def pace(scene):
    """Return the calls that ended in a second, counted over SECONDS."""
    count = lambda: sum(call.moment == "end" for call in scene.journal())  # noqa: E731
    before, began = count(), time.monotonic()
    time.sleep(SECONDS)
    return (count() - before) / (time.monotonic() - began)


@pytest.mark.long
@pytest.mark.parametrize("abuse", ABUSES)
def test_abuse_of_the_side_port_slows_nothing_down(shared_scene, worker, abuse):
    process = psutil.Process(worker.pid)
    before = pace(shared_scene)
    assert before > 0
    threads, memory = process.num_threads(), process.memory_info().rss
    with ABUSES[abuse](worker.port()):
        during = pace(shared_scene)
        began = time.monotonic()
        assert worker.ask("/livez")[0] == 200
        probe = time.monotonic() - began
        assert process.num_threads() <= threads + 2
        assert process.memory_info().rss < memory + 64 * 2**20
    assert during > KEPT * before, f"{during:.0f}/s during, {before:.0f}/s before"
    assert probe < 4.0
    tables.write(
        "side-port",
        abuse=abuse,
        **{"calls/s before": f"{before:.0f}", "calls/s during": f"{during:.0f}", "/livez": f"{probe * 1000:.0f} ms"},
    )


def test_the_table_has_every_abuse():
    document = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert tables.first_cells(document, "side-port") == list(ABUSES)
