"""A real Collector with the shipped tenant and mTLS configurations: who comes in as whom, and who does not come in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.certificates import Authority
from tests.e2e.processes import Process, Processes, free_ports
from tests.e2e.site import Binaries, Site
from tests.e2e.test_collector_to_page import QUICK
from tests.e2e.test_site import generate

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRACES = 20


def on(site: Site) -> dict[str, object]:
    """The quick settings, at an address of this site instead of all of the machine's."""
    return {**QUICK, "receivers": {"grpc": {"endpoint": site.address("spanchain_grpc")}}}


def test_each_tenant_is_who_its_token_says(
    processes: Processes, tmp_path: Path, binaries: Binaries, telemetrygen: Path
) -> None:
    site = Site(processes, tmp_path, binaries)
    authority = Authority(tmp_path)
    certificate, key = authority.sign("spanchain")
    tokens = {}
    for tenant in ("retail", "wholesale"):
        tokens[tenant] = tmp_path / f"{tenant}.token"
        tokens[tenant].write_text(f"the-token-of-{tenant}")
    token_files = {f"{tenant.upper()}_TOKEN_FILE": str(path) for tenant, path in tokens.items()}
    spanchain = site.start_spanchain(
        on(site),
        "spanchain-tenants.yaml",
        SPANCHAIN_CERT_FILE=str(certificate),
        SPANCHAIN_KEY_FILE=str(key),
        **token_files,
    )
    prometheus = site.start_prometheus()
    ports = dict(zip(("retail", "wholesale"), free_ports(2), strict=True))
    site.start_collector(
        "configs/collector-tenants.yaml",
        RETAIL_OTLP_GRPC=f"127.0.0.1:{ports['retail']}",
        WHOLESALE_OTLP_GRPC=f"127.0.0.1:{ports['wholesale']}",
        SPANCHAIN_CA_FILE=str(authority.certificate),
        **token_files,
    )
    for tenant, port in ports.items():
        count = TRACES if tenant == "retail" else 2 * TRACES
        sending = processes.start(
            f"telemetrygen-{tenant}",
            *(telemetrygen, "traces", f"--traces={count}", "--rate=0", "--otlp-insecure"),
            *(f"--otlp-endpoint=127.0.0.1:{port}", "--service=till"),
        )
        sending.wait_end(60)

    def chains() -> dict[str, float]:
        return {labels["tenant"]: value for labels, value in site.query("sum by (tenant) (spanchain_chains_total) > 0")}

    expected = {"retail": TRACES, "wholesale": 2 * TRACES}
    spanchain.wait_for("the chains of both", lambda: chains() == expected, timeout_s=60, poll_s=1.0)
    assert prometheus.popen.poll() is None


def test_only_a_client_with_a_certificate_of_the_named_authority_comes_in(
    processes: Processes, tmp_path: Path, binaries: Binaries, telemetrygen: Path
) -> None:
    site = Site(processes, tmp_path, binaries)
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificate, key = ours.sign("spanchain")
    spanchain = site.start_spanchain(
        on(site),
        "spanchain-mtls.yaml",
        SPANCHAIN_CERT_FILE=str(certificate),
        SPANCHAIN_KEY_FILE=str(key),
        CLIENT_CA_FILE=str(ours.certificate),
    )
    site.start_prometheus()

    def send(authority: Authority, name: str) -> Process:
        """Traces through a Collector that shows a certificate of `authority`."""
        client, client_key = authority.sign(name)
        process = site.start_collector(
            "configs/collector-mtls.yaml",
            SPANCHAIN_CA_FILE=str(ours.certificate),
            COLLECTOR_CERT_FILE=str(client),
            COLLECTOR_KEY_FILE=str(client_key),
        )
        generate(processes, telemetrygen, "traces", site.address("apps_grpc"), TRACES).wait_end(60)
        return process

    stranger = send(theirs, "stranger")
    stranger.wait_for("a refusal", lambda: "Exporting failed" in stranger.output(20_000), timeout_s=30)
    stranger.stop()
    assert not site.query("sum(spanchain_records_received_total) > 0")
    send(ours, "otel-collector")
    chains = "sum(spanchain_chains_total)"
    # What the stranger's queue still held on disk comes with the right certificate: nothing was lost meanwhile.
    spanchain.wait_for("the chains", lambda: site.query(chains) == [({}, 2.0 * TRACES)], timeout_s=60, poll_s=1.0)
