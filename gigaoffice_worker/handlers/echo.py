"""The handler that gives the request back: for trying the worker, and for measuring it."""

from __future__ import annotations

from typing import Any

from gigaoffice_worker.core.records import Request


def handle(request: Request) -> dict[str, Any]:
    """Return the request's payload."""
    return request.payload
