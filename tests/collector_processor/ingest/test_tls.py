"""TLS and mTLS on both transports, and certificates that change while the service runs."""

from __future__ import annotations

import http.client
import shutil
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest

from collector_processor.config import TlsConfig
from collector_processor.ingest.tls import Certificate, names_in
from collector_processor.model import Signal
from tests.collector_processor.ingest.serving import Authority, Served, serving
from tests.otlp import span, traces

DATA = traces(span(1, 2))


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> dict[str, str]:
    """`tls` settings with a certificate for localhost."""
    return installed(authority, tmp_path, "server-1")


def installed(authority: Authority, folder: Path, name: str) -> dict[str, str]:
    certificate, key = authority.issue(name)
    shutil.copy(certificate, folder / "server.pem")
    shutil.copy(key, folder / "server.key")
    return {"cert_file": str(folder / "server.pem"), "key_file": str(folder / "server.key")}


def test_both_transports_are_encrypted(authority: Authority, files: dict[str, str]) -> None:
    with serving(tls=files) as served:
        served.export(Signal.TRACES, DATA, credentials=authority.grpc_credentials())
        assert served.post("/v1/traces", DATA, context=authority.context())[0] == 200
        assert len(served.payloads) == 2
        assert served.refusal(Signal.TRACES, DATA).code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            served.post("/v1/traces", DATA)
        assert len(served.payloads) == 2


def refused_by_both(served: Served, authority: Authority, client: Any = None) -> None:
    credentials = authority.grpc_credentials(client)
    assert served.refusal(Signal.TRACES, DATA, credentials=credentials).code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served.post("/v1/traces", DATA, context=authority.context(client))


def test_a_client_needs_a_certificate_of_the_authority(
    authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    files["client_ca_file"] = str(authority.certificate)
    strangers = Authority(tmp_path / "strangers")
    with serving(tls=files) as served:
        client = authority.issue("collector")
        served.export(Signal.TRACES, DATA, credentials=authority.grpc_credentials(client))
        assert served.post("/v1/traces", DATA, context=authority.context(client))[0] == 200
        refused_by_both(served, authority)
        refused_by_both(served, authority, strangers.issue("collector"))
        assert [payload.tenant for payload in served.payloads] == ["default", "default"]


def test_the_name_in_a_clients_certificate_is_its_credential(authority: Authority, files: dict[str, str]) -> None:
    files["client_ca_file"] = str(authority.certificate)
    credentials = [
        {"tenant": "payments", "client_name": "collector-of-payments"},
        {"tenant": "risk", "client_name": "spiffe://bank/risk"},
        {"tenant": "orders", "token": "token-of-orders"},
    ]
    with serving(tls=files, auth={"credentials": credentials}) as served:
        payments = authority.issue("collector-of-payments")
        risk = authority.issue("some-pod", "URI:spiffe://bank/risk")
        for client in (payments, risk):
            served.export(Signal.TRACES, DATA, credentials=authority.grpc_credentials(client))
            assert served.post("/v1/traces", DATA, context=authority.context(client))[0] == 200
        assert [payload.tenant for payload in served.payloads] == ["payments", "payments", "risk", "risk"]

        nobody = authority.issue("somebody-else")
        error = served.refusal(Signal.TRACES, DATA, credentials=authority.grpc_credentials(nobody))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert served.post("/v1/traces", DATA, context=authority.context(nobody))[0] == 401
        bearer = {"authorization": "Bearer token-of-orders"}
        assert served.post("/v1/traces", DATA, bearer, context=authority.context(nobody))[0] == 200
        assert served.post("/v1/traces", DATA, {"x-scope-orgid": "risk"}, context=authority.context(payments))[0] == 403


def test_a_wrong_token_is_not_made_good_by_a_certificate(authority: Authority, files: dict[str, str]) -> None:
    files["client_ca_file"] = str(authority.certificate)
    with serving(tls=files, auth={"credentials": [{"client_name": "collector"}]}) as served:
        client = authority.issue("collector")
        wrong = {"authorization": "Bearer wrong"}
        assert served.post("/v1/traces", DATA, wrong, context=authority.context(client))[0] == 401


def test_a_new_certificate_is_used_without_a_restart(
    authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    new_authority = Authority(tmp_path / "new")
    with serving(tls=files) as served:

        def accepted_by(one: Authority) -> bool:
            try:
                served.export(Signal.TRACES, DATA, credentials=one.grpc_credentials())
                return served.post("/v1/traces", DATA, context=one.context())[0] == 200
            except (grpc.RpcError, ssl.SSLError):
                return False

        assert accepted_by(authority)
        assert not accepted_by(new_authority)
        certificate, key = new_authority.issue("server-2")
        shutil.copy(certificate, files["cert_file"])
        assert accepted_by(authority), "a certificate whose key has not come yet must not be used"
        shutil.copy(key, files["key_file"])
        assert accepted_by(new_authority)
        assert not accepted_by(authority)
        Path(files["cert_file"]).unlink()
        assert accepted_by(new_authority)


def test_a_new_authority_for_clients_is_used_without_a_restart(
    authority: Authority, files: dict[str, str], tmp_path: Path
) -> None:
    new_authority = Authority(tmp_path / "new")
    files["client_ca_file"] = str(shutil.copy(authority.certificate, tmp_path / "clients.pem"))
    with serving(tls=files) as served:
        old_client, new_client = authority.issue("one"), new_authority.issue("two")
        assert served.post("/v1/traces", DATA, context=authority.context(old_client))[0] == 200
        refused_by_both(served, authority, new_client)
        shutil.copy(new_authority.certificate, files["client_ca_file"])
        assert served.post("/v1/traces", DATA, context=authority.context(new_client))[0] == 200
        refused_by_both(served, authority, old_client)
        served.export(Signal.TRACES, DATA, credentials=authority.grpc_credentials(new_client))


def test_files_that_do_not_fit_are_an_error_at_the_start(authority: Authority, files: dict[str, str]) -> None:
    _, other_key = authority.issue("other")
    with pytest.raises(ssl.SSLError):
        Certificate(TlsConfig(cert_file=files["cert_file"], key_file=str(other_key)))
    with pytest.raises(FileNotFoundError):
        Certificate(TlsConfig(cert_file=files["cert_file"], key_file="/nonexistent"))


def test_old_protocols_are_refused(authority: Authority, files: dict[str, str]) -> None:
    with serving(tls=files) as served:
        context = authority.context()
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            served.post("/v1/traces", DATA, context=context)


def test_names_in_a_certificate() -> None:
    certificate = {
        "subject": ((("countryName", "DE"),), (("commonName", "one"),)),
        "subjectAltName": (("DNS", "two"), ("URI", "spiffe://three"), ("IP Address", "10.0.0.1")),
    }
    assert names_in(certificate) == ("one", "two", "spiffe://three")
    assert names_in(None) == ()
    assert names_in({}) == ()
