"""The command line: which command is asked for, with which environment, and how its failures end."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module

from gigaoffice_worker._version import __version__
from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import ConfigurationError, WorkerError

INTERRUPTED = 130  # what a shell reports of a program that SIGINT ended
FAILED = 1
WRONG_USAGE = 2

COMMANDS = ("run", "check", "topics", "try", "health", "ctl", "send", "dlq", "dev", "schema")
"""Each is a module here. Only the one that is asked for is imported: `health` runs every few seconds."""

_EPILOG = """\
Everything is configured by environment variables; `gigaoffice-worker check --offline` lists them with their values.

exit codes: 0 done; 1 found wanting or unexpected error; 2 wrong usage; 69 cluster not reachable;
  70 work abandoned; 77 authentication or authorization; 78 configuration
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (those of the process unless given) ask for, and return its exit code.

    Wrong usage raises SystemExit(2) after a message, `--help` and `--version` SystemExit(0), as argparse does.
    """
    _never_fail_to_print()
    try:
        return _outcome(arguments)
    except WorkerError as error:
        terminal.report(error)
        return error.exit_code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            terminal.say("")  # behind the ^C and whatever line it stands in
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone
        return FAILED
    except OSError as error:  # a full disk, mostly: never a fault of ours that a traceback would help to find
        terminal.report(WorkerError(f"reading or writing failed: {_reason(error)}"))
        return FAILED
    finally:
        _drop_what_is_not_taken()


def _outcome(arguments: Sequence[str] | None) -> int:
    parser = build_parser(_named(sys.argv[1:] if arguments is None else arguments))
    try:
        asked = parser.parse_args(arguments)
    except SystemExit:
        sys.stdout.flush()  # the help may not have been taken
        raise
    if "act" not in asked:
        parser.print_help(sys.stderr)
        return WRONG_USAGE
    if asked.command != "health":  # a container may ask for its health from wherever it stands
        _refuse_a_deleted_directory()
    if asked.env_file is not None:
        _take_over(asked.env_file)
    code = int(asked.act(asked))
    sys.stdout.flush()
    return code


def _reason(error: OSError) -> str:
    """Return what the system said, and of which file."""
    said = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {said}" if error.filename else said


def _named(arguments: Sequence[str]) -> Sequence[str]:
    """Return the command that is named, or all of them where none is."""
    words = iter(arguments)
    for word in words:
        if word == "--env-file":
            next(words, None)
        elif not word.startswith("-"):
            return [word] if word in COMMANDS else COMMANDS
    return COMMANDS


def build_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of these commands."""
    parser = argparse.ArgumentParser(
        prog="gigaoffice-worker",
        description="A Kafka worker that answers GigaOffice requests.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gigaoffice-worker {__version__}")
    _add_env_file(parser, default=None)
    everywhere = argparse.ArgumentParser(add_help=False)
    _add_env_file(everywhere, default=argparse.SUPPRESS)  # else it would undo what stands before the command
    commands = terminal.Commands(parser.add_subparsers(title="commands", metavar="COMMAND", dest="command"), everywhere)
    for name in names:
        import_module(f"{__package__}.{name}").add(commands)
    return parser


def _add_env_file(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--env-file",
        metavar="FILE",
        default=default,
        help="read NAME=value lines; variables that are set in the environment win over them",
    )


def _take_over(path: str) -> None:
    """Put a file's variables into the process's environment, where neither they nor their `_FILE` twins are set.

    Into the environment, not past it, because handlers and child processes read it too.
    """
    from gigaoffice_worker.config import read_env_file

    os.environ.update(environment_additions(read_env_file(path), os.environ))


def environment_additions(found: Mapping[str, str], real: Mapping[str, str]) -> dict[str, str]:
    """Return what a file adds to the real environment."""
    from gigaoffice_worker.config.files import FILE_SUFFIX

    def is_set(name: str) -> bool:
        twin = name.removesuffix(FILE_SUFFIX) if name.endswith(FILE_SUFFIX) else name + FILE_SUFFIX
        return bool(real.get(name) or real.get(twin))

    return {name: value for name, value in found.items() if not is_set(name)}


def _refuse_a_deleted_directory() -> None:
    """Raise ConfigurationError where the working directory is gone: whatever looks for a file would fail obscurely."""
    try:
        os.getcwd()  # noqa: PTH109  # only whether there is one
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the working directory was deleted while this shell or service stood in it",
            hint="Change into a directory that exists (`cd /`; for a service: WorkingDirectory=) and start again.",
        ) from error


def _never_fail_to_print() -> None:
    """Print what the terminal's encoding lacks as an escape, and nothing where an output was closed before us.

    Neither a name, nor a tick, nor `>&-` may end a command.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115  # for as long as we live
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_what_is_not_taken() -> None:
    """Empty the outputs, into nothing where they refuse it: the interpreter would try again, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "w") as nothing:  # noqa: PTH123
                os.dup2(nothing.fileno(), stream.fileno())
        except ValueError:  # it was closed, and has nothing left
            continue
