"""`docs/reliability.md` names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_test_that_is_promised_exists(repository: Path) -> None:
    named = NAMED.findall((repository / "docs" / "reliability.md").read_text())
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (repository / "tests" / file).exists() or f"def {name}(" not in (repository / "tests" / file).read_text()
    ]
    assert missing == []
