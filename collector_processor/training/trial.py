"""Tries a model file in a process of its own: `python -m collector_processor.training.trial KIND MODEL SHA256 CPU_S`.

How it works. The process limits its own memory, time and files before it reads a byte of the model, loads it as the
detector would, and asks it whatever the detector may ask: runs of every shape. It says nothing and ends with 0, or says
why not and ends with 1; one that computes for more than CPU_S seconds is killed by the kernel.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

MEMORY_BYTES = 4 << 30  # address space: libraries map far more than they use
SEQUENCE, EMBEDDING = "sequence", "embedding"


def main(kind: str, path: Path, sha256: str, cpu_s: int) -> int:
    """Exit code."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        fault = KINDS[kind](path, sha256)
    except Exception as error:  # noqa: BLE001 (whatever a model does that ONNX Runtime does not like)
        fault = str(error)
    if fault is None:
        return 0
    sys.stderr.write(fault.replace("\n", " ") + "\n")
    return 1


def sequence(path: Path, sha256: str) -> str | None:
    """What is wrong with a model of `sequence_transformer`; None: nothing."""
    import numpy as np

    from detectors.sequence_transformer.tokens import FEATURES
    from detectors.sequence_transformer.transformer import BATCHES, CANDIDATES, CANDIDATES_FEW, load

    session, widths = load(path, sha256), set[int]()
    for length, batch in [*BATCHES.items(), (1, 1)]:
        for candidates in (1, CANDIDATES_FEW, CANDIDATES):
            given = {"tokens": np.zeros((batch, length, FEATURES), np.float32)}
            given["candidates"] = np.zeros((candidates, FEATURES), np.float32)
            queries, vectors = session.run(["queries", "vectors"], given)
            if (
                queries.ndim != 3
                or queries.shape[:2] != (batch, length)
                or vectors.shape != (candidates, *queries.shape[2:])
            ):
                return f"{path}: answers of shape {queries.shape} and {vectors.shape}"
            if not (np.isfinite(queries).all() and np.isfinite(vectors).all()):
                return f"{path}: answers are not finite"
            widths.add(queries.shape[2])
    return None if len(widths) == 1 else f"{path}: answers of changing width: {sorted(widths)}"


def embedding(path: Path, sha256: str) -> str | None:
    """What is wrong with a sentence-embedding model of `retrieval`; None: nothing."""
    import numpy as np

    from detectors.retrieval.embedding import TOKENS_MAX, OnnxEmbedder

    embedder = OnnxEmbedder(path, sha256)
    for text in ("", "payment <*> debited", "word " * TOKENS_MAX):
        vector = embedder.embed(text)
        if vector.shape != (embedder.dimensions,) or not np.isfinite(vector).all():
            return f"{path}: answers of shape {vector.shape}, or not finite"
    return None


KINDS = {SEQUENCE: sequence, EMBEDDING: embedding}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
