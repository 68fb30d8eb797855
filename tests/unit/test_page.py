"""The status page: filled, harmless whatever the status says, and without outside resources."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from gigaoffice_worker.observe.page import page_policy, status_page


def document(**changed: object) -> dict[str, object]:
    return {
        "state": "running",
        "ready": True,
        "live": True,
        "not_ready": [],
        "not_live": [],
        "requests": {"queued": 3, "running": 1},
        "limits": {"in_words": "16 at once, no pace"},
        "gate": {"closed": False},
        "storm_guard": {"open": False, "error_type": None},
        "totals": {"outcomes": {}, "dead_letters": {}},
        "failures": [],
        "partitions": [{"partition": 0, "lag": 4, "position": 9, "committed": 5, "paused": None, "oldest": None}],
        "tenants": [{"tenant": "<b>acme", "waiting": 12, "parked": 7}],
        **changed,
    }


def embedded(page: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="first">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_page_carries_the_status_for_scripts_and_shows_it_without_them() -> None:
    page = status_page(document())
    assert embedded(page) == document()
    plain = page.split("<noscript><table>", 1)[1].split("</noscript>", 1)[0]
    assert "<tr><th>state<td>running, ready</tr>" in plain
    assert "<tr><th>queued<td>3</tr>" in plain
    assert "<tr><th>partition 0<td>lag 4, position 9, committed 5, paused None</tr>" in plain


def test_nothing_in_the_status_becomes_markup() -> None:
    evil = "</script><script>alert(1)</script><img src=x>"
    page = status_page(document(not_ready=[evil], state=evil))
    assert embedded(page)["not_ready"] == [evil]
    assert "<img" not in page
    assert page.count("<script") == status_page(document()).count("<script")


def test_status_that_reads_like_a_place_to_be_filled_stays_text() -> None:
    name = "__PLAIN__ and __STATUS__"
    page = status_page(document(state=name))
    assert embedded(page) == document(state=name)
    assert f"<td>{name}, ready" in page


def test_last_failure_guard_and_gate_are_told_without_scripts() -> None:
    failure = {"at": "12:00", "error_type": "ValueError", "request_id": "r-1", "place": "a.py:7 f", "count": 3}
    totals = {"outcomes": {"completed": 9, "dead_lettered": 2}, "dead_letters": {"rejected": 2}}
    guard = {"open": True, "error_type": "ModelDownError"}
    page = status_page(document(failures=[failure], totals=totals, storm_guard=guard, gate={"closed": True}))
    for row in (
        "<th>shared gate<td>closed",
        "<th>storm guard<td>ModelDownError",
        "<th>finished<td>9 completed, 2 dead_lettered",
        "<th>dead letters<td>2 rejected",
        "<th>failure 1<td>3 times ValueError at a.py:7 f, the newest 12:00: request r-1",
    ):
        assert row in page


def test_page_asks_nobody_but_the_worker() -> None:
    page = status_page(document())
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    rules = dict(rule.split(" ", 1) for rule in page_policy().split("; "))
    assert (rules["default-src"], rules["connect-src"], rules["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert "unsafe" not in page_policy()


def test_policy_allows_the_script_that_the_page_carries_and_no_other() -> None:
    script = re.search(r"<script>(.*?)</script>", status_page(document()), re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page_policy()
