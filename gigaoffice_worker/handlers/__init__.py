"""What a request is answered with: loading a handler by name, and the handlers that come with the worker."""
