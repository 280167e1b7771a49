"""The service's certificate for both transports, read again when its files change.

How it works. Before each new connection the files' times and sizes are compared with those last loaded. What has
changed is loaded and tried as a whole; a pair that does not fit, as in the middle of a rotation, is passed over and the
old one stays.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any, Self

import grpc

from collector_processor.config import TlsConfig


class Certificate:
    """The current certificate. Errors on construction: OSError (ssl.SSLError is one) when the files do not fit."""

    def __init__(self, config: TlsConfig) -> None:
        self.config = config
        self.failures = 0
        self.version = 0
        self._lock = threading.Lock()
        self._seen = self._signature()
        self.context = self._load()

    def refresh(self) -> None:
        """Loads the files when they have changed and hold a good certificate; `version` counts up then."""
        with self._lock:
            try:
                signature = self._signature()
                if signature == self._seen:
                    return
                self._seen = signature
                self.context = self._load()
                self.version += 1
            except (OSError, ValueError):  # ssl.SSLError is an OSError
                self.failures += 1

    def grpc_credentials(self) -> Any:
        """Server credentials that follow the files."""
        served = self.version

        def fetch() -> Any:
            nonlocal served
            self.refresh()
            if served == self.version:
                return None
            served = self.version
            return self._grpc_configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(), fetch, require_client_authentication=self.config.client_ca_file is not None
        )

    def http_context(self) -> ssl.SSLContext:
        """A context that follows the files, one connection after the other."""
        return _FollowingContext(self)

    def _grpc_configuration(self) -> Any:
        files = self.config
        authority = Path(files.client_ca_file).read_bytes() if files.client_ca_file else None
        pair = (Path(files.key_file).read_bytes(), Path(files.cert_file).read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.config.cert_file, self.config.key_file)
        if self.config.client_ca_file:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.config.client_ca_file)
        return context

    def _signature(self) -> list[tuple[int, int, int]]:
        files = (self.config.cert_file, self.config.key_file, self.config.client_ca_file)
        found = [Path(path).stat() for path in files if path is not None]
        return [(status.st_mtime_ns, status.st_size, status.st_ino) for status in found]


class _FollowingContext(ssl.SSLContext):
    """asyncio asks the context for each connection's TLS object: this one passes the question on to the newest."""

    certificate: Certificate

    def __new__(cls, certificate: Certificate) -> Self:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self.certificate = certificate
        return self

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        self.certificate.refresh()
        return self.certificate.context.wrap_bio(*args, **kwargs)


def names_in(certificate: dict[str, Any] | None) -> tuple[str, ...]:
    """Common name and alternative names (DNS, URI) of what `SSLObject.getpeercert` gives."""
    if not certificate:
        return ()
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    other = [value for key, value in certificate.get("subjectAltName", ()) if key in {"DNS", "URI"}]
    return (*common, *other)
