"""GigaChat through the vendor's SDK, made to keep the worker's rules.

The SDK's own retries are off, its connections are ours (one deadline for token and chat together, bounded answers),
and its errors, which quote addresses, answers and headers, become the worker's.
"""

from __future__ import annotations

import contextvars
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
import pydantic
import structlog
from environs import validate
from gigachat import GigaChatSyncClient
from gigachat.context import custom_headers_cvar, request_id_cvar
from gigachat.exceptions import ResponseError
from gigachat.models import ChatCompletion
from gigachat.settings import Settings
from pydantic_settings import SettingsError

from gigaoffice_worker.config.files import read_secret
from gigaoffice_worker.core.errors import HandlerError, RejectedError
from gigaoffice_worker.core.records import Deadline, Request
from gigaoffice_worker.core.trace import trace_context
from gigaoffice_worker.handlers.environment import Environment
from gigaoffice_worker.handlers.failures import (
    AccessRefusedError,
    NoAnswerError,
    UnusableAnswerError,
    from_status,
    moment,
)
from gigaoffice_worker.handlers.outbound import Transport, header_text
from gigaoffice_worker.handlers.prompts import Completion, Message

log = structlog.get_logger(__name__)

PREFIX = "GIGACHAT_"
_SECRETS = ("credentials", "password", "access_token", "key_file_password")
_RENEWED = ("credentials", "password")
# Variables of this handler, and those that the API service has for the same things.
_KNOWN = frozenset(
    PREFIX + name
    for name in (
        *("MODE", "PROMPTS", "MAX_TOKENS", "TEMPERATURE", "USE_ENV_PROXY"),
        *(name.upper() for name in Settings.model_fields),
    )
)
_OF_THE_SERVICE = {
    f"{PREFIX}RUN_MODE": f"{PREFIX}MODE",
    f"{PREFIX}GENERATE_MODEL": f"{PREFIX}MODEL",
    f"{PREFIX}VERIFY_SSL": f"{PREFIX}VERIFY_SSL_CERTS",
    f"{PREFIX}MAX_TOKENS_PER_REQUEST": f"{PREFIX}MAX_TOKENS",
    f"{PREFIX}MAX_REQUESTS_PER_MINUTE": "WORKER_GROUP_RATE",
}
_MAX_BYTES = 4 * 1024 * 1024
_CONNECT_TIMEOUT = 10.0
# Seconds: a token is not used for more than a day, lives for half an hour by default, and is renewed a minute early.
_LONGEST_TOKEN, _USUAL_TOKEN, _TOKEN_MARGIN = 86_400.0, 1800.0, 60.0
_CONNECTIONS_HINT = "set WORKER_CONCURRENCY, or WORKER_GROUP_CONCURRENCY for all workers together, to no more"
_ACCESS_HINT = "see to the GIGACHAT_ credentials and to what they are allowed and have left"


class Model:
    """A model of GigaChat, asked by several threads at once."""

    def __init__(self, env: Environment, *, mutual_tls: bool) -> None:
        """Read the SDK's variables through `env`, and check it. Raises ConfigurationError."""
        _forget_empty_variables()
        settings = _settings(env, mutual_tls=mutual_tls)
        context = _tls(env, settings)
        url = httpx.URL(settings.base_url)
        proxy = env.proxy(f"{PREFIX}USE_ENV_PROXY", url.scheme, url.host)
        concurrency = env.int("WORKER_CONCURRENCY", 16, validate=validate.Range(min=1))
        of_the_group = env.int("WORKER_GROUP_CONCURRENCY", None, validate=validate.Range(min=1))
        limits = {
            "max_tokens": env.int(f"{PREFIX}MAX_TOKENS", None, validate=validate.Range(min=1)),
            "temperature": env.float(f"{PREFIX}TEMPERATURE", None, validate=validate.Range(min=0, max=2)),
        }
        self._options = {name: value for name, value in limits.items() if value is not None}
        env.hint_at_others(PREFIX, _KNOWN, _OF_THE_SERVICE)
        env.check()
        self.name = settings.model or ""
        connections = min(concurrency, settings.max_connections or concurrency)
        if connections < min(concurrency, of_the_group or concurrency):
            log.warning("Fewer connections than calls at once", connections=connections, hint=_CONNECTIONS_HINT)
        # A time that somebody has set bounds a call too; the SDK's default would cut off slow answers.
        self._longest = settings.timeout if "timeout" in settings.model_fields_set else None
        self._transport = Transport(
            context,
            connections=connections,
            connect_timeout=_CONNECT_TIMEOUT,
            max_bytes=_MAX_BYTES,
            proxy=proxy,
        )
        files = {name: path for name in _RENEWED if (path := env.secret_file(PREFIX + name.upper()))}
        self._client = _Client(settings, self._transport, files)
        # Its warnings tell each failure a second time, and with the address.
        logging.getLogger("gigachat").setLevel(logging.ERROR)

    def complete(self, messages: list[Message], request: Request) -> Completion:
        """Ask the model. Raises RejectedError or TransientError."""
        with self._transport.within(self._deadline(request.deadline)):
            found = contextvars.copy_context().run(self._ask, messages, request)
        usage = found.usage.model_dump(exclude_none=True)
        if not found.choices:
            return Completion("", found.model, "", usage, has_answer=False)
        choice = found.choices[0]
        return Completion(choice.message.content or "", found.model, choice.finish_reason or "", usage)

    def _ask(self, messages: list[Message], request: Request) -> ChatCompletion:
        request_id_cvar.set(header_text(request.id))
        custom_headers_cvar.set({name: value.decode("ascii") for name, value in trace_context(request.headers).items()})
        with _in_the_workers_terms():
            return self._client.chat({"messages": messages, **self._options})

    def _deadline(self, attempt: Deadline) -> Deadline:
        return Deadline(time.monotonic() + min(attempt.remaining(), self._longest or attempt.remaining()))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _Client(GigaChatSyncClient):
    def __init__(self, settings: Settings, transport: Transport, secret_files: Mapping[str, str]) -> None:
        # What is left out here the SDK reads from the environment by itself.
        given = settings.model_dump(exclude_none=True, exclude={"ssl_context", "max_retries", "token_expiry_buffer_ms"})
        super().__init__(**given, max_retries=0)
        self._http = httpx.Client(
            base_url=settings.base_url,
            transport=transport,
            trust_env=False,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [self._note_time]},
        )
        self._transport = transport
        self._secret_files = secret_files
        self._mine = threading.local()
        self._service_time: float | None = None
        self._usable_until = 0.0

    @property
    def _client(self) -> httpx.Client:
        return self._http

    @property
    def _auth_client(self) -> httpx.Client:
        return self._http

    @property
    def token(self) -> str | None:
        """The token for this thread's next call."""
        self._mine.token = token = self._access_token
        return token.access_token if token is not None else None

    def _reset_token(self) -> None:
        with self._one_at_a_time():
            # Another thread may have fetched a new one since this thread's was refused.
            if self._access_token is self._mine.token:
                self._access_token = None

    def _update_token(self) -> None:
        with self._one_at_a_time():
            if self._is_token_usable():
                return
            try:
                self._fetch_token()
            except AccessRefusedError:
                if not self._read_secrets_again():
                    raise
                self._fetch_token()

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Hold the SDK's lock, under which a token may be fetched. Raises NoAnswerError at the call's deadline."""
        if not self._sync_token_lock.acquire(timeout=self._transport.remaining()):
            raise NoAnswerError("no token before the deadline of the attempt: another call still waits for it")
        try:
            yield
        finally:
            self._sync_token_lock.release()

    def _is_token_usable(self) -> bool:
        # The SDK compares the expiry with this machine's clock: where that is 40 minutes ahead no token is ever usable.
        token = self._access_token
        return token is not None and (token.expires_at == 0 or time.monotonic() < self._usable_until)

    def _note_time(self, response: httpx.Response) -> None:
        self._service_time = moment(response.headers.get("Date", ""))

    def _fetch_token(self) -> None:
        began = time.monotonic()
        with _in_the_workers_terms(for_token=True):
            super()._update_token()
        if self._access_token is not None:
            # By the service's own clock where it tells it; an expiry that makes no sense is the usual half an hour.
            now = self._service_time if self._service_time is not None else time.time()
            left = self._access_token.expires_at / 1000 - now
            lifetime = left if 0 < left <= _LONGEST_TOKEN else _USUAL_TOKEN
            self._usable_until = began + lifetime - min(_TOKEN_MARGIN, lifetime / 10)

    def _read_secrets_again(self) -> bool:
        """Take what the secrets' files hold by now; True when that is something new."""
        found = {name: text for name, path in self._secret_files.items() if (text := _content(path))}
        new = {name: text for name, text in found.items() if text != getattr(self._settings, name)}
        for name, text in new.items():
            setattr(self._settings, name, text)
        return bool(new)

    def close(self) -> None:
        self._http.close()


@contextmanager
def _in_the_workers_terms(*, for_token: bool = False) -> Iterator[None]:
    """Raise the SDK's errors as the worker's; without their causes, whose texts quote what no log may hold."""
    try:
        yield
    except ResponseError as error:
        found = from_status(error.status_code, error.headers or {}, access_hint=_ACCESS_HINT)
        # Whatever is wrong with asking for a token, this request is not to blame.
        raise _access_refused(found) if for_token else found from None
    except (ValueError, KeyError, TypeError):
        what = "the authorization service sent no token" if for_token else "the service sent no chat completion"
        raise UnusableAnswerError(f"{what} that can be read") from None


def _access_refused(found: HandlerError) -> HandlerError:
    return AccessRefusedError(f"{found}: {_ACCESS_HINT}") if isinstance(found, RejectedError) else found


def _content(path: str) -> str | None:
    try:
        return read_secret(path)
    except (OSError, ValueError) as error:
        log.warning("Secret file cannot be read again", path=path, error=str(error))
        return None


def _forget_empty_variables() -> None:
    """Unset what is empty: the SDK would take it for a value."""
    for name in [name for name, text in os.environ.items() if name.upper().startswith(PREFIX) and not text]:
        del os.environ[name]


def _settings(env: Environment, *, mutual_tls: bool) -> Settings:
    """Return the SDK's settings, and note what is wrong with them."""
    secrets = {name: found.reveal() for name in _SECRETS if (found := env.secret(PREFIX + name.upper()))}
    try:
        settings = Settings(**secrets)  # type: ignore[arg-type]  # all of them are texts
    except pydantic.ValidationError as error:
        for each in error.errors(include_input=False, include_url=False):
            env.wrong(f"{PREFIX}{str(each['loc'][0]).upper()}: {each['msg']}")
        return Settings.model_construct()
    except SettingsError as error:
        env.wrong(f"{PREFIX}*: {error}")
        return Settings.model_construct()
    for name, address in (("BASE_URL", settings.base_url), ("AUTH_URL", settings.auth_url)):
        if not address.startswith(("https://", "http://")):
            env.wrong(f"{PREFIX}{name}: must begin with https:// or http://")
    if not (settings.model or "").strip():
        env.wrong(f"{PREFIX}MODEL: must be set to the name of a model")
    if settings.max_connections is not None and settings.max_connections < 1:
        env.wrong(f"{PREFIX}MAX_CONNECTIONS: must be at least 1")
    if mutual_tls:
        env.need([f"{PREFIX}CERT_FILE", f"{PREFIX}KEY_FILE"], f"with {PREFIX}MODE=mtls")
    elif not (settings.credentials or settings.access_token or (settings.user and settings.password)):
        env.wrong(
            f"{PREFIX}CREDENTIALS: must be set with {PREFIX}MODE=cloud (or {PREFIX}USER and {PREFIX}PASSWORD,"
            f" or {PREFIX}ACCESS_TOKEN)"
        )
    return settings


def _tls(env: Environment, settings: Settings) -> ssl.SSLContext:
    authorities = env.file(f"{PREFIX}CA_BUNDLE_FILE")
    certificate, key = env.file(f"{PREFIX}CERT_FILE"), env.file(f"{PREFIX}KEY_FILE")
    context = ssl.create_default_context()
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError:
        env.wrong(f"{PREFIX}CA_BUNDLE_FILE={authorities!r}: holds no certificate that can be read")
    if certificate:
        try:
            # Never None: OpenSSL would ask for the password on the terminal.
            context.load_cert_chain(certificate, key, settings.key_file_password or "")
        except OSError:
            env.wrong(f"{PREFIX}CERT_FILE={certificate!r}: cannot be used with {PREFIX}KEY_FILE and its password")
    if not settings.verify_ssl_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        log.warning("GigaChat certificates are not verified", hint=f"use {PREFIX}CA_BUNDLE_FILE instead")
    return context
