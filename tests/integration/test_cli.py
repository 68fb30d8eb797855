"""The commands topics and check, as somebody types them, and what a guarded Kafka says to send."""

from __future__ import annotations

import json
import re

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.conftest import settings
from tests.support import wire
from tests.support.certificates import Authority
from tests.support.commands import Cli
from tests.support.listeners import AUTHORIZED, scram_user, with_login, with_tls
from tests.support.releases import OwnKafka

PASSWORD = "secret-of-the-worker"


# topics


def test_topics_creates_what_is_missing_and_finds_it_the_next_time(cli, kafka_bootstrap, topic_set):
    first, second = cli("topics"), cli("topics")
    assert (first.returncode, second.returncode) == (0, 0)
    expected = {topic_set.requests: 3, topic_set.responses: 3, topic_set.dlq: 1}
    assert expected.items() <= wire.topics(kafka_bootstrap).items()
    for done, verdict in ((first, "created"), (second, "exists")):
        lines = done.stdout.splitlines()
        assert len(lines) == 3
        for line, (name, partitions) in zip(lines, expected.items(), strict=True):
            assert line.startswith(f"{name}: {verdict} (partitions {partitions}, replication 1, ")
        assert done.stderr == ""


def test_topics_as_a_dry_run_changes_nothing(cli, kafka_bootstrap, names):
    done = cli("topics", "--dry-run")
    assert done.returncode == 1
    assert done.stdout.count(": missing, would be created (") == 3
    assert not names & wire.topics(kafka_bootstrap).keys()


def test_topics_creates_nothing_where_it_must_not(cli, kafka_bootstrap, topic_set, names):
    wire.create_topics(kafka_bootstrap, {topic_set.dlq: 1})
    done = cli("topics", KAFKA_TOPIC_AUTO_CREATE="false")
    assert done.returncode == 1
    assert f"{topic_set.requests}: missing (" in done.stdout
    assert f"{topic_set.dlq}: exists (" in done.stdout
    assert "KAFKA_TOPIC_AUTO_CREATE is false" in done.stderr
    assert names & wire.topics(kafka_bootstrap).keys() == {topic_set.dlq}


def test_topics_shows_how_a_topic_differs_from_the_configuration(cli, made_topics):
    done = cli("topics", KAFKA_TOPIC_RESPONSES_PARTITIONS="5", KAFKA_TOPIC_RESPONSES_REPLICATION="2")
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(made_topics.responses)]
    assert "(partitions 3, replication 1, " in line
    assert "configured is partitions 5, configured is replication factor 2)" in line


def test_topics_that_the_cluster_refuses_are_a_wrong_configuration(cli, kafka_bootstrap, names):
    done = cli("topics", KAFKA_TOPIC_REQUESTS_REPLICATION="9")
    assert done.returncode == 78
    assert re.search(r"error: creating topic \S+: replication factor refused", done.stderr)
    assert "hint: Set KAFKA_TOPIC_…_REPLICATION" in done.stderr
    assert not names & wire.topics(kafka_bootstrap).keys()


# check


def test_check_is_content_with_what_topics_makes(cli, topic_set):
    assert cli("topics").returncode == 0
    done = cli("check")
    assert done.returncode == 0, done.stdout
    findings = [line for line in done.stdout.splitlines() if line and line[0] in "✓!✗-"]
    assert all(line.startswith("✓") for line in findings)
    for step in ("reach", "authentication", "brokers", "group"):
        assert sum(line.startswith(f"✓ {step}") for line in findings) == 1
    assert f"✓ topic {topic_set.requests}: partitions 3, replication 1, READ permitted; " in done.stdout
    assert (
        f"✓ topic {topic_set.dlq}: partitions 1, replication 1, WRITE permitted; max.message.bytes 9437184, "
        "retention 7 d, cleanup.policy delete, min.insync.replicas 1"
    ) in findings
    assert "TimeoutStopSec" in done.stdout
    assert "✓ spans: off" in findings


def test_check_finds_missing_topics_and_does_not_create_them(cli, kafka_bootstrap, names):
    done = cli("check")
    assert done.returncode == 1
    assert done.stdout.count("missing; the cluster would create it") == 3
    assert "`gigaoffice-worker topics` creates it" in done.stdout
    assert not names & wire.topics(kafka_bootstrap).keys()


def test_check_tells_that_a_missing_topic_could_not_be_created(cli, topic_set):
    done = cli("check", KAFKA_TOPIC_REQUESTS_REPLICATION="9")
    assert done.returncode == 78
    assert f"✗ topic {topic_set.requests}: missing, and creating it would fail: replication factor" in done.stdout


def test_check_takes_a_difference_for_a_warning(cli, made_topics):
    done = cli("check", KAFKA_TOPIC_DLQ_PARTITIONS="2")
    assert done.returncode == 0
    assert f"! topic {made_topics.dlq}: partitions 1" in done.stdout
    assert "Configured is partitions 2" in done.stdout


def test_check_counts_the_partitions_that_there_are_for_what_the_limits_mean(cli, made_topics):
    done = cli("check", WORKER_GROUP_CONCURRENCY="2", KAFKA_TOPIC_REQUESTS_PARTITIONS="2")
    assert done.returncode == 0
    assert (
        "! limits: at most 2 calls at once in the group; with 3 partitions at most 2 workers are useful" in done.stdout
    )
    assert "2 calls for 3 partitions: they take turns" in done.stdout


def test_check_tells_settings_of_topics_that_will_lose_or_block(cli, kafka_bootstrap, topic_set):
    odd = (
        (topic_set.requests, {"cleanup.policy": "compact"}),
        (topic_set.responses, {"retention.ms": "60000"}),
        (topic_set.dlq, {"max.message.bytes": "1000000"}),
    )
    for name, odd_settings in odd:
        wire.create_topics(kafka_bootstrap, {name: 1}, config=odd_settings)
    done = cli("check", "--json")
    assert done.returncode == 1
    found = {each["step"]: each for each in json.loads(done.stdout)["findings"]}
    requests, responses, dlq = (found[f"topic {name}"] for name in topic_set[:3])
    assert (requests["mark"], responses["mark"], dlq["mark"]) == ("bad", "weak", "bad")
    assert "Set cleanup.policy=delete" in requests["hint"]
    assert "retention 1 min" in responses["found"]
    assert "Set retention.ms to 3600000" in responses["hint"]
    assert "Set max.message.bytes to 9437184 or more" in dlq["hint"]


def test_check_tells_time_limits_that_do_not_fit_and_a_handler_that_cannot_be_loaded(cli, made_topics):
    done = cli("check", WORKER_DRAIN_TIMEOUT="0", WORKER_HANDLER="no_such_module:handle")
    assert done.returncode == 78
    assert "! time limits: attempt 120 s, drain 0 s" in done.stdout
    assert "set WORKER_DRAIN_TIMEOUT above 0" in done.stdout
    assert "✗ handler: WORKER_HANDLER no_such_module:handle: module no_such_module cannot be imported" in done.stdout
    assert "put its directory on PYTHONPATH" in done.stdout
    assert f"✓ topic {made_topics.requests}" in done.stdout


def test_check_of_a_cluster_with_one_dead_bootstrap_server_is_found_wanting(cli, kafka_bootstrap, made_topics):
    done = cli("check", KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:1,{kafka_bootstrap}")
    assert done.returncode == 1
    assert "✗ reach 127.0.0.1:1: connection refused" in done.stdout
    assert f"✓ topic {made_topics.requests}: " in done.stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(authority):
    """A cluster that wants a password, and permits what `allow` allows; its listener TLS is for everybody."""
    with OwnKafka(
        listeners={"CLIENT": "SASL_PLAINTEXT", "TLS": "SSL"},
        properties={
            **AUTHORIZED,
            **with_tls("tls", *authority.issue("localhost")),
            **with_login("client", ["SCRAM-SHA-256"]),
        },
        format_options=scram_user("worker", PASSWORD),
    ) as cluster:
        yield cluster


@pytest.fixture
def guarded_cli(guarded, topic_set):
    wire.create_topics(guarded.bootstrap("BROKER"), {topic_set.requests: 3, topic_set.responses: 3, topic_set.dlq: 1})
    login = {"KAFKA_SASL_MECHANISM": "SCRAM-SHA-256", "KAFKA_SASL_USERNAME": "worker", "KAFKA_SASL_PASSWORD": PASSWORD}
    return Cli({**settings(guarded.bootstrap_servers, topic_set), **login})


def allow(cluster: OwnKafka, kind: ResourceType, name: str, operation: AclOperation) -> None:
    pattern = ResourcePatternType.LITERAL
    binding = AclBinding(kind, name, pattern, "User:worker", "*", operation, AclPermissionType.ALLOW)
    wire.create_acls(cluster.bootstrap("BROKER"), [binding])


def test_check_tells_a_refused_password(guarded_cli):
    done = guarded_cli("check", KAFKA_SASL_PASSWORD="another-secret")
    assert done.returncode == 77
    assert "✗ authentication: " in done.stdout
    assert "Check KAFKA_SASL_MECHANISM" in done.stdout
    assert "another-secret" not in done.stdout + done.stderr


@pytest.fixture
def tls_cli(guarded, authority, topic_set):
    tls = {"KAFKA_USE_SSL": "true", "KAFKA_SSL_CAFILE": authority.file}
    return Cli({**settings(guarded.bootstrap("TLS"), topic_set), **tls})


def test_check_tries_tls_as_a_step_of_its_own(tls_cli, topic_set):
    server = tls_cli.environment["KAFKA_BOOTSTRAP_SERVERS"]
    assert tls_cli("topics", KAFKA_SSL_CHECK_HOSTNAME="false").returncode == 0
    good = tls_cli("check", KAFKA_SSL_CHECK_HOSTNAME="false")
    assert good.returncode == 0, good.stdout
    assert f"✓ reach {server}: accepts connections\n✓ TLS {server}: its certificate is trusted" in good.stdout
    assert f"✓ topic {topic_set.requests}: partitions 3" in good.stdout
    assert "! configuration: KAFKA_SSL_CHECK_HOSTNAME=false" in good.stdout
    wrong = tls_cli("check")
    assert wrong.returncode == 77
    assert f"✓ reach {server}: accepts connections\n✗ TLS {server}: certificate not trusted" in wrong.stdout


def test_check_tells_a_certificate_that_lacks_the_advertised_address_from_a_refused_password(tls_cli):
    by_name = tls_cli.environment["KAFKA_BOOTSTRAP_SERVERS"].replace("127.0.0.1", "localhost")
    done = tls_cli("check", KAFKA_BOOTSTRAP_SERVERS=by_name)
    assert done.returncode == 77
    assert f"✓ TLS {by_name}" in done.stdout
    assert "✗ connection: " in done.stdout
    assert "✗ authentication" not in done.stdout


def test_check_names_the_permission_that_is_missing(guarded, guarded_cli, topic_set):
    allow(guarded, ResourceType.TOPIC, topic_set.requests, AclOperation.READ)
    allow(guarded, ResourceType.TOPIC, topic_set.requests, AclOperation.DESCRIBE_CONFIGS)
    allow(guarded, ResourceType.TOPIC, topic_set.responses, AclOperation.DESCRIBE)
    done = guarded_cli("check")
    assert done.returncode == 77
    assert "✓ authentication: SCRAM-SHA-256 as worker (SASL_PLAINTEXT)" in done.stdout
    assert f"✓ topic {topic_set.requests}: partitions 3, replication 1, READ permitted; " in done.stdout
    assert f"✗ topic {topic_set.responses}: authorization failed: WRITE is not permitted" in done.stdout
    assert f"Grant the user WRITE on the topic {topic_set.responses}." in done.stdout
    assert f"✗ topic {topic_set.dlq}: asking the cluster: authorization failed" in done.stdout
    assert f"✗ group {topic_set.group}: asking the cluster: authorization failed" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


def test_check_is_content_with_the_permissions_of_a_worker_and_no_more(guarded, guarded_cli, topic_set):
    for name, operation in (
        (topic_set.requests, AclOperation.READ),
        (topic_set.responses, AclOperation.WRITE),
        (topic_set.dlq, AclOperation.WRITE),
    ):
        allow(guarded, ResourceType.TOPIC, name, operation)
    allow(guarded, ResourceType.GROUP, topic_set.group, AclOperation.READ)
    done = guarded_cli("check")
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout
    assert done.stdout.count("Grant the user DESCRIBE_CONFIGS.") == 3  # useful, not necessary


def test_send_names_the_permissions_of_a_requester(guarded, guarded_cli, topic_set):
    for name in (topic_set.requests, topic_set.responses):
        allow(guarded, ResourceType.TOPIC, name, AclOperation.READ)
    done = guarded_cli("send", "hello")
    assert done.returncode == 77
    assert "hint: To send, the user needs WRITE on the request topic" in done.stderr
