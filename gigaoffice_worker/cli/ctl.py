"""`gigaoffice-worker ctl`: says to a running worker what it shall do."""

from __future__ import annotations

import argparse
import json
import os
import socket

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.visible import visible

_SOCKET = "control.sock"
_LONGEST_ANSWER = 4096

_DESCRIPTION = """\
Speak to a running worker on this machine, over the socket control.sock in $RUNTIME_DIRECTORY (systemd sets it; for a
unit called gigaoffice-worker it is /run/gigaoffice-worker) or the one that --socket names. Only the worker's user and
root may. What is changed holds until the worker ends.
Exit code 0: done; 1: refused, or no worker answers.
"""


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    parser = commands.add("ctl", act, "tell a running worker: pause, resume, concurrency, log-level", _DESCRIPTION)
    parser.add_argument("--socket", metavar="FILE", help="the worker's control socket")
    orders = parser.add_subparsers(title="what to say", metavar="ORDER", dest="order", required=True)
    orders.add_parser("pause", help="take in no more requests; the group is not left", allow_abbrev=False)
    orders.add_parser("resume", help="take in requests again", allow_abbrev=False)
    concurrency = orders.add_parser("concurrency", help="handler calls at once", allow_abbrev=False)
    concurrency.add_argument("argument", metavar="N", help="1 to 1024")
    level = orders.add_parser("log-level", help="the least level that is logged", allow_abbrev=False)
    level.add_argument(
        "argument", metavar="LEVEL", type=str.upper, choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    )


def act(asked: argparse.Namespace) -> int:
    """Print what the worker answers; 0 if it did what was asked."""
    path = asked.socket or _socket_of_the_worker()
    answer = _ask(path, {"command": asked.order, "argument": getattr(asked, "argument", "")})
    if not answer.get("done"):
        raise terminal.FoundWantingError(f"the worker refused: {visible(str(answer.get('text')))}")
    print(visible(str(answer.get("text"))))
    return 0


def _socket_of_the_worker() -> str:
    # systemd separates several directories by colons; the first is the unit's own.
    directory = os.environ.get("RUNTIME_DIRECTORY", "").strip().partition(":")[0]
    if not directory:
        raise ConfigurationError(
            "RUNTIME_DIRECTORY is not set: nothing says where the worker's control socket is",
            hint="Set it as the worker has it (for a systemd unit /run/gigaoffice-worker), or give --socket FILE.",
        )
    return os.path.join(directory, _SOCKET)  # noqa: PTH118  # as in `health`, which must be quick


def _ask(path: str, question: dict[str, str]) -> dict[str, object]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10.0)
            connection.connect(path)
            connection.sendall(json.dumps(question).encode() + b"\n")
            received = b""
            while len(received) < _LONGEST_ANSWER and (part := connection.recv(_LONGEST_ANSWER)):
                received += part
        answer = json.loads(received)
    except PermissionError as error:
        raise terminal.FoundWantingError(
            f"this user may not speak to the worker at {path}", hint="Be root or the worker's own user (sudo -u …)."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise terminal.FoundWantingError(
            f"no worker answers at {path}: {reason.lower()}",
            hint="Is a worker running, with this RUNTIME_DIRECTORY? Without one it has no control socket.",
        ) from error
    return answer if isinstance(answer, dict) else {}
