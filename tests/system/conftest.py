"""Tests that need root and a machine's own tools. They are collected only where they are named:
make test-systemd, test-image, test-prometheus, test-page. What is missing is said as the reason of a skip."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.system import machine, stage

ROOM = Path(__file__).parent
# Seconds. The first test on a machine also waits for a Debian, the wheels and Kafka to be fetched.
TIMEOUT = 1800


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked_for = any(Path(argument.partition("::")[0]).resolve().is_relative_to(ROOM) for argument in config.args)
    return None if asked_for else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOM) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT))


def need(*tools: str, root: bool = True, because: str) -> None:
    """Skip where a tool is missing, naming it and the Debian packages that bring it."""
    if root and os.geteuid() != 0:
        pytest.skip("cannot run: needs root")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if missing:
        pytest.skip(f"cannot run: {', '.join(missing)} missing; on Debian: apt-get install {because}")


@pytest.fixture(scope="session")
def debian() -> Path:
    """The root directory of a Debian 12, made once on this machine."""
    need("debootstrap", because="debootstrap")
    return stage.debian()


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the worker's wheel and all that it needs, for Debian 12's Python."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("cannot run: the wheels for Debian 12 are gathered by a Python 3.11, and this is another")
    return stage.wheelhouse(tmp_path_factory.mktemp("wheelhouse"))


@pytest.fixture(scope="module")
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A Debian 12 that runs its own systemd, with the worker installed by systemd/install.sh."""
    need("debootstrap", "systemd-nspawn", "nsenter", because="debootstrap systemd-container util-linux")
    debian, wheels = request.getfixturevalue("debian"), request.getfixturevalue("wheelhouse")
    with machine.Machine(debian, tmp_path_factory.mktemp("machine"), wheels) as booted:
        booted.install_worker()
        yield booted
