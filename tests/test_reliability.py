"""Each promise and each threat in `docs/reliability.md` names a test, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
TABLES = ("## Promises", "## Faults and attacks")


def test_every_test_that_is_promised_exists(repository: Path) -> None:
    named = NAMED.findall((repository / "docs" / "reliability.md").read_text())
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (repository / "tests" / file).exists() or f"def {name}(" not in (repository / "tests" / file).read_text()
    ]
    assert missing == []


def test_every_promise_and_every_threat_names_its_test(repository: Path) -> None:
    page = (repository / "docs" / "reliability.md").read_text()
    for heading in TABLES:
        section = page.partition(f"{heading}\n")[2].partition("\n## ")[0]
        rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
        assert len(rows) > 15
        assert [row[0] for row in rows if not NAMED.search(row[-1]) and row[-1].strip() != "the same"] == []
