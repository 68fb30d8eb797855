"""What the outside sees: logs, metrics, health and the side port."""
