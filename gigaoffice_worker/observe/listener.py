"""The HTTP server under the side port: waitress, set up so that no client can keep the others from being answered.

waitress alone stops accepting when its connections are used up, counts a byte every now and then as activity, and
waits without limit for a client that does not read. Here a connection carries one request and has a total time for it,
and a new connection takes the place of the oldest one that is not being answered.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import Any

import structlog
from waitress import wasyncore  # type: ignore[import-untyped]
from waitress.adjustments import Adjustments  # type: ignore[import-untyped]
from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.server import TcpWSGIServer  # type: ignore[import-untyped]
from waitress.task import ErrorTask, ThreadedTaskDispatcher  # type: ignore[import-untyped]

THREADS = 4
MAX_CONNECTIONS = 128
REQUEST_SECONDS = 5.0  # from connecting to the end of the headers
CONNECTION_SECONDS = 15.0  # from connecting to the last byte of the answer, but for the time that the answer takes
MAX_HEADER = 8 * 1024  # bytes, request line included
BACKLOG = 128

COMMON_HEADERS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))

WSGIApplication = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]

log = structlog.get_logger(__name__)


class HTTPListener:
    """Serve `application` on a listening socket, in a loop thread and `THREADS` threads that answer."""

    def __init__(
        self,
        application: WSGIApplication,
        listening: socket.socket,
        *,
        request_seconds: float = REQUEST_SECONDS,
        connection_seconds: float = CONNECTION_SECONDS,
    ) -> None:
        self._dispatcher = _Dispatcher()
        self._server = _Server(application, listening, self._dispatcher)
        self._server.request_seconds = request_seconds
        self._server.connection_seconds = connection_seconds
        self._loop = Thread(target=self._run, name="side-port", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._dispatcher.set_thread_count(THREADS)
        self._loop.start()

    def close(self, deadline: float) -> None:
        """Accept nothing more, let running answers end until `deadline` (`time.monotonic()`), and free everything."""
        self._server.call_soon(self._server.stop_accepting)
        self._dispatcher.shutdown(timeout=_remaining(deadline))
        self._server.call_soon(self._server.close_all)
        self._loop.join(max(1.0, _remaining(deadline)))  # it waits for nobody, so this takes milliseconds
        for thread in self._dispatcher.started:
            thread.join(_remaining(deadline))
        self._server.free()

    def _run(self) -> None:
        while self._server.is_open:
            try:
                wasyncore.loop(timeout=1.0, use_poll=True, map=self._server.open_sockets)
            except Exception:
                log.exception("Side port loop failed")
                time.sleep(1.0)


class _Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """waitress's pool, with names for its threads and a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Thread] = []

    def start_new_thread(self, target: Callable[[int], None], thread_no: int) -> None:
        thread = Thread(target=target, args=(thread_no,), name=f"side-port-{thread_no + 1}", daemon=True)
        self.started.append(thread)
        thread.start()


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    """waitress's own answers: 400, 413, 431, 501."""

    def execute(self) -> None:
        self.response_headers.extend(COMMON_HEADERS)
        super().execute()


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection that carries one request: what comes behind it (pipelining) is not answered."""

    error_task_class = _ErrorTask

    def service(self) -> None:
        self.requests[0].headers["CONNECTION"] = "close"
        super().service()

    def handle_expt(self) -> None:
        # Urgent data stays signalled until it is read: the loop would spin as long as the connection lives.
        self.handle_close()

    def handle_close(self) -> None:
        if self.socket is not None:
            _discard_arrived(self.socket)
        super().handle_close()


class _Server(TcpWSGIServer):  # type: ignore[misc]
    channel_class = _Channel
    request_seconds = REQUEST_SECONDS
    connection_seconds = CONNECTION_SECONDS

    def __init__(self, application: WSGIApplication, listening: socket.socket, dispatcher: _Dispatcher) -> None:
        self.is_open = True
        self._next_warning = 0.0
        self._freeing = Lock()
        self._freed = False
        self.open_sockets: dict[int, object] = {}
        settings = Adjustments(
            # A bound of last resort: reached only when that many requests wait to be answered.
            connection_limit=2 * MAX_CONNECTIONS,
            max_request_header_size=MAX_HEADER,
            max_request_body_size=1,
            cleanup_interval=1,
            outbuf_overflow=64 * 1024 * 1024,  # never a temporary file: there may be no place for one
            log_socket_errors=False,
            clear_untrusted_proxy_headers=False,
            ident=None,
        )
        sockinfo = (listening.family, listening.type, listening.proto, listening.getsockname())
        super().__init__(
            application,
            self.open_sockets,
            _sock=listening,
            dispatcher=dispatcher,
            adj=settings,
            sockinfo=sockinfo,
            bind_socket=False,
        )

    def handle_accept(self) -> None:
        if len(self.active_channels) >= MAX_CONNECTIONS:
            self._make_room()
        super().handle_accept()

    def accept(self) -> tuple[socket.socket, Any] | None:
        try:
            accepted: tuple[socket.socket, Any] | None = super().accept()
        except OSError as error:  # no file descriptor left, mostly
            self._warn(error)
            if not self._make_room():
                time.sleep(0.05)  # the connection waits on in the backlog, and would wake the loop at once
            return None
        return accepted

    def maintenance(self, now: float) -> None:
        for channel in list(self.active_channels.values()):
            limit = self.connection_seconds if channel.close_when_flushed else self.request_seconds
            if not channel.requests and now - channel.creation_time > limit:
                channel.handle_close()

    def call_soon(self, action: Callable[[], None]) -> None:
        """Have the loop thread run `action`: sockets are its own."""
        self.trigger.pull_trigger(action)

    def pull_trigger(self) -> None:
        with self._freeing:
            if not self._freed:
                super().pull_trigger()

    def stop_accepting(self) -> None:
        wasyncore.dispatcher.close(self)

    def close_all(self) -> None:
        self.is_open = False
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        self.open_sockets.clear()

    def free(self) -> None:
        """Close the trigger's pipe: a page that ends later must not write to what has its number by then."""
        with self._freeing:
            self._freed = True
            self.trigger.close()

    def _make_room(self) -> bool:
        for channel in list(self.active_channels.values()):  # in the order of their coming
            if not channel.requests:
                channel.handle_close()
                return True
        return False

    def _warn(self, error: OSError) -> None:
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + 60.0
            log.warning("Side port cannot accept connections", error=error)


def _discard_arrived(connection: socket.socket) -> None:
    """Read what the client has sent beyond its request.

    Closing over unread data resets the connection, and the client may lose the answer that says what was wrong.
    """
    try:
        for _ in range(64):
            if not connection.recv(64 * 1024):
                return
    except OSError:
        return


def _remaining(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
