"""The tests with other brokers and other Pythons than the usual: `make compatibility`.

Each row of the table is one run of pytest: ON_A_KAFKA on every Kafka whose jars are pinned, with this Python;
WITH_A_PYTHON on the newest Kafka, with every other Python that is found. `--kafka` and `--python` make it smaller, what
stands behind `--` (files, options of pytest) is run instead. A row is written for a run that came to its end.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET  # what pytest wrote itself
from collections.abc import Sequence
from pathlib import Path

from gigaoffice_worker.devkafka.distribution import KAFKA_VERSION
from tests.support import releases, tables

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/compatibility"
TABLE = "compatibility"
INTERPRETERS = ("python3.11", "python3.12", "python3.13", "python3.14")
# A test that is `long` belongs to make test-security.
PYTEST = ("-q", "-n", "2", "--dist", "loadscope", "-m", "not long")
# What may differ between brokers: whatever is asked of them, at least once.
ON_A_KAFKA = (
    "acls",
    "client",
    "client_faults",
    "clients",
    "dlq",
    "quarantine",
    "tls_sasl",
    "topics",
    "worker_commit_map",
    "worker_crash",
    "worker_dedupe",
    "worker_delivery",
    "worker_group",
    "worker_journal",
    "worker_order",
    "worker_outages",
    "worker_outcomes",
    "worker_positions",
    "worker_start",
    "worker_stop",
    "worker_timeouts",
)
# What may differ between Pythons: TLS, threads, signals, sockets. All else is in tests/unit.
WITH_A_PYTHON = (
    "client",
    "clients",
    "handlers",
    "tls_sasl",
    "topics",
    "worker_crash",
    "worker_delivery",
    "worker_group",
    "worker_journal",
    "worker_outcomes",
    "worker_sideport",
    "worker_stop",
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.matrix", description=__doc__)
    parser.add_argument("--kafka", action="append", help="a version, or none; all", metavar="VERSION")
    parser.add_argument("--python", action="append", help="an interpreter; all that are found", metavar="PATH")
    parser.add_argument("tests", nargs="*", help="for pytest, after --")
    asked = parser.parse_args(arguments)
    brokers = asked.kafka if asked.kafka is not None else list(releases.releases())
    interpreters = asked.python if asked.python is not None else found_interpreters()
    BUILD.mkdir(parents=True, exist_ok=True)
    cells = [(sys.executable, version, files(ON_A_KAFKA)) for version in brokers if version]
    both = ["tests/unit", *files(WITH_A_PYTHON)]
    cells += [(environment(interpreter), KAFKA_VERSION, both) for interpreter in interpreters if interpreter]
    return max((run(python, kafka, asked.tests or usual) for python, kafka, usual in cells), default=0)


def files(names: Sequence[str]) -> list[str]:
    return [f"tests/integration/test_{name}.py" for name in names]


def found_interpreters() -> list[str]:
    """Return the interpreters on the PATH that start, without the one that runs this."""
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = [shutil.which(name) for name in INTERPRETERS if name != own]
    return [path for path in found if path and version_of(path)]


def version_of(python: str) -> str:
    """Return an interpreter's version, nothing where it does not start (a shim for one that is not there)."""
    program = "import platform, venv; print(platform.python_version())"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environment(interpreter: str) -> str:
    """Return the Python of an environment of that interpreter with this project in it, made where it is missing."""
    home = BUILD / f"python-{version_of(interpreter)}"
    python = home / "bin/python"
    if not (home / ".installed").exists():
        subprocess.run([interpreter, "-m", "venv", home], check=True)
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", ".[dev,http,test]")
        subprocess.run([python, *install], check=True, cwd=ROOT)
        (home / ".installed").touch()
    return str(python)


def run(python: str, kafka: str, tests: Sequence[str]) -> int:
    """Run tests with one Python on one Kafka, write their row, and return pytest's exit code."""
    version = version_of(python)
    zookeeper = " with ZooKeeper" if kafka in releases.WITH_ZOOKEEPER else ""
    name = f"Kafka {kafka}{zookeeper}, Python {version}"
    print(f"\n{name}", flush=True)
    found = BUILD / f"{version}-{kafka}.xml"
    began = time.monotonic()
    command = [python, "-m", "pytest", *PYTEST, f"--junitxml={found}", *tests]
    # Rows of other tables, which tests would write, are no part of this one.
    around = {name: value for name, value in os.environ.items() if name != tables.RESULTS}
    code = subprocess.run(command, cwd=ROOT, env={**around, releases.VERSION: kafka}, check=False).returncode
    minutes = (time.monotonic() - began) / 60
    if code not in {0, 1}:  # interrupted, wrong usage, nothing ran
        return code
    suite = ET.parse(found).getroot()[0]  # noqa: S314
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    skipped = int(suite.attrib["skipped"])
    usual = {
        tuple(files(ON_A_KAFKA)): "integration tests",
        ("tests/unit", *files(WITH_A_PYTHON)): "unit and integration tests",
    }
    which = usual.get(tuple(tests)) or ", ".join(Path(each).stem for each in tests if not each.startswith("-"))
    row = {
        "what": f"{name}: {which}",
        "passed": str(int(suite.attrib["tests"]) - failed - skipped),
        "failed": str(failed),
        "not run": str(skipped),
        "minutes": f"{minutes:.0f}",
    }
    tables.write(TABLE, **row)
    return code


if __name__ == "__main__":
    print(f"Python {platform.python_version()} here; others: {', '.join(found_interpreters()) or 'none'}", flush=True)
    sys.exit(main(sys.argv[1:]))
