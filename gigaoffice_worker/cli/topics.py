"""`gigaoffice-worker topics`: the topic workflow alone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.visible import visible

if TYPE_CHECKING:
    from gigaoffice_worker.broker.verification import TopicReport
    from gigaoffice_worker.config import TopicSpec

_DESCRIPTION = """\
Create the topics that are missing and verify all three, as `run` does at its start: for deployments in which
another user than the worker's may create topics. Topics that exist are never changed.
Exit code 0: all exist; 1: one is missing.
"""


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    parser = commands.add("topics", act, "create and verify the topics", _DESCRIPTION)
    parser.add_argument("--dry-run", action="store_true", help="have the cluster validate it, and change nothing")


def act(asked: argparse.Namespace) -> int:
    """Print a line for each topic; 1 if one is missing."""
    from gigaoffice_worker.broker.topics import ensure_topics
    from gigaoffice_worker.config import load

    config = load()
    created: list[str] = []
    with terminal.command_logs(config, least="WARNING"):
        report = ensure_topics(config, on_created=created.append, dry_run=asked.dry_run)
    if report is None:  # only when it is stopped, which nobody does
        return 1
    may_create = config.topics.auto_create
    for spec in config.topics:
        print(visible(_line(spec, report, created=spec.name in created, creatable=may_create and asked.dry_run)))
    if report.missing and not may_create:
        terminal.warn("KAFKA_TOPIC_AUTO_CREATE is false, so nothing is created")
    return 1 if report.missing else 0


def _line(spec: TopicSpec, report: TopicReport, *, created: bool, creatable: bool) -> str:
    if spec.name in report.missing:
        verdict = ", would be created" if creatable else ""
        return f"{spec.name}: missing{verdict} (partitions {spec.partitions}, replication {spec.replication})"
    differences = {each.what: each for each in report.mismatches if each.topic == spec.name}
    replication = differences["replication factor"].found if "replication factor" in differences else spec.replication
    facts = [f"partitions {report.partitions[spec.name]}", f"replication {replication}"]
    if limit := report.limits.get(spec.name):
        facts.append(f"max.message.bytes {limit}")
    facts += [f"configured is {what} {each.configured}" for what, each in differences.items()]
    if spec.name in report.without_leader:
        facts.append("a partition has no leader")
    return f"{spec.name}: {'created' if created else 'exists'} ({', '.join(facts)})"
