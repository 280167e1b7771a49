"""Runs seeds of the simulation and says which promises each breaks.

python -m tests.simulation --seed 17 [--count N] [--trouble "failing disk"] [--seconds 16]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.simulation.world import TROUBLES, broken_promises, simulate


def main() -> int:
    """0 when every promise was kept; else the happenings of the first failing seed, and 1."""
    arguments = argparse.ArgumentParser(description="Simulated crashes and troubles of the network and the disk.")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--count", type=int, default=1)
    arguments.add_argument("--trouble", choices=TROUBLES, default="power cuts")
    arguments.add_argument("--seconds", type=int, default=40, help="of traffic")
    given = arguments.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # the troubles are meant to be
    for seed in range(given.seed, given.seed + given.count):
        broken = broken_promises(seed, TROUBLES[given.trouble], given.seconds)
        if broken:
            print("\n".join(simulate(seed, TROUBLES[given.trouble], given.seconds)[0].trace))
            print(f"seed {seed}: broken: {'; '.join(broken)}")
            return 1
        print(f"seed {seed}: all promises kept", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
