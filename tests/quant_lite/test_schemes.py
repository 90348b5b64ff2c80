"""Each scheme on small cases worked by hand, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import scipy.stats
import torch

from quant_lite import (
    NF4_LEVELS,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    absmax_quantize,
    error_bound,
    nf4_quantize,
    quantize_with,
    zeropoint_quantize,
)

QUANTIZERS = (absmax_quantize, zeropoint_quantize, nf4_quantize)


def test_absmax_by_hand() -> None:
    """max |x| = 127, so s = 1, and ties go to the even number."""
    q = absmax_quantize(torch.tensor([127.0, 0.5, 1.5, -2.5, 0.7, -127.0]))
    assert q.scale.item() == 1.0
    assert q.values.tolist() == [127, 0, 2, -2, 1, -127]
    rows = absmax_quantize(torch.tensor([[127.0, 63.4], [-254.0, 63.4]]), PerChannel(0))
    assert rows.scale.tolist() == [[1.0], [2.0]]
    assert rows.values.tolist() == [[127, 63], [-127, 32]]
    four = absmax_quantize(torch.tensor([7.0, -6.5, 0.5, 1.5]), bits=4)
    assert (four.scale.item(), four.values.tolist()) == (1.0, [7, -6, 0, 2])


def test_zeropoint_by_hand() -> None:
    """[-1, 254]: s = 1, z = -127, so -1 -> -128, 0 -> -127, 254 -> 127."""
    q = zeropoint_quantize(torch.tensor([-1.0, 0.0, 100.4, 254.0]))
    assert (q.scale.item(), q.zero_point.item()) == (1.0, -127)
    assert q.values.tolist() == [-128, -127, -27, 127]
    positive = zeropoint_quantize(torch.tensor([10.0, 255.0]))  # the range is widened to hold 0
    assert (positive.scale.item(), positive.zero_point.item()) == (1.0, -128)
    four = zeropoint_quantize(torch.tensor([-3.0, 12.0, 0.0, 2.5]), bits=4)  # 15 steps: z = -8 + 3
    assert (four.scale.item(), four.zero_point.item(), four.values.tolist()) == (1.0, -5, [-8, 7, -5, -3])


def test_groups_by_hand() -> None:
    """Two and a half groups: the last of each row has one element, and its own scale."""
    x = torch.tensor([[127.0, 1.0, 254.0, 2.0, 1.0], [0.0, 0.0, 12.7, -12.7, -63.5]])
    q = absmax_quantize(x, PerGroup(2))
    assert q.group == 2 and q.scale.shape == (2, 3)
    assert torch.equal(q.scale, torch.tensor([[1.0, 2.0, 1 / 127], [1.0, 0.1, 0.5]]).nextafter(q.scale))
    assert q.values.tolist() == [[127, 1, 127, 1, 127], [0, 0, 127, -127, -127]]
    assert absmax_quantize(x, PerGroup(7)).scale.shape == (2, 1)
    assert torch.equal(absmax_quantize(x, PerGroup(7)).values, absmax_quantize(x, PerToken()).values)
    assert error_bound(q)[1, :2].tolist() == [0.0, 0.0]  # zeros are exact


def test_tokens_by_hand() -> None:
    q = absmax_quantize(torch.tensor([[[127.0, 1.0]], [[-254.0, 1.0]]]), PerToken())
    assert q.scale.tolist() == [[[1.0]], [[2.0]]] and q.values.tolist() == [[[127, 1]], [[-127, 0]]]


def test_nf4_by_hand() -> None:
    """s = 2; half way between two levels the lower wins, above it the upper."""
    x = torch.tensor([2.0, -2.0, 0.0, 0.0795, 0.0797, 1.0])  # the middle of 0 and 0.0796 is 0.0398; times 2: 0.0796
    q = nf4_quantize(x, PerTensor())
    assert q.scale.item() == 2.0
    assert q.values.tolist() == [15, 0, 7, 7, 8, 12]  # 0.5 lies between 0.4407 and 0.5626, nearer to the former
    assert torch.equal(q.dequantize(), 2 * NF4_LEVELS[q.values.long()])


def test_nf4_levels_are_the_papers_quantiles() -> None:
    """Dettmers et al. 2023, appendix E: 8 quantiles of the positive half, 7 of the negative, 0, scaled to 1."""
    offset = 0.9677083
    positive, negative = (torch.linspace(offset, 0.5, n)[:-1].tolist() for n in (9, 8))
    tails = [*scipy.stats.norm.ppf(positive), 0.0, *-scipy.stats.norm.ppf(negative)]
    levels = torch.tensor(sorted(tails), dtype=torch.float64) / max(tails)
    assert torch.allclose(NF4_LEVELS.double(), levels, rtol=0, atol=1e-7)


def test_given_scales_saturate() -> None:
    x = torch.tensor([1e30, -1e30, 127.4, -128.4, 0.5])
    assert quantize_with(x, torch.tensor(1.0)).values.tolist() == [127, -127, 127, -127, 0]
    shifted = quantize_with(x, torch.tensor(1.0), torch.tensor(5, dtype=torch.int8))
    assert shifted.values.tolist() == [127, -128, 127, -123, 5]
    assert quantize_with(x, torch.tensor(1.0), bits=4).values.tolist() == [7, -7, 7, -7, 0]
    inside = torch.tensor([[0.3, -0.4], [0.5, 0.0]])  # all become 0, with the scale that zeros have, too
    q = quantize_with(inside, torch.ones(2, 1))
    assert not q.values.any() and (inside.abs() <= error_bound(q)).all()
    again = absmax_quantize(torch.randn(3, 10), PerGroup(4))
    fixed = quantize_with(again.dequantize(), again.scale, group=4)
    assert torch.equal(fixed.values, again.values) and torch.equal(fixed.dequantize(), again.dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_up_never_leaves_the_range(dtype: torch.dtype) -> None:
    """The largest number lies 244.6 steps above zero and rounds up to 245: the result stays finite."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([-largest * 10.4 / 244.6, largest]).to(dtype)
    q = zeropoint_quantize(x)
    assert int(q.values[1]) - int(q.zero_point) == 245
    assert q.dequantize()[1] == largest
    assert ((x.double() - q.dequantize().double()).abs() <= error_bound(q)).all()


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_corners(quantize: Callable) -> None:
    assert quantize(torch.tensor(3.0), PerTensor()).values.shape == ()
    assert quantize(torch.empty(0, 4), PerChannel(1)).scale.shape == (1, 4)
    assert quantize(torch.empty(3, 0), PerGroup(2)).scale.shape == (3, 0)
    assert quantize(torch.empty(0, 5), PerGroup(2)).dequantize().shape == (0, 5)
    assert quantize(torch.empty(2, 0), PerToken()).scale.shape == (2, 1)
    line = torch.randn(2**20 + 3)  # larger than a piece, and one axis only
    assert torch.equal(quantize(line, PerGroup(64)).values[-3:], quantize(line[-3:], PerGroup(64)).values)


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_what_is_refused(quantize: Callable) -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        for granularity in (PerTensor(), PerChannel(1), PerToken(), PerGroup(2)):
            with pytest.raises(ValueError, match="NaN or infinity"):
                quantize(torch.tensor([[1.0, 2.0, bad]]), granularity)
    with pytest.raises(TypeError, match="torch.float64"):
        quantize(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"PerChannel\(axis=2\): a tensor of shape \(2, 2\) has no such axis"):
        quantize(torch.zeros(2, 2), PerChannel(2))
    for granularity in (PerToken(), PerGroup(4)):
        with pytest.raises(ValueError, match="a 0-d tensor has no last axis"):
            quantize(torch.tensor(1.0), granularity)


def test_which_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"PerGroup\(size=0\): a group has at least 1 element"):
        PerGroup(0)
    for quantize in (absmax_quantize, zeropoint_quantize):
        with pytest.raises(ValueError, match="bits=3 is not known: take 8 or 4"):
            quantize(torch.ones(2), bits=3)
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="not positive and finite"):
            quantize_with(torch.ones(2), torch.tensor(scale))
    with pytest.raises(TypeError, match="the scale is torch.bfloat16"):
        quantize_with(torch.ones(2), torch.ones(1, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_with(torch.tensor([float("nan")]), torch.ones(1))


def test_a_given_zero_point_is_an_integer_of_the_range() -> None:
    """Outside of it zero would be no number that is stored."""
    x, scale = torch.randn(4), torch.tensor(0.02)
    for zero_point, bits, words in (
        (torch.tensor(200), 8, "zero_point=200 .* from -128 to 127"),
        (torch.tensor(-129), 8, "zero_point=-129 "),
        (torch.tensor(8, dtype=torch.int8), 4, "zero_point=8 .* from -8 to 7"),
        (torch.tensor(3.5), 8, "zero_point is torch.float32"),
        (torch.tensor(True), 8, "zero_point is torch.bool"),
    ):
        with pytest.raises(ValueError, match=words):
            quantize_with(x, scale, zero_point, bits)
    q = quantize_with(torch.zeros(3), scale, torch.tensor(-128))
    assert q.zero_point.dtype == torch.int8 and not q.dequantize().any()


def test_a_given_scale_has_the_shape_of_its_granularity() -> None:
    x = torch.randn(4, 6)
    for shape, group in (((3, 1), None), ((6, 4), None), ((2, 4, 6), None), ((4, 2), 2), ((3, 3), 2), ((), 2)):
        with pytest.raises(ValueError, match=rf"scale {re.escape(str(shape))} does not fit x \(4, 6\)"):
            quantize_with(x, torch.ones(shape), group=group)
    with pytest.raises(ValueError, match=r"zero_point \(3,\) does not fit x \(4, 6\)"):
        quantize_with(x, torch.ones(4, 1), torch.zeros(3, dtype=torch.int8))
    for shape, group in (((), None), ((4, 1), None), ((6,), None), ((4, 3), 2), ((1, 2), 4)):
        assert quantize_with(x, torch.ones(shape), group=group).dequantize().shape == x.shape
