"""The life of a worker process: start, serve, drain, stop. Nothing about requests is decided here."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import structlog

from gigaoffice_worker._version import __version__
from gigaoffice_worker.broker.connection_log import LoginWatch
from gigaoffice_worker.broker.error_table import BAD_CREDENTIALS
from gigaoffice_worker.broker.verification import TopicReport
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.errors import WorkerError
from gigaoffice_worker.core.records import Request
from gigaoffice_worker.core.retry import RetryPolicy
from gigaoffice_worker.engine.engine import Engine
from gigaoffice_worker.engine.orders import Orders
from gigaoffice_worker.engine.status import Observer
from gigaoffice_worker.engine.topic_watch import TopicWatch
from gigaoffice_worker.handlers.loading import Handler, load, prepare
from gigaoffice_worker.observe import tracing
from gigaoffice_worker.observe.announcer import Announcer
from gigaoffice_worker.observe.control import ControlSocket
from gigaoffice_worker.observe.health import State
from gigaoffice_worker.observe.logs import dump_stacks, tell_left_out
from gigaoffice_worker.observe.metrics import Metrics
from gigaoffice_worker.observe.pages import Pages
from gigaoffice_worker.observe.server import SidePort
from gigaoffice_worker.observe.systemd import ServiceManager

log = structlog.get_logger(__name__)

EXIT_DRAINED = 0
EXIT_ABANDONED = 70
_TICK = 0.25
_LOOK_EVERY = 1.0
# What is left of the drain time for leaving the group and closing clients once handlers have been given up.
_CLOSE_WITHIN = 4.0
# A stop that takes longer than this says which calls it waits for.
_TELL_WAIT_AFTER = 1.0
# Seconds for the last spans, and for what the handler holds: at least, and at most if the drain leaves so many.
_FREE_WITHIN = (0.5, 5.0)


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
        # What signals put into it: also from within a call of its own, so nothing may have a lock here that they need.
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._signals = 0
        # How many calls hang, once they are too many to go on.
        self._hanging = 0
        self._death: BaseException | None = None
        self._metrics = metrics or Metrics(__version__)
        self._topics = TopicWatch(config, self._metrics, self._topics_changed)
        self._logins = LoginWatch()
        self._observer = Observer(self._topics, self._logins, config.topics.dlq.name, _longest_request(config))
        self._engine: Engine | None = None
        self._spans = tracing.spans(
            os.environ, group=config.consumer.group, client_id=config.kafka.client_id, version=__version__
        )
        self._drain_until = 0.0
        self._service_manager = ServiceManager(os.environ)
        self._stacks_dumped = False
        self._announcer = Announcer()
        self._next_look = 0.0
        self._told_storm: str | None = None
        self._told_refusal: str | None = None
        self._metrics.observe(self._observer.snapshot)
        self._pages = Pages(config, self._metrics, __version__, self._observer.snapshot, self._observer.not_live)
        port = config.side_port
        self._side_port = SidePort(
            port.host,
            port.port,
            self._pages.by_path(),
            self._metrics.registry,
            runtime_directory=port.runtime_directory,
            names=port.allowed_hosts,
            wait=port.port_wait,
        )
        self._control = ControlSocket(port.runtime_directory, Orders(lambda: self._engine).commands())

    # The story

    def run(self) -> int:
        """Start, serve until asked to stop, drain, and return the exit code. Expected failures raise WorkerError."""
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
        self._side_port.start(self._stop)
        self._control.start()
        self._handler = handler = self._handler_to_use()
        handler.register_metrics(self._metrics.registry)
        # Not before: until here a signal ends the process at once (`cli/run.py`), however long the handler takes to be
        # loaded; and whatever its module did to the signals is undone.
        self._listen_to_signals()
        self._enter(State.VERIFYING_TOPICS)
        if self._topics.ensure(self._stop, self._wait_for_topics):
            self._start_engine(handler)

    def stop(self) -> None:
        """Ask the worker to drain and end; asked again, to end at once."""
        self._signals += 1
        self._stop.set()
        if self._signals > 1 and self._engine is not None:
            self._engine.hurry()

    def close(self) -> None:
        """Free what the process holds. Never raises, never waits long for a handler."""
        self._observer.state = State.STOPPED
        self._topics.stop()
        engine = self._engine
        if engine is not None:
            engine.close()
        if self._spans is not None:
            self._spans.close(self._left())
        self._control.close()
        self._side_port.close(time.monotonic() + 1.0)
        self._topics.close()
        if self._handler is not None and (engine is None or engine.pool.join(0.5)):
            self._handler.close(self._left())
        self._asked.put(None)

    def _left(self) -> float:
        """Return how many seconds there are for what is to be freed at the end."""
        return max(_FREE_WITHIN[0], min(_FREE_WITHIN[1], self._drain_until - time.monotonic()))

    # Starting

    def _listen_to_signals(self) -> None:
        """Let a thread act on signals: Python handles them within whatever the main thread does, holding a lock say."""
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, _frame: FrameType | None) -> None:
            self._asked.put(number)

        def act() -> None:
            for _ in iter(self._asked.get, None):
                self.stop()

        threading.Thread(target=act, name="signals", daemon=True).start()
        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    def _handler_to_use(self) -> Handler:
        if self._given_handler is not None:
            return prepare(self._given_handler)
        return load(self._config.worker.handler)

    def _enter(self, state: State) -> None:
        self._observer.state = state
        self._service_manager.starting(state.value)

    def _wait_for_topics(self, missing: Sequence[str]) -> None:
        self._observer.state = State.WAITING_FOR_TOPICS
        self._service_manager.starting(f"{State.WAITING_FOR_TOPICS}: {', '.join(missing)}")

    def _start_engine(self, handler: Handler) -> None:
        engine = Engine(
            self._config,
            handler.call,
            self._metrics,
            self._spans,
            self._died,
            map_limit=self._topics.commit_metadata_limit(),
        )
        self._engine = self._observer.engine = engine
        self._observer.state = State.JOINING
        if self._topics.report is not None:
            engine.know(self._topics.report)
        engine.start()
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
        if engine.pool.too_many_hang:
            self._hanging = engine.pool.abandoned
            self._stop.set()
        joined = engine.consumer.ownership.joined
        if self._observer.state is State.JOINING and joined:
            self._observer.state = State.RUNNING
            log.info("Worker running", group=self._config.consumer.group)
        self._tell_of_readiness()
        self._tell_of_the_login(self._logins.refusal)
        self._tell_of_the_storm(engine.dispatcher.admission.guard.reason)
        self._service_manager.serving(self._observer.snapshot, joined=joined, live=self._is_live())

    def _tell_of_readiness(self) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            self._announcer.look(self._observer.snapshot().not_ready, now)

    def _tell_of_the_login(self, refusal: str | None) -> None:
        if refusal and not self._told_refusal:
            hint = (
                f"{BAD_CREDENTIALS.hint} A new password in KAFKA_SASL_PASSWORD_FILE is taken without a restart, "
                "but systemd's LoadCredential copies the file at the start only."
            )
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

    def _is_live(self) -> bool:
        """Say whether all threads make progress; the first time that one does not, log every thread's stack."""
        not_live = self._observer.not_live()
        if not_live and not self._stacks_dumped:
            self._stacks_dumped = True
            log.error("Worker makes no progress", reasons=[trouble.text for trouble in not_live])
            dump_stacks(log, not_live[0].text)
        return not not_live

    def _died(self, error: BaseException) -> None:
        """Take note that a thread of ours ended by an exception: the process follows it."""
        self._death = error
        if not isinstance(error, WorkerError):
            log.error("Thread died", thread=threading.current_thread().name, exc_info=error)
        if self._signals:
            self.stop()

    def _topics_changed(self, report: TopicReport) -> None:
        if self._engine is not None:
            self._engine.know(report)

    # Stopping

    def _drain(self) -> int:
        """Take no new work, settle what is in flight, leave the group; the exit code says whether all was settled."""
        engine = self._engine
        self._observer.state = State.DRAINING
        self._service_manager.stopping()
        if engine is None:
            tell_left_out()
            log.info("Worker stopped", exit_code=EXIT_DRAINED)
            return EXIT_DRAINED
        timeout = self._config.worker.drain_timeout
        deadline = self._drain_until = time.monotonic() + timeout
        log.info("Worker draining", in_flight=engine.dispatcher.counts().running, timeout=timeout)
        engine.drain(deadline)
        if self._signals > 1:  # the second one may have come in between
            engine.hurry()
        tell_at: float | None = time.monotonic() + _TELL_WAIT_AFTER
        while not engine.consumer.join(_TICK) and time.monotonic() < deadline + _CLOSE_WITHIN:
            engine.pool.abandon_overdue(self._config.worker.attempt_timeout)
            if tell_at is not None and time.monotonic() >= tell_at:
                tell_at = None
                engine.pool.tell_running("Stop waits for a handler call")
            self._service_manager.draining(self._observer.snapshot())
        engine.pool.tell_running("Stop abandons a handler call that still runs")
        if isinstance(self._death, WorkerError):
            raise self._death
        if self._hanging:
            message = f"{self._hanging} handler calls hang beyond WORKER_ATTEMPT_TIMEOUT"
            raise HangingHandlersError(
                message, hint="the handler must keep its deadline; what was in flight is redelivered"
            )
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
        return self._pages.service_health()

    def get_topic_health(self) -> dict[str, Any]:
        """Return the topic health document: required, existing and missing topics, and when they were verified."""
        return self._pages.topic_health()

    @property
    def port(self) -> int:
        """The side port that is listened on."""
        return self._side_port.port


def _longest_request(config: Config) -> float:
    """Return how long one request can take, in seconds: every attempt timed out, every delay the longest."""
    worker = config.worker
    policy = RetryPolicy(worker.max_attempts, worker.retry_delay, worker.retry_max_delay)
    delays = sum(policy.ceiling(attempt) for attempt in range(1, worker.max_attempts))
    return worker.max_attempts * worker.attempt_timeout + delays
