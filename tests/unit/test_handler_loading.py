"""Finding a handler by its name, and saying what is wrong with one that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.handlers import echo
from gigaoffice_worker.handlers.loading import load
from gigaoffice_worker.observe.metrics import Metrics

Write = Callable[[str], None]
NAME = "handler_of_this_test"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the module that a test loads its handler from, into the working directory of this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    yield (tmp_path / f"{NAME}.py").write_text
    sys.modules.pop(NAME, None)


def refusal(name: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(name)
    assert caught.value.exit_code == 78
    assert caught.value.hint
    return caught.value


def answer(name: str) -> Any:
    request: Any = "the request"
    return load(name).call(request)


def test_the_built_in_echo_gives_the_payload_back() -> None:
    handler = load("echo")
    assert (handler.name, handler.call) == ("echo", echo.handle)
    handler.close()


def test_a_function_is_the_handler(write: Write) -> None:
    write("def handle(request): return [request]")
    assert answer(f"{NAME}:handle") == ["the request"]


@pytest.mark.parametrize(
    "signature", ["request=None", "*requests", "request, /", "request, *, option=1", "request, **options"]
)
def test_whatever_takes_an_argument_is_no_factory(write: Write, signature: str) -> None:
    write(f"def handle({signature}): return 1")
    assert answer(f"{NAME}:handle") == 1


def test_a_handler_is_found_in_the_working_directory(write: Write, tmp_path: Path) -> None:
    write("def handle(request): return __file__")
    assert str(tmp_path) not in sys.path
    assert answer(f"{NAME}:handle") == str(tmp_path / f"{NAME}.py")


def test_the_working_directory_is_searched_last(write: Write, tmp_path: Path) -> None:
    write("def handle(request): return 1")
    load(f"{NAME}:handle")
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize("name", ["echo", "http", "gigachat"])
def test_the_working_directory_is_not_searched_for_what_comes_with_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setenv("GIGACHAT_MODE", "dryrun")
    monkeypatch.setenv("HTTP_HANDLER_URL", "http://127.0.0.1:1")
    load(name).close()
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("name", ["http", "nothing:handle"])
def test_a_file_in_the_working_directory_takes_the_place_of_no_package(tmp_path: Path, name: str) -> None:
    for package in ("httpx", "msgspec", "structlog", "prometheus_client"):
        (tmp_path / f"{package}.py").write_text("raise SystemExit('taken from the working directory')\n")
    done = subprocess.run(
        [sys.executable, "-m", "gigaoffice_worker", "check", "--offline"],
        cwd=tmp_path,
        env={**os.environ, "WORKER_HANDLER": name, "HTTP_HANDLER_URL": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "taken from the working directory" not in done.stdout + done.stderr
    told = "handler: http can be loaded" if name == "http" else "No module named 'nothing'"
    assert told in done.stdout


def test_a_handler_is_found_inside_of_a_class(write: Write) -> None:
    write("class Outer:\n    @staticmethod\n    def handle(request): return 'inner'")
    assert answer(f"{NAME}:Outer.handle") == "inner"


def test_a_class_is_constructed_once_and_closed_at_the_end(write: Write) -> None:
    write(
        "class Client:\n"
        "    made, closed = 0, 0\n"
        "    def __init__(self): type(self).made += 1\n"
        "    def __call__(self, request): return self\n"
        "    def close(self): type(self).closed += 1\n"
    )
    handler = load(f"{NAME}:Client")
    request: Any = None
    first, second = handler.call(request), handler.call(request)
    assert first is second
    assert (first.made, first.closed) == (1, 0)
    handler.close()
    assert first.closed == 1


def test_a_factory_is_called_and_what_it_makes_is_the_handler(write: Write) -> None:
    write("def make():\n    def handle(request): return 'made'\n    return handle\n")
    handler = load(f"{NAME}:make")
    assert handler.call(None) == "made"  # type: ignore[arg-type]
    handler.close()


def test_an_instance_is_the_handler_and_not_called_to_make_one(write: Write) -> None:
    write("class Client:\n    def __call__(self, *requests): return len(requests)\nclient = Client()\n")
    assert answer(f"{NAME}:client") == 1


@pytest.mark.parametrize("name", ["nothing", "", "json", "module:"])
def test_a_name_that_says_nothing_is_answered_with_the_names_there_are(name: str) -> None:
    error = refusal(name)
    assert f"there is no handler named {name!r}" in str(error)
    assert "echo" in error.hint
    assert "package.module:callable" in error.hint


def test_a_module_that_is_not_there_is_a_matter_of_the_path() -> None:
    error = refusal("not_there.at_all:handle")
    assert "module not_there.at_all cannot be imported: ModuleNotFoundError" in str(error)
    assert "PYTHONPATH" in error.hint


@pytest.mark.parametrize("name", [":handle", ".relative:handle", "a..b:handle"])
def test_a_module_name_that_cannot_be_one_is_refused(name: str) -> None:
    assert "cannot be imported" in str(refusal(name))


@pytest.mark.parametrize(
    "source, told",
    [
        (
            "import json\n\nimport not_there_either  # here",
            "No module named 'not_there_either', in {file} line 3: import not_there_either  # here",
        ),
        ("def f():\n    1 / 0\nf()", "ZeroDivisionError: division by zero, in {file} line 2: 1 / 0"),
        ("import json\njson.loads('{')", "(char 1), in {file} line 2: json.loads('{{')"),
        ("def (", "SyntaxError: invalid syntax, in {file} line 1: def ("),
        ("def f():\n  1\n   2", "IndentationError: unexpected indent, in {file} line 3: 2"),
        ("x = (1", "SyntaxError: '(' was never closed, in {file} line 1: x = (1"),
        ("raise SystemExit(3)", "SystemExit: 3, in {file} line 1: raise SystemExit(3)"),
        ("raise OSError", "OSError, in {file} line 1: raise OSError"),
    ],
)
def test_a_module_that_breaks_is_told_with_the_line_that_broke(write: Write, source: str, told: str) -> None:
    write(source)
    error = refusal(f"{NAME}:handle")
    assert str(error).endswith(told.format(file=f"{NAME}.py"))
    assert str(error).startswith(f"WORKER_HANDLER {NAME}:handle: module {NAME} cannot be imported: ")
    assert error.hint == "mend the module"


def test_a_name_that_the_module_does_not_have_is_told(write: Write) -> None:
    write("def handle(request): return 1")
    error = refusal(f"{NAME}:handel")
    assert f"{NAME} has no 'handel'" in str(error)
    assert "spelling" in error.hint


@pytest.mark.parametrize(
    "source, told",
    [
        ("handle = 5", "handle is a int, which cannot be called"),
        (
            "def handle(): return {}",
            "handle takes no argument, was called as a factory, and gave a dict, which cannot be called",
        ),
        ("class handle: pass", "gave a handle, which cannot be called"),
    ],
)
def test_what_cannot_be_called_is_no_handler(write: Write, source: str, told: str) -> None:
    write(source)
    assert told in str(refusal(f"{NAME}:handle"))


@pytest.mark.parametrize(
    "source, told",
    [
        ("def handle(request, config): return 1", "handle takes (request, config), and is called with one argument"),
        ("def handle(*, request): return 1", "handle takes (*, request), and is called with one argument"),
        ("def handle(request: dict, *, at: int): return 1", "handle takes (request, *, at), and is called with one"),
        ("class handle:\n    def __call__(self): return 1", "handle takes no argument, and is called with one"),
        ("class handle:\n    def __call__(self, a, b): return 1", "handle takes (a, b), and is called with one"),
        ("def make(a, b): return 1\ndef handle(): return make", "handle takes (a, b), and is called with one"),
        ("async def handle(request): return 1", "handle is asynchronous, and handlers run in threads"),
        ("async def handle(): return 1", "handle is asynchronous, and handlers run in threads"),
        ("async def handle(request): yield 1", "handle is asynchronous, and handlers run in threads"),
        ("class handle:\n    async def __call__(self, request): return 1", "handle is asynchronous"),
        (
            "import functools\nasync def run(request, a): return 1\nhandle = functools.partial(run, a=1)",
            "handle is asynchronous",
        ),
        ("def handle(request): yield 1", "handle is a generator function: return the whole answer"),
        ("class handle:\n    def __call__(self, request): yield 1", "handle is a generator function"),
    ],
)
def test_a_signature_that_no_request_fits_is_refused_with_the_reason(write: Write, source: str, told: str) -> None:
    write(source)
    error = refusal(f"{NAME}:handle")
    assert f"WORKER_HANDLER {NAME}:handle: {told}" in str(error)
    assert "one argument" in error.hint


@pytest.mark.parametrize(
    "source, cause",
    [
        ("class handle:\n    def __init__(self, url): pass", "TypeError"),
        ("class handle:\n    def __init__(self): raise OSError('no socket')", "OSError: no socket"),
        ("import sys\ndef handle(): sys.exit(1)", "SystemExit: 1"),
    ],
)
def test_a_handler_that_cannot_be_constructed_says_why(write: Write, source: str, cause: str) -> None:
    write(source)
    error = refusal(f"{NAME}:handle")
    assert "could not be constructed" in str(error)
    assert cause in str(error)


def test_a_handler_that_cannot_be_constructed_says_in_which_line(write: Write) -> None:
    write("class Client:\n    def __init__(self):\n        self.port = int('none')\n    def __call__(self, r): ...")
    assert str(refusal(f"{NAME}:Client")).endswith(
        f"ValueError: invalid literal for int() with base 10: 'none', in {NAME}.py line 3: self.port = int('none')"
    )


def test_a_handler_that_is_configured_wrongly_speaks_for_itself(write: Write) -> None:
    write(
        "from gigaoffice_worker.core.errors import ConfigurationError\n"
        "def handle(): raise ConfigurationError('HANDLER_URL is not set', hint='set it')\n"
    )
    assert str(refusal(f"{NAME}:handle")) == "HANDLER_URL is not set"


@pytest.mark.parametrize(
    "close, told",
    [
        ("def close(self): raise OSError('no socket')", f"OSError: no socket, in {NAME}.py line 3: "),
        ("def close(self): raise SystemExit(1)", "SystemExit: 1"),
        ("def close(self): raise Unreadable", "Unreadable"),
        ("close = True", "TypeError: 'bool' object is not callable"),
        ("def close(self, wait): pass", "TypeError: "),
        ("@property\n    def close(self): raise LookupError", "LookupError"),
    ],
)
def test_a_handler_that_cannot_be_closed_is_warned_of_and_nothing_more(write: Write, close: str, told: str) -> None:
    write(
        f"class Client:\n    def __call__(self, request): return 1\n    {close}\n"
        "class Unreadable(Exception):\n    def __str__(self): raise ValueError\n"
    )
    handler = load(f"{NAME}:Client")
    with capture_logs() as lines:
        said = handler.close()
    assert said.startswith(told)
    assert lines == [{"event": "Handler could not be closed", "log_level": "warning", "error": said}]


def test_a_handler_whose_close_hangs_is_warned_of_and_left_behind(write: Write) -> None:
    write(
        "import threading\nlet_go = threading.Event()\n"
        "class Client:\n    def __call__(self, request): return 1\n    def close(self): let_go.wait(60)\n"
    )
    handler = load(f"{NAME}:Client")
    with capture_logs() as lines:
        said = handler.close(within=0.05)
    assert said == "it did not come back within 0.05 seconds"
    assert lines == [{"event": "Handler could not be closed", "log_level": "warning", "error": said}]
    sys.modules[NAME].let_go.set()


@pytest.mark.parametrize(
    "register, told",
    [
        (
            "def register_metrics(self, registry): Counter('gigaoffice_worker_tokens', 'Mine.', registry=registry)",
            "Duplicate",
        ),
        ("def register_metrics(self, registry): raise SystemExit(1)", "SystemExit: 1"),
        ("def register_metrics(self): pass", "TypeError: "),
        ("register_metrics = True", "TypeError: 'bool' object is not callable"),
        ("@property\n    def register_metrics(self): raise LookupError", "LookupError"),
    ],
)
def test_a_handler_that_cannot_register_its_metrics_is_a_wrong_configuration(
    write: Write, register: str, told: str
) -> None:
    write(
        "from prometheus_client import Counter\n"
        f"class Client:\n    def __call__(self, request): return 1\n    {register}\n"
    )
    handler = load(f"{NAME}:Client")
    with pytest.raises(ConfigurationError) as caught:
        handler.register_metrics(Metrics("0").registry)
    assert str(caught.value).startswith(f"WORKER_HANDLER {NAME}:Client: it could not register its metrics: {told}")
    assert "a name of its own" in caught.value.hint


def test_a_handler_says_itself_what_its_metrics_want(write: Write) -> None:
    write(
        "from gigaoffice_worker.core.errors import ConfigurationError\n"
        "class Client:\n    def __call__(self, request): return 1\n"
        "    def register_metrics(self, registry): raise ConfigurationError('METRICS_PREFIX is not set')\n"
    )
    with pytest.raises(ConfigurationError, match=r"\AMETRICS_PREFIX is not set\Z"):
        load(f"{NAME}:Client").register_metrics(Metrics("0").registry)
