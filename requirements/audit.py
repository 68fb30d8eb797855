# ruff: noqa: INP001, T201  # a program that prints
"""Ask for known weaknesses of what the locks name, and say of which packages nobody could be asked: `make audit`.

An audit that skipped packages and ends with "no known vulnerabilities" is worse than none. So it ends with 0 only when
every package was asked about and nothing is known; 1: a weakness is known; 2: some could not be asked about.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SERVICES = ("pypi", "osv")


def main() -> int:
    """Audit every lock here."""
    worst = 0
    for lock in sorted(HERE.glob("*.txt")):
        worst = max(worst, _audit(lock), key=(0, 2, 1).index)
    return worst


def _audit(lock: Path) -> int:
    asked: dict[str, dict[str, Any]] = {}
    missing: set[str] = set()
    for service in SERVICES:
        found, why = _ask(lock, service)
        for each in found:
            if "skip_reason" not in each:
                asked[each["name"]] = each
        missing = {each["name"] for each in found if each["name"] not in asked} | (missing - asked.keys())
        if found and not missing:
            break
        print(f"{lock.name}: {service}: {why or f'{len(missing)} packages are unknown there'}")
    weak = [f"{name} {each['version']}: {known['id']}" for name, each in asked.items() for known in each["vulns"]]
    named = sum(line[:1].isalnum() for line in lock.read_text("utf-8").splitlines())
    print(f"{lock.name}: asked about {len(asked)} of {named} packages, {len(weak)} known weaknesses")
    print("".join(f"  {each}\n" for each in weak), end="")
    if weak:
        return 1
    if len(asked) < named:
        print(f"  NOT AUDITED: {', '.join(sorted(missing)) or 'all'}. Run it where a service can be reached.")
        return 2
    return 0


def _ask(lock: Path, service: str) -> tuple[list[dict[str, Any]], str]:
    """Return what a service knows of each package, and why it could not be asked."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "-r", str(lock)]
    done = subprocess.run(
        [*command, "--vulnerability-service", service, "--format", "json"], capture_output=True, text=True, check=False
    )
    try:
        return json.loads(done.stdout)["dependencies"], ""
    except (ValueError, KeyError):
        lines = done.stderr.strip().splitlines()
        return [], (lines[-1] if lines else f"pip-audit ended with {done.returncode}")[:200]


if __name__ == "__main__":
    sys.exit(main())
