"""The error bound and what else must hold for every tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st

from quant_lite import PerChannel, PerTensor, QuantizedTensor, absmax_quantize, error_bound, zeropoint_quantize
from tests.properties.strategies import DTYPES, tensors

QUANTIZERS = (absmax_quantize, zeropoint_quantize)
Quantizer = Callable[..., QuantizedTensor]
quantizers = st.sampled_from(QUANTIZERS)


def granularities(x: torch.Tensor) -> list:
    return [PerTensor(), *(PerChannel(axis) for axis in range(-x.dim(), x.dim()))]


def error(x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    """|x - x_hat|: numbers of at most 24 bits, subtracted in float64."""
    return (x.double() - q.dequantize().double()).abs()


@given(tensors(), quantizers, st.data())
def test_error_stays_within_its_bound(x: torch.Tensor, quantize: Quantizer, data: st.DataObject) -> None:
    q = quantize(x, data.draw(st.sampled_from(granularities(x))))
    assert q.values.shape == x.shape and q.values.dtype == torch.int8
    assert q.dequantize().dtype == x.dtype and q.dequantize().isfinite().all()
    assert q.scale.dtype == torch.float32 and (q.scale > 0).all()
    e, bound = error(x, q), error_bound(q).double()
    if x.numel():
        target(float((e / bound).max()))
    assert (e <= bound).all()


@given(tensors(), quantizers)
def test_bound_is_half_a_step_and_rounding(x: torch.Tensor, quantize: Quantizer) -> None:
    """The bound cannot be loosened unseen: it stays below s/2 plus a few roundoffs of what is at hand."""
    q = quantize(x)
    unit = max(torch.finfo(x.dtype).eps / 2, 2.0**-24)
    slack = 1e-6 * q.scale.double() + 1.3 * (unit + 3 * 2.0**-24) * q.dequantize().double().abs()
    half_subnormal = 0.0 if x.dtype == torch.float32 else torch.finfo(x.dtype).smallest_normal * unit * 1.02
    assert (error_bound(q).double() <= q.scale.double() / 2 + slack + half_subnormal + 2.0**-149).all()


@given(tensors(), quantizers)
def test_zero_is_exact(x: torch.Tensor, quantize: Quantizer) -> None:
    q = quantize(torch.cat((x.flatten(), torch.zeros(1, dtype=x.dtype))))
    assert q.dequantize()[-1] == 0


@given(tensors())
def test_absmax_is_odd(x: torch.Tensor) -> None:
    assert torch.equal(absmax_quantize(-x).values, -absmax_quantize(x).values)
    assert absmax_quantize(x).values.numel() == 0 or absmax_quantize(x).values.min() >= -127


@given(tensors(), quantizers)
def test_order_is_kept(x: torch.Tensor, quantize: Quantizer) -> None:
    q = quantize(x.flatten().sort().values).dequantize().double()
    assert (q.diff() >= 0).all()


@given(tensors(torch.float32, min_dims=2), quantizers)
def test_channels_are_independent(x: torch.Tensor, quantize: Quantizer) -> None:
    """Row by row gives what the whole gives: no scale sees another channel."""
    whole = quantize(x, PerChannel(0))
    for row in range(x.shape[0]):
        alone = quantize(x[row])
        assert torch.equal(alone.values, whole.values[row])


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=8), quantizers)
def test_channel_scale_is_never_above_the_tensors(row: list[float], quantize: Quantizer) -> None:
    x = torch.tensor([row, [v / 3 for v in row]])
    channel, whole = quantize(x, PerChannel(0)), quantize(x, PerTensor())
    nonzero = x.abs().amax(1, keepdim=True) > 0  # a row of zeros takes the scale 1
    assert (channel.scale[nonzero] <= whole.scale).all()


def test_absmax_by_hand() -> None:
    """max |x| = 127, so s = 1, and ties go to the even number."""
    q = absmax_quantize(torch.tensor([127.0, 0.5, 1.5, -2.5, 0.7, -127.0]))
    assert q.scale.item() == 1.0
    assert q.values.tolist() == [127, 0, 2, -2, 1, -127]
    rows = absmax_quantize(torch.tensor([[127.0, 63.4], [-254.0, 63.4]]), PerChannel(0))
    assert rows.scale.tolist() == [[1.0], [2.0]]
    assert rows.values.tolist() == [[127, 63], [-127, 32]]


def test_zeropoint_by_hand() -> None:
    """[-1, 254]: s = 1, z = -127, so -1 -> -128, 0 -> -127, 254 -> 127."""
    q = zeropoint_quantize(torch.tensor([-1.0, 0.0, 100.4, 254.0]))
    assert (q.scale.item(), q.zero_point.item()) == (1.0, -127)
    assert q.values.tolist() == [-128, -127, -27, 127]
    positive = zeropoint_quantize(torch.tensor([10.0, 255.0]))  # the range is widened to hold 0
    assert (positive.scale.item(), positive.zero_point.item()) == (1.0, -128)


@pytest.mark.parametrize("quantize", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_corners(quantize: Quantizer, dtype: torch.dtype) -> None:
    """Zero rows, empty and 0-d tensors, the largest numbers and the smallest."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    rows = [
        torch.zeros(3),
        torch.tensor([info.max, -info.max, 0.0]),
        torch.tensor([tiny, 3 * tiny, 190 * tiny]),
        torch.full((3,), 0.1),
    ]
    x = torch.stack(rows).to(dtype)
    q = quantize(x, PerChannel(0))
    assert (error(x, q) <= error_bound(q)).all()
    assert (q.dequantize()[0] == 0).all()
    assert quantize(torch.tensor(3.0, dtype=dtype)).values.shape == ()
    assert quantize(torch.empty(0, 4, dtype=dtype), PerChannel(1)).scale.shape == (1, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_up_never_leaves_the_range(dtype: torch.dtype) -> None:
    """The largest number lies 244.6 steps above zero and rounds up to 245: the result stays finite."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([-largest * 10.4 / 244.6, largest]).to(dtype)
    q = zeropoint_quantize(x)
    assert int(q.values[1]) - int(q.zero_point) == 245
    assert q.dequantize()[1] == largest
    assert (error(x, q) <= error_bound(q)).all()


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_what_is_refused(quantize: Quantizer) -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantize(torch.tensor([1.0, bad]))
    with pytest.raises(TypeError, match="torch.float64"):
        quantize(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"PerChannel\(axis=2\): a tensor of shape \(2, 2\) has no such axis"):
        quantize(torch.zeros(2, 2), PerChannel(2))
