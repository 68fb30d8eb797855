"""`gigaoffice-worker try`: one request through a handler, without Kafka."""  # noqa: N999  # the command is called so

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gigaoffice_worker.cli import outgoing, terminal
from gigaoffice_worker.core.visible import visible, visible_json

if TYPE_CHECKING:
    from gigaoffice_worker.testing import DeadLetter, Response, Trial, Tried

_DESCRIPTION = """\
Run a handler on one request, as the worker would but without Kafka, and print the response, or the dead letter, as
JSON. What the handler prints and logs, and the traceback of what failed, go to standard error. HANDLER is what
WORKER_HANDLER takes; REQUEST is a JSON object, or plain text that becomes {"query": TEXT}; @FILE reads it from a file,
- or nothing from standard input. Exit code 0: completed; 1: not.
"""


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    parser = commands.add("try", act, "run a handler on one request, without Kafka", _DESCRIPTION)
    parser.add_argument("handler", metavar="HANDLER", help="echo, http, gigachat, or package.module:callable")
    parser.add_argument("request", nargs="?", metavar="REQUEST", help="a JSON object, plain text, @FILE, or -")
    parser.add_argument(
        "--attempts",
        type=terminal.whole_number,
        default=1,
        metavar="N",
        help="go through the retries, without their delays (default: %(default)s)",
    )


def act(asked: argparse.Namespace) -> int:
    """Try the handler; 0 if the request was completed."""
    from gigaoffice_worker.config import load
    from gigaoffice_worker.testing import NoOutcomeError, Response, trial

    config = load()
    request = outgoing.read_request(outgoing.given(asked.request))
    try:
        # Standard output is for the result alone.
        with terminal.command_logs(config, least=config.logs.level), contextlib.redirect_stdout(sys.stderr):
            tried = trial(
                asked.handler,
                request.value,
                key=request.id.encode(),
                max_attempts=asked.attempts,
                attempt_timeout=config.worker.attempt_timeout,
                config=config,
            )
    except NoOutcomeError as error:
        raise terminal.FoundWantingError(str(error)) from error
    _tell_what_failed(tried)
    try:
        text = visible_json(document(tried.outcome), indent=2 if sys.stdout.isatty() else None)
    except RecursionError as error:
        raise terminal.FoundWantingError("the response is nested too deeply to be printed") from error
    print(text, flush=True)
    return 0 if isinstance(tried.outcome, Response) and tried.outcome.completed else 1


def document(outcome: Response | DeadLetter) -> dict[str, Any]:
    """Return an outcome as JSON has it: its fields, and its headers as text."""
    # Field by field, not by `asdict`, which copies the result too: that may be nested as deeply as JSON can be.
    found = {each.name: getattr(outcome, each.name) for each in fields(outcome)}
    found["headers"] = {name: value.decode("utf-8", "backslashreplace") for name, value in outcome.headers.items()}
    if found.get("response") is not None:
        found["response"] = document(found["response"])
    return found


def _tell_what_failed(tried: Trial) -> None:
    former = ""
    for attempt in tried.attempts:
        told = _told(attempt)
        if told:
            same = told == former and len(tried.attempts) > 1
            terminal.say(f"attempt {attempt.number}: {'failed in the same way' if same else told}")
        former = told


def _told(attempt: Tried) -> str:
    """Return what an attempt failed of; its traceback begins where the handler's own code does."""
    failure = attempt.made.failure
    if failure is None:
        return ""
    at = f", at {failure.at}" if failure.at else ""
    title = f"{visible(failure.type)}: {visible(failure.message)}{at}"
    error = attempt.made.raised
    if error is None:
        return title
    worker = str(Path(__file__).parent.parent)
    raised = error.__traceback__
    while raised is not None and raised.tb_frame.f_code.co_filename.startswith(worker):
        raised = raised.tb_next
    if raised is None:  # it is the worker's own word for something
        return title
    try:
        lines = traceback.format_exception(type(error), error, raised)
    except Exception:  # noqa: BLE001  # an exception of the handler's own may fail in any way when looked at
        return title
    return "\n".join([title, *(visible(line) for line in "".join(lines).rstrip().split("\n"))])
