"""Holds what a run left behind against the guarantees: what was lost, repeated, doubled, and what must never happen.

A request says in its payload what is to become of it: `"expect"` is `completed`, `failed` (the handler's own "no") or
the reason of a dead letter. A value that is no JSON object ends as `invalid-request`.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

from gigaoffice_worker.core.commit_map import CommitMap, CommitMapError
from gigaoffice_worker.core.journal import split_metadata
from tests.chaos.evidence import Evidence, Place, Sample
from tests.support.wire import Rec
from tests.support.workers import Call

FIELDS = {"request_id", "status", "result", "error", "processing_time", "timestamp"}
SHOWN = 12
NEVER = 1 << 62


class Expected(NamedTuple):
    """What must become of a request. No `status`: no response; no `reason`: no dead letter."""

    request_id: str
    status: str | None
    reason: str | None


@dataclass
class Findings:
    """What was found. `faults` are broken promises, as sentences; the counters are for the caller to judge."""

    requests: int = 0
    faults: list[str] = field(default_factory=list)
    lost: list[Place] = field(default_factory=list)
    repeated: Counter[Place] = field(default_factory=Counter)
    """Handler calls beyond the first of each attempt, by request."""
    duplicates: Counter[Place] = field(default_factory=Counter)
    """Outcomes beyond the first, by request."""
    samples: int = 0

    @property
    def repeated_calls(self) -> int:
        return self.repeated.total()

    @property
    def duplicate_outcomes(self) -> int:
        return self.duplicates.total()

    def require(self, *, lossless: bool = True) -> None:
        """Fail with everything that is wrong."""
        told = [*self.faults]
        if lossless and self.lost:
            told.append(f"lost: {_some(self.lost)}")
        assert not told, f"{len(told)} broken promises:\n" + "\n".join(told[:SHOWN])


def examine(
    evidence: Evidence,
    *,
    ordered: bool = True,
    resent: bool = False,
    rewound: bool = False,
    frozen: bool = False,
) -> Findings:
    """Check everything that the evidence can show.

    `ordered` is false where keys promise nothing. `resent` says that a response may come twice without a second call,
    because the cluster's acknowledgement may have been lost. `rewound` says that a committed position may be seen to go
    back for a while: a broker that was frozen takes a commit late, or answers out of its memory. `frozen` says that a
    worker was frozen and lost its partitions: a response that it owed behind a dead letter may come from it, too, when
    it goes on, although the next owner has written it without a call.
    """
    outcomes = _Outcomes.of(evidence)
    findings = Findings(len(evidence.requests), samples=len(evidence.samples))
    findings.lost = [place for place in outcomes.expected if outcomes.done_at(place) == NEVER]
    findings.repeated = _repeated(evidence.calls)
    findings.duplicates = Counter(
        {place: more for place in outcomes.expected if (more := outcomes.count(place) - 1) > 0}
    )
    faults = findings.faults
    faults += outcomes.foreign
    faults += _acknowledged_requests(evidence)
    faults += _contents(evidence, outcomes)
    faults += _commits(evidence.samples, outcomes)
    faults += _rewinds(evidence.samples, only_for_good=rewound)
    faults += _attempts(evidence, outcomes)
    if not resent:
        faults += _uncalled_for(evidence, outcomes, frozen=frozen)
    if ordered:
        faults += _order_of_calls(evidence.calls, outcomes)
        faults += _order_of_responses(evidence)
    return findings


class Death(NamedTuple):
    """When a worker was still alive and when it was dead, in seconds of the clock: who waits may learn of it late."""

    lived: float
    dead: float


def stale_repeats(evidence: Evidence, deaths: Sequence[Death], *, within: float = 1.0) -> list[str]:
    """Return the calls that were repeated although their outcome had been durable for `within` seconds at the first
    death behind it, and so had to be committed.

    A death counts from the end of the call on: what a worker has sent may become durable after it has died.
    """
    outcomes = _Outcomes.of(evidence)
    called: set[Place] = set()
    ended: dict[Place, float] = {}
    found = []
    for call in evidence.calls:
        place = Place(call.partition, call.offset)
        done = outcomes.done_at(place) / 1000
        if call.moment == "end":
            # The last one before it was durable is the one that it came of; the cluster counts in milliseconds.
            if call.at <= done + 0.001:
                ended[place] = call.at
            continue
        if call.attempt == 1 and place in called and done < call.at:
            since = min(done, ended.get(place, done))
            death = min((death for death in deaths if since <= death.dead < call.at), default=None)
            if death is None:
                found.append(f"{place} was called again although nothing had died since it was done")
            elif death.lived - done > within:
                found.append(f"{place} was called again, done {death.lived - done:.1f} s before a death")
        called.add(place)
    return found


def called_though_answered(evidence: Evidence, taken_over: Mapping[int, float]) -> list[str]:
    """Return the calls of requests whose whole outcome stood in the cluster when the caller took their partition over.

    `taken_over` says for each process when it did, in seconds of the clock.
    """
    outcomes = _Outcomes.of(evidence)
    return [
        f"{place} was called although its outcome had stood for {taken_over[call.pid] - done:.3f} s"
        for place, call in _starts(evidence.calls)
        if call.attempt == 1 and (done := outcomes.done_at(place) / 1000) < taken_over.get(call.pid, 0.0)
    ]


class Life(NamedTuple):
    """A worker process, from when it took the partitions over until it died (None: it did not); times of the clock."""

    pid: int
    taken_over: float
    died: float | None = None


class Flight(NamedTuple):
    """What a process had in hand when it died, and what of that, or else, was called again."""

    running: frozenset[Place]
    unacknowledged: Mapping[Place, float]
    """When calls had ended (time of the clock) of which no whole outcome stood in the cluster at the next take-over."""
    repeated: frozenset[Place]

    @property
    def unexcused(self) -> frozenset[Place]:
        return self.repeated - self.running - self.unacknowledged.keys()


def flights(evidence: Evidence, lives: Sequence[Life]) -> list[Flight]:
    """Return what each of these processes, which followed each other, had in hand when it died."""
    outcomes = _Outcomes.of(evidence)
    started: dict[int, set[Place]] = defaultdict(set)
    ended: dict[int, dict[Place, float]] = defaultdict(dict)
    for call in evidence.calls:
        place = Place(call.partition, call.offset)
        if call.moment == "start":
            started[call.pid].add(place)
        else:
            ended[call.pid][place] = call.at
    found = []
    for number, (life, heir) in enumerate(pairwise(lives), 1):
        mine, over = started[life.pid], ended[life.pid]
        open_then = {place: at for place, at in over.items() if outcomes.done_at(place) / 1000 >= heir.taken_over}
        later = set().union(*(started[each.pid] for each in lives[number:]))
        found.append(Flight(frozenset(mine - over.keys()), open_then, frozenset(mine & later)))
    return found


def expected(request: Rec, topic: str) -> Expected:
    """Return what must become of a request."""
    key = _text(request.key)
    try:
        payload = json.loads(request.value or b"")
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        return Expected(key or "", "failed" if key else None, "invalid-request")
    name = payload.get("id") or key or f"{topic}-{request.partition}-{request.offset}"
    expect = payload.get("expect", "completed")
    if expect in ("completed", "failed"):
        return Expected(name, expect, None)
    return Expected(name, "failed", expect)


@dataclass
class _Outcomes:
    """The outcomes by the request that they name."""

    topic: str
    requests: dict[Place, Rec]
    expected: dict[Place, Expected]
    responses: dict[Place, list[Rec]] = field(default_factory=lambda: defaultdict(list))
    dead_letters: dict[Place, list[Rec]] = field(default_factory=lambda: defaultdict(list))
    foreign: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, evidence: Evidence) -> _Outcomes:
        requests = {Place(rec.partition, rec.offset): rec for rec in evidence.requests}
        outcomes = cls(
            evidence.topic,
            requests,
            {place: expected(rec, evidence.topic) for place, rec in requests.items()},
        )
        for kind, records, found in (
            ("response", evidence.responses, outcomes.responses),
            ("dead letter", evidence.dead_letters, outcomes.dead_letters),
        ):
            for rec in records:
                place = _source(rec, evidence.topic)
                if place in requests:
                    # One of an earlier topic by that name answers none of these requests.
                    if dict(rec.headers).get("source-timestamp") in (None, b"%d" % requests[place].timestamp):
                        found[place].append(rec)
                else:
                    outcomes.foreign.append(f"{kind} {rec.partition}-{rec.offset} names no request: {rec.headers}")
        return outcomes

    def done_at(self, place: Place) -> int:
        """Return when the whole outcome was in the cluster, in milliseconds; NEVER while something is missing."""
        wanted = self.expected[place]
        return max(
            _first(self.dead_letters.get(place)) if wanted.reason is not None else 0,
            _first(self.responses.get(place)) if wanted.status is not None else 0,
        )

    def count(self, place: Place) -> int:
        """Return how many outcomes there are, whole or not."""
        return max(len(self.responses.get(place, ())), len(self.dead_letters.get(place, ())))


def _first(found: Sequence[Rec] | None) -> int:
    return min(rec.timestamp for rec in found) if found else NEVER


# The cluster and the contents


def _acknowledged_requests(evidence: Evidence) -> Iterator[str]:
    """The test's own ground: what the cluster acknowledged to the sender is in the topic."""
    there = {Place(rec.partition, rec.offset) for rec in evidence.requests}
    if missing := sorted(evidence.sent - there):
        yield f"the cluster itself lost requests: {_some(missing)}"


def _contents(evidence: Evidence, outcomes: _Outcomes) -> Iterator[str]:
    for place, wanted in outcomes.expected.items():
        request = outcomes.requests[place]
        for rec in outcomes.responses.get(place, ()):
            yield from (f"response to {place}: {what}" for what in _response_faults(rec, request, wanted))
        for rec in outcomes.dead_letters.get(place, ()):
            yield from (f"dead letter of {place}: {what}" for what in _dead_letter_faults(rec, request, wanted))


def _response_faults(rec: Rec, request: Rec, wanted: Expected) -> Iterator[str]:
    if wanted.status is None:
        yield "nobody can be waiting for it"
        return
    if rec.key != request.key:
        yield f"key {rec.key!r} instead of {request.key!r}"
    try:
        body = json.loads(rec.value or b"")
    except ValueError:
        yield "no JSON"
        return
    if set(body) != FIELDS:
        yield f"fields {sorted(body)}"
    elif (body["request_id"], body["status"]) != (wanted.request_id, wanted.status):
        yield f"{body['request_id']} {body['status']} instead of {wanted.request_id} {wanted.status}"


def _dead_letter_faults(rec: Rec, request: Rec, wanted: Expected) -> Iterator[str]:
    if wanted.reason is None:
        yield f"it was to be {wanted.status}"
        return
    if (rec.key, rec.value) != (request.key, request.value):
        yield "key or value differ from the request's"
    original = [(name, value if value is not None else b"") for name, value in request.headers]
    if rec.headers[: len(original)] != original:
        yield f"headers {rec.headers} don't begin with {original}"
    reason = dict(rec.headers).get("dlq-reason")
    if reason != wanted.reason.encode():
        yield f"reason {reason!r} instead of {wanted.reason}"


# Commits


def _commits(samples: Sequence[Sample], outcomes: _Outcomes) -> Iterator[str]:
    """A commit covers only what was durable before: by its position, and by its map."""
    done: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place in sorted(outcomes.expected):
        done[place.partition].append((place.offset, outcomes.done_at(place)))
    offsets = {partition: [offset for offset, _ in found] for partition, found in done.items()}
    latest = {partition: [0, *accumulate((at for _, at in found), max)] for partition, found in done.items()}
    for sample in samples:
        for partition, (position, _) in sample.committed.items():
            if partition not in done:
                continue
            covered = bisect_left(offsets[partition], position)
            if latest[partition][covered] > sample.at:
                early = [offset for offset, at in done[partition][:covered] if at > sample.at]
                yield f"position {position} of partition {partition} was committed before {_some(early)} were done"
            yield from _map_faults(sample, partition, done[partition])


def _rewinds(samples: Sequence[Sample], *, only_for_good: bool) -> Iterator[str]:
    """Positions never go back, or at least don't stay there."""
    highest: dict[int, int] = {}
    for sample in samples:
        for partition, (position, _) in sample.committed.items():
            judged = not only_for_good or sample is samples[-1]
            if judged and position < highest.get(partition, 0):
                yield f"the committed position of partition {partition} went back to {position}"
            highest[partition] = max(position, highest.get(partition, 0))


def _map_faults(sample: Sample, partition: int, done: Sequence[tuple[int, int]]) -> Iterator[str]:
    position, metadata = sample.committed[partition]
    commit_map, _ = split_metadata(metadata)
    if not commit_map:
        return
    try:
        found = CommitMap.decode(commit_map, position)
    except CommitMapError as error:
        yield f"commit map of partition {partition} at {position} cannot be read: {error}"
        return
    unfinished = set(found.unfinished)
    claimed = [
        offset
        for offset, at in done
        if found.base <= offset < found.horizon and offset not in unfinished and at > sample.at
    ]
    if claimed:
        yield f"the commit map of partition {partition} at {position} claims {_some(claimed)}, which were not done"


# Calls


def _starts(calls: Iterable[Call]) -> Iterator[tuple[Place, Call]]:
    return ((Place(call.partition, call.offset), call) for call in calls if call.moment == "start")


def _repeated(calls: Iterable[Call]) -> Counter[Place]:
    made = Counter((place, call.attempt) for place, call in _starts(calls))
    repeated: Counter[Place] = Counter()
    for (place, _), count in made.items():
        if count > 1:
            repeated[place] += count - 1
    return repeated


def _attempts(evidence: Evidence, outcomes: _Outcomes) -> Iterator[str]:
    """Attempts count 1, 2, 3… from each delivery on, never past the limit, and only requests are handled."""
    last: dict[tuple[int, Place], int] = {}
    calls: Counter[Place] = Counter()
    deliveries: Counter[Place] = Counter()
    for place, call in _starts(evidence.calls):
        calls[place] += 1
        deliveries[place] += call.attempt == 1
        if call.attempt > evidence.max_attempts:
            yield f"{place}: attempt {call.attempt} of {evidence.max_attempts}"
        if call.attempt not in (1, last.get((call.pid, place), 0) + 1):
            yield f"{place}: attempt {call.attempt} after {last.get((call.pid, place), 0)}"
        last[call.pid, place] = call.attempt
        wanted = outcomes.expected.get(place)
        if wanted is not None and wanted.reason == "invalid-request":
            yield f"{place} is no request, and a handler was called with it"
    for place, count in calls.items():
        if count > evidence.max_attempts * deliveries[place]:
            yield f"{place}: {count} calls in {deliveries[place]} deliveries of {evidence.max_attempts} attempts"


def _uncalled_for(evidence: Evidence, outcomes: _Outcomes, *, frozen: bool) -> Iterator[str]:
    """Without a lost acknowledgement each further response comes of a further delivery.

    Or, with `frozen`, of a single dead letter that a worker and its successor have both found without its response.
    """
    deliveries = Counter(place for place, call in _starts(evidence.calls) if call.attempt == 1)
    for place, wanted in outcomes.expected.items():
        # No handler is called with what is no request, so nothing tells its deliveries.
        owed = frozen and len(outcomes.dead_letters.get(place, ())) == 1
        if wanted.reason != "invalid-request" and outcomes.count(place) > deliveries[place] + owed:
            found = [*outcomes.responses.get(place, ()), *outcomes.dead_letters.get(place, ())]
            where = ", ".join(f"{rec.partition}-{rec.offset} at {rec.timestamp}" for rec in found)
            yield f"{place} has {outcomes.count(place)} outcomes out of {deliveries[place]} deliveries: {where}"


# Order


def _order_of_calls(calls: Iterable[Call], outcomes: _Outcomes) -> Iterator[str]:
    """Calls of one key never overlap within a process, and requests are first called in the order of their offsets."""
    highest: dict[tuple[int, str], int] = {}
    running: dict[tuple[int, int, str], Place] = {}
    seen: set[Place] = set()
    for call in calls:
        if call.key is None:
            continue
        place = Place(call.partition, call.offset)
        lane = (call.pid, call.partition, call.key)
        if call.moment == "end":
            if running.get(lane) == place:
                del running[lane]
            continue
        wanted = outcomes.expected.get(place)
        if lane in running and (wanted is None or wanted.reason != "timed-out"):
            yield f"key {call.key!r}: {place} was called while {running[lane]} ran"
        running[lane] = place
        if place not in seen:
            seen.add(place)
            before = highest.get((call.partition, call.key), -1)
            if call.offset < before:
                yield f"key {call.key!r}: {place} was first called after offset {before}"
            highest[call.partition, call.key] = max(before, call.offset)


def _order_of_responses(evidence: Evidence) -> Iterator[str]:
    """The first responses of one key rise with the offsets of their requests, within a partition on both sides."""
    seen: set[Place] = set()
    highest: dict[tuple[int, int, bytes], int] = {}
    for rec in sorted(evidence.responses, key=lambda rec: (rec.partition, rec.offset)):
        place = _source(rec, evidence.topic)
        if rec.key is None or place is None or place in seen:
            continue
        seen.add(place)
        lane = (rec.partition, place.partition, rec.key)
        if place.offset < highest.get(lane, -1):
            yield f"key {rec.key!r}: the response to {place} stands behind that to offset {highest[lane]}"
        highest[lane] = max(place.offset, highest.get(lane, -1))


# Small things


def _source(rec: Rec, topic: str) -> Place | None:
    headers: Mapping[str, bytes | None] = dict(rec.headers)
    if headers.get("source-topic") != topic.encode():
        return None
    try:
        return Place(int(headers["source-partition"] or b""), int(headers["source-offset"] or b""))
    except (KeyError, ValueError):
        return None


def _text(key: bytes | None) -> str | None:
    try:
        return key.decode() or None if key else None
    except UnicodeDecodeError:
        return None


def _some(found: Sequence[object]) -> str:
    shown = ", ".join(map(str, found[:SHOWN]))
    return shown if len(found) <= SHOWN else f"{shown}… ({len(found)} in all)"
