"""Every scheme keeps the properties of `quant_lite.checks`, and what those cannot see: dtypes, NF4, views."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_lite import (
    NF4_LEVELS,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizedTensor,
    absmax_quantize,
    checks,
    error_bound,
    nf4_quantize,
    quantize_with,
    zeropoint_quantize,
)
from quant_lite.checks import tensors

INTEGERS = (absmax_quantize, zeropoint_quantize)


def quantizer(quantize: Callable[..., QuantizedTensor], granularity: object, bits: int = 8) -> checks.Quantizer:
    """Ours, in the form that the checks take."""
    group = granularity.size if isinstance(granularity, PerGroup) else None
    symmetric = quantize is absmax_quantize

    def parts(x: torch.Tensor) -> tuple:
        q = quantize(x, granularity, bits)
        return q.values, q.scale, q.zero_point

    return checks.Quantizer(
        parts,
        lambda values, scale, zero: QuantizedTensor(values, scale, zero, torch.float32, group).dequantize(),
        lambda x, scale, zero: quantize_with(x, scale, None if symmetric else zero, bits, group).values,
        granularity,
        symmetric,
        bits,
    )


@pytest.mark.parametrize("quantize", INTEGERS)
@pytest.mark.parametrize(
    ("granularity", "bits"),
    [(PerTensor(), 8), (PerChannel(0), 8), (PerChannel(-1), 4), (PerToken(), 8), (PerGroup(3), 8), (PerGroup(3), 4)],
    ids=str,
)
def test_every_check_passes(quantize: Callable, granularity: object, bits: int) -> None:
    checks.check_all(quantizer(quantize, granularity, bits))


@pytest.mark.parametrize("quantize", INTEGERS)
@pytest.mark.parametrize("bits", [8, 4])
def test_scales_of_less_are_never_larger(quantize: Callable, bits: int) -> None:
    checks.check_finer_scales(lambda granularity: quantizer(quantize, granularity, bits))


@given(tensors((torch.float32,), min_dims=1), st.sampled_from(INTEGERS), st.sampled_from([8, 4]))
def test_bound_of_less_is_never_larger(x: torch.Tensor, quantize: Callable, bits: int) -> None:
    """bound(group) <= bound(channel) <= bound(tensor), exactly, zero rows included."""
    group, channel, whole = (error_bound(quantize(x, g, bits)) for g in (PerGroup(2), PerToken(), PerTensor()))
    assert (group <= channel).all() and (channel <= whole).all()


@given(tensors((torch.float16, torch.bfloat16), min_dims=1), st.sampled_from(INTEGERS))
def test_bound_of_less_is_larger_by_a_cast_at_most(x: torch.Tensor, quantize: Callable) -> None:
    group, channel, whole = (quantize(x, g) for g in (PerGroup(2), PerToken(), PerTensor()))
    info = torch.finfo(x.dtype)
    for finer, coarser in ((group, channel), (channel, whole)):
        cast = 1.01 * info.eps / 2 * (finer.dequantize().double().abs() + info.smallest_normal)
        assert (error_bound(finer) <= error_bound(coarser) + cast).all()


NF4_CHECKS = (checks.check_zero, checks.check_order, checks.check_permutation, checks.check_scaling)


@pytest.mark.parametrize("check", [*NF4_CHECKS, checks.check_independent, checks.check_not_finite])
@pytest.mark.parametrize("granularity", [PerGroup(3), PerChannel(0)], ids=str)
def test_nf4_keeps_what_is_not_about_integers(check: Callable, granularity: object) -> None:
    group = granularity.size if isinstance(granularity, PerGroup) else None

    def parts(x: torch.Tensor) -> tuple:
        q = nf4_quantize(x, granularity)
        return q.values, q.scale, None

    def dequantize(values: torch.Tensor, scale: torch.Tensor, _: None) -> torch.Tensor:
        zero = torch.zeros_like(scale, dtype=torch.int8)
        return QuantizedTensor(values, scale, zero, torch.float32, group, NF4_LEVELS).dequantize()

    check(checks.Quantizer(parts, dequantize, None, granularity, bits=4))


@given(tensors(min_dims=2, min_side=1), st.sampled_from([*INTEGERS, nf4_quantize]))
def test_a_view_gives_what_its_copy_gives(x: torch.Tensor, quantize: Callable) -> None:
    wide = torch.stack((x, x + 1), -1).clamp(-torch.finfo(x.dtype).max, torch.finfo(x.dtype).max)[..., 0]
    for granularity in (PerTensor(), PerChannel(1), PerToken(), PerGroup(3)):
        one, other = quantize(wide, granularity), quantize(x.contiguous(), granularity)
        assert torch.equal(one.values, other.values) and torch.equal(one.scale, other.scale)
        assert torch.equal(one.dequantize(), other.dequantize())


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([*INTEGERS, nf4_quantize]))
def test_pieces_give_what_the_whole_gives(seed: int, quantize: Callable) -> None:
    """Work goes by pieces of rows where a tensor is large: row by row it is the same."""
    x = torch.randn(2100, 513, generator=torch.Generator().manual_seed(seed))
    for granularity in (PerChannel(0), PerGroup(100)):
        q, tail = quantize(x, granularity), quantize(x[2040:], granularity)
        assert torch.equal(q.values[2040:], tail.values)
        assert torch.equal(q.dequantize()[2040:], tail.dequantize())
        assert torch.equal(error_bound(q)[2040:], error_bound(tail))
