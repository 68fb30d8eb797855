"""Commands whose standard streams are closed, or refuse what is read from them or written to them."""

from __future__ import annotations

import json
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


def command(
    line: str, output: str = "", errors: str = "", given: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run what a shell makes of `line`, with outputs that are collected, or lead to what refuses them."""
    names = (output, errors)
    descriptors = [refusing(name) if name else subprocess.PIPE for name in names]
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f"exec {sys.executable} -m gigaoffice_worker {line}"],
            env={**ENVIRONMENT, **environment},
            cwd=ROOT,
            input=given,
            stdout=descriptors[0],
            stderr=descriptors[1],
            timeout=60,
            check=False,
        )
    finally:
        for name, descriptor in zip(names, descriptors, strict=True):
            if name:
                os.close(descriptor)
    told = [(each or b"").decode() for each in (done.stdout, done.stderr)]
    assert "Traceback" not in "".join(told)
    return subprocess.CompletedProcess(line, done.returncode, *told)


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


# Reading


@pytest.mark.parametrize("line", ["try echo <&-", "try echo - <&-", "send <&-"])
def test_without_standard_input_there_is_no_request(line):
    assert_wrong_usage(command(line), "there is no request")


@pytest.mark.parametrize(
    "line,told",
    [
        ("try echo @/proc/self/mem", "/proc/self/mem cannot be read: Input/output error"),
        ("send @/proc/self/mem", "/proc/self/mem cannot be read: Input/output error"),
        ("try echo 0>/dev/null", "standard input cannot be read: Bad file descriptor"),
    ],
)
def test_what_cannot_be_read_is_wrong_usage(line, told):
    assert_wrong_usage(command(line), told)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_request_is_utf_8_in_every_locale(locale):
    done = command("try echo", given="größer".encode(), LC_ALL=locale)
    assert json.loads(done.stdout)["result"]["query"] == "größer"
    assert_wrong_usage(command("try echo", given=b"\xff", LC_ALL=locale), "the request is not UTF-8 text")


def assert_wrong_usage(done: subprocess.CompletedProcess[str], told: str) -> None:
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert told in done.stderr


# Writing


@pytest.mark.parametrize("line", ["check --offline", "schema request", "schema asyncapi", "try echo hello", "--help"])
def test_an_output_that_takes_nothing_is_told_in_one_message(line):
    done = command(line, output=FULL)
    assert (done.returncode, done.stderr) == (1, "error: reading or writing failed: No space left on device\n")


@pytest.mark.parametrize("line", ["check --offline", "schema asyncapi", "try echo hello", "--version"])
def test_an_output_that_nobody_reads_any_more_ends_a_command_quietly(line):
    done = command(line, output=WITHOUT_A_READER)
    assert (done.returncode, done.stderr) == (1, "")
