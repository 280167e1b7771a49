"""A few due chains are put in the same order by the kernel as many are by numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.kernels.emit import sort_few
from collector_processor.kernels.join import CHAIN, rows_of

SALTS = np.array([0, 0xDEADBEEF, 0x1234567890ABCDEF], np.uint64)
TENANTS = np.array([7, 3, 5], np.uint64)  # content hashes
CHAINS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([1, 2, 2**63]), st.integers(0, 2)), max_size=64
)


@given(CHAINS)
def test_order_of_a_few_chains_is_that_of_lexsort(drawn: list[tuple[int, int, int, int]]) -> None:
    chains, deadlines = rows_of(CHAIN, len(drawn)), np.zeros(len(drawn), np.int64)
    for row, (deadline, tenant, hi, lo) in enumerate(drawn):
        deadlines[row] = deadline
        chains["tenant"][row], chains["hi"][row], chains["lo"][row] = tenant, np.uint64(hi) ^ SALTS[tenant], lo
    due = np.arange(len(drawn), dtype=np.int32)[::-1].copy()
    tenant = chains["tenant"]
    keys = (TENANTS[tenant], chains["lo"], chains["hi"] ^ SALTS[tenant], deadlines)
    expected = due[np.lexsort(tuple(key[due] for key in keys))]
    sort_few(due, deadlines, chains, SALTS, TENANTS)
    assert due.tolist() == expected.tolist()
