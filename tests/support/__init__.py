"""What the tests share: neighbours, workers, brokers, and how to wait."""
