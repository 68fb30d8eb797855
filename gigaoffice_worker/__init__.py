"""A Kafka worker that answers GigaOffice requests: at least once, in order per key, in a pool of threads."""

__version__ = "0.1.0"
