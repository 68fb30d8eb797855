"""Tokens for OAUTHBEARER: asked for by client credentials (RFC 6749, 4.4), kept, and renewed before they expire.

Times are those of the monotonic clock and of the answer's `expires_in` alone: a clock of this machine that is wrong, or
is set right while the worker runs, changes nothing.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from http.client import HTTPException
from typing import IO, Any, Final, NamedTuple, NoReturn

from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError
from kafka.sasl.oauth import AbstractTokenProvider

from gigaoffice_worker.config import Kafka
from gigaoffice_worker.config.files import read_secret
from gigaoffice_worker.core import strict_certificates
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError, WorkerError

_TIMEOUT: Final = 8.0  # seconds for one question; the thread that logs in waits so long
_LARGEST_ANSWER: Final = 65_536
_LIFETIME: Final = 300.0  # of a token whose answer does not say
_RENEW_AT: Final = 0.8  # of its lifetime
_REMEMBER_FAILURE: Final = 2.0  # seconds in which a failure is not asked about again
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750, 2.1; nothing that could end the message it is sent in


class Token(NamedTuple):
    """A token and the moment from which a new one is asked for."""

    text: str
    renew_at: float


class TokenSource:
    """Asks the token endpoint and keeps what it answers. For any thread; one asks, the others wait for its answer."""

    def __init__(self, kafka: Kafka, clock: Callable[[], float] = time.monotonic) -> None:
        self._kafka = kafka
        self._clock = clock
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._failed: tuple[float, WorkerError] | None = None

    def token(self) -> str:
        """Return a token that has some time left. Raises AccessError, UnreachableError or ConfigurationError."""
        with self._lock:
            now = self._clock()
            if self._token is not None and now < self._token.renew_at:
                return self._token.text
            if self._failed is not None and now < self._failed[0]:
                raise self._failed[1]
            try:
                self._token = self._ask(now)
            except WorkerError as error:
                self._failed = (self._clock() + _REMEMBER_FAILURE, error)
                raise
            self._failed = None
            return self._token.text

    def _ask(self, now: float) -> Token:
        url = self._kafka.sasl_oauth_token_url or ""
        form = {"grant_type": "client_credentials"}
        if self._kafka.sasl_oauth_scope:
            form["scope"] = self._kafka.sasl_oauth_scope
        headers = {"Authorization": f"Basic {self._credentials()}", "Accept": "application/json"}
        request = urllib.request.Request(url, urllib.parse.urlencode(form).encode(), headers)  # noqa: S310  # checked
        try:
            with _opener(self._kafka.sasl_oauth_cafile).open(request, timeout=_TIMEOUT) as answer:
                return _token(url, answer, now)
        except urllib.error.HTTPError as error:
            with error:
                _refused(url, error)
        except (OSError, HTTPException) as error:
            _unreachable(url, error)

    def _credentials(self) -> str:
        # RFC 6749, 2.3.1: each part is encoded as a form's value before they are joined.
        parts = (self._kafka.sasl_oauth_client_id or "", self._secret())
        return base64.b64encode(":".join(map(urllib.parse.quote_plus, parts)).encode()).decode()

    def _secret(self) -> str:
        path = self._kafka.sasl_oauth_client_secret_file
        if path is None:
            secret = self._kafka.sasl_oauth_client_secret
            return secret.reveal() if secret else ""
        try:
            return read_secret(path)  # each time, so that a rotated one is used
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"KAFKA_SASL_OAUTH_CLIENT_SECRET_FILE={path!r} cannot be used: {error}") from error


def token_source(kafka: Kafka) -> TokenSource:
    """Return the source that all clients of a configuration share, whatever each calls itself and whomever it asks."""
    return _source(replace(kafka, client_id="", bootstrap_servers=()))


@lru_cache(maxsize=8)
def _source(kafka: Kafka) -> TokenSource:
    return TokenSource(kafka)


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # the client ships no types
    """What the client asks for a token at each login; errors come as those that it expects of a login."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self._source = source

    def token(self) -> str:
        """Return a token that has some time left."""
        try:
            return self._source.token()
        except UnreachableError as error:
            raise KafkaConnectionError(str(error)) from error
        except WorkerError as error:
            raise SaslAuthenticationFailedError(str(error)) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nobody: the credentials are for the address that was configured."""

    def redirect_request(self, *_: object) -> None:
        return None


@lru_cache(maxsize=8)
def _opener(cafile: str | None) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=cafile)
    # Without proxies: those of the environment are for other programs.
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect
    )


def _token(url: str, answer: IO[bytes], now: float) -> Token:
    found = _document(answer)
    text, kind = found.get("access_token"), str(found.get("token_type", "bearer"))
    if not isinstance(text, str) or not _TOKEN.fullmatch(text) or kind.lower() != "bearer":
        raise ConfigurationError(
            f"the token endpoint {url} answers without a bearer token",
            hint="Check KAFKA_SASL_OAUTH_TOKEN_URL: it must be the endpoint for tokens, not that of logins.",
        )
    lifetime = found.get("expires_in", _LIFETIME)
    try:
        seconds = min(max(float(lifetime), 0.0), 86_400.0)
    except (TypeError, ValueError):
        seconds = _LIFETIME
    return Token(text, now + seconds * _RENEW_AT)


def _refused(url: str, error: urllib.error.HTTPError) -> NoReturn:
    found = _document(error)
    said = ": ".join(str(found[name])[:200] for name in ("error", "error_description") if name in found)
    told = f"the token endpoint {url} answers {error.code}{f' ({said})' if said else ''}"
    if error.code in {400, 401, 403}:
        hint = "Check KAFKA_SASL_OAUTH_CLIENT_ID, KAFKA_SASL_OAUTH_CLIENT_SECRET and KAFKA_SASL_OAUTH_SCOPE."
        raise AccessError(told, hint=hint) from error
    if error.code < 500 and error.code != 429:
        raise ConfigurationError(told, hint="Check KAFKA_SASL_OAUTH_TOKEN_URL; redirects are not followed.") from error
    raise UnreachableError(told, hint="Ask whoever runs it; it is tried again.") from error


def _unreachable(url: str, error: Exception) -> NoReturn:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        told = f"the token endpoint {url}: certificate not trusted: {reason.verify_message}"
        strict = strict_certificates.is_strictness(reason.verify_code)
        hint = "Set KAFKA_SASL_OAUTH_CAFILE to the authority that issued it."
        raise AccessError(told, hint=strict_certificates.HINT if strict else hint) from error
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    raise UnreachableError(
        f"the token endpoint {url} cannot be reached: {text.lower()}",
        hint="Check KAFKA_SASL_OAUTH_TOKEN_URL, the name service and the network; proxies are not used.",
    ) from error


def _document(answer: IO[bytes]) -> dict[str, Any]:
    try:
        found = json.loads(answer.read(_LARGEST_ANSWER))
    except (ValueError, RecursionError, OSError, HTTPException):
        return {}
    return found if isinstance(found, dict) else {}
