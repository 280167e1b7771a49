"""Who a sender is, and as which tenant it may send.

How it works. A credential names a tenant. Secrets are compared as keyed digests in constant time, all of them at every
request, so that neither the time taken nor a dump of memory tells a token. Token files are looked at again when they
change; several tokens may be valid at once, so that rotation never refuses anybody (a Collector drops what is answered
401). The tenant header is believed from trusted proxies only; from anybody else, a tenant other than the credential's
own is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from collector_processor.config import AuthConfig, CredentialConfig, ReceiversConfig
from collector_processor.ingest.answers import Code, RefusedError

DEFAULT_TENANT = "default"
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RECHECK_S = 1.0  # least time between two looks at a token file


class UnauthenticatedError(RefusedError):
    """No credential, or none that is known."""

    def __init__(self) -> None:
        super().__init__(Code.UNAUTHENTICATED, "unauthenticated", "no valid credential")


class ForbiddenError(RefusedError):
    """A known sender asks for another's tenant."""

    def __init__(self, message: str = "the credential is not for the tenant in the header") -> None:
        super().__init__(Code.FORBIDDEN, "forbidden", message)


class InsecureAddressError(ValueError):
    """An address that other machines reach, without authentication."""


@dataclass(frozen=True, slots=True)
class _Sender:
    digest: bytes
    tenant: str
    any_tenant: bool


class Authenticator:
    """Answers who sends. Errors on construction: OSError when a token file cannot be read."""

    def __init__(self, config: AuthConfig) -> None:
        self.header = config.tenant_header.lower()
        self._proxies = config.trusted_proxies
        self._key = secrets.token_bytes(32)
        fixed = [one for one in config.credentials if one.token_file is None]
        self._fixed = [self._sender(one, _secret(one)) for one in fixed]
        self._files = [_TokenFile(Path(one.token_file), one) for one in config.credentials if one.token_file]
        self._open = not config.credentials
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._from_files = self._senders_in_files()

    def tenant(self, authorization: str | None, asked: str | None, client_names: Collection[str], peer: str) -> str:
        """The tenant of a request. Errors: UnauthenticatedError, ForbiddenError.

        authorization: the header of that name. asked: the tenant header. client_names: names of the client's
        certificate, which TLS has verified. peer: the sender's address.
        """
        sender = None if self._open else self._known(authorization, client_names)
        own = DEFAULT_TENANT if sender is None else sender.tenant
        if asked is None or (asked == own and not (sender and sender.any_tenant)):
            return own
        if not TENANT.fullmatch(asked):
            raise ForbiddenError("the tenant header is not a tenant's name")
        if self._is_proxy(peer) and (sender is None or sender.any_tenant):
            return asked
        raise ForbiddenError

    def _known(self, authorization: str | None, client_names: Collection[str]) -> _Sender:
        names = [b"name\0" + name.encode() for name in client_names]
        presented = names if authorization is None else _presented(authorization)
        self._look_again()
        found = None
        for secret in presented:
            digest = self._digest(secret)
            for sender in (*self._fixed, *self._from_files):
                if hmac.compare_digest(sender.digest, digest):
                    found = sender
        if found is None:
            raise UnauthenticatedError
        return found

    def _look_again(self) -> None:
        with self._lock:
            now = time.monotonic()
            if not self._files or now - self._looked < RECHECK_S:
                return
            self._looked = now
            if any(each.changed() for each in self._files):
                self._from_files = self._senders_in_files()

    def _senders_in_files(self) -> list[_Sender]:
        return [self._sender(each.credential, secret) for each in self._files for secret in each.read()]

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._proxies)

    def _sender(self, credential: CredentialConfig, secret: bytes) -> _Sender:
        return _Sender(self._digest(secret), credential.tenant, credential.any_tenant)

    def _digest(self, secret: bytes) -> bytes:
        return hashlib.blake2b(secret, key=self._key, digest_size=32).digest()


class _TokenFile:
    """Tokens in a file, one a line. When it cannot be read any more, the last tokens stay valid."""

    def __init__(self, path: Path, credential: CredentialConfig) -> None:
        self.path = path
        self.credential = credential
        self._secrets: list[bytes] = []
        self._seen: tuple[int, ...] = ()
        path.read_bytes()

    def changed(self) -> bool:
        return self._signature() != self._seen

    def read(self) -> list[bytes]:
        try:
            self._seen = self._signature()
            lines = self.path.read_bytes().split()
            self._secrets = [b"bearer\0" + line for line in lines]
        except OSError:
            pass
        return self._secrets

    def _signature(self) -> tuple[int, ...]:
        try:
            status = self.path.stat()
        except OSError:
            return self._seen
        return status.st_mtime_ns, status.st_size, status.st_ino


def _secret(credential: CredentialConfig) -> bytes:
    """What a sender has to present, with its kind in front."""
    if credential.token is not None:
        return b"bearer\0" + credential.token.get_secret_value().encode()
    if credential.client_name is not None:
        return b"name\0" + credential.client_name.encode()
    assert credential.password is not None
    return b"basic\0" + f"{credential.username}:{credential.password.get_secret_value()}".encode()


def _presented(authorization: str) -> list[bytes]:
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return [b"bearer\0" + value.encode()]
    if scheme.lower() == "basic":
        try:
            return [b"basic\0" + base64.b64decode(value, validate=True)]
        except (binascii.Error, ValueError):
            return []
    return []


def host_and_port(endpoint: str) -> tuple[str, int]:
    """The parts of `host:port` or `[ipv6]:port`. Errors: ValueError."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"endpoint {endpoint!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_addresses(config: ReceiversConfig) -> None:
    """Raises InsecureAddressError when an enabled receiver could be reached from other machines by anybody."""
    is_authenticated = bool(config.auth.credentials) or bool(config.tls and config.tls.client_ca_file)
    if is_authenticated or config.allow_insecure:
        return
    for name, receiver in (("grpc", config.grpc), ("http", config.http)):
        host, _ = host_and_port(receiver.endpoint)
        if receiver.enabled and not is_loopback(host):
            raise InsecureAddressError(
                f"receivers.{name}.endpoint {receiver.endpoint} can be reached from other machines, and anybody there "
                "could send: set receivers.auth.credentials or receivers.tls.client_ca_file, "
                "or receivers.allow_insecure: true"
            )


def is_loopback(host: str) -> bool:
    """Whether every address that `host` stands for is this machine's own."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return bool(host) and all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)
