"""The client's administration, made to end every wait by one deadline, and to describe topics that we may not see."""

from __future__ import annotations

import time
from typing import Any, Final

from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.client_async import KafkaClient
from kafka.coordinator.protocol import ConsumerProtocolMemberMetadata_v0
from kafka.protocol.init_producer_id import InitProducerIdRequest
from kafka.protocol.metadata import MetadataRequest

_BACKOFF_MS: Final = 50
_TRANSACTION_MS: Final = 60_000
_OPERATIONS_SINCE: Final = 8
"""The version of the metadata request that can ask what we may do with a topic."""


class Deadline:
    """The moment until which an administration client may block, in seconds of the monotonic clock."""

    def __init__(self, timeout: float) -> None:
        self._until = time.monotonic() + timeout

    def renew(self, timeout: float) -> None:
        """Give `timeout` seconds from now."""
        self._until = time.monotonic() + timeout

    def remaining(self) -> float:
        """Return the seconds left. Raises the client's time-out error when there are none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise kafka_errors.KafkaTimeoutError("the time for this attempt is used up")
        return left


class PunctualClient(KafkaClient):  # type: ignore[misc]  # the client ships no types
    """The network client that ends every wait by the deadline: its own limits are per request, some of them fixed."""

    def __init__(self, deadline: Deadline, **configs: Any) -> None:
        self._deadline = deadline
        try:
            super().__init__(**configs)
        except BaseException:
            # The exception's traceback would keep the sockets alive.
            self.close()
            raise

    def poll(self, timeout_ms: float | None = None, future: Any = None) -> Any:
        left = self._deadline.remaining() * 1000
        return super().poll(timeout_ms=left if timeout_ms is None else min(timeout_ms, left), future=future)


class PatientAdminClient(KafkaAdminClient):  # type: ignore[misc]  # the client ships no types
    """The administration client that waits for a node to ask: just after a connection broke, there is none."""

    def send_request(self, request: Any, node_id: Any = None) -> Any:
        while node_id is None:
            node_id = self._client.least_loaded_node()
            if node_id is None:  # the client would wait for that as for a node
                self._client.poll(timeout_ms=_BACKOFF_MS)
        return super().send_request(request, node_id)

    def metadata_of(self, topics: list[str]) -> list[dict[str, Any]]:
        """Ask for topics as `describe_topics` does, which fails on a topic that we may not see."""
        version = self._client.api_version(MetadataRequest, max_version=_OPERATIONS_SINCE)
        asked: dict[str, Any] = {"topics": topics, "allow_auto_topic_creation": False}
        if version >= _OPERATIONS_SINCE:
            asked |= {"include_cluster_authorized_operations": False, "include_topic_authorized_operations": True}
        found: list[dict[str, Any]] = self.send_request(MetadataRequest[version](**asked)).to_object()["topics"]
        return found

    def _describe_consumer_groups_process_response(self, response: Any) -> dict[str, Any]:
        """Return a group as its coordinator describes it, by the names of the protocol, or raise the error in there.

        The client decodes more, and trips over what is missing beside an error, over members of a type that is not its
        own, and over consumers' data that are damaged.
        """
        [group] = response.to_object()["groups"]
        error = kafka_errors.for_code(group["error_code"])
        if error is not kafka_errors.NoError:
            raise error(f"group {group['group']}")
        found: dict[str, Any] = group
        return found

    def ask_producer_id(self) -> None:
        """Ask for an idempotent producer's id, and leave it unused. Raises the client's error where it is refused."""
        version = self._client.api_version(InitProducerIdRequest, max_version=1)
        request = InitProducerIdRequest[version](transactional_id=None, transaction_timeout_ms=_TRANSACTION_MS)
        error = kafka_errors.for_code(self.send_request(request).error_code)
        if error is not kafka_errors.NoError:
            raise error


def subscription(metadata: bytes) -> frozenset[str] | None:
    """Return the topics that a consumer's metadata names; None where there are none to read.

    A coordinator tells no metadata while its group rebalances, and members may join with any bytes.
    """
    try:
        topics = ConsumerProtocolMemberMetadata_v0.decode(metadata).topics
    except ValueError:
        return None
    return frozenset(filter(None, topics or ()))


def open_admin_client(deadline: Deadline, **configs: Any) -> PatientAdminClient:
    """Make an administration client that blocks until `deadline` at most; frees everything where that fails."""
    made: list[PunctualClient] = []

    def network(**settings: Any) -> PunctualClient:
        made.append(PunctualClient(deadline, **settings))
        return made[-1]

    try:
        return PatientAdminClient(**configs, kafka_client=network)
    except BaseException:
        for each in made:
            each.close()
        raise
