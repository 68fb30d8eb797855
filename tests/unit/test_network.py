"""The network under the client's consumer and producer, on the client's own objects and without a broker."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.client_async import KafkaClient
from kafka.coordinator.base import MemberState
from kafka.future import Future
from kafka.protocol.sasl_handshake import SaslHandshakeResponse
from kafka.structs import BrokerMetadata

from gigaoffice_worker.broker.kafka_python.clock import STEADY, steady_the_client
from gigaoffice_worker.broker.kafka_python.network import LOST_AFTER, mended_network
from tests.support.certificates import Authority

THREADS = 1024
NOBODY = "127.0.0.1:1"


@contextlib.contextmanager
def consumer(server=NOBODY, servers=(), **settings):
    steady_the_client()
    client = KafkaConsumer(
        bootstrap_servers=server,
        api_version=(2, 1, 0),
        metrics_enabled=False,
        kafka_client=mended_network(servers or [server]),
        **{"group_id": None, **settings},
    )
    try:
        yield client
    finally:
        client.close(autocommit=False, timeout_ms=0)


@pytest.mark.parametrize("_", range(20))
def test_a_thousand_threads_that_wake_the_network_at_once_write_one_byte(_):
    with consumer() as client:
        network = client._client
        gathered = threading.Barrier(THREADS + 1)

        def wake():
            gathered.wait()
            network.wakeup()

        threads = [threading.Thread(target=wake) for _ in range(THREADS)]
        # All of them have looked whether it is woken already, and wait for the lock.
        with network._wake_lock:
            for thread in threads:
                thread.start()
            gathered.wait()
            time.sleep(0.05)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert network._wake_r.recv(2 * THREADS) == b"x"


def test_a_login_goes_on_under_the_lock():
    """Another thread that polled meanwhile would read the same socket."""
    with consumer() as client:
        network = client._client
        login, other, order = Future(), Future(), []
        login.add_callback(lambda answer: order.append((answer, network._lock._is_owned())))
        other.add_callback(lambda answer: order.append((answer, network._lock._is_owned())))
        handshake = SaslHandshakeResponse[1](0, ["PLAIN"])

        def read(timeout):
            network._pending_completion.extend([("fetched", other), (handshake, login)])

        network._poll = read
        network.poll(timeout_ms=0)
        assert order == [(handshake, True), ("fetched", False)]


@contextlib.contextmanager
def listening(talk):
    """Serve connections on loopback, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve():
            while not over.is_set():
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


def test_connection_that_fails_with_an_error_of_tls_is_closed(tmp_path):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*Authority(tmp_path, "stranger").issue("127.0.0.1"))
    ours = ssl.create_default_context(cafile=Authority(tmp_path, "ours").file)

    def refused(connection):
        with server.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
            with contextlib.suppress(ssl.SSLError):
                tls.do_handshake()
            socket.socket.recv(tls, 1)  # as a broker that goes on listening

    with listening(refused) as address:
        settings = {"security_protocol": "SSL", "ssl_context": ours}
        with consumer(address, **settings) as client:
            with pytest.raises(ssl.SSLCertVerificationError):
                client._client.poll(timeout_ms=5000, future=client._client.cluster.request_update())
            assert [each.disconnected() for each in client._client._conns.values()] == [True]


def test_heartbeats_go_on_behind_an_error_of_the_network(monkeypatch):
    polls, over, poll = [], threading.Event(), KafkaClient.poll

    def broken(network, timeout_ms=None, future=None):
        if over.is_set():
            return poll(network, timeout_ms, future)
        polls.append(timeout_ms)
        raise ssl.SSLError(1, "bad record mac")

    monkeypatch.setattr(KafkaClient, "poll", broken)
    with consumer(group_id="group", retry_backoff_ms=10) as client:
        coordinator = client._coordinator
        try:
            coordinator._start_heartbeat_thread()
            coordinator.state = MemberState.STABLE
            heartbeats = coordinator._heartbeat_thread
            heartbeats.enable()
            deadline = time.monotonic() + 20
            while len(polls) < 3:
                assert time.monotonic() < deadline, heartbeats.failed
                time.sleep(0.01)
            assert heartbeats.is_alive()
            with pytest.raises(ssl.SSLError):
                client._client.poll(timeout_ms=0)
        finally:
            over.set()
            coordinator._close_heartbeat_thread(5000)


def test_configured_servers_are_asked_when_no_known_broker_answers():
    asked = threading.Event()

    def note(_):
        asked.set()

    with listening(note) as moved, consumer(servers=[moved], reconnect_backoff_ms=10) as client:
        network, place = client._client, TopicPartition("requests", 0)
        cluster = network.cluster
        cluster._brokers = {1: BrokerMetadata(1, "127.0.0.1", 1, None)}
        client.assign([place])
        cluster.request_update()
        for _ in range(20):
            network.poll(timeout_ms=10)
        assert not asked.is_set(), "asked before anything was amiss"
        assert 0 < network.reach.silent_for < LOST_AFTER
        network.reach._silent_since -= LOST_AFTER
        deadline = time.monotonic() + 20
        while not asked.is_set():
            assert time.monotonic() < deadline
            network.poll(timeout_ms=10)
        assert network.reach.lost


def test_reach_is_regained_with_metadata_from_a_configured_server():
    with consumer() as client:
        reach, cluster = client._client.reach, client._client.cluster
        reach._silent_since = STEADY.time() - LOST_AFTER
        reach.look()
        assert reach.lost
        cluster._last_successful_refresh_ms = STEADY.time() * 1000 + 1
        reach.look()
        assert not reach.lost
        assert reach.silent_for < LOST_AFTER
