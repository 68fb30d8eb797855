"""A stand-in for a model service: answers 500 while the file `model-is-down` is in the working directory.

python examples/model.py          # then: HTTP_HANDLER_URL=http://127.0.0.1:8081
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Model(BaseHTTPRequestHandler):
    """Answers each request with what it was asked."""

    def do_POST(self) -> None:
        """Answer one request."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        down = Path("model-is-down").exists()
        answer = json.dumps({"error": "out of order"} if down else {"answer": f"42, for {asked['query']}"}).encode()
        self.send_response(500 if down else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that it has there
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8081), Model).serve_forever()
