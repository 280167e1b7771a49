"""Bugs that the simulation has to find: each is a change of a few words in the code, with a name that says what it is.

How it works. `BUGS` is data: file, old text, new text. For each bug a child of a process that has loaded everything
imports the changed module, and those that use it, anew, with the change made in memory; kernels that are changed run as
plain Python. The child goes through a few seeds until a promise is broken, or something is raised that nobody raised
before. No file is touched, so a bug cannot be left behind, and numba's cache stays good for all others.

    python -m tests.simulation.planted [part of a name ...]
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = 16  # at most: most bugs show in the first or second
SECONDS = 16  # of traffic: a promise is broken early or not at all
BUG_S = 600.0  # then it counts as found: it hangs
DIED = "the child died without an answer"  # which counts as wrong: no promise has shown the bug


@dataclass(frozen=True, slots=True)
class Bug:
    """`old`, which stands once in `file`, becomes `new`. trouble: the kind of world that shows it."""

    name: str
    file: str
    old: str
    new: str
    trouble: str = "power cuts"

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".")


WAL = "collector_processor/journal/wal.py"
SEGMENT = "collector_processor/journal/segment.py"
CHECKPOINT = "collector_processor/journal/checkpoint.py"
KEEPER = "collector_processor/keeper.py"
CLOCK = "collector_processor/clock.py"
INTAKE = "collector_processor/intake.py"
RUNTIME = "collector_processor/runtime.py"
ENGINE = "collector_processor/engine.py"
JOINER = "collector_processor/join/joiner.py"
KERNEL = "collector_processor/kernels/join.py"
EMIT = "collector_processor/kernels/emit.py"
TREE = "collector_processor/kernels/tree.py"
USERS = (
    WAL,
    SEGMENT,
    CHECKPOINT,
    KEEPER,
    CLOCK,
    INTAKE,
    RUNTIME,
    ENGINE,
    JOINER,
    KERNEL,
    EMIT,
    TREE,
    "tests/simulation/world.py",
)
"""What is imported anew: the files above and what builds on them."""

BUGS = (
    Bug(
        "no sync before the acknowledgement",
        WAL,
        "            os.fdatasync(descriptor)\n        except OSError as failed:",
        "            pass\n        except OSError as failed:",
    ),
    Bug(
        "what a killed writer left is not synced before it is replayed",
        WAL,
        "                _sync_found(directory)\n",
        "                pass\n",
        "failing disk",
    ),
    Bug(
        "what was refused may come back",
        WAL,
        "                if position >= before:\n",
        "                if position >= end:\n",
        "failing disk",
    ),
    Bug(
        "the position of what a failed sync refused is not given again",
        WAL,
        "            self._next = batch[0].position\n",
        "            pass\n",
        "failing disk",
    ),
    Bug("the folder is not synced", WAL, "                sync_directory(self.directory)\n", "                pass\n"),
    Bug("a failed sync is acknowledged", WAL, "waiting.error = unavailable", "waiting.error = None", "failing disk"),
    Bug(
        "a failed write is acknowledged",
        WAL,
        "            raise self._unavailable(error) from error\n        self._sizes",
        "            return self._next\n        self._sizes",
        "failing disk",
    ),
    Bug("positions begin again after a restart", WAL, "max(at_least, end), arrival_ns)", "at_least, arrival_ns)"),
    Bug(
        "truncates what the older checkpoint needs",
        WAL,
        "self._segments[1].first <= before:",
        "self._segments[0].first <= before:",
    ),
    Bug("replay begins a payload too late", WAL, "if position >= from_position:", "if position > from_position:"),
    Bug("replay ends a payload too early", WAL, "min(following, end)", "min(following, end - 1)"),
    Bug(
        "checksums of payloads are not looked at",
        SEGMENT,
        "    if zlib.crc32(view[data_at:end]) != checksum:\n        return None\n",
        "",
        "failing disk",
    ),
    Bug("arrival times are not kept", SEGMENT, "data, found.arrival_ns)", "data, 0)"),
    Bug(
        "the journal is needed from the newest checkpoint only",
        CHECKPOINT,
        "return min(_position(path, position) for _, path in _generations(directory))",
        "return position",
    ),
    Bug(
        "a damaged checkpoint keeps its place",
        CHECKPOINT,
        "                _set_aside(path)\n",
        "                pass\n",
    ),
    Bug(
        "a checkpoint says it has read one payload more",
        RUNTIME,
        "self._keeper.begin(self._position, ",
        "self._keeper.begin(self._position + 1, ",
    ),
    Bug(
        "a checkpoint says it has read one payload less",
        RUNTIME,
        "self._keeper.begin(self._position, ",
        "self._keeper.begin(self._position - 1, ",
    ),
    Bug("a restart replays nothing", RUNTIME, "self._replay_until = self.journal.position", "self._replay_until = 0"),
    Bug(
        "a replay uses the present time",
        RUNTIME,
        "self.engine.process((payload,), payload.arrival_ns)",
        "self.engine.process((payload,), self._clock())",
    ),
    Bug(
        "what waits is forgotten at a checkpoint",
        INTAKE,
        "taken, self._waiting, self._bytes = self._waiting, [], 0",
        "taken, self._waiting, self._bytes = self._waiting[:3], [], 0",
        "failing disk",
    ),
    Bug(
        "a boundary closes with the time of the call",
        ENGINE,
        "for chains in self.joiner.close(boundary_ns):",
        "for chains in self.joiner.close(self.now_ns):",
    ),
    Bug(
        "rejected records are counted as received twice",
        ENGINE,
        "self.received[payload.signal] += records",
        "self.received[payload.signal] += records + 1",
    ),
    Bug(
        "deadlines are restored as those of new chains",
        JOINER,
        '        self._deadlines[: chains.size] = state["deadlines"]\n',
        """        self._deadlines[: chains.size] = np.where(
            np.array(state["deadlines"]) == kernel.FREE, kernel.FREE, chains["opened"] + self._waits[-1]
        )\n""",
    ),
    Bug("copies are kept", TREE, "        if copy:\n", "        if False:\n", "network"),
    Bug(
        "copies of logs are kept",
        TREE,
        "                    if pool[j].span == pool[k].span:\n                        logs",
        "                    if False:\n                        logs",
        "network",
    ),
    Bug(
        "records stay in the order of arrival",
        TREE,
        "times[j - 1] >= time:",
        "times[j - 1] > time + (1 << 62):",
        "network",
    ),
    Bug(
        "an arrival does not prolong the wait",
        KERNEL,
        "        deadlines[s] = min(chains[s].opened + age_max, now + wait)",
        "        deadlines[s] = min(chains[s].opened + age_max, chains[s].opened + wait // 8)",
        "network",
    ),
    Bug(
        "segments are never deleted",
        WAL,
        "len(self._segments) > 1 and self._segments[1]",
        "False and self._segments[1]",
    ),
    Bug(
        "a checkpoint does not flush",
        KEEPER,
        "name: exporter.flush(max(deadline - time.monotonic(), 0.1))",
        "name: True",
        "kills",
    ),
    Bug(
        "what waits to be learned is not restored",
        ENGINE,
        'epochs = state["quarantine"] if fits else []',
        "epochs = []",
        "kills",
    ),
    Bug(
        "open incidents are not restored",
        ENGINE,
        '        self.incidents.restore(state["incidents"])\n',
        "",
        "kills",
    ),
    Bug(
        "the calibration is not restored",
        ENGINE,
        '        self.decider.restore(state["decider"])\n',
        "",
    ),
    Bug(
        "waits are not restored",
        JOINER,
        'self._gap[:known] = state["gap"]',
        "pass",
        "kills",
    ),
    Bug(
        "time is told that no journal knows of",
        RUNTIME,
        "self._emit(self.engine.tick(self.engine.now_ns))",
        "self._emit(self.engine.tick(self._clock()))",
        "clock set back",
    ),
    Bug(
        "time stands still when the clock is set back",
        CLOCK,
        "self._last_ns + steady_ns - self._steady_ns",
        "self._last_ns",
        "clock set back",
    ),
    Bug(
        "the clock of a new start may be earlier than the journal",
        CLOCK,
        "self._last_ns = max(self._last_ns, now_ns)",
        "pass",
        "clock set back",
    ),
)


class Planter(importlib.abc.SourceLoader, importlib.abc.MetaPathFinder):
    """Imports one module with the bug in it."""

    def __init__(self, bug: Bug) -> None:
        self._bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        found = fullname == self._bug.module
        return importlib.machinery.ModuleSpec(fullname, self, origin=self._bug.file) if found else None

    def get_filename(self, fullname: str) -> str:
        return str(ROOT / self._bug.file)

    def get_data(self, path: str | bytes) -> bytes:
        return planted(self._bug).encode()


def planted(bug: Bug) -> str:
    """The source with the bug in it; an AssertionError when the old text does not stand there exactly once."""
    source = (ROOT / bug.file).read_text()
    assert source.count(bug.old) == 1, f"{bug.name}: stands {source.count(bug.old)} times in {bug.file}"
    return source.replace(bug.old, bug.new)


def plant(bug: Bug) -> None:
    """From now on this process runs with `bug`."""
    from numba.core import config as numba_config

    for file in USERS:
        module = file.removesuffix(".py").replace("/", ".")
        sys.modules.pop(module, None)
        package, _, name = module.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(name, None)
    sys.meta_path.insert(0, Planter(bug))
    if bug.file in (KERNEL, EMIT, TREE):
        numba_config.DISABLE_JIT = 1
        sys.modules.pop("collector_processor.kernels.wire")
        importlib.import_module("collector_processor.kernels.emit")
        kernel = importlib.import_module("collector_processor.kernels.join")
        numba_config.DISABLE_JIT = 0
        kernel.config = types.SimpleNamespace(DISABLE_JIT=1)  # type: ignore[attr-defined]


def examined(bug: Bug | None, seeds: Iterable[int], seconds: int) -> str:
    """The first promise that the code breaks with `bug` in it; empty when it keeps all. Without a bug it is held to one
    seed of every kind of world that is to show one."""
    warnings.simplefilter("ignore")
    if bug is not None:
        plant(bug)
    world = importlib.import_module("tests.simulation.world")
    worlds = [(seed, bug.trouble) for seed in seeds] if bug else [(0, name) for name in {bug.trouble for bug in BUGS}]
    for seed, trouble in worlds:
        for promise, is_kept in world.promises(seed, world.TROUBLES[trouble], seconds):
            if not is_kept:
                return f"seed {seed}: {promise}"
    return ""


def begun(bug: Bug | None, seeds: Iterable[int], seconds: int) -> tuple[int, int]:
    """(process, pipe) of a child that examines `bug` and writes what it has found."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = examined(bug, seeds, seconds)
        except BaseException:  # noqa: BLE001  (to be raised is to be found)
            found = "raised " + traceback.format_exc().strip().splitlines()[-1][:200]
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    return child, reading


def findings(
    bugs: Sequence[Bug | None], seeds: Iterable[int] = range(SEEDS), seconds: int = SECONDS, workers: int = 2
) -> Iterator[tuple[Bug | None, str, float]]:
    """(bug, what was found of it, seconds that took), as they are found; `workers` children at a time."""
    import structlog

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    world = importlib.import_module("tests.simulation.world")
    world.simulate(0, world.CALM, 5)  # everything is loaded once, before the first fork
    waiting, running = list(reversed(bugs)), {}
    while waiting or running:
        while waiting and len(running) < workers:
            bug, started = waiting.pop(), time.monotonic()
            child, reading = begun(bug, seeds, seconds)
            running[child] = (bug, reading, started)
        time.sleep(0.02)
        for child, (bug, reading, started) in list(running.items()):
            took = time.monotonic() - started
            done, _ = os.waitpid(child, os.WNOHANG)
            if not done and took < BUG_S:
                continue
            if not done:
                os.kill(child, 9)
                os.waitpid(child, 0)
            del running[child]
            with open(reading, "rb") as answer:
                text = answer.read()
            yield bug, json.loads(text) if text else DIED if done else "hangs", took


def main() -> int:
    """Prints what is found of each bug; 1 when something was found of none."""
    sys.path.insert(0, str(ROOT / "tests"))
    wanted = sys.argv[1:]
    bugs = [bug for bug in BUGS if not wanted or any(part in bug.name for part in wanted)]
    missed = 0
    for bug, found, took in findings(bugs if wanted else [None, *bugs]):
        missed += found == DIED or bool(bug) != bool(found)
        print(f"{took:5.1f} s  {bug.name if bug else 'no bug'}: {found or 'nothing'}", flush=True)
    print(f"{missed} wrong of {len(bugs)}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
