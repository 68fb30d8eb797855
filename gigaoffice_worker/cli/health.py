"""`gigaoffice-worker health`: asks a running worker on this machine how it is."""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.visible import visible

if TYPE_CHECKING:
    from gigaoffice_worker.config import SidePort

READY = "/readyz"
LIVE = "/livez"
_LONGEST_ANSWER = 65_536

_DESCRIPTION = """\
Ask a running worker's /readyz, or /livez with --live, over the loopback interface, and print the answer.
METRICS_HOST and METRICS_PORT say where it listens; with METRICS_PORT=0 the port is read from $RUNTIME_DIRECTORY/port.
Exit code 0: the answer is good; 1: it is not, or there is none in time.
"""


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
    from gigaoffice_worker.config import load

    reply = ask(load().side_port, LIVE if asked.live else READY, asked.timeout)
    print("\n".join(map(visible, reply.text.rstrip().split("\n"))))
    return 0 if reply.good else 1


def ask(side_port: SidePort, path: str, timeout: float) -> Reply:
    """Return the answer of the worker here. Raises FoundWantingError when none comes in `timeout` seconds."""
    host, port = reachable_host(side_port.host), _port(side_port)
    deadline = time.monotonic() + timeout
    connection = http.client.HTTPConnection(host, port, timeout=timeout)  # which knows no proxies
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Reply(response.status, _text(response, deadline))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise terminal.FoundWantingError(
            f"no worker answers at http://{_bracketed(host)}:{port}{path}: {reason.lower()}",
            hint="Is a worker running here, with the same METRICS_HOST and METRICS_PORT? Its log says why it ended.",
        ) from error
    finally:
        connection.close()


def reachable_host(host: str) -> str:
    """Return the address at which a server bound to `host` is reached from this machine."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return bare  # a name
    if not address.is_unspecified:
        return bare
    return "127.0.0.1" if address.version == 4 else "::1"


def _port(side_port: SidePort) -> int:
    if side_port.port:
        return side_port.port
    if not side_port.runtime_directory:
        raise ConfigurationError(
            "METRICS_PORT=0 and no RUNTIME_DIRECTORY: nothing says which port the worker picked",
            hint="Give the worker a METRICS_PORT, or set RUNTIME_DIRECTORY for it and for this command.",
        )
    path = Path(side_port.runtime_directory, "port")
    try:
        return int(path.read_text(encoding="ascii"))
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
