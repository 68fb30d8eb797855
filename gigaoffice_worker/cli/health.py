"""`gigaoffice-worker health`: asks a running worker on this machine how it is."""

from __future__ import annotations

import argparse
import http.client
import os
import time
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple, Protocol

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.visible import visible

READY = "/readyz"
LIVE = "/livez"
_LONGEST_ANSWER = 65_536

_DESCRIPTION = """\
Ask a running worker's /readyz, or /livez with --live, over the loopback interface, and print the answer.
METRICS_HOST and METRICS_PORT say where it listens; with METRICS_PORT=0 the port is read from $RUNTIME_DIRECTORY/port.
Exit code 0: the answer is good; 1: it is not, or there is none in time.
"""


class SidePort(Protocol):
    """Where a worker's side port is, as the configuration has it."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def runtime_directory(self) -> str | None: ...


class Place(NamedTuple):
    """The part of the configuration that this command needs."""

    host: str
    port: int
    runtime_directory: str | None


class Reply(NamedTuple):
    """What the side port answered."""

    status: int
    text: str

    @property
    def good(self) -> bool:
        """Say whether the worker is what it was asked about."""
        return self.status == http.client.OK


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    parser = commands.add("health", act, "ask a running worker whether it is ready", _DESCRIPTION)
    parser.add_argument("--live", action="store_true", help="ask whether it makes progress, not whether it is ready")
    parser.add_argument(
        "--timeout", type=terminal.seconds, default=5.0, metavar="SECONDS", help="wait so long (default: %(default)g)"
    )


def act(asked: argparse.Namespace) -> int:
    """Print the worker's answer; 0 if it is good, else 1."""
    reply = ask(side_port(os.environ), LIVE if asked.live else READY, asked.timeout)
    print("\n".join(map(visible, reply.text.rstrip().split("\n"))))
    return 0 if reply.good else 1


def side_port(environ: Mapping[str, str]) -> Place:
    """Read where the worker listens: these three variables alone, for a container asks every few seconds.

    To load and check the whole configuration costs three times as much as the question, and what else is wrong with
    it is not what was asked. Raises ConfigurationError if the port is none.
    """
    text = environ.get("METRICS_PORT", "").strip() or "9464"
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535):
        raise ConfigurationError(f"METRICS_PORT={text[:80]!r}: must be a whole number from 0 to 65535")
    host = environ.get("METRICS_HOST", "").strip() or "127.0.0.1"
    # systemd separates several directories by colons; the first is the unit's own.
    return Place(host, int(text), environ.get("RUNTIME_DIRECTORY", "").strip().partition(":")[0] or None)


def ask(side_port: SidePort, path: str, timeout: float) -> Reply:
    """Return the answer of the worker here.

    Raises FoundWantingError when none comes in `timeout` seconds, ConfigurationError if the host can be none.
    """
    host, port = reachable_host(side_port.host), _port(side_port)
    deadline = time.monotonic() + timeout
    try:
        with closing(http.client.HTTPConnection(host, port, timeout=timeout)) as connection:  # which knows no proxies
            connection.request("GET", path)
            response = connection.getresponse()
            return Reply(response.status, _text(response, deadline))
    except (UnicodeError, http.client.InvalidURL) as error:
        raise ConfigurationError(
            f"METRICS_HOST={side_port.host[:80]!r}: must be the address or the name of a host",
            hint="Set METRICS_HOST as it is set for the worker.",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise terminal.FoundWantingError(
            f"no worker answers at http://{_bracketed(host)}:{port}{path}: {reason.lower()}",
            hint="Is a worker running here, with the same METRICS_HOST and METRICS_PORT? Its log says why it ended.",
        ) from error


def reachable_host(host: str) -> str:
    """Return the address at which a server bound to `host` is reached from this machine."""
    bare = host.removeprefix("[").removesuffix("]")
    if set(bare) <= {"0", ":"} and ":" in bare:  # IPv6 for "every address", however many zeros it is written with
        return "::1"
    return "127.0.0.1" if bare == "0.0.0.0" else bare  # noqa: S104  # a comparison


def _port(side_port: SidePort) -> int:
    if side_port.port:
        return side_port.port
    if not side_port.runtime_directory:
        raise ConfigurationError(
            "METRICS_PORT=0 and no RUNTIME_DIRECTORY: nothing says which port the worker picked",
            hint="Give the worker a METRICS_PORT, or set RUNTIME_DIRECTORY for it and for this command.",
        )
    path = os.path.join(side_port.runtime_directory, "port")  # noqa: PTH118  # pathlib costs more than the question
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123
            return int(file.read(16))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no number"
        raise terminal.FoundWantingError(
            f"no worker has written its port to {path}: {reason.lower()}", hint="Is a worker running?"
        ) from error


def _text(response: http.client.HTTPResponse, deadline: float) -> str:
    """Read a bounded answer; each read has the connection's limit, and all together the deadline."""
    parts: list[bytes] = []
    while (part := response.read1(_LONGEST_ANSWER)) and sum(map(len, parts)) < _LONGEST_ANSWER:
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
    return b"".join(parts).decode("utf-8", "replace")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
