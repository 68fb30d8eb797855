# ruff: noqa: INP001  # a program, not a package
"""Write the dashboard: python deploy/grafana/generate.py. It is the source of gigaoffice-worker.json beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("gigaoffice-worker.json")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
W = 'job=~"$job", instance=~"$instance"'
P = "gigaoffice_worker_"
COLUMNS = 24
HEIGHT = 8


class Query(NamedTuple):
    """An expression and what its series are called."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """One graph. `width` is in columns, of which a row has 24."""

    title: str
    meaning: str
    unit: str
    queries: Sequence[Query]
    width: int = 8
    kind: str = "timeseries"


def _rate(metric: str, by: str = "", selector: str = W) -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({P}{metric}{{{selector}}}[$__rate_interval]))"


def _quantiles(metric: str) -> list[Query]:
    buckets = _rate(f"{metric}_bucket", "le")
    return [Query(f"histogram_quantile({q}, {buckets})", f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def _sum(metric: str, legend: str) -> Query:
    return Query(f"sum ({P}{metric}{{{W}}})", legend)


def _by_instance(metric: str) -> Query:
    return Query(f"max by (instance) ({P}{metric}{{{W}}})", "{{instance}}")


# A reason has no series before it occurs for the first time, and that is a nought, not "no data".
NONE = f"0 * sum (up{{{W}}})"
NOT_READY = Query(f"sum ({P}not_ready{{{W}}}) or {NONE}", "reasons")
DEAD = 'reason=~"attempts-exhausted|timed-out|response-too-large|unusable-result"'
FAILED = _rate("messages_failed_total", selector=f"{W}, {DEAD}")

ROWS: Mapping[str, Sequence[Panel]] = {
    "At a glance": [
        Panel("Workers up", "Scraped workers.", "short", [Query(f"sum (up{{{W}}})", "up")], 4, "stat"),
        Panel("Not ready", "Reasons why workers are not ready.", "short", [NOT_READY], 4, "stat"),
        Panel(
            "Finished", "Requests finished a second.", "reqps", [Query(_rate("requests_total"), "finished")], 4, "stat"
        ),
        Panel(
            "Failed by us",
            "Share of requests that ended as dead letters, but for what requesters got wrong. The budget is 1 %.",
            "percentunit",
            [Query(f"({FAILED} or {NONE}) / {_rate('requests_total')}", "failed")],
            4,
            "stat",
        ),
        Panel(
            "Oldest unfinished request",
            "Age since the record was written.",
            "s",
            [Query(f"max ({P}consumer_lag_seconds{{{W}}})", "oldest")],
            4,
            "stat",
        ),
        Panel("In flight", "Requests in hand.", "short", [_sum("requests_in_flight", "in flight")], 4, "stat"),
    ],
    "Requests": [
        Panel(
            "Rate",
            "Records received, and requests finished by outcome.",
            "reqps",
            [
                Query(_rate("requests_total", "outcome"), "{{outcome}}"),
                Query(_rate("messages_received_total"), "received"),
            ],
        ),
        Panel(
            "Errors",
            "Dead letters by reason; publish counts sends that failed and are repeated.",
            "reqps",
            [Query(_rate("messages_failed_total", "reason"), "{{reason}}")],
        ),
        Panel(
            "End to end",
            "From the record's timestamp to the acknowledged outcome.",
            "s",
            _quantiles("end_to_end_seconds"),
        ),
        Panel("Duration of a call", "One attempt of the handler.", "s", _quantiles("handler_duration_seconds")),
        Panel(
            "Wait for a thread", "From arrival in the worker to the first call.", "s", _quantiles("queue_wait_seconds")
        ),
        Panel(
            "Attempts",
            "Handler calls by result.",
            "ops",
            [Query(_rate("handler_attempts_total", "result"), "{{result}}")],
        ),
    ],
    "Work in hand": [
        Panel(
            "Requests",
            "Where the requests are that workers hold.",
            "short",
            [
                _sum("requests_in_flight", "in flight"),
                _sum("requests_queued", "queued"),
                _sum("requests_waiting_retry", "waiting for a retry"),
                _sum("unsettled_outcomes", "outcome not acknowledged"),
            ],
        ),
        Panel(
            "Oldest in flight",
            "The longest that a running request has been in hand.",
            "s",
            [_by_instance("oldest_in_flight_seconds")],
        ),
        Panel(
            "Held back",
            "1 while gate or storm guard hold, or dead letters are blocked; threads that hang in abandoned calls.",
            "short",
            [
                _sum("gate_closed", "gate closed"),
                _sum("storm_guard_open", "storm guard"),
                _sum("dlq_blocked", "dead letters blocked"),
                _sum("handler_abandoned_threads", "hanging calls"),
            ],
        ),
    ],
    "Limits and usage": [
        Panel(
            "Calls at once",
            "What bounds them in all workers: threads, what the provider takes, shares of the group; and what runs.",
            "short",
            [
                Query(f"sum by (source) ({P}concurrency_limit{{{W}}})", "{{source}}"),
                _sum("requests_in_flight", "in flight"),
            ],
        ),
        Panel(
            "Refused for its limit",
            "Calls that the provider refused, and the share of time for which a limit held ready work back.",
            "ops",
            [
                Query(_rate("provider_rejections_total"), "refused"),
                Query(_rate("rate_limited_seconds_total"), "held back"),
            ],
        ),
        Panel(
            "Tokens",
            "As handlers report them, a second.",
            "short",
            [Query(f"{_rate('tokens_total', 'direction, model')} or {NONE}", "{{direction}} {{model}}")],
        ),
        Panel(
            "Cost",
            "An hour's, at the present rate.",
            "short",
            [Query(f"3600 * {_rate('cost_total', 'model')} or {NONE}", "{{model}}")],
        ),
        Panel(
            "Wanted workers",
            "What the backlog could use, and what there is.",
            "short",
            [Query(f"ceil(sum ({P}wanted_workers{{{W}}}))", "wanted"), Query(f"sum (up{{{W}}})", "up")],
        ),
    ],
    "Fairness": [
        Panel(
            "Parked",
            "Requests beyond their tenant's or key's share: their offset is kept, and they are read again.",
            "short",
            [_sum("parked_records", "parked"), _sum("requests_queued", "in memory")],
        ),
        Panel(
            "Read again",
            "Records read for each request that was finished: above 1 is what parking and rebalances cost.",
            "short",
            [Query(f"{_rate('messages_received_total')} / {_rate('requests_total')}", "reads for a request")],
        ),
        Panel(
            "Removed before their turn",
            "In five minutes: requests that the cluster's retention took away before they were answered.",
            "short",
            [Query(f"sum (increase({P}lost_by_retention_total{{{W}}}[5m]))", "lost")],
        ),
    ],
    "Journal": [
        Panel(
            "Calls spared",
            "Requests that were not paid for again: their outcome stood in the cluster, or their id was answered.",
            "ops",
            [
                Query(_rate("journal_recovered_total"), "found in the journal"),
                Query(_rate("requests_total", selector=f'{W}, outcome="duplicate"') + f" or {NONE}", "same id"),
            ],
        ),
        Panel(
            "Read at a takeover",
            "How long a partition waited for the journal.",
            "s",
            _quantiles("journal_read_seconds"),
        ),
        Panel(
            "Without a journal",
            "In five minutes: takeovers whose journal was not read, and answers forgotten for want of room.",
            "short",
            [
                Query(f"sum by (reason) (increase({P}journal_skipped_total{{{W}}}[5m])) or {NONE}", "{{reason}}"),
                Query(f"sum (increase({P}answers_forgotten_total{{{W}}}[5m]))", "answers forgotten"),
            ],
        ),
    ],
    "Lag": [
        Panel(
            "Lag in seconds",
            "Age of the oldest unfinished record, by partition.",
            "s",
            [Query(f"max by (partition) ({P}consumer_lag_seconds{{{W}}})", "partition {{partition}}")],
        ),
        Panel(
            "Lag in records",
            "Behind the committed offset. One slow request holds it back while all behind it is done.",
            "short",
            [Query(f"max by (partition) ({P}consumer_lag_records{{{W}}})", "partition {{partition}}")],
        ),
        Panel(
            "Committed offset",
            "Its growth a second, by partition.",
            "ops",
            [Query(f"max by (partition) (deriv({P}committed_offset{{{W}}}[5m]))", "partition {{partition}}")],
        ),
    ],
    "Kafka": [
        Panel("Commits", "By result.", "ops", [Query(_rate("commits_total", "result"), "{{result}}")]),
        Panel(
            "Rebalances",
            "Assignments received.",
            "short",
            [Query(f"sum by (instance) (increase({P}rebalances_total{{{W}}}[5m]))", "{{instance}}")],
        ),
        Panel(
            "Partitions",
            "Assigned, not read at the moment, and stopped by a record that cannot be decoded.",
            "short",
            [
                _sum("assigned_partitions", "assigned"),
                _sum("paused_partitions", "paused"),
                _sum("partitions_quarantined", "quarantined"),
            ],
        ),
        Panel(
            "Sent",
            "Acknowledged responses and dead letters, by topic.",
            "ops",
            [Query(_rate("messages_sent_total", "topic"), "{{topic}}")],
        ),
        Panel(
            "What should not happen",
            "In five minutes: offsets outside the log, producers replaced, results dropped, log lines dropped.",
            "short",
            [
                Query(f"sum (increase({P}{metric}{{{W}}}[5m]))", legend)
                for metric, legend in (
                    ("offset_resets_total", "offset resets"),
                    ("producer_rebuilds_total", "producers replaced"),
                    ("late_results_dropped_total", "late results"),
                    ("log_dropped_total", "log lines dropped"),
                )
            ],
        ),
        Panel(
            "Since the last poll",
            "Seconds since the consumer last came back from a poll.",
            "s",
            [Query(f"time() - max by (instance) ({P}last_poll_timestamp_seconds{{{W}}})", "{{instance}}")],
        ),
    ],
    "Process": [
        Panel(
            "Memory",
            "Resident.",
            "bytes",
            [Query(f"max by (instance) (process_resident_memory_bytes{{{W}}})", "{{instance}}")],
        ),
        Panel(
            "CPU",
            "Cores in use.",
            "short",
            [Query(f"sum by (instance) (rate(process_cpu_seconds_total{{{W}}}[$__rate_interval]))", "{{instance}}")],
        ),
        Panel(
            "Uptime",
            "Since the process started.",
            "s",
            [Query(f"time() - max by (instance) (process_start_time_seconds{{{W}}})", "{{instance}}")],
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model."""
    return {
        "uid": "gigaoffice-worker",
        "title": "GigaOffice worker",
        "tags": ["gigaoffice", "kafka"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_restarts()]},
        "panels": list(_panels()),
    }


def _variables() -> Iterable[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    for name, labels in (("job", ""), ("instance", '{job=~"$job"}')):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": f"label_values({P}build_info{labels}, {name})", "refId": name},
            "definition": f"label_values({P}build_info{labels}, {name})",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        }


def _restarts() -> dict[str, Any]:
    return {
        "name": "Starts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": f"changes(process_start_time_seconds{{{W}}}[$__interval]) > 0",
        "titleFormat": "{{instance}} started",
    }


def _panels() -> Iterable[dict[str, Any]]:
    number, top = 0, 0
    for row, panels in ROWS.items():
        number += 1
        yield {"id": number, "type": "row", "title": row, "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1}}
        top, left = top + 1, 0
        for panel in panels:
            number += 1
            height = HEIGHT // 2 if panel.kind == "stat" else HEIGHT
            if left + panel.width > COLUMNS:
                top, left = top + height, 0
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            left += panel.width
        top += height


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}}
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    else:
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "never"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for index, query in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """Return the dashboard as it stands in the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
