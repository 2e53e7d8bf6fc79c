"""An OpenAI-compatible server on the loopback interface, for tests."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Replies by `answer(body, n)`, n counting from 0: a text, or a tuple (status, headers, raw bytes)."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen, self.lock, self.open, self.most_open = answer, [], threading.Lock(), 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            n = len(self.server.seen)
            self.server.seen.append((self.path, dict(self.headers), body))
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        try:
            reply = self.server.answer(body, n)
        finally:
            with self.server.lock:
                self.server.open -= 1
        status, headers, raw = reply if isinstance(reply, tuple) else (200, {}, completion(reply))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):  # the client of the time-out test is gone
            self.wfile.write(raw)

    def log_message(self, format, *args):
        """Quiet."""


def completion(text) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
