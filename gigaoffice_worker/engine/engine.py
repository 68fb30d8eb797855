"""The engine: its parts put together, started, drained and closed. Nothing is decided here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gigaoffice_worker.broker import clients
from gigaoffice_worker.broker.consumer import Consumer
from gigaoffice_worker.broker.log_reader import LogReader
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.broker.verification import TopicReport
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.admission import Admission
from gigaoffice_worker.core.dedupe import Answers
from gigaoffice_worker.core.group_share import ConcurrencyShare, GroupLimits, RateShare, TokenShare
from gigaoffice_worker.core.journal import Floors
from gigaoffice_worker.core.judgement import Judgement
from gigaoffice_worker.core.limits import ProviderLimits
from gigaoffice_worker.core.ready import ByArrival, ByTenant
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.scheduler import Scheduler
from gigaoffice_worker.core.storm import StormGuard, StormLimits
from gigaoffice_worker.core.tenancy import Urgency
from gigaoffice_worker.engine.consumer import ConsumerSettings, ConsumerThread
from gigaoffice_worker.engine.delivery import Delivery
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.encoding import record_encoder
from gigaoffice_worker.engine.expiry import Expiry
from gigaoffice_worker.engine.failure_log import FailureLog
from gigaoffice_worker.engine.journal import Journal
from gigaoffice_worker.engine.journal_reader import JournalReader
from gigaoffice_worker.engine.pool import Pool
from gigaoffice_worker.engine.processor import Handler, Processor
from gigaoffice_worker.observe.metrics import Metrics

if TYPE_CHECKING:
    from gigaoffice_worker.observe.spans import Spans  # importing it costs time and memory

_HOLD_DRAIN = "draining"
_HOLD_OPERATOR = "operator"


class Engine:
    """The running parts. `died` hears of an exception that ended one of their threads."""

    def __init__(
        self,
        config: Config,
        handler: Handler,
        metrics: Metrics,
        spans: Spans | None,
        died: Callable[[BaseException], None],
        *,
        map_limit: int,
    ) -> None:
        """`map_limit` is how many characters of metadata the cluster takes with a commit."""
        self._config = config
        self.tells_tenants = config.worker.tenant_field is not None
        self.started = time.monotonic()
        self._answers = _answers(config, metrics)
        self.dispatcher = _dispatcher(config, self._answers)
        self._floors = Floors()
        self._journal_reader = JournalReader(lambda timeout: LogReader(config, "journal", timeout), died, self._answers)
        self.journal = Journal(
            self._journal_reader,
            self._floors,
            metrics,
            on=config.worker.journal,
            timeout=config.worker.journal_timeout,
            max_request_bytes=config.worker.max_request_bytes,
        )
        self.delivery = self._make_delivery(metrics, spans, died)
        self.consumer = self._make_consumer(metrics, died, map_limit)
        timeout = config.worker.attempt_timeout
        self.pool = Pool(
            config.worker.concurrency,
            self.dispatcher,
            Processor(
                spans.around(handler) if spans else handler,
                timeout,
                config.worker.retry_after_max,
                max_request_bytes=config.worker.max_request_bytes,
                answers=self._answers,
            ),
            self.delivery.deliver,
            metrics,
            FailureLog(config.worker.max_attempts, config.logs.tracebacks),
            died,
        )

    def _make_delivery(self, metrics: Metrics, spans: Spans | None, died: Callable[[BaseException], None]) -> Delivery:
        config = self._config
        return Delivery(
            record_encoder(config),
            lambda suffix: Producer(clients.producer(config, suffix), in_order=True),
            self.dispatcher,
            metrics,
            died,
            delivery_timeout=clients.DELIVERY_TIMEOUT,
            floors=self._floors,
            answers=self._answers,
            traced=spans.acknowledged if spans is not None else None,
        )

    def _make_consumer(self, metrics: Metrics, died: Callable[[BaseException], None], map_limit: int) -> ConsumerThread:
        config, spec = self._config, self._config.topics
        settings = ConsumerSettings(
            spec.requests.name,
            config.consumer.max_poll_records,
            config.consumer.auto_offset_reset,
            config.worker.rebalance_wait,
            # As long as the topic workflow may take.
            join_within=(spec.creation_retries + 1) * spec.creation_timeout
            + spec.creation_retries * spec.creation_retry_delay,
            map_limit=map_limit,
            ordering=config.worker.ordering,
            urgency=_urgency(config),
        )
        consumer = Consumer(clients.consumer(config), settings.topic)
        expiry = Expiry(
            self.dispatcher,
            self.delivery,
            metrics,
            ttl=config.worker.request_ttl,
            to_dlq=config.worker.expired_to_dlq,
            max_request_bytes=config.worker.max_request_bytes,
        )
        return ConsumerThread(consumer, self.dispatcher, self.delivery, self.journal, expiry, settings, metrics, died)

    def know(self, report: TopicReport) -> None:
        """Take note of what the topics take, as the last verification found it."""
        topics = self._config.topics
        partitions = self.delivery.request_partitions = report.partitions.get(topics.requests.name, 0)
        self.dispatcher.change(lambda admission, now: admission.owns(now, partitions=partitions))
        for spec in (topics.responses, topics.dlq):
            limit, count = report.limits.get(spec.name), report.partitions.get(spec.name, 0)
            self.delivery.know(spec.name, max_message_bytes=limit, partitions=count)
        self.journal.know(report, topics.requests.name, topics.responses.name, topics.dlq.name)

    def start(self) -> None:
        """Build the first producers (their errors are the caller's), then start the threads."""
        self.delivery.start()
        self.pool.start()
        self._journal_reader.start()
        self.consumer.start()

    @property
    def paused(self) -> bool:
        """Whether an operator stopped intake."""
        return self.consumer.intake.stopped_by_operator

    def pause(self) -> None:
        """Take in and start nothing until `resume`; what runs ends, and the group is not left."""
        self.consumer.intake.stopped_by_operator = True
        self.dispatcher.hold(_HOLD_OPERATOR)

    def resume(self) -> None:
        """Go on after `pause`."""
        self.consumer.intake.stopped_by_operator = False
        self.dispatcher.release(_HOLD_OPERATOR)

    def drain(self, deadline: float) -> None:
        """Start no attempt any more, settle what is in flight, commit and leave, until `deadline` (monotonic)."""
        self.dispatcher.hold(_HOLD_DRAIN)
        self.consumer.drain(deadline)

    def hurry(self) -> None:
        """Drain no longer."""
        self.consumer.drain(time.monotonic())

    def close(self) -> None:
        """Send the threads home and end the producers. Waits three seconds at most, and never for a handler."""
        self.dispatcher.stop()
        self.delivery.stop()
        self._journal_reader.stop()
        self.delivery.join(1.0)
        self.delivery.close(1.0)


def _urgency(config: Config) -> Urgency:
    worker = config.worker
    return Urgency(worker.tenant_field, worker.priority_field, worker.max_request_bytes)


def _answers(config: Config, metrics: Metrics) -> Answers | None:
    worker = config.worker
    if worker.dedupe_window is None:
        return None
    return Answers(worker.dedupe_window, worker.dedupe_bytes, time.time, metrics.answers_forgotten.inc)


def _dispatcher(config: Config, answers: Answers | None) -> Dispatcher:
    worker = config.worker
    policy = RetryPolicy(worker.max_attempts, worker.retry_delay, worker.retry_max_delay)
    limits = ProviderLimits(worker.concurrency, policy.ceiling, random.random, adaptive=worker.adaptive)
    storm = StormLimits(worker.storm_guard, worker.storm_guard_min_requests, worker.storm_guard_ratio)
    admission = Admission(limits, _group_limits(config), StormGuard(storm))
    ready = ByTenant(worker.priority_aging) if _urgency(config).known else ByArrival()
    judgement = Judgement(policy, admission, expired_to_dlq=worker.expired_to_dlq)
    return Dispatcher(Scheduler(worker.ordering, ready), admission, judgement, answers)


def _group_limits(config: Config) -> GroupLimits:
    worker = config.worker
    return GroupLimits(
        time.time,
        concurrency=ConcurrencyShare(worker.group_concurrency) if worker.group_concurrency else None,
        rate=RateShare(worker.group_rate, random.random) if worker.group_rate else None,
        tokens=TokenShare(worker.group_tokens) if worker.group_tokens else None,
    )
