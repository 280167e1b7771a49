"""Programs under test: started, waited for, ended; and free ports on the loopback interface.

How it works. Each program runs in a process group of its own with its output in a file, so that it is ended with all
its children and its last words stand in the failure. Waiting is polling with a deadline; a program that dies meanwhile
ends the wait at once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

PORTS = 1000  # for each worker of pytest
FIRST_PORT = 16_000 + PORTS * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16)
"""Below the ports that Linux hands out (ip_local_port_range)."""

_offsets = itertools.count(random.SystemRandom().randrange(PORTS))


def free_ports(count: int) -> list[int]:
    """`count` different loopback TCP ports that nobody listens on, and that nobody else is given: neither by the system
    when asked for any free one, nor by another call or worker. So they are free until the program listens."""
    ports: list[int] = []
    while len(ports) < count:
        port = FIRST_PORT + next(_offsets) % PORTS
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


def http_get(url: str, accept: str | None = None, timeout_s: float = 5.0) -> str:
    """Body of a GET as text. Raises `OSError` when it is not answered with 2xx."""
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return str(response.read().decode())


class Process:
    """One running program."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None, stdin: str = ""
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        assert self.popen.stdin is not None
        with self.popen.stdin as pipe:
            pipe.write(stdin.encode())

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self, characters: int = 3000) -> str:
        """The end of what the program has printed."""
        return self.log.read_text(errors="replace")[-characters:]

    def wait_for(self, what: str, condition: Callable[[], T | None], timeout_s: float = 60.0, poll_s: float = 0.1) -> T:
        """The first true value of `condition`; an `OSError` counts as not yet. `AssertionError` when there is none."""
        deadline = time.monotonic() + timeout_s
        last: object = None
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, f"{self.name} ended with {self.popen.returncode}:\n{self.output()}"
            try:
                last = value = condition()
            except OSError as error:
                last = error
            else:
                if value:
                    return value
            time.sleep(poll_s)
        raise AssertionError(f"{self.name}: {what}: not within {timeout_s} s; last {last!r}\n{self.output()}")

    def wait_http(self, url: str, timeout_s: float = 60.0) -> str:
        """Waits until `url` is answered with 2xx; its body."""
        return self.wait_for(f"GET {url}", lambda: http_get(url) or " ", timeout_s)

    def wait_end(self, timeout_s: float) -> str:
        """Waits until the program has ended by itself with status 0; what it printed. `AssertionError` otherwise."""
        status = self.popen.wait(timeout_s)
        assert status == 0, f"{self.name} ended with {status}:\n{self.output()}"
        return self.output()

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then its exit status; SIGKILL to the whole group when it does not end in time. Safe twice."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL to the program and its children."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


class Processes:
    """The programs of one test; leaving the context ends them, the last started first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Process] = []

    def start(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Process:
        """Starts `command` with `stdin` as its input; what it prints goes to `<name>.log` in the folder."""
        process = Process(name, command, self.folder / f"{name}.log", env, stdin)
        self.started.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.started):
            process.stop(timeout_s=10.0)
            process.kill()
