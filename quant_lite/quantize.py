"""Map real numbers to int8 and back, with an error that is known beforehand.

Absmax (symmetric) and zero-point (asymmetric) quantization: Jacob et al. 2017, equation 1, and Dettmers et al. 2022
(LLM.int8), section 2. docs/quantization.md derives the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "WHOLE",
    "Granularity",
    "PerChannel",
    "PerTensor",
    "QuantizedTensor",
    "absmax_quantize",
    "error_bound",
    "zeropoint_quantize",
]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_U32 = 2.0**-24  # unit roundoff of float32: one operation is off by at most this share of its result


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis`; axis 0 of a linear layer's weight (N, K) is its output channel."""

    axis: int = 0


Granularity = PerTensor | PerChannel
WHOLE = PerTensor()


@dataclass(frozen=True)
class QuantizedTensor:
    """int8 values with what turns them back into numbers: x_hat = (values - zero_point) * scale.

    Attributes:
        values: int8, of the shape of the original.
        scale: float32, positive, broadcastable to `values`.
        zero_point: int8, of the shape of `scale`; zeros for absmax. It is the value that stands for 0.0.
        dtype: of the original, and of what `dequantize` returns.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    dtype: torch.dtype

    def dequantize(self) -> Tensor:
        """x_hat, computed in float32, kept within the range of `dtype` and rounded to it once."""
        steps = self.values.to(torch.int16) - self.zero_point.to(torch.int16)  # within +-255: exact
        limit = torch.finfo(self.dtype).max
        return (steps.float() * self.scale).clamp(-limit, limit).to(self.dtype)


def absmax_quantize(x: Tensor, granularity: Granularity = WHOLE) -> QuantizedTensor:
    """Symmetric: `s = max|x| / 127`, q = round(x / s) in [-127, 127] (Dettmers et al. 2022, section 2).

    Args:
        x: float32, float16 or bfloat16, of any shape, empty and 0-d included.
        granularity: which elements share a scale.

    Returns:
        With a scale of 1 where all values are zero.

    Raises:
        TypeError: another dtype.
        ValueError: x holds NaN or infinity, or the axis does not exist.
    """
    low, high = _range(x, granularity)
    scale = _round_up(torch.maximum(-low, high) / 127)
    return _quantize(x, scale, torch.zeros_like(scale, dtype=torch.int16), -127)


def zeropoint_quantize(x: Tensor, granularity: Granularity = WHOLE) -> QuantizedTensor:
    """Asymmetric: s = (max - min) / 255, z = -128 - round(min / s), q = round(x / s) + z (Jacob et al. 2017, eq. 1).

    The range is widened to hold 0, which is then represented exactly, by q = z.

    Args, Returns, Raises: as `absmax_quantize`.
    """
    low, high = _range(x, granularity)
    scale = _round_up((high - low) / 255)
    zero_point = (-128 - (low / scale.double()).round()).clamp(-128, 127).to(torch.int16)
    return _quantize(x, scale, zero_point, -128)


def error_bound(q: QuantizedTensor) -> Tensor:
    """For each element, a bound on `|x - x_hat|` that holds for every x that gives this q: s/2 and rounding.

    With u = 2^-24 and v the unit roundoff of q.dtype, it is `s/2 + u (3 |x_hat| + s) + v |x_hat|`: half a step,
    the rounding of the division x / s and of the product q s, and, where q.dtype is not float32, that of the cast
    (with half its smallest subnormal, which the cast may lose). docs/quantization.md has the proof.

    Returns:
        float32, of the shape of `q.values`, rounded up.
    """
    x_hat, s = q.dequantize().double().abs(), q.scale.double()
    bound = s / 2 + _U32 * (3 * x_hat + s)
    if q.dtype != torch.float32:
        info = torch.finfo(q.dtype)
        bound = bound + info.eps / 2 * 1.01 * x_hat + info.smallest_normal * info.eps / 2 * 1.01
    return _round_up(bound, zero=0.0)


def _range(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """min(x, 0) and max(x, 0) over what shares a scale, in float64 (max - min may pass float32's range)."""
    if x.dtype not in _FLOATS:
        raise TypeError(f"cannot quantize {x.dtype}: convert to float32, float16 or bfloat16 first")
    if not x.isfinite().all():
        raise ValueError("cannot quantize NaN or infinity: the tensor holds at least one; look where it comes from")
    if isinstance(granularity, PerTensor):
        shared = list(range(x.dim()))
    else:
        if not -x.dim() <= granularity.axis < x.dim():
            raise ValueError(
                f"PerChannel(axis={granularity.axis}): a tensor of shape {tuple(x.shape)} has no such axis"
            )
        shared = [axis for axis in range(x.dim()) if axis != granularity.axis % x.dim()]
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    if x.numel() == 0:
        zeros = torch.zeros(shape, dtype=torch.float64, device=x.device)
        return zeros, zeros
    low = x.amin(shared, keepdim=True) if shared else x  # amin over no axes would reduce all of them
    high = x.amax(shared, keepdim=True) if shared else x
    return low.double().clamp(max=0), high.double().clamp(min=0)


def _round_up(x: Tensor, zero: float = 1.0) -> Tensor:
    """float64 to the next float32 not below it, 0 to `zero`.

    A scale that were rounded down, as far as to zero among subnormals, would push max|x| / s past 127.
    """
    rounded = x.float()
    rounded = torch.where(rounded.double() < x, torch.nextafter(rounded, torch.tensor(float("inf"))), rounded)
    return torch.where(x == 0, torch.full_like(rounded, zero), rounded)


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int) -> QuantizedTensor:
    """q = clamp(round(x / s) + z), ties to even, clamped before it is cast."""
    q = (x.float() / scale).round() + zero_point
    values = q.clamp(lowest, 127).to(torch.int8)
    return QuantizedTensor(values, scale, zero_point.to(torch.int8), x.dtype)
