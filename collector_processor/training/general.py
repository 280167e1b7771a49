"""Builds the general model that ships: `python -m collector_processor.training.general [FOLDER]` (the `train` extra).

How it works. The network is fitted to a few hundred made-up systems (`synthetic.py`); systems with other seeds say how
well it does on a system it has never seen. `model.json` beside the model records its SHA-256, what it was made of and
how it did.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
from rich.console import Console

from collector_processor.training.fit import fit, held_out_nats, prepare
from collector_processor.training.network import write
from collector_processor.training.synthetic import make_system
from detectors.sequence_transformer.promoted import SHIPPED

SYSTEMS, UNSEEN = 300, 40
STEPS = 1500
SEED = 20240501


def main(folder: Path = SHIPPED, systems: int = SYSTEMS, steps: int = STEPS) -> None:
    """Writes `model.onnx` and `model.json` into `folder`."""
    console = Console()
    known = [prepare(make_system(seed)) for seed in range(systems)]
    unseen = [prepare(make_system(10_000 + seed)) for seed in range(UNSEEN)]
    for part in unseen:
        part.held_out[:] = True
    network = fit(
        known, steps=steps, seed=SEED, report=lambda step, loss: console.print(f"step {step}: {loss:.3f} nats an event")
    )
    folder.mkdir(parents=True, exist_ok=True)
    digest = write(network, folder / "model.onnx")
    events = sum(len(part.features) for part in unseen) / len(unseen)
    described = {
        "name": "general",
        "sha256": digest,
        "made_by": "python -m collector_processor.training.general",
        "systems": systems,
        "steps": steps,
        "seed": SEED,
        "nats_per_event_unseen_systems": round(held_out_nats(network, unseen), 3),
        "events_per_unseen_system": round(events, 1),
    }
    (folder / "model.json").write_bytes(orjson.dumps(described, option=orjson.OPT_INDENT_2) + b"\n")
    console.print_json(orjson.dumps(described).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
