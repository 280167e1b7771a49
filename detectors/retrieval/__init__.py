"""Distance of a chain's events and attribute values to the nearest normal chains. `detector.py` says how."""

from detectors.retrieval.detector import Retrieval, build

__all__ = ["Retrieval", "build"]
