"""The release that `make package` leaves in dist/: what it holds, and that it runs where there is no repository."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gigaoffice_worker.cli import manual
from tests.system import stage

DIST = stage.ROOT / "dist"
# What is left says how this machine reaches the network: proxies, authorities.
OURS = ("GIGACHAT_", "HTTP_HANDLER_", "KAFKA_", "LOG_", "METRICS_", "PYTHON", "WORKER_")
SHIPPED = ("docs", "examples", "systemd", "deploy", "tests", "requirements", "benchmarks", "gigaoffice_worker")


def only(pattern: str) -> Path:
    found = list(DIST.glob(pattern))
    if not found:
        pytest.skip(f"cannot run: no {pattern} in dist/; `make package` makes it")
    assert len(found) == 1
    return found[0]


def in_repository(*names: str) -> set[str]:
    listed = stage.run("git", "-C", str(stage.ROOT), "ls-files", "--", *names)
    return set(listed.splitlines())


def test_source_distribution_holds_the_repository():
    with tarfile.open(only("*.tar.gz")) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert in_repository(*SHIPPED, "*.md", "Makefile", "Dockerfile", "compose.yaml") - held == set()
    assert {f"share/{path}" for path in manual.files()} <= held
    assert not [name for name in held if name.endswith(".pyc")]


def test_wheel_holds_the_package_and_nothing_else():
    with zipfile.ZipFile(only("*.whl")) as archive:
        held = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == in_repository("gigaoffice_worker")


def test_sums_and_bill_of_materials_are_of_this_release():
    for line in (DIST / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((DIST / name).read_bytes()).hexdigest() == digest
    bill = json.loads(only("*.cdx.json").read_text())
    assert {"kafka-python", "waitress", "gigachat"} <= {component["name"] for component in bill["components"]}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A virtual environment with the wheel and its extra for `dev`, and a directory that has nothing in it."""
    directory = tmp_path_factory.mktemp("installed")
    stage.run(sys.executable, "-m", "venv", str(directory / "venv"), limit=300)
    python = str(directory / "venv/bin/python")
    stage.run(python, "-m", "pip", "install", "--quiet", f"{only('*.whl')}[dev]", limit=600)
    (directory / "empty").mkdir()
    return directory


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program with nothing of ours in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return subprocess.run(
        [str(installed / "venv/bin/gigaoffice-worker"), *arguments],
        cwd=installed / "empty",
        env={**environment, "METRICS_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_installed_program_answers_sample_requests_of_a_kafka_of_its_own(installed):
    done = run(installed, "dev", "--port", str(stage.free_port()), "--send", "3", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"completed"') >= 3


def test_installed_program_has_every_command(installed):
    for name in manual.outline().commands:
        assert run(installed, *name.words[1:], "--help").returncode == 0
