"""`python -m collector_processor.demo picture FILE.svg`: two minutes of the demo, its last screen kept as a picture.

How it works. The README's picture is made by this from a real run; nothing in it is drawn by hand. It is taken while
the last fault of the two minutes is on. `settings` prints what `configs/demo.yaml` holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

from collector_processor.demo import run_demo
from collector_processor.demo.story import as_file

PICTURE_S: Final = 119.0

app = typer.Typer(add_completion=False)


@app.command()
def picture(file: Path) -> None:
    """Run the demo and write its last screen to FILE as SVG."""
    raise typer.Exit(run_demo(PICTURE_S, exit_after=True, picture=file))


@app.command()
def settings() -> None:
    """Print the demo's settings as a config file."""
    print(as_file(), end="")


if __name__ == "__main__":
    app()
