"""The bounds hold for every tensor that a search finds, and some tensor reaches them: in 0.95 of them at the least."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st
from torch import Tensor

from quant_lite import (
    NF4_LEVELS,
    Int8Linear,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizedTensor,
    absmax_quantize,
    error_bound,
    matmul_error_bound,
    nf4_quantize,
    zeropoint_quantize,
)
from quant_lite.checks import FLOATS, tensors
from quant_lite.quantize import full_range_rows

SCHEMES: dict[str, Callable[..., QuantizedTensor]] = {
    "absmax": absmax_quantize,
    "absmax int4": partial(absmax_quantize, bits=4),
    "zeropoint": zeropoint_quantize,
    "zeropoint int4": partial(zeropoint_quantize, bits=4),
    "nf4": nf4_quantize,
}
schemes = st.sampled_from(list(SCHEMES))
search = partial(settings, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def normal(draw: st.DrawFn, largest: float = 1e30) -> Tensor:
    """Many rows of a few normally distributed numbers: what a search among small tensors seldom comes upon."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype, size = draw(st.sampled_from(FLOATS)), draw(st.sampled_from([1e-41, 1e-5, 1.0, 1e4, largest]))
    x = torch.randn(256, draw(st.integers(1, 4)), generator=random, dtype=torch.float64) * size
    return x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)


def granularities(x: Tensor) -> list:
    lines = [PerToken(), PerGroup(1), PerGroup(2), PerGroup(3)] if x.dim() else []
    return [PerTensor(), *lines, *(PerChannel(axis) for axis in range(-x.dim(), x.dim()))]


def error(x: Tensor, q: QuantizedTensor) -> Tensor:
    """`|x - x_hat|`: numbers of at most 24 bits, subtracted in float64."""
    return (x.double() - q.dequantize().double()).abs()


def share(error: Tensor, bound: Tensor) -> float:
    """The largest error / bound; 0 / 0 is 0."""
    error, bound = error.double(), bound.double()
    assert (error <= bound).all()
    return float((error / bound.clamp(min=1e-300)).max()) if error.numel() else 0.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_search_never_passes_the_bound_and_reaches_it(scheme: str) -> None:
    best = 0.0

    @search(max_examples=200)
    @given(tensors() | normal(), st.data())
    def look(x: Tensor, data: st.DataObject) -> None:
        nonlocal best
        q = SCHEMES[scheme](x, data.draw(st.sampled_from(granularities(x))))
        assert q.values.shape == x.shape and q.values.dtype == torch.int8
        assert q.dequantize().dtype == x.dtype and q.dequantize().isfinite().all()
        assert q.scale.dtype == torch.float32 and (q.scale > 0).all()
        reached = share(error(x, q), error_bound(q))
        target(reached)
        best = max(best, reached)

    look()
    assert best >= 0.95


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exponent", [0, -20, 6])
@pytest.mark.parametrize("scheme", ["absmax", "absmax int4", "zeropoint", "zeropoint int4"])
def test_every_integer_reaches_its_bound(scheme: str, exponent: int, dtype: torch.dtype) -> None:
    """With a step of a power of two, numbers half way between integers are half a step off: so is each of them."""
    bits = 4 if "int4" in scheme else 8
    highest = 2 ** (bits - 1) - 1
    lowest = -highest if scheme.startswith("absmax") else -highest - 1
    ties = torch.arange(lowest, highest) + 0.5
    x = torch.cat((torch.tensor([float(lowest), float(highest)]), ties)).double() * 2.0**exponent
    x = x[x == x.to(dtype).double()].to(dtype)
    q = SCHEMES[scheme](x)
    reached = error(x, q).double() / error_bound(q)
    assert (error(x, q) <= error_bound(q)).all() and len(x) > 2 * highest - 2
    assert (reached[2:] >= 0.9998).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("largest", [0.011, 1.0, 777.0, 60000.0])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_numbers_of_sixteen_bits(scheme: str, largest: float, dtype: torch.dtype) -> None:
    """Every float16 and bfloat16 up to the largest: none passes its bound, each level has one that nears it."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = every[every.double().abs() <= torch.tensor(largest, dtype=dtype).double()]
    q = SCHEMES[scheme](x, PerTensor())
    reached = error(x, q).double() / error_bound(q)
    assert (reached <= 1).all() and reached.max() >= 0.95
    nearest = torch.zeros(256, dtype=torch.float64)
    nearest = nearest.scatter_reduce(0, q.values.long() + 128, reached, "amax", include_self=False)
    # a number and its neighbour may lie a 2^-8th apart: where that is a part of a step, no number is at its very end
    spacing = torch.finfo(dtype).eps * q.dequantize().double().abs() / error_bound(q)
    least = torch.ones(256, dtype=torch.float64).scatter_reduce(0, q.values.long() + 128, 1 - 2 * spacing, "amin")
    ends = q.values.long().unique()[1:-1] + 128  # the ends of the range are reached from one side only
    assert (nearest[ends] >= least[ends].clamp(max=0.99)).all()


def test_every_level_of_nf4_reaches_its_bound() -> None:
    """Just beside the middles, in float32."""
    middles = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
    one = torch.tensor([1.0])
    x = torch.cat((one, middles.nextafter(one), middles.nextafter(-one))) * 3
    q = nf4_quantize(x, PerTensor())
    reached = error(x, q).double() / error_bound(q)
    assert (reached <= 1).all()
    assert all(reached[q.values == level].max() >= 0.998 for level in range(16))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_corners(scheme: str, dtype: torch.dtype) -> None:
    """The largest numbers and the smallest, constants, zero rows, one-element rows, 0-d and empty tensors."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    lines = [[0.0] * 3, [info.max, -info.max, 0.0], [tiny, 3 * tiny, 190 * tiny], [0.1] * 3, [info.max, tiny, -tiny]]
    x = torch.tensor(lines, dtype=torch.float64).to(dtype)
    for one in (x, x.T, x[:, :1], x[2, 2], x[:0], x[:, :0], x.flatten()[:, None]):
        for granularity in granularities(one):
            q = SCHEMES[scheme](one, granularity)
            share(error(one, q), error_bound(q))
    rows = SCHEMES[scheme](x, PerChannel(0))
    assert (rows.dequantize()[0] == 0).all() and (error_bound(rows)[0] == 0).all()


# ---------------------------------------------------------------------------------------------------------- products


def exact(x: Tensor, w: Tensor) -> Tensor:
    """x W^T, each element rounded once: products of 24 bits are exact in float64, and fsum is."""
    rows = [[math.fsum(a * b for a, b in zip(r, c)) for c in w.double().tolist()] for r in x.double().tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(len(x), len(w))


def rows_of(x: Tensor, activations: str) -> QuantizedTensor:
    return full_range_rows(x.float()) if activations == "int8_full" else absmax_quantize(x.float(), PerToken())


def activated(x: Tensor, activations: str) -> Tensor:
    return x.float() if activations == "float" else rows_of(x, activations).dequantize()


def products(x: Tensor, q: QuantizedTensor, activations: str) -> list[Tensor]:
    """The plain reference in three orders: PyTorch's, one by one, and one by one from the end."""
    a, b = activated(x, activations), q.dequantize().float()
    terms = (a[:, None, :] * b[None]).unbind(-1)
    zero = torch.zeros(len(a), len(b))
    return [a @ b.T, sum(terms, zero), sum(terms[::-1], zero)]


def check_product(x: Tensor, w: Tensor, q: QuantizedTensor, activations: str) -> float:
    """How much of its bound the reference's error is; with all that can be summed in integers, of their sum's, too."""
    bound, y = matmul_error_bound(x, q, activations), exact(x, w)
    assert bound.shape == y.shape and bound.dtype == torch.float32
    ys = products(x, q, activations)
    if (
        q.levels is None
        and q.group is None
        and q.scale.shape[1] == 1
        and not q.zero_point.any()
        and (q.scale > 1e-12).all()
    ):
        a = rows_of(x, activations)
        if activations == "float":
            ys.append((x.float() @ q.values.float().T) * q.scale.expand(len(w), 1).T)
        elif (a.scale > 1e-12).all():
            ys.append(
                (a.values.int()[:, None] * q.values.int()).sum(-1).float() * (a.scale * q.scale.expand(len(w), 1).T)
            )
    return max(share((y - one.double()).abs().nan_to_num(float("inf")), bound) for one in ys if bound.isfinite().all())


@pytest.mark.parametrize("activations", ["float", "int8", "int8_full"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_search_never_passes_the_bound_of_a_product_and_reaches_it(scheme: str, activations: str) -> None:
    best = 0.0

    @search(max_examples=300)
    @given(st.data())
    def look(data: st.DataObject) -> None:
        nonlocal best
        largest = data.draw(st.sampled_from([1e18, 100.0]))
        w = data.draw(tensors(min_dims=2, max_dims=2, largest=largest) | normal(largest))
        rows = data.draw(tensors(min_dims=2, max_dims=2, min_side=1, max_side=3, largest=largest))
        x = rows.flatten().repeat(2 * w.shape[1] + 1)[: 2 * w.shape[1]].view(2, w.shape[1])
        x = x.sign() if data.draw(st.booleans()) else x
        q = SCHEMES[scheme](w, data.draw(st.sampled_from(granularities(w))))
        reached = check_product(x, w, q, activations)
        target(reached)
        best = max(best, reached)

    look()
    assert best >= 0.95


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(12)], ids=str)
@pytest.mark.parametrize("activations", ["float", "int8", "int8_full"])
@pytest.mark.parametrize("scheme", ["absmax", "zeropoint", "absmax int4"])
def test_built_weights_reach_the_bound_of_a_product(
    scheme: str, activations: str, granularity: object, generator: torch.Generator
) -> None:
    """Weights half a step off, each to the side that x pushes the sum to: all errors add up."""
    K, highest = 50, 7 if "int4" in scheme else 127
    x = torch.randn(1, K, generator=generator)
    x[:, ::12] = x[:, 1::12] = 0  # where the weights are that fix the step
    off = (x - activated(x, activations)).squeeze()
    even = 2.0 * torch.randint(0, highest // 4, (K,), generator=generator)
    n = even * torch.where(off == 0, 1.0, off.sign())  # what the error of x meets has its sign
    w = n + 0.5 * x.squeeze().sign()  # n is even, so that n + 1/2 rounds down to it and n - 1/2 up
    lowest = -highest if scheme.startswith("absmax") else -highest - 1
    w[::12], w[1::12] = highest, lowest  # a step of 1 in each group
    w = w[None]
    q = SCHEMES[scheme](w, granularity)
    assert (q.scale == 1).all()
    assert check_product(x, w, q, activations) >= 0.998


def test_bound_of_a_product_by_hand() -> None:
    """K = 2, steps of 1: 3 * 1/2 + 1 * 1/2 = 2, and what float32 is off."""
    w = torch.tensor([[127.0, 0.5]])
    bound = matmul_error_bound(torch.tensor([[3.0, -1.0]]), absmax_quantize(w))
    assert 2.0 < bound.item() < 2.0005
    # x = 3 and -1 become 127 and -42 steps of 3/127: -42 * 3/127 = -0.99213, off by 0.00787 at the weight 0
    both = matmul_error_bound(torch.tensor([[3.0, -1.0]]), absmax_quantize(w), "int8")
    assert both.item() == pytest.approx(bound.item(), abs=3e-4)
    other = matmul_error_bound(torch.tensor([[3.0, -1.0]]), absmax_quantize(torch.tensor([[1.0, 127.0]])), "int8")
    assert other.item() == pytest.approx(2.0 + 127 * (1 - 126 / 127), abs=1e-3)


def test_bound_of_less_is_never_larger_in_a_product(generator: torch.Generator) -> None:
    w, x = torch.randn(8, 64, generator=generator), torch.randn(3, 64, generator=generator)
    bounds = [matmul_error_bound(x, absmax_quantize(w, g)) for g in (PerGroup(16), PerChannel(0), PerTensor())]
    assert (bounds[0] < bounds[1]).all() and (bounds[1] <= bounds[2]).all()


def test_a_zero_row_has_no_error_and_an_overflow_an_infinite_one() -> None:
    w = torch.tensor([[0.0, 0.0], [1e38, 1e38]])
    bound = matmul_error_bound(torch.tensor([[1e3, 1.0], [1.0, 1e-3]]), absmax_quantize(w, PerChannel(0)))
    cancels = matmul_error_bound(torch.tensor([[3.0, -3.0]]), absmax_quantize(torch.full((1, 2), 1.3e38)))
    assert math.isinf(cancels)  # 3.9e38 is past the largest number, though y is 0 and the rest of the bound is 3e36
    assert bound[:, 0].tolist() == [0.0, 0.0] and math.isinf(bound[0, 1]) and bound[1, 1] < 1e36
    x, tiny = torch.full((1, 3), 3e38), absmax_quantize(torch.full((1, 3), 1e-38))
    assert (x @ tiny.dequantize().T).item() == pytest.approx(9, rel=0.01)  # 127 x, which waits for its scale, is none
    assert math.isinf(matmul_error_bound(x, tiny)) and math.isinf(Int8Linear(tiny).product_reference(x))


huge = st.sampled_from([1e-38, 1e-30, 1e-12, 1.0, 1e12, 1e19, 1e30, 3e38])


@pytest.mark.parametrize("activations", ["float", "int8", "int8_full"])
@pytest.mark.parametrize("scheme", ["absmax", "zeropoint", "nf4"])
def test_a_product_overflows_only_where_its_bound_is_infinite(scheme: str, activations: str) -> None:
    """Weights and inputs of any size: the plain product in three orders, and a layer with few rows, many, and by operators.

    Where each sum on the way stays below a quarter of the largest number the bound is finite: infinity is not its answer
    to everything.
    """
    seen = {"finite": 0, "infinite": 0}

    @search(max_examples=400)
    @given(st.integers(0, 10**6), huge, huge, st.integers(1, 40), st.sampled_from([None, 5]))
    def look(seed: int, of_w: float, of_x: float, K: int, group: int | None) -> None:
        random = torch.Generator().manual_seed(seed)
        largest = torch.finfo(torch.float32).max
        w, x = (
            (torch.randn(rows, K, generator=random, dtype=torch.float64) * size).clamp(-largest, largest).float()
            for rows, size in ((5, of_w), (6, of_x))
        )
        q = SCHEMES[scheme](w, PerChannel(0) if group is None else PerGroup(group))
        bound, y = matmul_error_bound(x, q, activations).double(), exact(x, w)
        ys = products(x, q, activations)
        subnormal = activations != "float" and float(q.scale.min()) * float(x.abs().amax(1).min()) / 127.5 < 1.2e-38
        if scheme == "absmax" or (scheme == "zeropoint" and activations == "float"):
            layer = Int8Linear(q, activations=activations)
            ys += [] if subnormal else [layer.product(x), layer.product(x[:2]), layer.product_reference(x)]
        for one in ys:
            off = (y[: len(one)] - one.double()).abs()
            assert (off.nan_to_num(math.inf) <= bound[: len(one)]).all()
        # on the way: products of what is read, of it and integers that wait for their scale, and the other way round
        size, half, steps = q.dequantize().double().abs(), error_bound(q).double(), x.double().abs()
        most = steps @ torch.maximum(size, half).T
        if scheme != "nf4":
            most = torch.maximum(most, steps.sum(1, keepdim=True) * 255)
        if activations != "float":
            most = torch.maximum(most, 128 * size.sum(1))
        assert bound[most < largest / 4].isfinite().all()
        seen["finite"] += int(bound.isfinite().sum())
        seen["infinite"] += int(bound.isinf().sum())

    look()
    assert min(seen.values()) > 1000


def test_what_a_product_refuses() -> None:
    q = absmax_quantize(torch.ones(3, 4), PerChannel(0))
    assert matmul_error_bound(torch.ones(2, 5, 4), q).shape == (2, 5, 3)
    assert matmul_error_bound(torch.ones(4), q, "int8").shape == (3,)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinity"):
            matmul_error_bound(torch.tensor([[1.0, 2.0, 3.0, bad]]), q)
    with pytest.raises(ValueError, match=r"x \(2, 3\) and weight \(3, 4\) do not fit"):
        matmul_error_bound(torch.ones(2, 3), q)
    with pytest.raises(ValueError, match="activations='int4' is not known"):
        matmul_error_bound(torch.ones(2, 4), q, "int4")
    with pytest.raises(TypeError, match="torch.float64"):
        matmul_error_bound(torch.ones(2, 4).double(), q)
