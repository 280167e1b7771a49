"""Who may send, and as whom: every kind of credential, its rotation, and what a stranger or a neighbour gets."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from collector_processor.config import AuthConfig, CredentialConfig, ReceiversConfig
from collector_processor.ingest import auth
from collector_processor.ingest.auth import (
    Authenticator,
    ForbiddenError,
    InsecureAddressError,
    UnauthenticatedError,
    check_addresses,
    host_and_port,
    is_loopback,
)
from collector_processor.model import Signal
from tests.collector_processor.ingest.serving import JSON, Served, serving
from tests.otlp import log, logs, span, traces

DATA = traces(span(1, 2))
BEARER_A, BEARER_B = "Bearer token-of-a", "Bearer token-of-b"
CREDENTIALS: list[dict[str, Any]] = [
    {"tenant": "a", "token": "token-of-a"},
    {"tenant": "a", "token": "next-token-of-a"},
    {"tenant": "b", "token": "token-of-b"},
    {"tenant": "c", "username": "carol", "password": "pass:word"},
    {"any_tenant": True, "token": "token-of-proxy"},
]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def tenant_of(authorization: str | None, asked: str | None = None, peer: str = "127.0.0.1", **config: Any) -> str:
    config.setdefault("credentials", CREDENTIALS)
    return Authenticator(AuthConfig.model_validate(config)).tenant(authorization, asked, (), peer)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    with serving(auth={"credentials": CREDENTIALS, "trusted_proxies": ["127.0.0.0/8", "::1"]}) as served:
        yield served


@pytest.mark.parametrize(
    ("authorization", "tenant"),
    [
        (BEARER_A, "a"),
        ("bearer token-of-a", "a"),
        ("Bearer next-token-of-a", "a"),
        (BEARER_B, "b"),
        (basic("carol", "pass:word"), "c"),
    ],
)
def test_a_credential_names_its_tenant(guarded: Served, authorization: str, tenant: str) -> None:
    guarded.payloads.clear()
    guarded.export(Signal.TRACES, DATA, metadata=(("authorization", authorization),))
    assert guarded.post("/v1/traces", DATA, {"authorization": authorization})[0] == 200
    assert [payload.tenant for payload in guarded.payloads] == [tenant, tenant]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer token-of-",
        "Bearer token-of-a token-of-a",
        "Basic token-of-a",
        "Basic !!!",
        basic("carol", "password"),
        "Bearer carol:pass:word",
        "Digest x",
        "Bearer \xff",
    ],
)
def test_without_a_valid_credential_nobody_gets_in(authorization: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        tenant_of(authorization)


def test_strangers_are_answered_401_and_unauthenticated(guarded: Served) -> None:
    guarded.payloads.clear()
    error = guarded.refusal(Signal.TRACES, DATA)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    error = guarded.refusal(Signal.TRACES, DATA, metadata=(("authorization", "Bearer wrong"),))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "wrong" not in error.details()
    status, headers, body = guarded.post("/v1/traces", b"{}", {"content-type": JSON})
    assert (status, headers["content-type"], headers["www-authenticate"]) == (401, JSON, "Bearer")
    assert b"16" in body
    assert guarded.payloads == []
    assert guarded.counters.get("requests_refused_total", transport="grpc", reason="unauthenticated") == 2


def test_a_stranger_is_refused_before_the_message_is_read() -> None:
    """The limit is not what refuses it: the message of a stranger is never received."""
    with serving(auth={"credentials": CREDENTIALS}, limits={"request_bytes_max": 1000}) as served:
        assert served.refusal(Signal.LOGS, bytes(900_000)).code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_token_of_a_with_the_header_of_b_is_403(guarded: Served) -> None:
    guarded.payloads.clear()
    headers = {"authorization": BEARER_A, "x-scope-orgid": "b"}
    assert guarded.post("/v1/traces", DATA, headers)[0] == 403
    error = guarded.refusal(Signal.TRACES, DATA, metadata=tuple(headers.items()))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert guarded.payloads == []
    assert not [key for key in guarded.counters.snapshot() if ("tenant", "b") in key[1]]


def test_a_credentials_own_tenant_may_be_named(guarded: Served) -> None:
    guarded.payloads.clear()
    assert guarded.post("/v1/traces", DATA, {"authorization": BEARER_A, "x-scope-orgid": "a"})[0] == 200
    assert [payload.tenant for payload in guarded.payloads] == ["a"]


def test_a_trusted_proxy_names_the_tenant(guarded: Served) -> None:
    guarded.payloads.clear()
    headers = {"authorization": "Bearer token-of-proxy", "x-scope-orgid": "b"}
    assert guarded.post("/v1/traces", DATA, headers)[0] == 200
    guarded.export(Signal.TRACES, DATA, metadata=tuple(headers.items()))
    assert [payload.tenant for payload in guarded.payloads] == ["b", "b"]


@pytest.mark.parametrize(
    ("authorization", "peer", "proxies"),
    [
        ("Bearer token-of-proxy", "10.0.0.2", ["10.0.0.1"]),  # its credential from elsewhere
        ("Bearer token-of-proxy", "", ["0.0.0.0/0"]),
        ("Bearer token-of-proxy", "127.0.0.1", []),
        (BEARER_A, "10.0.0.1", ["10.0.0.1"]),  # another's credential from its address
    ],
)
def test_the_header_is_believed_from_a_proxys_address_with_its_credential_only(
    authorization: str, peer: str, proxies: list[str]
) -> None:
    with pytest.raises(ForbiddenError):
        tenant_of(authorization, "b", peer, trusted_proxies=proxies)


def test_without_credentials_the_header_is_believed_from_a_proxys_address_only() -> None:
    assert tenant_of(None, None, credentials=[]) == "default"
    assert tenant_of(None, "b", "10.1.2.3", credentials=[], trusted_proxies=["10.0.0.0/8"]) == "b"
    assert tenant_of(None, "b", "::ffff:10.1.2.3", credentials=[], trusted_proxies=["10.0.0.0/8"]) == "b"
    with pytest.raises(ForbiddenError):
        tenant_of(None, "b", credentials=[])


@pytest.mark.parametrize("asked", ["", "../b", "b\n", "b c", "x" * 65, "é", ".hidden"])
def test_a_tenants_name_is_a_plain_word(asked: str) -> None:
    with pytest.raises(ForbiddenError, match="not a tenant"):
        tenant_of("Bearer token-of-proxy", asked, trusted_proxies=["127.0.0.1"])


def test_another_header_may_name_the_tenant() -> None:
    auth_config = {"tenant_header": "X-Tenant", "trusted_proxies": ["127.0.0.1", "::1"]}
    with serving(auth=auth_config) as served:
        served.post("/v1/traces", DATA, {"x-tenant": "shop"})
        served.export(Signal.LOGS, logs(log("x")), metadata=(("x-tenant", "shop"),))
        served.post("/v1/traces", DATA, {"x-scope-orgid": "shop"})
        assert [payload.tenant for payload in served.payloads] == ["shop", "shop", "default"]


def replaced(path: Path, text: str) -> None:
    """Writes `path` as secret stores do: a new file renamed over the old."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_tokens_in_a_file_rotate_with_overlap_while_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "RECHECK_S", 0.0)
    tokens = tmp_path / "tokens"
    tokens.write_text("old\n")
    with serving(auth={"credentials": [{"tenant": "a", "token_file": str(tokens)}]}) as served:

        def answer(token: str) -> int:
            return served.post("/v1/traces", DATA, {"authorization": f"Bearer {token}"})[0]

        assert (answer("old"), answer("new")) == (200, 401)
        replaced(tokens, "old\nnew\n")
        assert (answer("old"), answer("new")) == (200, 200)
        replaced(tokens, "new\n")
        assert (answer("old"), answer("new")) == (401, 200)
        tokens.unlink()
        assert answer("new") == 200
        replaced(tokens, "")
        assert (answer("new"), answer("")) == (401, 401)


def test_a_token_file_is_looked_at_once_a_second_at_most(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("old")
    known = Authenticator(AuthConfig(credentials=(CredentialConfig(token_file=str(tokens)),)))
    replaced(tokens, "new")
    with pytest.raises(UnauthenticatedError):
        known.tenant("Bearer new", None, (), "")
    deadline = time.monotonic() + 10
    while True:
        try:
            assert known.tenant("Bearer new", None, (), "") == "default"
            break
        except UnauthenticatedError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_token_file_that_is_missing_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="tokens"):
        Authenticator(AuthConfig(credentials=(CredentialConfig(token_file=str(tmp_path / "tokens")),)))


def test_secrets_are_in_no_representation() -> None:
    config = AuthConfig.model_validate({"credentials": CREDENTIALS})
    known = Authenticator(config)
    shown = repr(config) + config.model_dump_json() + repr(vars(known))
    assert "token-of-a" not in shown
    assert "pass:word" not in shown


@pytest.mark.parametrize(
    "credential",
    [
        {},
        {"tenant": "a"},
        {"token": "x", "token_file": "y"},
        {"username": "x"},
        {"password": "x"},
        {"token": "x", "password": "y"},
        {"token": "x", "tenant": "no good name"},
    ],
)
def test_a_credential_of_no_or_two_kinds_is_refused(credential: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        CredentialConfig.model_validate(credential)


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "", "::ffff:0.0.0.0"])
def test_an_open_address_without_authentication_is_refused(transport: str, host: str) -> None:
    endpoint = {transport: {"endpoint": f"{host}:4317"}}
    with pytest.raises(InsecureAddressError, match=f"receivers.{transport}.endpoint"):
        check_addresses(ReceiversConfig.model_validate(endpoint))
    tls = {"cert_file": "c", "key_file": "k"}
    with pytest.raises(InsecureAddressError):  # encryption alone keeps nobody out
        check_addresses(ReceiversConfig.model_validate({**endpoint, "tls": tls}))
    allowed: list[dict[str, Any]] = [
        {"allow_insecure": True},
        {"auth": {"credentials": [{"token": "x"}]}},
        {"tls": {**tls, "client_ca_file": "ca"}},
        {transport: {"endpoint": f"{host}:4317", "enabled": False}},
    ]
    for more in allowed:
        check_addresses(ReceiversConfig.model_validate({**endpoint, **more}))


def test_the_addresses_that_ship_are_this_machines_own() -> None:
    config = ReceiversConfig()
    check_addresses(config)
    for endpoint in (config.grpc.endpoint, config.http.endpoint):
        assert is_loopback(host_and_port(endpoint)[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("endpoint", ["localhost", "localhost:", "x:70000", "x:-1", "x:http", ""])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="not host:port"):
        host_and_port(endpoint)


def test_a_client_name_needs_an_authority() -> None:
    with pytest.raises(ValidationError, match="client_ca_file"):
        ReceiversConfig.model_validate({"auth": {"credentials": [{"client_name": "x"}]}})
