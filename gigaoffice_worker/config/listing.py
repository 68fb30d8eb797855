"""Every variable for people to read: what each holds now, and the table of the documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gigaoffice_worker.config.kinds import Variable
from gigaoffice_worker.config.loading import set_variables
from gigaoffice_worker.config.model import VARIABLES
from gigaoffice_worker.config.secret import MASK


class Setting(NamedTuple):
    """A variable as `check` shows it: secrets masked, `none` where nothing is set and there is no default."""

    name: str
    value: str
    is_default: bool


def effective(environ: Mapping[str, str] | None = None) -> list[Setting]:
    """List every variable with the text that counts, right or wrong; secrets are masked."""
    given = set_variables(environ)
    return [_setting(variable, given) for variable in VARIABLES]


def _setting(variable: Variable, given: Mapping[str, str]) -> Setting:
    is_default = variable.name not in given and not (variable.secret and variable.twin in given)
    text = variable.default if is_default else given.get(variable.name, "").strip()
    return Setting(variable.name, MASK if variable.secret and not is_default else text or "none", is_default)


def markdown_table() -> str:
    """Return all variables as a Markdown table, one row each, without a line break at its end."""
    return "\n".join(["| variable | default | allowed | meaning |", "|---|---|---|---|", *map(_row, VARIABLES)])


def _row(variable: Variable) -> str:
    twin = f", or a file in `{variable.twin}`" if variable.secret else ""
    default = f"`{variable.default}`" if variable.default else "none"
    return f"| `{variable.name}`{twin} | {default} | {variable.kind.allowed} | {variable.meaning} |"
