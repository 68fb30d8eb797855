"""The manual page and the completions: each by the program that reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gigaoffice_worker.cli import manual
from gigaoffice_worker.cli.entry import COMMANDS
from gigaoffice_worker.config import VARIABLES

FILES = manual.files()
MANUAL, BASH, ZSH, FISH = FILES


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(program), reason=f"needs {program}")


def written(directory: Path, path: str) -> Path:
    file = directory / "completion"
    file.write_text(FILES[path], encoding="utf-8")
    return file


def said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_page_names_every_command_and_every_variable() -> None:
    page = FILES[MANUAL].replace("\\-", "-")
    for name in COMMANDS:
        assert f"\n.SS {name}" in page
    for variable in VARIABLES:
        assert f"\n.B {variable.name}\n" in page


@needs("man")
def test_the_page_can_be_read(tmp_path) -> None:
    page = tmp_path / "gigaoffice-worker.1"
    page.write_text(FILES[MANUAL], encoding="utf-8")
    shown = said("env", "MANROFFOPT=-Tutf8", "MANPAGER=cat", "man", "--warnings=w", "-l", str(page))
    assert "METRICS_PORT" in shown
    assert "SIGHUP" in shown


def completed_by_bash(file: Path, *words: str) -> list[str]:
    array = " ".join(f"'{word}'" for word in words)
    script = (
        f"source {file}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _gigaoffice_worker; "
        'for each in "${COMPREPLY[@]}"; do echo "$each"; done'
    )
    return said("bash", "-c", script).split()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["che"], ["check"]),
        (["check", "--o"], ["--offline"]),
        (["dlq", "re"], ["replay"]),
        (["dlq", "replay", "--dr"], ["--dry-run"]),
        (["--env-file", "run", "dlq", "sh"], ["show"]),
        (["dlq", "list", "--reason", "re"], ["rejected", "response-too-large"]),
        (["ctl", "log-level", "W"], ["WARNING"]),
        (["health", "--timeout", "1"], []),
    ],
)
def test_bash_completes(tmp_path, words, expected) -> None:
    assert completed_by_bash(written(tmp_path, BASH), "gigaoffice-worker", *words) == expected


def test_bash_completes_the_names_of_files(tmp_path) -> None:
    (tmp_path / "worker.env").touch()
    typed = str(tmp_path / "wor")
    assert completed_by_bash(written(tmp_path, BASH), "gigaoffice-worker", "--env-file", typed) == [f"{typed}ker.env"]


@needs("fish")
@pytest.mark.parametrize(
    "line, expected",
    [
        ("gigaoffice-worker che", ["check"]),
        ("gigaoffice-worker dlq re", ["replay"]),
        ("gigaoffice-worker dlq replay --dr", ["--dry-run"]),
        ("gigaoffice-worker dlq list --reason rej", ["rejected"]),
        ("gigaoffice-worker ctl log-level W", ["WARNING"]),
    ],
)
def test_fish_completes(tmp_path, line, expected) -> None:
    found = said("fish", "--no-config", "-c", f"source {written(tmp_path, FISH)}; complete -C '{line}'")
    assert [each.partition("\t")[0] for each in found.splitlines()] == expected


ZSH_SESSION = r"""
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z 'PS1= ; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D'
zpty -w z 'fpath=({fpath} $fpath); autoload -Uz _gigaoffice-worker; compdef _gigaoffice-worker gigaoffice-worker'
zpty -w z 'tell() {{ zle complete-word; print -r -- "<""<$BUFFER>>"; }}; zle -N tell; bindkey "^T" tell'
zpty -w -n z '{line}'$'\C-t'
zpty -r -m z shown '*<<*>>*'
print -r -- $shown
"""


@needs("zsh")
@pytest.mark.parametrize(
    "line, expected",
    [("che", "check"), ("dlq re", "replay"), ("dlq replay --dr", "--dry-run"), ("ctl log-level W", "WARNING")],
)
def test_zsh_completes(tmp_path, line, expected) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "_gigaoffice-worker").write_text(FILES[ZSH], encoding="utf-8")
    script = ZSH_SESSION.format(fpath=functions, line=f"gigaoffice-worker {line}")
    completed = re.findall("<<(.*)>>", said("zsh", "-f", "-c", script))
    assert completed[-1].split()[-1] == expected
