"""The network under the client's consumer and producer: waking it, its broken connections, a cluster that has moved."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import structlog
from kafka import errors as kafka_errors
from kafka.client_async import KafkaClient
from kafka.conn import BrokerConnection
from kafka.coordinator.base import HeartbeatThread
from kafka.future import Future
from kafka.protocol.api_versions import BaseApiVersionsResponse
from kafka.protocol.sasl_handshake import SaslHandshakeResponse

from gigaoffice_worker.broker.kafka_python.clock import STEADY

log = structlog.get_logger(__name__)

LOST_AFTER: Final = 5.0
"""Seconds without an answering broker after which the configured servers are asked, too."""
_ANSWERS_WITHIN: Final = 10.0
"""Seconds that a broker may owe an answer before it counts as silent; a join may take longer, and is no harm here."""
_CONNECTS_WITHIN: Final = 3.0
"""Seconds that a connection has while the cluster is lost: the client waits for one at a time."""
_LOOK_EVERY_MS: Final = 500.0
_OF_A_LOGIN: Final = (BaseApiVersionsResponse, *SaslHandshakeResponse)


class Reach:
    """Whether any broker answers, by one client's connections. Used under the client's lock."""

    def __init__(self, network: KafkaClient) -> None:
        self._network = network
        self._silent_since: float | None = None
        self._lost_since: float | None = None

    @property
    def lost(self) -> bool:
        """Whether the cluster is looked for at the configured servers, too."""
        return self._lost_since is not None

    @property
    def silent_for(self) -> float:
        """Seconds for which no broker has answered; 0 while one does."""
        since = self._silent_since
        return STEADY.time() - since if since is not None else 0.0

    def look(self) -> None:
        """Look at the connections, and close those that take too long to come about while the cluster is lost."""
        now, cluster = STEADY.time(), self._network.cluster
        connections = list(self._network._conns.items())
        # While the cluster is lost, a configured server is no more than somebody to ask.
        brokers = [each for node, each in connections if not (self.lost and cluster.is_bootstrap(node))]
        if any(_answers(each, now) for each in brokers):
            self._silent_since = self._lost_since = None
            return
        if self._lost_since is not None and cluster._last_successful_refresh_ms / 1000 > self._lost_since:
            # A configured server has told where the brokers are: they have their time to answer.
            self._silent_since, self._lost_since = now, None
        if self._silent_since is None:
            # Where a broker stays connected and says nothing, since the oldest question that it owes an answer to.
            self._silent_since = min((asked for each in brokers if (asked := _asked_at(each)) is not None), default=now)
        if self._lost_since is None and now - self._silent_since >= LOST_AFTER:
            self._lost_since = now
            log.warning("No broker answers: the configured servers are asked, too", servers=self._servers())
            cluster.request_update()
        if self._lost_since is not None:
            for _, each in connections:
                if each.connecting() and now - each.last_attempt > _CONNECTS_WITHIN:
                    each.close(kafka_errors.KafkaConnectionError("no connection in time"))

    def wait_ms(self, wait: float) -> float:
        """Return for how many milliseconds the network may wait, `wait` as long as there is nothing to look for."""
        return wait if self._silent_since is None else min(wait, _LOOK_EVERY_MS)

    def _servers(self) -> list[str]:
        return [f"{each.host}:{each.port}" for each in self._network.cluster._bootstrap_brokers.values()]


def mended_network(servers: Sequence[str]) -> Callable[..., KafkaClient]:
    """Return what makes a network mended before anybody uses it, the `kafka_client` of a consumer or a producer.

    `servers` are all those that are configured. A producer's thread polls from the beginning: an answer that it had
    just read for a part that is then exchanged would be lost, and with it whatever waits for that answer.
    """

    def make(**settings: Any) -> KafkaClient:
        network = KafkaClient(**settings)
        _wake_once(network)
        _log_in_alone(network)
        _close_what_failed(network)
        network.reach = _look_for_a_lost_cluster(network, servers)
        return network

    return make


def _wake_once(network: KafkaClient) -> None:
    """See to it that the network is woken by one byte, however many threads wake it at once.

    The client looks whether it is woken before it takes its lock. Hundreds of threads queue up behind that look and
    write a byte each; after about 280 the socket is full, and the writer waits for 3 s, holding the lock that the
    network thread needs to read.
    """

    def wakeup() -> None:
        if network._closed or network._waking:
            return
        with network._wake_lock:
            if network._waking or network._wake_w is None:
                return
            network._wake_w.sendall(b"x")
            network._waking = True

    network.wakeup = wakeup


def _log_in_alone(network: KafkaClient) -> None:
    """See to it that nobody else reads from a connection while it logs in.

    The client completes what `poll` has read behind its lock. When that is the answer to a SASL handshake, the login
    goes on there and then, with a socket that blocks, while another thread (the one of heartbeats) polls the same
    socket: it takes the cluster's answer away, or waits for another one until the request time-out, holding the lock
    that all others need. No heartbeat is sent for that long, and the group gives our partitions away.
    """
    network._pending_completion = _Answers(network._pending_completion)


class _Answers(deque[tuple[Any, Future]]):
    """What is to be completed without the client's lock; what belongs to a login is completed at once, under it.

    That is the answer about versions, too: behind it the client begins the handshake at once.
    """

    def extend(self, answers: Iterable[tuple[Any, Future]]) -> None:
        for answer, future in answers:
            if isinstance(answer, _OF_A_LOGIN):
                future.success(answer)
            else:
                self.append((answer, future))


def _close_what_failed(network: KafkaClient) -> None:
    """See to it that a connection which fails as the client does not expect is closed, and made anew.

    `poll` raises such an error (a certificate that is not trusted, a damaged TLS record) and leaves the connection as
    it was, until it times out after 30 s. The thread of heartbeats would end by it, without another one before the
    group has thrown us out: there, nothing is raised. Whoever polls next meets what lasts.
    """
    poll = network.poll

    def poll_and_close(timeout_ms: float | None = None, future: Any = None) -> Any:
        try:
            return poll(timeout_ms=timeout_ms, future=future)
        except Exception as error:
            if isinstance(error, OSError):  # also every error of TLS
                _close(network, error)
            if not isinstance(threading.current_thread(), HeartbeatThread):
                raise
            log.warning("Polling for heartbeats failed", error=f"{type(error).__name__}: {error}")
            return []

    network.poll = poll_and_close


def _close(network: KafkaClient, error: OSError) -> None:
    """Close the connections that are being made; where there are none, any established one may be the broken one."""
    with network._lock:
        connections = list(network._conns.values())
        for each in [each for each in connections if each.connecting()] or connections:
            each.close(kafka_errors.KafkaConnectionError(f"{type(error).__name__}: {error}"))


def _look_for_a_lost_cluster(network: KafkaClient, servers: Sequence[str]) -> Reach:
    """See to it that a cluster is found which has come back under other addresses.

    Once the client has metadata it knows only the addresses in there, and has forgotten the servers that it was made
    with; those may be fewer than the configured ones besides, because some did not answer then.
    """
    cluster, reach = network.cluster, Reach(network)
    cluster.config["bootstrap_servers"] = list(servers)
    cluster._bootstrap_brokers = cluster._generate_bootstrap_brokers()
    refresh, brokers = network._maybe_refresh_metadata, cluster.brokers

    def refresh_from_where_it_is(wakeup: bool = False) -> float:  # noqa: FBT001, FBT002  # as the client calls it
        reach.look()
        return reach.wait_ms(refresh(wakeup=wakeup))

    def brokers_and_servers() -> set[Any]:
        known: set[Any] = brokers()
        return known | set(cluster._bootstrap_brokers.values()) if reach.lost else known

    network._maybe_refresh_metadata = refresh_from_where_it_is
    cluster.brokers = brokers_and_servers
    return reach


def _answers(connection: BrokerConnection, now: float) -> bool:
    if not connection.connected():
        return False
    asked = _asked_at(connection)
    return asked is None or now - asked < _ANSWERS_WITHIN


def _asked_at(connection: BrokerConnection) -> float | None:
    """Return when the oldest question was sent that has no answer yet; None where each has."""
    return min((float(sent) for _, sent, _ in list(connection.in_flight_requests.values())), default=None)
