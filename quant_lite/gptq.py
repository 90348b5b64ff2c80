"""GPTQ: round one column of a weight after another, and let those that are left make up for the error.

Shapes: N out features, K in features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quant_lite.linear import row_pieces
from quant_lite.quantize import (
    Granularity,
    PerChannel,
    QuantizedTensor,
    _highest,
    absmax_quantize,
)

__all__ = ["gptq_quantize"]

_PER_ROW = PerChannel(0)
_BLOCK = 128  # columns after which the errors are carried to all that are left


def gptq_quantize(
    weight: Tensor, hessian: Tensor, granularity: Granularity = _PER_ROW, bits: int = 8, damping: float = 0.01
) -> QuantizedTensor:
    """Absmax with the scales of `absmax_quantize`, and integers that make the layer's output error small.

    It minimizes tr((W - W_hat) H (W - W_hat)^T) = sum over x of `||(W - W_hat) x||^2`, for H the sum of x x^T over
    calibration inputs. For k = 1 ... K (Frantar et al. 2022, algorithm 1), with U the upper
    Cholesky factor of the inverse of H:

        q_k = round(w_k / s)        e = (w_k - s q_k) / U_kk        w_j <- w_j - e U_kj for all j > k

    A row that plain rounding serves better keeps that: the result is never worse on H. `error_bound` does not hold for
    it: what makes up for other errors may be more than half a step off.

    Args:
        weight: (N, K), float32, float16 or bfloat16, finite.
        hessian: (K, K), symmetric, positive semidefinite; any factor of it gives the same.
        granularity: which elements share a scale.
        bits: 8 or 4.
        damping: this share of the mean of its diagonal is added to the diagonal of H, so that it has an inverse.

    Raises:
        TypeError: another dtype.
        ValueError: the shapes do not fit, a number is not finite, or H has no inverse.
    """
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"weight {tuple(weight.shape)} and hessian {tuple(hessian.shape)} do not fit: (N, K), (K, K)")
    plain = absmax_quantize(weight, granularity, bits)
    if weight.numel() == 0:
        return plain
    upper = _inverse_factor(hessian, damping)
    h = hessian.double()
    for rows in row_pieces(weight):  # no row asks what becomes of another, and few at a time are few numbers of 64 bits
        part, w = plain.rows(rows), weight[rows].double()
        scale = part._spread(part.scale, ...).double().expand(w.shape)
        values = _rounded_in_turn(w, scale, upper, _highest(bits))
        errors = [_output_error(w - v.double() * scale, h) for v in (values, part.values)]
        better = (errors[0] < errors[1])[:, None]
        plain.values[rows] = torch.where(better, values, part.values)
    return replace(plain, measured=False)


def _rounded_in_turn(w: Tensor, scale: Tensor, upper: Tensor, highest: int) -> Tensor:
    values = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    w = w.clone()
    for start in range(0, w.shape[1], _BLOCK):
        end = min(start + _BLOCK, w.shape[1])
        errors = torch.empty(len(w), end - start, dtype=torch.float64, device=w.device)
        for k in range(start, end):
            q = (w[:, k] / scale[:, k]).round_().clamp_(-highest, highest)
            values[:, k] = q
            e = (w[:, k] - q * scale[:, k]) / upper[k, k]
            w[:, k + 1 : end] -= torch.outer(e, upper[k, k + 1 : end])
            errors[:, k - start] = e
        w[:, end:] -= errors @ upper[start:end, end:]
    return values


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with U^T U the inverse of the damped H; inputs that are always 0 are left alone."""
    h = hessian.double().clone()
    diagonal = h.diagonal()
    if not h.isfinite().all() or (diagonal < 0).any():
        raise ValueError("the Hessian holds NaN, infinity or a negative diagonal: it is a sum of x x^T")
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1
    lower, failed = torch.linalg.cholesky_ex(h)
    if not failed:
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed:
        raise ValueError(f"the Hessian with damping={damping} has no inverse (row {int(failed)}): raise the damping")
    return upper


def _output_error(off: Tensor, hessian: Tensor) -> Tensor:
    """(N,): d H d^T for each row d of W - W_hat."""
    return ((off @ hessian) * off).sum(1)
