"""Outcomes out: the dead letter where there is one, then the response, each repeated until it is acknowledged.

Handler threads hand an outcome over and go on; nobody waits for an acknowledgement. The client's thread notes it, and
the consumer thread collects what is complete and settles the offsets. While a topic is in trouble its *outlet* holds
everything newer back, so that order survives the repair, and the delivery thread sends again: what failed first, in
its first order, alone where a batch was too large. When the client itself is in doubt it is replaced.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from gigaoffice_worker.broker.error_table import SendFailure, send_failure
from gigaoffice_worker.broker.producer import Producer
from gigaoffice_worker.core.messages import RecordEncoder
from gigaoffice_worker.core.records import Failure, Outcome, OutgoingRecord, Reason, Record
from gigaoffice_worker.core.work import Work
from gigaoffice_worker.engine.output_topic import OutputTopic, PendingOutcome, PendingSend

log = structlog.get_logger(__name__)

# A future that is older than the client's own delivery time-out plus this is abandoned, and the client with it.
ABANDON_AFTER = 10.0
# From this age of the oldest undelivered outcome on, no new handler call starts.
BLOCKED_AFTER = 5.0
_TICK = 0.25
_BACKOFF, _MAX_BACKOFF = 0.2, 10.0
# A letter that every client refuses must not wear clients out.
_REBUILD_EVERY = 1.0
_STOP_SENDER_WITHIN = 5.0


class Delivered(NamedTuple):
    """An outcome that is durable, with what it was."""

    work: Work
    verdict: Outcome


def _raise(error: BaseException) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom delivery tells: the dispatcher (an opened lane, a hold), the metrics, and who minds its thread."""

    free: Callable[[Work], None]
    hold: Callable[[], None]
    release: Callable[[], None]
    sent: Callable[[str, int], None]
    rebuilt: Callable[[], None]
    send_failed: Callable[[int], None]
    died: Callable[[BaseException], None] = _raise
    # Who draws spans hears of each letter that is acknowledged, and how many seconds that took. Must not raise.
    traced: Callable[[OutgoingRecord, Record, float], None] | None = None


class Delivery:
    """Owns the producer and its thread of repairs."""

    def __init__(
        self,
        wire: RecordEncoder,
        make_producer: Callable[[], Producer],
        hooks: Hooks,
        *,
        delivery_timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wire = wire
        self._make_producer = make_producer
        self._hooks = hooks
        self._delivery_timeout = delivery_timeout
        self._clock = clock
        self._producer: Producer | None = None
        # A client whose sender would not end is kept, or its finaliser would block whoever runs the collector.
        self._retired: list[Producer] = []
        self._wake = threading.Event()
        numbers = itertools.count()
        self._responses = OutputTopic(wire.responses, numbers, self._on_acknowledged, self._wake.set)
        self._dlq = OutputTopic(wire.dlq, numbers, self._on_acknowledged, self._wake.set)
        self._outlets = {outlet.topic: outlet for outlet in (self._responses, self._dlq)}
        self._acknowledged: deque[PendingSend] = deque()
        self._next_letters: deque[PendingOutcome] = deque()
        self._collected_bytes = 0
        self._stopping = False
        self._doubt: str | None = None
        self._rebuild_at = 0.0
        self._rebuilds_failed = 0
        self._held = False
        self.last_turn = clock()
        self.thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    # Life

    def start(self) -> None:
        """Build the first producer (its errors are the caller's) and start the thread of repairs."""
        self._producer = self._make_producer()
        self.thread.start()

    def stop(self) -> None:
        """Ask the thread to end; what is not acknowledged by now stays unsettled."""
        self._stopping = True
        self._wake.set()

    def join(self, timeout: float) -> bool:
        if self.thread.ident is not None:  # else start() failed, and its error is the one to be told
            self.thread.join(timeout)
        return not self.thread.is_alive()

    def close(self, timeout: float) -> None:
        """End the client's thread."""
        if self._producer is not None:
            self._producer.force_stop(timeout)

    def know(self, topic: str, *, max_message_bytes: int | None, partitions: int) -> None:
        """Note what the topic takes, as the last verification found it."""
        outlet = self._outlets[topic]
        outlet.max_message_bytes = max_message_bytes if max_message_bytes is not None else 1_000_000
        outlet.partitions = partitions

    # Handing over (handler threads)

    def deliver(self, work: Work, verdict: Outcome, request_partitions: int) -> bool:
        """Send the outcome of a request; True when its lane may be opened now, else delivery opens it later."""
        shipment = self._ship(work, verdict, request_partitions)
        return self._post(shipment)

    def _ship(self, work: Work, verdict: Outcome, request_partitions: int) -> PendingOutcome:
        partition = None
        if request_partitions == self._responses.partitions > 0:
            # Partitioned like the requests: order per key holds, and the client need not hash the key.
            partition = work.record.partition
        letters = self._wire.outgoing(
            work.record,
            work.id,
            verdict,
            seconds=work.seconds,
            attempts=work.attempt,
            at=time.time(),
            partition=partition,
        )
        return PendingOutcome(work, verdict, letters)

    def _post(self, shipment: PendingOutcome) -> bool:
        """Send the next letter of an outcome; True when its lane may be opened now (it is noted as opened)."""
        letter = shipment.letters.pop(0)
        outlet = self._outlets[letter.topic]
        parcel = PendingSend(outlet, shipment, letter, self._clock())
        frees = not shipment.freed and not shipment.letters and not parcel.alone
        shipment.freed = shipment.freed or frees
        if outlet.admit(parcel):
            self._send(parcel)
        else:
            self._wake.set()
        return frees

    def _send(self, parcel: PendingSend) -> None:
        producer = self._producer
        try:
            if producer is None:
                message = "no producer"
                raise RuntimeError(message)  # noqa: TRY301  # one way for every failure
            producer.send(parcel.letter, parcel.acknowledged, parcel.failed)
        except Exception as error:  # noqa: BLE001  # whatever the client raises, the letter is sent again
            parcel.failed(error)

    # Acknowledgements

    def _on_acknowledged(self, parcel: PendingSend) -> None:
        """Note that a letter is durable; called on the client's thread."""
        self._acknowledged.append(parcel)
        if parcel.shipment.letters or not parcel.shipment.freed:
            self._next_letters.append(parcel.shipment)
            self._wake.set()
        elif parcel.outlet.repairing:
            self._wake.set()
        if self._hooks.traced is not None and not parcel.refused:
            self._hooks.traced(parcel.letter, parcel.shipment.work.record, self._clock() - parcel.first_sent_at)

    def collect(self) -> list[Delivered]:
        """Return the outcomes that have become durable since the last call (the consumer thread's)."""
        delivered: list[Delivered] = []
        sent: Counter[str] = Counter()
        for _ in range(len(self._acknowledged)):
            parcel = self._acknowledged.popleft()
            shipment = parcel.shipment
            self._collected_bytes += parcel.size
            if not parcel.refused:
                sent[parcel.letter.topic] += 1
            if parcel.outlet is self._responses or not shipment.work.id:
                delivered.append(Delivered(shipment.work, shipment.verdict))
        for topic, letters in sent.items():
            self._hooks.sent(topic, letters)
        return delivered

    @property
    def unsettled_bytes(self) -> int:
        """Bytes of letters that were handed over and not collected."""
        return self._responses.posted_bytes + self._dlq.posted_bytes - self._collected_bytes

    # State for the observers

    def trouble(self) -> dict[str, str]:
        """Return what cannot be delivered, as topic → reason: what is in repair, or older than it should be."""
        now = self._clock()
        found = {}
        for outlet in self._outlets.values():
            oldest = outlet.oldest()
            if oldest is not None and now - oldest > BLOCKED_AFTER:
                found[outlet.topic] = outlet.trouble or self._doubt or "no acknowledgement from the cluster"
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
            self._hooks.died(error)

    def _turn(self, now: float) -> None:
        while self._next_letters:
            self._go_on(self._next_letters.popleft())
        for outlet in self._outlets.values():
            self._sort_failures(outlet, now)
        self._look_for_doubt(now)
        if self._doubt is not None:
            if now >= self._rebuild_at:
                self._rebuild(now)
        else:
            for outlet in self._outlets.values():
                for parcel in outlet.next_group(now):
                    self._send(parcel)
        self._hold_while_blocked(now)

    def _go_on(self, shipment: PendingOutcome) -> None:
        """Send the next letter of an outcome, or open its lane behind the last one."""
        if shipment.letters:
            frees = self._post(shipment)
        else:
            frees = not shipment.freed
            shipment.freed = True
        if frees:
            self._hooks.free(shipment.work)

    def _sort_failures(self, outlet: OutputTopic, now: float) -> None:
        """Decide what each failure means: send again, send alone, give up this size, or doubt the client."""
        with outlet.lock:
            failures, outlet.failures = outlet.failures, []
        if not failures:
            return
        self._hooks.send_failed(len(failures))
        again: list[PendingSend] = []
        at_once = True
        for parcel, error in failures:
            match send_failure(error):
                case SendFailure.TOO_LARGE:
                    if parcel.alone and self._give_up(parcel):
                        continue
                    at_once = at_once and not parcel.alone
                    parcel.alone = True
                    outlet.trouble = f"the topic refuses a record of {parcel.size} bytes: raise its max.message.bytes"
                case SendFailure.REFUSED:
                    at_once = False
                    outlet.trouble = f"{type(error).__name__}: {error}"
                case SendFailure.STUCK:
                    at_once = False
                    self._doubt = f"{type(error).__name__}: {error}"
            again.append(parcel.again())
        if not again:
            return  # The topic has given its answer to a size: it is in no trouble.
        outlet.trying = False
        outlet.series += 1
        backoff = min(_MAX_BACKOFF, _BACKOFF * 2.0 ** min(outlet.series - 1, 10))
        outlet.retry_at = now if at_once else now + backoff
        with outlet.lock:
            outlet.waiting += again
        log.warning(
            "Outcomes were not acknowledged and will be sent again",
            topic=outlet.topic,
            records=len(again),
            error=self._doubt or outlet.trouble,
            retry_in=round(outlet.retry_at - now, 3),
        )

    def _give_up(self, parcel: PendingSend) -> bool:
        """Replace a response that its topic refuses for its size; False where nothing can replace the letter."""
        shipment, work = parcel.shipment, parcel.shipment.work
        if parcel.outlet is self._dlq:
            return False
        if shipment.verdict.reason is None:
            size = len(parcel.letter.value or b"")
            message = f"the response of {size} bytes is larger than topic {parcel.letter.topic} takes"
            verdict = Outcome(failure=Failure("ResponseTooLarge", message), reason=Reason.RESPONSE_TOO_LARGE)
            replacement = self._ship(work, verdict, -1)
            replacement.freed = shipment.freed
            parcel.outlet.drop(parcel)
            if self._post(replacement):
                self._hooks.free(work)
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
        parcel.refused = True
        self._on_acknowledged(parcel)
        return True

    def _look_for_doubt(self, now: float) -> None:
        if self._doubt is not None:
            return
        if self._producer is None or self._producer.broken:
            self._doubt = "the producer cannot send any more"
        limit = self._delivery_timeout + ABANDON_AFTER
        for outlet in self._outlets.values():
            since = outlet.owed_since()
            if since is not None and now - since > limit:
                self._doubt = f"no answer for {now - since:.0f} seconds"

    def _rebuild(self, now: float) -> None:
        """Replace the client: stop the old one for good, then take back everything it held."""
        for outlet in self._outlets.values():
            outlet.repairing = True
        # In an outage what follows takes longer than outcomes may wait, and nobody else would look at their age.
        self._hold(blocked=True)
        if self._producer is not None:
            if not self._producer.force_stop(_STOP_SENDER_WITHIN):
                self._retired.append(self._producer)
            self._producer = None
        for outlet in self._outlets.values():
            outlet.reclaim()
        try:
            self._producer = self._make_producer()
        except Exception as error:  # noqa: BLE001  # an outage; tried again until it is over
            self._rebuilds_failed += 1
            self._rebuild_at = self._clock() + min(_MAX_BACKOFF, 0.5 * 2.0 ** min(self._rebuilds_failed - 1, 10))
            log.warning("Producer could not be rebuilt", error=str(error), cause=self._doubt)
            return
        self._rebuilds_failed = 0
        self._rebuild_at = self._clock() + _REBUILD_EVERY
        self._hooks.rebuilt()
        log.warning("Producer rebuilt", cause=self._doubt, stopped_after=round(self._clock() - now, 3))
        self._doubt = None
        for outlet in self._outlets.values():
            outlet.retry_at = 0.0
        self._wake.set()

    def _hold_while_blocked(self, now: float) -> None:
        ages = [now - oldest for outlet in self._outlets.values() if (oldest := outlet.oldest()) is not None]
        self._hold(blocked=max(ages, default=0.0) > BLOCKED_AFTER)

    def _hold(self, *, blocked: bool) -> None:
        if blocked and not self._held:
            self._hooks.hold()
            log.warning("No handler call starts while outcomes cannot be delivered", trouble=self.trouble())
        elif self._held and not blocked:
            self._hooks.release()
            log.info("Handler calls start again: outcomes are delivered")
        self._held = blocked
