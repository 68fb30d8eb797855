"""HTTP connections on which a deadline bounds a whole call, and a limit of bytes a whole answer.

httpx and httpcore bound each operation on a socket by itself, so an answer that drips byte by byte never times out.
Here every operation gets what is left of the call's deadline.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpcore
import httpx

from gigaoffice_worker.core import strict_certificates
from gigaoffice_worker.core.errors import HandlerError, RejectedError
from gigaoffice_worker.core.records import Deadline
from gigaoffice_worker.handlers.failures import (
    AccessRefusedError,
    ConnectionFailedError,
    NoAnswerError,
    UnusableAnswerError,
)

# A server that reads slowly can't stretch the time of a write by more than one piece.
_PIECE = 16 * 1024
_KEEP_IDLE = 5.0
# Bytes of announcements and headers, and what one read may bring along of the body.
_LONGEST_HEADERS = 256 * 1024
# Each part of an answer costs the time of some hundred bytes: so many may be small, and the others so large on average.
_MOST_SMALL_PARTS = 10_000
_SMALL_PART = 16
_LONGEST_HEADER = 256
_PROXY_REFUSES_US = ("401", "403", "407")
_ENCODING = b"content-encoding"
_NOT_ENCODED = frozenset({b"identity", b""})
# All that is visible in ASCII but the percent sign, which marks what is encoded.
_PLAIN = "".join(chr(code) for code in range(0x21, 0x7F)).replace("%", "")


class Transport(httpx.BaseTransport):
    """A bounded number of connections for an httpx client. Calls are made inside `within`.

    `connect_timeout` is in seconds. An answer of more than `max_bytes` raises RejectedError: asked again, the service
    would answer the same. `proxy` is the URL of an HTTP proxy.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        connections: int,
        connect_timeout: float,
        max_bytes: int,
        proxy: str | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        # One pool of httpcore's for each connection, used by one thread at a time: shared by threads, it may close a
        # connection under the thread that has just got it, and with it lose an answer that was paid for.
        self._lines = [_Line(context, connect_timeout, proxy) for _ in range(connections)]
        self._free: queue.LifoQueue[_Line] = queue.LifoQueue()
        for line in self._lines:
            self._free.put(line)
        self._mine = threading.local()

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[None]:
        """Bound the calls of this thread by `deadline`; what fails on the way is raised as the worker's error."""
        try:
            line = self._free.get(timeout=deadline.remaining())
        except queue.Empty:
            # No call was made, so no attempt counts; fewer calls at once are the mend.
            raise ConnectionFailedError(
                "no connection was free before the deadline of the attempt", shared=True
            ) from None
        self._mine.line, line.backend.deadline = line, deadline
        try:
            yield
        except httpcore.TimeoutException as error:
            raise _timed_out(error, deadline) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, httpx.TransportError) as error:
            raise _connection_trouble(error) from None
        finally:
            self._mine.line = None
            line.close_if_data_are_left()
            self._free.put(line)

    def remaining(self) -> float:
        """Return the seconds left to the call of this thread, never less than zero."""
        line: _Line = self._mine.line
        return line.backend.deadline.remaining()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the answer's body is read by whoever asked, within the same limits."""
        line: _Line = self._mine.line
        url = request.url
        line.backend.begin_answer()
        answer = line.pool.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
            )
        )
        line.backend.headers_are_there()
        # Cookies of one tenant's answer must not go with the next tenant's request: none is kept.
        headers = [(name, value) for name, value in answer.headers if name.lower() != b"set-cookie"]
        return httpx.Response(answer.status, headers=headers, stream=_Body(answer, self._max_bytes))

    def close(self) -> None:
        """Close the connections; to be called when no call runs."""
        for line in self._lines:
            line.pool.close()


class _Line:
    """One connection to whatever is called, opened when it is needed and kept for a while."""

    def __init__(self, context: ssl.SSLContext, connect_timeout: float, proxy: str | None) -> None:
        self.backend = _Backend(connect_timeout)
        options: dict[str, Any] = {
            "ssl_context": context,
            "max_connections": 1,
            "keepalive_expiry": _KEEP_IDLE,
            "network_backend": self.backend,
        }
        self.pool: httpcore.ConnectionPool = (
            httpcore.HTTPProxy(proxy, **_proxy_access(proxy), **options)
            if proxy
            else httpcore.ConnectionPool(**options)
        )

    def close_if_data_are_left(self) -> None:
        """Close a connection on which more came than the answer: it would be taken for the next request's.

        httpcore looks at the socket before it uses a connection again, not at what it has read already.
        """
        for connection in self.pool.connections:
            inner: Any = connection
            while (deeper := getattr(inner, "_connection", None)) is not None:
                inner = deeper
            state = getattr(inner, "_h11_state", None)
            if state is not None and state.trailing_data[0]:
                connection.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response, max_bytes: int) -> None:
        self._answer = answer
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[bytes]:
        # Of a refusal only status and headers count: whatever is odd about its body must not hide them. Closing the
        # answer closes the connection, so what is left unread is never taken for the next answer.
        if not 200 <= self._answer.status < 300:
            return
        # None was asked for, and a small compressed answer can unfold to any size. httpx unfolds what any of several
        # such headers names.
        encodings = {value.strip().lower() for name, value in self._answer.headers if name.lower() == _ENCODING}
        if not encodings <= _NOT_ENCODED:
            raise UnusableAnswerError("the service sent a compressed answer, which was not asked for")
        size = 0
        for parts, part in enumerate(self._answer.iter_stream(), start=1):
            size += len(part)
            if size > self._max_bytes:
                raise RejectedError(f"the answer of the service has more than {self._max_bytes} bytes")
            if parts > _MOST_SMALL_PARTS + size // _SMALL_PART:
                raise UnusableAnswerError("the service sent its answer in too many small pieces")
            yield part

    def close(self) -> None:
        self._answer.close()


class _Backend(httpcore.NetworkBackend):
    """Opens connections whose operations are bounded by the deadline of the call that is being made."""

    def __init__(self, connect_timeout: float) -> None:
        self._inner = httpcore.SyncBackend()
        self._connect_timeout = connect_timeout
        self.deadline = Deadline(0.0)
        # What may still be read before the answer's headers are complete; None where that is no matter any more.
        self._before_headers: int | None = None

    def begin_answer(self) -> None:
        """Limit what is read until `headers_are_there`: a service may send announcements (1xx) without end."""
        self._before_headers = _LONGEST_HEADERS

    def headers_are_there(self) -> None:
        self._before_headers = None

    def note_read(self, size: int) -> None:
        """Count what was read. Raises httpcore.RemoteProtocolError when that is too much before the answer begins."""
        if self._before_headers is not None:
            self._before_headers -= size
            if self._before_headers < 0:
                raise httpcore.RemoteProtocolError("no answer within the bytes that headers may have")

    def left(self) -> float:
        """Return the seconds left to the call. Raises httpcore.TimeoutException when there are none."""
        left = self.deadline.remaining()
        if left <= 0:
            raise httpcore.ReadTimeout
        return left

    def left_to_connect(self) -> float:
        return min(self.left(), self._connect_timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the deadline of the whole call counts
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Try the host's addresses in turn, each with its share of what is left, so that a dead one is no end."""
        until = time.monotonic() + self.left_to_connect()
        addresses = _addresses(host, port)
        for index, address in enumerate(addresses):
            share = (until - time.monotonic()) / (len(addresses) - index)
            if share <= 0:
                break
            try:
                stream = self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index == len(addresses) - 1:
                    raise
            else:
                return _Stream(stream, self)
        raise httpcore.ConnectTimeout


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, backend: _Backend) -> None:
        self._inner = inner
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        content = self._inner.read(max_bytes, self._backend.left())
        self._backend.note_read(len(content))
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        for start in range(0, len(buffer), _PIECE):
            self._inner.write(buffer[start : start + _PIECE], self._backend.left())

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        within = self._backend.left_to_connect()
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, within), self._backend)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def close(self) -> None:
        self._inner.close()


def header_text(text: str) -> str:
    """Return a text as a header can carry it: percent-encoded but for visible ASCII, of 256 characters at most."""
    return quote(text[:_LONGEST_HEADER], safe=_PLAIN)


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter where a part of the name is empty or too long
        raise httpcore.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _proxy_access(proxy: str) -> dict[str, Any]:
    url = httpx.URL(proxy)
    return {"proxy_auth": (url.username, url.password)} if url.username else {}


def _timed_out(error: httpcore.TimeoutException, deadline: Deadline) -> HandlerError:
    if isinstance(error, httpcore.ConnectTimeout) and deadline.remaining() > 0:
        return ConnectionFailedError("no connection to the service within the time for connecting")
    return NoAnswerError("no complete answer from the service before the deadline of the attempt")


def _connection_trouble(error: Exception) -> HandlerError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            # OpenSSL's own words, such as "self-signed certificate"; behind a comma comes the host.
            reason = cause.verify_message.partition(",")[0]
            strict = strict_certificates.is_strictness(cause.verify_code)
            hint = f". {strict_certificates.HINT}" if strict else ""
            return AccessRefusedError(f"the service's certificate is not trusted: {reason}{hint}")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpcore.ProxyError):
        # The proxy's answer to CONNECT, such as "407 Proxy Authentication Required". No request has left yet, so none
        # is to blame.
        if str(error).startswith(_PROXY_REFUSES_US):
            return AccessRefusedError("the proxy refuses the worker: see to the user and password in its address")
        return ConnectionFailedError("the proxy does not connect to the service", shared=True)
    if isinstance(error, httpcore.ConnectError):
        return ConnectionFailedError("the service cannot be reached", shared=True)
    return ConnectionFailedError("the connection to the service broke before the answer was complete")
