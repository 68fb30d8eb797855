"""Commands whose standard streams are closed, or refuse what is read from them or written to them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.forked import PATHS, ROOT

NOBODY = "127.0.0.1:1"  # nothing listens on the first port of all
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "PYTHONPATH": PATHS,
    "METRICS_PORT": "0",
    "KAFKA_BOOTSTRAP_SERVERS": NOBODY,
    "KAFKA_TOPIC_CREATION_TIMEOUT": "1",
    "KAFKA_TOPIC_CREATION_RETRIES": "0",
}
FULL = "/dev/full"
WITHOUT_A_READER = "a pipe without a reader"


def command(line: str, output: str = "", errors: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run what a shell makes of `line`, with outputs that are collected, or lead to what refuses them."""
    names = (output, errors)
    descriptors = [refusing(name) if name else subprocess.PIPE for name in names]
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f"exec {sys.executable} -m gigaoffice_worker {line}"],
            env={**ENVIRONMENT, **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=descriptors[0],
            stderr=descriptors[1],
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        for name, descriptor in zip(names, descriptors, strict=True):
            if name:
                os.close(descriptor)
    assert "Traceback" not in (done.stdout or "") + (done.stderr or "")
    return done


def refusing(name: str) -> int:
    if name == FULL:
        return os.open(FULL, os.O_WRONLY)
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("errors", [FULL, WITHOUT_A_READER])
@pytest.mark.parametrize(
    "line,code,environment",
    [
        ("run", 78, {"WORKER_CONCURRENCY": "0"}),
        ("run", 69, {}),
        ("topics", 69, {}),
        ("check --offline", 78, {"WORKER_CONCURRENCY": "0"}),
        ("nonsense", 2, {}),
    ],
)
def test_an_exit_code_does_not_depend_on_somebody_who_reads_the_errors(line, code, environment, errors):
    assert command(line, errors=errors, **environment).returncode == code


def test_run_whose_errors_nobody_reads_says_in_its_log_why_it_stopped():
    wrong = command("run", errors=FULL, WORKER_CONCURRENCY="0")
    unreachable = command("run", errors=FULL)
    for done, code in ((wrong, 78), (unreachable, 69)):
        assert '"event": "Worker stopped"' in done.stdout.splitlines()[-1]
        assert f'"exit_code": {code}' in done.stdout.splitlines()[-1]
