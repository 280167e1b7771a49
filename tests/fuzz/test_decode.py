"""The fuzzers, for a minute here and for an hour each in `make soak`; every run has another seed and prints it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import decode
from tests.fuzz.mutate import Mutator, Odd, parse, write

FOUND = Path(__file__).parent / "found.txt"


def run(module: str, seconds: float, tmp_path: Path, *arguments: str) -> dict[str, int]:
    """The counts of a run with bounds checks on."""
    seed = int(os.environ.get("SPANCHAIN_FUZZ_SEED", random.SystemRandom().randrange(2**32)))
    command = [sys.executable, "-m", module, str(seconds), str(seed), *arguments]
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"SPANCHAIN_FUZZ_SEED={seed}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    print(f"seed {seed}: {done.stdout.splitlines()[-1]}")
    return {name: int(count) for count, name in (part.split(" ", 1) for part in done.stdout.strip().split(", "))}


@pytest.mark.slow
@pytest.mark.soak
def test_the_decode_kernel_agrees_with_protobuf(soak_s: Callable[[float], float], tmp_path: Path) -> None:
    """200,000 mutated payloads at least, 20 million in the long form; none may end it or take a second."""
    seconds = soak_s(60.0)
    counts = run("tests.fuzz.decode", seconds, tmp_path, str(FOUND))
    assert counts["inputs"] + counts["changed at random"] > (20_000_000 if seconds >= 3600 else 200_000)
    assert counts["inputs"] > 100 * seconds
    assert counts["both accept"] > counts["inputs"] / 10  # the mutations are not so wild that nothing is compared
    assert counts["both accept"] < counts["inputs"] * 0.9  # nor so tame


@pytest.mark.slow
@pytest.mark.soak
def test_the_json_transcoder_agrees_with_protobuf(soak_s: Callable[[float], float], tmp_path: Path) -> None:
    seconds = soak_s(20.0)
    counts = run("tests.fuzz.transcode", seconds, tmp_path)
    assert counts["inputs"] > 100 * seconds
    assert counts["inputs"] / 10 < counts["both accept"] < counts["inputs"] * 0.9


@pytest.mark.slow
def test_the_inputs_found_before_agree_now() -> None:
    fuzzer = decode.Fuzzer(0)
    found = decode.replay(fuzzer, FOUND)
    assert found == fuzzer.counts["inputs"] > 3


@pytest.mark.slow
def test_the_fuzzer_sees_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode.kernel.scan

    def wrong(*arguments: object) -> object:
        rows, *rest = right(*arguments)
        arguments[2][:, decode.kernel.PARENT] ^= 1
        return (rows, *rest)

    fuzzer = decode.Fuzzer(0)
    monkeypatch.setattr(decode.kernel, "scan", wrong)
    with pytest.raises(decode.Disagreement, match="parent"):
        fuzzer.run(5.0)


def test_the_same_seed_gives_the_same_inputs() -> None:
    _, requests = decode.corpus()
    first, second = Mutator(requests, 3), Mutator(requests, 3)
    made = [first.next() for _ in range(300)]
    assert made == [second.next() for _ in range(300)]
    assert len({data for _, data in made}) > 200


def test_what_is_parsed_and_written_is_the_same() -> None:
    _, requests = decode.corpus()
    for data in requests:
        assert write(parse(data), Odd()) == data
