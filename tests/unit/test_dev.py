"""What `dev` shows of its worker's log, and which files it watches."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

from gigaoffice_worker.cli.dev import without_another_cluster
from gigaoffice_worker.cli.dev_output import Output
from gigaoffice_worker.cli.dev_reload import Watch
from gigaoffice_worker.config import VARIABLES


@pytest.fixture
def output():
    stream = io.BytesIO()
    output = Output(stream)
    yield output
    output.join(20)


def line(event: str, level: str = "info", **facts: object) -> str:
    return json.dumps({"timestamp": "2026-03-04T05:06:07.089Z", "level": level, "event": event, **facts})


def test_a_request_is_a_line_without_where_it_stands(output) -> None:
    facts = {"request_id": "r-1", "attempt": 1, "seconds": 0.02, "topic": "t", "partition": 2, "offset": 7}
    shown = output.shown(line("Request answered", "debug", **facts))
    assert shown == "05:06:07.089 info     Request answered  request_id=r-1 attempt=1 seconds=0.02\n"


@pytest.mark.parametrize(
    "event, level, facts",
    [
        ("Worker starting", "info", {}),
        ("Partitions assigned", "info", {"partitions": [0]}),
        ("Commit", "debug", {}),
        ("Kafka client message", "info", {"logger": "kafka.conn", "message": "x"}),
        ("shop", "debug", {"logger": "shop"}),
    ],
)
def test_what_a_developer_need_not_know_is_not_shown(output, event, level, facts) -> None:
    assert output.shown(line(event, level, **facts)) == ""


@pytest.mark.parametrize(
    "event, level, facts",
    [
        ("Worker running", "info", {}),
        ("Attempt failed, the request will be tried again", "warning", {"error_type": "KeyError"}),
        ("Kafka client message", "warning", {"logger": "kafka.conn", "message": "x"}),
        ("printed", "info", {"logger": "stdout"}),
        ("logged", "info", {"logger": "shop.prices"}),
    ],
)
def test_what_deserves_a_look_is_shown(output, event, level, facts) -> None:
    assert event in output.shown(line(event, level, **facts))


def test_a_traceback_stands_below_its_line(output) -> None:
    shown = output.shown(
        line("Request goes to the dead letter queue", "warning", traceback="Traceback:\n  KeyError: 1")
    )
    assert shown.splitlines()[1:] == ["    Traceback:", "      KeyError: 1"]


@pytest.mark.parametrize("text", ["no JSON at all\x1b[2J\n", "[1]\n", "5"])
def test_a_line_that_is_none_of_the_log_is_shown_as_it_is_but_harmless(output, text) -> None:
    shown = output.shown(text)
    assert shown == f"{text.strip()}\n".replace("\x1b", "\\u001b")


def test_what_is_read_is_printed(capsys) -> None:
    read, write = os.pipe()
    output = Output(os.fdopen(read, "rb"))
    os.write(write, (line("Worker running") + "\n").encode())
    os.close(write)
    output.join(20)
    assert capsys.readouterr().out == "05:06:07.089 info     Worker running\n"


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("answers.py", "shop/prices.py", ".venv/lib.py", "__pycache__/x.py", "notes.txt", "lib/more.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def changes(watch: Watch) -> list[str]:
        time.sleep(0.6)  # it looks twice a second
        return [path.relative_to(tmp_path).as_posix() for path in watch.changed()]

    return changes


def test_files_that_change_come_or_go_are_told_once(watch, tmp_path) -> None:
    found = Watch()
    (tmp_path / "answers.py").write_text("22")
    (tmp_path / "shop" / "new.py").write_text("1")
    (tmp_path / "shop" / "prices.py").unlink()
    assert watch(found) == ["answers.py", "shop/new.py", "shop/prices.py"]
    assert watch(found) == []


def test_other_files_are_no_matter(watch, tmp_path) -> None:
    found = Watch()
    for name in (".venv/lib.py", "__pycache__/x.py", "notes.txt"):
        (tmp_path / name).write_text("22")
    assert watch(found) == []
    assert found.changed() == []


def test_directories_of_the_path_are_watched_too(watch, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.chdir(tmp_path / "shop")
    found = Watch()
    (tmp_path / "lib" / "more.py").write_text("22")
    (tmp_path / "answers.py").write_text("22")
    assert watch(found) == ["lib/more.py"]


def test_all_that_says_how_another_cluster_is_reached_is_left_out() -> None:
    given = {name: "x" for each in VARIABLES for name in ([each.name, each.twin] if each.secret else [each.name])}
    left_out = given.keys() - without_another_cluster(given).keys()
    assert "KAFKA_SASL_OAUTH_CLIENT_SECRET_FILE" in left_out
    of_another = ("KAFKA_USE_SSL", "KAFKA_SSL_", "KAFKA_SASL_")
    assert left_out == {name for name in given if name.startswith(of_another) or name.endswith("_REPLICATION")}
