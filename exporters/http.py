"""One HTTP POST, answered in the words of the queue: taken, `RetryLater` or `Refused`.

How it works. A connection for each request: there are few, and none goes stale. No redirect is followed and no proxy
used, so data goes where the configuration says or nowhere. 429, 502, 503 and 504 are tried again, after what
`Retry-After` asks for; any other answer but 2xx is final, as OTLP/HTTP has it.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import structlog

from exporters.queue import Refused, RetryLater

RETRYABLE = frozenset({429, 502, 503, 504})
ANSWER_MAX = 1 << 16  # bytes of an answer that are read

log = structlog.get_logger(__name__)


def tls_context(ca_file: str | None, cert_file: str | None = None, key_file: str | None = None) -> ssl.SSLContext:
    """Verifies the server, by `ca_file` or the system's authorities; shows our certificate when there is one.

    Raises:
        OSError: a file cannot be read, or is no certificate.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context


class Poster:
    """Posts to paths under `address` (`http[s]://host[:port][/path]`)."""

    def __init__(
        self, address: str, headers: Mapping[str, str], timeout_s: float, context: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "", parts.port
        self._base = parts.path.rstrip("/")
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._context = (context or tls_context(None)) if parts.scheme == "https" else None

    def post(self, path: str, body: bytes, content_type: str, more: Mapping[str, str] | None = None) -> bytes:
        """What the server answered with 2xx. more: headers of this request alone.

        Raises:
            RetryLater: it cannot be reached, or asks to come again.
            Refused: any other answer.
        """
        headers = {"Content-Type": content_type, "User-Agent": "spanchain", **self._headers, **(more or {})}
        connection = self._connect()
        try:
            connection.request("POST", self._base + path, body, headers)
            answer = connection.getresponse()
            content = answer.read(ANSWER_MAX)
        except TimeoutError as error:
            raise RetryLater("timeout") from error
        except (OSError, http.client.HTTPException) as error:
            raise RetryLater("unreachable") from error
        finally:
            connection.close()
        if 200 <= answer.status < 300:
            return content
        if answer.status in RETRYABLE:
            raise RetryLater(f"http_{answer.status}", retry_after_s(answer.headers.get("Retry-After")))
        log.warning("a sink refuses what it is sent", host=self._host, path=path, status=answer.status)
        raise Refused

    def _connect(self) -> http.client.HTTPConnection:
        if self._context is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)


def retry_after_s(header: str | None) -> float:
    """Seconds that a `Retry-After` header asks for: a number, or a date (RFC 9110, 10.2.3); 0 when it says nothing."""
    if header is None:
        return 0.0
    if header.strip().isdigit():
        return float(header)
    try:
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return 0.0
