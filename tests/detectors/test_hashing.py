"""Texts as hashed n-grams: the same everywhere, near when reworded, far when foreign."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.hashing import folded, ngrams


def vector(text: str) -> np.ndarray:
    return folded(*ngrams(text), 256)


@pytest.mark.parametrize(
    ("one", "near", "far"),
    [
        ("debited <*> from account <*>", "debited <*> from the account <*>", "mail server unreachable"),
        ("OrderController.createOrder", "order_controller create order", "SELECT ts.trip2"),
        ("connection refused by <*>", "connection to <*> refused", "order <*> stored"),
    ],
)
def test_reworded_is_near_and_foreign_is_far(one: str, near: str, far: str) -> None:
    assert vector(one) @ vector(near) > 0.6
    assert vector(one) @ vector(far) < 0.3


@given(st.text())
def test_any_text_has_a_vector_of_length_one_or_none(text: str) -> None:
    length = float(np.linalg.norm(vector(text)))
    assert length == pytest.approx(1.0, abs=1e-5) or length == 0.0


def test_the_hash_is_the_same_in_every_process() -> None:
    hashes, weights = ngrams("pay")
    assert hashes.tolist() == [2159577868, 2364142224, 1957322347, 4270793276]
    assert weights.tolist() == [1.0, 0.5, 0.5, 0.5]
