"""How many examples a property is tried with, where the usual hundred are too few or too many.

How it works. A number in `@settings` would hold in every profile; this one gives way to the quick profile's.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def examples(number: int, **others: Any) -> settings:
    """Settings for `number` examples, or for fewer under the quick profile of `make check`."""
    quick = settings.get_current_profile_name() == "quick"
    return settings(max_examples=min(number, settings().max_examples) if quick else number, **others)
