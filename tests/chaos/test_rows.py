"""The results of a run, as they go into docs/reliability.md."""

from __future__ import annotations

import pytest

from tests.chaos.rows import RESULTS, TABLE, Row, main, read, table, write
from tests.support.tables import put_between_markers

pytestmark = pytest.mark.quick

BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"
ROW = Row("broker killed", 2, 1234, 0, 5, 6, 1.26)


def test_table_has_a_line_for_each_fault_in_their_order():
    assert table([Row("other", 1, 2, 0, 0, 0), ROW]).splitlines()[2:] == [
        "| broker killed | 2 | 1,234 | 0 | 5 | 6 | 1.3 |",
        "| other | 1 | 2 | 0 | 0 | 0 | - |",
    ]


def test_rows_of_one_fault_are_added_up():
    rows = [ROW, Row("other", 1, 2, 0, 0, 0), Row("broker killed", 1, 1000, 1, 0, 1, 3.0)]
    assert table(rows).splitlines()[2:] == [
        "| broker killed | 3 | 2,234 | 1 | 5 | 7 | 3.0 |",
        "| other | 1 | 2 | 0 | 0 | 0 | - |",
    ]


def test_rows_are_kept_in_a_file_and_written_between_the_markers(tmp_path, monkeypatch):
    results, document = tmp_path / "results", tmp_path / "reliability.md"
    monkeypatch.setenv(RESULTS, str(results))
    write(ROW)
    assert read(results) == [ROW]
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main([str(results), str(document)])
    assert document.read_text().startswith(f"before\n{BEGIN}\n| fault | runs |")
    assert "| broker killed |" in document.read_text()
    assert "old" not in document.read_text()
    assert document.read_text().endswith(f"{END}\nafter\n")


def test_text_without_markers_is_refused():
    with pytest.raises(ValueError, match="chaos:begin"):
        put_between_markers("no markers", TABLE, "table")
