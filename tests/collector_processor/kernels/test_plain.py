"""The kernels say the same without numba's compiler, so that they can be stepped through and seen by coverage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from collector_processor.config import Config
from collector_processor.decide.verdicts import verdict_rows
from collector_processor.engine import Engine
from detectors.registry import DETECTORS
from tests.benchmarks.payloads import T0, payment_mix

ROOT = Path(__file__).parents[3]
SCRIPT = "from tests.collector_processor.kernels.test_plain import verdicts; print(*verdicts({!r}), sep='\\n')"


def verdicts(detectors: tuple[str, ...]) -> list[str]:
    """Verdict id and score of some payments and, after the first ones have been learned, of some more."""
    engine = Engine(
        Config.model_validate(
            {
                "detectors": {name: {"enabled": name in detectors} for name in DETECTORS},
                "join": {"attributes": ["payment.amount"], "business_keys": ["payment.id"]},
            }
        )
    )
    mixes = [payment_mix(4, per_request=2), payment_mix(2, per_request=1, seed=2, t0=T0 + 200_000_000_000)]
    batches = [
        batch
        for mix in mixes
        for payload in mix.payloads
        for batch in engine.process((payload,), payload.arrival_ns).verdicts
    ]
    engine.restore(engine.snapshot())
    batches += engine.flush().verdicts
    rows = [row for batch in batches for row in verdict_rows(batch, np.arange(len(batch)))]
    return [f"{row['verdict_id']} {row['score']}" for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("detectors", [("chain_sequence",), tuple(DETECTORS)], ids=["one", "all"])
def test_plain_python_gives_the_verdicts_of_compiled_kernels(detectors: tuple[str, ...]) -> None:
    plain = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", SCRIPT.format(detectors)],  # hashes overflow by intent
        cwd=ROOT,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert plain.returncode == 0, plain.stderr
    compiled = verdicts(detectors)
    assert len(compiled) == 6
    assert plain.stdout.split("\n")[:-1] == compiled
