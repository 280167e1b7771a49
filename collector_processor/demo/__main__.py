"""`python -m collector_processor.demo PICTURE.svg`: runs the demo for two minutes and keeps its screen as a picture.

How it works. The README's picture is made by this from a real run; nothing in it is drawn by hand. It is taken while
the last fault of the two minutes is on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from collector_processor.demo import run_demo

PICTURE_S = 119.0

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m collector_processor.demo PICTURE.svg")
    sys.exit(run_demo(PICTURE_S, exit_after=True, picture=Path(sys.argv[1])))
