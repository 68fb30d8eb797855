"""The README against the code, and the example files against the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from gigaoffice_worker.config import load, markdown_table, read_env_file

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.env"))


def between(text: str, name: str) -> str:
    return text.split(f"<!-- {name}:begin -->\n", 1)[1].split(f"<!-- {name}:end -->", 1)[0]


def test_readme_lists_every_variable_as_the_code_knows_it() -> None:
    assert between((ROOT / "README.md").read_text(), "configuration") == markdown_table() + "\n"


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
