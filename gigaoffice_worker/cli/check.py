"""`gigaoffice-worker check`: whether the configuration is right and the cluster lets a worker work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gigaoffice_worker._version import __version__
from gigaoffice_worker.cli import terminal
from gigaoffice_worker.core.errors import ConfigurationError
from gigaoffice_worker.core.visible import visible, visible_json, visible_lines

if TYPE_CHECKING:
    from gigaoffice_worker.config import Config, Setting
    from gigaoffice_worker.operations.cluster_check import Finding

_DESCRIPTION = """\
Validate the configuration and print every variable with the value that counts; secrets are masked, and what differs
from its default is marked with *. Then, unless --offline, try each step against the cluster, changing nothing there:
reach, TLS, authentication, brokers, topics and the group, with the permissions that a worker needs.
Exit code 0: all is well; 1: something is found wanting; 69, 77, 78: what `run` would end with.
"""
_MARKS = {"good": "✓", "weak": "!", "bad": "✗", "skipped": "-"}
_COLOURS = {"good": "32", "weak": "33", "bad": "31", "skipped": "2"}


def add(commands: terminal.Commands) -> None:
    """Declare the command."""
    parser = commands.add("check", act, "validate the configuration and try it against the cluster", _DESCRIPTION)
    parser.add_argument("--offline", action="store_true", help="leave the cluster alone")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def act(asked: argparse.Namespace) -> int:
    """Print what is configured and what was found; the exit code is the worst finding's."""
    from gigaoffice_worker.config import effective, load

    settings = effective()
    if not asked.json:
        _print_settings(settings)
    config = load()
    progress = terminal.Progress(patience=0.0)
    with terminal.command_logs(config):
        findings = []
        for finding in _findings(config, progress, offline=asked.offline):
            progress.clear()
            findings.append(finding)
            if not asked.json:
                _print_finding(finding)
    if asked.json:
        print(_document(settings, config, findings))
    return max((each.exit_code for each in findings), default=0)


def _findings(config: Config, progress: terminal.Progress, *, offline: bool) -> Iterator[Finding]:
    from gigaoffice_worker.operations import cluster_check

    yield cluster_check.Finding("configuration", cluster_check.Mark.GOOD, "valid")
    for warning in config.warnings:
        yield cluster_check.Finding("configuration", cluster_check.Mark.WEAK, warning)
    yield _times(config)
    if offline:  # the cluster would tell how many partitions there are
        yield cluster_check.limits(config, config.topics.requests.partitions)
    yield _tracing()
    yield _handler(config)
    if not offline:
        yield from cluster_check.steps(config, begin=lambda step: progress.show(f"{step} …"))


def _handler(config: Config) -> Finding:
    from gigaoffice_worker.handlers.loading import load
    from gigaoffice_worker.observe.metrics import Metrics
    from gigaoffice_worker.operations.cluster_check import Finding, Mark

    name = config.worker.handler
    trouble = ""
    try:
        handler = load(name)
        try:
            handler.register_metrics(Metrics(__version__).registry)
        finally:
            trouble = handler.close()
    except ConfigurationError as error:
        return Finding("handler", Mark.BAD, str(error), error.hint, error.exit_code)
    if trouble:
        return Finding("handler", Mark.WEAK, f"{name} can be loaded, but not closed: {trouble}", "mend its close()")
    return Finding("handler", Mark.GOOD, f"{name} can be loaded")


def _times(config: Config) -> Finding:
    from gigaoffice_worker.broker.clients import DELIVERY_TIMEOUT
    from gigaoffice_worker.cli import check_times
    from gigaoffice_worker.operations.cluster_check import Finding, Mark

    found = check_times.summary(config, DELIVERY_TIMEOUT) + check_times.note(config)
    remarks = list(check_times.remarks(config))
    return Finding("time limits", Mark.WEAK if remarks else Mark.GOOD, found, "\n".join(remarks))


def _tracing() -> Finding:
    from gigaoffice_worker.observe.tracing import switch
    from gigaoffice_worker.operations.cluster_check import Finding, Mark

    found = switch(os.environ)
    if found.trouble:
        return Finding("spans", Mark.WEAK, f"asked for, and not sent: {found.trouble}", found.mend)
    return Finding("spans", Mark.GOOD, "sent over OTLP/HTTP" if found.on else "off")


def _print_settings(settings: list[Setting]) -> None:
    width = max(len(each.name) for each in settings)
    for each in settings:
        print(f"{' ' if each.is_default else '*'} {each.name:<{width}}  {visible(each.value)}")
    print(flush=True)


def _print_finding(finding: Finding) -> None:
    mark = _MARKS[finding.mark]
    if sys.stdout.isatty():
        mark = f"\x1b[{_COLOURS[finding.mark]}m{mark}\x1b[0m"
    print(f"{mark} {finding.step}: {visible_lines(finding.found)}")
    for line in finding.hint.splitlines():
        print(f"    {visible(line)}")
    sys.stdout.flush()


def _document(settings: list[Setting], config: Config, findings: list[Finding]) -> str:
    document = {
        "settings": [each._asdict() for each in settings],
        "warnings": config.warnings,
        "findings": [each._asdict() for each in findings],
    }
    return visible_json(document, indent=2)
