"""The cluster's administration, as much of it as the topic workflow needs, with one time limit around it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from kafka import errors as kafka_errors
from kafka.admin import ACLOperation, ConfigResource, ConfigResourceType, NewTopic

from gigaoffice_worker.broker.clients import admin_kwargs, constructing, reachable
from gigaoffice_worker.broker.error_table import to_worker_error
from gigaoffice_worker.broker.kafka_python.administration import (
    Deadline,
    PatientAdminClient,
    open_admin_client,
    subscription,
)
from gigaoffice_worker.config import Config, TopicSpec
from gigaoffice_worker.core.errors import AccessError, WorkerError

MAX_MESSAGE_BYTES: Final = "max.message.bytes"
COMMIT_METADATA_BYTES: Final = "offset.metadata.max.bytes"
CONSUMERS: Final = "consumer"
"""The protocol type of groups whose members consume topics."""


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the cluster describes it; `operations` are what we may do with it, in Kafka's names."""

    partitions: int
    replication: int
    """The least number of replicas that a partition of it has."""
    has_leaders: bool
    operations: frozenset[str]


class Member(NamedTuple):
    """A member of a group, by the name that it has given itself."""

    client_id: str
    topics: frozenset[str] | None
    """What it subscribes to; None for no consumer, for what cannot be read, and while its group rebalances."""


class Group(NamedTuple):
    """A group as its coordinator describes it; `operations` are what we may do with it, in Kafka's names."""

    state: str
    protocol_type: str
    """What its members are: CONSUMERS, or of another kind; empty where there was none yet."""
    protocol: str
    """The assignor on which consumers agreed; empty while they rebalance."""
    members: tuple[Member, ...]
    operations: frozenset[str]


class Admin:
    """An open administration client. Every method raises the client's errors, KafkaTimeoutError at the deadline."""

    def __init__(self, client: PatientAdminClient, deadline: Deadline) -> None:
        self._client = client
        self._deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def renew(self, timeout: float) -> None:
        """Give what follows `timeout` seconds in total."""
        self._deadline.renew(timeout)

    def close(self) -> None:
        """Free the connections. Never waits."""
        self._client.close()

    def describe(self, names: Iterable[str]) -> dict[str, TopicState]:
        """Describe those of the topics that exist; needs DESCRIBE on each of them."""
        states: dict[str, TopicState] = {}
        for topic in self._client.metadata_of(list(names)):
            error = kafka_errors.for_code(topic["error_code"])
            if error is kafka_errors.UnknownTopicOrPartitionError:
                continue
            if error not in {kafka_errors.NoError, kafka_errors.LeaderNotAvailableError}:
                raise error(topic["topic"])
            states[topic["topic"]] = _state(topic)
        return states

    def create(self, spec: TopicSpec, settings: Mapping[str, str], *, validate_only: bool = False) -> float:
        """Create a topic, or only ask whether it could be; `settings` stand in for those of `spec`.

        Returns for how many seconds a quota of the cluster leaves everything else unanswered.
        """
        topic = NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(settings))
        timeout_ms = max(1, int(self._deadline.remaining() * 1000))
        answer = self._client.create_topics([topic], timeout_ms=timeout_ms, validate_only=validate_only)
        return float(getattr(answer, "throttle_time_ms", 0) / 1000)

    def max_message_bytes(self, names: Iterable[str]) -> dict[str, int]:
        """Return the largest record batch that each topic takes, where it exists and we may know (DESCRIBE_CONFIGS)."""
        found = self.settings(names, [MAX_MESSAGE_BYTES])
        return {name: int(settings[MAX_MESSAGE_BYTES]) for name, settings in found.items() if settings}

    def settings(self, names: Iterable[str], wanted: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return these settings of each topic that exists, where we may know them (DESCRIBE_CONFIGS)."""
        keys = dict.fromkeys(wanted)
        asked = [ConfigResource(ConfigResourceType.TOPIC, name, dict(keys)) for name in names]
        return {
            name: {entry[0]: entry[1] for entry in entries if entry[0] in keys}
            for response in (self._client.describe_configs(asked) if asked else ())
            for error_code, _message, _type, name, entries in response.resources
            if error_code == 0
        }

    def commit_metadata_limit(self) -> int | None:
        """Return the least `offset.metadata.max.bytes` of all brokers; None where we may not know it."""
        nodes = [str(each["node_id"]) for each in self._client.describe_cluster()["brokers"]]
        asked = [ConfigResource(ConfigResourceType.BROKER, node, {COMMIT_METADATA_BYTES: None}) for node in nodes]
        found = [
            int(entry[1])
            for response in self._client.describe_configs(asked)
            for error_code, _message, _type, _name, entries in response.resources
            if error_code == 0
            for entry in entries
            if entry[0] == COMMIT_METADATA_BYTES
        ]
        return min(found, default=None)

    def brokers(self) -> list[tuple[str, int]]:
        """Return host and port of each broker, as the cluster gives them out."""
        return [(str(each["host"]), int(each["port"])) for each in self._client.describe_cluster()["brokers"]]

    def write_idempotently(self) -> None:
        """See whether we may write idempotently, by asking for an idempotent producer's id."""
        self._client.ask_producer_id()

    def group(self, name: str) -> Group:
        """Ask a consumer group's coordinator about it."""
        return _group(self._client.describe_consumer_groups([name])[0])

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """Return the positions that a group has committed, by topic and partition."""
        found = self._client.list_consumer_group_offsets(group)
        return {(each.topic, each.partition): int(at.offset) for each, at in found.items()}


def admin(config: Config, timeout: float) -> Admin:
    """Open an administration client; this and everything done with it has `timeout` seconds, until it is renewed.

    Raises WorkerErrors only.
    """
    deadline = Deadline(timeout)
    with constructing("connecting to the cluster", config):
        usable = reachable(config, deadline.remaining())
        return Admin(open_admin_client(deadline, **admin_kwargs(usable, deadline.remaining())), deadline)


def require_topics(config: Config, rights: Mapping[str, str], timeout: float) -> dict[str, int]:
    """Return the topics' numbers of partitions; `rights` says of each what will be needed there.

    For commands, which create nothing. Raises WorkerErrors only, one that names the topics where some are missing.
    """
    try:
        with admin(config, timeout) as client:
            states = client.describe(rights)
    except WorkerError:
        raise  # the login was refused: no right would help
    except Exception as error:
        told = to_worker_error(error, f"looking for the topic {' and the topic '.join(rights)}")
        if isinstance(told, AccessError):
            needed = " and ".join(f"{right} on the topic {name}" for name, right in rights.items())
            told = AccessError(str(told), hint=f"Grant the user {needed}.")
        raise told from error
    if missing := [name for name in rights if name not in states]:
        hint = "`gigaoffice-worker topics` creates what is missing. Is this the name that the worker has?"
        raise WorkerError(f"there is no topic {' and no topic '.join(missing)}", hint=hint)
    return {name: states[name].partitions for name in rights}


def _state(topic: Mapping[str, Any]) -> TopicState:
    partitions = topic["partitions"]
    return TopicState(
        partitions=len(partitions),
        replication=min((len(partition["replicas"]) for partition in partitions), default=0),
        has_leaders=bool(partitions) and all(partition["leader"] >= 0 for partition in partitions),
        operations=_operations(topic.get("authorized_operations", ())),
    )


def _group(found: Mapping[str, Any]) -> Group:
    of_consumers = found["protocol_type"] == CONSUMERS
    return Group(
        state=found["state"],
        protocol_type=found["protocol_type"],
        protocol=found["protocol"],
        members=tuple(
            Member(each["client_id"], subscription(each["member_metadata"]) if of_consumers else None)
            for each in found["members"]
        ),
        operations=_operations(found.get("authorized_operations", ())),
    )


def _operations(codes: Iterable[int]) -> frozenset[str]:
    """Name Kafka's operation codes; 31, which the broker sends for what we may not see, is none."""
    known = {each.value: each.name for each in ACLOperation}
    return frozenset(known[code] for code in codes if code in known)
