"""What `check` says of time limits, of the provider's limits, of topics' settings and of a group's members."""

from __future__ import annotations

import pytest

from gigaoffice_worker.broker.admin import Group, Member, TopicState
from gigaoffice_worker.cli import check_times
from gigaoffice_worker.config import load
from gigaoffice_worker.operations import group_advice, limit_advice
from gigaoffice_worker.operations.topic_advice import remarks, summary

STATE = TopicState(partitions=1, replication=1, has_leaders=True, operations=frozenset())
USUAL = {
    "max.message.bytes": "1048588",
    "retention.ms": "604800000",
    "cleanup.policy": "delete",
    "min.insync.replicas": "1",
}
LARGER = {**USUAL, "max.message.bytes": "9437184"}


def said(role, settings=None, requests=USUAL, **environment):
    config = load(environment)
    spec = {each.role: each for each in config.topics}[role]
    settings = {**(LARGER if role == "dlq" else USUAL), **(settings or {})}
    found = remarks(spec, settings, requests, STATE, config.worker.max_request_bytes)
    return [(each.fatal, each.text) for each in found]


@pytest.mark.parametrize("role", ["requests", "responses", "dlq"])
def test_nothing_is_said_of_what_the_worker_creates(role):
    assert said(role) == []


@pytest.mark.parametrize("role,fatal", [("requests", True), ("responses", False), ("dlq", True)])
@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_compaction_is_told_of_any_topic(role, fatal, policy):
    ((found, text),) = said(role, {"cleanup.policy": policy})
    assert found is fatal
    assert "Set cleanup.policy=delete" in text


@pytest.mark.parametrize("size,fatal", [("9437183", False), ("1114124", False), ("1048588", False), ("1048587", True)])
def test_dead_letters_need_room_for_a_request_unpacked_and_its_headers(size, fatal):
    ((found, text),) = said("dlq", {"max.message.bytes": size})
    assert found is fatal
    assert "9437184 or more" in text


def test_dead_letters_need_no_less_room_than_the_requests_of_a_topic_with_a_larger_limit():
    larger = {**USUAL, "max.message.bytes": "20000000"}
    ((fatal, text),) = said("dlq", {"max.message.bytes": "20000000"}, requests=larger)
    assert not fatal
    assert "20065536 or more" in text
    assert said("dlq", {"max.message.bytes": "20065536"}, requests=larger) == []


def test_dead_letters_need_more_room_where_larger_requests_are_allowed():
    ((fatal, text),) = said("dlq", WORKER_MAX_REQUEST_BYTES="16777216")
    assert not fatal
    assert "17825792 or more" in text


@pytest.mark.parametrize("role", ["requests", "responses", "dlq"])
def test_short_retention_is_told_and_none_is_fine(role):
    ((fatal, text),) = said(role, {"retention.ms": "60000"})
    assert not fatal
    assert "Set retention.ms to" in text
    assert said(role, {"retention.ms": "-1"}) == []


def test_more_replicas_in_sync_than_there_are_block_every_write():
    ((fatal, text),) = said("responses", {"min.insync.replicas": "2"})
    assert fatal
    assert "min.insync.replicas to 1" in text


def test_a_summary_reads_like_a_line():
    assert summary(USUAL) == ("max.message.bytes 1048588, retention 7 d, cleanup.policy delete, min.insync.replicas 1")
    assert "retention without end" in summary({"retention.ms": "-1"})


def test_nothing_is_said_of_the_default_time_limits():
    config = load({})
    assert list(check_times.remarks(config)) == []
    assert "TimeoutStopSec, a container's stop period: 35 s" in check_times.summary(config, 120.0)
    assert "more than 25 s" in check_times.note(config)
    assert check_times.note(load({"WORKER_DRAIN_TIMEOUT": "120"})) == ""


@pytest.mark.parametrize(
    "environment,what",
    [
        ({"KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS": "4000"}, "KAFKA_CONSUMER_HEARTBEAT_INTERVAL_MS to a third"),
        ({"WORKER_REBALANCE_WAIT": "31"}, "set WORKER_REBALANCE_WAIT below"),
        ({"WORKER_DRAIN_TIMEOUT": "0"}, "set WORKER_DRAIN_TIMEOUT above 0"),
        ({"WORKER_RETRY_DELAY": "90"}, "WORKER_RETRY_DELAY has no effect"),
    ],
)
def test_time_limits_that_do_not_fit_are_told_with_what_to_do(environment, what):
    (text,) = check_times.remarks(load(environment))
    assert what in text


def limits(partitions, **settings):
    worker = load({"WORKER_HANDLER": "gigachat", **settings}).worker
    return limit_advice.summary(worker, partitions), list(limit_advice.remarks(worker, partitions))


def test_a_groups_calls_at_once_are_put_into_workers_and_threads():
    told, hints = limits(3, WORKER_GROUP_CONCURRENCY="10", WORKER_ADAPTIVE="off")
    assert told == (
        "at most 10 calls at once in the group; with 3 partitions at most 3 workers are useful; "
        "WORKER_CONCURRENCY=16 leaves 6 threads idle"
    )
    assert hints == []


def test_fewer_calls_than_partitions_take_turns_and_that_is_a_warning():
    told, (hint,) = limits(12, WORKER_GROUP_CONCURRENCY="1", WORKER_CONCURRENCY="1")
    assert "at most 1 call at once in the group; with 12 partitions at most 1 worker is useful" in told
    assert "idle" not in told
    assert hint.startswith("1 call for 12 partitions: they take turns of at least a minute")
    assert "Run at most 1 worker, or have no more than 1 partition." in hint


def test_a_limit_that_all_threads_together_cannot_use_is_a_warning():
    _, (hint,) = limits(3, WORKER_GROUP_CONCURRENCY="50")
    assert "makes 48 calls at once" in hint
    assert "set WORKER_CONCURRENCY to 17 or more" in hint
    assert limits(3, WORKER_GROUP_CONCURRENCY="50", WORKER_CONCURRENCY="17")[1] == []


def test_without_a_limit_of_the_group_each_worker_has_its_threads():
    told, hints = limits(3)
    assert told == (
        "at most 16 calls at once in each worker, and 3 workers are useful; "
        "fewer while the provider refuses more (WORKER_ADAPTIVE)"
    )
    assert hints == []
    assert limits(1, WORKER_CONCURRENCY="1")[0].startswith(
        "at most 1 call at once in each worker, and 1 worker is useful"
    )


def test_rate_and_tokens_of_a_group_are_told_as_they_are_spent():
    assert "at most 2 calls in 60 s in the group, evenly one each 30 s" in limits(3, WORKER_GROUP_RATE="2/60")[0]
    told, hints = limits(3, WORKER_GROUP_RATE="20/60", WORKER_GROUP_TOKENS="120000/60")
    assert "at most 20 calls in 60 s in the group;" in told
    assert "at most 120000 tokens in 60 s in the group" in told
    assert "of which 108000 are planned with and 10000 may be spent at once" in told
    assert hints == []


def test_a_budget_of_tokens_that_nobody_reports_is_a_warning():
    _, (hint,) = limits(3, WORKER_GROUP_TOKENS="120000/60", WORKER_HANDLER="http", HTTP_HANDLER_URL="http://a")
    assert "the handler http reports no tokens" in hint


OFFERED = ("range", "roundrobin")
WORKER = Member("worker", frozenset({"requests"}))


def group(*members, state="Stable", kind="consumer", assignor="range"):
    return Group(state, kind, assignor, members, frozenset())


@pytest.mark.parametrize(
    "found",
    [
        group(WORKER, WORKER),
        group(WORKER, assignor="roundrobin"),
        group(Member("worker", None), state="PreparingRebalance", assignor=""),
        group(state="Dead", kind="", assignor=""),
        group(state="Empty", assignor=""),
        # What the last members were binds nobody.
        group(state="Empty", kind="connect", assignor=""),
    ],
)
def test_a_group_of_workers_or_of_nobody_lets_workers_in(found):
    assert group_advice.refusal(found, OFFERED) is None
    assert group_advice.remark(found, "requests") == ""


def test_members_that_share_no_assignor_keep_workers_out():
    refused = group_advice.refusal(group(WORKER, WORKER, assignor="sticky"), OFFERED)
    assert refused.exit_code == 78
    assert str(refused) == "members 2, stable, assigned by sticky: workers offer range and roundrobin"
    assert refused.hint.startswith("Use another KAFKA_CONSUMER_GROUP, or stop those members (worker) first: ")
    assert refused.hint.endswith(" it takes no worker, unless all of them offer range or roundrobin, too.")


@pytest.mark.parametrize("assignor", ["", "range", "sessioned"])
def test_members_of_another_type_keep_workers_out_whatever_they_agreed_on(assignor):
    found = group(Member("task-1", None), Member("", None), kind="connect", assignor=assignor)
    refused = group_advice.refusal(found, OFFERED)
    assert refused.exit_code == 78
    assert str(refused) == "members 2, stable, of the protocol type connect: they are no consumers"
    assert "stop those members (task-1, without a name) first" in refused.hint


def test_members_that_do_not_subscribe_to_the_request_topic_alone_are_named_with_their_topics():
    mailer, reader = Member("mailer", frozenset()), Member("reader", frozenset({"responses", "requests"}))
    hint = group_advice.remark(group(WORKER, mailer, reader, mailer), "requests")
    assert hint.startswith(
        "Members subscribe to something else than requests alone: mailer (nothing), reader (requests, responses). "
    )


def test_of_many_members_and_topics_some_are_named():
    many = [Member(f"m{number}", frozenset(f"t{each}" for each in range(number))) for number in range(1, 8)]
    hint = group_advice.remark(group(*many), "requests")
    assert "m3 (t0, t1, t2), m4 (t0, t1, t2 and 1 more), m5 (t0, t1, t2 and 2 more) and 2 more. " in hint


def test_names_of_members_are_cut_and_hold_nothing_that_a_terminal_obeys():
    odd = Member("\x1b[2J\n" + "x" * 1000, frozenset({"\x1b" * 1000}))
    refused = group_advice.refusal(group(odd, assignor="\x1b" * 1000), OFFERED)
    for text in (str(refused), refused.hint, group_advice.remark(group(odd), "requests")):
        assert text.isprintable()
        assert "\\u001b" in text
        assert len(text) < 1500
