"""The probes: `/livez` (the process answers and the engine has not failed) and `/readyz` (it takes data in).

How it works. A small HTTP server in a thread of its own; the runtime sets what it answers.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from collector_processor.config import HealthConfig


class Health:
    """What the probes are told, and the server that tells them."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self._server: ThreadingHTTPServer | None = None
        self.ready = False
        self.draining = False
        self.failed = False
        self.note = ""

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Raises OSError when the address cannot be had."""
        health = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = health.answer(self.path)
                body = text.encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Probes come every few seconds: not worth a line."""

        try:
            self._server = ThreadingHTTPServer((self._config.host, self._config.port), Answer)
        except OSError as error:
            where = f"{self._config.host}:{self._config.port}"
            raise OSError(f"service.health: cannot listen on {where}: {error.strerror}") from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True).start()

    def answer(self, path: str) -> tuple[int, str]:
        """(HTTP status, text) for a probe."""
        if path.startswith("/livez"):
            return (500, "the engine has failed, see the log") if self.failed else (200, "alive")
        if not path.startswith("/readyz"):
            return 404, "there is /livez and /readyz"
        if self.failed or self.draining:
            return 503, "stopping"
        if not self.ready and not self.note:
            return 503, "starting"
        return 200, self.note or "ready"

    def stop(self) -> None:
        """Safe without `start`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
