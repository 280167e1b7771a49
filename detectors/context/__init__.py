"""What surrounds a transaction: which logs and calls an operation always makes. `detector.py` puts it together."""

from detectors.context.detector import Context, build

__all__ = ["Context", "build"]
