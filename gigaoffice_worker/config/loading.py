"""From the environment to a Config, or to one error that names everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, cast

from environs import Env, EnvValidationError

from gigaoffice_worker.config import rules
from gigaoffice_worker.config.files import FILE_SUFFIX, read_secret
from gigaoffice_worker.config.kinds import Variable
from gigaoffice_worker.config.model import BY_NAME, SECTIONS, VARIABLES, Config, TopicSpec
from gigaoffice_worker.core.errors import ConfigurationError


class _Environment(Env):
    """environs over the mapping that it is given rather than over the process's environment."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        super().__init__(eager=False)
        self._texts = texts
        self.add_parser("ours", lambda text, parse: parse(text))

    def _get_value(self, env_key: str, default: object) -> object:
        return self._texts.get(env_key, default)

    def parse(self, variable: Variable) -> Any:
        """Return the variable's value, or None if its text is wrong, which `seal` tells."""
        kind = variable.kind
        if callable(kind.parse):
            return self.ours(variable.name, parse=kind.parse)
        return getattr(self, kind.parse)(variable.name, validate=kind.check)


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Read and check the whole configuration; `environ` is the process's environment unless given.

    Raises ConfigurationError naming every wrong variable, with what is allowed.
    """
    given = set_variables(environ)
    texts, wrong_files = _texts(given)
    values, wrong_values = _parse(texts, skip=wrong_files.keys())
    wrong = [*wrong_files.values(), *wrong_values, *rules.problems(values)]
    if wrong:
        raise _error(wrong)
    sections = {name: _filled(section, values, given) for name, section in SECTIONS.items()}
    return Config(**sections, warnings=tuple(rules.warnings(values, given)))


def set_variables(environ: Mapping[str, str] | None) -> dict[str, str]:
    """Return what is set, known or not: an empty variable counts as unset."""
    source = os.environ if environ is None else environ
    return {name: text for name, text in source.items() if text}


def _texts(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return each known variable's text, secrets out of their files, and what is wrong with those by variable."""
    texts = {each.name: each.default for each in VARIABLES if each.default}
    wrong: dict[str, str] = {}
    for variable in VARIABLES:
        name, twin = variable.name, variable.twin
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
    values = {
        name: env.parse(variable) if name in texts else None for name, variable in BY_NAME.items() if name not in skip
    }
    try:
        env.seal()
    except EnvValidationError as error:
        messages = cast("Mapping[str, list[str]]", error.error_messages)
        right = {name: value for name, value in values.items() if name not in messages}
        return right, [_complaint(BY_NAME[name], texts[name], messages[name]) for name in messages]
    return values, []


def _complaint(variable: Variable, text: str, messages: list[str]) -> str:
    shown = variable.name if variable.secret else f"{variable.name}={rules.short(text)}"
    ours = callable(variable.kind.parse)
    return f"{shown}: {' and '.join(messages) if ours else f'must be {variable.kind.allowed}'}"


def _error(wrong: list[str]) -> ConfigurationError:
    title = "1 setting is wrong" if len(wrong) == 1 else f"{len(wrong)} settings are wrong"
    return ConfigurationError(
        "\n  ".join([f"{title}:", *wrong]),
        hint="Mend the environment; `gigaoffice-worker check --offline` shows what each variable holds.",
    )


def _filled(section: Any, values: Mapping[str, Any], given: Mapping[str, str]) -> Any:
    """Return a section of the configuration, each field from what it is declared to hold."""
    arguments: dict[str, Any] = {}
    for each in fields(section):
        match each.metadata:
            case {"file_of": secret}:
                arguments[each.name] = given.get(secret + FILE_SUFFIX)
            case {"role": role, "variables": variables}:
                arguments[each.name] = TopicSpec(role, *(variable.field_value(values) for variable in variables))
            case {"variables": (variable,)}:
                arguments[each.name] = variable.field_value(values)
    return section(**arguments)
