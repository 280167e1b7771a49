"""The shadow baseline: what was normal once, frozen, against what is normal now."""

from detectors.shadow.detector import Shadow, build

__all__ = ["Shadow", "build"]
