"""Everything that listens for OTLP, started and stopped together.

How it works. The addresses are checked first: one that other machines reach needs authentication. Both servers share
one handler, one authenticator and one certificate. When the second cannot start, the first is stopped again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from collector_processor.config import ReceiversConfig
from collector_processor.ingest.answers import Counters
from collector_processor.ingest.auth import Authenticator, check_addresses
from collector_processor.ingest.grpc_server import GrpcServer
from collector_processor.ingest.handler import Clean, Handler, Sink
from collector_processor.ingest.http_server import HttpServer
from collector_processor.ingest.tls import Certificate
from collector_processor.model import Signal


class Receivers:
    """The gRPC and the HTTP server. Errors on construction: InsecureAddressError, OSError when a file is missing."""

    def __init__(
        self,
        config: ReceiversConfig,
        sink: Sink,
        clean: Clean,
        from_json: Callable[[bytes, Signal], bytes],
        clock: Callable[[], int],
        counters: Counters,
    ) -> None:
        """The arguments are those of `Handler`."""
        check_addresses(config)
        authenticator = Authenticator(config.auth)
        certificate = Certificate(config.tls) if config.tls else None
        handler = Handler(config.limits, sink, clean, from_json, clock, counters)
        self.grpc = GrpcServer(config, handler, authenticator, certificate) if config.grpc.enabled else None
        self.http = HttpServer(config, handler, authenticator, certificate) if config.http.enabled else None

    def start(self) -> None:
        """Listens on all addresses or on none. Errors: OSError when one cannot be had."""
        try:
            for server in (self.grpc, self.http):
                if server is not None:
                    server.start()
        except OSError:
            self.stop(0.0)
            raise

    def stop(self, grace_s: float) -> None:
        """Takes nothing more; returns when what was taken is answered, after `grace_s` at most. Safe to call twice."""
        servers = [server for server in (self.grpc, self.http) if server is not None]
        threads = [threading.Thread(target=server.stop, args=(grace_s,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
