"""Step by step through everything that a worker needs of its cluster, without changing anything there.

What may be done is not tried but asked: brokers tell for each topic and group which operations they would allow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Final, NamedTuple, TypeVar

from kafka import errors as kafka_errors

from gigaoffice_worker.broker import bootstrap
from gigaoffice_worker.broker.admin import Admin, Group, TopicState, admin
from gigaoffice_worker.broker.clients import ASSIGNORS, IDEMPOTENCE_HINT
from gigaoffice_worker.broker.error_table import BAD_CREDENTIALS, is_fatal, to_worker_error
from gigaoffice_worker.config import Config, Kafka, TopicSpec
from gigaoffice_worker.core.errors import AccessError, UnreachableError, WorkerError
from gigaoffice_worker.operations import group_advice, limit_advice, topic_advice

STEP_LIMIT: Final = 10.0
"""Seconds that one step has at most."""

_NEEDED: Final = {"requests": "READ", "responses": "WRITE", "dlq": "WRITE"}
_LATER_STEPS: Final = ("authentication", "brokers", "topics", "group")
_IDEMPOTENCE: Final = "idempotent writes"
_LIMITS: Final = "limits"
_LOOK_AGAIN: Final = 0.3
_NO_COORDINATOR_YET: Final = (
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
)


Answer = TypeVar("Answer")


class Mark(StrEnum):
    """What is to be said of a step at one glance."""

    GOOD = "good"
    WEAK = "weak"
    """It works, and deserves a second look."""
    BAD = "bad"
    SKIPPED = "skipped"


class Finding(NamedTuple):
    """What came of one step; `hint` says what to do about it, `exit_code` what it would end a worker with."""

    step: str
    mark: Mark
    found: str
    hint: str = ""
    exit_code: int = 0


def steps(config: Config, begin: Callable[[str], None] = lambda step: None) -> Iterator[Finding]:  # noqa: ARG005
    """Try each step and tell what was found; a step that builds on a failed one is skipped.

    `begin` hears what each step is called when it begins.
    """
    limit = min(STEP_LIMIT, config.topics.creation_timeout)
    servers = [_server(config.kafka, server, limit, begin) for server in config.kafka.bootstrap_servers]
    usable = any(findings[-1].mark is Mark.GOOD for findings in servers)
    for finding in chain.from_iterable(servers):
        # One server is enough for a worker: the others are found wanting, no more.
        yield finding._replace(exit_code=min(finding.exit_code, WorkerError.exit_code)) if usable else finding
    if not usable:
        yield from map(_skipped, _LATER_STEPS)
        return
    begin("authentication")
    try:
        client = admin(config, limit)
    except WorkerError as error:
        yield _bad("authentication" if error.hint == BAD_CREDENTIALS.hint else "connection", error)
        yield from map(_skipped, _LATER_STEPS[1:])
        return
    with client:
        yield Finding("authentication", Mark.GOOD, _login(config.kafka))
        for step, question in _questions(client, config, limit):
            begin(step)
            yield _answer(client, step, question, limit)


def _answer(
    client: Admin, step: str, question: Callable[[str], Finding], limit: float, *, once_more: bool = True
) -> Finding:
    """Ask a question, and once more if the answer is an error that may pass: a connection that just broke."""
    client.renew(limit)
    try:
        return question(step)
    except Exception as error:  # noqa: BLE001  # told apart in `error_table`
        if once_more and not is_fatal(error):
            return _answer(client, step, question, limit, once_more=False)
        return _bad(step, to_worker_error(error, "asking the cluster"))


def describe_group(client: Admin, group: str, patience: float = 0.0) -> Group:
    """Ask a group's coordinator about it, for up to `patience` seconds while there is none yet.

    Raises the client's errors.
    """
    return _patiently(lambda: client.group(group), patience)


def _patiently(ask: Callable[[], Answer], patience: float) -> Answer:
    """Ask again while there is no coordinator yet: the cluster makes its own topics when they are first needed."""
    until = time.monotonic() + patience
    while True:
        try:
            return ask()
        except _NO_COORDINATOR_YET:
            if time.monotonic() + _LOOK_AGAIN > until:
                raise
            time.sleep(_LOOK_AGAIN)


# The steps


def _server(kafka: Kafka, server: str, limit: float, begin: Callable[[str], None]) -> list[Finding]:
    """Connect without TLS first, so that its failure is told apart from that of the network; at least one finding."""
    findings: list[Finding] = []
    alone = replace(kafka, bootstrap_servers=(server,))
    for name in ("reach", "TLS")[: 1 + kafka.use_ssl]:
        step = f"{name} {server}"
        begin(step)
        if error := _failure(alone, limit, only_connect=kafka.use_ssl and name == "reach"):
            findings.append(_bad(step, type(error)(str(error).removeprefix(f"{server}: "), hint=error.hint)))
            break
        findings.append(Finding(step, Mark.GOOD, _CONNECTED[name]))
    return findings


def _failure(kafka: Kafka, limit: float, *, only_connect: bool = False) -> WorkerError | None:
    try:
        return bootstrap.ask_servers(kafka, limit, only_connect=only_connect)[0].error
    except WorkerError as error:  # our own certificate or key
        return error


def _questions(client: Admin, config: Config, limit: float) -> Iterator[tuple[str, Callable[[str], Finding]]]:
    yield "brokers", partial(_brokers, client, config.kafka, limit)
    for spec in config.topics:
        yield f"topic {spec.name}", partial(_topic, client, config, spec)
    yield _LIMITS, partial(_limits, client, config)
    if config.producer.acks == "all":
        yield _IDEMPOTENCE, partial(_idempotence, client)
    yield f"group {config.consumer.group}", partial(_group, client, config)


_CONNECTED: Final = {"reach": "accepts connections", "TLS": "its certificate is trusted"}


def _login(kafka: Kafka) -> str:
    if kafka.sasl_mechanism:
        who = kafka.sasl_oauth_client_id or kafka.sasl_username or kafka.sasl_aws_region
        return f"{kafka.sasl_mechanism} as {who} ({kafka.security_protocol})"
    if kafka.use_ssl and kafka.ssl_certfile:
        return "by client certificate (SSL)"
    return f"none is configured ({kafka.security_protocol}), and the cluster asks for none"


def _brokers(client: Admin, kafka: Kafka, limit: float, step: str) -> Finding:
    """See whether the addresses that the cluster gives out work from here: clients use those, not the bootstrap's."""
    addresses = [_address(*each) for each in client.brokers()]
    until = time.monotonic() + limit
    for address in addresses:
        left = until - time.monotonic()
        if left > 0 and (error := _failure(replace(kafka, bootstrap_servers=(address,)), left)):
            hint = f"Clients use the brokers' advertised.listeners: each must be reachable from here. {error.hint}"
            return _bad(step, type(error)(f"the cluster names {error}", hint=hint))
    return Finding(step, Mark.GOOD, f"{len(addresses)}, each reachable as advertised: {', '.join(addresses)}")


def _topic(client: Admin, config: Config, spec: TopicSpec, step: str) -> Finding:
    state = client.describe([spec.name]).get(spec.name)
    if state is None:
        return _missing(client, config, spec, step)
    needed = _NEEDED[spec.role]
    if state.operations and not {needed, "ALL"} & state.operations:
        return _not_permitted(step, needed)
    if not state.has_leaders:
        hint = "Check that all brokers run."
        return Finding(step, Mark.BAD, "a partition has no leader", hint, WorkerError.exit_code)
    found = f"partitions {state.partitions}, replication {state.replication}, {needed} permitted"
    remarks = list(_journal_remarks(config, spec, state))
    settings = client.settings({spec.name, config.topics.requests.name}, topic_advice.READ)
    if not settings.get(spec.name):
        remarks.append(topic_advice.Remark("Grant the user DESCRIBE_CONFIGS.", fatal=False))
        return _judged(step, f"{found}, its settings cannot be read", remarks)
    of_requests = settings.get(config.topics.requests.name, {})
    remarks += topic_advice.remarks(spec, settings[spec.name], of_requests, state, config.worker.max_request_bytes)
    if differences := _differences(spec, state):
        hint = f"Configured is {' and '.join(differences)}: alter the topic, or configure what it has."
        remarks.append(topic_advice.Remark(hint, fatal=False))
    found = f"{found}; {topic_advice.summary(settings[spec.name])}"
    return _judged(step, found, remarks)


def _journal_remarks(config: Config, spec: TopicSpec, state: TopicState) -> Iterator[topic_advice.Remark]:
    """Say what the journal cannot do: it reads back what workers have written."""
    missed = {
        "responses": "the journal is off, and a crash repeats calls that were answered",
        "dlq": "the journal passes over dead letters, and a crash repeats calls that ended in one",
    }
    readable = not state.operations or {"READ", "ALL"} & state.operations
    if config.worker.journal and spec.role in missed and not readable:
        hint = f"Grant the user READ on it, too: without it {missed[spec.role]}. Or set WORKER_JOURNAL=off."
        yield topic_advice.Remark(hint, fatal=False)


def _judged(step: str, found: str, remarks: list[topic_advice.Remark]) -> Finding:
    if not remarks:
        return Finding(step, Mark.GOOD, found)
    fatal = any(each.fatal for each in remarks)
    code = WorkerError.exit_code if fatal else 0
    return Finding(step, Mark.BAD if fatal else Mark.WEAK, found, "\n".join(each.text for each in remarks), code)


def _differences(spec: TopicSpec, state: TopicState) -> list[str]:
    figures = (
        ("partitions", spec.partitions, state.partitions),
        ("replication", spec.replication, state.replication),
    )
    return [f"{what} {configured}" for what, configured, found in figures if configured != found]


def _missing(client: Admin, config: Config, spec: TopicSpec, step: str) -> Finding:
    if not config.topics.auto_create:
        hint = "Create it; with KAFKA_TOPIC_AUTO_CREATE=false the worker waits for it."
        return Finding(step, Mark.BAD, "missing", hint, WorkerError.exit_code)
    try:
        client.create(spec, spec.settings, validate_only=True)
    except Exception as error:  # noqa: BLE001  # told apart in `error_table`
        return _bad(step, to_worker_error(error, "missing, and creating it would fail"))
    found = f"missing; the cluster would create it (partitions {spec.partitions}, replication {spec.replication})"
    hint = "`gigaoffice-worker topics` creates it, and so does `gigaoffice-worker run`."
    return Finding(step, Mark.BAD, found, hint, WorkerError.exit_code)


def limits(config: Config, partitions: int) -> Finding:
    """Say what the limits come to with so many partitions of the request topic."""
    hints = list(limit_advice.remarks(config.worker, partitions))
    found = limit_advice.summary(config.worker, partitions)
    return Finding(_LIMITS, Mark.WEAK if hints else Mark.GOOD, found, "\n".join(hints))


def _limits(client: Admin, config: Config, _step: str) -> Finding:
    spec = config.topics.requests
    state = client.describe([spec.name]).get(spec.name)
    # A topic that is missing gets what is configured.
    return limits(config, state.partitions if state else spec.partitions)


def _idempotence(client: Admin, step: str) -> Finding:
    """See whether the brokers give out a producer id: they do not tell beforehand, and one costs nothing."""
    try:
        _patiently(client.write_idempotently, STEP_LIMIT)
    except kafka_errors.ClusterAuthorizationFailedError as error:
        told = to_worker_error(error, "asking for a producer id")
        return _bad(step, AccessError(str(told), hint=IDEMPOTENCE_HINT))
    return Finding(step, Mark.GOOD, "permitted")


def _group(client: Admin, config: Config, step: str) -> Finding:
    group = describe_group(client, config.consumer.group, patience=STEP_LIMIT)
    if group.operations and not {"READ", "ALL"} & group.operations:
        return _not_permitted(step, "READ")
    if refused := group_advice.refusal(group, ASSIGNORS):
        return _bad(step, refused)
    hint = group_advice.remark(group, config.topics.requests.name)
    return Finding(step, Mark.WEAK if hint else Mark.GOOD, f"{group_advice.summary(group)}, READ permitted", hint)


# How findings are made


def _bad(step: str, error: WorkerError) -> Finding:
    return Finding(step, Mark.BAD, str(error), error.hint, error.exit_code)


def _not_permitted(step: str, operation: str) -> Finding:
    error = AccessError(
        f"authorization failed: {operation} is not permitted", hint=f"Grant the user {operation} on the {step}."
    )
    return _bad(step, error)


def _skipped(step: str) -> Finding:
    return Finding(step, Mark.SKIPPED, "not tried", exit_code=UnreachableError.exit_code)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
