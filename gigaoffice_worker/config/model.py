"""The configuration's shape and, on each field, the variable that fills it: the one place where that stands.

Values are frozen; durations are seconds, whatever the variable's unit. What `load` reads and checks, what `check`
lists, the table in the documents, the names that are known and those of secrets' files all come from here.
"""

# ruff: noqa: RUF009  # the calls declare fields, as `dataclasses.field` does

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_type_hints

from gigaoffice_worker.config import kinds
from gigaoffice_worker.config.kinds import Variable, env, milliseconds, one_of, seconds, whole
from gigaoffice_worker.config.secret import Secret
from gigaoffice_worker.core.group_share import Rate
from gigaoffice_worker.core.messages import LARGEST_REQUEST


def _file_of(secret: str) -> Any:
    """Declare that a field holds the path in the `_FILE` twin of a secret, None where there is none."""
    return field(metadata={"file_of": secret})


def _topic(role: str, meaning: str, *, partitions: str, title: str, settings: str = "") -> Any:
    """Declare the four variables that fill a TopicSpec, in the order of its fields."""
    name = f"KAFKA_TOPIC_{role.upper()}"
    declared = (
        Variable(name, f"gigaoffice-{role}", kinds.TOPIC, meaning),
        Variable(f"{name}_PARTITIONS", partitions, kinds.PARTITIONS, f"partitions of the {title}"),
        Variable(f"{name}_REPLICATION", "1", kinds.REPLICATION, f"replicas of the {title}"),
        Variable(f"{name}_CONFIG", "", kinds.SETTINGS, f"topic-level settings of the {title}{settings}"),
    )
    return field(metadata={"variables": declared, "role": role})


@dataclass(frozen=True, slots=True)
class Kafka:
    """Where the cluster is and who we are to it."""

    bootstrap_servers: tuple[str, ...] = env(
        "KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", kinds.SERVERS, "brokers to ask first for the cluster"
    )
    client_id: str = env("KAFKA_CLIENT_ID", "gigaoffice-worker", kinds.TEXT, "name in the cluster's logs and quotas")
    use_ssl: bool = env("KAFKA_USE_SSL", "false", kinds.BOOLEAN, "encrypt with TLS")
    ssl_cafile: str | None = env(
        "KAFKA_SSL_CAFILE", "", kinds.PATH, "certificate authorities to trust; none: those of the system"
    )
    ssl_certfile: str | None = env("KAFKA_SSL_CERTFILE", "", kinds.PATH, "client certificate, together with its key")
    ssl_keyfile: str | None = env("KAFKA_SSL_KEYFILE", "", kinds.PATH, "key of the client certificate")
    ssl_password: Secret | None = env("KAFKA_SSL_PASSWORD", "", kinds.SECRET, "password of the key file")
    ssl_check_hostname: bool = env(
        "KAFKA_SSL_CHECK_HOSTNAME", "true", kinds.BOOLEAN, "the broker's certificate must name its host"
    )
    sasl_mechanism: str | None = env(
        "KAFKA_SASL_MECHANISM",
        "",
        one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"),
        "authenticate: by user name and password, by a token (`…_OAUTH_…`), or by AWS's credentials (`…_AWS_REGION`)",
    )
    sasl_username: str | None = env("KAFKA_SASL_USERNAME", "", kinds.TEXT, "user name")
    sasl_password: Secret | None = env("KAFKA_SASL_PASSWORD", "", kinds.SECRET, "password")
    sasl_password_file: str | None = _file_of("KAFKA_SASL_PASSWORD")
    """Kept beside the password that it held at start, so that a rotated one can be read again."""
    sasl_oauth_token_url: str | None = env(
        "KAFKA_SASL_OAUTH_TOKEN_URL", "", kinds.URL, "OAUTHBEARER: where tokens are asked for by client credentials"
    )
    sasl_oauth_client_id: str | None = env("KAFKA_SASL_OAUTH_CLIENT_ID", "", kinds.TEXT, "OAUTHBEARER: who asks")
    sasl_oauth_client_secret: Secret | None = env(
        "KAFKA_SASL_OAUTH_CLIENT_SECRET", "", kinds.SECRET, "OAUTHBEARER: its secret"
    )
    sasl_oauth_client_secret_file: str | None = _file_of("KAFKA_SASL_OAUTH_CLIENT_SECRET")
    sasl_oauth_scope: str | None = env("KAFKA_SASL_OAUTH_SCOPE", "", kinds.TEXT, "OAUTHBEARER: what the token is for")
    sasl_oauth_cafile: str | None = env(
        "KAFKA_SASL_OAUTH_CAFILE", "", kinds.PATH, "authorities to trust at the token endpoint; none: the system's"
    )
    sasl_aws_region: str | None = env("KAFKA_SASL_AWS_REGION", "", kinds.TEXT, "AWS_MSK_IAM: the cluster's region")

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

    requests: TopicSpec = _topic("requests", "topic to read requests from", partitions="3", title="request topic")
    responses: TopicSpec = _topic("responses", "topic to write responses to", partitions="3", title="response topic")
    dlq: TopicSpec = _topic(
        "dlq",
        "topic for requests that cannot be processed",
        partitions="1",
        title="dead letter topic",
        settings="; `max.message.bytes` is WORKER_MAX_REQUEST_BYTES + 1 MiB, and no less than that of the request "
        "topic + 64 KiB",
    )
    auto_create: bool = env(
        "KAFKA_TOPIC_AUTO_CREATE", "true", kinds.BOOLEAN, "create missing topics; false: wait for them"
    )
    creation_timeout: float = env(
        "KAFKA_TOPIC_CREATION_TIMEOUT", "30", seconds(0.1), "seconds for one attempt to list, create or verify"
    )
    creation_retries: int = env("KAFKA_TOPIC_CREATION_RETRIES", "3", whole(0, 10_000), "attempts after the first one")
    creation_retry_delay: float = env("KAFKA_TOPIC_CREATION_RETRY_DELAY", "2", seconds(0), "seconds between attempts")

    def __iter__(self) -> Iterator[TopicSpec]:
        return iter((self.requests, self.responses, self.dlq))


@dataclass(frozen=True, slots=True)
class Producer:
    """How responses and dead letters are written."""

    acks: Literal["all", 1, 0] = env(
        "KAFKA_PRODUCER_ACKS",
        "all",
        one_of("all", "1", "0", convert=lambda text: text if text == "all" else int(text)),
        "who must have a record before it counts",
    )
    retry_backoff: float = env(
        "KAFKA_PRODUCER_RETRY_BACKOFF_MS", "100", milliseconds(0, 60_000), "pause before a send is repeated"
    )
    linger: float = env(
        "KAFKA_PRODUCER_LINGER_MS",
        "1",
        milliseconds(0, 60_000),
        "how long a batch waits to fill while outcomes come quickly; 4 at least, or 0 for never",
    )
    compression: Literal["gzip", "snappy", "lz4"] | None = env(
        "KAFKA_PRODUCER_COMPRESSION_TYPE",
        "gzip",
        one_of("gzip", "snappy", "lz4", "none", convert=lambda text: None if text == "none" else text),
        "compression of batches",
    )


@dataclass(frozen=True, slots=True)
class Consumer:
    """How requests are read."""

    group: str = env(
        "KAFKA_CONSUMER_GROUP", "gigaoffice-consumers", kinds.TEXT, "consumer group that shares the partitions"
    )
    group_instance_id: str | None = env(
        "KAFKA_CONSUMER_GROUP_INSTANCE_ID", "", kinds.INSTANCE, "static membership under this id"
    )
    auto_offset_reset: Literal["earliest", "latest"] = env(
        "KAFKA_CONSUMER_AUTO_OFFSET_RESET",
        "earliest",
        one_of("earliest", "latest"),
        "where to start without a committed offset",
    )
    enable_auto_commit: bool = env(
        "KAFKA_CONSUMER_ENABLE_AUTO_COMMIT", "false", kinds.BOOLEAN, "accepted and ignored: finished work is committed"
    )
    """Never handed to the client, whose auto-commit would commit what is not finished."""
    max_poll_records: int = env("KAFKA_CONSUMER_MAX_POLL_RECORDS", "500", whole(1, 2**31 - 1), "records taken at once")
    session_timeout: float = env(
        "KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "10000", milliseconds(1), "silence after which a member is dead"
    )
    heartbeat_interval: float = env(
        "KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS", "3000", milliseconds(1), "time between signs of life"
    )
    max_poll_interval: float = env(
        "KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS", "300000", milliseconds(1), "longest time between two polls"
    )


@dataclass(frozen=True, slots=True)
class Worker:
    """How requests are handled."""

    handler: str = env("WORKER_HANDLER", "echo", kinds.HANDLER, "what answers a request")
    concurrency: int = env("WORKER_CONCURRENCY", "16", whole(1, 1024), "handler calls at once in this process")
    ordering: Literal["key", "partition", "none"] = env(
        "WORKER_ORDERING", "key", one_of("key", "partition", "none"), "what is handled one at a time, in order"
    )
    tenant_field: str | None = env(
        "WORKER_TENANT_FIELD",
        "",
        kinds.PLACE,
        "whom a request is for: a top-level field of it, or header:NAME; tenants share the calls equally",
    )
    priority_field: str | None = env(
        "WORKER_PRIORITY_FIELD",
        "",
        kinds.PLACE,
        "how urgent a request is: a top-level field of it, or header:NAME, that holds a number; higher first",
    )
    priority_aging: float = env(
        "WORKER_PRIORITY_AGING", "60", seconds(0.001), "seconds of waiting that are worth one step of priority"
    )
    max_attempts: int = env(
        "WORKER_MAX_ATTEMPTS", "5", whole(1, 10_000), "attempts for one request, the first included"
    )
    retry_delay: float = env(
        "WORKER_RETRY_DELAY", "1", seconds(0), "seconds before the second attempt; then exponential, jittered"
    )
    retry_max_delay: float = env(
        "WORKER_RETRY_MAX_DELAY", "60", seconds(0), "longest delay between attempts, in seconds"
    )
    attempt_timeout: float = env("WORKER_ATTEMPT_TIMEOUT", "120", seconds(0.001), "seconds for one handler call")
    retry_after_max: float = env(
        "WORKER_RETRY_AFTER_MAX", "300", seconds(0), "longest pause a provider's Retry-After may ask for, in seconds"
    )
    max_request_bytes: int = env(
        "WORKER_MAX_REQUEST_BYTES",
        "8388608",
        whole(1024, LARGEST_REQUEST),
        "largest value of a request, unpacked; a larger one is an invalid request",
    )
    echo_headers: frozenset[str] = env(
        "WORKER_ECHO_HEADERS",
        "correlation_id,kafka_correlationId",
        kinds.HEADERS,
        "headers of the request that its response carries too; a lone comma for none",
    )
    adaptive: bool = env("WORKER_ADAPTIVE", "on", kinds.BOOLEAN, "calls at once follow what the provider takes")
    group_concurrency: int | None = env(
        "WORKER_GROUP_CONCURRENCY", "", whole(1, 100_000), "handler calls at once in the whole consumer group"
    )
    group_rate: Rate | None = env(
        "WORKER_GROUP_RATE", "", kinds.RATE, "handler calls of the whole group in a time: 20/60 is 20 in 60 seconds"
    )
    group_tokens: Rate | None = env(
        "WORKER_GROUP_TOKENS", "", kinds.RATE, "tokens of the whole group in a time, as handlers report them"
    )
    request_ttl: float | None = env(
        "WORKER_REQUEST_TTL", "", seconds(0.001), "seconds after its timestamp for which a request is worth a call"
    )
    expired_to_dlq: bool = env(
        "WORKER_EXPIRED_TO_DLQ", "false", kinds.BOOLEAN, "expired requests become dead letters, too"
    )
    journal: bool = env(
        "WORKER_JOURNAL", "on", kinds.BOOLEAN, "look for outcomes in the response topic when a partition is taken over"
    )
    journal_timeout: float = env(
        "WORKER_JOURNAL_TIMEOUT", "10", seconds(0.1), "seconds for which a partition waits for that at most"
    )
    dedupe_window: float | None = env(
        "WORKER_DEDUPE_WINDOW", "", seconds(0.001), "seconds for which an answered request id is remembered"
    )
    dedupe_bytes: int = env("WORKER_DEDUPE_BYTES", "33554432", whole(1024, 2**31 - 1), "bytes of memory for that")
    rebalance_wait: float = env(
        "WORKER_REBALANCE_WAIT", "5", seconds(0), "seconds a rebalance may wait for running calls"
    )
    drain_timeout: float = env("WORKER_DRAIN_TIMEOUT", "25", seconds(0), "seconds after SIGTERM for what is in flight")
    storm_guard: bool = env("WORKER_STORM_GUARD", "on", kinds.BOOLEAN, "stop intake when nearly everything fails alike")
    storm_guard_min_requests: int = env(
        "WORKER_STORM_GUARD_MIN_REQUESTS", "20", whole(1, 2**31 - 1), "finished requests in 60 s before it acts"
    )
    storm_guard_ratio: float = env(
        "WORKER_STORM_GUARD_RATIO", "0.8", kinds.RATIO, "share of them that must have failed alike"
    )


@dataclass(frozen=True, slots=True)
class SidePort:
    """Where metrics and health are served; port 0 picks a free one and writes it to the runtime directory, if any."""

    host: str = env("METRICS_HOST", "127.0.0.1", kinds.TEXT, "address of the side port")
    port: int = env("METRICS_PORT", "9464", whole(0, 65_535), "side port for metrics and health; 0 picks a free one")
    port_wait: float = env("METRICS_PORT_WAIT", "10", seconds(0), "seconds for which a port that is taken is tried")
    allowed_hosts: tuple[str, ...] = env(
        "METRICS_ALLOWED_HOSTS",
        "",
        kinds.HOSTS,
        "names besides its own by which the side port answers; addresses always do, * is any",
    )
    runtime_directory: str | None = env(
        "RUNTIME_DIRECTORY", "", kinds.DIRECTORY, "set by systemd: for the control socket and a picked port's number"
    )


@dataclass(frozen=True, slots=True)
class Logs:
    """What is logged and in which form."""

    level: str = env("LOG_LEVEL", "INFO", kinds.LEVEL, "least level that is logged")
    format: Literal["auto", "json", "console"] = env(
        "LOG_FORMAT", "auto", one_of("auto", "json", "console"), "auto: JSON unless standard output is a terminal"
    )
    tracebacks: Literal["frames", "full", "off"] = env(
        "LOG_TRACEBACKS", "frames", one_of("frames", "full", "off"), "of a handler's exception: places only, or all"
    )


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the worker was told, checked; `warnings` are sentences for the log and for `check`."""

    kafka: Kafka
    topics: Topics
    producer: Producer
    consumer: Consumer
    worker: Worker
    side_port: SidePort
    logs: Logs
    warnings: tuple[str, ...]


SECTIONS: Final[Mapping[str, Any]] = MappingProxyType(
    {name: section for name, section in get_type_hints(Config).items() if is_dataclass(section)}
)


def _declared() -> Iterator[Variable]:
    """Yield every variable in the order in which people read them: topics' names before what else is said of them."""
    for section in SECTIONS.values():
        found = [each.metadata["variables"] for each in fields(section) if "variables" in each.metadata]
        yield from (first for first, *_ in found)
        for _, *others in found:
            yield from others


VARIABLES: Final = tuple(_declared())
BY_NAME: Final[Mapping[str, Variable]] = MappingProxyType({each.name: each for each in VARIABLES})
