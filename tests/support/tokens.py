"""A token endpoint: it gives signed tokens to whoever knows the secret, and brokers the key to check them by."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

CLIENT_ID = "worker:1"
CLIENT_SECRET = "se cret+/%"


class TokenEndpoint:
    """Listens on the loopback interface; `answer` and `lifetime` may be changed while it runs."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.lifetime = 3600.0
        self.secret = CLIENT_SECRET
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        """What is answered instead: status, headers, body."""
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        endpoint = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {}, json.dumps({"keys": [endpoint.public_key()]}).encode())

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                endpoint.asked.append(form)
                self._send(*(endpoint.answer or endpoint._token(self.headers["Authorization"], form)))

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def settings(self, **other: str) -> dict[str, str]:
        """Return what a worker is told to get its tokens here."""
        return {
            "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
            "KAFKA_SASL_OAUTH_TOKEN_URL": f"{self.address}/token",
            "KAFKA_SASL_OAUTH_CLIENT_ID": CLIENT_ID,
            "KAFKA_SASL_OAUTH_CLIENT_SECRET": CLIENT_SECRET,
            **other,
        }

    def public_key(self) -> dict[str, str]:
        """Return the key as JWK."""
        numbers = self._key.public_key().public_numbers()
        return {
            "kty": "RSA",
            "kid": "1",
            "use": "sig",
            "alg": "RS256",
            "n": _base64(numbers.n.to_bytes(256, "big")),
            "e": _base64(numbers.e.to_bytes(3, "big")),
        }

    def _token(self, authorization: str, form: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        kind, _, credentials = authorization.partition(" ")
        who, _, secret = base64.b64decode(credentials).decode().partition(":")
        known = (kind, unquote_plus(who), unquote_plus(secret)) == ("Basic", CLIENT_ID, self.secret)
        if not known or form["grant_type"] != ["client_credentials"]:
            return 401, {}, b'{"error": "invalid_client", "error_description": "unknown client"}'
        now = int(time.time())
        claims = {
            "sub": "worker",
            "iss": "test",
            "aud": "kafka",
            "iat": now - 5,
            "exp": now + int(self.lifetime),
            "scope": form.get("scope", ["all"])[0],
        }
        signed = f"{_json({'alg': 'RS256', 'kid': '1'})}.{_json(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        token = {"access_token": f"{signed}.{_base64(signature)}", "token_type": "Bearer", "expires_in": self.lifetime}
        return 200, {}, json.dumps(token).encode()


def _json(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
