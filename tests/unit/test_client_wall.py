"""The wall around the client's insides: every private name and patched function, on objects of the client itself.

A release of kafka-python that renames one of them fails here, with the name in the message.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import socket
import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path

import kafka.conn
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.conn import BrokerConnection, ConnectionStates
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.protocol import ConsumerProtocolMemberMetadata_v0
from kafka.errors import CoordinatorLoadInProgressError
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.transaction_manager import ProducerIdAndEpoch
from kafka.protocol.admin import DescribeGroupsResponse
from kafka.protocol.metadata import MetadataRequest
from kafka.record import default_records, legacy_records, memory_records
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from gigaoffice_worker.broker import kafka_python
from gigaoffice_worker.broker.kafka_python.administration import (
    Deadline,
    PatientAdminClient,
    PunctualClient,
    subscription,
)
from gigaoffice_worker.broker.kafka_python.clock import STEADY
from gigaoffice_worker.broker.kafka_python.sender import force_stop
from tests.support.batches import batch

PACKAGE = Path(kafka_python.__file__).parents[3]
WALL = Path(kafka_python.__file__).parent
AT = TopicPartition("requests", 0)
NOBODY = {"bootstrap_servers": "127.0.0.1:1", "api_version": (2, 1, 0), "metrics_enabled": False}

ON_A_CONSUMER = (
    "_poll_once",
    "_client._closed",
    "_client._conns",
    "_client._lock",
    "_client._maybe_refresh_metadata",
    "_client._wake_lock",
    "_client._wake_w",
    "_client._waking",
    "_client.cluster._bootstrap_brokers",
    "_client.cluster._generate_bootstrap_brokers",
    "_client.cluster._last_successful_refresh_ms",
    "_client.cluster.brokers",
    "_client.cluster.config",
    "_client.cluster.is_bootstrap",
    "_client.cluster.request_update",
    "_client._pending_completion",
    "_client.poll",
    "_client.wakeup",
    "_coordinator._generation.generation_id",
    "_coordinator._generation.member_id",
    "_coordinator._offset_fetch_futures",
    "_coordinator._send_offset_commit_request",
    "_coordinator.coordinator_unknown",
    "_coordinator.ensure_coordinator_ready",
    "_coordinator.fetch_committed_offsets",
    "_coordinator.heartbeat.last_receive",
    "_coordinator.heartbeat.last_send",
    "_coordinator.join_future",
    "_coordinator.request_rejoin",
    "_fetcher.PartitionRecords",
    "_fetcher._append",
    "_fetcher._next_partition_records",
    "_fetcher._parse_fetched_data",
    "_fetcher._send_list_offsets_requests",
    "_fetcher.beginning_offsets",
    "_fetcher.end_offsets",
    "_fetcher.fetched_records",
    "_update_fetch_positions",
    "_subscription.assignment",
)
ON_A_PRODUCER = (
    "_accumulator._batches",
    "_accumulator._closed",
    "_accumulator._incomplete.add",
    "_accumulator._tp_lock",
    "_accumulator.abort_incomplete_batches",
    "_accumulator.config",
    "_closed",
    "_metadata.leader_for_partition",
    "_metadata.request_update",
    "_sender.add_topic",
    "_metadata.partitions_for_topic",
    "_sender._client._conns",
    "_sender._client._sending",
    "_sender._client.in_flight_request_count",
    "_sender._client.poll",
    "_sender._client.send",
    "_sender._complete_batch",
    "_sender._failed_produce",
    "_sender._record_exceptions_fn",
    "_sender.force_close",
    "_sender.wakeup",
    "_transaction_manager.has_fatal_error",
    "_transaction_manager.has_producer_id",
    "_transaction_manager.last_error",
    "_unregister_cleanup",
)
ON_AN_ADMIN = (
    "_client.api_version",
    "_client.least_loaded_node",
    "_client.poll",
)
ELSEWHERE = ("_buffer", "_unpack_records")
ON_A_BATCH_BUILDER = (
    *("_batch_size", "_buffer", "_first_timestamp", "_last_offset", "_max_timestamp", "_num_records"),
)
ON_A_BATCH = (
    *("_buffer", "_maybe_uncompress", "_num_records", "_pos", "base_offset", "first_timestamp", "has_producer_id"),
    *("is_control_batch", "last_offset", "leader_epoch", "max_timestamp", "next_offset", "producer_id"),
    *("records_count", "size_in_bytes", "timestamp_type", "validate_crc"),
)
ON_A_FETCH = (
    *("_consume_aborted_transactions_up_to", "_contains_abort_marker", "_is_batch_aborted", "_maybe_skip_record"),
    *("_maybe_raise_next_inline_exception", "_unpack_records", "drain"),
)

# What is replaced, or called with arguments that the public interface does not promise.
SIGNATURES = {
    "kafka.admin:KafkaAdminClient._describe_consumer_groups_process_response": ["self", "response"],
    "kafka.client_async:KafkaClient._maybe_refresh_metadata": ["self", "wakeup"],
    "kafka.client_async:KafkaClient.wakeup": ["self"],
    "kafka.cluster:ClusterMetadata.brokers": ["self"],
    "kafka.conn:BrokerConnection.close": ["self", "error"],
    "kafka.conn:BrokerConnection.connected": ["self"],
    "kafka.conn:BrokerConnection.connecting": ["self"],
    "kafka.client_async:KafkaClient.poll": ["self", "timeout_ms", "future"],
    "kafka.client_async:KafkaClient.send": ["self", "node_id", "request", "wakeup", "request_timeout_ms"],
    "kafka.producer.sender:Sender._failed_produce": ["self", "batches", "node_id", "error"],
    "kafka.producer.sender:Sender._complete_batch": ["self", "batch", "partition_response"],
    "kafka.producer.sender:Sender._record_exceptions_fn": [
        "self",
        "top_level_exception",
        "record_errors",
        "error_message",
    ],
    "kafka.producer.record_accumulator:RecordAccumulator.abort_incomplete_batches": ["self"],
    "kafka.producer.producer_batch:ProducerBatch.__init__": ["self", "tp", "records", "now"],
    "kafka.record.util:encode_varint": ["value", "write"],
    "kafka.record.default_records:DefaultRecordBatchBuilder._maybe_compress": ["self"],
    "kafka.consumer.group:KafkaConsumer._poll_once": ["self", "timer", "max_records", "update_offsets"],
    "kafka.consumer.group:KafkaConsumer._update_fetch_positions": ["self", "timeout_ms"],
    "kafka.consumer.fetcher:Fetcher.fetched_records": ["self", "max_records", "update_offsets"],
    "kafka.consumer.fetcher:Fetcher._append": ["self", "drained", "part", "max_records", "update_offsets"],
    "kafka.consumer.fetcher:Fetcher._parse_fetched_data": ["self", "completed_fetch"],
    "kafka.consumer.fetcher:Fetcher._send_list_offsets_requests": ["self", "timestamps"],
    "kafka.consumer.fetcher:Fetcher.beginning_offsets": ["self", "partitions", "timeout_ms"],
    "kafka.consumer.fetcher:Fetcher.end_offsets": ["self", "partitions", "timeout_ms"],
    "kafka.consumer.fetcher:Fetcher.PartitionRecords.take": ["self", "n"],
    "kafka.consumer.fetcher:Fetcher.PartitionRecords.drain": ["self"],
    "kafka.consumer.fetcher:Fetcher.PartitionRecords._unpack_records": [
        *("self", "tp", "records", "key_deserializer", "value_deserializer"),
    ],
    "kafka.record.memory_records:MemoryRecords.next_batch": ["self", "_min_slice", "_magic_offset"],
    "kafka.record.util:decode_varint": ["buffer", "pos"],
    "kafka.coordinator.base:BaseCoordinator.ensure_coordinator_ready": ["self", "timeout_ms"],
    "kafka.coordinator.consumer:ConsumerCoordinator.fetch_committed_offsets": ["self", "partitions", "timeout_ms"],
    "kafka.coordinator.consumer:ConsumerCoordinator._send_offset_commit_request": ["self", "offsets"],
    "kafka.admin.client:KafkaAdminClient.send_request": ["self", "request", "node_id"],
    "kafka.util:Timer.__init__": ["self", "timeout_ms", "error_message", "start_at"],
}


@pytest.fixture(scope="module")
def consumer():
    client = KafkaConsumer(**NOBODY, group_id="guard", enable_auto_commit=False)
    yield client
    client.close(autocommit=False, timeout_ms=0)


@pytest.fixture(scope="module")
def producer():
    client = KafkaProducer(**NOBODY, acks="all", enable_idempotence=True)
    yield client
    # Without an id its thread asks for one for ever, and disturbs the tests of other modules in this process.
    client._transaction_manager.set_producer_id_and_epoch(ProducerIdAndEpoch(1, 0))
    assert force_stop(client, 60.0)


@pytest.fixture(scope="module")
def admin():
    class NeverAsking(PatientAdminClient):
        def _refresh_controller_id(self, timeout_ms=30000):
            """Nobody is there to be asked."""

    client = NeverAsking(
        bootstrap_servers="127.0.0.1:1",
        api_version=(2, 1, 0),
        kafka_client=lambda **configs: PunctualClient(Deadline(5.0), **configs),
    )
    yield client
    client.close()


@pytest.mark.parametrize("name", ON_A_CONSUMER)
def test_consumer_has_what_we_touch(consumer, name):
    attrgetter(name)(consumer)


@pytest.mark.parametrize("name", ON_A_PRODUCER)
def test_producer_has_what_we_touch(producer, name):
    attrgetter(name)(producer)


@pytest.mark.parametrize("name", ON_AN_ADMIN)
def test_administration_client_has_what_we_touch(admin, name):
    attrgetter(name)(admin)


def test_error_of_a_groups_description_is_raised_as_it_is(admin):
    not_told = (31,)  # how the client reads the rights that a broker leaves out: the highest bit alone
    loading = DescribeGroupsResponse[3](throttle_time_ms=0, groups=[(14, "g", "", "", "", [], not_told)])
    with pytest.raises(CoordinatorLoadInProgressError):
        admin._describe_consumer_groups_process_response(loading)
    found = DescribeGroupsResponse[3](throttle_time_ms=0, groups=[(0, "g", "Empty", "consumer", "", [], (3,))])
    assert admin._describe_consumer_groups_process_response(found)["authorized_operations"] == (3,)


def test_group_of_another_type_is_described_as_it_is(admin):
    task = ("connect-1-id", "connect-1", "/10.0.0.1", b"\0\1url", b"")
    response = DescribeGroupsResponse[2](0, [(0, "g", "Stable", "connect", "sessioned", [task])])
    found = admin._describe_consumer_groups_process_response(response)
    assert (found["state"], found["protocol_type"], found["protocol"]) == ("Stable", "connect", "sessioned")
    assert found["members"] == [
        {
            "member_id": "connect-1-id",
            "client_id": "connect-1",
            "client_host": "/10.0.0.1",
            "member_metadata": b"\0\1url",
            "member_assignment": b"",
        }
    ]


@pytest.mark.parametrize("version", [0, 1, 3])
def test_subscription_is_read_whatever_a_newer_version_adds(version):
    metadata = ConsumerProtocolMemberMetadata_v0.encode((version, ["b", "a"], b""))
    assert subscription(metadata + b"\0\0\0\0" * version) == {"a", "b"}
    assert subscription(ConsumerProtocolMemberMetadata_v0.encode((version, None, None))) == set()


def test_subscription_that_cannot_be_read_is_none():
    whole = ConsumerProtocolMemberMetadata_v0.encode((0, ["requests"], b""))
    for metadata in (b"", *(whole[:end] for end in range(len(whole))), whole.replace(b"requests", b"\xff" * 8)):
        assert subscription(metadata) is None


@pytest.mark.parametrize("target", SIGNATURES)
def test_what_we_replace_or_call_takes_the_same_arguments(target):
    module, _, name = target.partition(":")
    found = attrgetter(name)(importlib.import_module(module))
    assert list(inspect.signature(found).parameters) == SIGNATURES[target]


def test_position_is_read_without_asking(consumer):
    consumer.assign([AT])
    consumer.seek(AT, 42)
    assert consumer._subscription.assignment[AT].position.offset == 42


def test_batches_have_what_we_touch():
    batch = ProducerBatch(AT, MemoryRecordsBuilder(2, 0, 1000))
    assert batch.topic_partition == AT
    assert batch.created == batch.last_attempt
    told = []
    batch.produce_future.add_callback(told.append)
    batch.complete(7, -1)
    assert told == [(7, -1, None)]


def test_builders_of_batches_have_what_we_touch():
    records = MemoryRecordsBuilder(2, 0, 1000)
    assert records._next_offset == 0
    for name in ON_A_BATCH_BUILDER:
        attrgetter(name)(records._builder)
    records.close()
    assert records._builder is None


def test_fetched_records_show_their_bytes():
    assert MemoryRecords(b"bytes")._buffer == b"bytes"
    parameters = list(inspect.signature(Fetcher.PartitionRecords.__init__).parameters)
    assert parameters[:4] == ["self", "fetch_offset", "tp", "records"]


def test_connections_tell_when_they_began_and_what_they_are_asked():
    """In flight are (future, when it was sent, when it times out), by correlation id."""
    connection = BrokerConnection("127.0.0.1", 1, socket.AF_INET, api_version=(2, 1, 0))
    assert connection.last_attempt == 0
    assert connection.in_flight_requests == {}
    connection.state = ConnectionStates.CONNECTED
    connection._send(MetadataRequest[1]([]), blocking=False)
    [(_, sent, _)] = connection.in_flight_requests.values()
    assert sent == pytest.approx(STEADY.time() if kafka.conn.time is STEADY else time.time(), abs=5)


@pytest.mark.parametrize("name", ON_A_BATCH)
def test_fetched_batches_have_what_we_touch(name):
    attrgetter(name)(default_records.DefaultRecordBatch(batch([])))


@pytest.mark.parametrize("name", ON_A_FETCH)
def test_part_of_a_fetch_has_what_we_touch(name):
    attrgetter(name)(Fetcher.PartitionRecords)


def test_part_of_a_fetch_says_what_it_has_read():
    part = vars(Fetcher.PartitionRecords(7, AT, MemoryRecords(batch([]))))
    assert {"aborted_producer_ids", "bytes_read", "check_crcs", "isolation_level", "leader_epoch"} <= part.keys()
    assert {"next_fetch_offset", "record_iterator", "records_read", "topic_partition"} <= part.keys()


def test_decoders_and_batches_that_we_replace_are_there():
    assert "DefaultRecordBatch" in vars(memory_records)
    assert {"gzip_decode", "lz4_decode", "zstd_decode"} <= vars(default_records).keys()
    assert {"gzip_decode", "lz4_decode"} <= vars(legacy_records).keys()


def test_settings_that_are_read_or_changed_are_there(producer):
    assert {
        "batch_size",
        "compression_attrs",
        "linger_ms",
    } <= RecordAccumulator.DEFAULT_CONFIG.keys()
    assert {"acks", "max_in_flight_requests_per_connection"} <= producer.config.keys()


# Nothing is touched that the lists above do not name, and nothing but the wall touches anything


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_reads(source: str) -> list[tuple[int, str]]:
    """Return line and name of each private attribute of something that is not the object itself or its class."""
    return [
        (node.lineno, node.attr)
        for node in sorted(ast.walk(ast.parse(source)), key=lambda node: getattr(node, "lineno", 0))
        if isinstance(node, ast.Attribute)
        and private(node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    ]


def test_every_private_name_in_the_wall_is_touched_by_a_test_here():
    tested = {
        part
        for path in (*ON_A_CONSUMER, *ON_A_PRODUCER, *ON_AN_ADMIN, *ON_A_BATCH_BUILDER, *ELSEWHERE)
        for part in path.split(".")
    }
    used = {name for file in WALL.glob("*.py") for _, name in foreign_reads(file.read_text())}
    assert used - tested == set()
    assert {name for name in tested if private(name)} - used == set(), "tested and not used any more"


def imports(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    plain = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


# By their text: parsing them all is too slow for what runs whenever tests are collected.
FROM_THE_CLIENT = re.compile(r"^\s*(?:from|import) (?:kafka|gigaoffice_worker\.broker)\b", re.MULTILINE)
ROOMS = [
    file
    for file in (PACKAGE / "gigaoffice_worker").rglob("*.py")
    if WALL not in file.parents and FROM_THE_CLIENT.search(file.read_text())
]
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
PUBLIC = {
    *("kafka", "kafka.admin", "kafka.errors", "kafka.partitioner", "kafka.structs"),
    *("kafka.sasl", "kafka.sasl.abc", "kafka.sasl.msk", "kafka.sasl.oauth", "kafka.sasl.plain", "kafka.sasl.scram"),
}


@pytest.mark.parametrize("file", ROOMS, ids=lambda file: str(file.relative_to(PACKAGE / "gigaoffice_worker")))
def test_no_other_file_knows_the_clients_insides(file):
    source = file.read_text()
    assert [each for each in foreign_reads(source) if each[1] not in OF_NAMED_TUPLES] == []
    assert {each for each in imports(source) if each.split(".")[0] == "kafka"} <= PUBLIC


def test_reads_of_foreign_objects_are_found():
    assert foreign_reads("self._client._sender.join()\ncls._x\nclient._fetcher") == [(1, "_sender"), (3, "_fetcher")]


def test_table_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)::(test_\w+)`", kafka_python.__doc__))
    assert len(named) > 5
    files = [(file.stem, file.read_text()) for file in (PACKAGE / "tests").rglob("test_*.py")]
    there = {
        (module, test) for module, test in named for stem, text in files if stem == module and f"def {test}(" in text
    }
    assert named - there == set()


def test_client_is_imported_without_botocore():
    program = """
import sys
import gigaoffice_worker.worker
assert not [name for name in sys.modules if name.startswith("botocore")]
import botocore.session
from gigaoffice_worker.broker.msk import login_of
login_of("eu-central-1")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
