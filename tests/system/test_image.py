"""The image: built from the Dockerfile on a Debian base, run without rights, and stopped."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from gigaoffice_worker import __version__
from gigaoffice_worker.devkafka.ports import LOOPBACK
from tests.conftest import settings
from tests.support import wire
from tests.support.waiting import eventually
from tests.system import stage
from tests.system.conftest import need
from tests.system.containers import Engine

IMAGE = "localhost/gigaoffice-worker:test"
DESK = f"{Path(__file__).parent}/desk.py:/handlers/desk.py:ro"
BUILD_TOOLS = ("cc", "gcc", "g++", "make", "ld", "as", "pip", "pip3", "git")


@pytest.fixture(scope="module")
def engine(request, tmp_path_factory):
    need("debootstrap", "buildah", "podman", "runc", because="debootstrap buildah podman runc")
    debian, wheelhouse = request.getfixturevalue("debian"), request.getfixturevalue("wheelhouse")
    directory = tmp_path_factory.mktemp("image")
    source = directory / "source"
    source.mkdir()
    stage.source(source, "Dockerfile", ".dockerignore")
    (source / "secret.env").touch()
    with Engine(directory / "engine") as engine:
        engine.import_root(debian, "localhost/debian:12")
        engine.build(source, IMAGE, wheelhouse, BASE="localhost/debian:12", REVISION="abc123")
        yield engine


@pytest.fixture
def worker(engine, kafka_bootstrap, topic_set):
    """Start the worker in a container; return the container's name and the port that it listens on."""

    def start(name, **environment):
        port = stage.free_port()
        variables = {**settings(kafka_bootstrap, topic_set), "METRICS_PORT": str(port), **environment}
        engine.run(name, IMAGE, mounts=(DESK,), **variables)
        return port

    return start


def ready(port):
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def status(port):
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/status", timeout=5) as answer:
        return json.load(answer)


def test_image_says_what_it_is_and_how_it_is_run(engine):
    image = engine.image(IMAGE)
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["gigaoffice-worker"]
    assert config["Cmd"] == ["run"]
    assert config["StopSignal"] in {"SIGTERM", "15"}
    assert image["Healthcheck"]["Test"] == ["CMD", "gigaoffice-worker", "health", "--live"]
    assert config["Labels"]["org.opencontainers.image.revision"] == "abc123"
    assert {"METRICS_HOST=0.0.0.0", "METRICS_PORT=9464"} <= set(config["Env"])


def test_image_holds_the_worker_and_not_what_built_it(engine):
    engine.run("look", IMAGE, "--version")
    assert eventually(lambda: engine.logs("look"), "the version") == [f"gigaoffice-worker {__version__}"]
    look = f"for each in {' '.join(BUILD_TOOLS)}; do command -v $each; done; ls -a /; find / -name secret.env"
    found = engine.run_once(IMAGE, f"({look}) 2>/dev/null; true")
    names = found.split()
    assert not [name for name in names if name.rpartition("/")[2] in BUILD_TOOLS]
    assert not {"source", "tools", "wheel", "wheelhouse"} & set(names)
    assert not [name for name in names if "secret" in name]
    assert engine.run_once(IMAGE, "find / -path '*cache/pip*' -prune -print 2>/dev/null; true") == ""


def test_container_answers_requests_is_healthy_and_stops_drained(engine, worker, kafka_bootstrap, topic_set):
    port = worker("drains", WORKER_HANDLER="desk:handle")
    eventually(lambda: ready(port), "the worker to be ready", timeout=40)
    assert engine.healthcheck("drains") == "healthy"
    slow = json.dumps({"id": "r-1", "seconds": 4, "query": "slow"}).encode()
    wire.produce(kafka_bootstrap, topic_set.requests, [(None, slow, [])])
    eventually(lambda: status(port)["requests"]["running"], "the call to run")
    assert engine.stop("drains", patience=40) == 0
    assert [json.loads(rec.value)["result"] for rec in wire.read_all(kafka_bootstrap, topic_set.responses)] == [
        {"answer": "slow"}
    ]
    assert wire.lag(kafka_bootstrap, topic_set.group, topic_set.requests) == 0
    events = [json.loads(line)["event"] for line in engine.logs("drains")]
    assert "Worker stopped" in events


def test_container_has_no_rights_and_nowhere_to_write(engine, worker):
    port = worker("bare")
    eventually(lambda: ready(port), "the worker to be ready", timeout=40)
    assert engine.exec("bare", "id", "-u").strip() == "10001"
    assert "CapEff:\t0000000000000000" in engine.exec("bare", "cat", "/proc/1/status")
    for place in ("/opt/gigaoffice-worker/x", "/handlers/x", "/x"):
        assert "touch: cannot touch" in engine.exec("bare", "touch", place, check=False)
    assert engine.stop("bare", patience=40) == 0


def test_container_with_a_wrong_configuration_ends_with_78(engine):
    engine.run("wrong", IMAGE, METRICS_PORT="high")
    code = eventually(lambda: engine.ended("wrong"), "the container to end")
    assert code == "78"
