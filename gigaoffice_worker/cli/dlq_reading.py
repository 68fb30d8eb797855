"""`gigaoffice-worker dlq list` and `dlq show`: what lies in the dead letter topic."""

from __future__ import annotations

import argparse
import heapq
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from gigaoffice_worker.cli import dlq_text, terminal
from gigaoffice_worker.core.dead_letters import Facts, Filters, Span, facts
from gigaoffice_worker.core.records import Record
from gigaoffice_worker.core.visible import visible

if TYPE_CHECKING:
    from gigaoffice_worker.operations.dead_letter_reader import DeadLetterReader

_ROWS = 50

T = TypeVar("T")


def act_list(asked: argparse.Namespace) -> int:
    """Print counts and a table, or JSON lines; 1 if no dead letter fits."""
    from gigaoffice_worker.config import load
    from gigaoffice_worker.operations.dead_letter_reader import DeadLetterReader

    config, filters = load(), asked.filters(asked)
    with terminal.command_logs(config), DeadLetterReader(config, asked.timeout) as reader:
        check_partitions(reader.partitions, filters)
        found = _matching(reader, filters)
        total = _print_json(found, asked.limit) if asked.json else _print_table(found, asked.limit or _ROWS, reader)
    if not total:
        raise none_fits(config.topics.dlq.name, filters)
    return 0


def act_show(asked: argparse.Namespace) -> int:
    """Print one dead letter, or those of a request; 1 if there is none."""
    from gigaoffice_worker.config import load
    from gigaoffice_worker.operations.dead_letter_reader import DeadLetterReader

    config = load()
    with terminal.command_logs(config), DeadLetterReader(config, asked.timeout) as reader:
        if isinstance(asked.dead_letter, str):
            wanted = Filters(request_ids=frozenset({asked.dead_letter}))
            dead_letters = _matching(reader, wanted)
        else:
            dead_letters = _at(reader, *asked.dead_letter)
        shown = 0
        for dead_letter, said in dead_letters:
            _print_dead_letter(dead_letter, said, asked, first=not shown)
            shown += 1
    if not shown:
        which = f"of a request {visible(asked.dead_letter)}" if isinstance(asked.dead_letter, str) else "there any more"
        raise terminal.FoundWantingError(
            f"there is no dead letter {which} in {config.topics.dlq.name}",
            hint="`gigaoffice-worker dlq list` lists them.",
        )
    return 0


def check_partitions(partitions: list[int], filters: Filters) -> None:
    """Raise UsageError for a partition that the dead letter topic does not have."""
    if strange := sorted(filters.partitions - set(partitions)):
        raise terminal.UsageError(
            f"--partition {strange[0]}: the dead letter topic has the partitions 0 to {len(partitions) - 1}"
        )


def none_fits(topic: str, filters: Filters) -> terminal.FoundWantingError:
    """Return what ends a command that found nothing."""
    if filters == Filters():
        return terminal.FoundWantingError(f"there are no dead letters in {topic}")
    return terminal.FoundWantingError(f"no dead letter in {topic} fits the filters")


def _matching(reader: DeadLetterReader, filters: Filters) -> Iterator[tuple[Record, Facts]]:
    progress = terminal.Progress()
    spans = reader.spans(filters)
    total = sum(span.end - span.begin for span in spans.values())
    looked_at = 0
    for batch in reader.batches(spans):
        for dead_letter in batch.records:
            said = facts(dead_letter)
            if filters.match(said):
                progress.clear()
                yield dead_letter, said
        looked_at += len(batch.records)
        progress.show(f"looking at dead letters: {looked_at} of {total}")
    progress.clear()


def _at(reader: DeadLetterReader, partition: int, offset: int) -> Iterator[tuple[Record, Facts]]:
    check_partitions(reader.partitions, Filters(partitions=frozenset({partition})))
    held = reader.log([partition])[partition]
    if not held.begin <= offset < held.end:
        holds = f"holds {held.begin} to {held.end - 1}" if held.begin < held.end else "is empty"
        raise terminal.FoundWantingError(f"there is no dead letter {partition}:{offset}; partition {partition} {holds}")
    for batch in reader.batches({partition: Span(offset, offset + 1)}):
        yield from ((dead_letter, facts(dead_letter)) for dead_letter in batch.records)


def _print_dead_letter(dead_letter: Record, said: Facts, asked: argparse.Namespace, *, first: bool) -> None:
    if asked.json:
        print(dlq_text.json_line(dlq_text.with_headers(dead_letter, said, payload=asked.payload)), flush=True)
        return
    lines = dlq_text.sheet(dead_letter, said, payload=asked.payload)
    print("\n".join(lines if first else ["", *lines]), flush=True)


def _print_json(found: Iterator[tuple[Record, Facts]], limit: int | None) -> int:
    """Print the newest `limit` dead letters, or all of them as they come; return how many fit."""
    total = 0
    kept = _Newest[str](limit or 0)
    for dead_letter, said in found:
        total += 1
        line = dlq_text.json_line(dlq_text.document(dead_letter, said))
        if limit is None:
            print(line, flush=True)
        else:
            kept.add(said, line)
    for line in kept.oldest_first():
        print(line, flush=True)
    return total


def _print_table(found: Iterator[tuple[Record, Facts]], limit: int, reader: DeadLetterReader) -> int:
    reasons: Counter[str] = Counter()
    kept = _Newest[Facts](limit)
    for _, said in found:
        reasons[said.reason or "no reason given"] += 1
        kept.add(said, said)
    if total := reasons.total():
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(f"{total} dead letter{'s' if total > 1 else ''} in {reader.topic}")
        print("\n".join([*dlq_text.counts(reasons.most_common()), "", *dlq_text.table(kept.oldest_first(), width)]))
        if total > limit:
            print(f"\nThese are the newest {limit}; --limit shows more.")
    return total


class _Newest(Generic[T]):
    """Keeps what belongs to the newest dead letters, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, int, int, T]] = []

    def add(self, dead_letter: Facts, item: T) -> None:
        heapq.heappush(self._heap, (dead_letter.timestamp, dead_letter.partition, dead_letter.offset, item))
        if len(self._heap) > self._limit:
            heapq.heappop(self._heap)

    def oldest_first(self) -> list[T]:
        return [item for *_, item in sorted(self._heap, key=lambda each: each[:3])]
