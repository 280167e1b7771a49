"""Writes the dashboard, the rules and the runbooks that are made from code; the tests fail when one is stale.

    python -m dashboards.build [--runbooks ADDRESS]

`--runbooks` is where your people find `docs/runbooks.md`; alerts then link there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from dashboards.alerts import RUNBOOKS, rules, runbooks
from dashboards.board import board

ROOT = Path(__file__).parents[1]
MADE = "# Made by `python -m dashboards.build` from alerts.yaml.\n"


def files(runbooks_at: str = RUNBOOKS) -> dict[Path, str]:
    """Path: content, of everything that is made."""
    rule_file = yaml.safe_dump(rules(runbooks_at), sort_keys=False, width=10_000, allow_unicode=True)
    return {
        ROOT / "dashboards" / "spanchain.json": board(),
        ROOT / "dashboards" / "spanchain.rules.yaml": MADE + rule_file,
        ROOT / "docs" / "runbooks.md": runbooks(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes dashboards, rules and runbooks.")
    parser.add_argument("--runbooks", default=RUNBOOKS, help="address of the page with the runbooks")
    for path, content in files(parser.parse_args().runbooks).items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
