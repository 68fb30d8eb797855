"""The client's three objects out of the configuration: what each is told, as pure functions, and how each is made.

A constructor here asks the bootstrap servers first (see `usable_servers`) and hands the client those that answered: one
silent server would use up all of its time. It raises nothing but WorkerErrors. Give it the configuration as it was
read: where no known broker answers any more, a client asks all configured servers anew (`kafka_python/network.py`).
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.errors import IncompatibleBrokerVersion, NoBrokersAvailable

from gigaoffice_worker.broker.bootstrap import usable_servers
from gigaoffice_worker.broker.connection_log import ConnectionErrors
from gigaoffice_worker.broker.error_table import BAD_CREDENTIALS, NO_LOGIN, describe, to_worker_error
from gigaoffice_worker.broker.kafka_python.clock import steady_the_client
from gigaoffice_worker.broker.kafka_python.fetching import watch
from gigaoffice_worker.broker.kafka_python.network import mended_network
from gigaoffice_worker.broker.kafka_python.sender import force_stop, refusal_of_idempotence
from gigaoffice_worker.broker.security import security_kwargs
from gigaoffice_worker.config import Config
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError, WorkerError

# Seconds.
DELIVERY_TIMEOUT: Final = 120.0
"""How long the producer tries by itself; longer than most outages, because what follows is a new producer."""
CONNECT_TIMEOUT: Final = 10.0
METADATA_MAX_AGE: Final = 10.0
"""Age at which the clients look again, so that new partitions and a topic that came back are seen soon."""
REQUEST_TIMEOUT: Final = 30.0
RECONNECT_BACKOFF: Final = 0.1
RECONNECT_BACKOFF_MAX: Final = 2.0
MAX_BLOCK: Final = 1.0
"""How long a send may wait for metadata of its topic; it holds up a thread of ours."""

# Bytes.
BATCH_SIZE: Final = 64 * 1024
MAX_REQUEST_SIZE: Final = 64 * 1024 * 1024
"""Checked before compression, so it is out of the way: the topic's own limit decides."""
PARTITION_FETCH: Final = 256 * 1024
"""What a pause throws away and reads again."""
FETCH: Final = 8 * 1024 * 1024
RECEIVE: Final = 100 * 1024 * 1024
"""As much as a broker takes in one request by default: no record that could be written is too large to be read."""

_STRATEGY: Final = KafkaConsumer.DEFAULT_CONFIG["partition_assignment_strategy"]
ASSIGNORS: Final = tuple(str(each.name) for each in _STRATEGY)
"""What workers offer to a group, by the names that its members agree on one with: the client's own choice."""

IDEMPOTENCE_HINT: Final = (
    "Grant the user IDEMPOTENT_WRITE on the cluster, which brokers before 2.8 ask for, and WRITE on the output topics; "
    "or set KAFKA_PRODUCER_ACKS=1, which may repeat and reorder outcomes."
)

_PRODUCER_ID_WITHIN: Final = 2.0
_DEAD_PEER: Final = 30
_SILENT: Final = "the server accepts connections but does not answer as Kafka does"
_SILENT_HINT: Final = "Check that the broker has started, and whether its port expects TLS (KAFKA_USE_SSL)."
# What the client guesses of a broker that took its connections and did not say its version: one that has just woken up.
_NO_VERSION: Final = "requires >= Kafka 0.11"
_NO_VERSION_HINT: Final = "Check that the broker has started and does not hang; Apache Kafka 2.1 or newer is needed."
# How the client logs that a broker expects no login on the port.
_NO_LOGIN: Final = kafka_errors.IllegalSaslStateError.__name__
_NO_CODEC: Final = re.compile(r"Libraries for (\w+) compression codec not found")


def socket_options() -> list[tuple[int, int, int]]:
    """Return what makes TCP notice a peer that vanished without a word, idle or in the middle of a request."""
    wanted = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": _DEAD_PEER,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": _DEAD_PEER * 1000,
    }
    known = [
        (socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in wanted.items() if hasattr(socket, name)
    ]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]


def _common(config: Config, client_id: str, connect_timeout: float) -> dict[str, Any]:
    return {
        **security_kwargs(config.kafka),
        "client_id": client_id,
        "metadata_max_age_ms": _ms(METADATA_MAX_AGE),
        "reconnect_backoff_ms": _ms(RECONNECT_BACKOFF),
        "reconnect_backoff_max_ms": _ms(RECONNECT_BACKOFF_MAX),
        "api_version_auto_timeout_ms": _ms(connect_timeout),
        "receive_message_max_bytes": RECEIVE,
        "socket_options": socket_options(),
    }


def admin_kwargs(config: Config, timeout: float) -> dict[str, Any]:
    """Return the administration client's arguments; no single request takes longer than `timeout` seconds."""
    return {
        **_common(config, f"{config.kafka.client_id}-admin", timeout),
        "request_timeout_ms": _ms(timeout),
    }


def consumer_kwargs(config: Config) -> dict[str, Any]:
    """Return the consumer's arguments: nothing is committed, created or started over behind our back."""
    consumer = config.consumer
    # A coordinator may hold a join for longer, a whole poll interval: it is then sent again under the same member id,
    # which costs a log line. A frozen broker, on the other hand, is noticed after this time only.
    request_timeout = max(REQUEST_TIMEOUT, consumer.session_timeout + 5.0)
    return {
        **_common(config, config.kafka.client_id, CONNECT_TIMEOUT),
        "group_id": consumer.group,
        "group_instance_id": consumer.group_instance_id,
        "partition_assignment_strategy": _STRATEGY,
        "session_timeout_ms": _ms(consumer.session_timeout),
        "heartbeat_interval_ms": _ms(consumer.heartbeat_interval),
        "max_poll_interval_ms": _ms(consumer.max_poll_interval),
        "max_poll_records": consumer.max_poll_records,
        "request_timeout_ms": _ms(request_timeout),
        "connections_max_idle_ms": _ms(max(540.0, request_timeout + 60.0)),
        "enable_auto_commit": False,
        # The engine decides where to start, so that it can say so and commit it. The client would do it silently.
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "max_partition_fetch_bytes": PARTITION_FETCH,
        "fetch_max_bytes": FETCH,
        # A seek waits for the fetch before it, and parking seeks: 52 ms instead of 314, for 0.4 % of a core.
        "fetch_max_wait_ms": 100,
        "metrics_enabled": False,
    }


def producer_kwargs(config: Config, suffix: str = "") -> dict[str, Any]:
    """Return the producer's arguments: idempotent exactly when every in-sync replica must acknowledge."""
    producer = config.producer
    idempotent = producer.acks == "all"
    return {
        **_common(config, f"{config.kafka.client_id}{suffix and '-'}{suffix}", CONNECT_TIMEOUT),
        # No limit on requests in flight is passed: idempotence fixes it at 1, and 1 without it stalls partitions.
        "acks": producer.acks,
        "enable_idempotence": idempotent,
        "compression_type": producer.compression,
        "linger_ms": _ms(producer.linger),
        "retry_backoff_ms": _ms(producer.retry_backoff),
        "batch_size": BATCH_SIZE,
        "max_request_size": MAX_REQUEST_SIZE,
        "max_block_ms": _ms(MAX_BLOCK),
        "request_timeout_ms": _ms(REQUEST_TIMEOUT),
        "delivery_timeout_ms": _ms(DELIVERY_TIMEOUT),
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }


def consumer(config: Config) -> KafkaConsumer:
    """Make a consumer that has found the cluster and subscribed to nothing. Raises WorkerErrors only."""
    return open_consumer("connecting the consumer", config, CONNECT_TIMEOUT)


def producer(config: Config, suffix: str = "") -> KafkaProducer:
    """Make a producer that has found the cluster; `suffix` goes behind its client id. Raises WorkerErrors only."""
    return open_producer("connecting the producer", config, CONNECT_TIMEOUT, suffix)


def open_consumer(during: str, config: Config, timeout: float, **changes: Any) -> KafkaConsumer:
    """Make a consumer with `changes` to the worker's arguments. Raises WorkerErrors only, which `during` begins."""
    with constructing(during, config):
        settings = {**consumer_kwargs(reachable(config, timeout)), **changes}
        client = KafkaConsumer(**settings, kafka_client=mended_network(config.kafka.bootstrap_servers))
    watch(client)
    return client


def open_producer(during: str, config: Config, timeout: float, suffix: str = "", **changes: Any) -> KafkaProducer:
    """Make a producer with `changes` to the worker's arguments. Raises WorkerErrors only, which `during` begins."""
    with constructing(during, config):
        settings = {**producer_kwargs(reachable(config, timeout), suffix), **changes}
        client = KafkaProducer(**settings, kafka_client=mended_network(config.kafka.bootstrap_servers))
    if refusal := refusal_of_idempotence(client, _PRODUCER_ID_WITHIN):
        force_stop(client, _PRODUCER_ID_WITHIN)
        told = to_worker_error(refusal, during)
        hint = IDEMPOTENCE_HINT if isinstance(told, AccessError) else told.hint
        raise type(told)(str(told), hint=hint) from refusal
    return client


def reachable(config: Config, timeout: float) -> Config:
    """Return the configuration with only those bootstrap servers that answer. Raises WorkerErrors if none does."""
    usable = usable_servers(config.kafka, timeout)
    return replace(config, kafka=replace(config.kafka, bootstrap_servers=usable))


@contextmanager
def constructing(during: str, config: Config) -> Iterator[None]:
    """Give the client its clock; translate what its constructor raises, with the reason it only logs."""
    steady_the_client()
    with ConnectionErrors() as heard:
        try:
            yield
        except WorkerError:
            raise
        except ssl.SSLError as error:
            # The first server passed; this is one that it sent us on to.
            told = to_worker_error(error, during)
            raise type(told)(f"{told}, at an address that the cluster advertises", hint=told.hint) from error
        except (AssertionError, KeyError, ValueError) as error:
            raise _refused_by_the_client(error, during) from error
        except Exception as error:
            if _NO_LOGIN in heard.refusal:
                raise ConfigurationError(f"{during}: {NO_LOGIN.cause}", hint=NO_LOGIN.hint) from error
            if heard.refusal or (isinstance(error, IncompatibleBrokerVersion) and config.kafka.sasl_mechanism):
                # A refused login leaves the client without the broker's versions, which is all that it raises.
                closed = f"the broker closes the connection; does it offer {config.kafka.sasl_mechanism}?"
                cause = f"{BAD_CREDENTIALS.cause}: {heard.refusal or closed}"
                raise AccessError(f"{during}: {cause}", hint=BAD_CREDENTIALS.hint) from error
            if isinstance(error, NoBrokersAvailable):
                raise UnreachableError(f"{during}: {_SILENT} ({heard.newest})", hint=_SILENT_HINT) from error
            told = to_worker_error(error, during)
            raise type(told)(f"{told}{heard.newest and f' ({heard.newest})'}", hint=told.hint) from error


def _refused_by_the_client(error: Exception, during: str) -> WorkerError:
    """Tell what the client asserts and looks up: what it is configured with, or what the broker has told of itself."""
    text = str(error)
    if _NO_VERSION in text:
        return UnreachableError(f"{during}: the broker does not tell which version it has", hint=_NO_VERSION_HINT)
    if missing := _NO_CODEC.search(text):
        message = f"{during}: the library for {missing[1]} compression is not installed"
        hint = "Install the worker with all its dependencies, or set another KAFKA_PRODUCER_COMPRESSION_TYPE."
        return ConfigurationError(message, hint=hint)
    message = f"{during}: the Kafka client refuses its configuration: {describe(error)}"
    return ConfigurationError(message, hint="Check the configuration with `gigaoffice-worker check`.")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
