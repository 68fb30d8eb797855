"""`gigaoffice-worker dlq replay`: dead letters back on the request topic."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from gigaoffice_worker.cli import dlq_text, terminal
from gigaoffice_worker.cli.dlq_reading import check_partitions, none_fits
from gigaoffice_worker.core.dead_letters import Examined, Fate
from gigaoffice_worker.core.visible import visible

if TYPE_CHECKING:
    from gigaoffice_worker.config import Config
    from gigaoffice_worker.operations.replay import Replay


def act(asked: argparse.Namespace) -> int:
    """Replay what is asked for; 0 if every dead letter that fits was replayed."""
    from gigaoffice_worker.config import load
    from gigaoffice_worker.operations.replay import Replay

    config = load()
    replay = Replay(
        config,
        asked.filters(asked),
        timeout=asked.timeout,
        max_replays=asked.max_replays,
        rate=asked.rate,
        restart=asked.restart,
        dry_run=asked.dry_run,
    )
    report = _Report(config, replay, asked)
    with terminal.command_logs(config):
        try:
            with replay:
                check_partitions(replay.partitions, replay.filters)
                for outcome in replay.run(report.progress):
                    report.add(outcome)
        finally:
            for outcome in replay.left_over():
                report.add(outcome)
            report.close()
    return report.verdict()


class _Report:
    """Says what becomes of the dead letters: those that could not be replayed by name, the others by number."""

    def __init__(self, config: Config, replay: Replay, asked: argparse.Namespace) -> None:
        self._topics = config.topics
        self._replay = replay
        self._asked = asked
        self._replayed: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._line = terminal.Progress()

    def progress(self) -> None:
        """Show how far it has come."""
        done, left = self._replayed.total(), self._replay.left
        self._line.show(f"replaying: {done} done, {self._others.total()} not, {left} to look at")

    def add(self, outcome: Examined) -> None:
        """Count a dead letter, and name it if something is to be said about it."""
        said = outcome.dead_letter
        name = f"{said.place} (request {visible(said.request_id)})"
        if outcome.fate is Fate.REPLAYED:
            self._replayed[said.reason or "no reason given"] += 1
            if outcome.nulls_lost:
                self._say(f"{name}: its headers without a value were written with an empty one")
        elif outcome.fate is Fate.SKIPPED:
            self._others["skipped"] += 1
            self._say(f"skipped {name}: replayed {said.replays} times already")
        else:
            self._others["refused"] += 1
            self._say(f"not replayed {name}: it is larger than {self._topics.requests.name} takes")

    def close(self) -> None:
        """Print what there is to sum up, also of a run that was broken off."""
        self._line.clear()
        total = self._replayed.total()
        if not total and not self._others:
            return
        done = "would be replayed" if self._asked.dry_run else "replayed"
        print(f"{total} dead letter{'' if total == 1 else 's'} {done} to {self._topics.requests.name}")
        for line in dlq_text.counts(self._replayed.most_common()):
            print(line)
        sys.stdout.flush()

    def verdict(self) -> int:
        """Return the exit code. Raises FoundWantingError where nothing was there, or not everything was replayed."""
        if self._others["skipped"]:
            terminal.say("hint: --restart --max-replays N takes those that were replayed fewer than N times.")
        if self._others:
            return terminal.FoundWantingError.exit_code
        if self._replayed:
            return 0
        if self._replay.resumed:
            raise terminal.FoundWantingError(
                f"nothing is left to replay: earlier runs with these filters looked at everything else "
                f"(group {self._replay.group})",
                hint="--restart begins anew, and replays again what was replayed before.",
            )
        raise none_fits(self._topics.dlq.name, self._replay.filters)

    def _say(self, text: str) -> None:
        self._line.clear()
        terminal.say(text)
