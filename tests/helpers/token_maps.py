"""Token maps of any shape, drawn by hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from subtok_data.segment import TokenMap


@st.composite
def token_maps(draw: st.DrawFn, lowest: int = 0) -> TokenMap:
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=20))
    labels = draw(arrays(np.int64, shape, elements=st.integers(lowest, 4)))
    labels = np.kron(labels, np.ones((1, draw(st.integers(1, 5))), np.int64))
    values = np.unique(labels)
    numbers = np.arange(len(values)) - int(values[0] < 0)
    dtype = draw(st.sampled_from([np.int16, np.int32]))
    return numbers[np.searchsorted(values, labels)].astype(dtype)
