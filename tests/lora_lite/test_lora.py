"""What defines an adapter: its start, its algebra, what it trains and what it leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from llama_min import Llama
from lora_lite import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    remove_lora,
    trainable_summary,
)
from lora_lite.layers import _LowRankProduct
from quant_lite import quantize_
from tests.llama_min.test_model import SMALL


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with every adapter's B drawn at random, so that it does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.3, generator=generator)
    return model


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


IDS = torch.arange(12)[None]


def test_forward_by_hand() -> None:
    """W = 0, A = (1 2), B = (3)^T, alpha / rank = 2: y = 2 * 3 * (1 * 10 + 2 * 100) = 1260."""
    base = nn.Linear(2, 1, bias=False)
    layer = LoRALinear(base, rank=1, alpha=2.0)
    with torch.no_grad():
        base.weight.zero_()
        layer.lora_A.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B.copy_(torch.tensor([[3.0]]))
    assert layer(torch.tensor([[10.0, 100.0]])).item() == 1260.0
    assert layer.delta().tolist() == [[6.0, 12.0]]


def test_starts_as_the_base(model: Llama) -> None:
    before = model(IDS)
    names = add_lora(model)
    assert len(names) == 8 and names[0] == "model.layers.0.self_attn.q_proj"
    assert torch.equal(model(IDS), before)
    limit = 1 / 32**0.5  # as nn.Linear draws: uniform in +-1/sqrt(K)
    a = model.model.layers[0].self_attn.q_proj.lora_A
    assert 0.9 * limit < a.abs().max() <= limit


def test_only_a_and_b_get_gradients(model: Llama) -> None:
    add_lora(model, LoRAConfig(rank=4))
    filled(model)(IDS).sum().backward()
    with_gradient = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"lora_A", "lora_B"}
    # q and o are (32, 32), k and v (16, 32): 4 * (2 * 64 + 2 * 48) in each of two layers
    assert sum(p.numel() for p in lora_parameters(model)) == 2 * 4 * (2 * 64 + 2 * 48)
    assert "trainable: 1,792 of" in trainable_summary(model)


@pytest.mark.parametrize("turned", [False, True])
def test_the_products_gradient_is_that_of_finite_differences(turned: bool) -> None:
    """In float64, over leading dimensions, of tensors and of a tied adapter's transposes; and its own gradient."""
    torch.manual_seed(0)
    x, A, B = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 5), (3, 5), (6, 3)))

    def product(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        A, B = (A.mT.contiguous().mT, B.mT.contiguous().mT) if turned else (A, B)
        return _LowRankProduct.apply(x, A, B, 0.7)

    torch.testing.assert_close(product(x, A, B), 0.7 * torch.einsum("btk,rk,nr->btn", x, A, B))
    assert torch.autograd.gradcheck(product, (x, A, B)) and torch.autograd.gradgradcheck(product, (x, A, B))
    # of each example by itself, as torch.func takes it
    of_each = torch.func.vmap(torch.func.grad(lambda A, x: product(x, A, B).square().sum()), (None, 0))(A, x)
    whole = torch.autograd.grad(product(x, A, B).square().sum(), A)[0]
    torch.testing.assert_close(of_each.sum(0), whole)


def test_x_waits_for_the_backward_pass_once_and_in_16_bits() -> None:
    """Three layers read one bfloat16 x; the gradients are those of PyTorch over float32 copies of it, to rounding."""
    torch.manual_seed(0)
    layers = [LoRALinear(nn.Linear(48, 32, dtype=torch.bfloat16), rank=4, alpha=4.0) for _ in range(3)]
    filled(nn.ModuleList(layers))
    x = torch.randn(2, 10, 48).bfloat16().requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = sum(layer(x) for layer in layers)
    own = {t.data_ptr() for layer in layers for t in layer.parameters()}
    assert {t.data_ptr() for t in kept} - own == {x.data_ptr()}
    of_y = torch.randn_like(y)
    y.backward(of_y)

    u, u32 = torch.finfo(torch.bfloat16).eps / 2, torch.finfo(torch.float32).eps / 2
    X, G = x.detach().double().view(20, 48), of_y.double().view(20, 32)
    of_x, size = torch.zeros_like(X), torch.zeros_like(X)
    for layer in layers:
        W, A, B = (t.detach().double() for t in (layer.base.weight, layer.lora_A, layer.lora_B))
        of_inner, most = G @ B, G.abs() @ B.abs()
        for found, exact, bound in (
            (layer.lora_A.grad, of_inner.T @ X, most.T @ X.abs()),
            (layer.lora_B.grad, G.T @ (X @ A.T), G.T.abs() @ (X.abs() @ A.T.abs())),
        ):
            # float32 sums of at most 32 + 20 or 48 + 20 numbers, a product each and the scale
            assert ((found - exact).abs() <= 72 * u32 * bound).all()
        of_x += G @ W + of_inner @ A
        size += G.abs() @ W.abs() + most @ A.abs()
    # each product is rounded to bfloat16 and then added to the others: six parts, five sums
    assert ((x.grad.double().view(20, 48) - of_x).abs() <= 6.2 * u * size).all()


def test_disabled_is_the_base_bit_for_bit_and_nests(model: Llama) -> None:
    before = model(IDS)
    add_lora(model)
    after = filled(model)(IDS)
    assert not torch.equal(after, before)
    with lora_disabled(model):
        with lora_disabled(model):
            assert torch.equal(model(IDS), before)
        assert torch.equal(model(IDS), before)
    assert torch.equal(model(IDS), after)


def test_merged_equals_adapted(model: Llama) -> None:
    keys = model.state_dict().keys()
    base = copy.deepcopy(model.state_dict())
    add_lora(model)
    expected = filled(model)(IDS)
    deltas = {name: layer.delta().detach() for name, layer in lora_layers(model).items()}
    largest = merge_lora(model).largest_change
    torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)
    assert model.state_dict().keys() == keys and not lora_layers(model)
    for name, delta in deltas.items():
        assert torch.equal(model.state_dict()[f"{name}.weight"], base[f"{name}.weight"] + delta)
    assert largest == pytest.approx(max(float(d.abs().max()) for d in deltas.values()), rel=1e-4)


def test_merge_rounds_once(model: Llama) -> None:
    """bfloat16: the float32 sum rounded, not a rounded update added to a rounded weight."""
    model.to(torch.bfloat16)
    add_lora(model)
    filled(model)
    layer = model.model.layers[0].self_attn.v_proj
    assert layer.lora_A.dtype == torch.float32 and model(IDS).dtype == torch.bfloat16
    expected = (layer.base.weight.double() + layer.delta().double()).to(torch.bfloat16)
    merge_lora(model)
    # double and float32 sums may round apart only where they straddle a tie: one bfloat16 step, and rarely
    differs = model.model.layers[0].self_attn.v_proj.weight != expected
    assert differs.float().mean() < 0.01


def test_remove_restores_everything(model: Llama) -> None:
    model.model.embed_tokens.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = model(IDS)
    add_lora(model)
    filled(model)
    remove_lora(model)
    assert torch.equal(model(IDS), before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    with pytest.raises(ValueError, match="no adapters to remove"):
        remove_lora(model)
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_lora(model)
    with pytest.raises(ValueError, match="call add_lora or load_adapter first"):
        lora_parameters(model)


def test_a_second_time_is_an_error(model: Llama) -> None:
    add_lora(model)
    state = model.state_dict().keys()
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        add_lora(model)
    assert model.state_dict().keys() == state


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (("q_proj",), 2),
        (("self_attn.q_proj", "down_proj"), 4),
        ((r"re:.*\.layers\.1\..*_proj",), 7),
        (("lm_head",), 1),
        (("model.layers.*.self_attn.?_proj",), 8),
        (("layers.1.*",), 7),
        ("all-linear", 14),
    ],
)
def test_targets(model: Llama, targets: tuple[str, ...] | str, count: int) -> None:
    assert len(add_lora(model, LoRAConfig(targets=targets))) == count


def test_targets_narrowed() -> None:
    """Exclusions, block numbers, and ranks and alphas of their own, worked by hand; a pattern in vain is an error."""
    torch.manual_seed(0)
    model = Llama(SMALL)
    settings = {"exclude": ("layers.0.self_attn.k_proj",), "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"o_*": 1.0}}
    names = add_lora(model, LoRAConfig(rank=4, alpha=8.0, **settings))
    assert len(names) == 7 and "model.layers.0.self_attn.k_proj" not in names
    layers = model.model.layers
    assert (layers[0].self_attn.v_proj.rank, layers[0].self_attn.v_proj.scale) == (2, 4.0)
    assert (layers[1].self_attn.o_proj.rank, layers[1].self_attn.o_proj.scale) == (4, 0.25)
    assert (layers[1].self_attn.q_proj.rank, layers[1].self_attn.q_proj.scale) == (4, 2.0)
    remove_lora(model)
    assert add_lora(model, LoRAConfig(targets=("q_proj", "up_proj"), layers=(1,))) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    remove_lora(model)
    for wrong, words in (
        ({"exclude": ("k_porj",)}, "exclude 'k_porj' matches no linear layer or embedding; did you mean.*k_proj"),
        ({"exclude": ("*",)}, "leave none of the layers"),
        ({"layers": (0, 7)}, r"layers=\(0, 7\): the model has no block 7"),
        ({"rank_pattern": {"up_proj": 2}}, "rank_pattern 'up_proj' matches none of the 8 adapted layers"),
        ({"alpha_pattern": {"up_proj": 2.0}}, "alpha_pattern 'up_proj' matches none"),
        (
            {"modules_to_save": ("head",)},
            "modules_to_save 'head' matches no module with parameters; did you mean lm_head",
        ),
        ({"token_rows": {"embed": (1,)}}, "token_rows 'embed' matches no embedding or linear layer; did you mean"),
        ({"token_rows": {"embed_tokens": (1, 50)}}, "different ids below 50, got"),
        ({"token_rows": {"embed_tokens": (1, 1)}}, "different ids below 50, got"),
        ({"bias": "all"}, "none of these layers has a bias"),
        ({"targets": ("embed_tokens",), "token_rows": {"embed_tokens": (1,)}}, "is a target and has token_rows"),
    ):
        with pytest.raises(ValueError, match=words):
            add_lora(model, LoRAConfig(**wrong))
        assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_targets_that_match_nothing_name_what_is_near(model: Llama) -> None:
    for target, near in (("q_porj", "q_proj"), ("proj", "q_proj"), ("gate", "gate_proj")):
        with pytest.raises(ValueError, match=f"{target}.*matches no linear layer or embedding; did you mean.*{near}"):
            add_lora(model, LoRAConfig(targets=("v_proj", target)))
    assert not lora_layers(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 2.5}, "rank=2.5"),
        ({"alpha": 0.0}, "alpha=0.0 must be above 0"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "q_proj=nan must be above 0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"targets": "q_proj"}, 'must be a tuple of patterns or "all-linear"'),
        ({"targets": ()}, "names no layer"),
        ({"exclude": "q_proj"}, "must be a tuple of patterns"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj=0"),
        ({"start": "gauss"}, "start='gauss' is not known: take one of lora, pissa, olora"),
        ({"bias": "some"}, "bias='some'"),
        ({"dora": True, "start": "pissa"}, "DoRA starts from B = 0"),
        ({"targets": ("re:(",)}, "no regular expression"),
    ],
)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LoRAConfig(**settings)


def test_dropout_only_in_training() -> None:
    layer = LoRALinear(nn.Linear(64, 8), rank=4, dropout=0.5)
    nn.init.ones_(layer.lora_B)
    x = torch.randn(2, 64)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_a_layer_under_two_names_has_one_adapter() -> None:
    """Whichever name is targeted, both compute with it, and both are plain again afterwards."""
    for targets in (("a",), ("b",), ("a", "b")):
        shared = nn.Linear(4, 4)
        model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(4, 4)})
        add_lora(model, LoRAConfig(targets=targets))
        filled(model)
        assert model["a"] is model["b"] and isinstance(model["a"], LoRALinear)
        x = torch.randn(2, 4)
        expected = model["b"](x)
        merge_lora(model)
        assert model["a"] is model["b"] is shared
        torch.testing.assert_close(shared(x), expected)


def test_layers_that_share_a_weight_share_the_update() -> None:
    """Two layers with one weight and biases of their own: one A and B, and one merge."""
    model = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(6, 4)})
    model["b"].weight = model["a"].weight
    add_lora(model, LoRAConfig(rank=2, targets=("b",)))
    assert len(lora_parameters(model)) == 2
    filled(model)
    x = torch.randn(3, 6)
    expected = model["a"](x), model["b"](x)
    assert not torch.equal(expected[0], expected[1])
    merge_lora(model)
    assert model["a"].weight is model["b"].weight
    for name, y in zip("ab", expected):
        torch.testing.assert_close(model[name](x), y)


def test_weights_that_share_memory_share_the_update() -> None:
    """Tied by their storage, as some code does it, and not by being one parameter."""
    model = nn.ModuleDict({"e": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight.data = model["e"].weight.data
    add_lora(model, LoRAConfig(rank=2, targets=("e",)))
    assert isinstance(model["head"], LoRALinear) and len(lora_parameters(model)) == 2
    filled(model)
    x, ids = torch.randn(3, 4), torch.arange(6)
    expected = model["head"](x), model["e"](ids)
    merge_lora(model)
    for y, before in zip((model["head"](x), model["e"](ids)), expected):
        torch.testing.assert_close(y, before)


def tied_llama() -> Llama:
    torch.manual_seed(0)
    return Llama(replace(SMALL, tie_word_embeddings=True)).eval()


@pytest.mark.parametrize("targets", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
def test_a_tied_weight_has_one_update_for_embedding_and_head(targets: tuple[str, ...]) -> None:
    """By the definition: the same logits as an untied copy whose two weights both got the delta; then merged."""
    model = tied_llama()
    add_lora(model, LoRAConfig(rank=4, alpha=8.0, targets=targets))
    assert len(lora_parameters(model)) == 2
    filled(model)
    A, B = model.model.embed_tokens.lora_A.detach(), model.model.embed_tokens.lora_B.detach()
    assert A.shape == (4, 50) and B.shape == (32, 4)
    other = tied_llama()
    with torch.no_grad():
        other.model.embed_tokens.weight += 2.0 * (B @ A).T
    torch.testing.assert_close(model(IDS), other(IDS), atol=1e-5, rtol=1e-5)
    merge_lora(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model(IDS), other(IDS), atol=1e-5, rtol=1e-5)


def test_what_shares_a_weight_and_cannot_have_an_adapter_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

    linear = nn.Linear(4, 4)
    model = nn.ModuleDict({"linear": linear, "odd": Odd(linear.weight)})
    with pytest.raises(ValueError, match="linear shares its weight with odd, a Odd"):
        add_lora(model, LoRAConfig(targets=("linear",)))
    with pytest.raises(ValueError, match="share one weight: DoRA"):
        add_lora(tied_llama(), LoRAConfig(targets=("lm_head",), dora=True))
    scaled = nn.ModuleDict({"e": nn.Embedding(5, 4, max_norm=1.0)})
    with pytest.raises(ValueError, match="e is a Embedding that computes more than a row"):
        add_lora(scaled, LoRAConfig(targets=("e",)))
    assert not lora_layers(model) and model["linear"].weight.requires_grad


def test_merging_into_int8_is_refused(model: Llama) -> None:
    quantize_(model)
    add_lora(model)
    with pytest.raises(ValueError, match="q_proj is a Int8Linear: merge into the float layer before"):
        merge_lora(model)
    assert len(lora_layers(model)) == 8


def test_a_generator_makes_adapters_reproducible(model: Llama) -> None:
    draws = []
    for seed in (1, 1, 2):
        add_lora(model, generator=torch.Generator().manual_seed(seed))
        draws.append(model.model.layers[1].self_attn.o_proj.lora_A.detach().clone())
        remove_lora(model)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_wraps_only_linear_layers() -> None:
    with pytest.raises(TypeError, match="Conv1d has no in_features"):
        LoRALinear(nn.Conv1d(2, 2, 1))
