"""Waiting for what other threads and processes do, with a limit instead of a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    question: Callable[[], T],
    what: str,
    *,
    timeout: float = 20.0,
    interval: float = 0.05,
    state: Callable[[], str] = str,
) -> T:
    """Ask until the answer is truthy and return it; AssertionError naming `what` after `timeout` seconds.

    It also tells the `state` that things are in then.
    """
    deadline = time.monotonic() + timeout
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"did not happen within {timeout:g} s: {what}; last answer: {answer!r}\n{state()}".rstrip()
            )
        time.sleep(interval)
    return answer
