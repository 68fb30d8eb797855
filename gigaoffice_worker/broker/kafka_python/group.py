"""What the client's consumer keeps to itself of its group, its positions and the high watermarks.

For the thread that polls, like the consumer itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata
from kafka.util import Timer

from gigaoffice_worker.broker.kafka_python.clock import STEADY
from gigaoffice_worker.broker.kafka_python.network import Reach

log = structlog.get_logger(__name__)

LATEST, EARLIEST = -1, -2
"""Times that stand for the end and the start of a log."""
_LOOK_AGAIN_MS = 50


class Polling:
    """The rounds of one consumer's polling. Whoever polls gives each partition its position, by `seek`."""

    def __init__(self, client: KafkaConsumer) -> None:
        self._client = client
        self._taken: Mapping[TopicPartition, list[Any]] = {}
        _leave_positions_alone(client)
        fetched_records = client._fetcher.fetched_records

        def fetch_and_note(max_records: int | None = None, update_offsets: bool = True) -> Any:  # noqa: FBT001, FBT002
            found = fetched_records(max_records, update_offsets)
            self._taken = found[0]
            return found

        client._fetcher.fetched_records = fetch_and_note

    def once(self, timeout: float, limit: int) -> Mapping[TopicPartition, list[Any]]:
        """Poll in one round: the client's `poll` would spin through the last millisecond of its time.

        Records that were taken are returned, also where something fails behind that: the positions have passed them.
        """
        self._taken = {}
        _go_on_joining(self._client)
        try:
            found: Mapping[TopicPartition, list[Any]] = self._client._poll_once(Timer(int(timeout * 1000)), limit)
        except Exception as error:
            if not self._taken:
                raise
            log.warning("Polling failed behind the records that it took", error=f"{type(error).__name__}: {error}")
            return self._taken
        return found


def _leave_positions_alone(client: KafkaConsumer) -> None:
    """See to it that a partition without a position does not hold up the others.

    The client would ask for what is committed before each fetch, as long as the poll may take, and raise where nothing
    is.
    """
    client._update_fetch_positions = lambda timeout_ms=None: True  # noqa: ARG005  # as the client calls it


def _go_on_joining(client: KafkaConsumer) -> None:
    """Remind the client of a rebalance that its last poll left pending.

    It joins again when the leader sees other partitions than it has assigned, and takes that for settled once the
    leader has assigned anew: where the answer to that comes in a later poll, nobody picks up the assignment.
    """
    coordinator = client._coordinator
    if coordinator.join_future is not None:
        coordinator.request_rejoin()


def generation(client: KafkaConsumer) -> tuple[str, int] | None:
    """Return the member's id and the group's generation, or None while the consumer is not in its group."""
    known = client._coordinator._generation
    if known.generation_id < 0 or not known.member_id:
        return None
    return known.member_id, known.generation_id


def silent_for(client: KafkaConsumer) -> float:
    """Return for how many seconds no broker has answered; 0 while one does."""
    reach: Reach = client._client.reach
    return reach.silent_for


def has_leader(client: KafkaConsumer, place: TopicPartition) -> bool:
    """Say whether a partition has a leader, as the newest metadata tell; -1 is the client's word for none."""
    return client._client.cluster.leader_for_partition(place) not in {None, -1}


def coordinator_known(client: KafkaConsumer) -> bool:
    """Say whether the group's coordinator has been found."""
    return not client._coordinator.coordinator_unknown()


class Session:
    """For how long the group's coordinator still counts a consumer as a member."""

    def __init__(self, client: KafkaConsumer) -> None:
        self._client = client
        # When the coordinator last heard of us, on the client's clock.
        self._confirmed_at = STEADY.time()

    def confirm(self) -> None:
        """Note that the coordinator has just let us in."""
        self._confirmed_at = STEADY.time()

    def left(self) -> float:
        """Return for how many seconds the coordinator keeps us in the group without hearing from us.

        Not positive: it may have given our partitions to another member.
        """
        return float(self._client.config["session_timeout_ms"] / 1000 - self._unheard_for())

    def silent_for(self) -> float:
        """Return for how many seconds an answer is overdue: heartbeats come at intervals."""
        return float(max(0.0, self._unheard_for() - self._client.config["heartbeat_interval_ms"] / 1000))

    def _unheard_for(self) -> float:
        heartbeat = self._client._coordinator.heartbeat
        # An answer may have lain in a socket while this process was frozen: what counts is when it was asked for.
        if heartbeat.last_receive >= heartbeat.last_send > self._confirmed_at:
            self._confirmed_at = heartbeat.last_send
        return float(STEADY.time() - self._confirmed_at)


def committed(
    client: KafkaConsumer, places: Iterable[TopicPartition], timeout: float
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return what is committed for those partitions that have something, by one question.

    The client keeps a question that timed out, by the partitions that it is about, and takes its answer for that to the
    next question about the same ones, however old it is by then. So it is made to forget. Raises the client's errors,
    KafkaTimeoutError among them.
    """
    coordinator = client._coordinator
    coordinator._offset_fetch_futures.clear()
    try:
        found: dict[TopicPartition, OffsetAndMetadata] = coordinator.fetch_committed_offsets(
            list(places), timeout_ms=int(timeout * 1000)
        )
    finally:
        coordinator._offset_fetch_futures.clear()
    return found


def commit_once(client: KafkaConsumer, offsets: Mapping[TopicPartition, OffsetAndMetadata], timeout: float) -> None:
    """Commit by one request. Raises the client's errors, KafkaTimeoutError among them.

    The client's own `commit` sends again until its time is up, also while the topic is missing, and would so commit the
    positions of a deleted topic to one that was created under its name meanwhile.
    """
    until = time.monotonic() + timeout
    coordinator = client._coordinator
    if not coordinator.ensure_coordinator_ready(timeout_ms=int(timeout * 1000)):
        raise kafka_errors.KafkaTimeoutError("the group's coordinator is not known")
    future = coordinator._send_offset_commit_request(offsets)
    left = max(0.0, until - time.monotonic())
    client._client.poll(future=future, timeout_ms=int(left * 1000))
    if not future.is_done:
        raise kafka_errors.KafkaTimeoutError("no answer to the commit")
    if future.failed():
        raise future.exception


def start_of_log(client: KafkaConsumer, place: TopicPartition, timeout: float) -> int:
    """Return the lowest offset that a log holds, within `timeout` seconds, which the public call does not take.

    Raises the client's errors, KafkaTimeoutError among them.
    """
    return int(client._fetcher.beginning_offsets([place], int(timeout * 1000))[place])


def end_of_log(client: KafkaConsumer, place: TopicPartition, timeout: float) -> int:
    """Return the position behind a log's last record, within `timeout` seconds, which the public call does not take.

    Raises the client's errors, KafkaTimeoutError among them.
    """
    return int(client._fetcher.end_offsets([place], int(timeout * 1000))[place])


def offsets_at(
    client: KafkaConsumer, wanted: Mapping[TopicPartition, int], timeout: float
) -> dict[TopicPartition, int]:
    """Return the first offset at or behind a time (in milliseconds; LATEST and EARLIEST) for each partition.

    Left out are those without a leader, which the public calls would wait for, and those without such an offset. Raises
    the client's errors, KafkaTimeoutError among them when nobody answers within `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while wanted and (left := until - time.monotonic()) > 0:
        future = client._fetcher._send_list_offsets_requests(wanted)
        client._client.poll(future=future, timeout_ms=int(left * 1000))
        if future.is_done and future.succeeded():
            return {place: found.offset for place, found in future.value[0].items()}
        if future.is_done and not future.retriable():
            raise future.exception
        # The metadata is on its way.
        client._client.poll(timeout_ms=_LOOK_AGAIN_MS)
    if wanted:
        raise kafka_errors.KafkaTimeoutError("no answer to the question for offsets")
    return {}


def position(client: KafkaConsumer, place: TopicPartition) -> int | None:
    """Return the position that is read from next, without asking anybody for it; None while there is none."""
    state = client._subscription.assignment.get(place)
    return state.position.offset if state is not None and state.position is not None else None


def request_watermarks(
    client: KafkaConsumer, places: Iterable[TopicPartition], note: Callable[[int, int], None]
) -> None:
    """Ask the brokers for high watermarks; `note` hears partition and watermark during later polls."""
    wanted = dict.fromkeys(places, LATEST)
    if not wanted:
        return

    def answered(answer: tuple[Mapping[TopicPartition, Any], object]) -> None:
        for place, found in answer[0].items():
            note(place.partition, found.offset)

    client._fetcher._send_list_offsets_requests(wanted).add_callback(answered)
