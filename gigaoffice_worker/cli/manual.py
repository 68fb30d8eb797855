"""The manual page, written from the parser and the table of variables.

`python -m gigaoffice_worker.cli.manual DIRECTORY` writes it and the shells' completions below DIRECTORY as they lie
below /usr/share. systemd/install.sh runs it; `make manual` does for the files that the repository carries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from gigaoffice_worker._version import __version__
from gigaoffice_worker.cli import completion
from gigaoffice_worker.cli.outline import Option, Outline, outline
from gigaoffice_worker.config import VARIABLES

_NAME = "gigaoffice-worker"
_FILES = {
    "/etc/gigaoffice-worker.env": "the environment of the unit gigaoffice-worker.service",
    "$RUNTIME_DIRECTORY/control.sock": "where ctl speaks to the worker, mode 0600",
    "$RUNTIME_DIRECTORY/port": "the side port that the worker picked, with METRICS_PORT=0",
}
_SIGNALS = {
    "SIGTERM, SIGINT": "take no new work, finish what is in flight, commit, leave the group, end; again: end at once",
    "SIGHUP": "ignored",
}


def files() -> dict[str, str]:
    """Return every generated file, by its path below /usr/share."""
    program = outline()
    return {
        f"man/man1/{_NAME}.1": manual_page(program),
        f"bash-completion/completions/{_NAME}": completion.bash(program),
        f"zsh/site-functions/_{_NAME}": completion.zsh(program),
        f"fish/vendor_completions.d/{_NAME}.fish": completion.fish(program),
    }


def manual_page(program: Outline) -> str:
    """Return the page in troff's language."""
    return "\n".join([*_page(program), ""])


def _page(program: Outline) -> Iterator[str]:
    yield f'.TH GIGAOFFICE\\-WORKER 1 "" "gigaoffice\\-worker {__version__}" "User Commands"'
    yield from (".SH NAME", rf"{_escaped(_NAME)} \- {_escaped(program.description.rstrip('.'))}")
    yield from (".SH SYNOPSIS", f".B {_escaped(_NAME)}", r"[\-\-env\-file FILE] COMMAND [OPTIONS]")
    yield from (".SH DESCRIPTION", *_text(program.epilog))
    yield ".SH OPTIONS"
    for option in program.options:
        yield from _option(option)
    yield ".SH COMMANDS"
    for command in program.commands:
        for each in command.every():
            yield from _command(each)
    yield from (".SH ENVIRONMENT", "Every secret NAME can be given as a file in NAME_FILE instead.")
    for variable in VARIABLES:
        default = f" (default: {variable.default})" if variable.default else ""
        yield from _item(variable.name, f"{variable.meaning}; {variable.kind.allowed}{default}")
    for title, items in (("SIGNALS", _SIGNALS), ("FILES", _FILES)):
        yield f".SH {title}"
        for name, meaning in items.items():
            yield from _item(name, meaning)


def _command(command: Outline) -> Iterator[str]:
    yield f".SS {_escaped(' '.join(command.words[1:]))}"
    yield from (".nf", f".B {_escaped(command.usage)}", ".fi", ".PP")
    yield from _text(command.description or f"{command.summary}.")
    for option in command.options:
        if option.flags[:1] not in {("-h",), ("--env-file",)}:  # those of the program
            yield from _option(option)


def _option(option: Option) -> Iterator[str]:
    name = ", ".join(option.flags) or option.value or "|".join(option.choices)
    choices = "|".join(option.choices)
    value = f" {choices or option.value}" if option.flags and (choices or option.value) else ""
    yield from _item(name + value, option.meaning)


def _item(name: str, meaning: str) -> Iterator[str]:
    yield from (".TP", f".B {_escaped(name)}", _escaped(meaning) or r"\&")


def _text(text: str) -> Iterator[str]:
    for line in text.strip().splitlines():
        yield _escaped(line.strip()) if line.strip() else ".PP"


def _escaped(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace('"', r"\(dq")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(arguments: list[str]) -> int:
    """Write the files below the directory that is given."""
    (directory,) = arguments
    for path, text in files().items():
        target = Path(directory, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
