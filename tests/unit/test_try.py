"""`try`: a handler on one request, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HANDLER = """
import logging
import sys
from gigaoffice_worker import RejectedError, TransientError


def handle(request):
    print("printed")
    print("to standard error", file=sys.stderr)
    logging.getLogger("shop").warning("logged %d", request.attempt)
    match request.payload.get("do"):
        case "fail":
            return compute(request.payload)
        case "later" if request.attempt < 3:
            raise TransientError("not yet")
        case "use":
            request.usage(input_tokens=7)
        case "reject":
            raise RejectedError("\\x1b]0;no\\x07")
        case "object":
            return {"rows": [object()]}
        case "unsuccessful":
            return {"success": False, "error": "no rows"}
    return {"answer": request.payload.get("query"), "attempt": request.attempt, "key": request.key.decode()}


def compute(payload):
    return payload["rows"]


def nested(request):
    found = []
    for _ in range(int(request.payload["query"])):
        found = [found]
    return found


def refused(request):
    raise TransientError("wait", shared=True)


class Stuck:
    def __call__(self, request):
        return request.payload

    def close(self):
        raise OSError("no socket")
"""


@pytest.fixture
def attempt(tmp_path: Path) -> Any:
    (tmp_path / "answers.py").write_text(HANDLER)
    (tmp_path / "request.json").write_text('{"id": "from-a-file", "query": "q"}')

    def attempt(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gigaoffice_worker", "try", *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return attempt


def test_the_response_is_all_that_standard_output_gets(attempt) -> None:
    done = attempt("answers:handle", '{"id": "r-1", "query": "1 + 1"}')
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["request_id"], found["status"]) == ("r-1", "completed")
    assert found["result"] == {"answer": "1 + 1", "attempt": 1, "key": "r-1"}
    assert found["headers"]["source-partition"] == "0"
    assert "printed\n" in done.stderr
    assert "logged 1" in done.stderr
    assert "attempt 1:" not in done.stderr


@pytest.mark.parametrize(
    "arguments, stdin",
    [(["@request.json"], ""), (["-"], '{"id": "from-a-file", "query": "q"}'), ([], '{"query": "q"}')],
)
def test_the_request_comes_from_a_file_or_from_standard_input(attempt, arguments, stdin) -> None:
    done = attempt("answers:handle", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["answer"] == "q"


def test_a_failure_shows_the_traceback_of_the_handlers_own_code(attempt, tmp_path) -> None:
    done = attempt("answers:handle", '{"do": "fail"}', "--attempts", "2")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["reason"], found["error_type"], found["attempts"]) == ("attempts-exhausted", "KeyError", 2)
    assert found["at"] == "answers.py:28 compute"
    assert found["response"]["status"] == "failed"
    told = done.stderr[done.stderr.index("attempt 1:") :]
    assert told.startswith(
        "attempt 1: KeyError: 'rows', at answers.py:28 compute\n"
        "Traceback (most recent call last):\n"
        f'  File "{tmp_path}/answers.py", line 13, in handle\n'
    )
    assert 'return payload["rows"]' in told
    assert told.endswith("attempt 2: failed in the same way\n")


def test_the_headers_are_those_that_the_configured_worker_would_write(attempt) -> None:
    settings = {"KAFKA_TOPIC_REQUESTS": "questions", "WORKER_DEDUPE_WINDOW": "60"}
    done = attempt("answers:handle", '{"id": "r-1", "do": "use"}', **settings)
    assert done.returncode == 0, done.stderr
    headers = json.loads(done.stdout)["headers"]
    assert (headers["usage"], headers["source-topic"]) == ('{"input_tokens":7}', "questions")
    assert len(headers["request-digest"]) == 32


@pytest.mark.parametrize(
    "deed, code, fields",
    [
        ("later", 0, {"status": "completed"}),
        ("reject", 1, {"reason": "rejected", "error_message": "\x1b]0;no\x07"}),
        ("object", 1, {"reason": "unusable-result"}),
        ("unsuccessful", 1, {"status": "failed", "result": {"success": False, "error": "no rows"}}),
    ],
)
def test_the_exit_code_says_whether_it_was_completed(attempt, deed, code, fields) -> None:
    done = attempt("answers:handle", json.dumps({"do": deed}), "--attempts", "3")
    assert done.returncode == code
    assert json.loads(done.stdout).items() >= fields.items()
    assert "\x1b" not in done.stdout + done.stderr


def test_a_deeply_nested_result_is_printed(attempt) -> None:
    done = attempt("answers:nested", "700")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[") == 701


@pytest.mark.parametrize("depth", ["988", "990", "994", "100000"])
def test_a_result_at_the_edge_of_what_json_takes_is_printed_or_told_to_be_beyond_it(attempt, depth) -> None:
    done = attempt("answers:nested", depth)
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("{") or done.stderr.startswith("error: the response is nested too deeply to be ")


def test_the_response_is_printed_although_the_handler_cannot_be_closed(attempt) -> None:
    done = attempt("answers:Stuck", "x")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "completed"
    assert "Handler could not be closed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_request_without_an_outcome_is_told_as_such(attempt) -> None:
    done = attempt("answers:refused", "x")
    assert done.returncode == 1
    assert "attempts-exhausted" in done.stdout or done.stderr.startswith("error: no outcome after 1000 calls")


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        (["answers:handel", "x"], 78, "answers has no 'handel'"),
        (["answers:handle", "{broken"], 2, "begins like a JSON object but is none"),
        (["answers:handle", "@nothing"], 2, "nothing cannot be read"),
        (["answers:handle", "--attempts", "0", "x"], 2, "'0' is not a whole number above 0"),
        (["answers:handle"], 2, "the request is empty"),
    ],
)
def test_what_is_wrong_with_the_question_is_said(attempt, arguments, code, told) -> None:
    done = attempt(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
