"""What settings of a topic would sooner or later hurt, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from gigaoffice_worker.broker.admin import MAX_MESSAGE_BYTES, TopicState
from gigaoffice_worker.broker.topics import dead_letter_limit
from gigaoffice_worker.config import TopicSpec

_CLEANUP: Final = "cleanup.policy"
_IN_SYNC: Final = "min.insync.replicas"
_RETENTION: Final = "retention.ms"
READ: Final = (MAX_MESSAGE_BYTES, _RETENTION, _CLEANUP, _IN_SYNC)
"""The settings that are looked at."""

_HOUR: Final = 3600.0
_DAY: Final = 24 * _HOUR
_SHORTEST: Final = {"requests": _DAY, "responses": _HOUR, "dlq": 7 * _DAY}
_LOSES: Final = {
    "requests": "requests that no worker was there to answer are lost",
    "responses": "a requester that was away misses its answer",
    "dlq": "that is the time to look at a dead letter and replay it",
}
# A failed response with the longest error text that the worker writes.
_SMALLEST_RESPONSE: Final = 64 * 1024


class Remark(NamedTuple):
    """What is wrong, and what to do; `fatal` where requests or dead letters will be lost or block."""

    text: str
    fatal: bool


def summary(settings: Mapping[str, str]) -> str:
    """Say what was found, in one line."""
    told = {name: f"{name} {settings[name]}" for name in READ if name in settings}
    if _RETENTION in told:
        told[_RETENTION] = f"retention {_duration(_retention(settings[_RETENTION]))}"
    return ", ".join(told.values())


def remarks(
    spec: TopicSpec, settings: Mapping[str, str], requests: Mapping[str, str], state: TopicState, largest_value: int
) -> Iterator[Remark]:
    """Yield what speaks against a topic's settings; `requests` are those of the request topic.

    `largest_value` is what a request's value may have once it is unpacked, in bytes.
    """
    yield from _compacted(spec, settings)
    yield from _too_small(spec, settings, requests, largest_value)
    yield from _kept_too_short(spec, settings)
    in_sync = int(settings.get(_IN_SYNC, 1))
    if spec.role != "requests" and in_sync > state.replication:
        text = f"No write with acks=all can succeed: set {_IN_SYNC} to {state.replication} or less, or add replicas."
        yield Remark(text, fatal=True)


def _compacted(spec: TopicSpec, settings: Mapping[str, str]) -> Iterator[Remark]:
    if "compact" not in settings.get(_CLEANUP, ""):
        return
    harm = "only the newest record of a key is kept, and records without a key are refused, which blocks the worker"
    if spec.role == "requests":
        harm = "requests are deleted unanswered when a newer one has their key"
    yield Remark(f"Set {_CLEANUP}=delete: with {settings[_CLEANUP]}, {harm}.", fatal=spec.role != "responses")


def _too_small(
    spec: TopicSpec, settings: Mapping[str, str], requests: Mapping[str, str], largest_value: int
) -> Iterator[Remark]:
    size, of_requests = int(settings.get(MAX_MESSAGE_BYTES, 0)), int(requests.get(MAX_MESSAGE_BYTES, 0))
    if spec.role == "dlq" and size < (needed := dead_letter_limit(of_requests, largest_value)):
        text = (
            f"Set {MAX_MESSAGE_BYTES} to {needed} or more: a dead letter is its request (up to {of_requests} bytes as "
            f"it comes, {largest_value} unpacked) with headers behind it, and one that does not fit blocks its "
            "partition."
        )
        # One that is refused is packed again, so only below the size of a packed request is there surely no room.
        yield Remark(text, fatal=size < of_requests)
    if spec.role == "responses" and size < _SMALLEST_RESPONSE:
        text = f"Set {MAX_MESSAGE_BYTES} to {_SMALLEST_RESPONSE} or more: even failed responses may not fit."
        yield Remark(text, fatal=False)


def _kept_too_short(spec: TopicSpec, settings: Mapping[str, str]) -> Iterator[Remark]:
    kept = _retention(settings.get(_RETENTION, "-1"))
    if 0 <= kept < (least := _SHORTEST[spec.role]):
        text = f"Set {_RETENTION} to {round(least * 1000)} ({_duration(least)}) or more: {_LOSES[spec.role]}."
        yield Remark(text, fatal=False)


def _retention(text: str) -> float:
    return int(text) / 1000


def _duration(seconds: float) -> str:
    if seconds < 0:
        return "without end"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"
