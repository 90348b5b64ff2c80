"""Map real numbers to int8, int4 or NF4 and back, with an error that is known beforehand.

Absmax (symmetric) and zero-point (asymmetric) quantization: Jacob et al. 2017, equation 1, and Dettmers et al. 2022
(LLM.int8), section 2; NF4: Dettmers et al. 2023 (QLoRA), section 3. docs/bounds.md derives the bounds.

Shapes: ... any leading dimensions, K the size of the last axis, G = ceil(K / size) groups.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import EllipsisType

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

__all__ = [
    "NF4_LEVELS",
    "WHOLE",
    "Granularity",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QuantizedTensor",
    "absmax_quantize",
    "error_bound",
    "nf4_quantize",
    "quantize_with",
    "zeropoint_quantize",
]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ROOM = 2.0**-14  # steps that float32 arithmetic on at most 255 of them may be off: 641 roundoffs of 2^-24 at most
_HIGHEST = {8: 127, 4: 7}  # by bits
_PIECE = 2**20  # elements worked on at a time: what is computed on the way then stays in the cache

# Dettmers et al. 2023, appendix E: quantiles of a normal distribution, scaled to [-1, 1], 0 among them
NF4_LEVELS = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
    + [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    dtype=torch.float32,
)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis`; axis 0 of a linear layer's weight (N, K) is its output channel."""

    axis: int = 0


@dataclass(frozen=True)
class PerToken:
    """One scale for each index of all axes but the last: for activations (..., K), a scale a token (..., 1)."""


@dataclass(frozen=True)
class PerGroup:
    """One scale for `size` neighbours along the last axis; where K is no multiple, a row's last group is shorter.

    Raises:
        ValueError: `size` is below 1.
    """

    size: int = 128

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"PerGroup(size={self.size}): a group has at least 1 element")


Granularity = PerTensor | PerChannel | PerToken | PerGroup
WHOLE = PerTensor()


@dataclass(frozen=True)
class QuantizedTensor:
    """Small integers with what turns them back into numbers: x_hat = (values - zero_point) * scale.

    With `levels` (NF4) the values are indices: x_hat = levels[values] * scale.

    Attributes:
        values: int8, of the shape of the original.
        scale: float32, positive, broadcastable to `values`; with `group`, (..., G).
        zero_point: int8, of the shape of `scale`; zeros for absmax. It is the value that stands for 0.0.
        dtype: of the original, and of what `dequantize` returns.
        group: how many neighbours along the last axis share a scale; None where `scale` broadcasts.
        levels: float32, rising, what each value stands for; None for integers.
        measured: the scale is that of these numbers, not one that was given: zeros then stand for zeros alone.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    dtype: torch.dtype
    group: int | None = None
    levels: Tensor | None = None
    measured: bool = True

    def dequantize(self) -> Tensor:
        """x_hat, computed in float32, kept within the range of `dtype` and rounded to it once."""
        x_hat = torch.empty(self.values.shape, dtype=self.dtype, device=self.values.device)
        for rows in _pieces(x_hat):
            x_hat[rows] = self._dequantized(rows)
        return x_hat

    def rows(self, rows: slice | Tensor) -> QuantizedTensor:
        """Some rows (axis 0) of a quantized matrix: a slice, or those of an index, which must be from 0 on."""

        def pick(t: Tensor) -> Tensor:
            return t[rows] if isinstance(rows, slice) else t.index_select(0, rows)

        scale, zero_point = self.scale, self.zero_point
        if scale.dim() and len(scale) == len(self.values):
            scale, zero_point = pick(scale), pick(zero_point)
        return replace(self, values=pick(self.values), scale=scale, zero_point=zero_point)

    def _dequantized(self, rows: slice | EllipsisType) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return (self._units(rows) * self._spread(self.scale, rows)).clamp_(-limit, limit).to(self.dtype)

    def _units(self, rows: slice | EllipsisType) -> Tensor:
        """What the scale multiplies, for some rows, exact in float32: q - z, within +-255, or the level."""
        if self.levels is not None:
            return self.levels[self.values[rows].int()]
        return self.values[rows].float().sub_(self._spread(self.zero_point, rows))

    def _spread(self, of_groups: Tensor, rows: slice | EllipsisType) -> Tensor:
        return _spread(of_groups, rows, self.values.shape, self.group)


def absmax_quantize(x: Tensor, granularity: Granularity = WHOLE, bits: int = 8) -> QuantizedTensor:
    """Symmetric: `s = max|x| / 127`, q = round(x / s) in [-127, 127] (Dettmers et al. 2022, section 2).

    With 4 bits 7 stands for 127.

    Args:
        x: float32, float16 or bfloat16, of any shape, empty and 0-d included.
        granularity: which elements share a scale.
        bits: 8 or 4; 4-bit values are int8, too, one in a byte.

    Returns:
        With a scale of 1 where all values are zero.

    Raises:
        TypeError: another dtype.
        ValueError: x holds NaN or infinity, the axis does not exist, or `bits` is neither 8 nor 4.
    """
    highest = _highest(bits)
    low, high = _range(x, granularity)
    scale = _round_up(torch.maximum(-low, high) / highest)
    zero_point = torch.zeros_like(scale, dtype=torch.int8)
    return _quantize(x, scale, zero_point, _group(granularity), -highest, highest)


def zeropoint_quantize(x: Tensor, granularity: Granularity = WHOLE, bits: int = 8) -> QuantizedTensor:
    """Asymmetric: s = (max - min) / 255, z = -128 - round(min / s), q = round(x / s) + z (Jacob et al. 2017, eq. 1).

    The range is widened to hold 0, which is then represented exactly, by q = z. With 4 bits 15 stands for 255 and 8
    for 128, and q is in [-8, 7].

    Args, Returns, Raises: as `absmax_quantize`.
    """
    highest = _highest(bits)
    low, high = _range(x, granularity)
    scale = _round_up((high - low) / (2 * highest + 1))
    lowest = -highest - 1
    zero_point = (lowest - (low / scale.double()).round()).clamp(lowest, highest).to(torch.int8)
    return _quantize(x, scale, zero_point, _group(granularity), lowest, highest)


def quantize_with(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, bits: int = 8, group: int | None = None
) -> QuantizedTensor:
    """With a scale that is given, as calibration found it, or another tensor's: q = clamp(round(x / s) + z).

    What is outside the range becomes the nearest end of it, so `error_bound` holds only for what is inside.

    Args:
        x: float32, float16 or bfloat16, of any shape.
        scale: float32, positive and finite, broadcastable to x; with `group`, (..., G).
        zero_point: int8, of the shape of the scale; None for absmax, whose range is [-127, 127] (4 bits: [-7, 7]).
        bits: 8 or 4.
        group: how many neighbours along the last axis share a scale.

    Raises:
        TypeError: x or the scale has another dtype.
        ValueError: x holds NaN or infinity, the scale is not positive and finite, a zero point is no integer of the
            range, the shape of either does not fit x, or `bits` is neither 8 nor 4.
    """
    highest = _highest(bits)
    _range(x, WHOLE)  # refuses what is not finite
    if scale.dtype != torch.float32:
        raise TypeError(f"the scale is {scale.dtype}: convert it to float32, in which x is divided by it")
    if not (scale.isfinite().all() and (scale > 0).all()):
        raise ValueError("a scale is not positive and finite: it cannot divide x")
    _check_fits("scale", scale, x, group)
    if zero_point is None:
        q = _quantize(x, scale, torch.zeros_like(scale, dtype=torch.int8), group, -highest, highest)
    else:
        _check_fits("zero_point", zero_point, x, group)
        zero_point = _int8_zero_point(zero_point, -highest - 1, highest)
        q = _quantize(x, scale, zero_point, group, -highest - 1, highest)
    return replace(q, measured=False)


def _check_fits(name: str, given: Tensor, x: Tensor, group: int | None) -> None:
    """A scale or zero point broadcasts to x; one of groups, once each of its last axis is repeated."""
    shape, wanted = tuple(given.shape), tuple(x.shape)
    if group is not None and x.dim():
        wanted = (*wanted[:-1], -(-wanted[-1] // group))
    lasts = zip(reversed(shape), reversed(wanted))
    by_group = group is None or shape[-1:] == wanted[-1:] != ()
    if len(shape) > len(wanted) or not by_group or not all(size in (1, full) for size, full in lasts):
        raise ValueError(f"{name} {shape} does not fit x {tuple(x.shape)} with group={group}: it must broadcast to x")


def _int8_zero_point(zero_point: Tensor, lowest: int, highest: int) -> Tensor:
    if zero_point.dtype == torch.bool or zero_point.is_floating_point() or zero_point.is_complex():
        raise ValueError(f"zero_point is {zero_point.dtype}: it must be an integer, best int8")
    outside = zero_point[(zero_point < lowest) | (zero_point > highest)]
    if outside.numel():
        raise ValueError(
            f"zero_point={int(outside[0])} is outside of the integers, which are from {lowest} to {highest}"
        )
    return zero_point.to(torch.int8)


def full_range_rows(x: Tensor) -> QuantizedTensor:
    """Rows of x (T, K) with s = max|x| / 127.5 and q from -128 to 127, as the library compressed-tensors quantizes them.

    `error_bound` holds: of a largest number 127.5 s is half a step from 127 s.

    Raises:
        ValueError: x holds NaN or infinity.
    """
    low, high = _range(x, PerToken())
    exact = torch.maximum(-low, high) / 127.5
    # to the nearest float32 as the library has it; rounded up where it may be a subnormal one that is far off
    scale = torch.where(exact < torch.finfo(torch.float32).tiny, _round_up(exact), exact.float())
    return replace(_quantize(x, scale, torch.zeros_like(scale, dtype=torch.int8), None, -128, 127), measured=False)


def nf4_quantize(x: Tensor, granularity: Granularity = PerGroup(64)) -> QuantizedTensor:
    """4-bit NormalFloat: `s = max|x|`, q the index of the level nearest to x / s (Dettmers et al. 2023, eq. 4).

    The 16 levels hold equal shares of a normal distribution, and 0 exactly. Between two of them the lower wins a tie.

    Args, Returns, Raises: as `absmax_quantize`, without bits.
    """
    low, high = _range(x, granularity)
    scale = _round_up(torch.maximum(-low, high))
    group = _group(granularity)
    values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    for rows in _pieces(x):
        t = x[rows].float() / _spread(scale, rows, x.shape, group)
        q = torch.zeros(t.shape, dtype=torch.int8, device=x.device)
        for middle in _midpoints(NF4_LEVELS).tolist():  # faster than torch.bucketize, which searches
            q += t > middle
        values[rows] = q
    return QuantizedTensor(
        values, scale, torch.zeros_like(scale, dtype=torch.int8), x.dtype, group, NF4_LEVELS.to(x.device)
    )


def error_bound(q: QuantizedTensor) -> Tensor:
    """For each element, a bound on `|x - x_hat|` that holds for every x that a quantizer gives this q for.

    It is `s (1/2 + 2^-14) + |p - x_hat|` with p = fl((q - z) s) in float32: half a step, the rounding of the division
    and of the product, and the cast to the dtype of x, which is none for float32. For a level l of NF4 half the wider
    gap beside it stands for 1/2, and l s, exact, for p. Where all that shares a scale is zero, so is the bound: nothing
    else is quantized to zeros alone. docs/bounds.md has the proof.

    Returns:
        float32, of the shape of `q.values`, rounded up.
    """
    bound = torch.empty(q.values.shape, dtype=torch.float32, device=q.values.device)
    scale = torch.where(_zero_groups(q), torch.zeros_like(q.scale), q.scale)
    half = _round_up(scale.double() * (0.5 + _ROOM), zero=0.0)
    for rows in _pieces(bound):
        bound[rows] = _level_bound(q, scale, rows) if q.levels is not None else _integer_bound(q, half, rows)
    return bound


def _integer_bound(q: QuantizedTensor, half_step: Tensor, rows: slice | EllipsisType) -> Tensor:
    half = q._spread(half_step, rows)
    if q.dtype == torch.float32:
        return half
    limit = torch.finfo(q.dtype).max
    product = (q._units(rows) * q._spread(q.scale, rows)).clamp_(-limit, limit)  # clamped, it is nearer to x
    return half + (product - q._dequantized(rows).float()).abs_()


def _level_bound(q: QuantizedTensor, scale: Tensor, rows: slice | EllipsisType) -> Tensor:
    assert q.levels is not None
    half = _half_gaps(q.levels)[q.values[rows].int()] + _ROOM
    product = q._units(rows).double() * q._spread(q.scale, rows).double()  # float32 could underflow
    cast = (product - q._dequantized(rows).double()).abs_()
    return _round_up(q._spread(scale, rows).double() * half + cast, zero=0.0)


def _zero_groups(q: QuantizedTensor) -> Tensor:
    """Of the shape of the scale: does all that shares it stand for 0? Its scale is 1 then."""
    ones = q.scale == 1
    if not q.measured:
        return torch.zeros_like(ones)
    if q.values.numel() == 0 or not ones.any():
        return ones
    if q.group is not None:  # in float32: small groups of int8 are slow to reduce
        parts = [_group_range(q.values[rows].float(), PerGroup(q.group)) for rows in _pieces(q.values)]
        low, high = (torch.cat(ends) for ends in zip(*parts))
    else:
        shared = [axis for axis, size in enumerate(q.scale.shape) if size == 1]
        low, high = (q.values.amin(shared, True), q.values.amax(shared, True)) if shared else (q.values, q.values)
    zero = q.zero_point if q.levels is None else int((q.levels == 0).nonzero())
    return (low == zero) & (high == zero) & ones


def _midpoints(levels: Tensor) -> Tensor:
    """Between neighbours: half the sum, as one rounding leaves it."""
    return (levels[1:] + levels[:-1]) / 2


def is_traced() -> bool:
    """Whether operators are being recorded (torch.jit.trace, make_fx, torch.export), which have no numbers to ask for.

    torch.compile is another thing: it breaks its graph where a number is asked for.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    recording = sys.modules.get("torch.fx.experimental.proxy_tensor")  # heavy to import, and not loaded is not running
    return is_tracing() or (recording is not None and recording.get_proxy_mode() is not None)


def _half_gaps(levels: Tensor) -> Tensor:
    """How far from each level what is nearest to it may lie: float64."""
    wide = levels.double()
    middle = _midpoints(levels).double()
    edge = torch.zeros(1, dtype=torch.float64, device=levels.device)
    return torch.maximum(torch.cat((edge, wide[1:] - middle)), torch.cat((middle - wide[:-1], edge)))


def _highest(bits: int) -> int:
    if bits not in _HIGHEST:
        raise ValueError(f"bits={bits!r} is not known: take 8 or 4")
    return _HIGHEST[bits]


def _range(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """min(x, 0) and max(x, 0) over what shares a scale, in float64 (max - min may pass float32's range)."""
    if x.dtype not in _FLOATS:
        raise TypeError(f"cannot quantize {x.dtype}: convert to float32, float16 or bfloat16 first")
    if isinstance(granularity, PerGroup):
        low, high = _group_range(x, granularity)
    else:
        shared = _shared_axes(x, granularity)
        if x.numel() == 0:
            low = high = x.new_zeros([1 if axis in shared else size for axis, size in enumerate(x.shape)])
        else:
            low = x.amin(shared, keepdim=True) if shared else x  # amin over no axes would reduce all of them
            high = x.amax(shared, keepdim=True) if shared else x
    if not is_traced() and not (low.isfinite().all() and high.isfinite().all()):  # NaN spreads to both
        raise ValueError("cannot quantize NaN or infinity: the tensor holds at least one; look where it comes from")
    return low.double().clamp_(max=0), high.double().clamp_(min=0)


def _shared_axes(x: Tensor, granularity: PerTensor | PerChannel | PerToken) -> list[int]:
    if isinstance(granularity, PerTensor):
        return list(range(x.dim()))
    if isinstance(granularity, PerToken):
        if x.dim() == 0:
            raise ValueError("PerToken(): a 0-d tensor has no last axis")
        return [x.dim() - 1]
    if not -x.dim() <= granularity.axis < x.dim():
        raise ValueError(f"PerChannel(axis={granularity.axis}): a tensor of shape {tuple(x.shape)} has no such axis")
    return [axis for axis in range(x.dim()) if axis != granularity.axis % x.dim()]


def _group_range(x: Tensor, granularity: PerGroup) -> tuple[Tensor, Tensor]:
    """Smallest and largest of each group, (..., G), without a copy of x."""
    if x.dim() == 0:
        raise ValueError(f"PerGroup(size={granularity.size}): a 0-d tensor has no last axis")
    size = granularity.size
    whole = x.shape[-1] // size * size
    parts = [x[..., :whole].unflatten(-1, (whole // size, size))] if whole else []
    parts += [x[..., None, whole:]] if x.shape[-1] > whole else []
    if not parts:
        return x, x  # K = 0: no groups
    if x.numel() == 0:
        zeros = x.new_zeros(*x.shape[:-1], -(-x.shape[-1] // size))
        return zeros, zeros
    return torch.cat([part.amin(-1) for part in parts], -1), torch.cat([part.amax(-1) for part in parts], -1)


def _round_up(x: Tensor, zero: float = 1.0) -> Tensor:
    """float64 to the next float32 not below it, 0 to `zero`.

    A scale that were rounded down, as far as to zero among subnormals, would push max|x| / s past 127.
    """
    rounded = x.float()
    rounded = torch.where(
        rounded.double() < x, torch.nextafter(rounded, torch.full_like(rounded, float("inf"))), rounded
    )
    return torch.where(x == 0, torch.full_like(rounded, zero), rounded)


def _group(granularity: Granularity) -> int | None:
    return granularity.size if isinstance(granularity, PerGroup) else None


def _quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, group: int | None, lowest: int, highest: int
) -> QuantizedTensor:
    """q = clamp(round(x / s) + z), ties to even, clamped before it is cast."""
    values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    for rows in _pieces(x):
        q = (x[rows].float() / _spread(scale, rows, x.shape, group)).round_()
        values[rows] = q.add_(_spread(zero_point, rows, x.shape, group)).clamp_(lowest, highest)
    return QuantizedTensor(values, scale, zero_point, x.dtype, group)


def _pieces(x: Tensor) -> Iterator[slice | EllipsisType]:
    """Indices of consecutive rows (axis 0) that hold about `_PIECE` elements, or one index of everything."""
    if x.numel() <= _PIECE or x.dim() < 2:
        yield ...
        return
    step = max(1, _PIECE * x.shape[0] // x.numel())
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def _spread(of_groups: Tensor, rows: slice | EllipsisType, shape: torch.Size, group: int | None) -> Tensor:
    """A scale or zero point for some rows of a tensor of this shape, broadcastable to them."""
    if of_groups.dim() == len(shape) > 1 and of_groups.shape[0] == shape[0]:
        of_groups = of_groups[rows]
    return of_groups if group is None else of_groups.repeat_interleave(group, -1)[..., : shape[-1]]
