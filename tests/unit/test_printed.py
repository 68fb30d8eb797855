"""What a handler prints comes out as log lines, and the JSON stream stays whole."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from typing import Any

import pytest
import structlog

from gigaoffice_worker.observe.logs import configure
from gigaoffice_worker.observe.printed import PrintedLines, prints_as_log_lines


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.stream = PrintedLines("stdout", lambda event, **facts: self.lines.append((event, facts)), 1)

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


def test_each_line_is_told_when_it_ends() -> None:
    told = Told()
    print("one", 1, file=told.stream)
    print("two", end=" ", file=told.stream, flush=True)
    assert told.lines == [("one 1", {"logger": "stdout"})]
    print("and a half\n\n  \nthree", file=told.stream)
    assert told.events == ["one 1", "two and a half", "three"]


def test_progress_that_rewrites_its_line_is_told_by_its_states() -> None:
    told = Told()
    told.stream.write("10 %\r20 %\r")
    assert told.events == ["10 %", "20 %"]


def test_what_was_begun_is_told_at_the_end() -> None:
    told = Told()
    told.stream.write("no line end")
    told.stream.end()
    told.stream.end()
    assert told.events == ["no line end"]


def test_a_long_line_is_told_whole_and_one_without_end_in_pieces() -> None:
    told = Told()
    print("x" * 300, file=told.stream)
    assert told.lines == [("x" * 300, {"logger": "stdout", "message": "x" * 300})]
    told.stream.write("y" * 10_000)
    assert told.events[1] == "y" * 10_000


def test_threads_do_not_mix_their_lines() -> None:
    told = Told()
    begun, go_on = threading.Event(), threading.Event()

    def other() -> None:
        told.stream.write("of the ")
        begun.set()
        go_on.wait(30)
        told.stream.write("other\n")

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(30)
    told.stream.write("mine\n")
    go_on.set()
    thread.join()
    assert told.events == ["mine", "of the other"]


def test_bytes_are_told_too_and_nobody_can_close_it() -> None:
    told = Told()
    told.stream.buffer.write("да \x00\n".encode() + b"\xff\n")
    told.stream.close()
    told.stream.buffer.close()
    print("still here", file=told.stream)
    assert told.events == ["да \x00", "\\xff", "still here"]
    assert not told.stream.isatty()
    assert told.stream.fileno() == 1


def test_prints_carry_the_request_that_is_being_handled() -> None:
    output = io.StringIO()
    sink = configure("INFO", "json", stream=output)
    try:
        with prints_as_log_lines(), structlog.contextvars.bound_contextvars(request_id="r-1"):
            print("working on it")
            try:
                int("bad")
            except ValueError:
                traceback.print_exc()
    finally:
        sink.close(5)
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert (lines[0]["event"], lines[0]["level"], lines[0]["logger"]) == ("working on it", "info", "stdout")
    assert (lines[-1]["event"], lines[-1]["level"], lines[-1]["logger"]) == (
        "ValueError: invalid literal for int() with base 10: 'bad'",
        "warning",
        "stderr",
    )
    assert {line["request_id"] for line in lines} == {"r-1"}


SCRIPT = """
import os, subprocess, sys
from gigaoffice_worker.observe.logs import configure
from gigaoffice_worker.observe.printed import prints_as_log_lines
sink = configure("INFO", "json")
with prints_as_log_lines():
    print("printed")
    os.write(1, b"written past Python\\n")
    subprocess.run(["echo", "of a child"])
    {deed}
    print("printed later")
sink.close()
print("after all")
print("told at the end", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "deed", ["pass", "sys.stdout.close(); sys.stderr.close()", "os.close(1)", "os.close(2)", "sys.__stdout__.close()"]
)
def test_nothing_that_a_handler_does_breaks_the_stream_of_json(deed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).format(deed=deed)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
    )
    lines = done.stdout.splitlines()
    if "__stdout__" not in deed:
        assert lines.pop() == "after all"
    assert [json.loads(line)["event"] for line in lines] == ["printed", "printed later"]
    assert done.stderr.startswith("written past Python\nof a child\n")
    assert deed.startswith("os.close") or "__stdout__" in deed or done.stderr.endswith("told at the end\n")
