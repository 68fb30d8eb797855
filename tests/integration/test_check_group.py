"""What `check` says of a group in which others are than workers."""

from __future__ import annotations

import json

from kafka.coordinator.protocol import ConsumerProtocolMemberMetadata_v0

from tests.support import strangers


def group_lines(done):
    """Return what is said of the group, which is the last thing that is asked for."""
    lines = done.stdout.splitlines()
    return lines[next(at for at, line in enumerate(lines) if line[2:].startswith("group ")) :]


def test_check_refuses_a_group_with_another_assignor_as_run_does_until_its_members_are_gone(
    cli, kafka_bootstrap, made_topics
):
    member = {"client_id": "billing", "assignor": "cooperative-sticky"}
    with strangers.consuming(kafka_bootstrap, made_topics.group, [made_topics.requests], **member):
        checked, ran = cli("check"), cli("run", METRICS_PORT="0")
    assert (checked.returncode, ran.returncode) == (78, 78), ran.stdout
    first, hint = group_lines(checked)
    assert first == (
        f"✗ group {made_topics.group}: members 1, stable, assigned by cooperative-sticky: "
        "workers offer range and roundrobin"
    )
    assert hint.strip().startswith("Use another KAFKA_CONSUMER_GROUP, or stop those members (billing) first: ")
    done = cli("check")
    assert done.returncode == 0
    assert group_lines(done) == [f"✓ group {made_topics.group}: no member at the moment, READ permitted"]


def test_check_refuses_a_group_of_another_protocol_type_as_run_does(cli, kafka_bootstrap, made_topics):
    with strangers.joined(
        kafka_bootstrap, made_topics.group, "connect", "sessioned", b"\0\1url", client_id="connect-1"
    ):
        checked, ran = cli("check"), cli("run", METRICS_PORT="0")
    assert (checked.returncode, ran.returncode) == (78, 78), ran.stdout
    first, hint = group_lines(checked)
    assert first == (
        f"✗ group {made_topics.group}: members 1, stable, of the protocol type connect: they are no consumers"
    )
    assert hint.strip().startswith("Use another KAFKA_CONSUMER_GROUP, or stop those members (connect-1) first: ")


def test_check_warns_of_members_that_consume_something_else(cli, kafka_bootstrap, made_topics):
    topics = [made_topics.responses, made_topics.requests]
    with strangers.consuming(kafka_bootstrap, made_topics.group, topics, client_id="reader"):
        done = cli("check")
    assert done.returncode == 0, done.stdout
    first, hint = group_lines(done)
    assert first == f"! group {made_topics.group}: members 1, stable, READ permitted"
    assert f": reader ({made_topics.requests}, {made_topics.responses}). Give them another group" in hint


def test_check_prints_foreign_names_on_one_line_and_as_json(cli, kafka_bootstrap, made_topics):
    metadata = ConsumerProtocolMemberMetadata_v0.encode((0, ["other\x1b[2J"], b""))
    with strangers.joined(
        kafka_bootstrap, made_topics.group, "consumer", "range", metadata, client_id="red\x1b[31m\n✓ all is well"
    ):
        done, document = cli("check"), cli("check", "--json")
    assert done.returncode == 0, done.stdout
    assert len(group_lines(done)) == 2
    assert "\x1b" not in done.stdout + document.stdout
    assert r": red\u001b[31m\n✓ all is well (other\u001b[2J). " in group_lines(done)[1]
    assert json.loads(document.stdout)["findings"][-1]["mark"] == "weak"


def test_check_takes_a_member_whose_subscription_cannot_be_read_for_a_member(cli, kafka_bootstrap, made_topics):
    with strangers.joined(kafka_bootstrap, made_topics.group, "consumer", "range", b"\0", client_id="odd"):
        done = cli("check")
    assert done.returncode == 0, done.stdout
    assert group_lines(done) == [f"✓ group {made_topics.group}: members 1, stable, READ permitted"]
