"""This worker beside its peers on one real Kafka: `python -m benchmarks`."""
