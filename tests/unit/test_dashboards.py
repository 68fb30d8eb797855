"""The dashboard and the alert rules against the metrics that the worker has."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from gigaoffice_worker.core.records import Reason
from gigaoffice_worker.observe.metrics import Metrics
from tests.support.making import snapshot

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# What Prometheus itself adds to a scrape, and what stands for itself in Grafana.
FOREIGN = {"up"}
GRAFANA = {"$__rate_interval": "1m", "$__interval": "1m", "$job": "job", "$instance": "instance"}
RECORDED = re.compile(r"^[a-z]+:[a-z0-9_]+:[a-z0-9_]+$")


def dashboard():
    return json.loads((DEPLOY / "grafana/gigaoffice-worker.json").read_text())


def rules():
    document = yaml.safe_load((DEPLOY / "prometheus/gigaoffice-worker.rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard_expressions() -> Iterator[str]:
    for holder in _dicts(dashboard()):
        if "expr" in holder:
            expression = holder["expr"]
            for variable, value in GRAFANA.items():
                expression = expression.replace(variable, value)
            yield expression


def _dicts(found) -> Iterator[dict]:
    if isinstance(found, dict):
        yield found
        found = list(found.values())
    for each in found if isinstance(found, list) else []:
        yield from _dicts(each)


def selectors(node) -> Iterator[promql_parser.VectorSelector]:
    """Yield everything that an expression selects."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs)
        yield from selectors(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    elif hasattr(node, "expr"):
        yield from selectors(node.expr)


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """The names of all samples that the worker can expose."""
    metrics = Metrics("1")
    metrics.observe(snapshot)
    names = set()
    for family in metrics.registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
        names |= {family.name + ending for ending in endings.get(family.type, [""])}
    return names


EXPRESSIONS = [*dashboard_expressions(), *(rule["expr"] for rule in rules())]


def test_there_are_expressions_to_look_at() -> None:
    assert len(EXPRESSIONS) > 60


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_can_be_parsed_and_selects_what_the_worker_exposes(expression: str, exposed: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    selected = {selector.name for selector in selectors(promql_parser.parse(expression))}
    assert selected
    assert selected <= exposed | recorded | FOREIGN


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_label_values_are_those_that_the_worker_gives(expression: str) -> None:
    reasons = {*(reason.value for reason in Reason), "publish"}
    for selector in selectors(promql_parser.parse(expression)):
        if selector.name.endswith("messages_failed_total"):
            asked = {m.name: set(m.value.split("|")) for m in selector.matchers.matchers}
            assert asked.get("reason", set()) <= reasons


def test_dashboard_file_is_what_its_program_writes() -> None:
    program = runpy.run_path(str(DEPLOY / "grafana/generate.py"))
    assert (DEPLOY / "grafana/gigaoffice-worker.json").read_text() == program["text"]()


def test_panels_stand_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_graph_says_what_it_shows_in_which_unit() -> None:
    graphs = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in graphs)


def test_every_alert_has_a_severity_and_says_what_is_wrong() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        else:
            assert RECORDED.match(rule["record"])


def test_runbook_has_one_section_for_each_alert_and_each_alert_leads_there() -> None:
    runbook = (DEPLOY.parent / "docs/runbook.md").read_text()
    sections = re.findall(r"^### (\w+)\n\n\*\*(\w+)\.\*\* \w", runbook, re.MULTILINE)
    alerts = [rule for rule in rules() if "alert" in rule]
    assert sorted(sections) == sorted((rule["alert"], rule["labels"]["severity"].capitalize()) for rule in alerts)
    for rule in alerts:
        assert rule["annotations"]["runbook_url"] == f"runbook.md#{rule['alert'].lower()}"


def test_not_ready_reasons_in_the_rules_are_codes_of_the_worker() -> None:
    code = (DEPLOY.parent / "gigaoffice_worker/engine/status.py").read_text()
    known = set(re.findall(r'Trouble\(\s*"([a-z-]+)"', code))
    for rule in rules():
        for selector in selectors(promql_parser.parse(rule["expr"])):
            if selector.name.endswith("_not_ready"):
                asked = [value for m in selector.matchers.matchers for value in m.value.split("|")]
                assert set(asked) <= known
