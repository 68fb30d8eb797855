"""Outcomes out: the dead letter where there is one, then the response, each repeated until it is acknowledged.

Handler threads hand an outcome over and go on; nobody waits for an acknowledgement. The client's thread notes it, and
the consumer thread collects what is complete and settles the offsets. A topic in trouble holds everything newer back,
so that order survives the repair (`output_topic`), and a client in doubt is replaced (`supervised_producer`); the
delivery thread does both.

Responses and dead letters have a client each: whatever the dead letter topic suffers from, answers go on. Only while
responses cannot be delivered does no handler call start.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

import structlog

from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.core.dedupe import Answers
from gigaoffice_worker.core.journal import Floors, Place
from gigaoffice_worker.core.messages import RecordEncoder
from gigaoffice_worker.core.records import Failure, Outcome, OutgoingRecord, Reason, Record
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.failure_log import tell_dead_without_attempt
from gigaoffice_worker.engine.output_topic import OutputTopic, PendingOutcome, PendingSend
from gigaoffice_worker.engine.supervised_producer import SupervisedProducer
from gigaoffice_worker.observe.metrics import Metrics

log = structlog.get_logger(__name__)

# From this age of the oldest undelivered response on, no new handler call starts.
BLOCKED_AFTER = 5.0
HOLD = "delivery"
_TICK = 0.25


class HandlerCalls(Protocol):
    """What delivery asks of the dispatcher."""

    def free(self, work: Work) -> None:
        """Open the lane of a request."""

    def hold(self, reason: str) -> None:
        """Start no attempt until `release`."""

    def release(self, reason: str) -> None:
        """Let attempts start again."""


# Told of each record that is acknowledged: the record, the request it is about, and how many seconds that took. Called
# on the client's thread; must not raise.
Traced = Callable[[OutgoingRecord, Record, float], None]


class Delivery:
    """Owns the two output topics and the thread of repairs. `died` hears of that thread's end.

    `make_producer` makes a producer under the worker's client id, with what it is given behind that.
    """

    def __init__(
        self,
        encoder: RecordEncoder,
        make_producer: Callable[[str], Producer],
        handler_calls: HandlerCalls,
        metrics: Metrics,
        died: Callable[[BaseException], None],
        *,
        delivery_timeout: float,
        floors: Floors | None = None,
        answers: Answers | None = None,
        traced: Traced | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = encoder
        self._handler_calls = handler_calls
        self._metrics = metrics
        self._died = died
        self._floors = floors or Floors()
        self._answers = answers
        self._traced = traced
        self._clock = clock
        self._wake = threading.Event()
        self._responses = OutputTopic(
            encoder.responses,
            SupervisedProducer(lambda: make_producer(""), delivery_timeout=delivery_timeout, clock=clock),
            on_acknowledged=self._on_acknowledged,
            wake=self._wake.set,
            replace=self._replace_response,
        )
        self._dlq = OutputTopic(
            encoder.dlq,
            SupervisedProducer(lambda: make_producer("dlq"), delivery_timeout=delivery_timeout, clock=clock),
            on_acknowledged=self._on_acknowledged,
            wake=self._wake.set,
        )
        self._topics = {topic.name: topic for topic in (self._responses, self._dlq)}
        # Acknowledged and not collected; and outcomes of which something is left to do behind an acknowledgement.
        self._acknowledged: deque[PendingSend] = deque()
        self._to_continue: deque[PendingOutcome] = deque()
        self._collected_bytes = 0
        self.request_partitions = 0
        """How many partitions the request topic has, 0 while that is not known."""
        self._stopping = False
        self._held = False
        self.last_turn = clock()
        self.thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    # Life

    def start(self) -> None:
        """Build the first producers (their errors are the caller's) and start the thread of repairs."""
        for topic in self._topics.values():
            topic.producer.start()
        self.thread.start()

    def stop(self) -> None:
        """Ask the thread to end; what is not acknowledged by now stays unsettled."""
        self._stopping = True
        self._wake.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; False when it is still alive after `timeout` seconds."""
        if self.thread.ident is not None:  # else start() failed, and its error is the one to be told
            self.thread.join(timeout)
        return not self.thread.is_alive()

    def close(self, timeout: float) -> None:
        """End the clients' threads, each within `timeout` seconds."""
        for topic in self._topics.values():
            topic.producer.close(timeout)

    def know(self, topic: str, *, max_message_bytes: int | None, partitions: int) -> None:
        """Note what an output topic takes, as the last verification found it."""
        self._topics[topic].learn(max_message_bytes=max_message_bytes, partitions=partitions)

    # Handing over (handler threads)

    def deliver(self, work: Work, outcome: Outcome) -> bool:
        """Send the outcome of a request; True when its lane may be opened now, else delivery opens it later."""
        # Partitioned like the requests: order per key holds, and the client need not hash the key.
        alike = self.request_partitions == self._responses.partitions > 0
        pending = self._pending(work, outcome, work.record.partition if alike else None)
        if work.owed is not None:
            del pending.unsent[:-1]  # the dead letter is in its topic already
        return self._send_next(pending)

    def _pending(self, work: Work, outcome: Outcome, partition: int | None) -> PendingOutcome:
        # Read before anything is sent: whatever is sent later stands higher.
        work.floor = work.floor or self._floors.now
        records = self._encoder.outgoing(
            work.record,
            work.id,
            outcome,
            seconds=work.seconds,
            attempts=work.attempt,
            at=time.time(),
            partition=partition,
        )
        if self._answers is not None:
            completed = outcome.result is not None and outcome.failure is None and outcome.reason is None
            self._answers.ended(work, records[-1].value if completed else None)
        return PendingOutcome(work, outcome, records)

    def _send_next(self, outcome: PendingOutcome) -> bool:
        """Send the next record of an outcome; True when its lane may be opened now (it is noted as opened)."""
        record = outcome.unsent.pop(0)
        topic = self._topics[record.topic]
        pending = topic.pending(outcome, record, self._clock())
        opens = not outcome.lane_opened and not outcome.unsent and not pending.alone
        outcome.lane_opened = outcome.lane_opened or opens
        topic.send(pending)
        return opens

    # Acknowledgements

    def _on_acknowledged(self, pending: PendingSend) -> None:
        """Note that a record is durable; called on the client's thread."""
        self._acknowledged.append(pending)
        outcome = pending.outcome
        if outcome.unsent or not outcome.lane_opened:
            self._to_continue.append(outcome)
            self._wake.set()
        if self._traced is not None and not pending.refused:
            self._traced(pending.record, outcome.work.record, self._clock() - pending.first_sent_at)

    def collect(self) -> list[PendingOutcome]:
        """Return the outcomes that have become durable since the last call (the consumer thread's)."""
        durable: list[PendingOutcome] = []
        sent: Counter[str] = Counter()
        ends: dict[Place, int] = {}
        for _ in range(len(self._acknowledged)):
            pending = self._acknowledged.popleft()
            self._collected_bytes += pending.size
            if not pending.refused:
                topic = pending.record.topic
                sent[topic] += 1
                partition, offset = pending.place
                ends[topic, partition] = max(offset + 1, ends.get((topic, partition), 0))
            if pending.topic is self._responses or not pending.outcome.work.id:
                durable.append(pending.outcome)
        for topic, records in sent.items():
            self._metrics.messages_sent.labels(topic).inc(records)
        self._floors.raise_to(ends)
        return durable

    @property
    def unsettled_bytes(self) -> int:
        """Bytes of records that were handed over and not collected."""
        return self._responses.taken_bytes + self._dlq.taken_bytes - self._collected_bytes

    # State for the observers

    def trouble(self) -> dict[str, str]:
        """Return where the oldest undelivered record is older than it should be, as topic → reason."""
        now = self._clock()
        found = {}
        for topic in self._topics.values():
            oldest = topic.oldest()
            if oldest is not None and now - oldest > BLOCKED_AFTER:
                found[topic.name] = topic.trouble
        return found

    # The thread of repairs

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.wait(_TICK)
                self._wake.clear()
                self.last_turn = self._clock()
                self._turn(self.last_turn)
        except BaseException as error:  # noqa: BLE001  # a thread of ours that dies takes the process down
            self._died(error)

    def _turn(self, now: float) -> None:
        while self._to_continue:
            self._continue(self._to_continue.popleft())
        failed = sum(topic.sort_failures(now) for topic in self._topics.values())
        if failed:
            self._metrics.publish_failures.inc(failed)
        for topic in self._topics.values():
            if not topic.check_producer(now):
                topic.mend(now)
            elif topic.producer.rebuild_due(now):
                self._replace_producer(topic)
        oldest = self._responses.oldest()
        self._hold(blocked=oldest is not None and now - oldest > BLOCKED_AFTER)

    def _continue(self, outcome: PendingOutcome) -> None:
        """Send the next record of an outcome, or open its lane behind the last one."""
        if outcome.unsent:
            opens = self._send_next(outcome)
        else:
            opens = not outcome.lane_opened
            outcome.lane_opened = True
        if opens:
            self._handler_calls.free(outcome.work)

    def _replace_response(self, pending: PendingSend) -> bool:
        """Put something else in the place of a response that its topic refuses for its size."""
        old, work = pending.outcome, pending.outcome.work
        if old.outcome.reason is None:
            size = len(pending.record.value or b"")
            message = f"the response of {size} bytes is larger than topic {pending.record.topic} takes"
            failure = Failure("ResponseTooLarge", message)
            outcome = Outcome(failure=failure, reason=Reason.RESPONSE_TOO_LARGE)
            tell_dead_without_attempt(work, failure, Reason.RESPONSE_TOO_LARGE)
            # To the same partition as the response that it stands for: the journal looks for it there.
            replacement = self._pending(work, outcome, pending.record.partition)
            replacement.lane_opened = old.lane_opened
            pending.topic.forget_size(pending)
            if self._send_next(replacement):
                self._handler_calls.free(work)
            return True
        # The smallest response there is does not fit either (a huge key): the dead letter has to do.
        record = work.record
        log.error(
            "Response refused for its size; the dead letter is the only outcome",
            request_id=work.id,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
        pending.refused = True
        self._on_acknowledged(pending)
        return True

    def _replace_producer(self, topic: OutputTopic) -> None:
        if topic is self._responses:
            # In an outage this takes longer than responses may wait, and nobody else would look at their age.
            self._hold(blocked=True)
        if topic.replace_producer():
            self._metrics.producer_rebuilds.inc()
            self._wake.set()

    def _hold(self, *, blocked: bool) -> None:
        if blocked and not self._held:
            self._handler_calls.hold(HOLD)
            log.warning("No handler call starts while responses cannot be delivered", trouble=self._responses.trouble)
        elif self._held and not blocked:
            self._handler_calls.release(HOLD)
            log.info("Handler calls start again: responses are delivered")
        self._held = blocked
