"""The configuration's shape: frozen values, durations in seconds whatever the variable's unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

MASK = "********"


class Secret:
    """A text that shows itself only when asked to: printed, formatted or in a repr it is a mask."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for the one place that has to send it."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    def __format__(self, _spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, slots=True)
class Kafka:
    """Where the cluster is and who we are to it."""

    bootstrap_servers: tuple[str, ...]
    client_id: str
    use_ssl: bool
    ssl_cafile: str | None
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_password: Secret | None
    ssl_check_hostname: bool
    sasl_mechanism: str | None
    sasl_username: str | None
    sasl_password: Secret | None
    sasl_password_file: str | None
    """Kept beside the password that it held at start, so that a rotated one can be read again."""

    @property
    def security_protocol(self) -> str:
        """Kafka's name for the combination of TLS and SASL."""
        transport = "SSL" if self.use_ssl else "PLAINTEXT"
        return f"SASL_{transport}" if self.sasl_mechanism else transport


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it is to be created; `settings` are topic-level settings in Kafka's names."""

    role: Literal["requests", "responses", "dlq"]
    name: str
    partitions: int
    replication: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Topics:
    """The three topics and how to see to it that they exist. Iterating gives requests, responses, dead letters."""

    requests: TopicSpec
    responses: TopicSpec
    dlq: TopicSpec
    auto_create: bool
    creation_timeout: float
    creation_retries: int
    """Attempts after the first one."""
    creation_retry_delay: float

    def __iter__(self) -> Iterator[TopicSpec]:
        return iter((self.requests, self.responses, self.dlq))


@dataclass(frozen=True, slots=True)
class Consumer:
    """How requests are read."""

    group: str
    group_instance_id: str | None
    auto_offset_reset: Literal["earliest", "latest"]
    max_poll_records: int
    session_timeout: float
    heartbeat_interval: float
    max_poll_interval: float


@dataclass(frozen=True, slots=True)
class Producer:
    """How responses and dead letters are written."""

    acks: Literal["all", 1, 0]
    retry_backoff: float
    linger: float
    compression: Literal["gzip", "snappy", "lz4"] | None


@dataclass(frozen=True, slots=True)
class Worker:
    """How requests are handled."""

    handler: str
    concurrency: int
    ordering: Literal["key", "partition", "none"]
    max_attempts: int
    retry_delay: float
    retry_max_delay: float
    attempt_timeout: float
    rebalance_wait: float
    drain_timeout: float
    storm_guard: bool
    storm_guard_min_requests: int
    storm_guard_ratio: float


@dataclass(frozen=True, slots=True)
class SidePort:
    """Where metrics and health are served; port 0 picks a free one and writes it to the runtime directory, if any."""

    host: str
    port: int
    runtime_directory: str | None


@dataclass(frozen=True, slots=True)
class Logs:
    """What is logged and in which form."""

    level: str
    format: Literal["auto", "json", "console"]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the worker was told, checked; `warnings` are sentences for the log and for `check`."""

    kafka: Kafka
    topics: Topics
    consumer: Consumer
    producer: Producer
    worker: Worker
    side_port: SidePort
    logs: Logs
    warnings: tuple[str, ...]
