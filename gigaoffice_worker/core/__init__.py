"""Decisions: pure code without I/O, threads, clocks or Kafka; time and randomness are arguments."""
