"""Rules and metrics in the hands of a real Prometheus, which scrapes a working worker and sees it fail and recover."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import urllib.parse
import urllib.request

import pytest
import yaml

from gigaoffice_worker.devkafka import KafkaCluster
from tests.conftest import TopicSet, settings
from tests.support import wire
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess
from tests.system import stage
from tests.system.conftest import need

RULES = stage.ROOT / "deploy/prometheus"
# Everything in the rules that is a time is shorter by this factor, so that an hour of Prometheus passes in a minute.
HURRY = 60
TOPICS = TopicSet("requests", "responses", "dlq", "watched")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION = re.compile(r"(?<=for: )(\d+)([smhd])$|(?<=\[)(\d+)([smhd])(?=\])", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def tools():
    need("prometheus", "promtool", root=False, because="prometheus")


class Prometheus:
    """A server on the loopback interface that scrapes and evaluates every second."""

    def __init__(self, directory, target):
        self._url = f"http://127.0.0.1:{stage.free_port()}"
        rules = directory / "rules.yml"
        rules.write_text(DURATION.sub(_shorter, (RULES / "gigaoffice-worker.rules.yml").read_text()))
        config = (RULES / "prometheus.yml").read_text().replace("gigaoffice-worker.rules.yml", str(rules))
        config = config.replace("127.0.0.1:9464", target).replace("15s", "1s")
        (directory / "prometheus.yml").write_text(config)
        self._log = (directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                shutil.which("prometheus") or "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def close(self):
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()

    def query(self, expression):
        """Return the instant vector of an expression as [(labels, value)]."""
        answer = self._ask("query", query=expression)
        return [(each["metric"], float(each["value"][1])) for each in answer["result"]]

    def firing(self):
        """Return the names of the alerts that fire."""
        alerts = self._ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def wait_firing(self, name, timeout=60.0):
        eventually(lambda: name in self.firing(), f"{name} to fire", timeout=timeout, interval=0.5)

    def wait_quiet(self, timeout=90.0):
        eventually(lambda: not self.firing(), "all alerts to clear", timeout=timeout, interval=0.5)

    def healthy_rules(self):
        groups = self._ask("rules")["groups"]
        return [(rule["name"], rule["health"]) for group in groups for rule in group["rules"]]

    def _ask(self, what, **parameters):
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # our own
            return json.load(answer)["data"]


class Worker(WorkerProcess):
    """A worker whose port stays the same when it is started again."""

    def __init__(self, directory, environment):
        self._fixed = stage.free_port()
        super().__init__(directory, {**environment, "METRICS_PORT": str(self._fixed)})

    def port(self):
        return self._fixed


def _shorter(found):
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    # Ranges need a few scrapes in them.
    return f"{max(int(number) * SECONDS[unit] // HURRY, 1 if found[1] else 5)}s"


@pytest.fixture(scope="module")
def kafka():
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def worker(kafka, tmp_path_factory):
    environment = {
        **settings(kafka.bootstrap_servers, TOPICS),
        "WORKER_MAX_ATTEMPTS": "1",
        "WORKER_STORM_GUARD_MIN_REQUESTS": "150",
    }
    with Worker(tmp_path_factory.mktemp("worker"), environment) as worker:
        yield worker.wait_ready()


@pytest.fixture(scope="module")
def prometheus(worker, tmp_path_factory):
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{worker.port()}")
    try:
        eventually(lambda: _scrapes(prometheus), "Prometheus to scrape the worker", timeout=30, interval=0.5)
        yield prometheus
    finally:
        prometheus.close()


def _scrapes(prometheus):
    return _asked(prometheus, "up == 1")


def _asked(prometheus, query):
    try:
        return prometheus.query(query)
    except OSError:  # it has just been started
        return []


def send(kafka, count, **payload):
    value = json.dumps({"query": "x", **payload}).encode()
    wire.produce(kafka.bootstrap_servers, TOPICS.requests, [(None, value, [])] * count)


def test_rules_pass_their_own_tests():
    stage.run("promtool", "check", "config", str(RULES / "prometheus.yml"))
    assert "SUCCESS" in stage.run("promtool", "test", "rules", str(RULES / "gigaoffice-worker.test.yml"))


def test_every_alert_has_a_test():
    alerts = set(re.findall(r"- alert: (\w+)", (RULES / "gigaoffice-worker.rules.yml").read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", (RULES / "gigaoffice-worker.test.yml").read_text()))


def test_metrics_follow_the_conventions(worker, kafka):
    send(kafka, 5)
    eventually(lambda: worker.metric("requests_total", outcome="completed") >= 5, "requests to be counted")
    with subprocess.Popen(
        [shutil.which("promtool") or "promtool", "check", "metrics"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as linter:
        said, _ = linter.communicate(worker.ask("/metrics")[1], timeout=30)
    assert (linter.returncode, said) == (0, "")


def test_a_working_worker_is_seen_and_raises_no_alert(prometheus, worker, kafka):
    send(kafka, 20)
    seen = 'sum(gigaoffice_worker_requests_total{outcome="completed"})'
    eventually(lambda: prometheus.query(f"{seen} >= 20"), "Prometheus to see the requests", interval=0.5)
    assert prometheus.query("sum(gigaoffice_worker_assigned_partitions)") == [({}, 3.0)]
    assert {health for _, health in prometheus.healthy_rules()} == {"ok"}
    assert prometheus.firing() == set()


def panels():
    """Yield each panel of the dashboard with its expressions, as Grafana would ask them."""
    program = runpy.run_path(str(stage.ROOT / "deploy/grafana/generate.py"))
    given = {"$job": "gigaoffice-worker", "$instance": ".+", "$__rate_interval": "10s"}
    for panel in (panel for row in program["ROWS"].values() for panel in row):
        expressions = [query.expr for query in panel.queries]
        for variable, value in given.items():
            expressions = [expression.replace(variable, value) for expression in expressions]
        yield panel, expressions


def test_figures_of_the_dashboard_are_there_before_anything_goes_wrong(prometheus):
    figures = {panel.title: expressions[0] for panel, expressions in panels() if panel.kind == "stat"}
    assert [title for title, expression in figures.items() if not prometheus.query(expression)] == []
    assert prometheus.query(figures["Not ready"]) == [({}, 0.0)]


def test_failing_requests_raise_the_burn_rate_and_then_the_storm_guard(prometheus, worker, kafka, tmp_path):
    outage = tmp_path / "outage"
    outage.touch()
    failing = {"do": "while_file", "file": str(outage), "then": "fail"}
    for _ in range(6):
        send(kafka, 20, **failing)
        if "GigaOfficeWorkerDeadLettersFast" in prometheus.firing():
            break
        _pass_time(prometheus, 2)
    prometheus.wait_firing("GigaOfficeWorkerDeadLettersFast")
    send(kafka, 200, **failing)
    prometheus.wait_firing("GigaOfficeWorkerStormGuard")
    outage.unlink()
    prometheus.wait_quiet()


def test_every_panel_of_the_dashboard_has_something_to_show(prometheus):
    asked = [(panel.title, expression) for panel, expressions in panels() for expression in expressions]
    assert len(asked) > 40
    assert [each for each in asked if not prometheus.query(each[1])] == []


def _pass_time(prometheus, scrapes):
    """Wait for so many scrapes."""
    counted = "sum(count_over_time(up[1h]))"
    before = prometheus.query(counted)[0][1]
    eventually(lambda: prometheus.query(counted)[0][1] >= before + scrapes, "scrapes", timeout=30, interval=0.2)


def wanted_workers():
    """Return what the example for KEDA asks Prometheus."""
    (trigger,) = yaml.safe_load((stage.ROOT / "deploy/kubernetes/keda.yaml").read_text())["spec"]["triggers"]
    return trigger["metadata"]["query"]


def hold(kafka, count, file, topics):
    """Send requests whose calls last as long as `file` is there."""
    value = json.dumps({"query": "x", "do": "while_file", "file": str(file), "then": "hang"}).encode()
    wire.produce(kafka.bootstrap_servers, topics.requests, [(None, value, [])] * count)


def test_the_autoscaler_sees_how_many_workers_the_backlog_can_use(prometheus, worker, kafka, tmp_path):
    query = wanted_workers()
    eventually(lambda: prometheus.query(query) == [({}, 0.0)], "no worker to be wanted", timeout=30, interval=0.5)
    busy = tmp_path / "busy"
    busy.touch()
    hold(kafka, 20, busy, TOPICS)
    eventually(lambda: prometheus.query(query) == [({}, 2.0)], "20 calls to want two of 16", timeout=30, interval=0.5)
    hold(kafka, 200, busy, TOPICS)
    eventually(lambda: prometheus.query(query) == [({}, 3.0)], "one a partition to be wanted", timeout=30, interval=0.5)
    busy.unlink()
    eventually(lambda: prometheus.query(query) == [({}, 0.0)], "no worker to be wanted", timeout=30, interval=0.5)


def test_the_autoscaler_never_sees_more_than_the_groups_limit_can_use(kafka, tmp_path):
    limited = TopicSet("limited-requests", "limited-responses", "limited-dlq", "limited")
    limits = {"WORKER_GROUP_CONCURRENCY": "6", "WORKER_CONCURRENCY": "4"}
    busy = tmp_path / "busy"
    busy.touch()
    (tmp_path / "worker").mkdir()
    with Worker(tmp_path / "worker", {**settings(kafka.bootstrap_servers, limited), **limits}) as worker:
        worker.wait_ready()
        server = Prometheus(tmp_path, f"127.0.0.1:{worker.port()}")
        try:
            hold(kafka, 200, busy, limited)
            query = wanted_workers()
            eventually(lambda: _asked(server, query) == [({}, 2.0)], "two to be wanted", timeout=30, interval=0.5)
            _pass_time(server, 3)
            assert server.query(query) == [({}, 2.0)]
            busy.unlink()
            eventually(lambda: server.query(query) == [({}, 0.0)], "none to be wanted", timeout=60, interval=0.5)
        finally:
            server.close()


def test_a_cluster_that_is_away_makes_the_worker_not_ready_until_it_is_back(prometheus, worker, kafka):
    kafka.kill(1)
    prometheus.wait_firing("GigaOfficeWorkerNotReady", timeout=90)
    kafka.restart(1)
    prometheus.wait_quiet(timeout=120)


def test_a_worker_that_is_gone_is_down_until_it_is_back(prometheus, worker):
    worker.process.kill()
    worker.wait(10)
    prometheus.wait_firing("GigaOfficeWorkerDown")
    worker.start().wait_ready()
    prometheus.wait_quiet()
