"""A chat and its completion: one system prompt for each category, then the user's question with its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from gigaoffice_worker.core.errors import RejectedError

_COMMON = "You help people who work with spreadsheets. Answer briefly and in the language of the question."

# What follows the common part, by the request's category; another category, or none, adds nothing.
SYSTEM_PROMPTS: Mapping[str, str] = {
    "analysis": "Analyse the data and name the figures that your conclusions rest on.",
    "formula": "Answer with one spreadsheet formula and a sentence on what it does.",
    "generation": "Answer with a table as JSON: an array of rows, each an array of cells.",
    "transformation": "Answer with the changed data as JSON, in the shape in which it was given.",
    "chart": "Name the kind of chart that suits the data, and the ranges of its axes and series.",
}

Message = dict[str, str]
"""One message of a chat: its `role` and its `content`."""

_encode = msgspec.json.Encoder().encode


class Completion(NamedTuple):
    """What a model answered; `usage` counts tokens by kind."""

    answer: str
    model: str
    finish_reason: str
    usage: dict[str, int]


def chat(payload: Mapping[str, Any]) -> list[Message]:
    """Return the messages for a request.

    Raises RejectedError when `query` is no text, or `category` or `input_range` are neither text nor left out.
    """
    query = _text(payload, "query")
    if not query.strip():
        raise RejectedError("the field query must be a text that is not blank")
    category, where, data = _text(payload, "category"), _text(payload, "input_range"), payload.get("input_data")
    parts = [query]
    if where:
        parts.append(f"Range: {where}")
    if data is not None:
        parts.append(f"Data:\n{data if isinstance(data, str) else _encode(data).decode()}")
    return [
        {"role": "system", "content": f"{_COMMON} {SYSTEM_PROMPTS.get(category, '')}".rstrip()},
        {"role": "user", "content": "\n\n".join(parts)},
    ]


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if value is not None and not isinstance(value, str):
        raise RejectedError(f"the field {name} must be a text")
    return value or ""
