"""What makes a quantizer a right one, as checks of anybody's implementation: of a student's, and of this package's own.

    from quant_lite import checks

    def quantize(x): ...                                # -> values, scale, zero_point (None for absmax)
    def dequantize(values, scale, zero_point): ...      # -> x_hat
    checks.check_all(checks.Quantizer(quantize, dequantize))    # or one by one: checks.check_zero(...)

Each check looks for a tensor that breaks its property with hypothesis, the same ones on each run, and makes what it
finds as small as it can. It raises `AssertionError` with a message that says what is wrong and why it matters.
`tensors` is what it draws from, for tests of your own.

This module needs hypothesis; `import quant_lite` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.extra import numpy as npst
from torch import Tensor

from quant_lite.quantize import WHOLE, Granularity, PerChannel, PerGroup, PerTensor, PerToken

__all__ = [
    "FLOATS",
    "Quantizer",
    "check_all",
    "check_dequantize",
    "check_error_bound",
    "check_finer_scales",
    "check_given_scale",
    "check_idempotent",
    "check_independent",
    "check_levels",
    "check_not_finite",
    "check_order",
    "check_permutation",
    "check_range",
    "check_rounding",
    "check_saturation",
    "check_scaling",
    "check_shapes",
    "check_sign_symmetry",
    "check_views",
    "check_zero",
    "tensors",
]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_EXAMPLES = 120
_TIES = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5], dtype=torch.float64)


@st.composite
def tensors(
    draw: st.DrawFn,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    min_dims: int = 0,
    max_dims: int = 4,
    min_side: int = 0,
    max_side: int = 5,
    largest: float = float("inf"),
) -> Tensor:
    """Finite tensors: empty ones, subnormals, constants, huge ranges and transposed views among them.

    Args:
        dtypes: of float32, float16 and bfloat16.
        min_dims, max_dims: number of axes, 0 for a 0-d tensor.
        min_side, max_side: elements along an axis, 0 for an empty tensor.
        largest: no element is larger than this in size.
    """
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(npst.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side))
    limit = min(torch.finfo(dtype).max, largest)
    subnormal = [1e-43] * (dtype == torch.float32)  # in 16 bits it is 0
    bounds = st.sampled_from([limit, *subnormal, 1e-40, 1e-35, 1e-6, 1.0, 100.0])
    bound = float(np.float32(min(limit, draw(bounds))))
    bound = bound if bound <= limit else float(np.nextafter(np.float32(bound), np.float32(0)))
    kind = draw(st.sampled_from(["few", "ends", "many", "long"]))
    if kind in ("many", "long"):  # for what is rare among a few, or comes late in a row
        many = kind == "many" or not shape
        grown = [(64, 12, 4, 2)[len(shape) - 1] for _ in shape] if many else [*[1] * (len(shape) - 1), 130]
        sides = [max(side, 1) * more for side, more in zip(shape, grown)]
        random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        x = torch.randn(sides, generator=random, dtype=torch.float64) * (bound / 4)
    else:
        ends = st.sampled_from([0.0, bound, -bound])
        elements = ends if kind == "ends" else ends | st.floats(-bound, bound, width=32)
        x = torch.from_numpy(draw(npst.arrays(np.float32, shape, elements=elements)).copy())
    x = x.clamp(-limit, limit).to(dtype).clamp(-limit, limit)
    return x.transpose(0, -1) if x.dim() > 1 and draw(st.booleans()) else x


@dataclass(frozen=True)
class Quantizer:
    """An implementation, and what it says it is.

    Attributes:
        quantize: x -> (values, scale, zero_point). Values are int8 or uint8, of the shape of x. The scale has one number
            for each set of elements that share it, in any shape and in their order; so has the zero point, or it is one
            number for all, or None, which is 0. Both may be Python's or NumPy's numbers, too.
        dequantize: (values, scale, zero_point), as `quantize` gave them, -> x_hat.
        quantize_with: (x, scale, zero_point) -> values, for a scale that is given; None if there is no such function.
        granularity: which elements share a scale.
        symmetric: absmax; otherwise zero-point.
        bits: 8 or 4.
        inputs: what it is to be tried on; None for `tensors()`, which is everything. Of other dtypes and shapes than these
            it is given nothing.
    """

    quantize: Callable[[Tensor], tuple[Tensor, Any, Any]]
    dequantize: Callable[[Tensor, Any, Any], Tensor]
    quantize_with: Callable[[Tensor, Any, Any], Tensor] | None = None
    granularity: Granularity = WHOLE
    symmetric: bool = True
    bits: int = 8
    inputs: st.SearchStrategy[Tensor] | None = None


def check_all(quantizer: Quantizer) -> None:
    """All checks, the simplest first: what fails first is what to mend first."""
    for check in (
        check_shapes,
        check_not_finite,
        check_range,
        check_zero,
        check_dequantize,
        check_levels,
        check_error_bound,
        check_order,
        check_rounding,
        check_independent,
        check_permutation,
        check_scaling,
        check_views,
    ):
        check(quantizer)
    if quantizer.symmetric:
        check_sign_symmetry(quantizer)
    if quantizer.quantize_with is not None:
        check_given_scale(quantizer)
        check_saturation(quantizer)
        check_idempotent(quantizer)


def check_shapes(quantizer: Quantizer) -> None:
    """A small integer for each element, and a positive scale for each set that shares one, zeros included."""

    def holds(x: Tensor) -> None:
        values, scale, zero_point = _call(quantizer, x)
        assert values.shape == x.shape, f"values are {tuple(values.shape)} for x {tuple(x.shape)}: they must be alike"
        assert values.dtype in (torch.int8, torch.uint8), f"values are {values.dtype}: store int8 or uint8"
        count = _check_count(scale, x, quantizer.granularity)
        scale = _numbers("scale", scale)
        wrong = scale[~(scale.isfinite() & (scale > 0))]
        assert not wrong.numel(), (
            f"a scale is {float(wrong[0])}: where all is zero take 1, or x / scale is 0 / 0; where max|x| is tiny, round "
            "the scale up; and max - min may be past the largest number"
        )
        if zero_point is not None:
            zeros = _numbers("zero point", zero_point).numel()
            assert zeros in (1, count), f"there are {zeros} zero points for {count} scales"

    _search(quantizer, holds)
    for x in _samples(quantizer) if quantizer.inputs is None else ():  # whose sum is past the largest number
        holds(torch.full_like(x, torch.finfo(x.dtype).max))


def check_range(quantizer: Quantizer) -> None:
    """Values and zero points lie among the integers of `bits` bits; absmax has no zero point."""

    def holds(x: Tensor) -> None:
        values, _, zero_point = _call(quantizer, x)
        lowest, highest = _ends(quantizer, values)
        if values.numel():
            ends = int(values.min()), int(values.max())
            assert lowest <= ends[0] and ends[1] <= highest, (
                f"values go from {ends[0]} to {ends[1]}, {quantizer.bits} bits from {lowest} to {highest}"
            )
        zeros = _numbers("zero point", 0 if zero_point is None else zero_point).double()
        if zeros.numel():
            broken = zeros[~(zeros.isfinite() & (zeros == zeros.round()))]
            assert not broken.numel(), f"a zero point is {float(broken[0])}, no integer: then 0 is not exact"
            z = int(zeros.min()), int(zeros.max())
            assert not quantizer.symmetric or z == (0, 0), f"absmax has no zero point, this one is {z[0]}"
            assert lowest <= z[0] and z[1] <= highest, (
                f"the zero point {z[0] if z[0] < lowest else z[1]} is outside {lowest} to {highest}: widen the range "
                "of x to hold 0"
            )

    _search(quantizer, holds)


def check_zero(quantizer: Quantizer) -> None:
    """0 stays 0 exactly: padding, masks, zeroed weights and ReLU's zeros must not become noise."""

    def holds(x: Tensor) -> None:
        every_other = torch.arange(x.numel()).view(x.shape) % 2 == 0
        first = [_with(x, 0, 0.0)] if x.numel() else []
        for zeroed in (torch.zeros_like(x), *first, x.masked_fill(every_other, 0.0)):
            x_hat = _dequantize(quantizer, *_call(quantizer, zeroed))
            off = x_hat[zeroed == 0]
            assert not off.isnan().any(), "0 becomes NaN: x / scale is 0 / 0 where all is zero, or 0 * infinity"
            assert (off == 0).all(), f"0 becomes {float(off[off != 0][0])}: it must stay 0 exactly"

    _search(quantizer, holds)


def check_dequantize(quantizer: Quantizer) -> None:
    """x_hat = (values - zero_point) * scale, finite and rounded to the dtype of x_hat once."""

    def holds(x: Tensor) -> None:
        values, scale, zero_point = _call(quantizer, x)
        x_hat = _dequantize(quantizer, values, scale, zero_point)
        assert x_hat.shape == x.shape, f"x_hat is {tuple(x_hat.shape)} for x {tuple(x.shape)}: they must be alike"
        n, s = _steps(quantizer, x, values, scale, zero_point)
        limit, other = (torch.finfo(dtype).max for dtype in (x_hat.dtype, x.dtype))
        expected = (n * s).clamp(-limit, limit)
        off = (x_hat.double() - expected).abs()
        off = torch.minimum(off, (x_hat.double() - expected.clamp(-other, other)).abs())  # in the range of x, too
        # up to four roundings of float32, since some multiply by a reciprocal, and one of the dtype
        room = 2.0**-22 * expected.abs() + _cast(x_hat.dtype, expected) + 2.0**-149
        assert (off <= room).all(), (
            f"x_hat is off (values - zero_point) * scale by up to {float((off / s).max()):.3g} steps: subtract the zero "
            "point first, in more than 8 bits, and compute in float32"
        )

    _search(quantizer, holds)


def check_levels(quantizer: Quantizer) -> None:
    """The largest number takes the last level, so that no bit is wasted: half the levels are twice the error."""

    def holds(x: Tensor) -> None:
        values, scale, zero_point = _call(quantizer, x)
        n, _ = _steps(quantizer, x, values, scale, zero_point)
        sets = _sets(x, quantizer.granularity).flatten()
        count = _count(x, quantizer.granularity)
        if not x.numel():
            return
        zeros = torch.zeros(count, dtype=torch.float64)
        high = zeros.scatter_reduce(0, sets, n.flatten(), "amax")
        low = zeros.scatter_reduce(0, sets, n.flatten(), "amin")
        largest = zeros.scatter_reduce(0, sets, x.double().flatten().abs(), "amax")
        used = torch.maximum(high, -low) if quantizer.symmetric else high - low
        all_of_them = 2 ** (quantizer.bits - 1) - 1 if quantizer.symmetric else 2**quantizer.bits - 2
        fine = largest > 1.5e-36  # below, the scale is a subnormal number, which has fewer bits
        assert (used[fine] >= all_of_them).all(), (
            f"the largest number is {int(used[fine].min())} steps, {all_of_them} are there: levels are lost"
        )

    _search(quantizer, holds)


def check_error_bound(quantizer: Quantizer) -> None:
    """`|x - x_hat|` is at most half a step, and what float32 and the dtype of x_hat round.

    That is s / 2 + 2^-14 s, and half a unit of a 16-bit x_hat: docs/bounds.md.
    """

    def holds(x: Tensor) -> None:
        values, scale, zero_point = _call(quantizer, x)
        x_hat = _dequantize(quantizer, values, scale, zero_point)
        n, s = _steps(quantizer, x, values, scale, zero_point)
        error = (x.double() - x_hat.double()).abs()
        bound = s * (0.5 + 2.0**-14) + _cast(x_hat.dtype, n * s)
        if (error <= bound).all():
            return
        worst = int((error - bound).argmax())
        number, given_scale = float(x.flatten()[worst]), float(s.expand(x.shape).flatten()[worst])
        z = (values.double() - n).flatten()[worst]
        nearest = float((number / given_scale + z).round().clamp(int(values.min()), int(values.max())))
        stored = float(values.flatten()[worst])
        steps = float(error.flatten()[worst]) / given_scale
        assert nearest != stored, (
            f"{number} is off by {steps:.3g} steps of {given_scale}, though it is stored as the nearest integer, {stored:g}: "
            "the range is cut, or the scale was rounded down, and the largest numbers are clamped, or x_hat overflows"
        )
        raise AssertionError(
            f"{number} is off by {steps:.3g} steps, half a step is the bound: with the scale {given_scale} that is "
            f"returned it must be stored as {nearest:g}, not {stored:g}. Round to nearest, clamp before the cast, and "
            "divide by the scale as it is stored, not by one of more bits"
        )

    _search(quantizer, holds)
    for x in _samples(quantizer):  # last, since it tells less of other faults
        for tried in _shrunk(x * (1.0 if quantizer.inputs is not None else 2.0**-130), quantizer.bits):
            holds(tried)


def check_order(quantizer: Quantizer) -> None:
    """What is larger does not become smaller, among those that share a scale."""

    def holds(x: Tensor) -> None:
        x_hat = _dequantize(quantizer, *_call(quantizer, x)).double().flatten()
        sets = _sets(x, quantizer.granularity).flatten()
        order = x.double().flatten().argsort(stable=True)
        order = order[sets[order].argsort(stable=True)]
        falls = (x_hat[order].diff() < 0) & (sets[order].diff() == 0)
        assert not falls.any(), "a larger number becomes a smaller one: integers wrap around, clamp before the cast"

    _search(quantizer, holds)


def check_rounding(quantizer: Quantizer) -> None:
    """A tie goes to the even integer, so that ties do not all push one way: 0.5 -> 0, 1.5 -> 2, -2.5 -> -2.

    Nothing is checked where the inputs have no place for a tie: where each number has a scale of its own.
    """
    for x, among, ties in _ties(quantizer):
        values, scale, zero_point = _call(quantizer, x)
        cases = [("", x.double()[among], _steps(quantizer, x, values, scale, zero_point)[0][among])]
        if quantizer.quantize_with is not None:
            values = _requantize(quantizer, ties, scale, zero_point)
            n, _ = _steps(quantizer, ties, values, scale, zero_point)
            cases.append(("given ", ties.double().flatten(), n.flatten()))
        for how, exact, n in cases:
            wrong = (n != exact.round()).nonzero().flatten().tolist()
            assert not wrong, (
                f"with a {how}scale of 1, {float(exact[wrong[0]])} becomes {float(n[wrong[0]])}: round half to even, as "
                "torch.round does, before a zero point is added; truncation and floor(x + 0.5) push all ties one way"
            )


def check_independent(quantizer: Quantizer) -> None:
    """What happens to one channel, token or group changes no other: a scale is of those that share it, only."""

    def holds(x: Tensor) -> None:
        others = _sets(x, quantizer.granularity) != 0
        limit = min(100 * float(x.abs().max()), torch.finfo(x.dtype).max) if x.numel() else 0.0
        silent, loud = (torch.where(others, x, torch.full_like(x, number)) for number in (0.0, limit))
        same = all(
            torch.equal(one.expand(x.shape)[others], other.expand(x.shape)[others])
            for one, other in zip(*(_steps(quantizer, x, *_call(quantizer, changed)) for changed in (silent, loud)))
        )
        assert same, (
            f"a change where others share a scale changes these, too: scales are not those of {quantizer.granularity}; "
            "is the axis swapped?"
        )

    _search(quantizer, holds)


def check_permutation(quantizer: Quantizer) -> None:
    """In another order the same numbers become the same: nothing depends on where a number stands."""

    def holds(x: Tensor) -> None:
        values, _, _ = _call(quantizer, x)
        axes = x.dim() - isinstance(quantizer.granularity, PerGroup)  # what is in a group is told by its place
        for axis in range(axes):
            for moved in (lambda t, axis=axis: t.flip(axis), lambda t, axis=axis: t.roll(1, axis)):
                assert torch.equal(_call(quantizer, moved(x))[0], moved(values)), (
                    f"x in another order along axis {axis} gives other values, not the same in that order"
                )

    _search(quantizer, holds)


def check_views(quantizer: Quantizer) -> None:
    """A view gives what a copy of it gives: numbers may start anywhere in memory, with gaps, in any order of axes."""

    def holds(x: Tensor) -> None:
        x = x.clone(memory_format=torch.contiguous_format)
        values, scale, zero_point = _call(quantizer, x)
        given = None if quantizer.quantize_with is None else _requantize(quantizer, x, scale, zero_point)
        x_hat = _dequantize(quantizer, values, scale, zero_point)
        for (how, view), (_, of_values) in zip(_views(x), _views(values)):
            why = "follow its storage offset and strides, or copy it first (contiguous)"
            same = all(map(_same, _call(quantizer, view), (values, scale, zero_point)))
            assert same, f"x {how} gives other values or another scale than its copy: {why}"
            if given is not None:
                again = _requantize(quantizer, view, scale, zero_point)
                assert _same(again, given), f"x {how} gives other values than its copy with a given scale: {why}"
            back = _dequantize(quantizer, of_values, scale, zero_point)
            assert _same(back, x_hat), f"values {how} are dequantized to other numbers than their copy: {why}"

    _search(quantizer, holds)


def check_scaling(quantizer: Quantizer) -> None:
    """A power of two times x has the same values, and a scale that is that power of two larger: units do not matter."""

    def holds(x: Tensor) -> None:
        if not _is_normal(x):
            return
        values, scale, zero_point = _call(quantizer, x)
        _, s = _steps(quantizer, x, values, scale, zero_point)
        # far from 1, too, where a constant of 1e-12 shows; at 2^-108 neither x nor its scale is subnormal yet
        far = (2.0**60, 2.0**-108) if quantizer.inputs is None and x.dtype != torch.float16 else ()
        for power in (4.0, 0.25, *far):
            if not _is_normal(x, power):
                continue
            moved = _call(quantizer, x * power)
            grown = _steps(quantizer, x, *moved)[1] / s
            zero = s == grown * s  # a set of zeros keeps its scale
            assert torch.equal(moved[0], values) and bool((zero | (grown == power)).all()), (
                f"{power} x does not give the values of x and {power} times its scale: something is added to the "
                "scale, or compared with a constant"
            )

    _search(quantizer, holds)


def check_not_finite(quantizer: Quantizer) -> None:
    """NaN and infinity raise `ValueError`: no integer stands for them, and their cast to one is undefined.

    With a scale that is given, too, where `quantize_with` is there.
    """
    for x in _samples(quantizer):
        given = _call(quantizer, x)[1:]
        for place in sorted({x.numel() * part // 6 for part in range(6)} | {x.numel() - 1}):
            for bad in (float("nan"), float("inf"), float("-inf")):
                odd = _with(x, place, bad)
                _refuses(quantizer.quantize, odd, bad)
                if quantizer.quantize_with is not None:
                    _refuses(quantizer.quantize_with, odd, bad, *given)


def _refuses(quantize: Callable[..., object], x: Tensor, bad: float, *given: object) -> None:
    how = " with a given scale" * bool(given)
    try:
        quantize(x, *given)
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{bad}{how} raises {type(error).__name__}, not ValueError: {error}") from error
    raise AssertionError(
        f"{bad} in x {tuple(x.shape)} of {x.dtype}{how} is quantized without a word: raise ValueError where x.isfinite() "
        "is not true"
    )


def check_sign_symmetry(quantizer: Quantizer) -> None:
    """Absmax of -x is that of x with the sign turned: so -128, which has no partner, is never used.

    Of right ones only those fail that divide by 127.5 to use -128, too.
    """

    def holds(x: Tensor) -> None:
        one, other = (_steps(quantizer, sign * x, *_call(quantizer, sign * x))[0] for sign in (1, -1))
        assert torch.equal(one, -other), (
            "-x does not become what x becomes with its sign turned: round half to even and use -127 to 127"
        )

    for x, _, _ in _ties(quantizer):
        holds(x)
    _search(quantizer, holds)


def check_given_scale(quantizer: Quantizer) -> None:
    """With a scale that is given, what is inside its range becomes the nearest integer, as with a scale of its own."""

    def holds(x: Tensor) -> None:
        own, scale, zero_point = _call(quantizer, x)
        for part in (1.0, 0.3):  # a part of x, whose own scale would be another
            y = (part * x.double()).to(x.dtype)
            values = _requantize(quantizer, y, scale, zero_point)
            assert (values.dtype, values.shape) == (own.dtype, own.shape), (
                f"quantize_with gives {values.dtype} of {tuple(values.shape)}, quantize {own.dtype} of {tuple(own.shape)}"
            )
            n, s = _steps(quantizer, y, values, scale, zero_point)
            lowest, highest = _ends(quantizer, values)
            lowest += quantizer.symmetric  # -128 is an end for some
            z = values.double() - n
            inside = (y.double() >= (lowest - z) * s) & (y.double() <= (highest - z) * s)
            off = (y.double() - n * s).abs() / s
            wrong = (inside & (off > 0.5 + 2.0**-14)).nonzero()
            if not len(wrong):
                continue
            number, step, stored, zero = (float(t[tuple(wrong[0])]) for t in (y, s.expand(y.shape), values, z))
            raise AssertionError(
                f"with a given scale of {step} and zero point of {zero:g}, {number} becomes {stored:g}, not "
                f"{round(number / step) + zero:g}, the nearest integer: quantize_with divides by the scale that it is "
                "given, adds the zero point that it is given, and nothing else"
            )

    _search(quantizer, holds)


def check_saturation(quantizer: Quantizer) -> None:
    """With a scale that is given, what is outside becomes the nearest end: clamped before the cast, it cannot wrap."""

    def holds(x: Tensor) -> None:
        values, scale, zero_point = _call(quantizer, x)
        lowest, highest = _ends(quantizer, values)
        _, s = _steps(quantizer, x, values, scale, zero_point)
        limit = torch.finfo(x.dtype).max
        for sign, end in ((1.0, highest), (-1.0, lowest)):
            for far in (300.0, 1e12):  # as an integer, 1e12 is past 32 bits
                outside = (sign * far * s).clamp(-limit, limit).to(x.dtype)
                stored = _requantize(quantizer, outside, scale, zero_point)[outside.double().abs() > 256 * s]
                allowed = (end, -highest) if sign < 0 and quantizer.symmetric else (end,)
                wrong = [int(v) for v in stored.unique() if int(v) not in allowed]
                assert not wrong, (
                    f"with a given scale, a number {'above' if sign > 0 else 'below'} the range becomes {wrong[0]}, "
                    f"not {end}: clamp before the cast, or integers wrap around"
                )

    _search(quantizer, holds)


def check_idempotent(quantizer: Quantizer) -> None:
    """Quantized again, with the same scale, x_hat has the same values: the error is made once."""

    def holds(x: Tensor) -> None:
        values, scale, zero_point = _call(quantizer, x)
        limit = torch.finfo(x.dtype).max
        # in the dtype of x, which may be the only one that it takes; x_hat is nearer to that than half a step, as to x
        x_hat = _dequantize(quantizer, values, scale, zero_point).clamp(-limit, limit).to(x.dtype)
        again = _requantize(quantizer, x_hat, scale, zero_point)
        clamped = x_hat.abs() == limit  # the last level may be past the largest number
        assert torch.equal(again[~clamped], values[~clamped]), (
            "x_hat is quantized to other values with the same scale and zero point: quantize and dequantize are not "
            "each other's inverse on the levels"
        )

    _search(quantizer, holds)


def check_finer_scales(make: Callable[[Granularity], Quantizer], group: int = 2) -> None:
    """A scale a group is at most that of its channel, and that at most the tensor's: so are the bounds on the error.

    Args:
        make: granularity -> quantizer, for `PerGroup(group)`, `PerToken()` (a channel of a weight) and `PerTensor()`.
        group: the size of a group.
    """
    chain = [make(granularity) for granularity in (PerGroup(group), PerToken(), PerTensor())]

    def holds(x: Tensor) -> None:
        steps = [_steps(each, x, *_call(each, x))[1].expand(x.shape) for each in chain]
        for finer, coarser, each in zip(steps, steps[1:], chain):
            zero = torch.zeros(_count(x, each.granularity), dtype=torch.float64)
            sets = _sets(x, each.granularity)
            largest = zero.scatter_reduce(0, sets.flatten(), x.double().abs().flatten(), "amax")[sets]
            assert (finer[largest > 0] <= coarser[largest > 0]).all(), (  # a set of zeros has any scale
                f"a scale of {each.granularity} is above that of the elements around it: it is not that of the largest"
            )

    _search(chain[0], holds, tensors(min_dims=1, min_side=1) if chain[0].inputs is None else chain[0].inputs)


def _samples(quantizer: Quantizer) -> list[Tensor]:
    """A few tensors of each dtype and number of axes that it takes, none of them empty."""
    if quantizer.inputs is None:
        dims = _dims(quantizer.granularity)
        shapes = [(6,)] * (dims < 2) + [(2, 3), (3, 2), (2, 3, 1)] if dims < 3 else [(*[1] * (dims - 2), 2, 3)]
        numbers = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.125, 0.25])
        return [numbers.to(dtype).view(shape) for dtype in FLOATS for shape in shapes]
    drawn: list[Tensor] = []
    _search(quantizer, drawn.append, examples=60)
    kinds: dict[tuple[torch.dtype, int], list[Tensor]] = {}
    for x in sorted((x for x in drawn if x.numel()), key=Tensor.numel):
        kinds.setdefault((x.dtype, x.dim()), []).append(x)
    return [same[at] for same in kinds.values() for at in sorted({0, len(same) // 2, len(same) - 1})]


def _shrunk(x: Tensor, bits: int) -> list[Tensor]:
    """A subnormal x as some that are so small that the scale is a few units of them: how it is rounded is seen then."""
    largest = x.double().abs().max() if x.numel() else torch.tensor(0.0)
    if x.dtype != torch.float32 or not 0 < largest < torch.finfo(torch.float32).tiny:
        return []
    units = [2 ** (bits - 1) * fifths // 5 for fifths in range(3, 26)]  # scales of 0.6 to 5 units, or of half as many
    return [(x / largest * (n * 2.0**-149)).float() for n in units]


def _ties(quantizer: Quantizer) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x for which the scale is 1, where in x numbers are half way between integers (bool), and x full of such numbers.

    The zero points are even, odd, and that of a range with 0 at its end.
    """
    highest = 2 ** (quantizer.bits - 1) - 1
    ends = [(highest, -highest)] if quantizer.symmetric else [(highest - n, -highest - 1 - n) for n in (0, 1)]
    ends += [] if quantizer.symmetric else [(2 * highest + 1, 0)]
    for sample in reversed(_samples(quantizer)):  # the largest first, which have more places
        places, sizes = _places(_sets(sample, quantizer.granularity))
        for high, low in ends:
            # what is alone spans the whole range from 0
            highs = torch.where(sizes == 1, high - low if low != -high else high, high)
            among = places >= (2 if low and not quantizer.symmetric else 1)
            for first in range(len(_TIES)):
                ties = _TIES[(torch.arange(sample.numel()) + first) % len(_TIES)].view(sample.shape)
                ties = torch.where(highs > highest, ties.abs(), ties)  # from 0 on
                x = _of_scale_1(quantizer, torch.where(places == 1, low, ties), places == 0, highs, sample.dtype)
                if x is not None:
                    yield x, among, ties.to(sample.dtype)


def _of_scale_1(quantizer: Quantizer, x: Tensor, first: Tensor, highs: Tensor, dtype: torch.dtype) -> Tensor | None:
    """x with its largest numbers, where `first` is, for which the scale is 1; None if it is 1 but for a rounding.

    Raises:
        AssertionError: the scale is not max|x| / 127 or 127.5, or (max - min) / 255.
    """
    scales = []
    for more in (0.0, 0.5, 1.0) if quantizer.symmetric else (0.0,):  # the last two: of some that use -128 for absmax
        for units in (0, -1, 1):  # a unit in the last place beside it, for a scale that is rounded up always
            tried = torch.where(first, (highs + more) * (1 + units * 2.0**-23), x).to(dtype)
            s = _steps(quantizer, tried, *_call(quantizer, tried))[1]
            if (s == 1).all():
                return tried
            scales.append(float((s - 1).abs().max()))
    assert min(scales) < 2.0**-20, (
        f"the scale is not 1 where numbers go up to {int(highs.min())}: divide by that, or max - min by {2**quantizer.bits - 1}"
    )
    return None


def _places(sets: Tensor) -> tuple[Tensor, Tensor]:
    """For each element, int64: how many of its set stand before it, and how many the set has."""
    order = sets.flatten().argsort(stable=True)
    counts = sets.flatten().bincount()
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return places.view(sets.shape), counts[sets]


def _search(
    quantizer: Quantizer,
    holds: Callable[[Tensor], None],
    inputs: st.SearchStrategy[Tensor] | None = None,
    examples: int = _EXAMPLES,
) -> None:
    """Try a property on tensors, the same on each run."""
    if inputs is None:
        inputs = quantizer.inputs
    if inputs is None:
        inputs = tensors(min_dims=0 if isinstance(quantizer.granularity, PerTensor) else _dims(quantizer.granularity))
    limits = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    try:
        limits(given(x=inputs)(lambda x: holds(x)))()
    except Flaky as error:
        raise AssertionError(
            "the same x gives one result at one time, another at the next: nothing may be random"
        ) from error


def _dims(granularity: Granularity) -> int:
    """How many axes x has at the least."""
    if isinstance(granularity, PerChannel):
        return granularity.axis + 1 if granularity.axis >= 0 else -granularity.axis
    return 1


def _call(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Any, Any]:
    parts = _run("quantize", quantizer.quantize, x)
    assert isinstance(parts, (tuple, list)) and len(parts) == 3, (
        f"quantize returns {type(parts).__name__}: return values, scale, zero_point; for absmax the last is None"
    )
    return _is_tensor("values", parts[0]), parts[1], parts[2]


def _dequantize(quantizer: Quantizer, values: Tensor, scale: object, zero_point: object) -> Tensor:
    return _is_tensor("x_hat", _run("dequantize", quantizer.dequantize, values, scale, zero_point))


def _requantize(quantizer: Quantizer, x: Tensor, scale: object, zero_point: object) -> Tensor:
    assert quantizer.quantize_with is not None, "this check needs quantize_with"
    return _is_tensor("values", _run("quantize_with", quantizer.quantize_with, x, scale, zero_point))


def _run(name: str, function: Callable[..., Any], x: Tensor, *given: object) -> Any:
    """What a student's function returns; it neither fails nor changes the numbers that it is given."""
    before = x.clone()
    try:
        result = function(x, *given)
    except Exception as error:
        raise AssertionError(f"{name} fails for x {tuple(x.shape)} of {x.dtype}: {error!r}") from error
    assert torch.equal(x, before), (
        f"{name} changes the tensor that it is given: work on a copy; x.float() of a float32 x is x itself"
    )
    return result


def _is_tensor(name: str, result: object) -> Tensor:
    kind = f"{type(result).__module__}.{type(result).__name__}".removeprefix("builtins.")
    assert isinstance(result, Tensor), f"{name}: a {kind} is returned, return a torch.Tensor"
    return result


def _numbers(name: str, numbers: object) -> Tensor:
    """A scale or zero point as it is measured: of Python's and NumPy's numbers a tensor that holds them exactly."""
    if isinstance(numbers, Tensor):
        return numbers
    try:
        return torch.as_tensor(np.asarray(numbers))
    except (TypeError, ValueError, RuntimeError) as error:
        raise AssertionError(f"the {name} is {numbers!r}: return a tensor or a number") from error


def _sets(x: Tensor, granularity: Granularity) -> Tensor:
    """For each element, int64, the number of the set it shares a scale with."""
    if isinstance(granularity, PerTensor):
        return torch.zeros(x.shape, dtype=torch.int64)
    if isinstance(granularity, PerChannel):
        axis = granularity.axis % x.dim()
        return torch.arange(x.shape[axis]).view([-1 if a == axis else 1 for a in range(x.dim())]).expand(x.shape)
    size = max(x.shape[-1], 1) if isinstance(granularity, PerToken) else granularity.size
    rows = torch.arange(x.shape[:-1].numel()).view(*x.shape[:-1], 1)
    return rows * -(-x.shape[-1] // size) + torch.arange(x.shape[-1]) // size


def _count(x: Tensor, granularity: Granularity) -> int:
    """How many scales there are."""
    if isinstance(granularity, PerTensor):
        return 1
    if isinstance(granularity, PerChannel):
        return x.shape[granularity.axis]
    rows = x.shape[:-1].numel()
    return rows if isinstance(granularity, PerToken) else rows * -(-x.shape[-1] // granularity.size)


def _check_count(scale: object, x: Tensor, granularity: Granularity) -> int:
    count, found = _count(x, granularity), _numbers("scale", scale).numel()
    swapped = x.dim() == 2 and found == x.numel() // max(count, 1) != count
    assert found == count, f"there are {found} scales for x {tuple(x.shape)}, {granularity} has {count}" + (
        ": the axes are swapped" if swapped else ""
    )
    return count


def _steps(quantizer: Quantizer, x: Tensor, values: Tensor, scale: object, zero_point: object) -> tuple[Tensor, Tensor]:
    """values - zero_point, and the scale of each element: float64, of the shape of x."""
    _check_count(scale, x, quantizer.granularity)
    sets = _sets(x, quantizer.granularity)
    steps = _numbers("scale", scale).double().flatten()
    s = steps[sets] if len(steps) else torch.ones(x.shape, dtype=torch.float64)
    z = _numbers("zero point", 0 if zero_point is None else zero_point).double().flatten()
    if not len(z):
        return values.double(), s
    return values.double() - (z[sets] if len(z) > 1 else z.expand(x.shape) if x.dim() else z[0]), s


def _ends(quantizer: Quantizer, values: Tensor) -> tuple[int, int]:
    lowest = 0 if values.dtype == torch.uint8 else -(2 ** (quantizer.bits - 1))
    return lowest, lowest + 2**quantizer.bits - 1


def _cast(dtype: torch.dtype, x: Tensor) -> Tensor:
    """How far a cast to a dtype of 16 bits may move x: float64, a hundredth more than half a unit."""
    if dtype == torch.float32:
        return torch.zeros_like(x, dtype=torch.float64)
    info = torch.finfo(dtype)
    return 1.01 * (info.eps / 2 * x.double().abs() + info.smallest_normal * info.eps / 2)


def _views(t: Tensor) -> list[tuple[str, Tensor]]:
    """What equals t and lies in memory in another way, ones around it; each with words for it."""
    ones = torch.ones_like(t)
    views = [
        ("as a view with an offset (x[n:])", torch.cat((ones.flatten(), t.flatten()))[t.numel() :].view(t.shape)),
        ("as a view with gaps and an offset (x[..., 1])", torch.stack((ones, t), -1)[..., 1]),
    ]
    if t.dim():
        columns = torch.cat((ones, t, ones), -1)[..., t.shape[-1] : 2 * t.shape[-1]]
        views.append(("as some columns of a wider tensor (x[..., m:n])", columns))
    if t.dim() > 1:
        views.append(("as a transposed view (x.T)", t.transpose(0, -1).contiguous().transpose(0, -1)))
    return views


def _same(one: object, other: object) -> bool:
    """Equal numbers of one dtype in one shape, NaN equal to NaN; or None both."""
    if one is None or other is None:
        return one is other
    one, other = _numbers("result", one), _numbers("result", other)
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.allclose(one, other, 0, 0, equal_nan=True)


def _is_normal(x: Tensor, power: float = 1.0) -> bool:
    """No number of power * x is subnormal, neither is its scale, and no difference of two of them overflows."""
    size = x.double().abs() * power
    info = torch.finfo(x.dtype)
    smallest = max(info.tiny, 256 * torch.finfo(torch.float32).tiny)
    return bool(((size == 0) | ((size >= smallest) & (size < info.max / 2))).all())


def _with(x: Tensor, place: int, number: float) -> Tensor:
    """x with another element at a place, counted row by row."""
    x = x.clone()
    x[np.unravel_index(place, x.shape)] = number
    return x
