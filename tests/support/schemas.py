"""What the worker writes in a test, held to the schemas that `gigaoffice-worker schema` prints."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from gigaoffice_worker.core.schemas import asyncapi, json_schema
from tests.support import wire

try:
    from jsonschema import Draft202012Validator
except ImportError:  # an environment made before it was needed
    Draft202012Validator = None


def check_response(record: wire.Rec, body: object) -> None:
    """Fail unless value and headers of a response are as their schemas say."""
    _check("response", body)
    _check("ResponseHeaders", _texts(record))


def check_dead_letter(record: wire.Rec) -> None:
    """Fail unless the headers of a dead letter are as their schema says."""
    _check("dead-letter", _texts(record))


def _check(name: str, found: object) -> None:
    if Draft202012Validator is not None:
        complaints = [error.message for error in _validator(name).iter_errors(found)]
        assert complaints == [], (name, found)


@lru_cache
def _validator(name: str) -> Any:
    if name != "ResponseHeaders":
        return Draft202012Validator(json_schema(name))
    components = asyncapi(version="", requests="", responses="", dead_letters="")["components"]
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


def _texts(record: wire.Rec) -> dict[str, str]:
    return {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
