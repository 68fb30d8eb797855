"""Foreign text on its way to a terminal: what it must not do there, and what must stay as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import WorkerError
from gigaoffice_worker.core.visible import visible, visible_json, visible_lines
from gigaoffice_worker.observe.server import Answer

ATTACKS = ["\x1b]0;title\x07", "\x9b31m", "\u202eesrever", "a\nhint: rm -rf /", "\r\x1b[Kready", "\u2028ready", "\x7f"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.text())
def test_nothing_that_is_shown_holds_a_control_character(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("attack", ATTACKS)
def test_each_known_attack_becomes_an_escape_on_one_line(attack: str) -> None:
    assert visible(attack).isprintable()
    assert "\\" in visible(attack)


@given(st.text())
def test_only_the_first_of_several_lines_begins_at_the_margin(text: str) -> None:
    first, *others = visible_lines(text).split("\n")
    assert first.isprintable()
    assert all(each.startswith("  ") and each.isprintable() for each in others)


@given(json_values, st.sampled_from([None, 2]))
def test_json_reads_back_the_same_without_a_control_character(value: object, indent: int | None) -> None:
    written = visible_json(value, indent=indent)
    assert json.loads(written) == value
    assert all(line.isprintable() for line in written.split("\n"))
    assert indent is not None or "\n" not in written


def test_half_a_surrogate_pair_does_not_make_json_that_strict_readers_refuse() -> None:
    assert visible_json({"a": "\ud800"}) == '{"a": "\\\\ud800"}'


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_error_of_a_command_cannot_forge_a_hint(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.report(WorkerError(f"no such topic {attack}", hint=f"look for {attack}"))
    terminal.warn(attack)
    told = capsys.readouterr().err
    assert all(line.isprintable() for line in told.split("\n"))
    margin = [line.partition(":")[0] for line in told.splitlines() if not line.startswith("  ")]
    assert margin == ["error", "hint", "warning"]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", ["text", "json"])
def test_no_answer_of_the_side_port_holds_a_control_character(attack: str, kind: str) -> None:
    answer = Answer(503, attack if kind == "text" else {"error": attack})
    _, _, body = answer.encoded()
    assert all(line.isprintable() for line in body.decode().split("\n"))
