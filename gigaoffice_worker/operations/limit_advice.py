"""What the configured limits mean for a group of workers, and what about them would leave some of it unused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from gigaoffice_worker.config import Worker
from gigaoffice_worker.core.group_share import TOKEN_BURST, TOKEN_REFILL, useful_workers

_REPORT_NOTHING: Final = ("echo", "http")
"""Handlers that know nothing of tokens."""


def summary(worker: Worker, partitions: int) -> str:
    """Say what the limits come to with so many partitions of the request topic, in one line."""
    told = [_calls(worker, partitions)]
    if worker.group_rate:
        number, seconds = worker.group_rate
        pace = f", evenly one each {seconds / number:.3g} s" if number < partitions else ""
        told.append(f"at most {_so_many(number, 'call')} in {seconds} s in the group{pace}")
    if worker.group_tokens:
        number, seconds = worker.group_tokens
        told.append(
            f"at most {number} tokens in {seconds} s in the group, of which {number * TOKEN_REFILL:.0f} are planned "
            f"with and {number * TOKEN_BURST:.0f} may be spent at once"
        )
    if worker.adaptive:
        told.append("fewer while the provider refuses more (WORKER_ADAPTIVE)")
    return "; ".join(told)


def _calls(worker: Worker, partitions: int) -> str:
    limit, threads = worker.group_concurrency, worker.concurrency
    if limit is None:
        return f"at most {_so_many(threads, 'call')} at once in each worker, and {_useful(partitions)}"
    told = (
        f"at most {_so_many(limit, 'call')} at once in the group; with {_so_many(partitions, 'partition')} "
        f"at most {_useful(useful_workers(partitions, limit))}"
    )
    if threads > limit:
        told += f"; WORKER_CONCURRENCY={threads} leaves {_so_many(threads - limit, 'thread')} idle"
    return told


def remarks(worker: Worker, partitions: int) -> Iterator[str]:
    """Yield what leaves some of a limit unused, each with what to do."""
    limit, threads = worker.group_concurrency, worker.concurrency
    if limit is not None and limit < partitions:
        yield (
            f"{_so_many(limit, 'call')} for {partitions} partitions: they take turns of at least a minute, and a "
            f"worker waits while none of its own has one. Run at most {_so_many(limit, 'worker')}, or have no more "
            f"than {_so_many(limit, 'partition')}."
        )
    if limit is not None and partitions * threads < limit:
        yield (
            f"A worker for each of the {partitions} partitions makes {partitions * threads} calls at once, and "
            f"WORKER_GROUP_CONCURRENCY is {limit}: set WORKER_CONCURRENCY to {math.ceil(limit / partitions)} or more."
        )
    if worker.group_tokens and worker.handler in _REPORT_NOTHING:
        yield (
            f"WORKER_GROUP_TOKENS has no effect: the handler {worker.handler} reports no tokens. Use "
            "WORKER_GROUP_RATE, or a handler that calls request.usage()."
        )


def _useful(workers: int) -> str:
    return f"{_so_many(workers, 'worker')} {'is' if workers == 1 else 'are'} useful"


def _so_many(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
