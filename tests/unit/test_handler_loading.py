"""Finding a handler by its name, and saying what is wrong with one that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.handlers import echo
from gigaoffice_worker.handlers.loading import load

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
    "source, cause",
    [
        ("import not_there_either", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_breaks_is_to_be_mended(write: Write, source: str, cause: str) -> None:
    write(source)
    error = refusal(f"{NAME}:handle")
    assert cause in str(error)
    assert error.hint == "mend the module"


def test_a_name_that_the_module_does_not_have_is_told(write: Write) -> None:
    write("def handle(request): return 1")
    error = refusal(f"{NAME}:handel")
    assert f"{NAME} has no 'handel'" in str(error)
    assert "spelling" in error.hint


@pytest.mark.parametrize(
    "source, kind",
    [
        ("handle = 5", "int"),
        ("def handle(): return {}", "dict"),
        ("class handle: pass", "handle"),
    ],
)
def test_what_cannot_be_called_is_no_handler(write: Write, source: str, kind: str) -> None:
    write(source)
    assert f"handle gave a {kind}, which cannot be called" in str(refusal(f"{NAME}:handle"))


@pytest.mark.parametrize(
    "source, cause",
    [
        ("class handle:\n    def __init__(self, url): pass", "TypeError"),
        ("def handle(*, request): return 1", "TypeError"),
        ("class handle:\n    def __init__(self): raise OSError('no socket')", "OSError: no socket"),
        ("import sys\ndef handle(): sys.exit(1)", "SystemExit: 1"),
    ],
)
def test_a_handler_that_cannot_be_constructed_says_why(write: Write, source: str, cause: str) -> None:
    write(source)
    error = refusal(f"{NAME}:handle")
    assert "could not be constructed" in str(error)
    assert cause in str(error)


def test_a_handler_that_is_configured_wrongly_speaks_for_itself(write: Write) -> None:
    write(
        "from gigaoffice_worker.core.errors import ConfigurationError\n"
        "def handle(): raise ConfigurationError('HANDLER_URL is not set', hint='set it')\n"
    )
    assert str(refusal(f"{NAME}:handle")) == "HANDLER_URL is not set"


def test_an_asynchronous_handler_is_refused_at_start(tmp_path, monkeypatch):
    (tmp_path / "asynchronous_one.py").write_text("async def handle(request):\n    return {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match="asynchronous"):
        load("asynchronous_one:handle")
