"""Improbable orders of events inside spans: n-grams that learn, and a small Transformer. `detector.py` says how."""

from detectors.sequence_transformer.detector import SequenceTransformer, build

__all__ = ["SequenceTransformer", "build"]
