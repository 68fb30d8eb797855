"""From the environment to a Config, or to one error that names everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, cast

from environs import Env, EnvValidationError

from gigaoffice_worker.config import rules
from gigaoffice_worker.config.building import build
from gigaoffice_worker.config.files import read_secret
from gigaoffice_worker.config.model import MASK, Config
from gigaoffice_worker.config.variables import BY_NAME, FILE_SUFFIX, VARIABLES, Setting, Variable
from gigaoffice_worker.core.errors import ConfigurationError


class _Environment(Env):
    """environs over the mapping that it is given rather than over the process's environment."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        super().__init__(eager=False)
        self._texts = texts
        for method, parse in {each.kind.method: each.kind.parse for each in VARIABLES}.items():
            if parse:
                self.add_parser(method, parse)

    def _get_value(self, env_key: str, default: object) -> object:
        return self._texts.get(env_key, default)


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Read and check the whole configuration; `environ` is the process's environment unless given.

    Raises ConfigurationError naming every wrong variable, with what is allowed.
    """
    given = _given(environ)
    texts, wrong_files = _texts(given)
    values, wrong_values = _parse(texts, skip=wrong_files.keys())
    wrong = [*wrong_files.values(), *wrong_values, *rules.problems(values)]
    if wrong:
        raise _error(wrong)
    return build(values, given, tuple(rules.warnings(values, given)))


def effective(environ: Mapping[str, str] | None = None) -> list[Setting]:
    """List every variable with the text that counts, right or wrong; secrets are masked."""
    given = _given(environ)
    return [_setting(variable, given) for variable in VARIABLES]


def _given(environ: Mapping[str, str] | None) -> dict[str, str]:
    source = os.environ if environ is None else environ
    return {name: text for name, text in source.items() if text}


def _texts(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return each known variable's text, secrets out of their files, and what is wrong with those by variable."""
    texts = {each.name: each.default for each in VARIABLES if each.default}
    wrong: dict[str, str] = {}
    for variable in VARIABLES:
        name, twin = variable.name, variable.name + FILE_SUFFIX
        if name in given:
            texts[name] = given[name] if variable.secret else given[name].strip()
        if variable.secret and twin in given:
            try:
                texts[name] = read_secret(given[twin])
            except (OSError, ValueError) as error:
                wrong[name] = f"{twin}={given[twin]!r}: {error}"
            if name in given:
                wrong[name] = f"{name} and {twin}: only one of them may be set"
    return texts, wrong


def _parse(texts: Mapping[str, str], skip: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values by name, None where nothing is set, and what is wrong with the others."""
    env = _Environment(texts)
    values: dict[str, Any] = {}
    for name, variable in BY_NAME.items():
        if name in skip:
            continue
        options = {"validate": variable.kind.check} if variable.kind.check else {}
        values[name] = getattr(env, variable.kind.method)(name, **options) if name in texts else None
    try:
        env.seal()
    except EnvValidationError as error:
        messages = cast("Mapping[str, list[str]]", error.error_messages)
        right = {name: value for name, value in values.items() if name not in messages}
        return right, [_complaint(BY_NAME[name], texts[name], messages[name]) for name in messages]
    return values, []


def _complaint(variable: Variable, text: str, messages: list[str]) -> str:
    shown = variable.name if variable.secret else f"{variable.name}={rules.short(text)}"
    return f"{shown}: {' and '.join(messages) if variable.kind.parse else f'must be {variable.allowed}'}"


def _error(wrong: list[str]) -> ConfigurationError:
    title = "1 setting is wrong" if len(wrong) == 1 else f"{len(wrong)} settings are wrong"
    return ConfigurationError(
        "\n  ".join([f"{title}:", *wrong]),
        hint="Mend the environment; `gigaoffice-worker check --offline` shows what each variable holds.",
    )


def _setting(variable: Variable, given: Mapping[str, str]) -> Setting:
    is_default = variable.name not in given and not (variable.secret and variable.name + FILE_SUFFIX in given)
    text = variable.default if is_default else given.get(variable.name, "").strip()
    return Setting(variable.name, MASK if variable.secret and not is_default else text or "none", is_default)
