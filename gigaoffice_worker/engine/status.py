"""Reading the engine in one moment: what `/status`, the gauges, `/livez` and `/readyz` are made of."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from gigaoffice_worker.broker.connection_log import LoginWatch
from gigaoffice_worker.core.arrival import age
from gigaoffice_worker.core.work import Assignment, Stage, Work
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.engine import Engine
from gigaoffice_worker.engine.stalls import Cause
from gigaoffice_worker.engine.topic_watch import TopicWatch
from gigaoffice_worker.observe.health import (
    OldestRequest,
    PartitionStatus,
    Snapshot,
    State,
    TenantStatus,
    TopicsSeen,
    Trouble,
)

# How long a thread that must make progress may seem to stand still: the longest single wait in it is bounded by the
# client's request time-out (30 s).
STANDSTILL = 90.0
# How long a rebalance, and not having joined, stay normal.
REBALANCE_GRACE = 60.0
_MOST_TENANTS, _LONGEST_TENANT = 10, 64
_WAITING = {Stage.QUEUED, Stage.WAITING_RETRY}
_OVERDUE_GRACE = 60.0
# How long the cluster may stay silent: told before 15 s are over, and longer than a leader takes to be elected.
_UNREACHABLE_GRACE = 12.0
# How long the shared gate may let no call through before that is more than a rate limit.
_GATE_GRACE = 60.0
# Refused credentials do not pass by themselves. The handlers' own name for it, since nothing here may depend on them.
_REFUSED_ACCESS = "AccessRefusedError"


class Observer:
    """Takes snapshots. `longest` is how long one request can take by its attempts, time-outs and delays, in seconds."""

    def __init__(self, topics: TopicWatch, logins: LoginWatch, dlq: str, longest: float) -> None:
        self._topics = topics
        self._logins = logins
        self._dlq = dlq
        self._longest = longest
        self._started = time.monotonic()
        self.state = State.STARTING
        self.engine: Engine | None = None

    def snapshot(self) -> Snapshot:
        now = time.monotonic()
        engine = self.engine
        if engine is None:
            return _idle(self.state, now - self._started, list(self._not_ready_yet()), self._topics.seen)
        counts = engine.dispatcher.counts()
        unreachable = engine.consumer.unreachable_for
        partitions = self._partitions(engine, now, unreachable)
        running = engine.dispatcher.in_hand.attempts()
        gate, ownership = engine.dispatcher.admission.limits.gate, engine.consumer.ownership
        trouble = engine.delivery.trouble()
        with engine.dispatcher.locked():
            # With the clock of this moment, or what a limit has held back would go back where a thread was quicker.
            limits = engine.dispatcher.admission.seen(time.monotonic(), engine.pool.size)
        return Snapshot(
            state=self.state,
            uptime=now - self._started,
            queued=counts.queued,
            running=counts.running,
            waiting_retry=counts.waiting_retry,
            delivering=counts.delivering,
            partitions=partitions,
            oldest_in_flight=max((now - (work.first_at or now) for work, _ in running), default=0.0),
            abandoned_threads=engine.pool.abandoned,
            unsettled_bytes=engine.delivery.unsettled_bytes,
            dlq_blocked=self._dlq in trouble,
            gate_closed=gate.closed(now),
            gate_opens_in=max(0.0, gate.until - now),
            storm_reason=engine.dispatcher.admission.guard.reason,
            holds=sorted(engine.dispatcher.admission.holds.held(now)),
            standby=ownership.joined and not partitions,
            not_live=list(self._not_live(engine, now)),
            not_ready=list(self._not_ready(engine, partitions, trouble, unreachable, now)),
            failures=engine.pool.failures.newest.kinds(),
            consumer_running=engine.consumer.thread.is_alive(),
            topics=self._topics.seen,
            tenants=_tenants(engine),
            concurrency=engine.pool.size,
            limits=limits,
        )

    def not_live(self) -> list[Trouble]:
        engine = self.engine
        return list(self._not_live(engine, time.monotonic())) if engine is not None else []

    def _not_live(self, engine: Engine, now: float) -> Iterator[Trouble]:
        for name, thread, last_turn in (
            ("consumer", engine.consumer.thread, engine.consumer.last_turn),
            ("delivery", engine.delivery.thread, engine.delivery.last_turn),
        ):
            if thread.ident is None:
                continue  # The engine is just starting it.
            if not thread.is_alive() and not self.state.is_ending:
                yield Trouble(f"{name}-dead", f"the {name} thread has ended")
            elif thread.is_alive() and now - last_turn > STANDSTILL:
                yield Trouble(f"{name}-stuck", f"the {name} thread made no progress for {now - last_turn:.0f} s")
        since = engine.dispatcher.counts().starving_since
        if since is not None and now - since > STANDSTILL:
            yield Trouble("pool-stuck", f"ready requests found no handler thread for {now - since:.0f} s")

    def _not_ready_yet(self) -> Iterator[Trouble]:
        if self.state.is_ending:
            yield Trouble("draining", "the worker drains")
        yield from self._cluster_trouble()
        if self._topics.report is None:
            if self._topics.error is None:
                yield Trouble("starting", "the topics are not verified yet")
        elif not self._topics.report.missing:
            yield Trouble("joining", "the consumer group is not joined yet")

    def _cluster_trouble(self) -> Iterator[Trouble]:
        report, error = self._topics.report, self._topics.error
        if refusal := self._logins.refusal:
            yield Trouble("authentication-lost", f"the cluster refuses our login: {refusal}")
        if error is not None:
            yield Trouble("topics-unverified", f"the topics cannot be verified: {error}")
        if report is not None and report.missing:
            yield Trouble("topic-missing", f"missing topics: {', '.join(report.missing)}")

    def _not_ready(
        self,
        engine: Engine,
        partitions: list[PartitionStatus],
        trouble: dict[str, str],
        unreachable: float,
        now: float,
    ) -> Iterator[Trouble]:
        if self.state.is_ending:
            yield Trouble("draining", "the worker drains")
        yield from self._not_live(engine, now)
        yield from self._cluster_trouble()
        if engine.paused:
            yield Trouble("paused", "an operator stopped intake (ctl pause); ctl resume lets it go on")
        if unreachable > _UNREACHABLE_GRACE:
            yield Trouble("cluster-unreachable", f"no broker that is needed has answered for {unreachable:.0f} s")
        yield from _membership_trouble(engine, now)
        yield from _stall_trouble(engine, now)
        for topic, why in trouble.items():
            yield Trouble("delivery-blocked", f"outcomes cannot be delivered to {topic}: {why}")
        intake, committer = engine.consumer.intake, engine.consumer.committer
        if intake.trouble:
            yield Trouble("consumer", intake.trouble)
        if committer.trouble:
            yield Trouble("commit", committer.trouble)
        yield from _guard_trouble(engine.dispatcher, now)
        for partition, (offset, cause) in intake.quarantined.items():
            yield Trouble("undecodable-record", f"record {partition}-{offset} cannot be decoded: {cause}")
        for row in partitions:
            oldest = row.oldest
            if oldest is not None and oldest.age > self._longest + _OVERDUE_GRACE and oldest.stage != Stage.QUEUED:
                text = f"request {oldest.request_id} of partition {row.partition} is unfinished for {oldest.age:.0f} s"
                yield Trouble("request-overdue", text)

    def _partitions(self, engine: Engine, now: float, unreachable: float) -> list[PartitionStatus]:
        consumer, intake = engine.consumer, engine.consumer.intake
        with engine.dispatcher.locked():
            rows = [
                (partition, held, held.tracker.position, held.tracker.oldest)
                for partition, held in sorted(consumer.ownership.assignments.items())
            ]
        found = []
        for partition, held, position, oldest in rows:
            quarantine = intake.quarantined.get(partition)
            stall = intake.stalls.held.get(partition)
            if stall is not None and not stall.told(now):
                stall = None
            # Nothing is known any more of the log, only that whatever comes waits.
            known = unreachable <= _UNREACHABLE_GRACE
            waits = 0.0 if known else unreachable
            if stall is not None:
                waits = max(waits, now - stall.since)
            if oldest is None and (behind := intake.stalls.behind.get(partition)) is not None:
                waits = max(waits, now - behind.since)
            found.append(
                PartitionStatus(
                    partition=partition,
                    epoch=held.epoch,
                    position=position,
                    committed=held.committed,
                    high_watermark=held.watermark,
                    lag=_lag(held) if known else None,
                    lag_seconds=max(_lag_seconds(oldest), waits),
                    in_hand=held.held_records,
                    bytes_in_hand=held.held_bytes,
                    parked=len(held.tracker.parked),
                    oldest=_oldest(oldest, now),
                    paused=intake.paused.get(partition),
                    quarantined={"offset": quarantine[0], "error": quarantine[1]} if quarantine else None,
                    stalled={"reason": stall.cause, "seconds": round(now - stall.since, 1)} if stall else None,
                )
            )
        return found


def _tenants(engine: Engine) -> list[TenantStatus]:
    """Return the tenants with most waiting; none where requests are not told apart by tenant."""
    waiting, parked = Counter[str](), Counter[str]()
    if engine.tells_tenants:
        with engine.dispatcher.locked():
            for held in engine.consumer.ownership.assignments.values():
                waiting.update(work.tenant for work in held.tracker if work.stage in _WAITING)
                for name, count in (held.parking.waiting() if held.parking is not None else {}).items():
                    parked[str(name)] += count
    most = (waiting + parked).most_common(_MOST_TENANTS)
    return [TenantStatus(name[:_LONGEST_TENANT], count, parked[name]) for name, count in most]


def _guard_trouble(dispatcher: Dispatcher, now: float) -> Iterator[Trouble]:
    if shut := dispatcher.admission.limits.gate.shut_for(now):
        refusal, seconds = shut
        if seconds > _GATE_GRACE or refusal == _REFUSED_ACCESS:
            yield Trouble("gate", f"no handler call got through for {seconds:.0f} s: {refusal}")
    if (reason := dispatcher.admission.guard.reason) is not None:
        yield Trouble("storm-guard", f"nearly every request fails with {reason}: intake has stopped")


def _membership_trouble(engine: Engine, now: float) -> Iterator[Trouble]:
    ownership = engine.consumer.ownership
    if not ownership.joined:
        waited = now - engine.started
        if waited > REBALANCE_GRACE:
            text = (
                f"the consumer group was not joined for {waited:.0f} s: check credentials, rights and the coordinator"
            )
            yield Trouble("group-never-joined", text)
        else:
            yield Trouble("joining", "the consumer group is not joined yet")
    elif ownership.rebalancing_since is not None and now - ownership.rebalancing_since > REBALANCE_GRACE:
        yield Trouble("rebalancing", f"a rebalance takes {now - ownership.rebalancing_since:.0f} s")
    if (lost := engine.consumer.session_lost_for) > 0:
        yield Trouble(
            "session-lost", f"the coordinator has not heard of us for {lost:.0f} s longer than a session lasts"
        )
    if ownership.unpositioned and ownership.rebalancing_since is None:
        reasons = "; ".join(f"{partition}: {why}" for partition, why in sorted(ownership.unpositioned.items()))
        yield Trouble("position-unknown", f"no position yet for partitions {reasons}")


def _stall_trouble(engine: Engine, now: float) -> Iterator[Trouble]:
    """Name the partitions from which nothing comes, each cause by itself."""
    found: dict[Cause, list[str]] = {}
    for partition, stall in sorted(engine.consumer.intake.stalls.held.items()):
        if stall.told(now):
            found.setdefault(stall.cause, []).append(
                f"{partition} (at {stall.position}, for {now - stall.since:.0f} s)"
            )
    for cause, partitions in found.items():
        named = ", ".join(partitions)
        match cause:
            case Cause.NO_LEADER:
                yield Trouble("partition-without-leader", f"partitions without a leader: {named}")
            case Cause.OPEN_TRANSACTION:
                yield Trouble("open-transaction", f"a producer's open transaction ends what can be read of: {named}")
            case Cause.NOT_ANSWERED:
                yield Trouble("partition-unread", f"records are there, and the cluster does not send them: {named}")


def _lag(held: Assignment) -> int | None:
    return max(0, held.watermark - held.committed) if held.watermark is not None else None


def _lag_seconds(oldest: Work | None) -> float:
    return age(oldest.written_at, time.time()) if oldest is not None else 0.0


def _oldest(work: Work | None, now: float) -> OldestRequest | None:
    if work is None:
        return None
    since = work.first_at if work.first_at is not None else work.received_at
    return OldestRequest(work.record.offset, work.id, round(now - since, 3), work.attempt, work.stage.value)


def _idle(state: State, uptime: float, not_ready: list[Trouble], topics: TopicsSeen) -> Snapshot:
    return Snapshot(
        state=state,
        uptime=uptime,
        queued=0,
        running=0,
        waiting_retry=0,
        delivering=0,
        partitions=[],
        oldest_in_flight=0.0,
        abandoned_threads=0,
        unsettled_bytes=0,
        dlq_blocked=False,
        gate_closed=False,
        gate_opens_in=0.0,
        storm_reason=None,
        holds=[],
        standby=False,
        not_live=[],
        not_ready=not_ready,
        failures=[],
        topics=topics,
    )
