"""The systemd units and their environment, as far as they can be read without a systemd."""

from __future__ import annotations

import re
from pathlib import Path

from gigaoffice_worker.config import load, read_env_file

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"


def settings(name: str) -> list[str]:
    lines = (SYSTEMD / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_units_differ_in_nothing_but_their_instance() -> None:
    template = [
        line.replace(" (%i)", "").replace("/%i.env", "/worker.env") for line in settings("gigaoffice-worker@.service")
    ]
    assert template == settings("gigaoffice-worker.service")


def test_stop_has_time_for_the_drain_and_what_follows() -> None:
    unit = (SYSTEMD / "gigaoffice-worker.service").read_text()
    drain = int(re.findall(r"WORKER_DRAIN_TIMEOUT=(\d+)", unit)[-1])
    stop = int(re.findall(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)[-1])
    assert stop >= drain + 5


def test_example_environment_is_known_with_and_without_its_comment_marks(tmp_path: Path) -> None:
    example = (SYSTEMD / "example.env").read_text()
    everything = tmp_path / "all.env"
    everything.write_text(re.sub(r"^#(?=[A-Z_]+=)", "", example, flags=re.MULTILINE))
    password = {"KAFKA_SASL_PASSWORD": "from a credential"}
    assert load(read_env_file(str(SYSTEMD / "example.env"))).warnings == ()
    assert load({**read_env_file(str(everything)), **password}).warnings == ()
