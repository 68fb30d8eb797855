"""`gigaoffice-worker schema`: what travels over the topics, for programs."""

from __future__ import annotations

import argparse
import json

from gigaoffice_worker._version import __version__
from gigaoffice_worker.cli import terminal

_ASYNCAPI = "asyncapi"

_DESCRIPTION = """\
Print a JSON Schema: of a request's value, of a response's value, or of the headers of a dead letter (whose key and
value are those of the request). `asyncapi` prints all of it, with the topics of the configuration, as AsyncAPI 3.
"""


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    from gigaoffice_worker.core.schemas import NAMES

    parser = commands.add("schema", act, "print what requests and responses look like, as JSON Schema", _DESCRIPTION)
    parser.add_argument("what", choices=[*NAMES, _ASYNCAPI], help="%(choices)s")


def act(asked: argparse.Namespace) -> int:
    """Print what is asked for."""
    from gigaoffice_worker.core.schemas import asyncapi, json_schema

    if asked.what != _ASYNCAPI:
        print(json.dumps(json_schema(asked.what), indent=2))
        return 0
    from gigaoffice_worker.config import load

    topics = load().topics
    names = {"requests": topics.requests.name, "responses": topics.responses.name, "dead_letters": topics.dlq.name}
    print(json.dumps(asyncapi(version=__version__, **names), indent=2))
    return 0
