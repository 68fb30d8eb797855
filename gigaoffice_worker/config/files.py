"""The files that the environment names: an environment file, secrets, certificates."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from dotenv.parser import Binding, parse_stream

from gigaoffice_worker.core.errors import ConfigurationError

FILE_SUFFIX: Final = "_FILE"
"""What a secret's variable is followed by in the name of the one that gives the secret as a file."""

LARGEST_SECRET: Final = 65_536
LARGEST_ENV_FILE: Final = 1_048_576


def read_env_file(path: str) -> dict[str, str]:
    """Read `NAME=value` lines, of which the last one of a name counts.

    Comments, quotes and `export` are understood; `$` stands for itself. Raises ConfigurationError if the file cannot
    be read or a line is none of these; it never shows the line, which may hold a secret.
    """
    bindings = list(parse_stream(io.StringIO(_content(path))))
    wrong = [str(_line(each)) for each in bindings if _is_wrong(each)]
    if wrong:
        raise ConfigurationError(
            f"{path}: line {', '.join(wrong)} is not NAME=value",
            hint="Comments start with #; a value with blanks or # in it belongs in quotes. No name has = in it, and "
            "nothing a NUL character.",
        )
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}


def _content(path: str) -> str:
    try:
        content = _read(path, LARGEST_ENV_FILE)
    except ValueError as error:
        raise ConfigurationError(f"the environment file {path!r}: {error}") from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        # Without its cause: that would quote the content.
        raise ConfigurationError(f"the environment file {path} is not UTF-8 text") from None


def _is_wrong(binding: Binding) -> bool:
    """Say whether a statement is none, or sets what no environment takes."""
    if binding.key is None:
        return binding.error
    return binding.value is None or "=" in binding.key or "\0" in binding.key + binding.value


def _line(binding: Binding) -> int:
    """Return the line that the statement itself is on: the parser counts the empty lines before it to it."""
    statement = binding.original.string
    return binding.original.line + statement[: len(statement) - len(statement.lstrip())].count("\n")


def read_secret(path: str) -> str:
    """Read a secret's file without its last line break. Raises ValueError saying what must be mended."""
    try:
        text = _read(path, LARGEST_SECRET).decode("utf-8")
    except UnicodeDecodeError:
        # Without its cause: that would quote the content.
        raise ValueError("must hold UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("must not be empty")
    return text


def _read(path: str, most: int) -> bytes:
    """Read a file that must be a regular one: others hang or never end. Raises ValueError saying what to mend."""
    if trouble := file_trouble(path):
        raise ValueError(trouble)
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"must hold at most {most} bytes")
    return content


def file_trouble(path: str) -> str:
    """Return why a file cannot be read, or nothing."""
    try:
        if not path or not Path(path).exists():  # to pathlib, nothing is the working directory
            return "there is no such file"
        if not Path(path).is_file():
            return "must be a regular file"
        with Path(path).open("rb"):
            return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "must be the path of a readable file"
