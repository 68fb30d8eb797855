"""The table of variables against the code, and the example files against the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from gigaoffice_worker.config import load, read_env_file
from tests.support.configuration import documents, with_table

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.env"))


def test_the_documents_list_every_variable_as_the_code_declares_it() -> None:
    (document,) = documents()
    text = document.read_text()
    assert text == with_table(text), "`make variables` writes the table anew"


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
