"""The examples for the API team, against a real worker, a real Kafka and a real PostgreSQL."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import wire
from tests.support.forked import ROOT
from tests.support.scene import Scene, ask
from tests.support.waiting import eventually

READER, WATCHER = "responses_to_postgresql.py", "dead_letter_watcher.py"
REASON = "PostgreSQL is not installed (Debian: apt-get install postgresql)"


def programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    named = shutil.which("initdb")
    return found[-1].parent if found else Path(named).resolve().parent if named else None


@pytest.fixture(scope="module")
def database():
    """The address of a PostgreSQL of these tests' own."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    binaries = programs()
    if binaries is None:
        pytest.skip(REASON)
    # It refuses to run as root.
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    home = Path(tempfile.mkdtemp(prefix="postgresql-"))
    shutil.chown(home, user.pw_uid, user.pw_gid)
    options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": home, **options}
    subprocess.run([binaries / "initdb", "-D", home / "data", "-A", "trust", "-U", "tests", "-N"], check=True, **quiet)
    settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}", "-F"]
    server = subprocess.Popen([binaries / "postgres", "-D", home / "data", *settings], **quiet)
    address = f"postgresql://tests@/postgres?host={home}"

    def answers() -> bool:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        eventually(answers, "PostgreSQL answers", timeout=30)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(home)


@pytest.fixture
def scene(kafka_bootstrap, topic_set, tmp_path):
    with Scene(kafka_bootstrap, topic_set, tmp_path) as scene:
        yield scene.make(requests=2, responses=2)


def example(scene: Scene, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **scene.environment, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def said_by(scene: Scene, name: str, enough: Callable[[str], bool], **environment: str) -> str:
    """Run a script until it has said enough: with --once it also ends where the cluster is silent for three seconds."""
    said = ""

    def run() -> bool:
        nonlocal said
        done = example(scene, name, "--once", **environment)
        assert done.returncode == 0, done.stderr
        said += done.stdout
        return enough(said)

    eventually(run, f"{name} to read everything", timeout=60)
    return said


def read_and_finished(printed: str) -> tuple[int, int]:
    """Return what the reader has told of its batches, added up."""
    told = [tuple(map(int, re.findall(r"\d+", line))) for line in printed.splitlines()]
    return sum(read for read, _ in told), sum(finished for _, finished in told)


def test_producer_prints_each_response(scene):
    scene.ready(WORKER_HANDLER="tests.support.handlers:handle", PYTHONPATH=str(ROOT))
    done = example(scene, "producer.py", "first", "second")
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(":")[0] for line in done.stdout.splitlines()) == ["first", "second"]
    assert "'answer': 'first'" in done.stdout


def test_responses_reach_the_database_once_and_a_finished_row_is_never_overwritten(scene, database):
    import psycopg

    scene.ready(WORKER_HANDLER="tests.support.handlers:handle", PYTHONPATH=str(ROOT), WORKER_MAX_ATTEMPTS="1")
    found = {"DATABASE_URL": database, "RESPONSES_GROUP": f"{scene.topics.group}-reader"}
    done = example(scene, READER, "--once", **found)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DELETE FROM requests")
        connection.execute("INSERT INTO requests (id) VALUES ('good'), ('bad'), ('nul'), ('waiting')")
        scene.send(ask("good", query="q"), ask("bad", do="reject", message="no"), ask("nul", query="a\0b"))
        scene.send(ask("unknown"))
        scene.wait_responses(4)
        said = said_by(scene, READER, lambda said: read_and_finished(said)[0] >= 4, **found)
        assert read_and_finished(said) == (4, 3)

        def rows() -> dict[str, tuple[str, object, object]]:
            query = "SELECT id, status, result, error FROM requests WHERE finished_at IS NOT NULL OR status = 'pending'"
            return {row[0]: row[1:] for row in connection.execute(query)}

        first = rows()
        assert {name: row[0] for name, row in first.items()} == {
            "good": "completed",
            "bad": "failed",
            "nul": "completed",
            "waiting": "pending",
        }
        assert first["good"][1]["answer"] == "q"
        assert first["nul"][1]["answer"] == "ab"
        assert first["bad"][2] == {"type": "RejectedError", "message": "no"}

        # A late duplicate, and one who names a request of somebody else's that is finished.
        forged = {"request_id": "good", "status": "failed", "result": None, "error": {"type": "X", "message": "late"}}
        late = json.dumps({**forged, "processing_time": 1.0, "timestamp": "2026-01-01T00:00:00.000Z"}).encode()
        wire.produce(scene.bootstrap, scene.topics.responses, [(b"good", late, []), (None, b"no response", [])])
        said = said_by(scene, READER, lambda said: read_and_finished(said)[0] >= 2, **found)
        assert read_and_finished(said) == (2, 0)
        assert rows() == first


def test_watcher_prints_each_dead_letter_once_and_nothing_that_a_terminal_obeys(scene):
    scene.ready(WORKER_HANDLER="tests.support.handlers:handle", PYTHONPATH=str(ROOT), WORKER_MAX_ATTEMPTS="1")
    scene.send(ask("r-1", do="reject"), ask("r-2", do="fail", message="\x1b]0;taken over\x07"))
    scene.wait_responses(2)
    forged = [("dlq-reason", b"\x1b[2J\nforged"), ("dlq-error-type", b"\xff")]
    wire.produce(scene.bootstrap, scene.topics.dlq, [(None, b"", forged)])
    found = {"WATCHER_GROUP": f"{scene.topics.group}-watcher"}
    lines = said_by(scene, WATCHER, lambda said: len(said.splitlines()) >= 3, **found).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    (rejected,) = [line for line in lines if " rejected after 1 attempts: RejectedError at " in line]
    assert f"request {scene.topics.requests}-" in rejected
    assert example(scene, WATCHER, "--once", **found).stdout == ""
