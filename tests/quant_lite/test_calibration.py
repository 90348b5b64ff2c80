"""Observers, SmoothQuant, GPTQ, outlier columns and fake quantization: by hand, and on real weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quant_lite import (
    MinMaxObserver,
    MSEObserver,
    PercentileObserver,
    PerChannel,
    PerGroup,
    PerTensor,
    absmax_quantize,
    error_bound,
    fake_quantize,
    fake_quantize_with,
    gptq_quantize,
    outlier_columns,
    quantize_with,
    range_parameters,
    smoothing_scales,
    zeropoint_quantize,
)

OBSERVERS: tuple[Callable, ...] = (MinMaxObserver, PercentileObserver, MSEObserver)


def test_min_max_sees_all_batches() -> None:
    observer = MinMaxObserver()
    for batch in (torch.tensor([1.0, 3.0]), torch.tensor([[2.0]]), torch.tensor([-0.5, 0.0]), torch.empty(0)):
        observer.update(batch)
    assert observer.range() == (-0.5, 3.0)
    scale, zero_point = range_parameters(*observer.range(), scheme="zeropoint")
    whole = zeropoint_quantize(torch.tensor([-0.5, 3.0]))
    assert torch.equal(scale, whole.scale[0]) and torch.equal(zero_point, whole.zero_point[0])
    assert range_parameters(-0.5, 3.0)[1] is None
    x = torch.linspace(-0.5, 3.0, 1000)
    fixed = quantize_with(x, scale, zero_point)
    assert ((x - fixed.dequantize()).abs() <= error_bound(fixed)).all()


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 100.0])
def test_percentile_is_that_of_all_that_was_seen(percentile: float, generator: torch.Generator) -> None:
    """Against a sort of everything at once; a bin is at most a 4096th of the largest."""
    x = torch.randn(20, 500, generator=generator)
    x[7] *= 1000  # the histogram's bins double ten times
    observer = PercentileObserver(percentile)
    for batch in x:
        observer.update(batch)
    exact, largest = float(x.abs().flatten().sort().values[round(percentile * 100) - 1]), float(x.abs().max())
    low, high = observer.range()
    cut = max(-low, high)
    assert exact <= cut * (1 + 1e-6) and cut <= exact + largest / 4096
    assert float((x.abs() <= cut).float().mean()) >= percentile / 100


def test_mse_cut_is_the_best_there_is(generator: torch.Generator) -> None:
    """With one far outlier it cuts; no other cut of a fine grid has an error that is 1% smaller."""
    x = torch.cat((torch.randn(20000, generator=generator), torch.tensor([60.0])))

    def squared_error(cut: float) -> float:
        scale, _ = range_parameters(-cut, cut, bits=4)
        return float((x - quantize_with(x, scale, bits=4).dequantize()).square().sum())

    observer = MSEObserver(bits=4)
    for batch in x.split(1000):
        observer.update(batch)
    low, high = observer.range()
    found = max(-low, high)
    best = min(squared_error(0.05 * i) for i in range(1, 1201))
    assert squared_error(found) <= 1.01 * best < squared_error(60.0) and found < 20
    even = MSEObserver(bits=8)
    even.update(torch.linspace(-1, 1, 10001))
    assert even.range()[1] > 0.98  # where no number is rare, there is nothing to cut


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_at_their_ends(observer: Callable) -> None:
    assert observer().range() == (0.0, 0.0)
    zeros = observer()
    zeros.update(torch.zeros(5))
    assert zeros.range() == (0.0, 0.0)
    positive = observer()
    positive.update(torch.tensor([1e-30, 2.0, 1.0], dtype=torch.bfloat16))
    assert positive.range()[0] == 0 and 1.8 < positive.range()[1] <= 2
    with pytest.raises(ValueError, match="NaN or infinity"):
        positive.update(torch.tensor([float("nan")]))
    assert positive.range()[1] <= 2


def test_what_calibration_refuses() -> None:
    with pytest.raises(ValueError, match="percentile=0: it is above 0"):
        PercentileObserver(0)
    with pytest.raises(ValueError, match="bits=2 is not known"):
        MSEObserver(bits=2)
    with pytest.raises(ValueError, match="scheme='min' is not known"):
        range_parameters(0, 1, "min")
    with pytest.raises(ValueError, match="the range from 1 to 0 is empty"):
        range_parameters(1, 0)


def test_outlier_columns_by_hand() -> None:
    x = torch.tensor([[[0.0, -6.0, 1.0], [5.9, 0.0, 1.0]], [[1.0, 2.0, 7.5], [0.0, 0.0, 0.0]]])
    assert outlier_columns(x).tolist() == [1, 2]
    assert outlier_columns(x, threshold=7.0).tolist() == [2]
    assert outlier_columns(torch.empty(0, 4)).tolist() == []
    for bad, why in ((torch.tensor(1.0), "must have columns"), (torch.tensor([float("inf")]), "infinity")):
        with pytest.raises(ValueError, match=why):
            outlier_columns(bad)
    with pytest.raises(ValueError, match="threshold=0: it must be above 0"):
        outlier_columns(x, 0)


def test_smoothing_by_hand() -> None:
    """sqrt(16 / 4) = 2, then 16 / 2 = 4 * 2: both sides have the same largest number."""
    weight = torch.tensor([[4.0, 1.0, 0.0, 3.0], [-1.0, -9.0, 0.0, 1.0]])
    assert smoothing_scales(torch.tensor([16.0, 1.0, 5.0, 0.0]), weight).tolist() == pytest.approx([2, 1 / 3, 1, 1])
    assert smoothing_scales(torch.tensor([16.0, 2.0, 5.0, 0.0]), weight, alpha=1.0).tolist() == [16.0, 2.0, 1.0, 1.0]
    assert smoothing_scales(torch.tensor([16.0, 2.0, 5.0, 1.0]), weight, 0.0).tolist()[:2] == pytest.approx(
        [1 / 4, 1 / 9]
    )
    with pytest.raises(ValueError, match=r"activation_absmax \(3,\) and weight \(2, 4\) do not fit"):
        smoothing_scales(torch.ones(3), weight)
    with pytest.raises(ValueError, match=r"alpha=1.5: it is from 0 to 1"):
        smoothing_scales(torch.ones(4), weight, 1.5)
    with pytest.raises(ValueError, match="negative, NaN or infinite"):
        smoothing_scales(-torch.ones(4), weight)


def test_smoothing_is_finite_and_positive_at_the_ends_of_float32() -> None:
    weight = torch.tensor([[1e-40, 3e38, 1e-45]])
    for alpha in (0.0, 0.5, 1.0):
        scales = smoothing_scales(torch.tensor([3e38, 1e-45, 1e-45]), weight, alpha)
        assert scales.isfinite().all() and (scales > 0).all(), alpha
    assert smoothing_scales(torch.ones(3), weight, 0.0)[0] == torch.finfo(torch.float32).max


def test_smoothing_makes_a_product_in_int8_better(generator: torch.Generator) -> None:
    """Activations with two columns a hundred times as large as the others, as large language models have."""
    x, w = torch.randn(64, 128, generator=generator), torch.randn(32, 128, generator=generator)
    x[:, [5, 77]] *= 100
    s = smoothing_scales(x.abs().amax(0), w)

    def off(x: Tensor, w: Tensor) -> float:
        y = absmax_quantize(x, PerChannel(0)).dequantize() @ absmax_quantize(w, PerChannel(0)).dequantize().T
        return float((y - exact).square().mean())

    exact = x.double() @ w.double().T
    assert torch.allclose((x / s).double() @ (w * s).double().T, exact, atol=1e-3)
    assert off(x / s, w * s) < off(x, w) / 4


def output_error(weight: Tensor, w_hat: Tensor, hessian: Tensor) -> Tensor:
    off = weight.double() - w_hat.double()
    return ((off @ hessian.double()) * off).sum(1)


def test_gptq_of_two_columns_by_hand() -> None:
    """w = (7, 1.4), s = 1, H = [[2, 1], [1, 2]]: 7 is exact, so 1.4 stays; with 6.6, the 0.4 below pushes 1.4 up.

    e = 6.6 - 7 = -0.4, and the best of the second is 1.4 - H_21 / H_22 * (-e) = 1.4 + (1 / 2) * (-0.4) = 1.2 for
    w - w_hat = (-0.4, d) to have the least error: d = 0.2, so w_hat = 1.2, and the nearest integer is 1 in both cases.
    """
    hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    w = torch.tensor([[6.6, 1.4, 7.0], [7.0, 1.4, 0.0], [6.6, 1.6, 7.0]])
    three = torch.eye(3)
    three[:2, :2] = hessian
    q = gptq_quantize(w, three, bits=4, damping=0.0)
    assert q.scale.flatten().tolist() == [1.0, 1.0, 1.0]
    # row 2: 1.6 - 0.2 = 1.4 rounds to 1, where plain rounding gives 2
    assert q.values.tolist() == [[7, 1, 7], [7, 1, 0], [7, 1, 7]]
    assert absmax_quantize(w, PerChannel(0), bits=4).values[2].tolist() == [7, 2, 7]


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(7)], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_gptq_without_correlation_is_plain_rounding(granularity: object, bits: int, generator: torch.Generator) -> None:
    w = torch.randn(6, 150, generator=generator).to(torch.bfloat16)
    diagonal = torch.rand(150, generator=generator)
    diagonal[3] = 0  # an input that is always 0
    q, plain = gptq_quantize(w, diagonal.diag(), granularity, bits, damping=0.0), absmax_quantize(w, granularity, bits)
    assert torch.equal(q.values, plain.values) and torch.equal(q.scale, plain.scale)
    assert q.dtype == w.dtype and q.group == plain.group


@pytest.mark.parametrize("bits", [8, 4])
def test_gptq_is_never_worse_and_mostly_far_better(bits: int, generator: torch.Generator) -> None:
    for K, T in ((40, 200), (300, 100)):  # more columns than a block, and fewer inputs than columns
        w = torch.randn(16, K, generator=generator)
        x = torch.randn(T, K, generator=generator) @ torch.randn(K, K, generator=generator)
        hessian = x.T @ x
        q, plain = gptq_quantize(w, hessian, PerGroup(16), bits), absmax_quantize(w, PerGroup(16), bits)
        errors = [output_error(w, each.dequantize(), hessian) for each in (q, plain)]
        assert (errors[0] <= errors[1] * (1 + 1e-5)).all() and errors[0].sum() < 0.6 * errors[1].sum()


@pytest.mark.parametrize("bits", [8, 4])
def test_gptq_on_real_weights(bits: int, real, generator: torch.Generator) -> None:
    """Every linear layer of a trained model, inputs correlated as neighbouring rows of its embedding are."""
    weights = load_file(real / "stories260k" / "model.safetensors")
    tokens = weights["model.embed_tokens.weight"]
    x = tokens[torch.randint(0, len(tokens), (4, 400), generator=generator)].sum(0)
    gains = []
    for name, w in weights.items():
        if not name.endswith("proj.weight") or w.shape[1] != x.shape[1]:
            continue
        q, plain = gptq_quantize(w, x.T @ x, bits=bits), absmax_quantize(w, PerChannel(0), bits=bits)
        errors = [output_error(w, each.dequantize(), x.T @ x) for each in (q, plain)]
        assert (errors[0] <= errors[1] * (1 + 1e-5)).all(), name
        gains.append(float(errors[0].sum() / errors[1].sum()))
    assert len(gains) >= 10 and sum(gains) / len(gains) < 0.9


def test_what_gptq_refuses() -> None:
    with pytest.raises(ValueError, match=r"weight \(2, 3\) and hessian \(2, 2\) do not fit"):
        gptq_quantize(torch.ones(2, 3), torch.eye(2))
    with pytest.raises(ValueError, match="holds NaN, infinity or a negative diagonal"):
        gptq_quantize(torch.ones(2, 2), -torch.eye(2))
    with pytest.raises(ValueError, match="has no inverse .*: raise the damping"):
        gptq_quantize(torch.ones(2, 2), torch.ones(2, 2), damping=0.0)
    assert gptq_quantize(torch.empty(0, 2), torch.eye(2)).values.shape == (0, 2)


@pytest.mark.parametrize("scheme", ["absmax", "zeropoint", "nf4"])
def test_fake_quantization_is_that_of_the_quantizer_with_the_gradient_of_x(
    scheme: str, generator: torch.Generator
) -> None:
    x = torch.randn(4, 10, generator=generator).requires_grad_()
    y = fake_quantize(x, PerGroup(4), 4, scheme)
    other = fake_quantize(y.detach(), PerGroup(4), 4, scheme)
    assert not torch.equal(y, x) and (y - other).abs().max() < (y - x).abs().max()
    weights = torch.randn(4, 10, generator=generator)
    (y * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_fake_quantization_with_a_given_scale_stops_where_it_clamps() -> None:
    x = torch.tensor([200.0, 127.4, 1.0, -127.6, -1e9]).requires_grad_()
    y = fake_quantize_with(x, torch.tensor(1.0))
    assert y.tolist() == [127.0, 127.0, 1.0, -127.0, -127.0]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]
    x.grad = None
    shifted = fake_quantize_with(x, torch.tensor(1.0), torch.tensor(5, dtype=torch.int8))
    shifted.sum().backward()
    assert shifted.tolist()[:3] == [122.0, 122.0, 1.0] and x.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


def test_training_with_fake_quantization_beats_quantizing_afterwards(generator: torch.Generator) -> None:
    """Least squares with correlated inputs: 4-bit weights that are trained for it fit better than rounded ones."""
    x = torch.randn(256, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    target = x @ torch.randn(16, 1, generator=generator)
    exact = torch.linalg.lstsq(x, target).solution.T

    def loss(w: Tensor) -> Tensor:
        return (x @ w.T - target).square().mean()

    w = exact.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.01)
    best = float(loss(fake_quantize(exact, bits=4)))
    before = best
    for _ in range(300):
        optimizer.zero_grad()
        value = loss(fake_quantize(w, bits=4))
        best = min(best, value.item())
        value.backward()
        optimizer.step()
    assert best < 0.8 * before
    with pytest.raises(ValueError, match="scheme='int4' is not known"):
        fake_quantize(w, scheme="int4")
