"""The worker's life: start, serve, drain, stop. Everything is wired here and nothing is decided."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog

from gigaoffice_worker import __version__
from gigaoffice_worker.broker import clients, topics
from gigaoffice_worker.broker.consumer import Consumer
from gigaoffice_worker.broker.error_table import BAD_CREDENTIALS
from gigaoffice_worker.broker.login import LoginWatch
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.broker.verification import TopicVerifier
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.admission import Gate, StormGuard, StormLimits
from gigaoffice_worker.core.errors import WorkerError
from gigaoffice_worker.core.messages import RecordEncoder
from gigaoffice_worker.core.records import Request
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.core.scheduler import Scheduler
from gigaoffice_worker.core.visible import visible
from gigaoffice_worker.engine.consumer import ConsumerSettings, ConsumerThread
from gigaoffice_worker.engine.delivery import Delivery, Hooks
from gigaoffice_worker.engine.dispatcher import Dispatcher
from gigaoffice_worker.engine.pool import Pool
from gigaoffice_worker.engine.processor import Processor
from gigaoffice_worker.engine.status import Engine, Observer
from gigaoffice_worker.engine.topic_watch import TopicWatch
from gigaoffice_worker.handlers.loading import Handler, load
from gigaoffice_worker.observe import health, tracing
from gigaoffice_worker.observe.logs import dump_stacks, tell_left_out
from gigaoffice_worker.observe.metrics import Metrics, total
from gigaoffice_worker.observe.page import status_page
from gigaoffice_worker.observe.server import Answer, SidePort
from gigaoffice_worker.observe.systemd import Notifier, status_line, watchdog_interval

log = structlog.get_logger(__name__)

EXIT_DRAINED = 0
EXIT_ABANDONED = 70
_TICK = 0.25
_MISSING_TOPICS_EVERY = 2.0
_STATUS_EVERY = 2.0
_HOLD_DRAIN = "draining"
_HOLD_DELIVERY = "delivery"
# What is left of the drain time for leaving the group and closing clients once handlers have been given up.
_CLOSE_WITHIN = 4.0
# Seconds for the last spans: at least, and at most if the drain leaves so many.
_FLUSH_WITHIN = (0.5, 5.0)


class HangingHandlersError(WorkerError):
    """More handler calls hang than the pool has threads: only a new process can help."""

    exit_code = EXIT_ABANDONED


class Worker:
    """One worker process.

    `handler` replaces the one that the configuration names; `metrics` is given where something outside counts too.
    """

    def __init__(
        self, config: Config, handler: Callable[[Request], Any] | None = None, *, metrics: Metrics | None = None
    ) -> None:
        self._config = config
        self._given_handler = handler
        self._handler: Handler | None = None
        self._stop = threading.Event()
        self._signals = 0
        self._death: BaseException | None = None
        self._metrics = metrics or Metrics(__version__)
        self._verifier = TopicVerifier(config)
        self._topics = TopicWatch(self._verify_topics, self._topics_changed)
        self._logins = LoginWatch()
        self._observer = Observer(self._topics, self._logins, config.topics.dlq.name, _longest_request(config))
        self._engine: Engine | None = None
        self._spans = tracing.spans(
            os.environ, group=config.consumer.group, client_id=config.kafka.client_id, version=__version__
        )
        self._drain_until = 0.0
        self._notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
        self._watchdog_every = watchdog_interval(os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID"))
        self._next_watchdog = self._next_status = 0.0
        self._told_ready = False
        self._stacks_dumped = False
        self._told_storm: str | None = None
        self._told_refusal: str | None = None
        self._metrics.observe(self._observer.snapshot)
        port = config.side_port
        self._side_port = SidePort(
            port.host, port.port, self._pages(), self._metrics.registry, runtime_directory=port.runtime_directory
        )

    # The story

    def run(self) -> int:
        """Start, serve until asked to stop, drain, and return the exit code. Expected failures raise WorkerError."""
        self._listen_to_signals()
        with self._logins:
            try:
                self.start()
                while not self._stop.wait(_TICK):
                    self._look_after()
                return self._drain()
            finally:
                self.close()

    def start(self) -> None:
        """Open the side port, load the handler, see to the topics, and start the threads."""
        config = self._config
        log.info("Worker starting", version=__version__, handler=config.worker.handler, pid=os.getpid())
        self._side_port.start()
        self._handler = handler = self._handler_to_use()
        handler.register_metrics(self._metrics.registry)
        if self._see_to_topics():
            self._start_engine(handler)

    def stop(self) -> None:
        """Ask the worker to drain and end; asked again, to end at once."""
        self._signals += 1
        self._stop.set()
        if self._signals > 1 and self._engine is not None:
            self._engine.consumer.drain(time.monotonic())

    def close(self) -> None:
        """Free what the process holds. Never raises, never waits for a handler."""
        self._observer.state = "stopped"
        self._topics.stop()
        engine = self._engine
        if engine is not None:
            engine.dispatcher.stop()
            engine.delivery.stop()
            engine.delivery.join(1.0)
            engine.delivery.close(1.0)
        if self._spans is not None:
            self._spans.close(max(_FLUSH_WITHIN[0], min(_FLUSH_WITHIN[1], self._drain_until - time.monotonic())))
        if self._handler is not None and (engine is None or engine.pool.join(0.5)):
            _close_handler(self._handler)
        self._side_port.close(time.monotonic() + 1.0)
        if not self._topics.running:
            self._verifier.close()

    # Starting

    def _listen_to_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _handler_to_use(self) -> Handler:
        if self._given_handler is not None:
            return Handler(getattr(self._given_handler, "__name__", "given"), self._given_handler, lambda: None)
        return load(self._config.worker.handler)

    def _see_to_topics(self) -> bool:
        """Create and verify the topics; wait for missing ones that must not be created. False when asked to stop."""
        self._observer.state = "verifying topics"
        self._notifier.status("verifying topics")
        report: topics.TopicReport | None = topics.ensure_topics(
            self._config,
            on_created=lambda _topic: self._metrics.topics_created.inc(),
            on_error=lambda kind: self._metrics.topic_creation_errors.labels(kind).inc(),
            stop=self._stop,
        )
        if report is None:
            return False
        self._topics.note(report)
        while report is None or report.missing:
            self._observer.state = "waiting for topics"
            self._notifier.status(
                f"waiting for topics: {', '.join(report.missing) if report is not None else 'unknown'}"
            )
            if self._stop.wait(_MISSING_TOPICS_EVERY):
                return False
            report = self._topics.verify_now()
        return not self._stop.is_set()

    def _start_engine(self, handler: Handler) -> None:
        config = self._config
        worker = config.worker
        policy = RetryPolicy(worker.max_attempts, worker.retry_delay, worker.retry_max_delay)
        limits = StormLimits(worker.storm_guard, worker.storm_guard_min_requests, worker.storm_guard_ratio)
        dispatcher = Dispatcher(Scheduler(worker.ordering), policy, Gate(policy), StormGuard(limits))
        wire = RecordEncoder(config.topics.responses.name, config.topics.dlq.name, config.consumer.group, __version__)
        hooks = Hooks(
            free=dispatcher.free,
            hold=lambda: dispatcher.hold(_HOLD_DELIVERY),
            release=lambda: dispatcher.release(_HOLD_DELIVERY),
            sent=lambda topic, letters: self._metrics.messages_sent.labels(topic).inc(letters),
            rebuilt=self._metrics.producer_rebuilds.inc,
            send_failed=self._metrics.publish_failures.inc,
            died=self._died,
            traced=self._spans.acknowledged if self._spans is not None else None,
        )
        delivery = Delivery(
            wire,
            lambda: Producer(clients.producer(config)),
            hooks,
            delivery_timeout=clients.DELIVERY_TIMEOUT,
        )
        intake = ConsumerSettings(
            config.topics.requests.name,
            config.consumer.max_poll_records,
            config.consumer.auto_offset_reset,
            worker.rebalance_wait,
            join_within=_start_up_limit(config),
        )
        consumer = ConsumerThread(
            Consumer(clients.consumer(config), intake.topic), dispatcher, delivery, intake, self._metrics, self._died
        )
        pool = Pool(
            worker.concurrency,
            dispatcher,
            Processor(self._spans.around(handler.call) if self._spans else handler.call, worker.attempt_timeout),
            lambda work, verdict: delivery.deliver(work, verdict, self._request_partitions()),
            self._metrics,
            self._died,
        )
        self._engine = self._observer.engine = Engine(dispatcher, delivery, consumer, pool)
        self._observer.state = "joining"
        if self._topics.report is not None:
            self._topics_changed(self._topics.report)
        delivery.start()
        pool.start()
        consumer.start()
        self._topics.start()

    # Serving

    def _look_after(self) -> None:
        """One look at everything, four times a second: what died, what hangs, what must be told."""
        if self._death is not None:
            raise self._death
        engine = self._engine
        if engine is None:
            return
        engine.pool.abandon_overdue(self._config.worker.attempt_timeout)
        if self._spans is not None:
            self._spans.end_overdue()
        if engine.pool.all_hanging:
            message = f"{engine.pool.abandoned} handler calls hang beyond WORKER_ATTEMPT_TIMEOUT"
            raise HangingHandlersError(
                message, hint="the handler must keep its deadline; what was in flight is redelivered"
            )
        if self._observer.state == "joining" and engine.consumer.joined:
            self._observer.state = "running"
            log.info("Worker running", group=self._config.consumer.group)
        self._tell_of_the_login(self._logins.refusal)
        self._tell_of_the_storm(engine.dispatcher.guard.reason)
        self._tell_the_service_manager(engine)

    def _tell_of_the_login(self, refusal: str | None) -> None:
        if refusal and not self._told_refusal:
            hint = f"{BAD_CREDENTIALS.hint} A new password in KAFKA_SASL_PASSWORD_FILE is taken without a restart."
            log.error("Authentication lost: the cluster refuses new connections", error=refusal, hint=hint)
        elif self._told_refusal and not refusal:
            log.info("Authenticated again")
        self._told_refusal = refusal

    def _tell_of_the_storm(self, reason: str | None) -> None:
        if reason and not self._told_storm:
            hint = "one request at a time probes; see to what the handler calls"
            log.error("Storm guard stops intake: nearly every request fails alike", error_type=reason, hint=hint)
        elif self._told_storm and not reason:
            log.info("Storm guard opens intake again", error_type=self._told_storm)
        self._told_storm = reason

    def _tell_the_service_manager(self, engine: Engine) -> None:
        not_live = self._observer.not_live()
        if not_live and not self._stacks_dumped:
            self._stacks_dumped = True
            log.error("Worker makes no progress", reasons=[trouble.text for trouble in not_live])
            dump_stacks(log, not_live[0].text)
        if not self._told_ready and engine.consumer.joined:
            self._told_ready = self._notifier.ready("running")
        now = time.monotonic()
        if now >= self._next_status:
            self._next_status = now + _STATUS_EVERY
            self._notifier.status(status_line(self._observer.snapshot()))
        if self._watchdog_every is not None and not not_live and now >= self._next_watchdog:
            self._next_watchdog = now + self._watchdog_every
            self._notifier.watchdog()

    def _died(self, error: BaseException) -> None:
        """Take note that a thread of ours ended by an exception: the process follows it."""
        self._death = error
        if not isinstance(error, WorkerError):
            log.error("Thread died", thread=threading.current_thread().name, exc_info=error)
        if self._signals:
            self.stop()

    def _verify_topics(self) -> topics.TopicReport:
        return self._verifier.verify(previous=self._topics.report)

    def _topics_changed(self, report: topics.TopicReport) -> None:
        self._metrics.last_topic_verification.set(report.verified_at.timestamp())
        if self._engine is not None:
            for spec in (self._config.topics.responses, self._config.topics.dlq):
                limit, count = report.limits.get(spec.name), report.partitions.get(spec.name, 0)
                self._engine.delivery.know(spec.name, max_message_bytes=limit, partitions=count)

    def _request_partitions(self) -> int:
        report = self._topics.report
        return report.partitions.get(self._config.topics.requests.name, 0) if report is not None else 0

    # Stopping

    def _drain(self) -> int:
        """Take no new work, settle what is in flight, leave the group; the exit code says whether all was settled."""
        engine = self._engine
        self._observer.state = "draining"
        self._notifier.stopping()
        if engine is None:
            tell_left_out()
            log.info("Worker stopped", exit_code=EXIT_DRAINED)
            return EXIT_DRAINED
        deadline = self._drain_until = time.monotonic() + self._config.worker.drain_timeout
        log.info(
            "Worker draining", in_flight=engine.dispatcher.counts().running, timeout=self._config.worker.drain_timeout
        )
        engine.dispatcher.hold(_HOLD_DRAIN)
        engine.consumer.drain(deadline if self._signals < 2 else time.monotonic())
        while not engine.consumer.join(_TICK) and time.monotonic() < deadline + _CLOSE_WITHIN:
            engine.pool.abandon_overdue(self._config.worker.attempt_timeout)
            self._notifier.extend_timeout(10.0)
            self._notifier.status(status_line(self._observer.snapshot()))
            if self._watchdog_every is not None:
                self._notifier.watchdog()
        if isinstance(self._death, WorkerError):
            raise self._death
        code = EXIT_DRAINED if engine.consumer.clean else EXIT_ABANDONED
        counts = engine.dispatcher.counts()
        tell_left_out()
        log.info(
            "Worker stopped",
            exit_code=code,
            abandoned=counts.running + counts.delivering,
            redelivered_later=counts.queued + counts.waiting_retry,
        )
        return code

    # What the outside sees

    def get_health_status(self) -> dict[str, Any]:
        """Return the service health document: status, statistics and configuration."""
        topics_config, metrics = self._config.topics, self._metrics
        statistics = health.Statistics(
            messages_sent=total(metrics.messages_sent),
            messages_received=total(metrics.messages_received),
            messages_failed=total(metrics.messages_failed),
            topics_created=total(metrics.topics_created),
            topic_creation_errors=total(metrics.topic_creation_errors),
        )
        facts = health.ServiceFacts(
            ",".join(self._config.kafka.bootstrap_servers),
            topics_config.auto_create,
            topics_config.creation_retries,
            topics_config.creation_timeout,
        )
        engine, report = self._engine, self._topics.report
        return health.service_health(
            self._observer.snapshot(),
            statistics,
            facts,
            consumer_running=engine is not None and engine.consumer.thread.is_alive(),
            topics_differ=report is not None and bool(report.mismatches),
        )

    def get_topic_health(self) -> dict[str, Any]:
        """Return the topic health document: required, existing and missing topics, and when they were verified."""
        report = self._topics.report
        return health.topic_health(
            [spec.name for spec in self._config.topics],
            report.existing if report is not None else (),
            report.verified_at if report is not None else None,
            reachable=self._topics.error is None,
        )

    @property
    def port(self) -> int:
        """The side port that is listened on."""
        return self._side_port.port

    def _pages(self) -> dict[str, Callable[[], Answer]]:
        return {
            "/livez": lambda: _verdict("live", self._observer.not_live()),
            "/readyz": self._readyz,
            "/health": self._health,
            "/health/topics": lambda: Answer(200, self.get_topic_health()),
            "/status": lambda: Answer(200, self._status()),
            "/": lambda: Answer(200, status_page(self._status()), "text/html; charset=utf-8"),
        }

    def _readyz(self) -> Answer:
        snapshot = self._observer.snapshot()
        return _verdict("ready (standby: no partition assigned)" if snapshot.standby else "ready", snapshot.not_ready)

    def _health(self) -> Answer:
        document = self.get_health_status()
        return Answer(503 if document["status"] == "unhealthy" else 200, document)

    def _status(self) -> dict[str, Any]:
        config = self._config
        facts = {
            "version": __version__,
            "group": config.consumer.group,
            "topics": {spec.role: spec.name for spec in config.topics},
            "handler": config.worker.handler,
            "concurrency": config.worker.concurrency,
            "ordering": config.worker.ordering,
            "totals": self._metrics.totals(),
        }
        return health.status_document(self._observer.snapshot(), facts)


def _verdict(good: str, troubles: list[health.Trouble] | Any) -> Answer:
    if not troubles:
        return Answer(200, f"{good}\n")
    return Answer(503, "".join(visible(f"{trouble.code}: {trouble.text}") + "\n" for trouble in troubles))


def _close_handler(handler: Handler) -> None:
    try:
        handler.close()
    except Exception as error:  # noqa: BLE001  # the work is done; this must not change the exit code
        log.warning("Handler could not be closed", error=f"{type(error).__name__}: {error}")


def _longest_request(config: Config) -> float:
    """Return how long one request can take, in seconds: every attempt timed out, every delay the longest."""
    worker = config.worker
    policy = RetryPolicy(worker.max_attempts, worker.retry_delay, worker.retry_max_delay)
    delays = sum(policy.ceiling(attempt) for attempt in range(1, worker.max_attempts))
    return worker.max_attempts * worker.attempt_timeout + delays


def _start_up_limit(config: Config) -> float:
    spec = config.topics
    return (spec.creation_retries + 1) * spec.creation_timeout + spec.creation_retries * spec.creation_retry_delay
