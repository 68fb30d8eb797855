"""From a model's answer to what the API service takes: a text, a spreadsheet document or a chart's configuration."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from gigaoffice_worker.handlers.prompts import Completion

_DOCUMENTS: Final = frozenset({"spreadsheet-generation", "spreadsheet-transformation", "spreadsheet-formatting"})
_CONFIGURATIONS: Final = frozenset({"data-chart", "data-histogram"})
_DOCUMENT_FIELDS: Final = ("worksheet", "data")
_CHART_FIELD: Final = "chart_type"
# What the service says of an answer that is not whole.
_CUT: Final = "length"
_REFUSED: Final = "blacklist"


class NotUsableError(ValueError):
    """The answer is no result; the message says why, in words that the model is told too."""


def result_of(category: str, answered: Completion) -> dict[str, Any]:
    """Return the result that an answer holds. Raises NotUsableError, with a message that quotes nothing."""
    if answered.finish_reason == _CUT:
        raise NotUsableError("the answer was cut off, because it was too long")
    if answered.finish_reason == _REFUSED:
        raise NotUsableError("the model refused to answer")
    text = answered.answer.strip()
    if not text:
        raise NotUsableError("the answer was empty")
    found = _json_in(text)
    if category in _CONFIGURATIONS:
        return _configuration(category, found)
    if _is_document(found):
        return dict(found)
    if category in _DOCUMENTS:
        raise NotUsableError(f"the answer was no JSON object with the fields {' and '.join(_DOCUMENT_FIELDS)}")
    return {"text_content": text}


def _configuration(category: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or not found:
        raise NotUsableError("the answer was no JSON object")
    if category == "data-chart" and _CHART_FIELD not in found:
        raise NotUsableError(f"the answer lacked the field {_CHART_FIELD}")
    return found


def _is_document(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(name), dict) for name in _DOCUMENT_FIELDS)


def _json_in(text: str) -> Any:
    """Return the first JSON object in a text, in whatever words and marks it is wrapped; None without one."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        return _decoder.raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and the infinities are no JSON


_decoder = json.JSONDecoder(parse_constant=_no_number)
