"""From a request of the API service to a chat: a system prompt and examples for its category, then its question."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gigaoffice_worker.core.errors import RejectedError
from gigaoffice_worker.handlers.environment import Environment

CATEGORIES: Final = (
    "spreadsheet-generation",
    "spreadsheet-analysis",
    "spreadsheet-transformation",
    "spreadsheet-search",
    "spreadsheet-formatting",
    "spreadsheet-assistance",
    "data-chart",
    "data-histogram",
)
DEFAULT: Final = "spreadsheet-assistance"
"""The category of a request that names none."""

_VARIABLE: Final = "GIGACHAT_PROMPTS"
_SYSTEM_PROMPT: Final = "system_prompt.txt"
_MOST_EXAMPLES: Final = 3
_JSON_TEXT: Final = re.compile(r"\s*[\[{]")

Message = dict[str, str]
"""One message of a chat: its `role` and its `content`."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Completion(NamedTuple):
    """What a model answered; `usage` counts tokens by kind. Without `has_answer` there are only those."""

    answer: str
    model: str
    finish_reason: str
    usage: dict[str, int]
    has_answer: bool = True


class Chat(NamedTuple):
    """A request as the model is asked it."""

    category: str
    messages: list[Message]


class Prompts:
    """What stands before the question, for each category: a system prompt, and up to three examples as a dialogue."""

    def __init__(self, env: Environment) -> None:
        """Read the prompts below GIGACHAT_PROMPTS, and for what it lacks those that come with the worker."""
        directory = env.directory(_VARIABLE)
        self._before = {category: _messages(env, directory, category) for category in CATEGORIES}

    def chat(self, payload: Mapping[str, Any]) -> Chat:
        """Return the chat for a request.

        Raises RejectedError when `query` is no text, `category` is none of ours, or `input_range` is no text.
        """
        query = _text(payload, "query")
        if not query.strip():
            raise RejectedError("the field query must be a text that is not blank")
        category = _text(payload, "category") or DEFAULT
        if category not in self._before:
            raise RejectedError(f"the category must be one of {', '.join(CATEGORIES)}")
        question = _question(query, _text(payload, "input_range"), unwrapped(payload.get("input_data")))
        return Chat(category, [*self._before[category], {"role": "user", "content": question}])


def unwrapped(data: Any) -> Any:
    """Return the data of a request with JSON texts inside of it decoded; a list of one part is that part.

    The API service sends `[{"spreadsheet_data": "{…}", "required_table_info": "{…}"}]`.
    """
    if not isinstance(data, list):
        return data
    parts = [
        {name: _decoded(value) for name, value in part.items()} if isinstance(part, dict) else part for part in data
    ]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], dict) else parts


def _decoded(value: Any) -> Any:
    if not isinstance(value, str) or not _JSON_TEXT.match(value):
        return value
    try:
        return _decode(value)
    except (ValueError, RecursionError):  # a text that only begins like JSON
        return value


def _question(query: str, where: str, data: Any) -> str:
    parts = [query]
    if where:
        parts.append(f"Range: {where}")
    if data is not None:
        parts.append(f"Data:\n{data if isinstance(data, str) else _encode(data).decode()}")
    return "\n\n".join(parts)


def _messages(env: Environment, directory: Path | None, category: str) -> list[Message]:
    own = directory / category if directory is not None else None
    text = _read(env, own / _SYSTEM_PROMPT) if own is not None and (own / _SYSTEM_PROMPT).exists() else None
    if text is None:
        text = (files(__package__) / "prompt_texts" / category / _SYSTEM_PROMPT).read_text("utf-8")
    messages = [{"role": "system", "content": text.strip()}]
    for path in sorted(own.glob("example_*.y*ml"))[:_MOST_EXAMPLES] if own is not None else ():
        messages += _example(env, path)
    return messages


def _example(env: Environment, path: Path) -> list[Message]:
    """Return an example as the user's question and the model's answer."""
    try:
        import yaml  # noqa: PLC0415  # whoever has no examples needs no YAML
    except ModuleNotFoundError:
        env.wrong(f"{_VARIABLE}: examples need the package PyYAML")
        return []
    content = _read(env, path)
    try:
        found = yaml.safe_load(content or "")
        task, answer = found["task"], found["response_table"]
        table = found.get("request_table")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        env.wrong(f"{_VARIABLE}: {path}: must hold task and response_table ({type(error).__name__})")
        return []
    question = _question(str(task).strip(), "", _decoded(table))
    return [{"role": "user", "content": question}, {"role": "assistant", "content": str(answer).strip()}]


def _read(env: Environment, path: Path) -> str | None:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        env.wrong(f"{_VARIABLE}: {path} cannot be read: {type(error).__name__}")
        return None


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if value is not None and not isinstance(value, str):
        raise RejectedError(f"the field {name} must be a text")
    return value or ""
