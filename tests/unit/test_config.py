"""What the environment may hold, how wrong values are reported, and that secrets never show."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from environs import ValidationError, validate

from gigaoffice_worker.config import VARIABLES, Secret, effective, kinds, load, markdown_table, read_env_file
from gigaoffice_worker.core.errors import ConfigurationError

SASL = {"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_PASSWORD": "hunter2"}


def complaint(**environ):
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_defaults_are_those_of_the_guide_and_warn_of_nothing():
    config = load({})
    assert config.warnings == ()
    assert config.kafka.bootstrap_servers == ("localhost:9092",)
    assert config.kafka.security_protocol == "PLAINTEXT"
    assert [(each.role, each.name, each.partitions, each.replication) for each in config.topics] == [
        ("requests", "gigaoffice-requests", 3, 1),
        ("responses", "gigaoffice-responses", 3, 1),
        ("dlq", "gigaoffice-dlq", 1, 1),
    ]
    topics, consumer, producer, worker = config.topics, config.consumer, config.producer, config.worker
    assert topics.auto_create is True
    assert (topics.creation_timeout, topics.creation_retries, topics.creation_retry_delay) == (30, 3, 2)
    assert (consumer.group, consumer.group_instance_id) == ("gigaoffice-consumers", None)
    assert (consumer.auto_offset_reset, consumer.max_poll_records) == ("earliest", 500)
    assert (consumer.session_timeout, consumer.heartbeat_interval, consumer.max_poll_interval) == (10, 3, 300)
    assert producer == dataclasses.replace(producer, acks="all", retry_backoff=0.1, linger=0.001, compression="gzip")
    assert (worker.handler, worker.concurrency, worker.ordering, worker.max_attempts) == ("echo", 16, "key", 5)
    assert (worker.storm_guard, worker.storm_guard_min_requests, worker.storm_guard_ratio) == (True, 20, 0.8)
    assert (config.side_port.host, config.side_port.port) == ("127.0.0.1", 9464)
    assert (config.logs.level, config.logs.format) == ("INFO", "auto")


def test_an_empty_value_counts_as_unset():
    assert load({variable.name: "" for variable in VARIABLES}) == load({})


def test_the_environment_of_the_process_is_read_only_if_no_other_is_given(monkeypatch):
    monkeypatch.setenv("KAFKA_CLIENT_ID", "from-the-process")
    assert load().kafka.client_id == "from-the-process"
    assert load({}).kafka.client_id == "gigaoffice-worker"
    assert dict(os.environ)["KAFKA_CLIENT_ID"] == "from-the-process"


def test_every_wrong_variable_is_named_at_once_with_what_is_allowed():
    text = complaint(
        KAFKA_USE_SSL="maybe",
        KAFKA_CONSUMER_MAX_POLL_RECORDS="many",
        KAFKA_PRODUCER_ACKS="2",
        WORKER_HANDLER="my handler",
        METRICS_PORT="65536",
        KAFKA_TOPIC_DLQ_PARTITIONS="0",
        KAFKA_SASL_USERNAME="worker",
    )
    assert text.startswith("8 settings are wrong:")
    assert "KAFKA_USE_SSL='maybe': must be true or false" in text
    assert "KAFKA_CONSUMER_MAX_POLL_RECORDS='many': must be a whole number from 1 to" in text
    assert "KAFKA_PRODUCER_ACKS='2': must be all, 1 or 0" in text
    assert "WORKER_HANDLER='my handler': must be echo, http, gigachat or package.module:callable" in text
    assert "METRICS_PORT='65536': must be a whole number from 0 to 65535" in text
    assert "Partition count must be greater than 0 for topic gigaoffice-dlq" in text
    assert "KAFKA_SASL_MECHANISM: must be set, because KAFKA_SASL_USERNAME is" in text
    assert "KAFKA_SASL_PASSWORD: must be set" in text


@pytest.mark.parametrize(
    "variable, value, sentence",
    [
        ("KAFKA_TOPIC_RESPONSES_PARTITIONS", "-1", "Partition count must be greater than 0 for topic gigaoffice-resp"),
        ("KAFKA_TOPIC_DLQ_REPLICATION", "0", "Replication factor must be greater than 0 for topic gigaoffice-dlq"),
        ("KAFKA_TOPIC_REQUESTS", "a" * 250, "Topic name must be between 1 and 249 characters"),
        ("KAFKA_TOPIC_REQUESTS", " ", "Topic name must be between 1 and 249 characters"),
        ("KAFKA_TOPIC_REQUESTS", "réquests", "Topic name contains invalid characters"),
        ("KAFKA_TOPIC_REQUESTS", "a b", "Topic name contains invalid characters"),
        ("KAFKA_TOPIC_REQUESTS", "a\n", ""),
        ("KAFKA_TOPIC_REQUESTS", ".", "Topic name contains invalid characters"),
        ("KAFKA_TOPIC_REQUESTS", "..", "Topic name contains invalid characters"),
    ],
)
@pytest.mark.parametrize("auto_create", ["true", "false"])
def test_topics_are_validated_in_the_words_of_the_guide_also_when_creation_is_off(
    variable, value, sentence, auto_create
):
    environ = {variable: value, "KAFKA_TOPIC_AUTO_CREATE": auto_create}
    if sentence:
        assert sentence in complaint(**environ)
    else:
        assert load(environ).topics.requests.name == value.strip()


def test_topic_names_must_differ():
    text = complaint(KAFKA_TOPIC_REQUESTS="same", KAFKA_TOPIC_DLQ="same")
    assert "KAFKA_TOPIC_DLQ='same': must differ from KAFKA_TOPIC_REQUESTS" in text


@pytest.mark.parametrize(
    "name, value",
    [
        ("KAFKA_TOPIC_REQUESTS_PARTITIONS", "2147483648"),
        ("KAFKA_TOPIC_DLQ_REPLICATION", "32768"),
        ("KAFKA_TOPIC_CREATION_TIMEOUT", "0"),
        ("KAFKA_TOPIC_CREATION_RETRIES", "-1"),
        ("KAFKA_TOPIC_CREATION_RETRY_DELAY", "-0.5"),
        ("KAFKA_CONSUMER_AUTO_OFFSET_RESET", "none"),
        ("KAFKA_CONSUMER_GROUP", "  "),
        ("KAFKA_CONSUMER_GROUP_INSTANCE_ID", "a/b"),
        ("KAFKA_PRODUCER_COMPRESSION_TYPE", "zip"),
        ("KAFKA_PRODUCER_LINGER_MS", "1.5"),
        ("WORKER_CONCURRENCY", "0"),
        ("WORKER_ORDERING", "topic"),
        ("WORKER_ATTEMPT_TIMEOUT", "inf"),
        ("WORKER_ATTEMPT_TIMEOUT", "nan"),
        ("WORKER_STORM_GUARD_RATIO", "1.01"),
        ("WORKER_HANDLER", "package.module"),
        ("WORKER_HANDLER", "package.module:"),
        ("WORKER_HANDLER", "pack-age:handle"),
        ("LOG_LEVEL", "TRACE"),
        ("LOG_FORMAT", "text"),
        ("METRICS_PORT", "-1"),
        ("KAFKA_SASL_MECHANISM", "GSSAPI"),
        ("WORKER_MAX_REQUEST_BYTES", "1023"),
        ("WORKER_ECHO_HEADERS", "a,source-offset"),
        ("WORKER_ECHO_HEADERS", "usage"),
    ],
)
def test_a_wrong_value_is_reported_by_name(name, value):
    assert f"{name}={value.strip()!r}: must " in complaint(**{name: value})


def test_each_bound_of_a_number_stands_in_what_is_allowed():
    bounded = [each for each in VARIABLES if isinstance(each.kind.check, validate.Range)]
    assert len(bounded) > 20
    for each in bounded:
        bounds = {each.kind.check.min, each.kind.check.max} - {None}
        told = {float(number) for number in re.findall(r"[\d.]+", each.kind.allowed)}
        assert bounds <= told, each.name


@pytest.mark.parametrize(
    "value, names", [("", {"correlation_id", "kafka_correlationId"}), ("a, b,", {"a", "b"}), (",", set())]
)
def test_echoed_headers_are_named_one_by_one(value, names):
    assert load({"WORKER_ECHO_HEADERS": value}).worker.echo_headers == names


@pytest.mark.parametrize("value", ["on", "ON", "yes", "1", "true", "True"])
def test_booleans_are_read_as_environs_reads_them(value):
    assert load({"WORKER_STORM_GUARD": value}).worker.storm_guard is True


def test_levels_are_read_in_any_case_and_blanks_around_values_do_not_count():
    config = load({"LOG_LEVEL": "debug", "METRICS_PORT": " 0 ", "WORKER_ORDERING": "none "})
    assert (config.logs.level, config.side_port.port, config.worker.ordering) == ("DEBUG", 0, "none")


def test_values_become_seconds_numbers_and_names():
    config = load(
        {
            "KAFKA_PRODUCER_ACKS": "0",
            "KAFKA_PRODUCER_COMPRESSION_TYPE": "none",
            "KAFKA_PRODUCER_LINGER_MS": "250",
            "WORKER_HANDLER": "my.package:Handlers.main",
            "RUNTIME_DIRECTORY": "/run/a:/run/b",
        }
    )
    assert (config.producer.acks, config.producer.compression, config.producer.linger) == (0, None, 0.25)
    assert config.worker.handler == "my.package:Handlers.main"
    assert config.side_port.runtime_directory == "/run/a"


def test_servers_are_hosts_with_ports():
    value = "kafka-1:9092, 10.0.0.1:9093,[::1]:9094,[fe80::1%eth0]:1,"
    assert load({"KAFKA_BOOTSTRAP_SERVERS": value}).kafka.bootstrap_servers == (
        "kafka-1:9092",
        "10.0.0.1:9093",
        "[::1]:9094",
        "[fe80::1%eth0]:1",
    )


def test_each_wrong_server_is_named():
    text = complaint(KAFKA_BOOTSTRAP_SERVERS="ok:1,kafka,::1:9092,ok:0,bad:port,SSL://kafka:9092,[::1],:9092")
    for entry in ("'kafka' has no port", "'::1:9092' looks like an IPv6", "'ok:0' has no port", "'bad:port' has no"):
        assert entry in text
    assert "'SSL://kafka:9092' carries a protocol" in text
    assert "'[::1]' has no port" in text
    assert "':9092' has no valid host" in text
    assert "'ok:1'" not in text


def test_a_comma_in_a_topic_setting_belongs_to_the_value_before_it():
    value = "cleanup.policy=compact,delete, retention.ms=60000,x=a=b"
    settings = load({"KAFKA_TOPIC_REQUESTS_CONFIG": value}).topics.requests.settings
    assert settings == {"cleanup.policy": "compact,delete", "retention.ms": "60000", "x": "a=b"}


@pytest.mark.parametrize("value", ["retention.ms", "=5", "a b=5", "a=1,a=2"])
def test_a_topic_setting_that_is_none_is_an_error(value):
    assert "KAFKA_TOPIC_DLQ_CONFIG" in complaint(KAFKA_TOPIC_DLQ_CONFIG=value)


def test_a_rate_is_a_number_in_so_many_seconds():
    assert kinds.RATE.parse("20/60") == (20, 60)


@pytest.mark.parametrize("value", ["20", "20/", "/60", "0/60", "20/0", "-1/60", "20 / 60", "20/60/2", "1.5/60", "٣/60"])
def test_a_rate_that_is_none_is_an_error(value):
    with pytest.raises(ValidationError, match="must be NUMBER/SECONDS, two whole numbers from 1 to 999999999"):
        kinds.RATE.parse(value)


def test_heartbeat_is_less_than_session_and_session_no_more_than_poll_interval():
    text = complaint(KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS="10000", KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS="9999")
    assert "KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS=10000: must be less than" in text
    assert "KAFKA_CONSUMER_SESSION_TIMEOUT_MS=10000: must not be more than" in text
    assert load({"KAFKA_CONSUMER_MAX_POLL_INTERVAL_MS": "10000"}).consumer.max_poll_interval == 10


def test_a_longest_retry_delay_below_the_first_one_is_taken_as_the_cap_it_is():
    assert load({"WORKER_RETRY_MAX_DELAY": "0.5"}).worker.retry_max_delay == 0.5


def test_sasl_needs_user_and_password_together():
    assert "KAFKA_SASL_PASSWORD: must be set" in complaint(KAFKA_SASL_MECHANISM="PLAIN", KAFKA_SASL_USERNAME="u")
    config = load({**SASL, "KAFKA_USE_SSL": "true"})
    assert config.kafka.security_protocol == "SASL_SSL"
    assert config.kafka.sasl_password == Secret("hunter2")


def test_certificate_and_key_go_together_and_files_must_be_readable(tmp_path):
    present = tmp_path / "cert.pem"
    present.write_text("-")
    text = complaint(
        KAFKA_USE_SSL="true",
        KAFKA_SSL_CERTFILE=str(present),
        KAFKA_SSL_CAFILE=str(tmp_path / "missing.pem"),
    )
    assert "KAFKA_SSL_KEYFILE: must be set, because KAFKA_SSL_CERTFILE is" in text
    assert "missing.pem': there is no such file" in text
    assert "must be a regular file" in complaint(KAFKA_USE_SSL="true", KAFKA_SSL_CAFILE=str(tmp_path))


def test_tls_files_without_tls_are_a_warning():
    (warning,) = load({"KAFKA_SSL_CAFILE": "/nowhere"}).warnings
    assert warning == "KAFKA_SSL_CAFILE without effect, because KAFKA_USE_SSL is false"


def test_a_secret_comes_out_of_its_file_without_the_last_line_break(tmp_path):
    file = tmp_path / "password"
    file.write_bytes(b" two words\r\n")
    config = load({**SASL, "KAFKA_SASL_PASSWORD": "", "KAFKA_SASL_PASSWORD_FILE": str(file)})
    assert config.kafka.sasl_password is not None
    assert config.kafka.sasl_password.reveal() == " two words"
    assert config.kafka.sasl_password_file == str(file)


def test_a_secret_and_its_file_at_once_is_an_error(tmp_path):
    file = tmp_path / "password"
    file.write_text("in-the-file")
    text = complaint(**SASL, KAFKA_SASL_PASSWORD_FILE=str(file))
    assert "KAFKA_SASL_PASSWORD and KAFKA_SASL_PASSWORD_FILE: only one of them may be set" in text
    assert "hunter2" not in text
    assert "in-the-file" not in text


@pytest.mark.parametrize(
    "content, trouble",
    [
        (None, "there is no such file"),
        (b"\n", "must not be empty"),
        (b"geheim\xff", "must hold UTF-8 text"),
        (b"x" * 70_000, "must hold at most"),
    ],
)
def test_a_secret_file_that_cannot_serve_is_named_but_not_quoted(tmp_path, content, trouble):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    text = complaint(**{**SASL, "KAFKA_SASL_PASSWORD": ""}, KAFKA_SASL_PASSWORD_FILE=str(file))
    assert text.startswith("1 setting is wrong:\n  KAFKA_SASL_PASSWORD_FILE=")
    assert f"{str(file)!r}: {trouble}" in text
    assert "geheim" not in text


def test_no_secret_shows_in_any_repr_listing_or_error(tmp_path):
    file = tmp_path / "key-password"
    file.write_text("correct horse")
    environ = {**SASL, "KAFKA_USE_SSL": "true", "KAFKA_SSL_PASSWORD_FILE": str(file)}
    config = load(environ)
    shown = [
        repr(config),
        str(config),
        f"{config.kafka.sasl_password}",
        f"{config.kafka.sasl_password:>20}",
        "%s %r" % (config.kafka.ssl_password, config.kafka.ssl_password),  # noqa: UP031  # how the client's log formats
        repr(dataclasses.asdict(config)),
        repr(effective(environ)),
        complaint(**environ, WORKER_CONCURRENCY="0"),
        " ".join(load({**SASL, "KAFKA_SASL_MECHANISM": "PLAIN"}).warnings),
    ]
    assert all("hunter2" not in text and "correct horse" not in text for text in shown)
    assert "********" in shown[0]


@pytest.mark.parametrize(
    "environ, part",
    [
        ({"KAFKA_CONSUMER_ENABLE_AUTO_COMMIT": "true"}, "KAFKA_CONSUMER_ENABLE_AUTO_COMMIT=true has no effect"),
        ({"KAFKA_PRODUCER_ACKS": "1"}, "KAFKA_PRODUCER_ACKS=1: after a broker fault"),
        ({"KAFKA_PRODUCER_ACKS": "0"}, "can be lost unseen"),
        ({"KAFKA_SSL_CHECK_HOSTNAME": "false"}, "KAFKA_SSL_CHECK_HOSTNAME=false accepts"),
        ({**SASL, "KAFKA_SASL_MECHANISM": "PLAIN"}, "KAFKA_SASL_MECHANISM=PLAIN without TLS"),
        ({"WORKER_REBALANCE_WAIT": "300"}, "WORKER_REBALANCE_WAIT is not below"),
        ({"KAFKA_TOPIC_REQUEST": "x"}, "did you mean KAFKA_TOPIC_REQUESTS?"),
        ({"KAFKA_CONSUMER_GROUPID": "x"}, "did you mean KAFKA_CONSUMER_GROUP?"),
        ({"KAFKA_PRODUCER_ACK": "x"}, "did you mean KAFKA_PRODUCER_ACKS?"),
        ({"WORKER_CONCURENCY": "x"}, "did you mean WORKER_CONCURRENCY?"),
        ({"WORKER_QQQQQQQQ": "x"}, "WORKER_QQQQQQQQ is not a variable of this worker and has no effect"),
    ],
)
def test_what_works_but_surprises_gives_exactly_one_warning(environ, part):
    (warning,) = load(environ).warnings
    assert part in warning


def test_names_outside_our_prefixes_and_empty_ones_are_nobodys_business():
    assert load({"KAFKA_HOME": "/opt", "GIGACHAT_TOKEN": "x", "HTTP_HANDLER_URL": "x", "WORKER_X": ""}).warnings == ()


def test_the_listing_shows_every_variable_with_the_text_that_counts(tmp_path):
    file = tmp_path / "password"
    file.write_text("x")
    listing = {each.name: each for each in effective({"METRICS_PORT": "0", "KAFKA_SASL_PASSWORD_FILE": str(file)})}
    assert listing.keys() == {variable.name for variable in VARIABLES}
    assert listing["METRICS_PORT"][1:] == ("0", False)
    assert listing["WORKER_ORDERING"][1:] == ("key", True)
    assert listing["KAFKA_SASL_PASSWORD"][1:] == ("********", False)
    assert listing["KAFKA_SSL_PASSWORD"][1:] == ("none", True)


def test_no_variable_is_declared_twice():
    names = [variable.name for variable in VARIABLES]
    assert sorted(set(names)) == sorted(names)


def test_the_readme_table_has_a_row_for_every_variable():
    rows = markdown_table().splitlines()[2:]
    assert len(rows) == len(VARIABLES)
    assert all(row.count("|") == 5 for row in rows)
    assert "| `WORKER_ORDERING` | `key` | key, partition or none |" in markdown_table()


def test_an_env_file_is_read_without_surprises(tmp_path):
    file = tmp_path / "worker.env"
    file.write_text(
        "# comment\n\nexport KAFKA_CLIENT_ID=a\nKAFKA_CLIENT_ID=b # why\n"
        "KAFKA_SASL_PASSWORD='p$HOME ${HOME} #1'\nWORKER_HANDLER=\"x:y\"\nLOG_LEVEL=\n"
    )
    assert read_env_file(str(file)) == {
        "KAFKA_CLIENT_ID": "b",
        "KAFKA_SASL_PASSWORD": "p$HOME ${HOME} #1",
        "WORKER_HANDLER": "x:y",
        "LOG_LEVEL": "",
    }


def test_an_env_file_that_is_missing_or_malformed_is_an_error_that_shows_no_content(tmp_path):
    with pytest.raises(ConfigurationError, match=r"missing\.env': there is no such file"):
        read_env_file(str(tmp_path / "missing.env"))
    with pytest.raises(ConfigurationError, match="the environment file '': there is no such file"):
        read_env_file("")
    file = tmp_path / "worker.env"
    file.write_text("A=1\n\n\nhunter2\nB=2\n'C=3\n")
    with pytest.raises(ConfigurationError) as caught:
        read_env_file(str(file))
    assert "line 4, 6 is not NAME=value" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caught.value.hint
    file.write_bytes(b"# any \0\nA='hunter2\0'\nB\0=hunter2\n'C=D'=hunter2\nE=1\n")
    with pytest.raises(ConfigurationError) as caught:
        read_env_file(str(file))
    assert "line 2, 3, 4 is not NAME=value" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caught.value.hint
    file.write_bytes(b"A=\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        read_env_file(str(file))


def test_core_broker_and_engine_never_read_the_environment():
    import gigaoffice_worker

    root = Path(gigaoffice_worker.__file__).parent
    readers = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if any(word in path.read_text() for word in ("os.environ", "getenv", "import environs", "from environs"))
    }
    assert "config" in readers
    assert readers.isdisjoint({"core", "broker", "engine"})
