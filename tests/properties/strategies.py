"""hypothesis strategies for tensors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

__all__ = ["DTYPES", "tensors"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype | None = None, min_dims: int = 0) -> torch.Tensor:
    """Finite tensors of 0 to 3 axes, empty ones, subnormals, constants, huge ranges and views among them."""
    dtype = dtype or draw(st.sampled_from(DTYPES))
    shape = draw(npst.array_shapes(min_dims=min_dims, max_dims=3, min_side=0, max_side=7))
    limit = torch.finfo(dtype).max
    exponent = draw(st.sampled_from([limit, 1e-40, 1e-6, 1.0, 100.0]))
    bound = float(np.float32(min(limit, exponent)))
    elements = st.floats(-bound, bound, width=32, allow_subnormal=True)
    array = draw(npst.arrays(np.float32, shape, elements=elements))
    x = torch.from_numpy(array.copy()).clamp(-limit, limit).to(dtype).clamp(-limit, limit)
    return x.transpose(0, -1) if x.dim() > 1 and draw(st.booleans()) else x
