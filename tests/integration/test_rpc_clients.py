"""Clients that know a reply by a header, as their makers ship them, get their answers through a real worker."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scene import ask

CLIENTS = Path(__file__).parent / "rpc_clients"
COUNT = 50
MAVEN = 120  # seconds, for 45 MB at most
# The classpath is all that Maven is wanted for.
CLASSPATH = ["mvn", "-q", "-B", "-Dstyle.color=never", "-f", CLIENTS / "pom.xml", "dependency:build-classpath"]


def spring(directory: Path) -> list[str | Path]:
    """Return how Spring's client is started."""
    missing = [name for name in ("java", "javac", "mvn") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing (Debian: apt-get install default-jdk-headless maven)")
    found = directory / "classpath"
    command = [*CLASSPATH, f"-Dmdep.outputFile={found}"]
    try:
        # From what Maven has kept, else from Maven Central.
        for mode in (["-o"], []):
            done = subprocess.run([*command, *mode], capture_output=True, text=True, timeout=MAVEN, check=False)
            if done.returncode == 0:
                break
        else:
            pytest.skip(f"Maven cannot bring Spring: {done.stdout.strip().splitlines()[:1]}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"Maven did not bring Spring within {MAVEN} s")
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    return ["java", "-cp", found.read_text(), quiet, CLIENTS / "SpringRequester.java"]


def faststream(directory: Path) -> list[str | Path]:
    """Return how FastStream's client is started."""
    if importlib.util.find_spec("faststream") is None:
        pytest.skip("faststream is not installed (pip install 'faststream[kafka]')")
    return [sys.executable, CLIENTS / "faststream_requester.py"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("client", [spring, faststream])
def test_each_request_gets_its_own_reply_by_the_header_of_its_client(client, scene, tmp_path):
    program = client(tmp_path)
    names = scene.make(requests=3, responses=3).topics
    scene.ready(WORKER_HANDLER="echo")
    scene.send(ask("of-somebody-else"))
    scene.wait_responses(1)
    arguments = [scene.bootstrap, names.requests, names.responses, f"{names.group}-replies", str(COUNT)]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    replies = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(number) for number, _ in replies] == list(range(COUNT))
    assert all(json.loads(reply)["result"] == {"number": int(number)} for number, reply in replies)
    assert len(scene.responses()) == COUNT + 1
