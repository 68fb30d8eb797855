"""The threads: consume, handle, deliver, commit."""
