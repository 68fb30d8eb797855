"""From checked values to the frozen Config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gigaoffice_worker.config.model import (
    Config,
    Consumer,
    Kafka,
    Logs,
    Producer,
    Secret,
    SidePort,
    Topics,
    TopicSpec,
    Worker,
)


def build(values: Mapping[str, Any], given: Mapping[str, str], warnings: tuple[str, ...]) -> Config:
    """Put the values where they belong; `given` are the variables that are set, with their texts."""
    return Config(
        kafka=_kafka(values, given),
        topics=_topics(values),
        consumer=_consumer(values),
        producer=_producer(values),
        worker=_worker(values),
        side_port=SidePort(
            host=values["METRICS_HOST"],
            port=values["METRICS_PORT"],
            # systemd separates several directories by colons; the first is the unit's own.
            runtime_directory=(values["RUNTIME_DIRECTORY"] or "").partition(":")[0] or None,
        ),
        logs=Logs(level=values["LOG_LEVEL"], format=values["LOG_FORMAT"]),
        warnings=warnings,
    )


def _kafka(values: Mapping[str, Any], given: Mapping[str, str]) -> Kafka:
    return Kafka(
        bootstrap_servers=values["KAFKA_BOOTSTRAP_SERVERS"],
        client_id=values["KAFKA_CLIENT_ID"],
        use_ssl=values["KAFKA_USE_SSL"],
        ssl_cafile=values["KAFKA_SSL_CAFILE"],
        ssl_certfile=values["KAFKA_SSL_CERTFILE"],
        ssl_keyfile=values["KAFKA_SSL_KEYFILE"],
        ssl_password=_secret(values["KAFKA_SSL_PASSWORD"]),
        ssl_check_hostname=values["KAFKA_SSL_CHECK_HOSTNAME"],
        sasl_mechanism=values["KAFKA_SASL_MECHANISM"],
        sasl_username=values["KAFKA_SASL_USERNAME"],
        sasl_password=_secret(values["KAFKA_SASL_PASSWORD"]),
        sasl_password_file=given.get("KAFKA_SASL_PASSWORD_FILE"),
    )


def _secret(text: str | None) -> Secret | None:
    return None if text is None else Secret(text)


def _topics(values: Mapping[str, Any]) -> Topics:
    return Topics(
        requests=_topic("requests", values),
        responses=_topic("responses", values),
        dlq=_topic("dlq", values),
        auto_create=values["KAFKA_TOPIC_AUTO_CREATE"],
        creation_timeout=values["KAFKA_TOPIC_CREATION_TIMEOUT"],
        creation_retries=values["KAFKA_TOPIC_CREATION_RETRIES"],
        creation_retry_delay=values["KAFKA_TOPIC_CREATION_RETRY_DELAY"],
    )


def _topic(role: Literal["requests", "responses", "dlq"], values: Mapping[str, Any]) -> TopicSpec:
    variable = f"KAFKA_TOPIC_{role.upper()}"
    return TopicSpec(
        role=role,
        name=values[variable],
        partitions=values[f"{variable}_PARTITIONS"],
        replication=values[f"{variable}_REPLICATION"],
        settings=values[f"{variable}_CONFIG"] or {},
    )


def _consumer(values: Mapping[str, Any]) -> Consumer:
    return Consumer(
        group=values["KAFKA_CONSUMER_GROUP"],
        group_instance_id=values["KAFKA_CONSUMER_GROUP_INSTANCE_ID"],
        auto_offset_reset=values["KAFKA_CONSUMER_AUTO_OFFSET_RESET"],
        max_poll_records=values["KAFKA_CONSUMER_MAX_POLL_RECORDS"],
        session_timeout=values["KAFKA_CONSUMER_SESSION_TIMEOUT_MS"] / 1000,
        heartbeat_interval=values["KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS"] / 1000,
        max_poll_interval=values["KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS"] / 1000,
    )


def _producer(values: Mapping[str, Any]) -> Producer:
    acks, compression = values["KAFKA_PRODUCER_ACKS"], values["KAFKA_PRODUCER_COMPRESSION_TYPE"]
    return Producer(
        acks="all" if acks == "all" else int(acks),  # type: ignore[arg-type]  # the table allows 0 and 1 only
        retry_backoff=values["KAFKA_PRODUCER_RETRY_BACKOFF_MS"] / 1000,
        linger=values["KAFKA_PRODUCER_LINGER_MS"] / 1000,
        compression=None if compression == "none" else compression,
    )


def _worker(values: Mapping[str, Any]) -> Worker:
    return Worker(
        handler=values["WORKER_HANDLER"],
        concurrency=values["WORKER_CONCURRENCY"],
        ordering=values["WORKER_ORDERING"],
        max_attempts=values["WORKER_MAX_ATTEMPTS"],
        retry_delay=values["WORKER_RETRY_DELAY"],
        retry_max_delay=values["WORKER_RETRY_MAX_DELAY"],
        attempt_timeout=values["WORKER_ATTEMPT_TIMEOUT"],
        rebalance_wait=values["WORKER_REBALANCE_WAIT"],
        drain_timeout=values["WORKER_DRAIN_TIMEOUT"],
        storm_guard=values["WORKER_STORM_GUARD"],
        storm_guard_min_requests=values["WORKER_STORM_GUARD_MIN_REQUESTS"],
        storm_guard_ratio=values["WORKER_STORM_GUARD_RATIO"],
    )
