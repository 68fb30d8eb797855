"""Prints the response topic, a line a response: `python examples/responses.py`."""

from __future__ import annotations

import json
import os

from kafka import KafkaConsumer

servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
topic = os.environ.get("KAFKA_TOPIC_RESPONSES", "gigaoffice-responses")
for record in KafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest", consumer_timeout_ms=3000):
    response = json.loads(record.value)
    print(response["timestamp"], response["request_id"], response["status"], response["result"] or response["error"])
