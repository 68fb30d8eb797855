"""Every exception of the client in our terms: one table, and the questions that are asked of it.

Everything that is known about single exceptions is one row of `_RULES`; the first row that fits counts. A row says what
the exception means to a command or to the start, to a record that was sent, and to a commit.

| ends as | exit | when |
|---|---|---|
| ConfigurationError | 78 | the cluster refuses what was configured, or a file, key or codec of ours does not work |
| AccessError | 77 | a password, certificate or right is refused, by the cluster or (its certificate) by us |
| UnreachableError | 69 | nobody answers, or not in time; everything that may pass by itself |
| WorkerError | 1 | an exception that nobody foresaw |
"""

from __future__ import annotations

import ast
import re
import socket
import ssl
from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple

from kafka import errors as kafka

from gigaoffice_worker.broker.errors import (
    CommitLostError,
    CommitMapTooLargeError,
    CommitRefusedError,
    CommitRetriableError,
    FencedError,
    HeldBackError,
    TopicUnavailableError,
    UndecodableError,
)
from gigaoffice_worker.core.errors import AccessError, ConfigurationError, UnreachableError, WorkerError

LONGEST_TEXT: Final = 300


class Kind(StrEnum):
    """What to do about an exception: nothing, try again, or stop."""

    EXPECTED = "expected"
    RETRIABLE = "retriable"
    FATAL = "fatal"


class SendFailure(Enum):
    """What a failed send says about what to do next."""

    TOO_LARGE = auto()
    """The batch is larger than the topic takes; one record of it sent alone may pass."""
    REFUSED = auto()
    """The topic is missing, refused or short of replicas: the same producer may try again later."""
    HELD_BACK = auto()
    """It was not sent, because an older record of its partition failed: it follows behind that one."""
    STUCK = auto()
    """The producer itself is in doubt: a new one is needed."""


class Rule(NamedTuple):
    """What is known about some exceptions; `cause` and `hint` are for the operator.

    `commit` is what a commit that failed with one is raised as; None: by whether the client would try it again.
    """

    exceptions: tuple[type[BaseException], ...]
    kind: Kind
    ends_as: type[WorkerError]
    cause: str
    hint: str
    send: SendFailure = SendFailure.STUCK
    commit: type[Exception] | None = None


def _expected(cause: str, *exceptions: type[BaseException]) -> Rule:
    return Rule(exceptions, Kind.EXPECTED, WorkerError, cause, "")


def _passing(cause: str, hint: str, *exceptions: type[BaseException], send: SendFailure = SendFailure.STUCK) -> Rule:
    return Rule(exceptions, Kind.RETRIABLE, UnreachableError, cause, hint, send)


def _access(cause: str, hint: str, *exceptions: type[BaseException], send: SendFailure = SendFailure.REFUSED) -> Rule:
    return Rule(exceptions, Kind.FATAL, AccessError, cause, hint, send)


def _wrong(
    cause: str,
    hint: str,
    *exceptions: type[BaseException],
    send: SendFailure = SendFailure.STUCK,
    commit: type[Exception] | None = None,
) -> Rule:
    return Rule(exceptions, Kind.FATAL, ConfigurationError, cause, hint, send, commit)


def _refused(
    cause: str,
    hint: str,
    *exceptions: type[BaseException],
    send: SendFailure = SendFailure.STUCK,
    commit: type[Exception] | None = None,
) -> Rule:
    return Rule(exceptions, Kind.FATAL, WorkerError, cause, hint, send, commit)


BAD_CREDENTIALS: Final = _access(
    "authentication failed",
    "Check KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD against the cluster's users.",
    kafka.SaslAuthenticationFailedError,
    kafka.UnsupportedSaslMechanismError,
    kafka.UnacceptableCredentialError,
    send=SendFailure.STUCK,
)

NO_LOGIN: Final = _wrong(
    "this port asks for no login",
    "Leave KAFKA_SASL_MECHANISM unset, or name the port that asks for one in KAFKA_BOOTSTRAP_SERVERS.",
    kafka.IllegalSaslStateError,
)

_RULES: Final = (
    NO_LOGIN,
    _expected("topic already exists", kafka.TopicAlreadyExistsError),
    BAD_CREDENTIALS,
    _access(
        "authorization failed: no permission for the topic",
        "Grant the user DESCRIBE and, to create topics, CREATE; READ on the request topic, WRITE on the other two.",
        kafka.TopicAuthorizationFailedError,
    ),
    _access(
        "authorization failed: no permission for the consumer group",
        "Grant the user READ on the group KAFKA_CONSUMER_GROUP.",
        kafka.GroupAuthorizationFailedError,
    ),
    _access(
        "authorization failed: no permission on the cluster",
        "Grant the user CREATE on the topics or the cluster, or create them otherwise and set "
        "KAFKA_TOPIC_AUTO_CREATE=false.",
        kafka.ClusterAuthorizationFailedError,
    ),
    _access("authorization failed: permission denied", "Grant the user what it needs.", kafka.AuthorizationError),
    _access(
        "the broker's certificate is not trusted",
        "Check KAFKA_SSL_CAFILE, the certificate's names and its dates.",
        ssl.SSLCertVerificationError,
        send=SendFailure.STUCK,
    ),
    _wrong(
        "replication factor refused",
        "Set KAFKA_TOPIC_…_REPLICATION to no more than the number of brokers.",
        kafka.InvalidReplicationFactorError,
        kafka.InvalidReplicationAssignmentError,
    ),
    _wrong(
        "partition count refused by the cluster: invalid configuration",
        "Check KAFKA_TOPIC_…_PARTITIONS.",
        kafka.InvalidPartitionsError,
    ),
    _wrong(
        "topic configuration refused",
        "Check KAFKA_TOPIC_…_CONFIG against the cluster's version and policy.",
        kafka.InvalidConfigurationError,
        kafka.PolicyViolationError,
        send=SendFailure.REFUSED,
    ),
    _wrong(
        "topic name refused: invalid configuration",
        "Check the names in KAFKA_TOPIC_….",
        kafka.InvalidTopicError,
        send=SendFailure.REFUSED,
    ),
    _wrong(
        "session time-out refused: configuration outside of the broker's limits",
        "Set KAFKA_CONSUMER_SESSION_TIMEOUT_MS between group.min.session.timeout.ms and group.max.session.timeout.ms.",
        kafka.InvalidSessionTimeoutError,
    ),
    _wrong(
        "another member of the group holds the group instance id: invalid configuration",
        "Give each worker a KAFKA_CONSUMER_GROUP_INSTANCE_ID of its own.",
        kafka.FencedInstanceIdError,
        kafka.UnreleasedInstanceIdError,
        commit=FencedError,
    ),
    _wrong(
        "consumer group refused: invalid configuration",
        "Check KAFKA_CONSUMER_GROUP, and that all members of the group are workers of this kind.",
        kafka.InvalidGroupIdError,
        kafka.InconsistentGroupProtocolError,
        kafka.GroupIdNotFoundError,
    ),
    _wrong(
        "cluster capacity exceeded: the group takes no more members",
        "Stop other members or raise the broker's group.max.size.",
        kafka.GroupMaxSizeReachedError,
    ),
    _wrong(
        "the cluster does not know what is asked of it: invalid configuration",
        "Apache Kafka 2.1 or newer is needed.",
        kafka.UnsupportedVersionError,
        kafka.IncompatibleBrokerVersion,
        kafka.UnrecognizedBrokerVersion,
    ),
    _wrong(
        "request refused: invalid configuration",
        "Check the configuration with `gigaoffice-worker check`.",
        kafka.InvalidRequestError,
        kafka.InvalidRequiredAcksError,
        kafka.KafkaConfigurationError,
        kafka.IllegalArgumentError,
        kafka.UnsupportedCodecError,
        kafka.UnsupportedCompressionTypeError,
    ),
    _passing(
        "the connection broke off during TLS",
        "Check that the brokers run, and that the port speaks TLS.",
        *(ssl.SSLEOFError, ssl.SSLZeroReturnError),
    ),
    _wrong(
        "TLS could not be set up: invalid configuration",
        "Check the KAFKA_SSL_… files, the key's password, and that the port speaks TLS.",
        ssl.SSLError,
    ),
    _passing(
        "no answer in time",
        "Check that the brokers run and can be reached; raise KAFKA_TOPIC_CREATION_TIMEOUT if they are slow.",
        kafka.KafkaTimeoutError,
        kafka.RequestTimedOutError,
        TimeoutError,
    ),
    _passing(
        "a quota of the cluster delays it",
        "Wait, or raise controller_mutation_rate for the user or the client id.",
        kafka.ThrottlingQuotaExceededError,
    ),
    _passing("host name not known", "Check KAFKA_BOOTSTRAP_SERVERS and the name service.", socket.gaierror),
    _passing(
        "cluster not reachable",
        "Check KAFKA_BOOTSTRAP_SERVERS, the brokers, their advertised listeners, and whether the port expects TLS.",
        kafka.NoBrokersAvailable,
        kafka.KafkaConnectionError,
        kafka.NodeNotReadyError,
        kafka.BrokerNotAvailableError,
        kafka.NetworkExceptionError,
        kafka.Cancelled,
        OSError,
    ),
    _passing("no leader yet", "Check that the brokers run.", kafka.LeaderNotAvailableError, kafka.NotControllerError),
    _passing(
        "topic not known yet",
        "Check that the topic exists.",
        kafka.UnknownTopicOrPartitionError,
        TopicUnavailableError,
        send=SendFailure.REFUSED,
    ),
    _passing(
        "held back behind an older record",
        "See to what that one fails with.",
        HeldBackError,
        send=SendFailure.HELD_BACK,
    ),
    _passing(
        "not enough replicas in sync",
        "Check that all brokers run, and the topic's min.insync.replicas.",
        kafka.NotEnoughReplicasError,
        kafka.NotEnoughReplicasAfterAppendError,
        send=SendFailure.REFUSED,
    ),
    _refused(
        "the record is larger than the topic takes",
        "Raise the topic's max.message.bytes, or send less.",
        kafka.MessageSizeTooLargeError,
        kafka.RecordListTooLargeError,
        send=SendFailure.TOO_LARGE,
    ),
    _refused(
        "the topic refuses the record",
        "Check the topic's configuration: a compacted topic takes no record without a key.",
        kafka.InvalidRecordError,
        send=SendFailure.REFUSED,
    ),
    _refused(
        "the brokers refuse the record's timestamp: this machine's clock and theirs are too far apart",
        "Set the clock of this machine, or the brokers'; what they take is the topic's message.timestamp.after.max.ms.",
        kafka.InvalidTimestampError,
        send=SendFailure.REFUSED,
    ),
    _refused(
        "the membership in the group is over",
        "Another member took the partitions over.",
        kafka.CommitFailedError,
        kafka.IllegalGenerationError,
        kafka.UnknownMemberIdError,
        # Nothing but polling ends a rebalance, and then somebody else may own the partitions.
        kafka.RebalanceInProgressError,
        commit=CommitLostError,
    ),
    _refused(
        "the broker takes less metadata with a commit",
        "Raise the broker's offset.metadata.max.bytes.",
        kafka.OffsetMetadataTooLargeError,
        kafka.InvalidCommitOffsetSizeError,
        commit=CommitMapTooLargeError,
    ),
    _passing(
        "the cluster failed to answer",
        "Check the brokers' logs.",
        kafka.UnknownError,
        kafka.KafkaStorageError,
        kafka.ReassignmentInProgressError,
        kafka.StaleBrokerEpochError,
    ),
)

# Errors of the network are OSErrors too, but name no file.
_FILE: Final = _wrong(
    "a configured file cannot be read", "Check the KAFKA_SSL_… paths and their permissions.", FileNotFoundError
)
_RETRIABLE: Final = _passing("the cluster is not ready", "Check that the brokers run.", kafka.KafkaError)
_REFUSED: Final = _refused("the cluster refused", "Check the brokers' logs.", kafka.KafkaError)
_UNFORESEEN: Final = Rule((), Kind.FATAL, WorkerError, "unexpected error", "")
# The client gives up finding a broker only when the time for it is used up.
_TIMEOUTS: Final = (kafka.NoBrokersAvailable, kafka.KafkaTimeoutError, kafka.RequestTimedOutError, TimeoutError)
_BROKERS_WORDS: Final = re.compile(r"""error_message=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def rule(exc: BaseException) -> Rule:
    """Return what is known about an exception, our own WorkerErrors included."""
    if isinstance(exc, WorkerError):
        kind = Kind.RETRIABLE if isinstance(exc, UnreachableError) else Kind.FATAL
        return Rule((type(exc),), kind, type(exc), str(exc), exc.hint)
    if isinstance(exc, OSError) and exc.filename:
        return _FILE
    for each in _RULES:
        if isinstance(exc, each.exceptions):
            return each
    if isinstance(exc, kafka.KafkaError):
        return _RETRIABLE if exc.retriable else _REFUSED
    return _UNFORESEEN


def classify(exc: BaseException) -> Kind:
    """Say whether an exception is expected, may pass by itself, or needs somebody to step in."""
    return rule(exc).kind


def is_fatal(exc: BaseException) -> bool:
    """Say whether trying again is known to be pointless; False for what nobody foresaw."""
    known = rule(exc)
    return known.kind is Kind.FATAL and known.ends_as is not WorkerError


def is_timeout(exc: BaseException) -> bool:
    """Say whether an exception, or what it was made of, is an answer that did not come in time."""
    return isinstance(exc, _TIMEOUTS) or isinstance(exc.__cause__, _TIMEOUTS)


def send_failure(exc: BaseException) -> SendFailure:
    """Say what a failed send means for the record and for the producer."""
    return rule(exc).send


def commit_error(exc: Exception) -> Exception:
    """Return what a commit, or the question before it, that failed with an exception of the client is raised as.

    What is no error of Kafka's comes from the network, TLS among it, and may pass.
    """
    passes = getattr(exc, "retriable", not isinstance(exc, kafka.KafkaError))
    kind = rule(exc).commit or (CommitRetriableError if passes else CommitRefusedError)
    return kind(f"{type(exc).__name__}: {exc}")


def describe(exc: BaseException) -> str:
    """Return the cause in our words, and behind it those of the broker or the exception."""
    if isinstance(exc, WorkerError):
        return str(exc)
    own_words, cause = _text(exc), rule(exc).cause
    return f"{cause}: {own_words}" if own_words else cause


def to_worker_error(exc: BaseException, during: str) -> WorkerError:
    """Return the exception that ends a command; `during` says what was being done, as in "listing topics"."""
    if isinstance(exc, WorkerError):
        return exc
    if isinstance(exc, UndecodableError):
        hint = "Nothing behind it in its partition can be read. Choose other partitions, or what is newer."
        return WorkerError(f"{during}: {exc}", hint=hint)
    known = rule(exc)
    return known.ends_as(f"{during}: {describe(exc)}", hint=known.hint)


def _text(exc: BaseException) -> str:
    """Return an exception's own words: of a refused request only the broker's, since all of it would be pages."""
    text = str(exc)
    if words := _BROKERS_WORDS.search(text):
        return str(ast.literal_eval(words[1]))[:LONGEST_TEXT]
    if isinstance(exc, kafka.KafkaError):
        return f"{type(exc).__name__} {' '.join(map(str, exc.args))}".strip()[:LONGEST_TEXT]
    return f"{type(exc).__name__}: {text}"[:LONGEST_TEXT].removesuffix(": ")
