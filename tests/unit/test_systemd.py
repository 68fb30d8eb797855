import os
import socket
import tempfile
import threading
from pathlib import Path

import pytest

from gigaoffice_worker.observe.health import Trouble
from gigaoffice_worker.observe.systemd import Notifier, status_line, watchdog_interval
from tests.support.making import snapshot


@pytest.fixture
def manager():
    """A service manager's end of the socket; a short path, since a socket's may have 107 bytes at most."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(Path(directory) / "notify"))
        sock.settimeout(5)
        yield sock


def told(sock):
    return sock.recv(4096).decode()


@pytest.mark.parametrize(
    "tell, expected",
    [
        (lambda notifier: notifier.ready("3 partitions"), "READY=1\nSTATUS=3 partitions"),
        (lambda notifier: notifier.status("Draining: 2 in flight"), "STATUS=Draining: 2 in flight"),
        (lambda notifier: notifier.stopping(), "STOPPING=1"),
        (lambda notifier: notifier.watchdog(), "WATCHDOG=1"),
        (lambda notifier: notifier.extend_timeout(2.5), "EXTEND_TIMEOUT_USEC=2500000"),
        (lambda notifier: notifier.notify("X_A=1\nX_B=2"), "X_A=1\nX_B=2"),
    ],
)
def test_each_state_reaches_the_manager_as_one_datagram(manager, tell, expected):
    assert tell(Notifier(manager.getsockname())) is True
    assert told(manager) == expected


def test_abstract_address_is_understood():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the kernel picks an abstract name
        sock.settimeout(5)
        name = sock.getsockname()
        assert Notifier("@" + name[1:].decode()).watchdog() is True
        assert told(sock) == "WATCHDOG=1"


def test_status_cannot_smuggle_in_another_state(manager):
    Notifier(manager.getsockname()).status("last error: x\nSTOPPING=1\r\nMAINPID=1")
    assert told(manager) == "STATUS=last error: x STOPPING=1 MAINPID=1"


def test_status_that_is_no_valid_text_is_sent_all_the_same(manager):
    assert Notifier(manager.getsockname()).status("half a pair: \ud800") is True
    assert told(manager) == "STATUS=half a pair: ?"


@pytest.mark.parametrize("address", [None, "", "@", "relative/path", "vsock:2:1234", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(address):
    notifier = Notifier(address)
    assert notifier.ready("x") is False
    assert notifier.stopping() is False


def test_a_manager_that_reads_nothing_does_not_hold_the_worker(manager):
    notifier = Notifier(manager.getsockname())
    sent = []

    def fill():
        while notifier.watchdog() and len(sent) < 10_000:
            sent.append(1)

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert 0 < len(sent) < 10_000


@pytest.mark.parametrize(
    "usec, pid, expected",
    [
        ("60000000", None, 30.0),
        ("60000000", "", 30.0),
        ("60000000", str(os.getpid()), 30.0),
        ("60000000", str(os.getpid() + 1), None),
        (None, None, None),
        ("", None, None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        ("²", None, None),
    ],
    ids=["ours", "of-anybody", "named", "another's", "unset", "empty", "zero", "negative", "no-number", "no-digit"],
)
def test_watchdog_interval_is_half_of_what_is_allowed(usec, pid, expected):
    assert watchdog_interval(usec, pid) == expected


def test_status_line_tells_what_is_in_hand():
    now = snapshot(running=2, delivering=1, queued=4, waiting_retry=5)
    assert status_line(now) == "running: 0 partitions, 3 requests in flight, 9 waiting"


def test_status_line_tells_why_the_worker_is_not_ready():
    now = snapshot(not_ready=[Trouble("commit", "the group is gone"), Trouble("consumer", "no broker")])
    assert status_line(now).endswith("; not ready: the group is gone; no broker")


def test_status_line_does_not_repeat_what_its_state_says():
    now = snapshot(state="draining", not_ready=[Trouble("draining", "the worker drains")])
    assert status_line(now) == "draining: 0 partitions, 0 requests in flight, 0 waiting"
