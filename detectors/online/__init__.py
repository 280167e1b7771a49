"""Statistics that learn while chains stream by: how long operations and calls take. `detector.py` says how."""

from detectors.online.detector import Online, build

__all__ = ["Online", "build"]
