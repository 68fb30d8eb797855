"""Every environment variable of the worker in one table: what it is called, holds and means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from environs import validate

from gigaoffice_worker.config import values

FILE_SUFFIX: Final = "_FILE"
DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Kind:
    """How a variable's text is read: by which of environs' methods, and what is allowed, in words and as a check."""

    method: str
    allowed: str
    check: Callable[[Any], Any] | None = None
    parse: Callable[[str], Any] | None = None
    """The function behind a method that environs does not bring; its errors speak for themselves."""


class Variable(NamedTuple):
    """One row: an empty default means none; a secret is never shown and has a twin that names a file."""

    name: str
    default: str
    kind: Kind
    meaning: str
    secret: bool = False

    @property
    def allowed(self) -> str:
        """What the variable may hold, in words that follow "must be"."""
        return self.kind.allowed


class Setting(NamedTuple):
    """A variable as `check` shows it: secrets masked, `none` where nothing is set and there is no default."""

    name: str
    value: str
    is_default: bool


def _whole(least: int, most: int) -> Kind:
    return Kind("int", f"a whole number from {least} to {most}", validate.Range(min=least, max=most))


def _seconds(least: float, most: float = DAY) -> Kind:
    return Kind("float", f"seconds from {least:g} to {most:g}", validate.Range(min=least, max=most))


def _milliseconds(least: int, most: int = DAY * 1000) -> Kind:
    return Kind("int", f"whole milliseconds from {least} to {most}", validate.Range(min=least, max=most))


def _one_of(*choices: str) -> Kind:
    return Kind("str", f"{', '.join(choices[:-1])} or {choices[-1]}", validate.OneOf(choices))


BOOLEAN: Final = Kind("bool", "true or false")
TEXT: Final = Kind("text", "text", parse=values.text)
PATH: Final = Kind("text", "the path of a readable file", parse=values.text)
SECRET: Final = Kind("str", "text")
SERVERS: Final = Kind("servers", "host:port, separated by commas", parse=values.servers)
TOPIC: Final = Kind("str", "1 to 249 of A-Z a-z 0-9 . _ -")
PARTITIONS: Final = Kind("int", "a whole number greater than 0", validate.Range(max=2**31 - 1))
REPLICATION: Final = Kind("int", "a whole number greater than 0, at most 32767", validate.Range(max=2**15 - 1))
SETTINGS: Final = Kind("topic_settings", "name=value, separated by commas", parse=values.topic_settings)
INSTANCE: Final = Kind("instance_id", "1 to 249 of A-Z a-z 0-9 . _ -", parse=values.instance_id)
HANDLER: Final = Kind("handler", "echo, http, gigachat or package.module:callable", parse=values.handler)
LEVEL: Final = Kind("level", _one_of(*values.LEVELS).allowed, parse=values.level)

VARIABLES: Final = (
    Variable("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092", SERVERS, "brokers to ask first for the cluster"),
    Variable("KAFKA_CLIENT_ID", "gigaoffice-worker", TEXT, "name in the cluster's logs and quotas"),
    Variable("KAFKA_USE_SSL", "false", BOOLEAN, "encrypt with TLS"),
    Variable("KAFKA_SSL_CAFILE", "", PATH, "certificate authorities to trust; none: those of the system"),
    Variable("KAFKA_SSL_CERTFILE", "", PATH, "client certificate, together with its key"),
    Variable("KAFKA_SSL_KEYFILE", "", PATH, "key of the client certificate"),
    Variable("KAFKA_SSL_PASSWORD", "", SECRET, "password of the key file", secret=True),
    Variable("KAFKA_SSL_CHECK_HOSTNAME", "true", BOOLEAN, "the broker's certificate must name its host"),
    Variable(
        "KAFKA_SASL_MECHANISM",
        "",
        _one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
        "authenticate; needs user name and password",
    ),
    Variable("KAFKA_SASL_USERNAME", "", TEXT, "user name"),
    Variable("KAFKA_SASL_PASSWORD", "", SECRET, "password", secret=True),
    Variable("KAFKA_TOPIC_REQUESTS", "gigaoffice-requests", TOPIC, "topic to read requests from"),
    Variable("KAFKA_TOPIC_RESPONSES", "gigaoffice-responses", TOPIC, "topic to write responses to"),
    Variable("KAFKA_TOPIC_DLQ", "gigaoffice-dlq", TOPIC, "topic for requests that cannot be processed"),
    Variable("KAFKA_TOPIC_AUTO_CREATE", "true", BOOLEAN, "create missing topics; false: wait for them"),
    Variable("KAFKA_TOPIC_CREATION_TIMEOUT", "30", _seconds(0.1), "seconds for one attempt to list, create or verify"),
    Variable("KAFKA_TOPIC_CREATION_RETRIES", "3", _whole(0, 10_000), "attempts after the first one"),
    Variable("KAFKA_TOPIC_CREATION_RETRY_DELAY", "2", _seconds(0), "seconds between attempts"),
    Variable("KAFKA_TOPIC_REQUESTS_PARTITIONS", "3", PARTITIONS, "partitions of the request topic"),
    Variable("KAFKA_TOPIC_REQUESTS_REPLICATION", "1", REPLICATION, "replicas of the request topic"),
    Variable("KAFKA_TOPIC_REQUESTS_CONFIG", "", SETTINGS, "topic-level settings of the request topic"),
    Variable("KAFKA_TOPIC_RESPONSES_PARTITIONS", "3", PARTITIONS, "partitions of the response topic"),
    Variable("KAFKA_TOPIC_RESPONSES_REPLICATION", "1", REPLICATION, "replicas of the response topic"),
    Variable("KAFKA_TOPIC_RESPONSES_CONFIG", "", SETTINGS, "topic-level settings of the response topic"),
    Variable("KAFKA_TOPIC_DLQ_PARTITIONS", "1", PARTITIONS, "partitions of the dead letter topic"),
    Variable("KAFKA_TOPIC_DLQ_REPLICATION", "1", REPLICATION, "replicas of the dead letter topic"),
    Variable(
        "KAFKA_TOPIC_DLQ_CONFIG",
        "",
        SETTINGS,
        "topic-level settings of the dead letter topic; `max.message.bytes` is that of the request topic + 64 KiB",
    ),
    Variable("KAFKA_PRODUCER_ACKS", "all", _one_of("all", "1", "0"), "who must have a record before it counts"),
    Variable("KAFKA_PRODUCER_RETRY_BACKOFF_MS", "100", _milliseconds(0, 60_000), "pause before a send is repeated"),
    Variable(
        "KAFKA_PRODUCER_LINGER_MS",
        "1",
        _milliseconds(0, 60_000),
        "how long a batch waits to fill while outcomes come quickly; 4 at least, or 0 for never",
    ),
    Variable(
        "KAFKA_PRODUCER_COMPRESSION_TYPE", "gzip", _one_of("gzip", "snappy", "lz4", "none"), "compression of batches"
    ),
    Variable("KAFKA_CONSUMER_GROUP", "gigaoffice-consumers", TEXT, "consumer group that shares the partitions"),
    Variable("KAFKA_CONSUMER_GROUP_INSTANCE_ID", "", INSTANCE, "static membership under this id"),
    Variable(
        "KAFKA_CONSUMER_AUTO_OFFSET_RESET",
        "earliest",
        _one_of("earliest", "latest"),
        "where to start without a committed offset",
    ),
    Variable("KAFKA_CONSUMER_ENABLE_AUTO_COMMIT", "false", BOOLEAN, "accepted and ignored: finished work is committed"),
    Variable("KAFKA_CONSUMER_MAX_POLL_RECORDS", "500", _whole(1, 2**31 - 1), "records taken at once"),
    Variable("KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "10000", _milliseconds(1), "silence after which a member is dead"),
    Variable("KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS", "3000", _milliseconds(1), "time between signs of life"),
    Variable("KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS", "300000", _milliseconds(1), "longest time between two polls"),
    Variable("WORKER_HANDLER", "echo", HANDLER, "what answers a request"),
    Variable("WORKER_CONCURRENCY", "16", _whole(1, 1024), "handler calls at once in this process"),
    Variable("WORKER_ORDERING", "key", _one_of("key", "partition", "none"), "what is handled one at a time, in order"),
    Variable("WORKER_MAX_ATTEMPTS", "5", _whole(1, 10_000), "attempts for one request, the first included"),
    Variable("WORKER_RETRY_DELAY", "1", _seconds(0), "seconds before the second attempt; then exponential, jittered"),
    Variable("WORKER_RETRY_MAX_DELAY", "60", _seconds(0), "longest delay between attempts, in seconds"),
    Variable("WORKER_ATTEMPT_TIMEOUT", "120", _seconds(0.001), "seconds for one handler call"),
    Variable("WORKER_REBALANCE_WAIT", "5", _seconds(0), "seconds a rebalance may wait for running calls"),
    Variable("WORKER_DRAIN_TIMEOUT", "25", _seconds(0), "seconds after SIGTERM for what is in flight"),
    Variable("WORKER_STORM_GUARD", "on", BOOLEAN, "stop intake when nearly everything fails alike"),
    Variable("WORKER_STORM_GUARD_MIN_REQUESTS", "20", _whole(1, 2**31 - 1), "finished requests in 60 s before it acts"),
    Variable(
        "WORKER_STORM_GUARD_RATIO",
        "0.8",
        Kind("float", "a number from 0 to 1", validate.Range(min=0, max=1)),
        "share of them that must have failed alike",
    ),
    Variable("METRICS_HOST", "127.0.0.1", TEXT, "address of the side port"),
    Variable("METRICS_PORT", "9464", _whole(0, 65_535), "side port for metrics and health; 0 picks a free one"),
    Variable("RUNTIME_DIRECTORY", "", TEXT, "set by systemd: where the number of a picked port is written"),
    Variable("LOG_LEVEL", "INFO", LEVEL, "least level that is logged"),
    Variable(
        "LOG_FORMAT", "auto", _one_of("auto", "json", "console"), "auto: JSON unless standard output is a terminal"
    ),
)

BY_NAME: Final[Mapping[str, Variable]] = MappingProxyType({variable.name: variable for variable in VARIABLES})


def readme_table() -> str:
    """Return the table as Markdown, one row a variable."""
    rows = [f"| {_shown_name(each)} | {_code(each.default)} | {each.allowed} | {each.meaning} |" for each in VARIABLES]
    return "\n".join(["| variable | default | allowed | meaning |", "|---|---|---|---|", *rows, ""])


def _shown_name(variable: Variable) -> str:
    twin = f", or a file in `{variable.name}{FILE_SUFFIX}`" if variable.secret else ""
    return f"`{variable.name}`{twin}"


def _code(default: str) -> str:
    return f"`{default}`" if default else "none"
