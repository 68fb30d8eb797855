"""The topic workflow over a cluster that does what it is told to do wrong."""

from __future__ import annotations

import dataclasses
import threading

import pytest
from kafka import errors as kafka
from structlog.testing import capture_logs

from gigaoffice_worker.broker.admin import TopicState
from gigaoffice_worker.broker.topics import ensure_topics
from gigaoffice_worker.broker.verification import TopicVerifier
from gigaoffice_worker.config import load
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError, WorkerError
from gigaoffice_worker.engine.topic_watch import pause

REQUESTS, RESPONSES, DLQ = "gigaoffice-requests", "gigaoffice-responses", "gigaoffice-dlq"


class Cluster:
    """Stands for a cluster and for every administration client of it.

    `failures` are raised one after the other by the method of their name; a created topic is seen after
    `invisible_for` listings, and has no leader for as many listings as `leaderless_for` says.
    """

    def __init__(self, *, invisible_for=0, leaderless_for=0, limits=None, **failures):
        self.topics = {}
        self.created = []
        self.times = []
        self.open = 0
        self._failures = {name: list(errors) for name, errors in failures.items()}
        self._invisible_for = invisible_for
        self._leaderless_for = leaderless_for
        self._limits = limits
        # Seconds for which a quota leaves everything unanswered behind each creation.
        self.throttled = 0.0

    def __call__(self, config, timeout):
        self._fail("connect")
        self.times.append(timeout)
        self.open += 1
        return self

    def _fail(self, name):
        if self._failures.get(name):
            raise self._failures[name].pop(0)

    def renew(self, timeout):
        self.times.append(timeout)

    def close(self):
        self.open -= 1

    def describe(self, names):
        self._fail("describe")
        seen = {}
        for name in names:
            if name not in self.topics:
                continue
            state, age = self.topics[name]
            self.topics[name] = (state, age + 1)
            if age >= self._invisible_for:
                led = age >= self._invisible_for + self._leaderless_for
                seen[name] = dataclasses.replace(state, has_leaders=led)
        return seen

    def create(self, spec, settings, *, validate_only):
        self._fail("create")
        self.created.append((spec.name, dict(settings)))
        if not validate_only:
            self.topics[spec.name] = (TopicState(spec.partitions, spec.replication, True, frozenset()), 0)
        return self.throttled

    def max_message_bytes(self, names):
        self._fail("max_message_bytes")
        return dict(self._limits or {})


def run(cluster, stop=None, **environ):
    config = load(
        {
            "KAFKA_TOPIC_CREATION_RETRIES": "2",
            "KAFKA_TOPIC_CREATION_RETRY_DELAY": "0",
            "KAFKA_TOPIC_CREATION_TIMEOUT": "2",
            **environ,
        }
    )
    errors = []
    with capture_logs() as logs:
        try:
            return ensure_topics(config, cluster, on_error=errors.append, stop=stop), errors, logs
        except WorkerError as error:
            return error, errors, logs
        finally:
            assert cluster.open == 0


def warnings(logs):
    return [(entry["event"], entry.get("topic")) for entry in logs if entry["log_level"] == "warning"]


def test_a_new_topic_that_is_not_visible_yet_is_waited_for():
    report, errors, logs = run(Cluster(invisible_for=3))
    assert report.missing == report.without_leader == ()
    assert (errors, warnings(logs)) == ([], [])


def test_a_new_topic_without_a_leader_yet_is_waited_for():
    report, _, logs = run(Cluster(leaderless_for=3))
    assert report.without_leader == ()
    assert warnings(logs) == []


def test_a_topic_that_gets_no_leader_is_a_warning_and_no_reason_to_stop():
    report, _, logs = run(Cluster(leaderless_for=10_000), KAFKA_TOPIC_CREATION_TIMEOUT="0.5")
    assert report.existing == report.without_leader == (REQUESTS, RESPONSES, DLQ)
    assert warnings(logs) == [
        ("Topic verification: topic has a partition without a leader", name) for name in report.existing
    ]


def test_a_topic_that_stays_invisible_is_reported_as_missing():
    report, _, logs = run(Cluster(invisible_for=10_000), KAFKA_TOPIC_CREATION_TIMEOUT="0.5")
    assert report.missing == (REQUESTS, RESPONSES, DLQ)
    assert len(warnings(logs)) == 3


def test_attempts_that_may_succeed_are_repeated_and_counted_by_kind():
    cluster = Cluster(create=[kafka.RequestTimedOutError(), kafka.NotControllerError()])
    report, errors, logs = run(cluster)
    assert report.missing == ()
    assert errors == ["timeout", "retriable"]
    assert warnings(logs) == [("Timeout creating topic", REQUESTS), ("Topic creation failed, trying again", REQUESTS)]
    assert [name for name, _ in cluster.created] == [REQUESTS, RESPONSES, DLQ]


def test_every_topic_has_all_attempts_and_every_attempt_all_the_time():
    failures = [kafka.NotControllerError(), kafka.NotControllerError()]
    cluster = Cluster()
    fail = iter([*failures, None, *failures, None, *failures, None])
    create = cluster.create

    def failing(spec, settings, *, validate_only):
        if error := next(fail):
            raise error
        return create(spec, settings, validate_only=validate_only)

    cluster.create = failing
    report, errors, _ = run(cluster)
    assert report.missing == ()
    assert errors == ["retriable"] * 6
    assert set(cluster.times) == {2.0}
    assert len(cluster.times) == 1 + 9 + 1


def test_attempts_used_up_end_unreachable_after_an_error_line():
    error, errors, logs = run(Cluster(create=[kafka.RequestTimedOutError()] * 3))
    assert type(error) is UnreachableError
    assert errors == ["timeout"] * 3
    assert [event for event, _ in warnings(logs)] == ["Timeout creating topic"] * 3
    assert logs[-1]["event"] == "Topic creation failed"
    assert (logs[-1]["log_level"], logs[-1]["attempt"], logs[-1]["topic"]) == ("error", 3, REQUESTS)


@pytest.mark.parametrize(
    "step, event",
    [
        ("connect", "Fatal error listing topics"),
        ("describe", "Fatal error listing topics"),
        ("create", "Fatal error creating topic"),
    ],
)
def test_what_an_operator_must_mend_is_not_repeated(step, event):
    error, _, logs = run(Cluster(**{step: [kafka.ClusterAuthorizationFailedError()]}))
    assert type(error) is AccessError
    assert logs[-1]["event"] == event
    assert (logs[-1]["log_level"], logs[-1]["attempt"]) == ("error", 1)
    assert "authorization" in logs[-1]["error"]
    assert "permission" in logs[-1]["error"]


def test_an_error_that_nobody_foresaw_is_fatal_and_ends_as_ours():
    error, errors, _ = run(Cluster(create=[ZeroDivisionError("oops")]))
    assert type(error) is WorkerError
    assert error.exit_code == 1
    assert errors == ["fatal"]


def test_without_describe_configs_limits_are_unknown_and_dead_letters_have_the_usual_room():
    refused = [kafka.ClusterAuthorizationFailedError(), kafka.ClusterAuthorizationFailedError()]
    cluster = Cluster(max_message_bytes=refused)
    report, errors, logs = run(cluster)
    assert dict(cluster.created)[DLQ] == {"max.message.bytes": str(8_388_608 + 1_048_576)}
    assert report.limits == dict.fromkeys((REQUESTS, RESPONSES, DLQ))
    assert (errors, warnings(logs)) == ([], [])


def test_without_describe_configs_dead_letters_follow_what_requests_are_created_with():
    cluster = Cluster(max_message_bytes=[kafka.TopicAuthorizationFailedError()])
    run(cluster, KAFKA_TOPIC_REQUESTS_CONFIG="max.message.bytes=20000000")
    assert dict(cluster.created)[DLQ] == {"max.message.bytes": str(20_000_000 + 65_536)}


@pytest.mark.parametrize(
    "largest_value, requests, room",
    [(8_388_608, 1_048_588, 9_437_184), (2_000_000, 1_048_588, 3_048_576), (1_000_000, 3_000_000, 3_065_536)],
)
def test_a_dead_letter_has_room_for_its_request_unpacked_and_as_the_request_topic_took_it(
    largest_value, requests, room
):
    cluster = Cluster(limits={REQUESTS: requests})
    run(cluster, WORKER_MAX_REQUEST_BYTES=str(largest_value))
    assert dict(cluster.created)[DLQ] == {"max.message.bytes": str(room)}


def test_the_dead_letter_limit_stays_a_number_that_kafka_takes():
    cluster = Cluster(limits={REQUESTS: 2**31 - 1})
    run(cluster)
    assert dict(cluster.created)[DLQ] == {"max.message.bytes": str(2**31 - 1)}


def test_a_stop_before_or_between_attempts_ends_the_workflow_without_a_report():
    stop = threading.Event()
    stop.set()
    cluster = Cluster()
    assert run(cluster, stop=stop)[0] is None
    assert cluster.created == []


def test_an_invalid_topic_is_told_in_the_guides_words_before_the_cluster_is_asked():
    config = load({"KAFKA_TOPIC_AUTO_CREATE": "false"})
    dlq = dataclasses.replace(config.topics.dlq, partitions=0, name="a b")
    config = dataclasses.replace(config, topics=dataclasses.replace(config.topics, dlq=dlq))
    cluster = Cluster()
    with capture_logs(), pytest.raises(ConfigurationError) as caught:
        ensure_topics(config, cluster)
    assert "Topic name contains invalid characters" in str(caught.value)
    assert "Partition count must be greater than 0 for topic a b" in str(caught.value)
    assert cluster.times == []


def test_a_verification_that_fails_raises_ours_and_leaves_nothing_open():
    cluster = Cluster(describe=[kafka.KafkaTimeoutError(), ZeroDivisionError()])
    verifier = TopicVerifier(load({}), cluster)
    with pytest.raises(UnreachableError, match="verifying the topics: no answer in time"):
        verifier.verify()
    with pytest.raises(WorkerError, match="unexpected error"):
        verifier.verify()
    assert cluster.open == 0


def test_a_verification_warns_of_what_the_report_before_did_not_say():
    cluster = Cluster()
    config = load({})
    verifier = TopicVerifier(config, cluster)
    with capture_logs() as logs:
        first = verifier.verify()
        second = verifier.verify(first)
        cluster.create(config.topics.requests, {}, validate_only=False)
        third = verifier.verify(second)
        del cluster.topics[REQUESTS]
        verifier.verify(third)
    verifier.close()
    assert warnings(logs) == [("Topic verification: topic is missing", REQUESTS)]


def test_what_is_missing_or_out_of_reach_is_looked_at_again_soon_and_a_refused_login_is_not():
    cluster, config = Cluster(), load({})
    verifier = TopicVerifier(config, cluster)
    missing = verifier.verify()
    for spec in config.topics:
        cluster.create(spec, {}, validate_only=False)
    found = verifier.verify(missing)
    verifier.close()
    gone, refused = UnreachableError("no broker"), AccessError("refused")
    assert pause(missing, None) == pause(found, gone) == pause(missing, gone) <= 2.0
    assert pause(found, None) == pause(found, refused) == pause(missing, refused) >= 10.0


def test_a_quota_that_throttles_creation_is_named_and_waited_out():
    class Waits(threading.Event):
        """Notes what is waited for, and waits for nothing."""

        waited = 0.0

        def wait(self, timeout=None):
            self.waited += timeout or 0.0
            return False

    cluster, stop = Cluster(), Waits()
    cluster.throttled = 7.5
    _, _, logs = run(cluster, stop)
    assert stop.waited == 3 * 7.5
    told = [line for line in logs if "throttled" in line["event"]]
    assert [(line["log_level"], line["topic"], line["seconds"]) for line in told] == [
        ("warning", name, 7.5) for name in (REQUESTS, RESPONSES, DLQ)
    ]
    assert "controller_mutation_rate" in told[0]["hint"]
