"""Completions for bash, zsh and fish, written from the commands' outline."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from gigaoffice_worker.cli.outline import Option, Outline

_HEAD = "# Written from the parser of gigaoffice-worker: change that, not this."


def bash(program: Outline) -> str:
    """Return the completion for bash."""
    return "\n".join([_HEAD, *_bash(program), ""])


def _bash(program: Outline) -> Iterator[str]:
    commands = list(program.every())
    function = _function(program)
    yield f"{function}() {{"
    yield '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" path="" i'
    yield "    COMPREPLY=()"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield f'        case "${{COMP_WORDS[i]}}" in {"|".join(_with_values(commands))}) ((i++)); continue ;; esac'
    yield '        case "$path/${COMP_WORDS[i]}" in'
    yield f'            {"|".join(_path(each) for each in commands[1:])}) path="$path/${{COMP_WORDS[i]}}" ;;'
    yield "        esac"
    yield "    done"
    yield '    case "$path $previous" in'
    for command in commands:
        yield from _bash_values(command)
    yield "    esac"
    yield '    case "$path" in'
    for command in commands:
        words = [*(each.name for each in command.commands), *(flag for o in command.options for flag in o.flags)]
        words += [choice for o in command.options if not o.flags for choice in o.choices]
        yield f'        "{_path(command)}") COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$current")) ;;'
    yield "    esac"
    yield "}"
    yield f"complete -F {function} {program.name}"


def _with_values(commands: Iterable[Outline]) -> list[str]:
    """Return the flags behind which a word is no command."""
    options = (option for each in commands for option in each.options if option.value or option.choices)
    return sorted({flag for option in options for flag in option.flags})


def _bash_values(command: Outline) -> Iterator[str]:
    for option in command.options:
        if not option.flags or not (option.value or option.choices):
            continue
        patterns = "|".join(f'"{_path(command)} {flag}"' for flag in option.flags)
        if option.choices:
            found = f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$current")); '
        else:
            found = 'COMPREPLY=($(compgen -f -- "$current")); ' if option.takes_path else ""
        yield f"        {patterns}) {found}return ;;"


def zsh(program: Outline) -> str:
    """Return the completion for zsh."""
    lines = [f"#compdef {program.name}", _HEAD]
    for command in program.every():
        lines += _zsh(command)
    return "\n".join([*lines, f'{_function(program)} "$@"', ""])


def _zsh(command: Outline) -> Iterator[str]:
    yield f"{_function(command)}() {{"
    yield "    local context state line"
    yield "    typeset -A opt_args"
    arguments = [each for option in command.options for each in _zsh_option(option)]
    if command.commands:
        arguments += ["1: :->command", "*:: :->rest"]
    yield "    _arguments -C " + " ".join(map(shlex.quote, arguments))
    if command.commands:
        described = " ".join(shlex.quote(f"{each.name}:{each.summary}") for each in command.commands)
        yield "    case $state in"
        yield f"        command) local -a commands=({described}); _describe command commands ;;"
        branches = " ".join(f"{each.name}) {_function(each)} ;;" for each in command.commands)
        yield f"        rest) case $line[1] in {branches} esac ;;"
        yield "    esac"
    yield "}"


def _zsh_option(option: Option) -> Iterator[str]:
    meaning = _without(option.meaning or option.value, "[]:")
    action = f"({' '.join(option.choices)})" if option.choices else "_files" if option.takes_path else " "
    if not option.flags:
        yield f"*:{meaning}:{action}"
    for flag in option.flags:
        yield f"{flag}[{meaning}]" + (f":{option.value.lower()}:{action}" if option.value or option.choices else "")


def fish(program: Outline) -> str:
    """Return the completion for fish."""
    lines = [_HEAD, f"complete -c {program.name} -f"]
    for command in program.every():
        lines += _fish(program.name, command)
    return "\n".join([*lines, ""])


def _fish(name: str, command: Outline) -> Iterator[str]:
    seen = [f"__fish_seen_subcommand_from {word}" for word in command.words[1:]]
    below = " ".join(each.name for each in command.commands)
    condition = "; and ".join([*seen, *([f"not __fish_seen_subcommand_from {below}"] if below else [])]) or "true"
    start = f"complete -c {name} -n {shlex.quote(condition)}"
    for each in command.commands:
        yield f"{start} -a {each.name} -d {shlex.quote(each.summary)}"
    for option in command.options:
        yield from _fish_option(start, option)


def _fish_option(start: str, option: Option) -> Iterator[str]:
    values = f" -xa {shlex.quote(' '.join(option.choices))}" if option.choices else " -r" if option.takes_path else ""
    values = values or (" -x" if option.value else "")
    if not option.flags:
        if option.choices:
            yield f"{start} -a {shlex.quote(' '.join(option.choices))}"
        return
    spelled = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    files = " -F" if option.takes_path else ""
    yield f"{start} {spelled}{values}{files} -d {shlex.quote(option.meaning)}"


def _path(command: Outline) -> str:
    return "".join(f"/{word}" for word in command.words[1:])


def _function(command: Outline) -> str:
    return "_" + "_".join(command.words).replace("-", "_")


def _without(text: str, characters: Sequence[str]) -> str:
    return "".join(" " if each in characters else each for each in text)
