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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
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
    bound = float(np.float32(min(limit, draw(st.sampled_from([limit, 1e-40, 1e-35, 1e-6, 1.0, 100.0])))))
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
            number for all, or None, which is 0.
        dequantize: (values, scale, zero_point), as `quantize` gave them, -> x_hat.
        quantize_with: (x, scale, zero_point) -> values, for a scale that is given; None if there is no such function.
        granularity: which elements share a scale.
        symmetric: absmax; otherwise zero-point.
        bits: 8 or 4.
        inputs: what it is to be tried on; None for `tensors()`, which is everything.
    """

    quantize: Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]
    dequantize: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    quantize_with: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
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
        wrong = scale[~(scale.isfinite() & (scale > 0))]
        assert not wrong.numel(), (
            f"a scale is {float(wrong[0])}: where all is zero take 1, or x / scale is 0 / 0; where max|x| is tiny, round "
            "the scale up; and max - min may be past the largest number"
        )
        if zero_point is not None:
            assert zero_point.numel() in (1, count), f"there are {zero_point.numel()} zero points for {count} scales"

    _search(quantizer, holds)


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
        if zero_point is not None and zero_point.numel():
            assert not zero_point.is_floating_point() or bool((zero_point == zero_point.round()).all()), (
                f"a zero point is {float(zero_point.flatten()[0])}, no integer: then 0 is not exact"
            )
            z = int(zero_point.min()), int(zero_point.max())
            assert not quantizer.symmetric or z == (0, 0), f"absmax has no zero point, this one is {z[0]}"
            assert lowest <= z[0] and z[1] <= highest, (
                f"the zero point {z[0] if z[0] < lowest else z[1]} is outside {lowest} to {highest}: widen the range "
                "of x to hold 0"
            )

    _search(quantizer, holds)


def check_zero(quantizer: Quantizer) -> None:
    """0 stays 0 exactly: padding, masks, zeroed weights and ReLU's zeros must not become noise."""

    def holds(x: Tensor) -> None:
        for zeroed in (torch.zeros_like(x), _with_first(x, 0.0)):
            x_hat = quantizer.dequantize(*_call(quantizer, zeroed))
            off = x_hat[zeroed == 0]
            assert not off.isnan().any(), "0 becomes NaN: x / scale is 0 / 0 where all is zero, or 0 * infinity"
            assert (off == 0).all(), f"0 becomes {float(off[off != 0][0])}: it must stay 0 exactly"

    _search(quantizer, holds)


def check_dequantize(quantizer: Quantizer) -> None:
    """x_hat = (values - zero_point) * scale, finite and rounded to the dtype of x_hat once."""

    def holds(x: Tensor) -> None:
        values, scale, zero_point = _call(quantizer, x)
        x_hat = quantizer.dequantize(values, scale, zero_point)
        assert x_hat.shape == x.shape, f"x_hat is {tuple(x_hat.shape)} for x {tuple(x.shape)}: they must be alike"
        n, s = _steps(quantizer, x, values, scale, zero_point)
        limit = torch.finfo(x_hat.dtype).max
        expected = (n * s).clamp(-limit, limit)
        off = (x_hat.double() - expected).abs()
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
        x_hat = quantizer.dequantize(values, scale, zero_point)
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


def check_order(quantizer: Quantizer) -> None:
    """What is larger does not become smaller, among those that share a scale."""

    def holds(x: Tensor) -> None:
        x_hat = quantizer.dequantize(*_call(quantizer, x)).double().flatten()
        sets = _sets(x, quantizer.granularity).flatten()
        order = x.double().flatten().argsort(stable=True)
        order = order[sets[order].argsort(stable=True)]
        falls = (x_hat[order].diff() < 0) & (sets[order].diff() == 0)
        assert not falls.any(), "a larger number becomes a smaller one: integers wrap around, clamp before the cast"

    _search(quantizer, holds)


def check_rounding(quantizer: Quantizer) -> None:
    """A tie goes to the even integer, so that ties do not all push one way: 0.5 -> 0, 1.5 -> 2, -2.5 -> -2."""
    shifts = (0,) if quantizer.symmetric else (0, 1)  # an even zero point, and an odd one
    for given_scale in (False,) if quantizer.quantize_with is None else (False, True):
        for shift in shifts:
            _, n, ties = _ties(quantizer, shift, given_scale)
            wrong = (n != ties.round()).nonzero().flatten().tolist()
            assert not wrong, (
                f"with a {'given ' * given_scale}scale of 1, {float(ties[wrong[0]])} becomes {float(n[wrong[0]])}: round "
                "half to even, as torch.round does, before a zero point is added; truncation and floor(x + 0.5) push "
                "all ties one way"
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
        x_hat = quantizer.dequantize(values, scale, zero_point)
        for (how, view), (_, of_values) in zip(_views(x), _views(values)):
            why = "follow its storage offset and strides, or copy it first (contiguous)"
            same = all(map(_same, _call(quantizer, view), (values, scale, zero_point)))
            assert same, f"x {how} gives other values or another scale than its copy: {why}"
            if given is not None:
                again = _requantize(quantizer, view, scale, zero_point)
                assert _same(again, given), f"x {how} gives other values than its copy with a given scale: {why}"
            back = quantizer.dequantize(of_values, scale, zero_point)
            assert _same(back, x_hat), f"values {how} are dequantized to other numbers than their copy: {why}"

    _search(quantizer, holds)


def check_scaling(quantizer: Quantizer) -> None:
    """A power of two times x has the same values, and a scale that is that power of two larger: units do not matter."""

    def holds(x: Tensor) -> None:
        size = x.double().abs()
        assume(bool(((size == 0) | ((size > 1e-3) & (size < 1e3))).all()))  # neither is subnormal, nor overflows
        values, scale, zero_point = _call(quantizer, x)
        _, s = _steps(quantizer, x, values, scale, zero_point)
        # far from 1, too, where a constant of 1e-12 shows; at 2^-108 neither x nor its scale is subnormal yet
        far = (2.0**60, 2.0**-108) if quantizer.inputs is None and x.dtype != torch.float16 else ()
        for power in (4.0, 0.25, *far):
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
    dims = _dims(quantizer.granularity)
    for bad in (float("nan"), float("inf"), float("-inf")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for place in range(6):
                x = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.125, 0.25], dtype=dtype)
                shapes = [(2, 3), (3, 2), (2, 3, 1)] if dims < 3 else [(1, *[1] * (dims - 3), 2, 3)]
                for shape in [(6,), *shapes] if dims < 2 else shapes:
                    odd = x.index_fill(0, torch.tensor(place), bad).view(shape)
                    _refuses(quantizer.quantize, odd, bad)
                    if quantizer.quantize_with is not None:
                        _refuses(quantizer.quantize_with, odd, bad, *_call(quantizer, x.view(shape))[1:])


def _refuses(quantize: Callable[..., object], x: Tensor, bad: float, *given: Tensor | None) -> None:
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
    """Absmax of -x is that of x with the sign turned: so -128, which has no partner, is never used."""

    def holds(x: Tensor) -> None:
        one, other = (_steps(quantizer, sign * x, *_call(quantizer, sign * x))[0] for sign in (1, -1))
        assert torch.equal(one, -other), (
            "-x does not become what x becomes with its sign turned: round half to even and use -127 to 127"
        )

    holds(_ties(quantizer)[0])
    _search(quantizer, holds)


def check_given_scale(quantizer: Quantizer) -> None:
    """With a scale that is given, what is inside its range becomes the nearest integer, as with a scale of its own."""

    def holds(x: Tensor) -> None:
        _, scale, zero_point = _call(quantizer, x)
        for part in (1.0, 0.3):  # a part of x, whose own scale would be another
            y = (part * x.double()).to(x.dtype)
            values = _requantize(quantizer, y, scale, zero_point)
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
        for sign, end in ((1.0, highest), (-1.0, lowest)):
            for far in (300.0, 1e12):  # as an integer, 1e12 is past 32 bits
                outside = (sign * far * s).float()
                assume(bool(outside.isfinite().all()))
                stored = _requantize(quantizer, outside, scale, zero_point).flatten()
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
        x_hat = quantizer.dequantize(values, scale, zero_point)
        again = _requantize(quantizer, x_hat, scale, zero_point)
        clamped = x_hat.abs() == torch.finfo(x_hat.dtype).max  # the last level may be past the largest number
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


def _ties(quantizer: Quantizer, shift: int = 0, given_scale: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """x for which the scale is 1, with numbers half way between integers; what those become, in steps; and they.

    Args:
        shift: by how much a zero point is to be moved.
        given_scale: whether they are quantized by `quantize_with`.
    """
    highest = 2 ** (quantizer.bits - 1) - 1 - shift
    ties = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5])
    for top in (highest, highest + 0.5, highest + 1):  # the last two: of some that use -128 for absmax
        bottom = -top if quantizer.symmetric else top - (2.0**quantizer.bits - 1)
        rows = torch.stack((torch.full_like(ties, top), torch.full_like(ties, bottom), ties), 1)  # each with its range
        axis = quantizer.granularity.axis if isinstance(quantizer.granularity, PerChannel) else 0
        x = rows.view(*rows.shape, *[1] * (_dims(quantizer.granularity) - 2)).movedim(0, axis)
        values, scale, zero_point = _call(quantizer, x)
        values = _requantize(quantizer, x, scale, zero_point) if given_scale else values
        n, s = _steps(quantizer, x, values, scale, zero_point)
        if (s == 1).all():
            return x, n.movedim(axis, 0).flatten(1)[:, 2], ties
    raise AssertionError(f"the scale is not 1 where numbers go up to {highest}, {highest + 0.5} or {highest + 1}")


def _search(
    quantizer: Quantizer, holds: Callable[[Tensor], None], inputs: st.SearchStrategy[Tensor] | None = None
) -> None:
    """Try a property on tensors, the same on each run."""
    if inputs is None:
        inputs = quantizer.inputs
    if inputs is None:
        inputs = tensors(min_dims=0 if isinstance(quantizer.granularity, PerTensor) else _dims(quantizer.granularity))
    limits = settings(
        max_examples=_EXAMPLES,
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


def _call(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    try:
        return quantizer.quantize(x)
    except Exception as error:
        raise AssertionError(f"quantize fails for x {tuple(x.shape)} of {x.dtype}: {error!r}") from error


def _requantize(quantizer: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    assert quantizer.quantize_with is not None, "this check needs quantize_with"
    return quantizer.quantize_with(x, scale, zero_point)


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


def _check_count(scale: Tensor, x: Tensor, granularity: Granularity) -> int:
    count, found = _count(x, granularity), scale.numel()
    swapped = x.dim() == 2 and found == x.numel() // max(count, 1) != count
    assert found == count, f"there are {found} scales for x {tuple(x.shape)}, {granularity} has {count}" + (
        ": the axes are swapped" if swapped else ""
    )
    return count


def _steps(
    quantizer: Quantizer, x: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor | None
) -> tuple[Tensor, Tensor]:
    """values - zero_point, and the scale of each element: float64, of the shape of x."""
    _check_count(scale, x, quantizer.granularity)
    sets = _sets(x, quantizer.granularity)
    s = scale.double().flatten()[sets] if scale.numel() else scale.new_ones(x.shape).double()
    if zero_point is None or not zero_point.numel():
        return values.double(), s
    z = zero_point.double().flatten()
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


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal numbers of one dtype in one shape, NaN equal to NaN; or None both."""
    if one is None or other is None:
        return one is other
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.allclose(one, other, 0, 0, equal_nan=True)


def _with_first(x: Tensor, number: float) -> Tensor:
    """x with another first element."""
    x = x.clone()
    if x.numel():
        x[(0,) * x.dim()] = number
    return x
