"""The consumer as the engine wants it: plain functions for a rebalance, our own exceptions, a time limit on every call.

Nothing but the consumer thread may call it. What the client library keeps to itself and we need all the same is read
in this file only (what cannot be decoded: in `kafka_python.fetching`), and held by a test: the member's generation and
session, asking for high watermarks without waiting and for several committed positions at once, a commit that is sent
once, a rebalance that is pending.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata
from kafka.util import Timer

from gigaoffice_worker.broker.error_table import commit_error
from gigaoffice_worker.broker.errors import FencedError, OutOfRangeError, UndecodableError
from gigaoffice_worker.broker.kafka_python.clock import STEADY
from gigaoffice_worker.broker.kafka_python.fetching import set_aside, watch
from gigaoffice_worker.core.records import Record

_LATEST = -1


class Membership(NamedTuple):
    """Who we are in the group, and which of its generations that holds for."""

    member_id: str
    generation: int


class Committed(NamedTuple):
    """A committed position and the metadata that was committed with it."""

    position: int
    metadata: str


class Consumer:
    """A subscription to one topic, in partitions' numbers rather than the client's pairs."""

    def __init__(self, client: KafkaConsumer, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._watermarks: dict[int, int] = {}
        # When the coordinator last heard of us, on the client's clock.
        self._confirmed_at = STEADY.time()

    def subscribe(self, on_revoked: Callable[[], None], on_assigned: Callable[[frozenset[int]], None]) -> None:
        """Join the group at the next poll. The functions are called within `poll`, and must not raise."""
        topic = self._topic

        def note_assigned() -> None:
            self._confirmed_at = STEADY.time()

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the client ships no types
            def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002  # all of them
                on_revoked()

            def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
                note_assigned()
                on_assigned(frozenset(tp.partition for tp in assigned if tp.topic == topic))

        watch(self._client._fetcher)  # noqa: SLF001
        self._client.subscribe([topic], listener=Listener())

    def poll(self, timeout: float, limit: int) -> dict[int, list[Record]]:
        """Return at most `limit` records by partition, waiting up to `timeout` seconds for the first.

        Raises OutOfRangeError, UndecodableError, FencedError, and whatever else the client raises.
        """
        self._go_on_joining()
        try:
            # One round of the client's `poll`, which would spin through the last millisecond of its time.
            batches = self._client._poll_once(Timer(int(timeout * 1000)), limit)  # noqa: SLF001
        except kafka_errors.OffsetOutOfRangeError as error:
            raise OutOfRangeError({tp.partition: at for tp, at in error.args[0].items()}) from error
        except kafka_errors.NoOffsetForPartitionError:
            # A partition that has no position yet: the engine gives it one before it is resumed.
            return {}
        except kafka_errors.FencedInstanceIdError as error:
            raise FencedError from error
        except UndecodableError as error:
            set_aside(self._client._fetcher, error.partition)  # noqa: SLF001
            raise
        return {tp.partition: [_record(record) for record in records] for tp, records in batches.items()}

    def _go_on_joining(self) -> None:
        """Remind the client of a rebalance that its last poll left pending.

        It joins again when the leader sees other partitions than it has assigned, and takes that for settled once the
        leader has assigned anew: where the answer to that comes in a later poll, nobody picks up the assignment.
        """
        coordinator = self._client._coordinator  # noqa: SLF001
        if coordinator.join_future is not None:
            coordinator.request_rejoin()

    def membership(self) -> Membership | None:
        """Return who we are in the group, or None while we are not in it."""
        generation = self._client._coordinator._generation  # noqa: SLF001
        if generation.generation_id < 0 or not generation.member_id:
            return None
        return Membership(generation.member_id, generation.generation_id)

    def session_left(self) -> float:
        """Return for how many seconds the coordinator keeps us in the group without hearing from us.

        Not positive: it may have given our partitions to another member.
        """
        heartbeat = self._client._coordinator.heartbeat  # noqa: SLF001
        # An answer may have lain in a socket while this process was frozen: what counts is when it was asked for.
        if heartbeat.last_receive >= heartbeat.last_send > self._confirmed_at:
            self._confirmed_at = heartbeat.last_send
        return float(self._client.config["session_timeout_ms"] / 1000 - (STEADY.time() - self._confirmed_at))

    def coordinator_known(self) -> bool:
        """Say whether the group's coordinator has been found."""
        return not self._client._coordinator.coordinator_unknown()  # noqa: SLF001

    def committed(self, partition: int, timeout: float) -> Committed | None:
        """Return what is committed for a partition. Raises the client's errors, KafkaTimeoutError among them."""
        found = self._client.committed(self._at(partition), metadata=True, timeout_ms=int(timeout * 1000))
        return Committed(found.offset, found.metadata or "") if found is not None else None

    def all_committed(self, partitions: Iterable[int], timeout: float) -> dict[int, Committed]:
        """Return what is committed for those partitions that have something, by one question.

        Raises CommitRetriableError or CommitRefusedError.
        """
        wanted = [self._at(partition) for partition in partitions]
        coordinator = self._client._coordinator  # noqa: SLF001
        try:
            found = coordinator.fetch_committed_offsets(wanted, timeout_ms=int(timeout * 1000))
        except kafka_errors.KafkaError as error:
            raise commit_error(error) from error
        return {tp.partition: Committed(at.offset, at.metadata or "") for tp, at in found.items()}

    def start_of_log(self, partition: int, timeout: float) -> int:
        """Return the lowest offset that the log holds. Raises the client's errors, KafkaTimeoutError among them."""
        at, limit = self._at(partition), int(timeout * 1000)
        return int(self._client._fetcher.beginning_offsets([at], limit)[at])  # noqa: SLF001

    def end_of_log(self, partition: int, timeout: float) -> int:
        """Return the position behind the last record. Raises the client's errors, KafkaTimeoutError among them."""
        at, limit = self._at(partition), int(timeout * 1000)
        return int(self._client._fetcher.end_offsets([at], limit)[at])  # noqa: SLF001

    def seek(self, partition: int, position: int) -> None:
        self._client.seek(self._at(partition), position)

    def position(self, partition: int) -> int | None:
        """Return the position that the client reads from next; None while it has none."""
        state = self._client._subscription.assignment.get(self._at(partition))  # noqa: SLF001
        return state.position.offset if state is not None and state.position is not None else None

    def pause(self, partitions: Iterable[int]) -> None:
        self._client.pause(*map(self._at, partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        self._client.resume(*map(self._at, partitions))

    def commit(self, positions: Mapping[int, Committed], timeout: float) -> None:
        """Commit positions with their metadata, by one request. Raises one of the Commit… errors, or FencedError.

        The client's own `commit` sends again until its time is up, also while the topic is missing, and would so
        commit the positions of a deleted topic to one that was created under its name meanwhile.
        """
        offsets = {
            self._at(partition): OffsetAndMetadata(at.position, at.metadata, -1) for partition, at in positions.items()
        }
        try:
            self._send_commit(offsets, timeout)
        except kafka_errors.KafkaError as error:
            raise commit_error(error) from error

    def _send_commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], timeout: float) -> None:
        until = time.monotonic() + timeout
        coordinator = self._client._coordinator  # noqa: SLF001
        if not coordinator.ensure_coordinator_ready(timeout_ms=int(timeout * 1000)):
            raise kafka_errors.KafkaTimeoutError("the group's coordinator is not known")
        future = coordinator._send_offset_commit_request(offsets)  # noqa: SLF001
        left = max(0.0, until - time.monotonic())
        self._client._client.poll(future=future, timeout_ms=int(left * 1000))  # noqa: SLF001
        if not future.is_done:
            raise kafka_errors.KafkaTimeoutError("no answer to the commit")
        if future.failed():
            raise future.exception

    def request_watermarks(self, partitions: Iterable[int]) -> None:
        """Ask the brokers for the high watermarks; the answers arrive during later polls."""
        wanted = {self._at(partition): _LATEST for partition in partitions}
        if wanted:
            future = self._client._fetcher._send_list_offsets_requests(wanted)  # noqa: SLF001
            future.add_callback(self._note_watermarks)

    def _note_watermarks(self, answer: tuple[Mapping[TopicPartition, Any], object]) -> None:
        for tp, found in answer[0].items():
            self._watermarks[tp.partition] = found.offset

    def watermark(self, partition: int) -> int | None:
        """Return the newest known high watermark: the position behind the last record that can be read."""
        known = (self._client.highwater(self._at(partition)), self._watermarks.get(partition))
        return max((at for at in known if at is not None), default=None)

    def forget_watermark(self, partition: int) -> None:
        """Drop what was known: the log began anew."""
        self._watermarks.pop(partition, None)

    def close(self, timeout: float) -> None:
        """Leave the group (a static member stays) and free the connections, within `timeout` seconds."""
        self._client.close(autocommit=False, timeout_ms=int(timeout * 1000))

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


def _record(found: Any) -> Record:
    timestamp = found.timestamp / 1000 if found.timestamp is not None and found.timestamp >= 0 else 0.0
    return Record(found.topic, found.partition, found.offset, timestamp, found.key, found.value, found.headers)
