"""Merging and its way back, sums of adapters, starts from the weight, and the correction of a quantized base."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llama_min import Llama
from lora_lite import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    combine_adapters,
    correct_quantization,
    loftq,
    lora_disabled,
    lora_layers,
    low_rank_correction,
    merge_lora,
    remove_lora,
    set_adapter,
    unmerge_lora,
)
from lora_lite.starts import olora, pissa
from quant_lite import Int8Linear, absmax_quantize, quantize_
from tests.llama_min.test_model import SMALL
from tests.lora_lite.test_adapters import scramble
from tests.lora_lite.test_lora import IDS, filled, tied_llama


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"dora": True}, {"start": "pissa"}, {"targets": ("embed_tokens", "lm_head")}, {"modules_to_save": ("norm",)}],
)
def test_unmerge_restores_the_very_bits(model: Llama, dtype: torch.dtype, settings: dict) -> None:
    """W + delta - delta would not: the original is kept. Adapters, and what is trainable, are back too."""
    model.to(dtype)
    base = bits(model)
    add_lora(model, LoRAConfig(**settings))
    scramble(model)
    adapted, before = bits(model), model(IDS)
    merged = merge_lora(model, keep=True)
    assert merged.largest_change > 0.01 and not same_bits(bits(model), base)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())
    unmerge_lora(model, merged)
    assert same_bits(bits(model), adapted) and torch.equal(model(IDS), before)
    assert not model.model.norm.weight.requires_grad or settings.get("modules_to_save")
    remove_lora(model)
    assert same_bits(bits(model), base)


def test_unmerge_refuses_what_it_cannot_undo(model: Llama) -> None:
    add_lora(model)
    filled(model)
    with pytest.raises(ValueError, match="did not keep the base weights"):
        unmerge_lora(model, merge_lora(model))
    add_lora(model)
    merged = merge_lora(model, keep=True)
    model.bfloat16()
    with pytest.raises(ValueError, match=r"q_proj was changed after the merge"):
        unmerge_lora(model, merged)
    model.float()  # the bits that were rounded away are not back
    with pytest.raises(ValueError, match=r"q_proj was changed after the merge"):
        unmerge_lora(model, merged)
    add_lora(model)
    merged = merge_lora(model, keep=True)
    model.model.layers[1].self_attn.o_proj.weight.data.add_(1)  # unseen by autograd's version counter
    before = bits(model)
    with pytest.raises(ValueError, match=r"layers.1.self_attn.o_proj was changed after the merge"):
        unmerge_lora(model, merged)
    assert same_bits(bits(model), before)
    add_lora(model)
    merged = merge_lora(model, keep=True)
    add_lora(model)
    with pytest.raises(ValueError, match="has adapters again"):
        unmerge_lora(model, merged)


def test_two_merges_are_undone_in_turn(model: Llama) -> None:
    base, kept = bits(model), []
    for seed in (1, 2):
        add_lora(model)
        scramble(model, seed=seed)
        kept.append(merge_lora(model, keep=True))
    for merged in reversed(kept):
        unmerge_lora(model, merged)
        remove_lora(model)
    assert same_bits(bits(model), base)


def test_a_merge_that_would_pass_the_range_changes_nothing(model: Llama) -> None:
    model.half()
    add_lora(model)
    before = bits(model)
    with torch.no_grad():
        layer = model.model.layers[1].self_attn.o_proj
        layer.lora_A.fill_(1e2)
        layer.lora_B.fill_(1e4)
    with pytest.raises(ValueError, match=r"o_proj would pass the range of torch.float16"):
        merge_lora(model)
    changed = [name for name, tensor in bits(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 2 and all("layers.1.self_attn.o_proj.adapters" in name for name in changed)


def test_merging_what_would_be_lost_or_broken_is_refused(model: Llama) -> None:
    add_lora(model, name="a")
    add_lora(model, name="b")
    with pytest.raises(ValueError, match="adapters 'a' are not active and would be lost"):
        merge_lora(model)
    set_adapter(model, "a", "b")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.adapters["a"].lora_B[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"layers.1.self_attn.v_proj holds NaN or infinity"):
        merge_lora(model)
    assert len(lora_layers(model)) == 8


def test_merging_into_int8_requantizes_on_request_and_says_what_it_adds(model: Llama) -> None:
    quantize_(model)
    int8 = bits(model)
    add_lora(model)
    filled(model)
    wanted = {name: layer.weight.detach() for name, layer in lora_layers(model).items()}
    with pytest.raises(ValueError, match="q_proj is a Int8Linear: merge into the float layer .* or give requantize="):
        merge_lora(model)
    adapted = bits(model)
    merged = merge_lora(model, keep=True, requantize=Int8Linear.from_linear)
    assert model.state_dict().keys() == int8.keys() and merged.requantization_errors.keys() == wanted.keys()
    for name, weight in wanted.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Int8Linear)
        error = float((layer.to_linear().weight - weight).abs().max())
        assert merged.requantization_errors[name] == pytest.approx(error, rel=1e-5)
        # half a step of the new scale, and it is no less than a tenth of that: the error is real
        half = layer.scale.max().item() / 2
        assert half / 10 < error <= half * 1.001
    unmerge_lora(model, merged)
    assert same_bits(bits(model), adapted)


def test_merge_of_a_shared_weight_is_kept_once() -> None:
    model = tied_llama()
    base = bits(model)
    add_lora(model, LoRAConfig(targets=("lm_head",)))
    scramble(model)
    merged = merge_lora(model, keep=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    unmerge_lora(model, merged)
    remove_lora(model)
    assert same_bits(bits(model), base) and model.lm_head.weight is model.model.embed_tokens.weight


def two(model: nn.Module, **settings) -> dict[str, dict[str, torch.Tensor]]:
    """Adapters a (rank 2) and b (rank 3, other targets too); the delta of each layer for each."""
    deltas: dict[str, dict[str, torch.Tensor]] = {}
    for name, config in {
        "a": LoRAConfig(rank=2, alpha=3.0, targets=("q_proj", "embed_tokens"), **settings),
        "b": LoRAConfig(rank=3, alpha=1.0, targets=("q_proj", "embed_tokens", "up_proj"), rslora=True),
    }.items():
        add_lora(model, config, name=name)
        scramble(model, name)
        deltas[name] = {
            path: layer.adapters[name].delta(layer.base).detach().double()
            for path, layer in lora_layers(model).items()
            if name in layer.adapters
        }
    return deltas


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("settings", [{}, {"start": "pissa"}])
def test_concat_is_the_sum_itself_and_svd_its_best_approximation(model: Llama, tied: bool, settings: dict) -> None:
    """By Eckart and Young: the error of rank k is what the singular values past the k-th leave."""
    model = tied_llama() if tied else model
    deltas = two(model, **settings)
    combine_adapters(model, {"a": 0.5, "b": -2.0}, "sum")
    combine_adapters(model, {"a": 0.5, "b": -2.0}, "short", "svd", rank=2)
    for path, layer in lora_layers(model).items():
        exact = sum(w * deltas[n][path] for n, w in (("a", 0.5), ("b", -2.0)) if path in deltas[n])
        torch.testing.assert_close(layer.adapters["sum"].delta(layer.base).double(), exact, atol=1e-5, rtol=1e-5)
        short = layer.adapters["short"].delta(layer.base).double()
        least = torch.linalg.svdvals(exact)[2:].norm()
        assert float((short - exact).norm()) == pytest.approx(float(least), rel=1e-4, abs=1e-5)
        assert int(torch.linalg.matrix_rank(short, atol=1e-4)) == 2


def test_sums_that_make_no_sense_are_refused(model: Llama) -> None:
    two(model)
    add_lora(model, LoRAConfig(dora=True), name="dora")
    add_lora(model, LoRAConfig(modules_to_save=("norm",)), name="whole")
    for weights, settings, words in (
        ({"a": 1.0, "b": 1.0}, {"method": "linear"}, "linear needs adapters of one rank"),
        ({"a": 1.0, "dora": 1.0}, {}, "'dora' of .* is a LowRank other than plain LoRA"),
        ({"a": 1.0, "whole": 1.0}, {}, "'whole' trains biases or whole modules"),
        ({"a": 1.0, "x": 1.0}, {}, "no adapter 'x'"),
        ({}, {}, "must be finite numbers"),
        ({"a": float("nan")}, {}, "must be finite numbers"),
        ({"a": 1.0}, {"method": "mean"}, "method='mean'"),
        ({"a": 1.0}, {"rank": 2}, "which alone has a rank"),
        ({"a": 1.0}, {"method": "svd", "rank": 0}, "of at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            combine_adapters(model, weights, "c", **settings)
    with pytest.raises(ValueError, match="an adapter 'b' already"):
        combine_adapters(model, {"a": 1.0}, "b")
    with pytest.raises(ValueError, match="no word that modules use"):
        combine_adapters(model, {"a": 1.0}, "train")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_from_the_weight_changes_nothing_until_it_is_trained(model: Llama, start: str) -> None:
    before, base = model(IDS), bits(model)
    add_lora(model, LoRAConfig(rank=4, targets="all-linear", start=start))
    assert torch.equal(model(IDS), before)
    model(IDS).pow(2).sum().backward()
    for layer in lora_layers(model).values():
        assert layer.lora_A.grad.any() and layer.lora_B.grad.any()  # unlike LoRA's, A learns from the first step
    filled(model)
    with lora_disabled(model):
        assert torch.equal(model(IDS), before)
    remove_lora(model)
    assert same_bits(bits(model), base)


def test_starts_by_their_definitions(generator: torch.Generator) -> None:
    """PiSSA: the residual's norm is that of the singular values that are left. OLoRA: orthonormal B, exact first rows."""
    W = torch.randn(12, 20, generator=generator)
    A, B = pissa(W, 5, scale=3.0)
    values = torch.linalg.svdvals(W)
    assert float((W - 3.0 * B @ A).norm()) == pytest.approx(float(values[5:].norm()), rel=1e-5)
    torch.testing.assert_close(A @ A.T, B.T @ B, atol=1e-5, rtol=1e-5)  # both hold half: diag(S) / 3
    torch.testing.assert_close((A @ A.T).diagonal(), values[:5] / 3.0)
    A, B = olora(W, 5, scale=3.0)
    torch.testing.assert_close(B.T @ B, torch.eye(5), atol=1e-5, rtol=1e-5)
    assert not A.tril(-1).any()  # rows of an upper triangle
    torch.testing.assert_close((B @ A)[:, 0], W[:, 0], atol=1e-5, rtol=1e-5)
    for start in (pissa, olora):
        with pytest.raises(ValueError, match=r"rank=13 is above 12"):
            start(W, 13, 1.0)


def test_dora_learns_lengths_and_directions_apart(generator: torch.Generator) -> None:
    """Liu et al. 2024, equation 5: rows of the adapted weight have the lengths m and the directions of W + s B A."""
    base = nn.Linear(6, 4)
    model = nn.ModuleDict({"layer": base})
    add_lora(model, LoRAConfig(rank=2, alpha=6.0, targets=("layer",), dora=True))
    layer = model["layer"]
    update = layer.adapters["default"]
    assert torch.equal(update.magnitude, base.weight.norm(dim=1))
    x = torch.randn(3, 6, generator=generator)
    assert torch.equal(layer(x), base(x))  # m / norm(V) is 1 to the bit at the start
    scramble(model)
    V = base.weight + 3.0 * update.lora_B @ update.lora_A
    expected = update.magnitude[:, None] * V / V.norm(dim=1, keepdim=True)
    torch.testing.assert_close(layer.weight, expected)
    torch.testing.assert_close(layer.weight.norm(dim=1), update.magnitude.abs())
    torch.testing.assert_close(layer(x), x @ expected.T + base.bias)


def test_dora_over_a_row_of_zeros() -> None:
    """It has a length of 0 and no direction; nothing becomes NaN, and the other rows learn."""
    model = nn.ModuleDict({"layer": nn.Linear(3, 2)})
    with torch.no_grad():
        model["layer"].weight[0].zero_()
    add_lora(model, LoRAConfig(rank=1, targets=("layer",), dora=True))
    layer, x = model["layer"], torch.ones(1, 3)
    assert torch.equal(layer(x), layer.base(x))
    layer(x).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert merge_lora(model).largest_change == 0.0


def test_rank_stabilised_scale() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(32, 32)})
    add_lora(model, LoRAConfig(rank=16, alpha=8.0, targets=("layer",), rslora=True))
    assert model["layer"].scale == 2.0  # 8 / sqrt(16)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(shapes, st.integers(1, 14), st.booleans(), st.integers(0, 2**31), st.floats(-3, 3))
def test_a_correction_never_raises_the_error(
    shape: tuple[int, int], rank: int, weighted: bool, seed: int, spread: float
) -> None:
    """In the (weighted) Frobenius norm, and it leaves what the singular values past the rank leave."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(shape, generator=generator)
    Q = absmax_quantize(W).dequantize()
    a = (10 ** (spread * torch.rand(shape[1], generator=generator))) if weighted else None
    A, B = low_rank_correction(W, Q, rank, a)
    assert A.shape == (rank, shape[1]) and B.shape == (shape[0], rank)
    weigh = torch.ones(shape[1], dtype=torch.float64) if a is None else a.double().clamp(min=1e-4)
    before = (W - Q).double() * weigh
    after = before - (B @ A).double() * weigh
    # A and B are rounded to float32: a part in 2^-24 each, in sums of up to 12
    assert after.norm() <= before.norm() * (1 + 1e-6)
    least = torch.linalg.svdvals(before)[rank:].norm()
    assert float(after.norm()) <= float(least) + 1e-5 * float(before.norm())


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6))
def test_loftq_never_raises_the_error(seed: int, rank: int, steps: int) -> None:
    """Of a coarse quantizer, 3 levels a row, so that the steps have something to do."""
    W = torch.randn(8, 10, generator=torch.Generator().manual_seed(seed))

    def coarse(w: torch.Tensor) -> torch.Tensor:
        scale = w.abs().amax(1, keepdim=True)
        return (w / scale).round() * scale

    Q, A, B = loftq(W, coarse, rank, steps)
    assert float((W - Q - B @ A).norm()) <= float((W - coarse(W)).norm()) * (1 + 1e-6)
    one = loftq(W, coarse, rank, 1)
    assert float((W - Q - B @ A).norm()) <= float((W - one[0] - one[2] @ one[1]).norm()) * (1 + 1e-6)


def test_correction_of_a_whole_quantized_model(model: Llama) -> None:
    """Each layer's error falls, the model comes nearer to its float self, and disabled it is the int8 model."""
    weights = {
        name: layer.weight.detach().clone() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)
    }
    exact = model(IDS)
    quantize_(model)
    int8 = model(IDS)
    names = add_lora(model, LoRAConfig(rank=16, alpha=4.0, targets=("*_proj", "lm_head")))
    errors = correct_quantization(model, weights, {names[0]: torch.rand(32)})
    assert errors.keys() == set(names) and all(after < before for before, after in errors.values())
    assert float((model(IDS) - exact).norm()) < 0.8 * float((int8 - exact).norm())
    with lora_disabled(model):
        assert torch.equal(model(IDS), int8)
    remove_lora(model)
    add_lora(model, LoRAConfig(targets=("q_proj",), rank=4, start="pissa"))
    with pytest.raises(ValueError, match="q_proj has other than one plain LoRA adapter"):
        correct_quantization(model, weights)
    del weights[names[0]]
    with pytest.raises(ValueError, match=f"weights lacks {names[0]}"):
        correct_quantization(model, weights)


def test_what_corrections_refuse() -> None:
    with pytest.raises(ValueError, match="must be two equal"):
        low_rank_correction(torch.ones(2, 3), torch.ones(3, 2), 1)
    with pytest.raises(ValueError, match="must be 3 finite numbers"):
        low_rank_correction(torch.ones(2, 3), torch.ones(2, 3), 1, torch.tensor([1.0, float("nan"), 1.0]))
    with pytest.raises(ValueError, match="steps=0"):
        loftq(torch.ones(2, 3), lambda w: w, 1, 0)


def test_a_layer_without_a_weight_to_merge_into() -> None:
    class Opaque(nn.Module):
        in_features, out_features = 3, 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(TypeError, match="neither a floating point weight nor to_linear"):
        _ = LoRALinear(Opaque()).weight
