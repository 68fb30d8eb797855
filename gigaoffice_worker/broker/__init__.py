"""The Kafka edge: the only room that imports the client library."""

from gigaoffice_worker.broker.kafka_python import importing as importing  # before anything else imports the client
