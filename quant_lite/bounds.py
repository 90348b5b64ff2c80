"""How far a product with a quantized weight may be off, element by element, before it is computed.

Shapes: ... any leading dimensions, K in features, N out features. docs/bounds.md has the proofs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant_lite.quantize import PerToken, QuantizedTensor, _round_up, absmax_quantize, error_bound, full_range_rows

__all__ = ["matmul_error_bound"]

_U32 = 2.0**-24  # unit roundoff of float32
_U64 = 2.0**-53
_CUT = 2**24 - 2**17 - 1  # half steps of x within its largest number as int8_fixed of kernels.c cuts it, and room
_LONGEST = 2**20
_ROWS = 2**22  # elements of the weight that are widened to float64 at a time


def matmul_error_bound(x: Tensor, q: QuantizedTensor, activations: str = "float") -> Tensor:
    """For each element of y = x W^T, a bound on `|y - y_hat|` that holds for every weight W that gives this q.

    With B = `error_bound(q)` and W_hat = `q.dequantize()` it is, for activations

        "float": abs(x) B^T                          + g abs(x) S^T + c 1 S^T
        "int8":  abs(x) B^T + abs((x - x_hat) W_hat^T) + g abs(x_hat) S^T

    with S the larger of abs(W_hat) and abs(n s), and g = m u / (1 - m u), m = K + 3, u = 2^-24, for the rounding of the
    product (Higham 2002, lemma 3.1), and K 2^-150 where products underflow. c, for each row of x, is half the step of
    x as the kernels read it, cut to 24 bits: max abs(x) / (2^24 - 2^17). It covers y_hat = x_hat W_hat^T in float32
    with its terms added in any order, with or without fused multiply-adds; for "int8", x_hat is
    `absmax_quantize(x.float(), PerToken()).dequantize()`. It covers the sums of integers that are scaled afterwards,
    too, as long as s s_x is no subnormal number. All of them are sums in float32, and it is infinite where one of them may
    pass its largest number on the way: abs(x) S^T, abs(x) abs(n)^T, which waits for s, and abs(n_x) S^T, which waits for
    s_x. So where it is finite, so is y_hat. (But y_hat in 16 bits may leave their range.)

    Args:
        x: (..., K), float32, float16 or bfloat16.
        q: of a weight (N, K), from `absmax_quantize`, `zeropoint_quantize` or `nf4_quantize`.
        activations: "float", or "int8" for those quantized by absmax, a scale a token, or "int8_full" of `Int8Linear`.

    Returns:
        float32 (..., N), rounded up.

    Raises:
        TypeError: another dtype.
        ValueError: x holds NaN or infinity, the shapes do not fit, or `activations` is something else.
    """
    if activations not in ("float", "int8", "int8_full"):
        raise ValueError(f"activations={activations!r} is not known: take float, int8 or int8_full")
    if q.values.dim() != 2 or x.dim() < 1 or x.shape[-1] != q.values.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(q.values.shape)} do not fit: need (..., K) and (N, K)")
    if x.shape[-1] > _LONGEST:
        raise ValueError(f"K = {x.shape[-1]}: float32 sums of more than {_LONGEST} terms have no useful bound")
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    # refuses what is not finite, for float activations too
    of_x = full_range_rows(rows) if activations == "int8_full" else absmax_quantize(rows, PerToken())
    wide = rows.double()
    cut = wide.abs().amax(-1, keepdim=True) / _CUT if activations == "float" and wide.numel() else None  # (T, 1)
    read = wide if activations == "float" else of_x.values.double() * of_x.scale.double()  # n s, exact
    steps = None if activations == "float" else of_x.values.double()
    bound = torch.empty(len(rows), len(q.values), dtype=torch.float32, device=x.device)
    step = max(1, _ROWS // max(1, x.shape[-1]))
    for start in range(0, len(q.values), step):
        bound[:, start : start + step] = _columns(wide, read, cut, steps, q.rows(slice(start, start + step)))
    return bound.view(*x.shape[:-1], len(q.values))


def _columns(x: Tensor, read: Tensor, cut: Tensor | None, steps: Tensor | None, q: QuantizedTensor) -> Tensor:
    """The bound for some rows of the weight.

    Args:
        x, read: float64 (T, K), and what the product reads of it.
        cut: (T, 1), what it cuts off; None for int8 activations.
        steps: (T, K), these in their integers; None for float.
    """
    w_hat, count = q.dequantize().double(), q.values.shape[1] + 3
    of_w = error_bound(q).double()
    size = torch.maximum(w_hat.abs(), _unrounded(q).abs())
    terms = read.abs() @ size.T
    rounding = count * _U32 / (1 - count * _U32) * terms + count * 2.0**-150 * (terms > 0)
    bound = x.abs() @ of_w.T + ((x - read) @ w_hat.T).abs() + rounding
    most = terms  # of the sums on the way: of w_hat and what is read of x, and of integers before they are scaled
    if cut is not None:
        bound, most = bound + cut * size.sum(-1), most + cut * size.sum(-1)
    if steps is not None:
        most = torch.maximum(most, steps.abs() @ size.T)
    if q.levels is None:
        most = torch.maximum(most, read.abs() @ q._units(...).double().abs().T)
    # what float64 itself is off in the four sums
    bound = bound + 4 * count * _U64 * (x.abs() @ of_w.T + (x.abs() + read.abs()) @ size.T)
    overflow = most * (1 + 2 * count * _U32) > torch.finfo(torch.float32).max
    return torch.where(overflow, torch.full_like(terms, float("inf")).float(), _round_up(bound, zero=0.0))


def _unrounded(q: QuantizedTensor) -> Tensor:
    """(q - z) s, or l s, exact in float64."""
    return q._units(...).double() * q._spread(q.scale, ...).double()
