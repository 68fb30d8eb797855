"""The sizes and words that keep the package readable: what grows over them is split, what is renamed stays renamed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

import gigaoffice_worker

PACKAGE = Path(gigaoffice_worker.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TEXTS = sorted(path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".html"})

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_METHODS = 20
ROOMS_OF_SMALL_CLASSES = ("core", "engine", "broker")
# Names of the first draft that only its authors understood. A dead letter is always called by its full name.
OLD_WORD = re.compile(r"parcel|postbox|shipment|outlet|monitor|(?P<dead>dead[\s#_-]*)?letter", re.IGNORECASE)

Node = TypeVar("Node", bound=ast.stmt)


def found(kind: type[Node], text: str) -> Iterator[Node]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, kind))


def long_functions(text: str) -> dict[str, int]:
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in found(ast.FunctionDef, text)}
    return {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION}


def large_classes(text: str) -> dict[str, int]:
    methods = {
        node.name: sum(isinstance(each, ast.FunctionDef) for each in node.body) for node in found(ast.ClassDef, text)
    }
    return {name: count for name, count in methods.items() if count > MOST_METHODS}


def old_words(text: str) -> list[str]:
    lines = text.splitlines()
    return [lines[text.count("\n", 0, match.start())].strip() for match in OLD_WORD.finditer(text) if not match["dead"]]


def offenders(paths: list[Path], look: object) -> dict[str, object]:
    assert callable(look)
    seen = {str(path.relative_to(PACKAGE)): look(path.read_text("utf-8")) for path in paths}
    return {name: what for name, what in seen.items() if what}


def test_no_module_is_longer_than_400_lines():
    assert offenders(MODULES, lambda text: max(0, len(text.splitlines()) - MOST_LINES)) == {}


def test_no_function_is_longer_than_a_screen():
    assert offenders(MODULES, long_functions) == {}


def test_no_class_of_the_inner_rooms_has_more_than_20_methods():
    inner = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in ROOMS_OF_SMALL_CLASSES]
    assert len(inner) > len(ROOMS_OF_SMALL_CLASSES)
    assert offenders(inner, large_classes) == {}


def test_old_words_are_gone():
    assert offenders(TEXTS, old_words) == {}


@pytest.mark.parametrize("text", ["the letter", "LetterBox", "a_letter", "Outlet", "dead, letter", "monitoring"])
def test_old_word_is_seen(text):
    assert old_words(f"fine\n{text}\n") == [text]


@pytest.mark.parametrize(
    "text", ["dead letter", "DeadLetters", "dead_letter", "dead-letter", "dead\n    # letter", "DLQ"]
)
def test_dead_letter_by_its_full_name_is_fine(text):
    assert old_words(text) == []


def test_what_is_too_large_is_seen():
    body = "\n".join(f"    def f{number}(self): ..." for number in range(21))
    assert large_classes(f"class Large:\n{body}\n") == {"Large": 21}
    assert long_functions("def long():\n" + "    pass\n" * 60) == {"long": 61}
