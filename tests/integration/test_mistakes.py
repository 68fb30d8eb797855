"""A handler with each mistake that people make: what its author sees says what was wrong, and where.

`make docs-mistakes` fills the table of docs/handlers.md with what this test has seen.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any, NamedTuple

import pytest

from tests.support import tables
from tests.support.forked import PATHS, ROOT
from tests.support.scene import Scene, ask
from tests.support.wire import Rec

TABLE = "mistakes"


class AtStart(NamedTuple):
    """A handler with which the worker ends at once, exit 78, with this in its last line."""

    code: str
    told: str


class AtWork(NamedTuple):
    """A handler that is called: what of the log tells of it, and the reason of the dead letter, if there is one."""

    code: str
    event: str
    facts: dict[str, Any]
    reason: str | None
    works: bool = True  # whether the next request is answered


START = {
    "imports what is not there": AtStart(
        "import pandsa\ndef handle(request): ...",
        "ModuleNotFoundError: No module named 'pandsa', in {file} line 1: import pandsa",
    ),
    "is no Python": AtStart(
        "def handle(request):\n    return {\n",
        "SyntaxError: '{{' was never closed, in {file} line 2: return {{",
    ),
    "fails while it is constructed": AtStart(
        "class handle:\n    def __init__(self):\n        self.port = int('none')\n    def __call__(self, request): ...",
        "ValueError: invalid literal for int() with base 10: 'none', in {file} line 3: self.port = int('none')",
    ),
    "takes two arguments": AtStart(
        "def handle(request, config): ...",
        "handle takes (request, config), and is called with one argument, the request",
    ),
    "takes none": AtStart(
        "def handle(): return {}",
        "handle takes no argument, was called as a factory, and gave a dict, which cannot be called",
    ),
    "is asynchronous": AtStart(
        "async def handle(request): ...",
        "handle is asynchronous, and handlers run in threads: write it with def instead of async def",
    ),
    "is a generator": AtStart(
        "def handle(request):\n    yield 1",
        "handle is a generator function: return the whole answer instead of yielding it in parts",
    ),
    "has another name": AtStart("def handel(request): ...", "answers has no 'handle'"),
}
DEAD = "Request goes to the dead letter queue"
WORK = {
    "raises": AtWork(
        "def handle(request):\n    if request.id == 'bad':\n        return request.payload['rows']\n    return 1",
        DEAD,
        {"error_type": "KeyError", "at": "answers.py:3 handle", "reason": "attempts-exhausted"},
        "attempts-exhausted",
    ),
    "returns what is no JSON": AtWork(
        "def handle(request):\n    return {'rows': [object()]} if request.id == 'bad' else 1",
        DEAD,
        {"error_type": "UnusableResult", "type": "object", "in_result": "result['rows'][0]"},
        "unusable-result",
    ),
    "prints": AtWork(
        "def handle(request):\n    print('Printed by the handler')\n    return 1",
        "Printed by the handler",
        {"logger": "stdout", "level": "info"},
        None,
    ),
    "hangs": AtWork(
        "import time\ndef handle(request):\n    if request.id == 'bad':\n        time.sleep(30)\n    return 1",
        "Handler call hangs: given up, its thread replaced",
        {"at": "answers.py:4 handle"},
        "timed-out",
    ),
    "closes standard output": AtWork(
        "import sys\ndef handle(request):\n    sys.stdout.close()\n    print('Still heard')\n    return 1",
        "Still heard",
        {"logger": "stdout"},
        None,
    ),
    "exits": AtWork(
        "import sys\ndef handle(request):\n    if request.id == 'bad':\n        sys.exit(3)\n    return 1",
        DEAD,
        {"error_type": "SystemExit", "at": "answers.py:4 handle", "reason": "attempts-exhausted"},
        "attempts-exhausted",
    ),
}


@pytest.fixture
def scene(kafka_bootstrap, topic_set, tmp_path):
    with Scene(kafka_bootstrap, topic_set, tmp_path) as scene:
        yield scene


def found(scene: Scene, code: str) -> dict[str, str]:
    (scene.directory / "answers.py").write_text(textwrap.dedent(code))
    return {"WORKER_HANDLER": "answers:handle", "PYTHONPATH": f"{PATHS}:{scene.directory}"}


@pytest.mark.parametrize("mistake", START)
def test_a_mistake_that_is_seen_at_start_ends_the_worker_with_the_reason_and_the_line(scene, mistake):
    case = START[mistake]
    worker = scene.worker(**found(scene, case.code)).start()
    assert worker.process.wait(30) == 78
    told = case.told.format(file=scene.directory / "answers.py")
    last = worker.logs()[-1]
    assert (last["event"], last["exit_code"]) == ("Worker stopped", 78)
    assert told in last["error"]
    assert last["hint"]
    assert f"error: {last['error']}\nhint: {last['hint']}\n" == worker.errors()
    shown = last["error"].removeprefix("WORKER_HANDLER answers:handle: ").replace(f"{scene.directory}/", "")
    tables.write(TABLE, **{"a handler that": mistake, "what you see": f"exit 78: `{shown}`"})


@pytest.mark.parametrize("mistake", WORK)
def test_a_mistake_at_work_is_told_with_its_place_and_the_others_are_answered(scene, mistake):
    case = WORK[mistake]
    scene.make()
    worker = scene.ready(
        WORKER_MAX_ATTEMPTS="2",
        WORKER_RETRY_DELAY="0.01",
        WORKER_ATTEMPT_TIMEOUT="1" if mistake == "hangs" else "30",
        LOG_LEVEL="DEBUG",
        **found(scene, case.code),
    )
    scene.send(ask("bad", "bad"), ask("good", "good"))
    responses = {answer.id: answer for answer in scene.wait_responses(2, timeout=30)}
    assert responses["good"].status == "completed"
    assert responses["bad"].status == ("failed" if case.reason else "completed")
    letters: list[Rec] = scene.dead_letters()
    assert [dict(letter.headers)["dlq-reason"].decode() for letter in letters] == ([case.reason] if case.reason else [])
    assert worker.stop(20) == 0  # then all of the log is written
    lines = [line for line in worker.logs() if line["event"] == case.event and line.get("request_id") == "bad"]
    assert lines, [line["event"] for line in worker.logs()]
    assert lines[0].items() >= case.facts.items()
    facts = ", ".join(f"`{name}` {value}" for name, value in case.facts.items())
    ends = f"; dead letter `{case.reason}`" if case.reason else "; answered"
    tables.write(TABLE, **{"a handler that": mistake, "what you see": f"“{case.event}”, {facts}{ends}"})


def test_each_mistake_stands_in_the_documents():
    document = (ROOT / "docs" / "handlers.md").read_text()
    assert tables.first_cells(document, TABLE) == [*START, *WORK]
    assert re.search(r"^## Mistakes", document, re.MULTILINE)
