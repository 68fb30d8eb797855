"""How Kafka's exceptions are told apart, and what an operator reads of them."""

from __future__ import annotations

import socket
import ssl

import pytest
from kafka import errors as kafka

from gigaoffice_worker.broker.error_table import (
    Kind,
    SendFailure,
    classify,
    commit_error,
    describe,
    is_fatal,
    is_timeout,
    rule,
    send_failure,
    to_worker_error,
)
from gigaoffice_worker.broker.errors import (
    CommitLostError,
    CommitMapTooLargeError,
    CommitRefusedError,
    CommitRetriableError,
    FencedError,
    TopicUnavailableError,
)
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError, WorkerError

MISSING_FILE = FileNotFoundError(2, "No such file or directory", "/etc/ca.pem")


@pytest.mark.parametrize(
    "exc, kind, ends_as, word",
    [
        (kafka.TopicAlreadyExistsError(), Kind.EXPECTED, WorkerError, "already exists"),
        (kafka.TopicAuthorizationFailedError(), Kind.FATAL, AccessError, "permission"),
        (kafka.ClusterAuthorizationFailedError(), Kind.FATAL, AccessError, "authorization"),
        (kafka.GroupAuthorizationFailedError(), Kind.FATAL, AccessError, "permission"),
        (kafka.TransactionalIdAuthorizationFailedError(), Kind.FATAL, AccessError, "authorization"),
        (kafka.SaslAuthenticationFailedError(), Kind.FATAL, AccessError, "authentication"),
        (kafka.IllegalSaslStateError(), Kind.FATAL, ConfigurationError, "no login"),
        (kafka.UnsupportedSaslMechanismError(), Kind.FATAL, AccessError, "authentication"),
        (ssl.SSLCertVerificationError("bad"), Kind.FATAL, AccessError, "certificate"),
        (kafka.InvalidReplicationFactorError(), Kind.FATAL, ConfigurationError, "replication factor"),
        (kafka.InvalidPartitionsError(), Kind.FATAL, ConfigurationError, "configuration"),
        (kafka.InvalidConfigurationError(), Kind.FATAL, ConfigurationError, "configuration"),
        (kafka.PolicyViolationError(), Kind.FATAL, ConfigurationError, "configuration"),
        (kafka.InvalidTopicError(), Kind.FATAL, ConfigurationError, "configuration"),
        (kafka.InvalidSessionTimeoutError(), Kind.FATAL, ConfigurationError, "session time-out"),
        (kafka.FencedInstanceIdError(), Kind.FATAL, ConfigurationError, "instance id"),
        (kafka.GroupMaxSizeReachedError(), Kind.FATAL, ConfigurationError, "capacity"),
        (kafka.IncompatibleBrokerVersion(), Kind.FATAL, ConfigurationError, "configuration"),
        (ssl.SSLError("bad"), Kind.FATAL, ConfigurationError, "TLS"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), Kind.RETRIABLE, UnreachableError, "broke off"),
        (MISSING_FILE, Kind.FATAL, ConfigurationError, "/etc/ca.pem"),
        (kafka.RequestTimedOutError(), Kind.RETRIABLE, UnreachableError, "in time"),
        (kafka.KafkaTimeoutError(), Kind.RETRIABLE, UnreachableError, "in time"),
        (TimeoutError(), Kind.RETRIABLE, UnreachableError, "in time"),
        (kafka.NoBrokersAvailable(), Kind.RETRIABLE, UnreachableError, "not reachable"),
        (kafka.KafkaConnectionError("111"), Kind.RETRIABLE, UnreachableError, "not reachable"),
        (kafka.BrokerNotAvailableError(), Kind.RETRIABLE, UnreachableError, "not reachable"),
        (ConnectionResetError(104, "reset"), Kind.RETRIABLE, UnreachableError, "not reachable"),
        (PermissionError(1, "Operation not permitted"), Kind.RETRIABLE, UnreachableError, "not reachable"),
        (socket.gaierror(-2, "Name or service not known"), Kind.RETRIABLE, UnreachableError, "host name"),
        (kafka.LeaderNotAvailableError(), Kind.RETRIABLE, UnreachableError, "no leader"),
        (kafka.NotControllerError(), Kind.RETRIABLE, UnreachableError, "no leader"),
        (kafka.UnknownTopicOrPartitionError(), Kind.RETRIABLE, UnreachableError, "not known yet"),
        (kafka.UnknownError(), Kind.RETRIABLE, UnreachableError, "failed to answer"),
        (kafka.CoordinatorLoadInProgressError(), Kind.RETRIABLE, UnreachableError, "not ready"),
        (kafka.ThrottlingQuotaExceededError(), Kind.RETRIABLE, UnreachableError, "quota"),
        (kafka.SecurityDisabledError(), Kind.FATAL, WorkerError, "refused"),
        (ZeroDivisionError("oops"), Kind.FATAL, WorkerError, "unexpected error: ZeroDivisionError: oops"),
    ],
)
def test_each_exception_has_a_kind_an_exit_code_and_a_cause(exc, kind, ends_as, word):
    assert classify(exc) is kind
    told = to_worker_error(exc, "creating a topic")
    assert type(told) is ends_as
    assert str(told).startswith("creating a topic: ")
    assert word in str(told)
    if kind is not Kind.EXPECTED and ends_as is not WorkerError:
        assert told.hint


def test_only_what_is_known_to_be_hopeless_is_fatal_to_a_loop():
    assert is_fatal(kafka.GroupAuthorizationFailedError())
    assert is_fatal(kafka.InvalidSessionTimeoutError())
    assert not is_fatal(kafka.KafkaError("of a kind that nobody foresaw"))
    assert not is_fatal(KeyError("node-1"))
    assert not is_fatal(kafka.TopicAlreadyExistsError())


def test_our_own_errors_keep_their_class_words_and_hint():
    own = AccessError("no entry", hint="ask")
    assert to_worker_error(own, "listing") is own
    assert classify(own) is Kind.FATAL
    assert classify(UnreachableError("nobody")) is Kind.RETRIABLE
    assert (describe(own), rule(own).hint) == ("no entry", "ask")


def test_of_a_refused_request_only_the_brokers_words_are_told():
    quoted = "Topic name is invalid: 'a b'"
    exc = kafka.InvalidTopicError(
        "Request 'CreateTopicsRequest_v3(configs=[(config_key='k', config_value='v')])' failed with response "
        f"'CreateTopicsResponse_v3(topic_errors=[(topic='a b', error_code=17, error_message=\"{quoted}\")])'."
    )
    assert describe(exc) == f"topic name refused: invalid configuration: {quoted}"


def test_a_text_of_any_length_is_told_in_short():
    assert len(describe(kafka.UnknownError("x" * 10_000))) < 400


def test_a_time_out_is_seen_through_our_own_error():
    assert is_timeout(kafka.RequestTimedOutError())
    told = to_worker_error(kafka.KafkaTimeoutError(), "connecting")
    assert not is_timeout(told)
    told.__cause__ = kafka.KafkaTimeoutError()
    assert is_timeout(told)
    assert not is_timeout(UnreachableError("connection refused"))


def test_every_exception_of_the_client_is_told_as_one_of_ours():
    known = [each for each in vars(kafka).values() if isinstance(each, type) and issubclass(each, kafka.KafkaError)]
    assert len(known) > 100
    for each in known:
        told = to_worker_error(each(), "testing")
        assert type(told) in (WorkerError, AccessError, ConfigurationError, UnreachableError)
        if classify(each()) is Kind.RETRIABLE:
            assert type(told) is UnreachableError


@pytest.mark.parametrize(
    "exc, told",
    [
        (kafka.CommitFailedError(), CommitLostError),
        (kafka.IllegalGenerationError(), CommitLostError),
        (kafka.UnknownMemberIdError(), CommitLostError),
        (kafka.RebalanceInProgressError(), CommitLostError),
        (kafka.FencedInstanceIdError(), FencedError),
        (kafka.OffsetMetadataTooLargeError(), CommitMapTooLargeError),
        (kafka.InvalidCommitOffsetSizeError(), CommitMapTooLargeError),
        (kafka.KafkaTimeoutError("no answer"), CommitRetriableError),
        (kafka.NotCoordinatorError(), CommitRetriableError),
        (kafka.UnknownTopicOrPartitionError(), CommitRetriableError),
        (kafka.GroupAuthorizationFailedError(), CommitRefusedError),
        (kafka.TopicAuthorizationFailedError(), CommitRefusedError),
        (kafka.UnknownError(), CommitRefusedError),
    ],
)
def test_each_failed_commit_says_what_it_means_to_the_partitions(exc, told):
    assert type(commit_error(exc)) is told
    assert type(exc).__name__ in str(commit_error(exc))


@pytest.mark.parametrize(
    "exc, failure",
    [
        (kafka.MessageSizeTooLargeError(), SendFailure.TOO_LARGE),
        (kafka.RecordListTooLargeError(), SendFailure.TOO_LARGE),
        (kafka.TopicAuthorizationFailedError(), SendFailure.REFUSED),
        (kafka.ClusterAuthorizationFailedError(), SendFailure.REFUSED),
        (kafka.UnknownTopicOrPartitionError(), SendFailure.REFUSED),
        (kafka.InvalidTopicError(), SendFailure.REFUSED),
        (kafka.NotEnoughReplicasError(), SendFailure.REFUSED),
        (kafka.NotEnoughReplicasAfterAppendError(), SendFailure.REFUSED),
        (kafka.PolicyViolationError(), SendFailure.REFUSED),
        (kafka.InvalidRecordError(), SendFailure.REFUSED),
        (kafka.InvalidTimestampError(), SendFailure.REFUSED),
        (TopicUnavailableError("responses"), SendFailure.REFUSED),
        (kafka.KafkaTimeoutError(), SendFailure.STUCK),
        (kafka.OutOfOrderSequenceNumberError(), SendFailure.STUCK),
        (kafka.SaslAuthenticationFailedError(), SendFailure.STUCK),
        (OSError(9, "Bad file descriptor"), SendFailure.STUCK),
        (RuntimeError("stopped"), SendFailure.STUCK),
    ],
)
def test_each_failed_send_says_whether_the_producer_is_in_doubt(exc, failure):
    assert send_failure(exc) is failure


def test_refused_timestamp_is_told_as_a_matter_of_clocks():
    told = to_worker_error(kafka.InvalidTimestampError(), "sending")
    assert "clock" in str(told)
    assert "clock" in told.hint
