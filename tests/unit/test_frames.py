"""Where an exception comes from, in the handler's own code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gigaoffice_worker.core.frames import own_frame
from gigaoffice_worker.handlers.echo import handle as echo


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Write modules that can be imported in this test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def place_of(module: str, function: str = "handle") -> str:
    """Return where the frame lies that is told, as the worker calls the function: without frames of this test."""
    try:
        getattr(importlib.import_module(module), function)(1)
    except Exception as error:  # noqa: BLE001  # whatever the handler raises
        raised = error.__traceback__
        assert raised is not None
        return str(own_frame(raised.tb_next))
    raise AssertionError("nothing was raised")


def test_the_frame_is_that_of_the_handler(modules) -> None:
    modules({"answers.py": "def handle(request):\n    return request['a']\n"})
    assert place_of("answers") == "answers.py:2 handle"


def test_what_the_handler_calls_of_its_own_is_nearer_to_the_fault(modules) -> None:
    modules(
        {
            "answers.py": "import tables\nclass Sum:\n    def run(self, r): return tables.add(r)\nhandle = Sum().run\n",
            "tables.py": "def add(rows):\n    return rows + ''\n",
        }
    )
    assert place_of("answers") == "tables.py:2 add"


def test_a_method_is_named_with_its_class(modules) -> None:
    modules({"answers.py": "class Sum:\n    def run(self, r): return r.x\nhandle = Sum().run\n"})
    assert place_of("answers") == "answers.py:2 Sum.run"


def test_a_fault_in_a_library_is_told_by_the_line_that_called_it(modules) -> None:
    modules({"answers.py": "import json\ndef handle(request):\n    return json.loads('{')\n"})
    assert place_of("answers") == "answers.py:3 handle"


def test_a_library_in_an_environment_below_the_handler_is_a_library_all_the_same(
    modules, tmp_path, monkeypatch
) -> None:
    modules(
        {
            "answers.py": "import lent\ndef handle(request):\n    return lent.fail()\n",
            ".venv/lib/python3/site-packages/lent.py": "def fail(): 1 / 0\n",
        }
    )
    monkeypatch.syspath_prepend(str(tmp_path / ".venv/lib/python3/site-packages"))
    assert place_of("answers") == "answers.py:3 handle"


def test_a_package_is_told_by_the_path_below_its_import_root(modules) -> None:
    modules(
        {
            "shop/__init__.py": "",
            "shop/handlers/__init__.py": "from shop.handlers.sums import handle\n",
            "shop/handlers/sums.py": "from shop import prices\ndef handle(r): return prices.of(r)\n",
            "shop/prices.py": "def of(r): raise LookupError\n",
        }
    )
    assert place_of("shop.handlers") == "shop/prices.py:1 of"


def test_a_handler_that_is_installed_is_told_within_its_own_package(modules, tmp_path, monkeypatch) -> None:
    modules(
        {
            "site-packages/owned/__init__.py": "from owned.inner import fail\ndef handle(r): return fail()\n",
            "site-packages/owned/inner.py": "import lent\ndef fail(): return lent.fail()\n",
            "site-packages/lent.py": "def fail(): 1 / 0\n",
        }
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    assert place_of("owned") == "inner.py:2 fail"


def test_code_out_of_a_text_has_a_place_too(modules) -> None:
    modules({"answers.py": "exec('def handle(r): 1 / 0')\n"})
    assert place_of("answers") == "<string>:1 handle"


def test_a_built_in_handler_is_told_by_its_file() -> None:
    try:
        echo(None)  # type: ignore[arg-type]
    except AttributeError as error:
        raised = error.__traceback__
    assert raised is not None
    assert str(own_frame(raised.tb_next)).startswith("echo.py:")
    assert own_frame(None) is None
