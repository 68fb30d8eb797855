"""The commands as data, read off the parser: what the manual page and the shells' completions are written from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from gigaoffice_worker.cli.entry import build_parser

_PATHS = ("FILE", "DIR")


class Option(NamedTuple):
    """`flags` is empty for what is given by its place; `value` is empty for what takes none."""

    flags: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    meaning: str

    @property
    def takes_path(self) -> bool:
        """Whether its value is the name of a file or directory."""
        return self.value in _PATHS


class Outline(NamedTuple):
    """A command: its words from the program's name on, what it says of itself, and the commands below it."""

    words: tuple[str, ...]
    summary: str
    description: str
    epilog: str
    usage: str
    options: tuple[Option, ...]
    commands: tuple[Outline, ...]

    @property
    def name(self) -> str:
        return self.words[-1]

    def every(self) -> Iterator[Outline]:
        """Yield this command and all below it."""
        yield self
        for each in self.commands:
            yield from each.every()


def outline() -> Outline:
    """Return the program's."""
    return _outline(build_parser(), (), "")


def _outline(parser: argparse.ArgumentParser, above: tuple[str, ...], summary: str) -> Outline:
    words = (*above, parser.prog.rpartition(" ")[2])
    commands: list[Outline] = []
    options: list[Option] = []
    for action in parser._actions:  # noqa: SLF001  # argparse has no public name for them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            said = {each.dest: each.help or "" for each in action._choices_actions}  # noqa: SLF001
            commands += [_outline(below, words, said.get(name, "")) for name, below in action.choices.items()]
        elif action.help != argparse.SUPPRESS:
            options.append(_option(action, parser))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    return Outline(
        words, summary, parser.description or "", parser.epilog or "", usage, tuple(options), tuple(commands)
    )


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> Option:
    value = "" if action.nargs == 0 else str(action.metavar or (action.dest if action.option_strings else "")).upper()
    meaning = parser._get_formatter()._expand_help(action) if action.help else ""  # noqa: SLF001
    return Option(tuple(action.option_strings), value, tuple(map(str, action.choices or ())), meaning)
