"""A Kafka worker that answers GigaOffice requests: at least once, in order per key, in a pool of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gigaoffice_worker._version import __version__
from gigaoffice_worker.core.errors import RejectedError, TransientError
from gigaoffice_worker.core.records import Request

if TYPE_CHECKING:
    from gigaoffice_worker.worker import Worker

__all__ = ["RejectedError", "Request", "TransientError", "Worker", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Worker` on demand: a handler that needs only the exceptions must not load the Kafka client."""
    if name == "Worker":
        from gigaoffice_worker.worker import Worker  # noqa: PLC0415

        return Worker
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
