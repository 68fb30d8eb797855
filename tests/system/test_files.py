"""What is written for other programs is what they understand, says each one's own checker. Needs no root."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.system import stage
from tests.system.conftest import need

BIN = Path(sys.executable).parent
ROOT = stage.ROOT


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema=vendor.compose-spec", "compose.yaml"],
        ["kubernetes-validate", "--strict", "deploy/kubernetes/gigaoffice-worker.yaml"],
        ["shellcheck", "systemd/install.sh"],
    ],
    ids=lambda command: command[0],
)
def test_checker_is_content(command):
    checker, *words = command
    if not (BIN / checker).exists():
        need(checker, root=False, because="nothing: pip install '.[system]'")
    stage.run(str(BIN / checker), *(str(ROOT / word) if (ROOT / word).exists() else word for word in words))
