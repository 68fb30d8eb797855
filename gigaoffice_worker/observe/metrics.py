"""Every metric, declared once, with what it means.

Counters and histograms are counted where things happen. Gauges are read from a `Snapshot` at the moment of the scrape,
so they cannot be stale and a partition that is gone leaves nothing behind.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gigaoffice_worker.core.admission import LimitsSeen
from gigaoffice_worker.core.expiry import is_expired
from gigaoffice_worker.core.records import NO_CALL, AttemptEnd, Outcome, Reason
from gigaoffice_worker.core.usage import Usage
from gigaoffice_worker.observe.durations import Durations, LabelledDurations
from gigaoffice_worker.observe.health import PartitionStatus, Snapshot

PREFIX = "gigaoffice_worker_"
WANTED_WORKERS = (
    "This worker's part of how many workers the backlog could use: what its partitions have to do and may do at once, "
    "in WORKER_CONCURRENCY, at most one a partition. The sum over the group, rounded up, is for an autoscaler."
)
# A handler could report anything as a model's name, and each has time series of its own.
_MOST_MODELS = 20
_REASONS = frozenset(reason.value for reason in Reason)


class ProcessStatistics(ProcessCollector):
    """The library's metrics of the process, also where systemd's ProcSubset=pid hides `/proc/stat`.

    Without that file the library leaves all of them out. It looks there only for the moment of the machine's start,
    which the clocks tell, too.
    """

    def _boot_time(self) -> float:
        since_start = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the first one is Linux's alone
        return time.time() - time.clock_gettime(since_start)


class Metrics:
    """The worker's counters and histograms in a registry of their own."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's function has no annotations
        self.registry = CollectorRegistry()
        ProcessStatistics(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._version = version
        self._models: set[str] = set()
        self._declare_statistics()
        self._declare_requests()
        self._declare_provider()
        self._declare_cluster()
        self._declare_journal()
        self.log_dropped = self._counter("log_dropped_total", "Log lines dropped because nobody took them in time.")

    def _declare_statistics(self) -> None:
        """Declare what the service guide asks for."""
        self.messages_received = self._counter(
            "messages_received_total", "Records taken from the request topic, redeliveries included."
        )
        self.messages_sent = self._counter("messages_sent_total", "Acknowledged responses and dead letters.", "topic")
        self.messages_failed = self._counter(
            "messages_failed_total",
            "Requests that ended in the dead letter queue, by reason, and failed sends (reason publish).",
            "reason",
        )
        self.topics_created = self._counter("topics_created_total", "Topics created by this worker.")
        self.topic_creation_errors = self._counter(
            "topic_creation_errors_total", "Failed attempts to create topics, by kind.", "kind"
        )
        self.last_topic_verification = self._gauge(
            "last_topic_verification_timestamp_seconds", "When the topics were last verified."
        )
        self._dead = {reason: self.messages_failed.labels(reason.value) for reason in Reason}
        self.publish_failures = self.messages_failed.labels("publish")

    def _declare_requests(self) -> None:
        self.requests = self._counter("requests_total", "Finished requests, by outcome.", "outcome")
        self.handler_calls = LabelledDurations(
            (PREFIX + "handler_duration_seconds", "How long one handler call took."),
            (PREFIX + "handler_attempts_total", "Handler calls that ended, by result."),
            "result",
            [ended for ended in AttemptEnd if ended not in NO_CALL],
        )
        self.registry.register(self.handler_calls)
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "From a record's arrival in the worker to its first handler call."
        )
        self.end_to_end = self._histogram(
            "end_to_end_seconds", "From a record's timestamp to the acknowledgement of its outcome."
        )
        self.late_results_dropped = self._counter(
            "late_results_dropped_total",
            "Results of abandoned attempts or of lost partitions, which count for nothing.",
        )
        self.unreadable_headers = self._counter(
            "unreadable_headers_total", "Headers expires-at and ttl-ms that were no number, and were ignored."
        )
        # A look-up by label takes a lock each time, so what is counted for each request is looked up once.
        self._completed, self._failed, self._dead_lettered, self._expired, self._duplicate = (
            self.requests.labels(outcome)
            for outcome in ("completed", "failed", "dead_lettered", "expired", "duplicate")
        )

    def _declare_provider(self) -> None:
        """Declare what is known of the provider, and what is paid for."""
        self.tokens = self._counter("tokens_total", "Tokens that handlers reported.", "direction", "model")
        self.cost = self._counter("cost_total", "What calls cost, as handlers reported it, in their unit.", "model")
        self.provider_rejections = self._counter(
            "provider_rejections_total", "Calls that the provider refused for its limit."
        )

    def _declare_cluster(self) -> None:
        self.rebalances = self._counter("rebalances_total", "Assignments received from the consumer group.")
        self.commits = self._counter("commits_total", "Commits, by result (ok, failed, refused, lost).", "result")
        # Label values that a dashboard should see at zero from the start.
        for result in ("ok", "failed", "refused", "lost"):
            self.commits.labels(result)
        self.offset_resets = self._counter(
            "offset_resets_total", "Positions that the log did not hold, so that reading began anew."
        )
        self.log_truncations = self._counter(
            "log_truncations_total",
            "Partitions whose log ended below what was done of it, so that requests were repeated.",
        )
        self.lost_by_retention = self._counter(
            "lost_by_retention_total",
            "Requests that the cluster removed before they were read, or before their turn came.",
        )
        self.producer_rebuilds = self._counter("producer_rebuilds_total", "Producers replaced because they were stuck.")
        self.last_poll = self._gauge("last_poll_timestamp_seconds", "When the consumer last came back from a poll.")

    def _declare_journal(self) -> None:
        """Declare what the journal and the memory of answers spare."""
        self.answers_forgotten = self._counter(
            "answers_forgotten_total", "Answered ids that were forgotten before their time, for want of room."
        )
        self.journal_recovered = self._counter(
            "journal_recovered_total", "Requests settled without a call: their outcome stood in the cluster already."
        )
        self.journal_read = self._histogram(
            "journal_read_seconds", "How long a partition that was taken over waited for the journal to be read."
        )
        self.journal_skipped = self._counter(
            "journal_skipped_total", "Partitions taken over whose journal was not read, by reason.", "reason"
        )

    def attempt_ended(self, ended: AttemptEnd, seconds: float) -> None:
        """Count a handler call that took `seconds`."""
        self.handler_calls.observe(ended, seconds)
        if ended is AttemptEnd.SHARED:
            self.provider_rejections.inc()

    def used(self, reports: Iterable[Usage]) -> None:
        """Count what handlers report, by model: the first twenty names have labels of their own."""
        for report in reports:
            name = report.model or ""
            if name not in self._models and len(self._models) >= _MOST_MODELS:
                name = "other"
            self._models.add(name)
            for direction, tokens in (("input", report.input_tokens), ("output", report.output_tokens)):
                if tokens is not None:
                    self.tokens.labels(direction, name).inc(tokens)
            if report.cost is not None:
                self.cost.labels(name).inc(report.cost)

    def requests_finished(self, outcomes: Iterable[Outcome], seconds: Iterable[float]) -> None:
        """Count requests whose outcomes became durable, each so many seconds after its record was written."""
        counts: Tally[Counter] = Tally()
        for outcome in outcomes:
            if outcome.reason is not None:
                counts[self._dead[outcome.reason]] += 1
            if outcome.copied is not None:
                counts[self._duplicate] += 1
            elif outcome.failure is None and outcome.reason is None:
                counts[self._completed] += 1
            elif is_expired(outcome):
                counts[self._expired] += 1
            else:
                counts[self._failed if outcome.reason is None else self._dead_lettered] += 1
        for counter, number in counts.items():
            counter.inc(number)
        self.end_to_end.observe_all(seconds)

    def totals(self) -> dict[str, Any]:
        """Return what has been counted since the start, for those who ask twice and take the difference.

        `outcomes` and `dead_letters` (by reason) hold what was seen at least once.
        """
        calls, seconds = self.handler_calls.count_and_sum()
        return {
            "finished": total(self.requests),
            "outcomes": _by_label(self.requests),
            "dead_letters": {
                name: number for name, number in _by_label(self.messages_failed).items() if name in _REASONS
            },
            "handler_calls": calls,
            "handler_seconds": round(seconds, 6),
        }

    def observe(self, snapshot: Callable[[], Snapshot]) -> None:
        """Expose the gauges, read from `snapshot` at each scrape."""
        self.registry.register(_Gauges(snapshot, self._version))

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(PREFIX + name, meaning, registry=self.registry)

    def _histogram(self, name: str, meaning: str) -> Durations:
        histogram = Durations(PREFIX + name, meaning)
        self.registry.register(histogram)
        return histogram


class _Gauges(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot], version: str) -> None:
        self._snapshot = snapshot
        self._version = version

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand, so that registering does not take a snapshot of a worker that is being built."""
        return []

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        yield InfoMetricFamily(PREFIX + "build", "The worker's version.", value={"version": self._version})
        yield _one(
            "requests_in_flight", "Requests in the hands of a handler or of delivery.", now.running + now.delivering
        )
        yield _one("requests_queued", "Requests received and waiting for a thread or for their key.", now.queued)
        yield _one("requests_waiting_retry", "Requests that wait for their next attempt.", now.waiting_retry)
        yield _one(
            "parked_records",
            "Requests known by their offset only, to be read again.",
            sum(p.parked for p in now.partitions),
        )
        yield _one("unsettled_outcomes", "Outcomes that are not acknowledged yet.", now.delivering)
        yield _one("wanted_workers", WANTED_WORKERS, _wanted_workers(now))
        yield _one("assigned_partitions", "Partitions assigned to this worker.", len(now.partitions))
        yield _one(
            "paused_partitions",
            "Partitions that are not read at the moment.",
            sum(p.paused is not None for p in now.partitions),
        )
        yield _one(
            "partitions_quarantined",
            "Partitions with a record that cannot be decoded.",
            sum(p.quarantined is not None for p in now.partitions),
        )
        yield _one(
            "oldest_in_flight_seconds", "Age of the request that has been in hand for longest.", now.oldest_in_flight
        )
        yield _one(
            "handler_abandoned_threads", "Threads that hang in an abandoned handler call.", now.abandoned_threads
        )
        yield from _limits(now.limits)
        yield _one("dlq_blocked", "1 while dead letters cannot be delivered.", now.dlq_blocked)
        yield _one("gate_closed", "1 while the shared gate holds all handler calls back.", now.gate_closed)
        yield _one("storm_guard_open", "1 while the storm guard has stopped intake.", now.storm_reason is not None)
        not_ready = GaugeMetricFamily(
            PREFIX + "not_ready", "1 for each reason why the worker is not ready.", labels=["reason"]
        )
        for reason in now.not_ready_codes:
            not_ready.add_metric([reason], 1)
        yield not_ready
        yield from _per_partition(now)


def _limits(limits: LimitsSeen) -> Iterator[Metric]:
    calls = GaugeMetricFamily(
        PREFIX + "concurrency_limit",
        "Handler calls that may run at once: configured, adapted to the provider, this worker's share of the group's.",
        labels=["source"],
    )
    for source in ("configured", "adapted", "share"):
        if (limit := getattr(limits, source)) is not None:
            calls.add_metric([source], limit)
    yield calls
    yield CounterMetricFamily(
        PREFIX + "rate_limited_seconds",
        "Seconds for which a limit of the provider or the group held work back that was ready.",
        value=limits.held_back,
    )


def _wanted_workers(now: Snapshot) -> float:
    """Return a fraction: rounded up in each worker, the sum would never fall below the workers that there are."""
    if any(partition.lag is None for partition in now.partitions):
        return 1.0  # nobody goes because the cluster is out of reach
    # The lag counts what is done behind a slow request, so what nobody has read yet is counted apart.
    backlog = sum(_to_do(partition) for partition in now.partitions)
    if now.limits.share is not None:
        backlog = min(backlog, now.limits.share)  # more workers than the group may make calls would only wait
    return min(len(now.partitions), backlog / max(1, now.concurrency))


def _to_do(partition: PartitionStatus) -> int:
    unread = max(0, (partition.high_watermark or 0) - (partition.position or 0))
    return unread + partition.in_hand + partition.parked


def _by_label(counter: Counter) -> dict[str, int]:
    samples = (each for family in counter.collect() for each in family.samples if each.name.endswith("_total"))
    return {next(iter(each.labels.values())): int(each.value) for each in samples if each.value}


def total(counter: Counter) -> int:
    """Return the sum of a counter over all of its labels."""
    return int(sum(s.value for family in counter.collect() for s in family.samples if s.name.endswith("_total")))


def _one(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, meaning, value=float(value))


def _per_partition(now: Snapshot) -> Iterator[Metric]:
    columns: tuple[tuple[str, str, Callable[[Any], float | None]], ...] = (
        ("consumer_lag_records", "Records behind the committed offset, up to the end of the log.", lambda p: p.lag),
        ("consumer_lag_seconds", "Age of the oldest unfinished record; 0 when caught up.", lambda p: p.lag_seconds),
        ("committed_offset", "The committed offset.", lambda p: p.committed),
        (
            "quarantined_offset",
            "Where a record stands that cannot be decoded.",
            lambda p: p.quarantined["offset"] if p.quarantined else None,
        ),
    )
    for name, meaning, read in columns:
        family = GaugeMetricFamily(PREFIX + name, meaning, labels=["partition"])
        for partition in now.partitions:
            value = read(partition)
            if value is not None:
                family.add_metric([str(partition.partition)], value)
        yield family
