"""An HTTP service on loopback that answers as a test tells it to, also badly."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self


class Asked(NamedTuple):
    """One request that the service received; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """One request of a client and the means to answer it."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.service.connections.append(self.connection)

    def do_POST(self) -> None:
        service = self.server.service
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.path, headers, b"")
        if service.reads_bodies:
            asked = asked._replace(body=self.rfile.read(int(headers.get("content-length", "0"))))
        service.asked.append(asked)
        # The client has given up, or the service closes.
        with contextlib.suppress(OSError):
            service.answer(self)

    def do_CONNECT(self) -> None:
        self.server.service.asked.append(Asked(self.path, {}, b""))
        self.reply(self.server.service.connect_status)

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer at once."""
        self.start(status, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers, and nothing by itself but a date unless one is given."""
        self.send_response_only(status)
        if "Date" not in headers:
            self.send_header("Date", self.date_time_string())
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def drip(self, content: bytes, every: float) -> None:
        """Send byte by byte."""
        for byte in content:
            self.connection.sendall(bytes([byte]))
            if self.pause(every):
                return

    def pause(self, seconds: float) -> bool:
        """Wait; True when the service closes."""
        return self.server.service.closing.wait(seconds)

    def hang_up(self) -> None:
        """Close the connection."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    service: Service

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that give up are the point."""


class Service(contextlib.AbstractContextManager["Service"]):
    """The service; `answer` is what it does next, and may be changed at any time.

    As a proxy it refuses every CONNECT with `connect_status`.
    """

    def __init__(self, *, certificate: tuple[str, str] | None = None, client_authority: str | None = None) -> None:
        self.answer: Answer = answers(200, {"answer": "yes"})
        self.reads_bodies = True
        self.connect_status = 502
        self.asked: list[Asked] = []
        self.connections: list[socket.socket] = []
        self.closing = threading.Event()
        self._context: ssl.SSLContext | None = None
        if certificate:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(*certificate)
            if client_authority:
                self._context.verify_mode = ssl.CERT_REQUIRED
                self._context.load_verify_locations(client_authority)
        self._bind(0)

    def _bind(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), Exchange)
        self._server.service = self
        if self._context:
            self._server.socket = self._context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="service")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.set()
        self._unbind()

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Cut all connections and refuse new ones, as when the process has died, for as long as the context lasts."""
        port = self.port
        self._unbind()
        yield
        self._bind(port)
        self._thread.start()

    def _unbind(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answers(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with this status and a body, given as bytes or as something to write as JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return lambda exchange: exchange.reply(status, content, headers)


def in_turn(*several: Answer) -> Answer:
    """Answer each time with the next of several, and then always with the last."""
    left = list(several)
    lock = threading.Lock()

    def answer(exchange: Exchange) -> None:
        with lock:
            chosen = left.pop(0) if len(left) > 1 else left[0]
        chosen(exchange)

    return answer
