"""Another Kafka than the newest for a run of the tests: KAFKA_TEST_VERSION names one whose jars are pinned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gigaoffice_worker.devkafka import KafkaCluster
from gigaoffice_worker.devkafka.distribution import KAFKA_VERSION, Release, install, pinned_sums, read_sums

VERSION = "KAFKA_TEST_VERSION"
WITH_ZOOKEEPER = frozenset({"2.8.2"})
"""Releases from before a broker could do without it."""
PATIENCE_MS = "60000"

_SUMS = Path(__file__).parent.parent / "compatibility"


def releases() -> dict[str, Release]:
    """Return the releases that can be tried, by version, oldest first."""
    older = {file.stem.removeprefix("kafka-"): file for file in sorted(_SUMS.glob("kafka-*.sha512"))}
    found = {version: Release(version, read_sums(file.read_text("ascii"))) for version, file in older.items()}
    return {**found, KAFKA_VERSION: Release(KAFKA_VERSION, pinned_sums())}


def named() -> Release | None:
    """Return the release that this run names; KeyError where it is none of ours."""
    version = os.environ.get(VERSION)
    return releases()[version] if version else None


def too_old_setting() -> str:
    """Return the name of the topic setting that says how old a record may be, in milliseconds; 3.6 changed it."""
    release = named()
    changed = release is None or tuple(map(int, release.version.split("."))) >= (3, 6)
    return f"message.timestamp.{'before' if changed else 'difference'}.max.ms"


class OwnKafka(KafkaCluster):
    """A cluster of a test's own, of the release that this run names; skips the test where that needs ZooKeeper.

    One node alone that misses its own heartbeats takes no new topics for a moment, so it has time for them; one that
    is to be killed has not, because it is let in again only when its last session has run out.
    """

    def __init__(self, nodes: int = 1, *, killed: bool = False, **options: Any) -> None:
        if nodes == 1 and not killed:
            options["properties"] = {"broker.session.timeout.ms": PATIENCE_MS, **options.get("properties", {})}
        release = named()
        if release is not None:
            if release.version in WITH_ZOOKEEPER:
                pytest.skip(
                    f"Kafka {release.version} with ZooKeeper: there is the one that all tests share, and no other"
                )
            options.setdefault("distribution", install(print, release))
        super().__init__(nodes, **options)
