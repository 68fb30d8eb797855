"""The documents against the code, and the example files against the configuration."""

from __future__ import annotations

import re
import runpy
import textwrap
from pathlib import Path

import pytest

from gigaoffice_worker import RejectedError
from gigaoffice_worker.config import load, read_env_file
from gigaoffice_worker.core.records import Request
from tests.support.configuration import documents, with_table

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gigaoffice_worker"
EXAMPLES = sorted((ROOT / "examples").glob("*.env"))


def test_the_documents_list_every_variable_as_the_code_declares_it() -> None:
    (document,) = documents()
    text = document.read_text()
    assert text == with_table(text), "`make variables` writes the table anew"


def test_files_that_the_documents_name_are_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]
    named = {name for text in texts for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text)}
    assert "core/scheduler.py" in named
    assert [each for each in sorted(named) if not any((at / each).exists() for at in (ROOT, PACKAGE))] == []


def test_the_front_door_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_handler_of_the_readme_does_what_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", readme, re.MULTILINE | re.DOTALL)
    made: dict[str, object] = {}
    exec(textwrap.dedent(blocks[0]), made)  # noqa: S102  # our own README
    handle = made["handle"]
    assert callable(handle)
    assert handle(Request({"query": "sum column b"})) == {"answer": "SUM COLUMN B", "attempt": 1}
    with pytest.raises(RejectedError):
        handle(Request({"input_range": "B2:B9"}))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_file_has_only_variables_that_are_known(path: Path, tmp_path: Path) -> None:
    values = read_env_file(str(path))
    certificate = tmp_path / "file.pem"
    certificate.write_text("")
    # The certificates of the example are on the operator's machine.
    usable = {name: str(certificate) if name.endswith("FILE") else value for name, value in values.items()}
    assert load(usable).warnings == ()


def test_there_are_example_files() -> None:
    assert [path.name for path in EXAMPLES] == ["development.env", "precreated-topics.env", "production.env"]


@pytest.mark.parametrize(
    "source,links",
    [
        (None, "the docs (docs/x.md#y), LICENSE, A plot"),
        (
            "https://host/it/",
            (
                "[the docs](https://host/it/blob/HEAD/docs/x.md#y), [LICENSE](https://host/it/blob/HEAD/LICENSE), "
                "![A plot](https://host/it/raw/HEAD/plot.png)"
            ),
        ),
    ],
    ids=["no address", "an address"],
)
def test_no_link_of_the_readme_is_dead_in_a_package_index(source: str | None, links: str) -> None:
    readme = "[the docs](docs/x.md#y), [LICENSE](LICENSE), ![A plot](plot.png), [here](#here)"
    assert runpy.run_path(str(ROOT / "setup.py"))["for_an_index"](readme, source) == f"{links}, [here](#here)"
