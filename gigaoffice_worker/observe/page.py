"""The status page: one file without outside resources, filled with the status document of the moment."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from typing import Any


def status_page(document: Mapping[str, Any]) -> str:
    """Return the page as HTML. A browser with scripts keeps it live; without them it shows this moment and reloads."""
    # Inside of a script element "<" is the only character that could end it.
    data = json.dumps(document, default=str).replace("<", "\\u003c")
    # In one go: what is filled in may itself read like a place to be filled.
    filling = {"__STATUS__": data, "__PLAIN__": _plain(document)}
    return re.sub("|".join(filling), lambda place: filling[place[0]], _template())


@lru_cache(maxsize=1)
def page_policy() -> str:
    """Return the page's Content-Security-Policy: its own script and styles by their hashes, questions to the worker."""

    def hashes(element: str) -> str:
        found = re.findall(rf"<{element}>(.*?)</{element}>", _template(), re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(sha256(each.encode()).digest()).decode()}'" for each in found)

    rules = {
        "default-src": "'none'",
        "script-src": hashes("script"),
        "style-src": hashes("style"),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


@lru_cache(maxsize=1)
def _template() -> str:
    return resources.files(__package__ or "gigaoffice_worker.observe").joinpath("page.html").read_text("utf-8")


def _plain(document: Mapping[str, Any]) -> str:
    ready = "ready" if document["ready"] else "not ready"
    totals = document["totals"]
    rows = [
        ("state", f"{document['state']}, {ready}"),
        *((f"why not ready ({number})", reason) for number, reason in enumerate(document["not_ready"], 1)),
        *document["requests"].items(),
        ("provider's limit", document["limits"]["in_words"]),
        ("shared gate", "closed" if document["gate"]["closed"] else "open"),
        ("storm guard", document["storm_guard"]["error_type"] if document["storm_guard"]["open"] else "quiet"),
        ("finished", _counts(totals["outcomes"])),
        ("dead letters", _counts(totals["dead_letters"])),
        *((f"tenant {each['tenant']}", f"{each['waiting']} waiting") for each in document["tenants"]),
        *((f"partition {each['partition']}", _partition(each)) for each in document["partitions"]),
        *((f"failure {number}", _failure(each)) for number, each in enumerate(document["failures"], 1)),
    ]
    cells = "".join(f"<tr><th>{html.escape(str(name))}<td>{html.escape(str(value))}</tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def _partition(row: Mapping[str, Any]) -> str:
    oldest = row["oldest"]
    behind = f", oldest unfinished {oldest['request_id'] or 'without id'} ({oldest['stage']})" if oldest else ""
    return f"lag {row['lag']}, position {row['position']}, committed {row['committed']}, paused {row['paused']}{behind}"


def _failure(kind: Mapping[str, Any]) -> str:
    place = f" at {kind['place']}" if kind["place"] else ""
    request = kind["request_id"] or "without id"
    return f"{kind['count']} times {kind['error_type']}{place}, the newest {kind['at']}: request {request}"
