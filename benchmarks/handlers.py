"""What every contestant does with a request: call as long as the payload says, and tell when it did.

The call is a sleep, or with PROVIDER_URL in the environment one of the model of a provider.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from typing import Any

from gigaoffice_worker import Request, TransientError

_PROVIDER = os.environ.get("PROVIDER_URL")


class RefusedError(Exception):
    """The provider refused a call for its limit; `retry_after` in seconds, where it said so."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__("the provider refused the call")
        self.retry_after = retry_after


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    """Call for the payload's `seconds` and return the request's number with the call's start and end.

    The moments are seconds of the monotonic clock, which all processes of a machine share. Raises RefusedError.
    """
    started = time.monotonic()
    if seconds := payload["seconds"]:
        _call(seconds)
    return {"number": payload["number"], "started": started, "ended": time.monotonic()}


def _call(seconds: float) -> None:
    if _PROVIDER is None:
        time.sleep(seconds)
        return
    try:
        urllib.request.urlopen(f"{_PROVIDER}{seconds}", timeout=seconds + 10.0).close()  # noqa: S310  # our own
    except urllib.error.HTTPError as error:
        with error:
            said = error.headers["Retry-After"]
        raise RefusedError(float(said) if said else None) from None


def handle(request: Request) -> dict[str, Any]:
    """Answer as a handler of this worker."""
    try:
        return answer(request.payload)
    except RefusedError as error:
        raise TransientError(str(error), retry_after=error.retry_after, shared=True) from None
