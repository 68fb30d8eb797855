"""The consumer as the engine wants it: plain functions for a rebalance, our own exceptions, a time limit on every call.

Nothing but the consumer thread may call it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from gigaoffice_worker.broker.error_table import commit_error, describe
from gigaoffice_worker.broker.errors import FencedError, OutOfRangeError, UndecodableError
from gigaoffice_worker.broker.kafka_python import group
from gigaoffice_worker.broker.kafka_python.fetching import set_aside
from gigaoffice_worker.core.records import Record

log = structlog.get_logger(__name__)


class Membership(NamedTuple):
    """Who we are in the group, and which of its generations that holds for."""

    member_id: str
    generation: int


class Committed(NamedTuple):
    """A committed position and the metadata that was committed with it."""

    position: int
    metadata: str


class GroupContact:
    """Our place in the group, and whether its coordinator and the brokers are heard of."""

    def __init__(self, client: KafkaConsumer, session: group.Session) -> None:
        self._client = client
        self._session = session

    def membership(self) -> Membership | None:
        """Return who we are in the group, or None while we are not in it."""
        known = group.generation(self._client)
        return Membership(*known) if known is not None else None

    def session_left(self) -> float:
        """Return for how many seconds the coordinator keeps us in the group without hearing from us.

        Not positive: it may have given our partitions to another member.
        """
        return self._session.left()

    def silent_for(self) -> float:
        """Return for how many seconds no broker has answered; 0 while one does. Any thread may ask."""
        return group.silent_for(self._client)

    def coordinator_silent_for(self) -> float:
        """Return for how many seconds the coordinator owes the answer to a heartbeat; 0 while it does not.

        Only in a group that is not rebalancing: else none is sent. Any thread may ask.
        """
        return self._session.silent_for()

    def coordinator_known(self) -> bool:
        """Say whether the group's coordinator has been found."""
        return group.coordinator_known(self._client)


class Consumer:
    """A subscription to one topic, in partitions' numbers rather than the client's pairs."""

    def __init__(self, client: KafkaConsumer, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._watermarks: dict[int, int] = {}
        self._session = group.Session(client)
        self._polling = group.Polling(client)
        self.contact = GroupContact(client, self._session)

    def subscribe(self, on_revoked: Callable[[], None], on_assigned: Callable[[frozenset[int]], None]) -> None:
        """Join the group at the next poll. The functions are called within `poll`, and must not raise."""
        topic, session = self._topic, self._session

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the client ships no types
            def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:  # noqa: ARG002  # all of them
                on_revoked()

            def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
                session.confirm()
                on_assigned(frozenset(tp.partition for tp in assigned if tp.topic == topic))

        self._client.subscribe([topic], listener=Listener())

    def poll(self, timeout: float, limit: int) -> dict[int, list[Record]]:
        """Return at most `limit` records by partition, waiting up to `timeout` seconds for the first.

        Raises OutOfRangeError, UndecodableError, FencedError, and whatever else the client raises. Then the client's
        positions may have passed records that nobody has received: each partition needs a `seek` to where it stands.
        """
        try:
            batches = self._polling.once(timeout, limit)
        except kafka_errors.OffsetOutOfRangeError as error:
            raise OutOfRangeError({tp.partition: at for tp, at in error.args[0].items()}) from error
        except kafka_errors.FencedInstanceIdError as error:
            raise FencedError from error
        except UndecodableError as error:
            set_aside(self._client, error.partition)
            raise
        return {place.partition: records for place, records in batches.items()}

    def has_leader(self, partition: int) -> bool:
        """Say whether a partition has a broker that it can be read from, as far as the client knows."""
        return group.has_leader(self._client, self._at(partition))

    def committed(self, partition: int, timeout: float) -> Committed | None:
        """Return what is committed for a partition. Raises the client's errors, KafkaTimeoutError among them."""
        place = self._at(partition)
        found = group.committed(self._client, [place], timeout).get(place)
        return Committed(found.offset, found.metadata or "") if found is not None else None

    def all_committed(self, partitions: Iterable[int], timeout: float) -> dict[int, Committed]:
        """Return what is committed for those partitions that have something, by one question.

        Raises CommitRetriableError or CommitRefusedError.
        """
        wanted = [self._at(partition) for partition in partitions]
        try:
            found = group.committed(self._client, wanted, timeout)
        except Exception as error:
            raise commit_error(error) from error
        return {tp.partition: Committed(at.offset, at.metadata or "") for tp, at in found.items()}

    def start_of_log(self, partition: int, timeout: float) -> int:
        """Return the lowest offset that the log holds. Raises the client's errors, KafkaTimeoutError among them."""
        return group.start_of_log(self._client, self._at(partition), timeout)

    def end_of_log(self, partition: int, timeout: float) -> int:
        """Return the position behind the last record. Raises the client's errors, KafkaTimeoutError among them."""
        return group.end_of_log(self._client, self._at(partition), timeout)

    def seek(self, partition: int, position: int) -> None:
        self._client.seek(self._at(partition), position)

    def position(self, partition: int) -> int | None:
        """Return the position that the client reads from next; None while it has none."""
        return group.position(self._client, self._at(partition))

    def pause(self, partitions: Iterable[int]) -> None:
        self._client.pause(*map(self._at, partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        self._client.resume(*map(self._at, partitions))

    def commit(self, positions: Mapping[int, Committed], timeout: float) -> None:
        """Commit positions with their metadata, by one request. Raises one of the Commit… errors, or FencedError."""
        offsets = {
            self._at(partition): OffsetAndMetadata(at.position, at.metadata, -1) for partition, at in positions.items()
        }
        try:
            group.commit_once(self._client, offsets, timeout)
        except Exception as error:
            raise commit_error(error) from error

    def request_watermarks(self, partitions: Iterable[int]) -> None:
        """Ask the brokers for the high watermarks; the answers arrive during later polls, or never."""
        with contextlib.suppress(Exception):
            group.request_watermarks(self._client, map(self._at, partitions), self._watermarks.__setitem__)

    def watermark(self, partition: int) -> int | None:
        """Return the newest known high watermark: the position behind the last record that can be read."""
        known = (self._client.highwater(self._at(partition)), self._watermarks.get(partition))
        return max((at for at in known if at is not None), default=None)

    def readable_end(self, partition: int) -> int | None:
        """Return up to where the log can be read, as last asked for: not beyond the first open transaction."""
        return self._watermarks.get(partition)

    def forget_watermark(self, partition: int) -> None:
        """Drop what was known: the log began anew."""
        self._watermarks.pop(partition, None)

    def close(self, timeout: float) -> None:
        """Leave the group (a static member stays) and free the connections, within `timeout` seconds."""
        try:
            self._client.close(autocommit=False, timeout_ms=int(timeout * 1000))
        except Exception as error:  # noqa: BLE001  # the group finds out by itself, and the process ends
            log.warning("The consumer did not leave its group", error=describe(error))

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)
