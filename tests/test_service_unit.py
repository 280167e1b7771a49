"""The systemd unit is valid and closed, and the service runs as it says: no root, nothing writable but its data."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.e2e.processes import free_ports

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "configs" / "spanchain.service"
KERNELS = ROOT / "collector_processor" / "kernels" / "__pycache__"
EXPOSURE_MAX = 2.0  # of 10, as systemd counts it


def analyzed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here (Debian: apt-get install systemd)")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    there = tmp_path / "spanchain.service"
    there.write_text(re.sub(r"/opt/spanchain/.venv/bin/\w+", sys.executable, UNIT.read_text()))
    done = analyzed("verify", there)
    assert (done.returncode, done.stderr) == (0, "")
    there.write_text(there.read_text().replace("ProtectSystem=strict", "ProtectSystems=strict"))
    assert "ProtectSystems" in analyzed("verify", there).stderr


def test_the_unit_leaves_little_open() -> None:
    done = analyzed("security", "--offline=true", UNIT)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot look at a file: {done.stderr}")
    assert float(found[1]) <= EXPOSURE_MAX, done.stdout


@pytest.mark.e2e
@pytest.mark.slow
def test_the_service_needs_no_root_and_no_writable_file_but_its_data(bubblewrap: Path, tmp_path: Path) -> None:
    data, kernels = tmp_path / "data", tmp_path / "kernels"
    data.mkdir()
    shutil.copytree(KERNELS, kernels)  # numba takes only a cache that it could write to
    sandbox = [
        str(bubblewrap),
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--tmpfs",
        "/run",
        "--die-with-parent",
    ]
    sandbox += ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--uid", "65534", "--gid", "65534"]
    sandbox += ["--cap-drop", "ALL", "--bind", str(data), str(data), "--bind", str(kernels), str(KERNELS)]
    if subprocess.run([*sandbox, "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    elsewhere = subprocess.run([*sandbox, "touch", str(tmp_path / "elsewhere")], check=False, capture_output=True)
    assert elsewhere.returncode != 0
    health = served(sandbox, data, tmp_path)
    assert health == "ready"
    assert sorted(path.name for path in (data / "journal").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"data", "kernels", "config.yaml", "log"}


def served(sandbox: list[str], data: Path, folder: Path) -> str:
    """What `/readyz` of a service in the sandbox says; it ends in order after that."""
    grpc_port, http_port, metrics, port = free_ports(4)
    settings = {
        "receivers": {
            "grpc": {"endpoint": f"127.0.0.1:{grpc_port}"},
            "http": {"endpoint": f"127.0.0.1:{http_port}"},
        },
        "exporters": {"prometheus": {"port": metrics}, "file": {"enabled": True}},
        "service": {"health": {"port": port}},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    command = [str(Path(sys.executable).with_name("spanchain")), "serve", "--config", str(folder / "config.yaml")]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*sandbox, *command, "--data", str(data)], stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                        return answer.read().decode().strip()
                except URLError:
                    time.sleep(0.05)
            return (folder / "log").read_text()
        finally:
            process.terminate()
            process.wait(30)
