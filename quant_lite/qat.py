"""Fake quantization: train with the errors of int8 in the forward pass, and gradients as if they were not there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quant_lite.quantize import (
    WHOLE,
    Granularity,
    absmax_quantize,
    nf4_quantize,
    quantize_with,
    zeropoint_quantize,
)

__all__ = ["fake_quantize", "fake_quantize_with"]


def fake_quantize(x: Tensor, granularity: Granularity = WHOLE, bits: int = 8, scheme: str = "absmax") -> Tensor:
    """x_hat, with the gradient of x: dL/dx = dL/dx_hat, the straight-through estimator.

    Bengio et al. 2013; Jacob et al. 2017, section 3. The range is that of x, so nothing is clamped.

    Args:
        x: float32, float16 or bfloat16, finite.
        granularity: which elements share a scale.
        bits: 8 or 4; NF4 has 4.
        scheme: "absmax", "zeropoint" or "nf4".

    Raises:
        TypeError, ValueError: as the quantizers do, or the scheme is not known.
    """
    if scheme == "nf4":
        q = nf4_quantize(x.detach(), granularity)
    elif scheme in ("absmax", "zeropoint"):
        quantize = absmax_quantize if scheme == "absmax" else zeropoint_quantize
        q = quantize(x.detach(), granularity, bits)
    else:
        raise ValueError(f"scheme={scheme!r} is not known: take absmax, zeropoint or nf4")
    return _StraightThrough.apply(x, q.dequantize(), None)


def fake_quantize_with(x: Tensor, scale: Tensor, zero_point: Tensor | None = None, bits: int = 8) -> Tensor:
    """The same for a scale that is given: where x is clamped, its gradient is zero, since x_hat does not move with it.

    dL/dx = dL/dx_hat where round(x / s) + z is in range, else 0 (Jacob et al. 2017, section 3).

    Args, Raises: as `quantize_with`.
    """
    q = quantize_with(x.detach(), scale, zero_point, bits)
    steps = (x.detach().float() / scale).round() + q.zero_point
    highest = 127 if bits == 8 else 7
    lowest = -highest if zero_point is None else -highest - 1
    return _StraightThrough.apply(x, q.dequantize(), (steps >= lowest) & (steps <= highest))


class _StraightThrough(torch.autograd.Function):
    """x_hat forward; backward the gradient, where `inside` allows it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_hat: Tensor, inside: Tensor | None) -> Tensor:
        ctx.inside = inside
        return x_hat

    @staticmethod
    def backward(ctx: Any, *of_x_hat: Tensor) -> tuple[Tensor, None, None]:
        inside = ctx.inside
        return (of_x_hat[0] if inside is None else of_x_hat[0] * inside), None, None
