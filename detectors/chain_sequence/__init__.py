"""Transaction full-chain method: new, broken-off and shifting paths of each flow. `detector.py` says how."""

from detectors.chain_sequence.detector import ChainSequence, build

__all__ = ["ChainSequence", "build"]
