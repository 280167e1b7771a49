"""Tries a model file in a process of its own: `python -m collector_processor.training.trial MODEL SHA256`.

How it works. The process limits its own memory, time and files before it reads a byte of the model, loads it as the
detector would, and asks it once. It says nothing and ends with 0, or says why not and ends with 1.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

MEMORY_BYTES = 4 << 30  # address space: libraries map far more than they use
CPU_S = 20


def main(path: Path, sha256: str) -> int:
    """Exit code."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    import numpy as np

    from detectors.sequence_transformer.tokens import FEATURES, LENGTH
    from detectors.sequence_transformer.transformer import ModelRefusedError, load

    try:
        session = load(path, sha256)
        tokens = np.zeros((1, LENGTH, FEATURES), np.float32)
        queries, vectors = session.run(["queries", "vectors"], {"tokens": tokens, "candidates": tokens[0]})
    except (ModelRefusedError, OSError) as error:
        sys.stderr.write(f"{error}\n".replace("\n", " ") + "\n")
        return 1
    if (
        queries.shape[:2] != (1, LENGTH)
        or vectors.shape != (LENGTH, queries.shape[2])
        or not np.isfinite(queries).all()
    ):
        sys.stderr.write(f"{path}: answers of shape {queries.shape} and {vectors.shape}, or not finite\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
