"""The units under a real systemd: a booted Debian 12, its worker installed by systemd/install.sh."""

from __future__ import annotations

import json
import urllib.request

import pytest

from gigaoffice_worker.cli import manual
from gigaoffice_worker.devkafka import KafkaCluster
from tests.conftest import TopicSet, settings
from tests.support import wire
from tests.support.listeners import with_login
from tests.support.waiting import eventually
from tests.system.machine import ETC, WORKER

PASSWORD = "correct horse"
MISCHIEF = "/run/mischief"
ACTIVE = {"ActiveState": "active", "SubState": "running"}


@pytest.fixture(scope="module")
def kafka():
    properties = with_login("secret", ["PLAIN"], worker=PASSWORD)
    listeners = {"CLIENT": "PLAINTEXT", "SECRET": "SASL_PLAINTEXT"}
    with KafkaCluster(listeners=listeners, properties=properties) as cluster:
        yield cluster


@pytest.fixture
def topics(request):
    name = request.node.name.removeprefix("test_")[:40].replace("_", "-")
    return TopicSet(f"{name}-requests", f"{name}-responses", f"{name}-dlq", name)


@pytest.fixture
def unit(booted, kafka, topics):
    """Prepare an instance that is a worker of this test's own: unit("blue", WORKER_CONCURRENCY="2")."""
    names = []

    def prepare(name, drop_in="", **environment):
        unit = f"gigaoffice-worker@{name}.service" if name else "gigaoffice-worker.service"
        names.append(unit)
        variables = {
            **settings(kafka.bootstrap_servers, topics),
            "METRICS_PORT": "0",
            "WORKER_HANDLER": "desk:handle",
            "PYTHONPATH": "/shared",
            **environment,
        }
        file = f"{ETC}/{name or 'worker'}.env"
        booted.write(file, "".join(f"{key}={value}\n" for key, value in variables.items()))
        if drop_in:
            booted.write(f"/run/systemd/system/{unit}.d/test.conf", f"[Service]\n{drop_in}", mode="644")
        booted.sh("systemctl daemon-reload")
        return unit

    yield prepare
    for name in names:
        booted.sh(f"systemctl kill --signal=KILL {name}; systemctl stop {name}; rm -f {MISCHIEF}", check=False)


def send(kafka, topics, *payloads):
    records = [(None, json.dumps({"id": f"r-{n}", **payload}).encode(), []) for n, payload in enumerate(payloads)]
    wire.produce(kafka.bootstrap_servers, topics.requests, records)


def responses(kafka, topics):
    return [json.loads(rec.value) for rec in wire.read_all(kafka.bootstrap_servers, topics.responses)]


def wait_for(booted, unit, timeout=40, **wanted):
    def reached():
        found = booted.show(unit, *wanted)
        return all(found.get(name) == value for name, value in wanted.items())

    try:
        eventually(reached, f"{unit} to have {wanted}", timeout=timeout, interval=0.2)
    except AssertionError as error:
        now = booted.show(unit, "ActiveState", "SubState", "Result", "NRestarts", "ExecMainStatus", "StatusText")
        raise AssertionError(f"{error}\n{now}\n" + "\n".join(booted.said(unit)[-20:])) from error


def ask(booted, unit, path):
    port = booted.sh(f"cat /run/{unit.removesuffix('.service')}/port").strip()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)


def test_units_are_valid_and_sandboxed(booted):
    for name in ("gigaoffice-worker.service", "gigaoffice-worker@.service"):
        file = f"/etc/systemd/system/{name}"
        assert booted.sh(f"systemd-analyze verify --man=no {file}") == ""
        booted.sh(f"systemd-analyze security --offline=true --threshold=12 {file}")  # 12 tenths: exposure of 1.2


def test_an_update_keeps_what_was_configured(booted):
    booted.sh(f"echo KAFKA_CLIENT_ID=mine >> {ETC}/worker.env")
    booted.update_worker()
    assert "KAFKA_CLIENT_ID=mine" in booted.sh(f"cat {ETC}/worker.env")


def test_manual_page_and_completions_are_installed(booted):
    for path in manual.files():
        assert booted.sh(f"cat /usr/local/share/{path}") == manual.files()[path]


def test_operator_pauses_a_unit_over_its_control_socket(booted, unit):
    name = unit("paused")
    booted.sh(f"systemctl start {name}")
    ctl = f"RUNTIME_DIRECTORY=/run/{name.removesuffix('.service')} {WORKER} ctl"
    assert booted.sh(f"{ctl} pause").startswith("paused: ")
    health = f"METRICS_PORT=0 {ctl.removesuffix(' ctl')} health"
    assert "paused: an operator stopped intake" in booted.sh(health, check=False)
    assert booted.sh(f"{ctl} resume").strip() == "running"
    refused = booted.sh(f"setpriv --reuid=65534 --clear-groups env {ctl} pause 2>&1", check=False)
    assert "this user may not speak to the worker" in refused


def test_unit_is_ready_only_when_topics_are_verified_and_the_group_is_joined(booted, kafka, topics, unit):
    name = unit("ready", KAFKA_TOPIC_AUTO_CREATE="false")
    booted.sh(f"systemctl start --no-block {name}")
    waiting = f"waiting for topics: {topics.requests}, {topics.responses}, {topics.dlq}"
    wait_for(booted, name, ActiveState="activating", StatusText=waiting)
    wire.create_topics(kafka.bootstrap_servers, {topics.requests: 3, topics.responses: 3, topics.dlq: 1})
    wait_for(booted, name, **ACTIVE)
    assert "Worker running" in {json.loads(line)["event"] for line in booted.said(name) if line.startswith("{")}
    wait_for(booted, name, StatusText="running: 3 partitions, 0 requests in flight, 0 waiting")
    assert (
        booted.sh(f"RUNTIME_DIRECTORY=/run/gigaoffice-worker@ready METRICS_PORT=0 {WORKER} health").strip() == "ready"
    )


def test_stop_waits_for_the_call_that_runs(booted, kafka, topics, unit):
    # By its static limit the stop would be cut short after 3 s: the worker asks for more while it drains.
    name = unit("", "TimeoutStopSec=3s")
    booted.sh(f"systemctl start {name}")
    send(kafka, topics, {"seconds": 10, "query": "slow"})
    eventually(lambda: ask(booted, name, "/status")["requests"]["running"] == 1, "the call to run")
    booted.sh(f"systemctl stop --no-block {name}")
    wait_for(booted, name, StatusText="draining: 3 partitions, 1 requests in flight, 0 waiting")
    wait_for(booted, name, ActiveState="inactive", Result="success", ExecMainStatus="0")
    assert [response["result"] for response in responses(kafka, topics)] == [{"answer": "slow"}]
    assert wire.lag(kafka.bootstrap_servers, topics.group, topics.requests) == 0


def test_stuck_worker_is_aborted_with_its_stacks_in_the_journal_and_restarted(booted, kafka, topics, unit):
    name = unit("stuck", "WatchdogSec=4s")
    booted.sh(f"touch {MISCHIEF}; systemctl start {name}")
    send(kafka, topics, {"do": "stall", "query": "regular expression"})
    wait_for(booted, name, Result="watchdog")
    booted.sh(f"rm {MISCHIEF}")
    wait_for(booted, name, **ACTIVE, NRestarts="1")
    said = booted.said(name)
    assert any(line.startswith("Fatal Python error: Aborted") for line in said)
    assert any("/shared/desk.py" in line and "in handle" in line for line in said)
    assert sum("most recent call first" in line for line in said) > 16  # each thread
    eventually(lambda: responses(kafka, topics), "the request to be answered after all")


def test_crashed_worker_is_restarted_and_loses_nothing(booted, kafka, topics, unit):
    name = unit("crash")
    booted.sh(f"touch {MISCHIEF}; systemctl start {name}")
    send(kafka, topics, {"do": "crash", "query": "survivor"})
    wait_for(booted, name, Result="signal")
    booted.sh(f"rm {MISCHIEF}")
    wait_for(booted, name, **ACTIVE, NRestarts="1")
    eventually(lambda: responses(kafka, topics), "the request to be answered after all")


def test_wrong_configuration_is_said_and_not_tried_again(booted, unit):
    name = unit("wrong", KAFKA_PRODUCER_ACKS="two", METRICS_PORT="high")
    booted.sh(f"systemctl start {name}", check=False)
    wait_for(booted, name, ActiveState="failed", ExecMainStatus="78", NRestarts="0")
    said = "\n".join(booted.said(name))
    assert "KAFKA_PRODUCER_ACKS" in said
    assert "METRICS_PORT" in said
    assert "Traceback" not in said


def test_missing_environment_file_is_said_and_not_tried_again(booted):
    name = "gigaoffice-worker@nowhere.service"
    assert "Assertion failed" in booted.sh(f"systemctl start {name}", check=False)
    assert booted.show(name, "ActiveState", "NRestarts") == {"ActiveState": "inactive", "NRestarts": "0"}


def test_cluster_that_cannot_be_reached_is_tried_again(booted, unit):
    nobody = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_TOPIC_CREATION_RETRIES": "0"}
    name = unit("lonely", KAFKA_TOPIC_CREATION_TIMEOUT="1", **nobody)
    booted.sh(f"systemctl start --no-block {name}")
    wait_for(booted, name, ExecMainStatus="69", SubState="auto-restart")
    wait_for(booted, name, NRestarts="1")


def test_two_instances_share_the_work(booted, unit):
    names = [unit("blue", METRICS_PORT="0"), unit("green", METRICS_PORT="0")]
    booted.sh(f"systemctl start {' '.join(names)}")

    def shares():
        return sorted(len(ask(booted, name, "/status")["partitions"]) for name in names)

    eventually(lambda: shares() == [1, 2], "three partitions to be shared by two instances", timeout=40, interval=0.5)
    users = {booted.show(name, "ExecMainPID")["ExecMainPID"] for name in names}
    assert len(users) == 2


def test_secret_reaches_the_worker_alone(booted, kafka, unit):
    credential = f"{ETC}/credentials/gigaoffice-worker@secret.kafka-password"
    drop_in = (
        f"LoadCredential=kafka-password:{ETC}/credentials/%N.kafka-password\n"
        "Environment=KAFKA_SASL_PASSWORD_FILE=%d/kafka-password"
    )
    sasl = {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "worker"}
    name = unit("secret", drop_in, KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap("SECRET"), **sasl)

    booted.sh(f"systemctl start {name}", check=False)
    wait_for(booted, name, ActiveState="failed", ExecMainStatus="243", NRestarts="0")

    booted.write(credential, PASSWORD)
    booted.sh(f"systemctl start {name}")
    wait_for(booted, name, **ACTIVE)
    pid = booted.show(name, "ExecMainPID")["ExecMainPID"]
    assert PASSWORD not in booted.sh(f"tr '\\0' '\\n' < /proc/{pid}/environ; systemctl show {name}")
    assert PASSWORD not in "\n".join(booted.said(name))


def test_local_conf_holds_nothing_but_valid_settings(booted):
    """What is commented out in the drop-in works as it stands when its marks are taken away."""
    name = "gigaoffice-worker.service"
    directory = f"/run/systemd/system/{name}.d"
    active = f"{directory}/all.conf"
    booted.sh(f"mkdir -p {directory}; sed 's/^#\\([A-Z][A-Za-z]*=\\)/\\1/' /shared/systemd/local.conf > {active}")
    try:
        assert booted.sh(f"grep -c = {active}").strip() == "7"
        assert booted.sh(f"systemctl daemon-reload; systemd-analyze verify --man=no {name}") == ""
    finally:
        booted.sh(f"rm {active}; systemctl daemon-reload")
