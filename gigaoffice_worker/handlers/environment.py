"""A handler's own variables, read once, with everything that is wrong told at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import cast
from urllib.request import getproxies, proxy_bypass

import structlog
from environs import Env, EnvValidationError

from gigaoffice_worker.config import Secret
from gigaoffice_worker.config.files import FILE_SUFFIX, file_trouble, read_secret
from gigaoffice_worker.core.errors import ConfigurationError

log = structlog.get_logger(__name__)


class Environment(Env):
    """environs over the process's environment, in which an empty variable counts as unset.

    Read everything, then call `check`: until then a wrong variable reads as None.
    """

    def __init__(self) -> None:
        super().__init__(eager=False)
        self._wrong: list[str] = []

    def _get_value(self, env_key: str, default: object) -> object:
        return os.environ.get(env_key) or default

    def secret(self, name: str) -> Secret | None:
        """Return a secret out of its variable, or of the file that its twin names."""
        text, path = os.environ.get(name), self.secret_file(name)
        if text and path:
            self.wrong(f"{name} and {name}{FILE_SUFFIX}: only one of them may be set")
        if path is None:
            return Secret(text) if text else None
        try:
            return Secret(read_secret(path))
        except (OSError, ValueError) as error:
            self.wrong(f"{name}{FILE_SUFFIX}={path!r}: {error}")
            return None

    @staticmethod
    def secret_file(name: str) -> str | None:
        """Return the path that a secret's twin names."""
        return os.environ.get(name + FILE_SUFFIX) or None

    def file(self, name: str) -> str | None:
        """Return the path of a file, if one is named and can be read."""
        path = os.environ.get(name) or None
        if path is not None and (trouble := file_trouble(path)):
            self.wrong(f"{name}={path!r}: {trouble}")
            return None
        return path

    def directory(self, name: str) -> Path | None:
        """Return the path of a directory, if one is named and there is one."""
        text = os.environ.get(name) or None
        if text is not None and not Path(text).is_dir():
            self.wrong(f"{name}={text!r}: is not a directory")
            return None
        return Path(text) if text is not None else None

    def hint_at_others(self, prefix: str, known: Collection[str], others: Mapping[str, str]) -> None:
        """Warn of variables with this prefix that nobody reads, with the name that may be meant."""
        for name in sorted(os.environ):
            if not name.startswith(prefix) or name in known or name.removesuffix(FILE_SUFFIX) in known:
                continue
            meant = others.get(name) or next(iter(get_close_matches(name, known, n=1, cutoff=0.85)), None)
            log.warning(
                "Variable ignored", variable=name, hint=f"did you mean {meant}?" if meant else "nothing reads it"
            )

    def proxy(self, switch: str, scheme: str, host: str) -> str | None:
        """Return the proxy that the environment's usual variables name for this host, if `switch` is true."""
        if not self.bool(switch, default=False) or proxy_bypass(host):
            return None
        proxies = getproxies()
        proxy = proxies.get(scheme) or proxies.get("all")
        if proxy and not proxy.startswith("http://"):
            self.wrong(f"{scheme}_proxy: must begin with http://, other proxies are not supported")
            return None
        return proxy

    def need(self, names: Iterable[str], why: str) -> None:
        """Note each of these variables that is unset; `why` follows "must be set"."""
        for name in names:
            if not (os.environ.get(name) or self.secret_file(name)):
                self.wrong(f"{name}: must be set {why}".rstrip())

    def wrong(self, complaint: str) -> None:
        """Note what is wrong, in a text that begins with the variable's name."""
        self._wrong.append(complaint)

    def check(self) -> None:
        """Raise ConfigurationError if anything that was read is wrong."""
        try:
            self.seal()
        except EnvValidationError as error:
            for name, messages in cast("dict[str, list[str]]", error.error_messages).items():
                self.wrong(f"{name}={os.environ.get(name, '')[:100]!r}: {' '.join(messages)}")
        if self._wrong:
            title = "1 setting is wrong" if len(self._wrong) == 1 else f"{len(self._wrong)} settings are wrong"
            raise ConfigurationError(
                "\n  ".join([f"{title}:", *self._wrong]), hint="docs/handlers.md lists the variables of each handler"
            )
