"""Tell the service manager how the worker is (sd_notify); does nothing where no service manager listens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from gigaoffice_worker.observe.health import Snapshot

_SAID_BY_THE_STATE = ("draining", "joining")
_SEND_TIMEOUT = 1.0  # seconds; systemd reads at once unless it is in trouble itself
_STATUS_EVERY = 2.0
# How much longer than its limits a stop may take from now on; said again and again while the worker drains.
_EXTEND_BY = 10.0


class Notifier:
    """Send the states of one service to `address`, the value of `NOTIFY_SOCKET` (None: there is no service manager).

    Every method returns whether the state was handed over; none raises: a worker doesn't fail for want of an audience.
    """

    def __init__(self, address: str | None) -> None:
        self._address = _socket_address(address or "")

    def ready(self, status: str) -> bool:
        """Say that start-up is complete."""
        return self.notify(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> bool:
        """Set the line that `systemctl status` shows."""
        return self.notify(f"STATUS={_one_line(text)}")

    def stopping(self) -> bool:
        """Say that the worker drains."""
        return self.notify("STOPPING=1")

    def watchdog(self) -> bool:
        """Sign of life; to be called from what must make progress, at least every `watchdog_interval()` seconds."""
        return self.notify("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for `seconds` more from now on to start or to stop, whatever the unit's static limits say."""
        return self.notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def notify(self, state: str) -> bool:
        """Send assignments, one a line, as in sd_notify(3)."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_SEND_TIMEOUT)
                sock.sendto(state.encode("utf-8", "replace"), self._address)
        except OSError:
            return False
        return True


class ServiceManager:
    """Tells the service manager of one worker: ready once, a line of status, and signs of life while it is live."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._notifier = Notifier(environ.get("NOTIFY_SOCKET"))
        self._watchdog_every = watchdog_interval(environ.get("WATCHDOG_USEC"), environ.get("WATCHDOG_PID"))
        self._next_watchdog = self._next_status = 0.0
        self._told_ready = False

    def starting(self, text: str) -> None:
        """Say what the start waits for."""
        self._notifier.status(text)

    def serving(self, snapshot: Callable[[], Snapshot], *, joined: bool, live: bool) -> None:
        """Say what is due; to be called several times a second. No sign of life is given unless `live`."""
        if joined and not self._told_ready:
            self._told_ready = self._notifier.ready("running")
        now = time.monotonic()
        if now >= self._next_status:
            self._next_status = now + _STATUS_EVERY
            self._notifier.status(status_line(snapshot()))
        if self._watchdog_every is not None and live and now >= self._next_watchdog:
            self._next_watchdog = now + self._watchdog_every
            self._notifier.watchdog()

    def stopping(self) -> None:
        """Say that the worker drains."""
        self._notifier.stopping()

    def draining(self, snapshot: Snapshot) -> None:
        """Ask for the time that is still needed; to be called again and again while the worker drains."""
        self._notifier.extend_timeout(_EXTEND_BY)
        self._notifier.status(status_line(snapshot))
        if self._watchdog_every is not None:
            self._notifier.watchdog()


def status_line(now: Snapshot) -> str:
    """Return what `systemctl status` shows of a worker: its state, what is in hand, and why it is not ready."""
    hand = f"{now.running + now.delivering} requests in flight, {now.queued + now.waiting_retry} waiting"
    line = f"{now.state}: {len(now.partitions)} partitions, {hand}"
    troubles = "; ".join(trouble.text for trouble in now.not_ready if trouble.code not in _SAID_BY_THE_STATE)
    return f"{line}; not ready: {troubles}" if troubles else line


def watchdog_interval(usec: str | None, pid: str | None = None) -> float | None:
    """Seconds between two signs of life, half of what `WATCHDOG_USEC` allows; None where no watchdog waits for us.

    `pid` is `WATCHDOG_PID`: a watchdog that is meant for another process is none.
    """
    if pid and pid != str(os.getpid()):
        return None
    if not usec or not usec.isascii() or not usec.isdigit() or int(usec) == 0:
        return None
    return int(usec) / 1_000_000 / 2


def _socket_address(address: str) -> str | None:
    if address.startswith("/"):
        return address
    if address.startswith("@") and len(address) > 1:
        return "\0" + address[1:]  # the abstract namespace of Linux
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
