"""The side port: metrics, health and status over HTTP, answered from snapshots."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.visible import visible, visible_json
from gigaoffice_worker.observe.hosts import KnownHosts
from gigaoffice_worker.observe.listener import BACKLOG, COMMON_HEADERS, HTTPListener
from gigaoffice_worker.observe.page import page_policy

_MAX_URI = 4096
_METRICS = "/metrics"
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'"
_UNKNOWN_NAME = (
    "This worker does not know itself by the name in the request's Host header.\n"
    "Ask for it by its address, or add the name to METRICS_ALLOWED_HOSTS.\n"
)
_TRY_AGAIN = 0.25  # seconds between two tries of a port that is taken

log = structlog.get_logger(__name__)


class _PortTakenError(ConfigurationError):
    """Another process listens there, perhaps not for long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says: a dict is sent as JSON, str as plain text, bytes as they are; `content_type` overrides."""

    status: int
    body: str | bytes | dict[str, Any]
    content_type: str | None = None

    def encoded(self) -> tuple[str, str, bytes]:
        """Return the status line, the content type and the body's bytes."""
        if isinstance(self.body, dict):
            kind, text = "application/json", visible_json(self.body, indent=2, default=str) + "\n"
        elif isinstance(self.body, str):
            kind, text = "text/plain; charset=utf-8", "\n".join(map(visible, self.body.split("\n")))
        else:
            kind, text = "application/octet-stream", ""
        body = self.body if isinstance(self.body, bytes) else text.encode("utf-8", "backslashreplace")
        return f"{self.status} {HTTPStatus(self.status).phrase}", self.content_type or kind, body


class SidePort:
    """Serve `/metrics` from `registry` and each of `pages` (path → function) on `host:port`, from `start()` on.

    Pages run in the server's threads and must answer from memory. With port 0 the system picks one: it is logged, and
    written to the file `port` in `runtime_directory` while the port is open. `names` are those besides its own by which
    it may be asked (`*`: any). A port that is taken is tried for `wait` seconds: who held it may be about to end.
    """

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Callable[[], Answer]],
        registry: CollectorRegistry,
        *,
        runtime_directory: str | None = None,
        names: Iterable[str] = (),
        wait: float = 0.0,
    ) -> None:
        self._host = host
        self._wait = wait
        self._wanted = port
        self._port = port
        self._site = _Site(pages, registry, KnownHosts(host, names))
        self._runtime_directory = runtime_directory
        self._listener: HTTPListener | None = None
        self._port_file: Path | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; before start() the configured one."""
        return self._port

    def start(self, stop: threading.Event | None = None) -> None:
        """Listen and answer; do nothing once `stop` is set. Raises ConfigurationError when it can't be listened on."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        listening = _listen_patiently(self._host, self._wanted, self._wait, stop or threading.Event())
        if listening is None:
            return
        self._port = listening.getsockname()[1]
        self._listener = HTTPListener(self._site, listening)
        self._listener.start()
        log.info("Side port open", host=self._host, port=self._port)
        if self._wanted == 0 and self._runtime_directory:
            self._port_file = _write_port(self._runtime_directory, self._port)

    def close(self, deadline: float) -> None:
        """Close the port, giving answers that are being made until `deadline` (in terms of `time.monotonic()`)."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        if self._port_file is not None:
            with suppress(OSError):
                self._port_file.unlink()
        listener.close(deadline)


class _Site:
    """The pages as a WSGI application that answers whatever is asked."""

    def __init__(
        self,
        pages: Mapping[str, Callable[[], Answer]],
        registry: CollectorRegistry,
        hosts: KnownHosts,
    ) -> None:
        self._pages = dict(pages)
        self._hosts = hosts
        self._exposition = make_wsgi_app(registry)
        self._failing: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        status, headers, body = self._respond(environ)
        if status.startswith("405"):
            headers.append(("Allow", "GET, HEAD"))
        is_page = any(name == "Content-Type" and value.startswith("text/html") for name, value in headers)
        policy = ("Content-Security-Policy", page_policy() if is_page else _NOTHING_ALLOWED)
        start_response(status, [*headers, ("Content-Length", str(len(body))), policy, *COMMON_HEADERS])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _respond(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        path = environ["PATH_INFO"]
        refusal = self._refusal(environ, path)
        try:
            if refusal is None and path == _METRICS:
                found = self._metrics(environ)
            else:
                found = _plain_response(refusal or self._pages[path]())
        except Exception as error:  # noqa: BLE001 - a page that fails must not take the others with it
            self._report(path, error)
            return _plain_response(Answer(500, "This page failed; the log says why.\n"))
        self._failing.discard(path)
        return found

    def _refusal(self, environ: dict[str, Any], path: str) -> Answer | None:
        if environ.get("HTTP_HOST") not in self._hosts:
            return Answer(421, _UNKNOWN_NAME)
        if len(environ["REQUEST_URI"]) > _MAX_URI:
            return Answer(414, f"The request's target is longer than {_MAX_URI} bytes.\n")
        if path != _METRICS and path not in self._pages:
            return Answer(404, "\n".join(["Nothing here. There is:", _METRICS, *sorted(self._pages), ""]))
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return Answer(405, "Only GET and HEAD are answered.\n")
        return None

    def _metrics(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        # The exposition knows GET only; for HEAD its body is measured and then left out.
        asked = {**environ, "REQUEST_METHOD": "GET"}
        try:
            return self._expose(asked)
        except (TypeError, ValueError):  # a version in Accept that is no number fails its parser
            return self._expose({**asked, "HTTP_ACCEPT": ""})

    def _expose(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        started: list[Any] = []
        chunks = self._exposition(environ, lambda *args: started.extend(args))
        return started[0], list(started[1]), b"".join(chunks)

    def _report(self, path: str, error: Exception) -> None:
        if path not in self._failing:  # once, not at each probe
            self._failing.add(path)
            log.error("Page of the side port failed", path=path, exc_info=error)


def _plain_response(answer: Answer) -> tuple[str, list[tuple[str, str]], bytes]:
    status, content_type, body = answer.encoded()
    return status, [("Content-Type", content_type)], body


def _listen_patiently(host: str, port: int, wait: float, stop: threading.Event) -> socket.socket | None:
    """Listen as soon as the port is free, at the latest after `wait` seconds; None when `stop` comes before that."""
    deadline = time.monotonic() + wait
    told = False
    while not stop.is_set():
        try:
            return _listen(host, port)
        except _PortTakenError:
            if time.monotonic() >= deadline:
                raise
        if not told:
            told = True
            log.info("Side port taken, waiting for it", host=host, port=port, wait=wait)
        stop.wait(_TRY_AGAIN)
    return None


def _listen(host: str, port: int) -> socket.socket:
    failure: OSError | None = None
    for family, kind, protocol, address in _addresses(host, port):
        try:
            listening = socket.socket(family, kind, protocol)
        except OSError as error:  # an address family that this machine does not have
            failure = error
            continue
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:
                break
        else:
            return listening
    raise _cannot_listen(host, port, failure)


def _addresses(host: str, port: int) -> list[tuple[int, int, int, Any]]:
    name = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that can't be one, like "a..b"
        raise ConfigurationError(
            f"METRICS_HOST: {host!r} cannot be resolved ({error})",
            hint="Set METRICS_HOST to an address of this machine: 127.0.0.1 for itself only, 0.0.0.0 for all.",
        ) from None
    return [(family, kind, protocol, address) for family, kind, protocol, _, address in found]


def _cannot_listen(host: str, port: int, error: OSError | None) -> ConfigurationError:
    reason = error.strerror if error is not None else "no address"
    if error is not None and error.errno == errno.EADDRINUSE:
        return _PortTakenError(
            f"METRICS_PORT: port {port} of {host} is taken by another process",
            hint="Give each worker on this machine a METRICS_PORT of its own, or 0 to have a free one picked.",
        )
    if error is not None and error.errno in {errno.EACCES, errno.EPERM}:
        return ConfigurationError(
            f"METRICS_PORT: this user may not listen on port {port} of {host} ({reason})",
            hint="Set METRICS_PORT to 1024 or above, or 0 to have a free one picked.",
        )
    return ConfigurationError(
        f"METRICS_HOST: {host} with METRICS_PORT {port} cannot be listened on ({reason})",
        hint="Set METRICS_HOST to an address of this machine: 127.0.0.1 for itself only, 0.0.0.0 for all.",
    )


def _write_port(directory: str, port: int) -> Path | None:
    path = Path(directory, "port")
    temporary = path.with_name(".port.new")
    try:
        temporary.write_text(f"{port}\n", encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        log.warning("Port file cannot be written", path=path, error=error)
        return None
    return path
