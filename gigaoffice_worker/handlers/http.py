"""The handler that asks an HTTP service: the request's payload goes out as JSON, the JSON answer is the result."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import httpx
import msgspec
import structlog
from environs import validate

from gigaoffice_worker.config import Secret
from gigaoffice_worker.config.files import read_secret
from gigaoffice_worker.core.records import Request
from gigaoffice_worker.core.trace import trace_context
from gigaoffice_worker.handlers.environment import Environment
from gigaoffice_worker.handlers.failures import UnusableAnswerError, from_status
from gigaoffice_worker.handlers.outbound import Transport, header_text

log = structlog.get_logger(__name__)

_ACCESS_HINT = "see to HTTP_HANDLER_TOKEN and to what the service allows it"
_NO_CONTENT = frozenset({204, 205})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class HttpHandler:
    """Asks the service at HTTP_HANDLER_URL. Its variables and what each answer means are in docs/handlers.md."""

    def __init__(self) -> None:
        env = Environment()
        env.need(["HTTP_HANDLER_URL"], "to the address that requests are posted to")
        self._url = httpx.URL(_url(env))
        self._token = _token(env)
        context = _tls(env)
        connect_timeout = env.float("HTTP_HANDLER_CONNECT_TIMEOUT", 10.0, validate=validate.Range(min=0.001))
        max_bytes = env.int("HTTP_HANDLER_MAX_RESPONSE_BYTES", 1024 * 1024, validate=validate.Range(min=1))
        proxy = env.proxy("HTTP_HANDLER_USE_ENV_PROXY", self._url.scheme, self._url.host)
        connections = env.int("WORKER_CONCURRENCY", 16, validate=validate.Range(min=1))
        env.check()
        self._transport = Transport(
            context, connections=connections, connect_timeout=connect_timeout, max_bytes=max_bytes, proxy=proxy
        )
        self._client = httpx.Client(
            transport=self._transport,
            trust_env=False,
            headers={"User-Agent": "gigaoffice-worker", "Accept": "application/json", "Accept-Encoding": "identity"},
        )
        if self._token.present and self._url.scheme == "http" and self._url.host not in _LOOPBACK:
            log.warning("Token is sent without TLS", hint="use an https address in HTTP_HANDLER_URL")

    def __call__(self, request: Request) -> Any:
        """Post the payload and return the JSON answer, of whatever kind. Raises RejectedError or TransientError."""
        content = _encode(request.payload)
        headers = _headers(request)
        with self._transport.within(request.deadline):
            token = self._token.current()
            status, answered, body = self._post(content, headers, token)
            if status == 401 and (renewed := self._token.renewed(token)):
                status, answered, body = self._post(content, headers, renewed)
        if not 200 <= status < 300:
            raise from_status(status, answered, access_hint=_ACCESS_HINT)
        return None if status in _NO_CONTENT else _json(body)

    def _post(self, content: bytes, headers: dict[str, str], token: Secret | None) -> tuple[int, httpx.Headers, bytes]:
        """Return status, headers and, of a success, the body."""
        if token is not None:
            headers = {**headers, "Authorization": f"Bearer {token.reveal()}"}
        with self._client.stream("POST", self._url, content=content, headers=headers) as answer:
            body = answer.read() if answer.is_success else b""
            return answer.status_code, answer.headers, body

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Token:
    """The bearer token, read anew from its file when the service refuses it. Used by several threads."""

    def __init__(self, token: Secret | None, path: str | None) -> None:
        self._token = token
        self._path = path
        self._lock = threading.Lock()

    @property
    def present(self) -> bool:
        return self._token is not None

    def current(self) -> Secret | None:
        with self._lock:
            return self._token

    def renewed(self, refused: Secret | None) -> Secret | None:
        """Return a token other than the refused one, if its file holds one by now or another thread has read it."""
        with self._lock:
            if self._token == refused and self._path is not None:
                try:
                    self._token = _sendable(Secret(read_secret(self._path)))
                except (OSError, ValueError) as error:
                    log.warning("Secret file cannot be read again", path=self._path, error=str(error))
            return self._token if self._token != refused else None


def _headers(request: Request) -> dict[str, str]:
    trace = trace_context(request.headers)
    return {
        "Content-Type": "application/json",
        "X-Request-Id": header_text(request.id),
        "Idempotency-Key": f"{request.topic}-{request.partition}-{request.offset}",
        "X-Attempt": str(request.attempt),
        **{name: value.decode("ascii") for name, value in trace.items()},
    }


def _json(body: bytes) -> Any:
    try:
        return _decode(body)
    except (ValueError, RecursionError):
        what = "nothing" if not body.strip() else "something that is not JSON"
        raise UnusableAnswerError(f"the service answered with success and {what}") from None


def _url(env: Environment) -> str:
    """Return the service's address; complaints about it don't show it, since its query may hold a key."""
    text = env.str("HTTP_HANDLER_URL", "").strip()
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        env.wrong("HTTP_HANDLER_URL: is not a valid address")
        return ""
    if text and (url.scheme not in {"http", "https"} or not url.host or not 0 < (url.port or 80) < 65_536):
        env.wrong(
            "HTTP_HANDLER_URL: must begin with http:// or https:// and name a host, and a port below 65536 if any"
        )
    if url.userinfo:
        env.wrong("HTTP_HANDLER_URL: must not hold a user or password; a token belongs in HTTP_HANDLER_TOKEN_FILE")
    return text


def _token(env: Environment) -> Token:
    token = env.secret("HTTP_HANDLER_TOKEN")
    try:
        return Token(token and _sendable(token), env.secret_file("HTTP_HANDLER_TOKEN"))
    except ValueError as error:
        env.wrong(f"HTTP_HANDLER_TOKEN: {error}")
        return Token(None, None)


def _sendable(token: Secret) -> Secret:
    if not all(0x20 < ord(character) < 0x7F for character in token.reveal()):
        raise ValueError("must hold visible ASCII characters only")
    return token


def _tls(env: Environment) -> ssl.SSLContext:
    path = env.file("HTTP_HANDLER_CA_FILE")
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        env.wrong(f"HTTP_HANDLER_CA_FILE={path!r}: holds no certificate that can be read: {error.strerror}")
        return ssl.create_default_context()
