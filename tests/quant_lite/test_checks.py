"""A student's right quantizers pass every check of `quant_lite.checks`, wrong ones fail the check that names the fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quant_lite import PerChannel, PerGroup, PerTensor, PerToken, absmax_quantize, checks


class Absmax:
    """A right one, as a student writes it: a scale for each index of axis 0. Faults are put in below."""

    granularity, symmetric, bits = PerChannel(0), True, 8
    largest = 127

    def largest_of(self, x: Tensor) -> Tensor:
        return x.flatten(1).abs().amax(1) if x.numel() else torch.zeros(len(x))

    def scale(self, x: Tensor) -> Tensor:
        exact = self.largest_of(x.unsqueeze(-1)).double() / self.largest
        rounded = exact.float()
        rounded = torch.where(rounded.double() < exact, rounded.nextafter(torch.tensor(torch.inf)), rounded)
        return torch.where(exact == 0, 1.0, rounded)

    def integers(self, t: Tensor) -> Tensor:
        return t.round().clamp(-self.largest, self.largest).to(torch.int8)

    def along(self, scale: Tensor, x: Tensor) -> Tensor:
        return scale.view(-1, *[1] * (x.dim() - 1))

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        refuse(x)
        scale = self.scale(x.float())
        return self.quantize_with(x, scale, None), scale, None

    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        refuse(x)
        return self.integers(x.float() / self.along(scale, x))

    def dequantize(self, values: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        limit = torch.finfo(torch.float32).max
        return (values.float() * self.along(scale, values)).clamp(-limit, limit)


class ZeroPoint:
    """A right one with one scale and zero point, from 0 to 255."""

    granularity, symmetric, bits = PerTensor(), False, 8

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((x.double().flatten(), torch.zeros(1)))
        return x.min(), x.max()

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.ends(x)
        exact = (high - low) / 255
        scale = exact.float()
        scale = scale.nextafter(torch.tensor(torch.inf)) if scale.double() < exact else scale
        scale = scale if scale else torch.tensor(1.0)
        return scale, (-low / scale.double()).round().int()

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse(x)
        scale, zero_point = self.parameters(x)
        return self.quantize_with(x, scale, zero_point), scale, zero_point

    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        refuse(x)
        return ((x.float() / scale).round() + zero_point).clamp(0, 255).to(torch.uint8)

    def dequantize(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        limit = torch.finfo(torch.float32).max
        return ((values.int() - zero_point) * scale).clamp(-limit, limit)


Student = Absmax | ZeroPoint


def refuse(x: Tensor) -> None:
    if not x.isfinite().all():
        raise ValueError("not finite")


def quantizer(student: Student) -> checks.Quantizer:
    functions = student.quantize, student.dequantize, student.quantize_with
    return checks.Quantizer(*functions, student.granularity, student.symmetric, student.bits)


@pytest.mark.parametrize("student", [Absmax, ZeroPoint])
def test_a_students_right_one_passes_all(student: type[Student]) -> None:
    checks.check_all(quantizer(student()))


class Truncates(Absmax):
    def integers(self, t: Tensor) -> Tensor:
        return super().integers(t.trunc())


class RoundsHalfUp(Absmax):
    def integers(self, t: Tensor) -> Tensor:
        return super().integers((t + 0.5).floor())


class CastsBeforeClamping(Absmax):
    def integers(self, t: Tensor) -> Tensor:
        return t.round().to(torch.int64).to(torch.int8).clamp(-127, 127)


class DividesBy128AndWraps(Absmax):
    largest = 128

    def integers(self, t: Tensor) -> Tensor:
        return t.round().to(torch.int64).to(torch.int8)


class DividesBy128(Absmax):
    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x * (127 / 128))


class UsesMinus128(Absmax):
    def integers(self, t: Tensor) -> Tensor:
        return (t * (127.5 / 127)).round().clamp(-128, 127).to(torch.int8)

    def dequantize(self, values: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().dequantize(values, scale, zero_point)


class HalfScaleAfterDivision(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        values, scale, _ = super().quantize(x)
        return values, torch.where((scale > 1e-4) & (scale < 1e4), scale.half().float(), scale), None


class SixteenBitDivision(Absmax):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return self.integers(x.bfloat16() / self.along(scale, x).bfloat16())


class HalfOfTheLevels(Absmax):
    largest = 63


class AxisSwapped(Absmax):
    def largest_of(self, x: Tensor) -> Tensor:
        x = x[..., 0]
        return x.abs().flatten(0, -2).amax(0) if x.dim() > 1 and x.numel() else super().largest_of(x[..., None])

    def along(self, scale: Tensor, x: Tensor) -> Tensor:
        return scale if x.dim() > 1 and x.numel() else super().along(scale, x)


class OneScaleForAll(Absmax):
    def largest_of(self, x: Tensor) -> Tensor:
        own = super().largest_of(x)
        return own.max().expand(own.shape) if own.numel() else own


class ZeroByZero(Absmax):
    def scale(self, x: Tensor) -> Tensor:
        return self.largest_of(x.unsqueeze(-1)) / 127


class ZeroTimesInfinity(Absmax):
    """Keeps 1 / scale, without a bound, for rows of zeros."""

    def dequantize(self, values: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        x_hat = super().dequantize(values, scale, zero_point)
        return x_hat * torch.where(self.along(scale, values) == 1, torch.inf, 1.0)


class SmallestScale(Absmax):
    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x).clamp(min=1e-2)


class PlusEpsilon(Absmax):
    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x) + 1e-6


class SmallestScaleOf1e30th(Absmax):
    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x).clamp(min=1e-30)


class TinyRowsAreZero(Absmax):
    def scale(self, x: Tensor) -> Tensor:
        scale = super().scale(x)
        return torch.where(scale < 1e-36, 1.0, scale)


class LooksAt256(Absmax):
    def largest_of(self, x: Tensor) -> Tensor:
        return super().largest_of(x[..., :256, :] if x.dim() > 2 else x)


class WrongInFourAxes(Absmax):
    def largest_of(self, x: Tensor) -> Tensor:
        return super().largest_of(x[:, :1] if x.dim() == 5 else x)


class Random(Absmax):
    def integers(self, t: Tensor) -> Tensor:
        return super().integers(t + 0.4 * (torch.rand(t.shape) - 0.5))


class TakesHalfNaN(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return super().quantize(x if x.dtype == torch.float32 else x.nan_to_num())


class LooksForNaNInTheLastRow(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        if x.numel() and not x[-1].isfinite().all():
            raise ValueError("not finite")
        return super().quantize(x.nan_to_num(0.0, 1e30, -1e30))


class LooksForNaNInMatrices(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return super().quantize(x if x.dim() == 2 else x.nan_to_num(0.0, 1e30, -1e30))


class TakesNaN(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return super().quantize(x.nan_to_num(0.0, 1e30, -1e30))


class WrongError(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        if not x.isfinite().all():
            raise RuntimeError("not finite")
        return super().quantize(x)


class FourBitsInName(Absmax):
    bits = 4


class Int32Values(Absmax):
    def integers(self, t: Tensor) -> Tensor:
        return super().integers(t).int()


class FailsOnEmpty(Absmax):
    def largest_of(self, x: Tensor) -> Tensor:
        return x.flatten(1).abs().amax(1)


class Dithers(Absmax):
    """Rounds to either side, by place."""

    def integers(self, t: Tensor) -> Tensor:
        places = torch.arange(t.numel()).view(t.shape) % 2
        return super().integers(torch.where(places == 0, t.ceil(), t.floor()))


class ScaleOfTheMean(Absmax):
    def largest_of(self, x: Tensor) -> Tensor:
        return x.flatten(1).abs().mean(1) if x.numel() else torch.zeros(len(x))


class GivenScaleIsIgnored(Absmax):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return self.integers(x.float() / self.along(self.scale(x.float()) * 1.01, x))

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        scale = super().quantize(x)[1]
        return self.integers(x.float() / self.along(scale, x)), scale, None


class _WithAGivenScale(Absmax):
    """Right where it measures the scale; what is wrong with a given one is put into `quantize_with`."""

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        refuse(x)
        scale = self.scale(x.float())
        return self.integers(x.float() / self.along(scale, x)), scale, None


class GivenScaleWithABias(_WithAGivenScale):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        refuse(x)
        return self.integers(x.float() / self.along(scale, x) + 0.3)


class GivenScaleIsThatOfX(_WithAGivenScale):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return self.quantize(x)[0]


class GivenScaleRoundsHalfUp(_WithAGivenScale):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        refuse(x)
        return self.integers((x.float() / self.along(scale, x) + 0.5).floor())


class GivenScaleTakesNaN(_WithAGivenScale):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().quantize_with(x.nan_to_num(0.0, 1e30, -1e30), scale, zero_point)


class GivenScaleTakesInfinity(_WithAGivenScale):
    """Saturation would be an answer for it, but not where the scale is measured: then none is here, either."""

    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        limit = torch.finfo(x.dtype).max
        return super().quantize_with(x.clamp(-limit, limit), scale, zero_point)


class GivenZeroPointIsForgotten(ZeroPoint):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse(x)
        scale, zero_point = self.parameters(x)
        return super().quantize_with(x, scale, zero_point), scale, zero_point

    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return super().quantize_with(x, scale, torch.zeros_like(zero_point) + 128 * bool(zero_point))


def at_start(x: Tensor) -> Tensor:
    """What lies at the start of the memory, as with `x.untyped_storage().data_ptr()`."""
    return x.as_strided(x.shape, x.stride(), 0)


def side_by_side(x: Tensor) -> Tensor:
    """As many numbers as x has from its first on, as one reads `x.data_ptr()` in another language."""
    return x.as_strided((x.numel(),), (1,)).view(x.shape) if x.numel() else x


class IgnoresTheOffset(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return super().quantize(at_start(x))


class IgnoresStrides(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return super().quantize(side_by_side(x))


class GivenScaleIgnoresTheOffset(_WithAGivenScale):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().quantize_with(at_start(x), scale, zero_point)


class GivenScaleIgnoresStrides(_WithAGivenScale):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().quantize_with(side_by_side(x), scale, zero_point)


class DequantizesFromTheStart(Absmax):
    def dequantize(self, values: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().dequantize(at_start(values), scale, zero_point)


class RangeNotWidened(ZeroPoint):
    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x.double().min(), x.double().max()) if x.numel() else super().ends(x)


class ZeroPointNotRounded(ZeroPoint):
    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, _ = super().parameters(x)
        return scale, (-self.ends(x)[0] / scale.double()).float()


class ZeroPointOfAbsmax(ZeroPoint):
    symmetric = True


class AddsTheZeroPoint(ZeroPoint):
    def dequantize(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return (values.int() + zero_point) * scale


class SubtractsInEightBits(ZeroPoint):
    def dequantize(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return (values - zero_point.to(torch.uint8)).float() * scale


class ScalesBeforeTheZeroPoint(ZeroPoint):
    def dequantize(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return values * scale - zero_point


class ForgetsTheZeroPoint(ZeroPoint):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return (x.float() / scale).round().clamp(0, 255).to(torch.uint8)


class RoundsTheSum(ZeroPoint):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return (x.float() / scale + zero_point).round().clamp(0, 255).to(torch.uint8)


class SevenBits(ZeroPoint):
    """int8's positive half only: 128 levels are lost."""

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale, _ = super().parameters(x)
        scale = scale * (255 / 127)
        return scale, (-self.ends(x)[0] / scale.double()).round().clamp(0, 127).int()


MUTANTS: list[tuple[type[Student], Callable, str]] = [
    (Truncates, checks.check_rounding, r"3.5 becomes 3.0|1.5 becomes 1.0"),
    (Truncates, checks.check_error_bound, "half a step is the bound"),
    (RoundsHalfUp, checks.check_rounding, r"0.5 becomes 1.0: round half to even"),
    (RoundsHalfUp, checks.check_sign_symmetry, "round half to even"),
    (CastsBeforeClamping, checks.check_saturation, "clamp before the cast, or integers wrap around"),
    (DividesBy128AndWraps, checks.check_order, "a larger number becomes a smaller one: integers wrap around"),
    (DividesBy128, checks.check_error_bound, "the range is cut"),
    (UsesMinus128, checks.check_sign_symmetry, "use -127 to 127"),
    (HalfScaleAfterDivision, checks.check_error_bound, "divide by the scale as it is stored"),
    (SixteenBitDivision, checks.check_error_bound, "half a step is the bound"),
    (HalfOfTheLevels, checks.check_levels, "the largest number is 63 steps, 127 are there: levels are lost"),
    (AxisSwapped, checks.check_shapes, "the axes are swapped"),
    (AxisSwapped, checks.check_independent, "swapped"),
    (OneScaleForAll, checks.check_independent, r"scales are not those of PerChannel\(axis=0\)"),
    (ZeroByZero, checks.check_shapes, "where all is zero take 1"),
    (ZeroTimesInfinity, checks.check_zero, "0 becomes NaN"),
    (SmallestScale, checks.check_levels, "levels are lost"),
    (PlusEpsilon, checks.check_scaling, "something is added to the scale"),
    (SmallestScaleOf1e30th, checks.check_scaling, "compared with a constant"),
    (TinyRowsAreZero, checks.check_levels, "the largest number is 0 steps"),
    (LooksAt256, checks.check_error_bound, "the range is cut"),
    (WrongInFourAxes, checks.check_error_bound, "the range is cut"),
    (Random, checks.check_order, "nothing may be random|a larger number becomes a smaller one"),
    (TakesHalfNaN, checks.check_not_finite, "of torch.float16 is quantized without a word"),
    (LooksForNaNInTheLastRow, checks.check_not_finite, "nan in x .* is quantized without a word"),
    (LooksForNaNInMatrices, checks.check_not_finite, r"nan in x \(6,\) of torch.float32 is quantized without a word"),
    (RoundsTheSum, checks.check_rounding, "before a zero point is added"),
    (TakesNaN, checks.check_not_finite, "nan in x .* is quantized without a word"),
    (WrongError, checks.check_not_finite, "nan raises RuntimeError, not ValueError"),
    (FourBitsInName, checks.check_range, "4 bits from -8 to 7"),
    (Int32Values, checks.check_shapes, "values are torch.int32: store int8"),
    (FailsOnEmpty, checks.check_shapes, r"quantize fails for x \("),
    (Dithers, checks.check_permutation, "x in another order along axis"),
    (ScaleOfTheMean, checks.check_error_bound, "the range is cut"),
    (GivenScaleIsIgnored, checks.check_idempotent, "not each other's inverse"),
    (GivenScaleIsIgnored, checks.check_given_scale, "the nearest integer"),
    (GivenScaleWithABias, checks.check_given_scale, "with a given scale of .* the nearest integer"),
    (GivenScaleIsThatOfX, checks.check_given_scale, "with a given scale of .* the nearest integer"),
    (GivenZeroPointIsForgotten, checks.check_given_scale, "with a given scale of .* the nearest integer"),
    (GivenScaleRoundsHalfUp, checks.check_rounding, "with a given scale of 1, 0.5 becomes 1.0: round half to even"),
    (GivenScaleTakesNaN, checks.check_not_finite, "nan in x .* with a given scale is quantized without a word"),
    (GivenScaleTakesInfinity, checks.check_not_finite, "inf in x .* with a given scale is quantized without a word"),
    (IgnoresTheOffset, checks.check_views, "as a view with an offset .* other values or another scale"),
    (IgnoresStrides, checks.check_views, "other values or another scale"),
    (GivenScaleIgnoresTheOffset, checks.check_views, "as a view with an offset .* with a given scale"),
    (GivenScaleIgnoresStrides, checks.check_views, "with a given scale"),
    (DequantizesFromTheStart, checks.check_views, "as a view with an offset .* are dequantized"),
    (RangeNotWidened, checks.check_range, "widen the range of x to hold 0"),
    (ZeroPointNotRounded, checks.check_range, "no integer: then 0 is not exact"),
    (ZeroPointNotRounded, checks.check_zero, "it must stay 0 exactly"),
    (ZeroPointOfAbsmax, checks.check_range, "absmax has no zero point"),
    (AddsTheZeroPoint, checks.check_dequantize, "subtract the zero point"),
    (SubtractsInEightBits, checks.check_dequantize, "in more than 8 bits"),
    (ScalesBeforeTheZeroPoint, checks.check_dequantize, "subtract the zero point first"),
    (ForgetsTheZeroPoint, checks.check_zero, "it must stay 0 exactly"),
    (SevenBits, checks.check_levels, "levels are lost"),
]


@pytest.mark.parametrize(
    ("mutant", "check", "words"), MUTANTS, ids=[f"{m[0].__name__}-{m[1].__name__}" for m in MUTANTS]
)
def test_a_wrong_quantizer_fails_by_name(mutant: type[Student], check: Callable, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(quantizer(mutant()))
    with pytest.raises(AssertionError):
        checks.check_all(quantizer(mutant()))


def test_a_scale_that_grows_in_groups_is_caught() -> None:
    def make(granularity: object) -> checks.Quantizer:
        def quantize(x: Tensor) -> tuple[Tensor, Tensor, None]:
            q = absmax_quantize(x, granularity)
            return q.values, q.scale * (1.5 if granularity == PerToken() else 1.0), None

        return checks.Quantizer(quantize, lambda *parts: parts[0], granularity=granularity)

    with pytest.raises(AssertionError, match=r"a scale of PerToken\(\) is above that of the elements around it"):
        checks.check_finer_scales(make)


def test_a_group_of_a_students_is_checked_as_a_group() -> None:
    """A scale an element is not a scale a group."""
    q = checks.Quantizer(lambda x: (x.sign().to(torch.int8), torch.ones(x.shape), None), lambda v, s, z: v * s)
    checks.check_shapes(checks.Quantizer(q.quantize, q.dequantize, granularity=PerGroup(1)))
    with pytest.raises(AssertionError, match=r"there are \d+ scales for x .*, PerGroup\(size=2\) has"):
        checks.check_shapes(checks.Quantizer(q.quantize, q.dequantize, granularity=PerGroup(2)))


def test_the_package_does_not_need_hypothesis() -> None:
    code = "import sys, quant_lite; print('hypothesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
