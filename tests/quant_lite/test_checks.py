"""A student's right quantizers pass every check of `quant_lite.checks`, wrong ones fail the check that names the fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from quant_lite import PerChannel, PerGroup, PerTensor, PerToken, absmax_quantize, checks


class Absmax:
    """A right one, as a student writes it: a scale for each index of axis 0. Faults are put in below."""

    granularity, symmetric, bits, inputs = PerChannel(0), True, 8, None
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

    granularity, symmetric, bits, inputs = PerTensor(), False, 8, None

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
    return checks.Quantizer(*functions, student.granularity, student.symmetric, student.bits, student.inputs)


class Float16Groups(Absmax):
    """Groups of 4 in matrices of float16, whose K must be a multiple; what else it is given it fails on."""

    granularity = PerGroup(4)
    inputs = checks.tensors((torch.float16,), min_dims=3, max_dims=3, min_side=1).map(
        lambda x: x.flatten(1).repeat(1, 4)
    )

    def groups(self, x: Tensor) -> Tensor:
        assert x.dim() == 2 and x.shape[1] % 4 == 0 and x.dtype in (torch.float16, torch.int8), (x.shape, x.dtype)
        return x.reshape(-1, 4)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        values, scale, _ = super().quantize(self.groups(x))
        return values.view(x.shape), scale.view(len(x), -1), None

    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().quantize_with(self.groups(x), scale.flatten(), None).view(x.shape)

    def dequantize(self, values: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().dequantize(self.groups(values), scale.flatten(), None).view(values.shape)


class PythonNumbers(ZeroPoint):
    """Scale and zero point as a first version returns them; in dequantize they must still be Python's."""

    def parameters(self, x: Tensor) -> tuple[float, int]:
        scale, zero_point = super().parameters(x)
        return scale.item(), zero_point.item()

    def dequantize(self, values: Tensor, scale: float, zero_point: int) -> Tensor:
        assert type(scale) is float and type(zero_point) is int
        return super().dequantize(values, scale, zero_point)


class NumPyNumbers(ZeroPoint):
    def quantize(self, x: Tensor) -> tuple[Tensor, np.float32, np.int64]:
        values, scale, zero_point = super().quantize(x)
        return values, np.float32(scale), np.int64(zero_point)

    def quantize_with(self, x: Tensor, scale: np.float32, zero_point: np.int64) -> Tensor:
        return super().quantize_with(x, float(scale), int(zero_point))

    def dequantize(self, values: Tensor, scale: np.float32, zero_point: np.int64) -> Tensor:
        return super().dequantize(values, float(scale), int(zero_point))


class FullRange(Absmax):
    """Divides by 127.5 and uses -128, too: right, but for the sign."""

    largest = 127.5

    def integers(self, t: Tensor) -> Tensor:
        return t.round().clamp(-128, 127).to(torch.int8)


class AlwaysRoundsUp(Absmax):
    """Its scale is 1 for no round number."""

    def scale(self, x: Tensor) -> Tensor:
        return super().scale(x * (1 + 2.0**-23))


class GroupsOfOne(ZeroPoint):
    """Each number has its own scale, so there is no tie; and one to three in a set leave few places for them."""

    granularity, size = PerGroup(1), 1
    inputs = st.integers(1, 3).flatmap(lambda rows: st.just(torch.linspace(-1, 1, rows * 6).view(rows, 6)))

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.double().view(len(x), -1, self.size)
        return x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.ends(x)
        scale = ((high - low) / 255).float().nextafter(torch.tensor(torch.inf))
        scale = torch.where((high - low) / 255 == scale.double().round(), scale.round(), scale)
        return scale, (-low / scale.double()).round().int()

    def along(self, t: Tensor) -> Tensor:
        return t.repeat_interleave(self.size, -1)

    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return super().quantize_with(x, self.along(scale), self.along(zero_point))

    def dequantize(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return super().dequantize(values, self.along(scale), self.along(zero_point))


class GroupsOfTwo(GroupsOfOne):
    granularity, size = PerGroup(2), 2


class GroupsOfThree(GroupsOfOne):
    granularity, size = PerGroup(3), 3


@pytest.mark.parametrize("student", [Float16Groups, PythonNumbers])
def test_right_ones_of_few_inputs_and_of_plain_numbers_pass_all(student: type[Student]) -> None:
    checks.check_all(quantizer(student()))


QUICK = (checks.check_not_finite, checks.check_rounding, checks.check_sign_symmetry)


@pytest.mark.parametrize("student", [AlwaysRoundsUp, NumPyNumbers, GroupsOfOne, GroupsOfTwo, GroupsOfThree])
def test_right_ones_have_their_ties_and_refuse_nan(student: type[Student]) -> None:
    for check in QUICK[: 2 + student.symmetric]:
        check(quantizer(student()))


def test_of_right_ones_only_the_full_range_fails_sign_symmetry() -> None:
    for check in (*QUICK[:2], checks.check_levels, checks.check_saturation):
        check(quantizer(FullRange()))
    with pytest.raises(AssertionError, match="use -127 to 127"):
        checks.check_sign_symmetry(quantizer(FullRange()))


@pytest.mark.parametrize("student", [Absmax, ZeroPoint])
def test_a_students_right_one_passes_all(student: type[Student]) -> None:
    checks.check_all(quantizer(student()))


class Truncates(Absmax):
    def integers(self, t: Tensor) -> Tensor:
        return super().integers(t.trunc())


class _WithAGivenScale(Absmax):
    """Right where it measures the scale; what is wrong with a given one is put into `quantize_with`."""

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        refuse(x)
        scale = self.scale(x.float())
        return self.integers(x.float() / self.along(scale, x)), scale, None


class RoundsTinyScalesDown(Absmax):
    """As a division in float32 does, but never to 0."""

    def scale(self, x: Tensor) -> Tensor:
        exact = self.largest_of(x.unsqueeze(-1)).double() / self.largest
        return torch.where(exact == 0, 1.0, exact.float().clamp(min=2.0**-149))


class RoundsTinyScalesDownToFourBits(RoundsTinyScalesDown):
    bits, largest = 4, 7


class TruncatesFloat16Groups(Float16Groups):
    def integers(self, t: Tensor) -> Tensor:
        return super().integers(t.trunc())


class RoundsFloat16GroupsHalfUp(Float16Groups):
    def integers(self, t: Tensor) -> Tensor:
        return super().integers((t + 0.5).floor())


class UsesMinus128InFloat16Groups(Float16Groups):
    largest = 127.5

    def integers(self, t: Tensor) -> Tensor:
        return t.round().clamp(-128, 127).to(torch.int8)


class TakesNaNInFloat16Groups(Float16Groups):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return super().quantize(x.nan_to_num(0.0, 6e4, -6e4))


class RoundsTheSumInGroups(GroupsOfThree):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        refuse(x)
        return (x / self.along(scale) + self.along(zero_point)).round().clamp(0, 255).to(torch.uint8)


class RoundsPythonNumbersHalfUp(PythonNumbers):
    def quantize_with(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        refuse(x)
        return ((x.float() / scale + 0.5).floor() + zero_point).clamp(0, 255).to(torch.uint8)


class ChangesX(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        parts = super().quantize(x)
        x.clamp_(-1, 1)
        return parts


class GivenScaleGivesInt32(_WithAGivenScale):
    def quantize_with(self, x: Tensor, scale: Tensor, zero_point: None) -> Tensor:
        return super().quantize_with(x, scale, zero_point).int()


class ForgetsToReturnTheZeroPoint(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().quantize(x)[:2]


class NumPyValues(Absmax):
    def quantize(self, x: Tensor) -> tuple[np.ndarray, Tensor, None]:
        values, scale, _ = super().quantize(x)
        return values.numpy(), scale, None


class NoScale(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, None, None]:
        return super().quantize(x)[0], None, None


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


class LooksForNaNInTheSum(Absmax):
    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        if not x.float().sum().isfinite():
            raise ValueError("not finite")
        return super().quantize(x)


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
    (Truncates, checks.check_rounding, r"[13].5 becomes -?[13].0"),
    (Truncates, checks.check_error_bound, "half a step is the bound"),
    (RoundsHalfUp, checks.check_rounding, r"[02].5 becomes [13].0: round half to even"),
    (RoundsHalfUp, checks.check_sign_symmetry, "round half to even"),
    (RoundsTinyScalesDown, checks.check_error_bound, "the scale was rounded down"),
    (RoundsTinyScalesDownToFourBits, checks.check_error_bound, "the scale was rounded down"),
    (TruncatesFloat16Groups, checks.check_rounding, "[13].5 becomes -?[13].0"),
    (RoundsFloat16GroupsHalfUp, checks.check_rounding, "round half to even"),
    (UsesMinus128InFloat16Groups, checks.check_sign_symmetry, "use -127 to 127"),
    (TakesNaNInFloat16Groups, checks.check_not_finite, "nan in x .* of torch.float16 is quantized without a word"),
    (RoundsTheSumInGroups, checks.check_rounding, "before a zero point is added"),
    (RoundsPythonNumbersHalfUp, checks.check_rounding, "round half to even"),
    (ChangesX, checks.check_shapes, "quantize changes the tensor that it is given"),
    (GivenScaleGivesInt32, checks.check_given_scale, "quantize_with gives torch.int32 of .*, quantize torch.int8"),
    (ForgetsToReturnTheZeroPoint, checks.check_shapes, "return values, scale, zero_point"),
    (NumPyValues, checks.check_shapes, "values: a numpy.ndarray is returned, return a torch.Tensor"),
    (NoScale, checks.check_shapes, "the scale is None: return a tensor or a number"),
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
    (LooksForNaNInTheSum, checks.check_shapes, r"quantize fails for x .* of torch.float32: ValueError\('not finite'\)"),
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
