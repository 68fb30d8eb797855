"""The Kafka edge: the only room that imports the client library."""
