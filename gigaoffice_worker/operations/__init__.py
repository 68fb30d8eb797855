"""What a person does with a cluster: check it, send requests, read and replay dead letters."""
