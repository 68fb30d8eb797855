"""What a neighbour on the wire would do and see, through a client that shares no code with ours (librdkafka).

Everything here has a time limit, and leaves nothing open but a few connections.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)

from tests.support.waiting import eventually

LIMIT = 30.0
_NOT_YET = (
    KafkaError._UNKNOWN_PARTITION,  # nobody leads it, as far as the brokers have told
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
_HAS_MEMBERS = (KafkaError.NON_EMPTY_GROUP, KafkaError.UNKNOWN_MEMBER_ID)

T = TypeVar("T")
Headers = list[tuple[str, bytes | None]]


class Rec(NamedTuple):
    """A record as it lies in the log; `timestamp` in milliseconds."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int

    def header(self, name: str) -> bytes | None:
        """Return the last value of a header; KeyError without one."""
        return dict(self.headers)[name]


def leaders(bootstrap: str, topic: str) -> dict[int, int]:
    """Return the leader of each partition, as a node; -1 for none."""
    found = AdminClient({"bootstrap.servers": bootstrap}).list_topics(topic, timeout=LIMIT).topics[topic].partitions
    return {partition: about.leader for partition, about in found.items()}


def create_topics(
    bootstrap: str, partitions: Mapping[str, int], *, replication: int = 1, config: Mapping[str, str] | None = None
) -> None:
    """Create topics, given as name → number of partitions, and wait until each partition has a leader."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = [NewTopic(name, count, replication, config=dict(config or {})) for name, count in partitions.items()]
    for future in admin.create_topics(new, operation_timeout=LIMIT).values():
        future.result(LIMIT)
    _wait_for_leaders(admin, partitions)


def _wait_for_leaders(admin: AdminClient, partitions: Mapping[str, int]) -> None:
    named = lambda: _have_leaders(admin, partitions)  # noqa: E731
    eventually(named, f"a leader for every partition of {', '.join(partitions)}", timeout=LIMIT, interval=0.02)
    for place in [TopicPartition(name, partition) for name, count in partitions.items() for partition in range(count)]:
        _when_led(_ask_for_end, admin, place)


def _ask_for_end(admin: AdminClient, place: TopicPartition) -> int:
    return admin.list_offsets({place: OffsetSpec.latest()})[place].result(LIMIT).offset


def _when_led(ask: Callable[..., T], *args: object) -> T:
    """Ask a partition's leader; again, while the broker that is named as the leader does not lead it yet."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return ask(*args)
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def create_spread(bootstrap: str, topic: str, nodes: Sequence[int], partitions: int) -> None:
    """Create a topic without replicas, whose partitions lie on each of the nodes in turn."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    places = [[nodes[partition % len(nodes)]] for partition in range(partitions)]
    admin.create_topics([NewTopic(topic, partitions, replica_assignment=places)], operation_timeout=LIMIT)[
        topic
    ].result(LIMIT)
    _wait_for_leaders(admin, {topic: partitions})


def add_partitions(bootstrap: str, topic: str, count: int) -> None:
    """Let a topic have `count` partitions in all, and wait until each has a leader.

    Without that a writer may be told the old number for some milliseconds, and refuses a new partition by itself.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_partitions([NewPartitions(topic, count)], operation_timeout=LIMIT)[topic].result(LIMIT)
    _wait_for_leaders(admin, {topic: count})


def delete_topics(bootstrap: str, topics: Iterable[str]) -> None:
    """Delete topics that exist, and wait until the broker knows: it would write to their old logs until then."""
    admin, names = AdminClient({"bootstrap.servers": bootstrap}), set(topics)
    for future in admin.delete_topics(list(names), operation_timeout=LIMIT).values():
        future.result(LIMIT)
    gone = lambda: names.isdisjoint(admin.list_topics(timeout=LIMIT).topics)  # noqa: E731
    eventually(gone, f"{sorted(names)} to be gone", timeout=LIMIT, interval=0.02)


def alter_topic(bootstrap: str, topic: str, settings: Mapping[str, str]) -> None:
    """Change settings of a topic, and leave its others as they are."""
    alter = AlterConfigOpType.SET
    changes = [ConfigEntry(name, value, incremental_operation=alter) for name, value in settings.items()]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=changes)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(LIMIT)


def create_acls(bootstrap: str, bindings: Iterable[AclBinding]) -> None:
    """Give rights, and wait until the broker goes by them: the controller has them some milliseconds earlier."""
    admin, new = AdminClient({"bootstrap.servers": bootstrap}), list(bindings)
    for future in admin.create_acls(new).values():
        future.result(LIMIT)
    _wait_for_acls(admin, new, there=True)


def delete_acls(bootstrap: str, bindings: Iterable[AclBinding]) -> None:
    """Take rights that were given, and wait until the broker goes by that."""
    admin, old = AdminClient({"bootstrap.servers": bootstrap}), list(bindings)
    for future in admin.delete_acls([_only(binding) for binding in old]).values():
        assert len(future.result(LIMIT)) == 1
    _wait_for_acls(admin, old, there=False)


def _wait_for_acls(admin: AdminClient, bindings: Iterable[AclBinding], *, there: bool) -> None:
    wanted = list(bindings)
    # A broker answers this from what it goes by itself.
    shown = lambda: all(bool(admin.describe_acls(_only(each)).result(LIMIT)) == there for each in wanted)  # noqa: E731
    eventually(shown, f"the broker to go by the change of {wanted}", timeout=LIMIT, interval=0.02)


def _only(binding: AclBinding) -> AclBindingFilter:
    pattern, permission = binding.resource_pattern_type, binding.permission_type
    return AclBindingFilter(
        binding.restype, binding.name, pattern, binding.principal, binding.host, binding.operation, permission
    )


def topics(bootstrap: str) -> dict[str, int]:
    """Return the cluster's topics with their numbers of partitions, Kafka's own left out."""
    listed = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=LIMIT).topics
    return {name: len(topic.partitions) for name, topic in listed.items() if not name.startswith("__")}


def in_sync(bootstrap: str, topics: Iterable[str]) -> bool:
    """Say whether every replica of these topics has caught up with its leader."""
    known = AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=LIMIT).topics
    wanted = [known[topic] for topic in topics]
    return all(sorted(p.isrs) == sorted(p.replicas) for topic in wanted for p in topic.partitions.values())


def produce(
    bootstrap: str,
    topic: str,
    records: Iterable[tuple[bytes | None, bytes | None, Headers]],
    *,
    partition: int = -1,
    **config: str | int,
) -> list[tuple[int, int]]:
    """Write records given as (key, value, headers); return the (partition, offset) of each, in the order given.

    `config` holds further librdkafka settings, with `_` for `.`. Raises KafkaException for the first refused record.
    """
    settings = {"linger.ms": 1, **{name.replace("_", "."): value for name, value in config.items()}}
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", **settings})
    places: dict[int, tuple[int, int]] = {}
    errors = []
    count = 0
    for count, (key, value, headers) in enumerate(records, start=1):

        def delivered(error, message, index=count):
            if error is None:
                places[index] = (message.partition(), message.offset())
            else:
                errors.append(KafkaException(error))

        while True:
            try:
                producer.produce(topic, value, key, partition, delivered, headers=headers or None)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(LIMIT):
        raise TimeoutError(f"not all records were written to {topic} within {LIMIT} s")
    if errors:
        raise errors[0]
    return [places[index] for index in range(1, count + 1)]


def read_all(bootstrap: str, topic: str, *, timeout: float = LIMIT) -> list[Rec]:
    """Read a topic from its beginning up to where it ends now, ordered by partition and offset."""
    with _consumer(bootstrap) as consumer:
        ends = _end_offsets(consumer, topic)
        unread = {partition for partition, end in ends.items() if end > 0}
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread])
        found: list[Rec] = []
        deadline = time.monotonic() + timeout
        while unread:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic} was not read to its end within {timeout} s; missing: {sorted(unread)}")
            found.extend(_rec(message) for message in consumer.consume(1000, 0.1) if message.error() is None)
            # Positions, not records: the last offsets may be control records or compacted away.
            for place in consumer.position([TopicPartition(topic, partition) for partition in unread]):
                if place.offset >= ends[place.partition]:
                    unread.discard(place.partition)
    return sorted(
        (rec for rec in found if rec.offset < ends[rec.partition]), key=lambda rec: (rec.partition, rec.offset)
    )


def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    """Return the high watermark of every partition."""
    with _consumer(bootstrap) as consumer:
        return _end_offsets(consumer, topic)


def committed(bootstrap: str, group: str, topic: str) -> dict[int, tuple[int, str]]:
    """Return what a group has committed, by partition: (offset, metadata). Partitions without a commit are left out.

    The metadata is good for its beginning only: confluent-kafka reads on behind its end up to the next zero byte.
    """
    with _consumer(bootstrap, group) as consumer:
        places = consumer.committed([TopicPartition(topic, p) for p in _partitions(consumer, topic)], LIMIT)
    for place in places:
        if place.error is not None:
            raise KafkaException(place.error)
    return {place.partition: (place.offset, _metadata(place)) for place in places if place.offset >= 0}


def set_offsets(bootstrap: str, group: str, topic: str, positions: Mapping[int, int]) -> None:
    """Commit positions for a group whose members have ended; the last of them may be about to leave."""
    places = [TopicPartition(topic, partition, position) for partition, position in positions.items()]
    admin = AdminClient({"bootstrap.servers": bootstrap})

    def set_all() -> bool:
        (future,) = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)]).values()
        errors = [place.error for place in future.result(LIMIT).topic_partitions if place.error is not None]
        if any(error.code() not in _HAS_MEMBERS for error in errors):
            raise KafkaException(errors[0])
        return not errors

    eventually(set_all, f"{group} to have no members", timeout=LIMIT, interval=0.2)


def lag(bootstrap: str, group: str, topic: str) -> int:
    """Return how many records of a topic lie at or behind the group's committed offsets."""
    done = committed(bootstrap, group, topic)
    return sum(end - done.get(partition, (0, ""))[0] for partition, end in end_offsets(bootstrap, topic).items())


_keeping = threading.Lock()
_kept: list[tuple[tuple[str, str], Consumer]] = []
_KEPT = 4


@contextlib.contextmanager
def _consumer(bootstrap: str, group: str = "wire-that-never-joins") -> Iterator[Consumer]:
    """Lend a consumer. The last few are kept for who asks the same again: most of a question's time is connecting."""
    wanted = bootstrap, group
    with _keeping:
        at = next((at for at, (known, _) in enumerate(_kept) if known == wanted), None)
        consumer = _connected(bootstrap, group) if at is None else _kept.pop(at)[1]
    try:
        yield consumer
        consumer.unassign()
    except BaseException:
        consumer.close()
        raise
    with _keeping:
        _kept.append((wanted, consumer))
        surplus = _kept.pop(0)[1] if len(_kept) > _KEPT else None
    if surplus is not None:
        surplus.close()


def _connected(bootstrap: str, group: str) -> Consumer:
    settings = {"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False}
    # The cluster may end before a consumer that is kept.
    return Consumer({**settings, "isolation.level": "read_committed", "fetch.wait.max.ms": 50, "log_level": 0})


def _metadata(place: TopicPartition) -> str:
    try:
        return place.metadata or ""
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace")


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    metadata = consumer.list_topics(topic, LIMIT).topics[topic]
    if metadata.error is not None:
        raise KafkaException(metadata.error)
    return sorted(metadata.partitions)


def _end_offsets(consumer: Consumer, topic: str) -> dict[int, int]:
    return {
        partition: _when_led(consumer.get_watermark_offsets, TopicPartition(topic, partition), LIMIT)[1]
        for partition in _partitions(consumer, topic)
    }


def _have_leaders(admin: AdminClient, partitions: Mapping[str, int]) -> bool:
    known = admin.list_topics(timeout=LIMIT).topics
    return all(
        name in known
        and len(known[name].partitions) == count
        and all(p.leader >= 0 for p in known[name].partitions.values())
        for name, count in partitions.items()
    )


def _rec(message) -> Rec:
    return Rec(
        partition=message.partition(),
        offset=message.offset(),
        key=message.key(),
        value=message.value(),
        headers=message.headers() or [],
        timestamp=message.timestamp()[1],
    )
