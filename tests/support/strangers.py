"""Members of a consumer group that are no workers of ours, each for as long as its context lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer
from kafka.admin import KafkaAdminClient
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError
from kafka.protocol.find_coordinator import FindCoordinatorRequest
from kafka.protocol.group import JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from tests.support.waiting import eventually
from tests.support.wire import LIMIT

_SESSION_MS = 60_000
"""Longer than a test, for what is joined by hand sends no heartbeats."""

_NO_COORDINATOR_YET = (
    CoordinatorNotAvailableError.errno,
    CoordinatorLoadInProgressError.errno,
    NotCoordinatorError.errno,
)


@contextmanager
def consuming(
    bootstrap: str, group: str, topics: Sequence[str], *, client_id: str, assignor: str = "range"
) -> Iterator[None]:
    """Consume topics that exist, with partitions assigned."""
    settings = {"bootstrap.servers": bootstrap, "group.id": group, "client.id": client_id, "enable.auto.commit": False}
    consumer = Consumer({**settings, "partition.assignment.strategy": assignor})
    try:
        consumer.subscribe(list(topics))
        assigned = lambda: consumer.poll(0.1) or consumer.assignment()  # noqa: E731
        eventually(assigned, f"{client_id} to have partitions", timeout=LIMIT)
        yield
    finally:
        consumer.close()


@contextmanager
def joined(
    bootstrap: str, group: str, protocol_type: str, protocol: str, metadata: bytes, *, client_id: str
) -> Iterator[None]:
    """Be the only member of a group, by the requests alone: of any type, with any metadata, and with nothing to do."""
    client = KafkaAdminClient(bootstrap_servers=bootstrap, client_id=client_id)
    try:
        join = JoinGroupRequest[2](group, _SESSION_MS, _SESSION_MS, "", protocol_type, [(protocol, metadata)])
        node, member = _first_answer(client, join, group)
        sync = SyncGroupRequest[1](group, member.generation_id, member.member_id, [(member.member_id, b"")])
        _answered(client.send_request(sync, node))
        yield
        _answered(client.send_request(LeaveGroupRequest[1](group, member.member_id), node))
    finally:
        client.close()


def _first_answer(client: KafkaAdminClient, request: Any, group: str) -> tuple[int, Any]:
    """Return the group's coordinator and what it answers; the first group of a cluster has to wait for one."""

    def answer() -> tuple[int, Any] | None:
        found = client.send_request(FindCoordinatorRequest[1](group, 0))
        if found.error_code in _NO_COORDINATOR_YET:
            return None
        answered = client.send_request(request, _answered(found).coordinator_id)
        return None if answered.error_code in _NO_COORDINATOR_YET else (found.coordinator_id, _answered(answered))

    return eventually(answer, f"a coordinator of {group}", timeout=LIMIT)


def _answered(response: Any) -> Any:
    assert response.error_code == 0, response
    return response
