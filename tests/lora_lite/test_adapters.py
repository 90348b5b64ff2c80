"""Several adapters in a model, everything that an adapter may train, and the ways in which a model is used meanwhile."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llama_min import Llama, generate
from lora_lite import (
    LoRAConfig,
    LoRALinear,
    active_adapters,
    adapter_names,
    adapters_without_gradient,
    add_lora,
    delete_adapter,
    load_adapter,
    lora_disabled,
    lora_layers,
    lora_parameters,
    lora_rows,
    merge_lora,
    remove_lora,
    save_adapter,
    set_adapter,
)
from quant_lite import quantize_
from tests.llama_min.test_model import SMALL
from tests.lora_lite.test_lora import IDS, tied_llama


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


@torch.no_grad()
def scramble(model: nn.Module, name: str | None = None, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in lora_parameters(model, name):
        p.add_(torch.randn(p.shape, generator=generator) * 0.2)


def three(model: nn.Module) -> dict[str, torch.Tensor]:
    """Adapters a, b and c with targets and ranks of their own; the logits of each alone, and of none."""
    logits = {"": model(IDS)}
    for seed, (name, config) in enumerate(
        {
            "a": LoRAConfig(rank=2),
            "b": LoRAConfig(rank=3, targets=("up_proj", "q_proj"), rslora=True),
            "c": LoRAConfig(rank=4, targets=("down_proj",), dora=True),
        }.items()
    ):
        add_lora(model, config, name=name)
        scramble(model, name, seed)
        logits[name] = model(IDS)
    return logits


def test_named_adapters_are_switched_disabled_and_deleted(model: Llama) -> None:
    modules = [name for name, _ in model.named_modules()]
    logits = three(model)
    assert adapter_names(model) == ["a", "b", "c"] and active_adapters(model) == ("c",)
    for name in "abc":
        set_adapter(model, name)
        assert torch.equal(model(IDS), logits[name])
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert trained == {id(p) for p in lora_parameters(model, name)}
        with lora_disabled(model), lora_disabled(model):
            assert torch.equal(model(IDS), logits[""])
        assert torch.equal(model(IDS), logits[name])
    set_adapter(model)
    assert torch.equal(model(IDS), logits[""])
    set_adapter(model, "a", "b")
    both = model(IDS)
    delete_adapter(model, "a")
    assert adapter_names(model) == ["b", "c"] and active_adapters(model) == ("b",)
    assert torch.equal(model(IDS), logits["b"]) and not torch.equal(both, logits["b"])
    assert type(model.model.layers[0].self_attn.k_proj) is nn.Linear  # only a was there
    delete_adapter(model, "b")
    set_adapter(model, "c")
    assert torch.equal(model(IDS), logits["c"])
    delete_adapter(model, "c")
    assert torch.equal(model(IDS), logits[""])
    assert [name for name, _ in model.named_modules()] == modules and adapter_names(model) == []
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "_lora_adapters")


def test_two_active_adapters_add_up() -> None:
    """One linear layer, so that the sum is exact in the sizes: W x + 2 * 1 * 3 + 1 * 5 = 11 for x = 1."""
    model = nn.ModuleDict({"layer": nn.Linear(1, 1, bias=False)})
    with torch.no_grad():
        model["layer"].weight.zero_()
        for name, alpha, a, b in (("a", 2.0, 1.0, 3.0), ("b", 1.0, 1.0, 5.0)):
            add_lora(model, LoRAConfig(rank=1, alpha=alpha, targets=("layer",)), name=name)
            model["layer"].adapters[name].lora_A.fill_(a)
            model["layer"].adapters[name].lora_B.fill_(b)
    set_adapter(model, "a", "b")
    assert model["layer"](torch.ones(1, 1)).item() == 11.0
    assert model["layer"].delta().item() == 11.0
    assert merge_lora(model).largest_change == 11.0 and model["layer"].weight.item() == 11.0


def test_names_that_are_not_there_or_taken(model: Llama) -> None:
    for function in (active_adapters, lora_parameters):
        with pytest.raises(ValueError, match="call add_lora or load_adapter first"):
            function(model)
    three(model)
    state = model.state_dict().keys()
    for call in (lambda: set_adapter(model, "d"), lambda: delete_adapter(model, "d")):
        with pytest.raises(ValueError, match="no adapter 'd', it has 'a', 'b', 'c'"):
            call()
    with pytest.raises(ValueError, match="no adapter 'd'"), lora_rows(model, ["a", "d"]):
        pass
    with pytest.raises(ValueError, match="an adapter 'a' already"):
        add_lora(model, name="a")
    for name in ("", "a.b", "a b"):
        with pytest.raises(ValueError, match="must be letters, digits"):
            add_lora(model, name=name)
    assert model.state_dict().keys() == state


def test_rows_of_a_batch_have_adapters_of_their_own(model: Llama) -> None:
    """Each row gives what it gives alone under its adapter: to float rounding, since products are over fewer rows."""
    logits = three(model)
    rows = ["b", None, "a", "c", "b"]
    with lora_rows(model, rows):
        together = model(IDS.repeat(5, 1))
        with pytest.raises(ValueError, match="an adapter for each of 5 rows, the batch has 2"):
            model(IDS.repeat(2, 1))
    for row, name in zip(together, rows):
        torch.testing.assert_close(row, logits[name or ""][0], atol=1e-5, rtol=1e-5)
    assert torch.equal(model(IDS), logits["c"])
    add_lora(model, LoRAConfig(modules_to_save=("norm",)), name="whole")
    with pytest.raises(ValueError, match="adapter 'whole' trains biases or whole modules"), lora_rows(model, ["whole"]):
        pass


def test_contexts_nest_and_survive_what_happens_inside(model: Llama) -> None:
    logits = three(model)
    with lora_rows(model, ["a"]):
        with lora_disabled(model):
            assert torch.equal(model(IDS), logits[""])
        torch.testing.assert_close(model(IDS), logits["a"], atol=1e-5, rtol=1e-5)
        with lora_rows(model, ["b", "b"]):
            torch.testing.assert_close(model(IDS.repeat(2, 1))[:1], logits["b"], atol=1e-5, rtol=1e-5)
    assert torch.equal(model(IDS), logits["c"])
    with pytest.raises(KeyError), lora_disabled(model):
        raise KeyError
    assert torch.equal(model(IDS), logits["c"])
    for context in (lora_disabled(model), lora_rows(model, ["a"])):
        with context, pytest.raises(ValueError, match="call it outside"):
            set_adapter(model, "a")
        with lora_disabled(model), pytest.raises(ValueError, match="leave it first"):
            add_lora(model, name="d")
    with lora_rows(model, ["c"]), pytest.raises(ValueError, match="serves rows"):
        delete_adapter(model, "c")
    with lora_disabled(model):
        delete_adapter(model, "c")
    assert torch.equal(model(IDS), logits[""]) and active_adapters(model) == ()
    with lora_disabled(model):
        remove_lora(model)
    assert torch.equal(model(IDS), logits[""]) and not lora_layers(model)


def test_rows_get_gradients_of_their_own(model: Llama) -> None:
    three(model)
    for p in lora_parameters(model):
        p.requires_grad_(True)
    with lora_rows(model, ["a", None]):
        model(IDS.repeat(2, 1)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lora_parameters(model, "a"))
    assert all(p.grad is None for p in lora_parameters(model, "b"))


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ("0", "4")}])
def test_whole_parameters_take_the_bases_place(settings: dict, tmp_path: Path) -> None:
    """While the adapter is active; its base, another adapter and what is saved are not touched."""

    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))

    model, x = net(), torch.randn(4, 6)
    keys, before = model.state_dict().keys(), model(x)
    add_lora(model, LoRAConfig(rank=2, targets=("2",), **settings))
    assert torch.equal(model(x), before)
    scramble(model)
    after = model(x)
    expected = {"all": 2 * 16 + 27, "lora_only": 2 * 16 + 8}.get(settings.get("bias", ""), 2 * 16 + 56 + 27)
    assert sum(p.numel() for p in lora_parameters(model)) == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    with lora_disabled(model):
        assert torch.equal(model(x), before)
    add_lora(model, LoRAConfig(rank=2, targets=("2",), **settings), name="other")
    assert torch.equal(model(x), before)
    scramble(model, "other", seed=1)
    with pytest.raises(ValueError, match="both replace .*: they cannot be active together"):
        set_adapter(model, "default", "other")
    set_adapter(model, "default")
    assert torch.equal(model(x), after)
    save_adapter(model, tmp_path, name="default", task_type=None)
    loaded = net()
    load_adapter(loaded, tmp_path)
    assert torch.equal(loaded(x), after)
    delete_adapter(model, "other")
    merge_lora(model)
    torch.testing.assert_close(model(x), after)
    assert model.state_dict().keys() == keys
    remove_lora(loaded)
    assert torch.equal(loaded(x), before)


def test_moved_while_active_the_base_moves_too(model: Llama) -> None:
    add_lora(model, LoRAConfig(modules_to_save=("lm_head",)))
    model.to(torch.bfloat16)
    with lora_disabled(model):
        assert model.lm_head.weight.dtype == torch.bfloat16
        assert model(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_token_rows(model: Llama, tied: bool) -> None:
    """By the definition: an embedding (and a head tied to it) with just these rows replaced."""
    model = tied_llama() if tied else model
    other = copy.deepcopy(model)
    before = model(IDS)
    add_lora(model, LoRAConfig(token_rows={"embed_tokens": (3, 49)}))
    # a tied head multiplies the rows on their own: a sum of 32 products, in another order
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-6)
    scramble(model)
    rows = next(p for p in lora_parameters(model) if p.shape == (2, 32))
    with torch.no_grad():
        other.model.embed_tokens.weight[[3, 49]] = rows
    for layer, twin in zip(model.model.layers, other.model.layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(twin.self_attn, name, getattr(layer.self_attn, name))
    ids = torch.tensor([[1, 3, 49, 3, 7]])
    expected = other(ids)
    torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=1e-6)
    model(ids).sum().backward()
    assert rows.grad is not None and rows.grad.any(1).all()
    merge_lora(model)
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=1e-5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_an_embeddings_update_is_that_of_its_rows() -> None:
    """An embedding of rank 1 by hand: row i of the weight changes by 2 * A[0, i] * B^T."""
    model = nn.ModuleDict({"e": nn.Embedding(3, 2)})
    add_lora(model, LoRAConfig(rank=1, alpha=2.0, targets=("e",)))
    layer = model["e"]
    with torch.no_grad():
        layer.base.weight.zero_()
        layer.lora_A.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        layer.lora_B.copy_(torch.tensor([[10.0], [-1.0]]))
    assert layer(torch.tensor([2, 0])).tolist() == [[60.0, -6.0], [20.0, -2.0]]
    assert layer.weight.tolist() == [[20.0, -2.0], [40.0, -4.0], [60.0, -6.0]]


def test_which_adapters_get_no_gradient() -> None:
    """At the first step A's gradient is zero, and no fault; a layer that the loss does not see is one."""

    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.unseen = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.seen(x) + self.unseen(x).detach()

    model = Blind()
    add_lora(model, LoRAConfig(targets=("seen", "unseen"), bias="all"))
    model(torch.randn(2, 4)).pow(2).sum().backward()
    assert adapters_without_gradient(model) == ["unseen.default.lora_B", "unseen.bias"]
    scramble(model)
    model.zero_grad()
    model(torch.randn(2, 4)).pow(2).sum().backward()
    unseen = ["unseen.default.lora_A", "unseen.default.lora_B", "unseen.bias"]
    assert adapters_without_gradient(model) == unseen
    model.zero_grad()
    with torch.no_grad():
        model.seen.lora_A.zero_()  # nothing can come through a zero A either
    model(torch.randn(2, 4)).pow(2).sum().backward()
    assert adapters_without_gradient(model) == ["seen.default.lora_B", *unseen]


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in lora_parameters(model)])


def ready(model: nn.Module, **settings) -> nn.Module:
    config = LoRAConfig(rank=3, targets=("q_proj", "up_proj", "down_proj"), **settings)
    add_lora(model, config, generator=torch.Generator().manual_seed(0))
    scramble(model)
    return model.train()


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"dropout": 0.5}])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model: Llama, settings: dict, reentrant: bool) -> None:
    ready(model, **settings)
    torch.manual_seed(1)
    model(IDS).pow(2).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    for layer in model.model.layers:
        inner = layer.forward
        layer.forward = lambda *a, inner=inner: checkpoint(inner, *a, use_reentrant=reentrant)
    if reentrant:  # then something that goes in must ask for a gradient, as peft and transformers do it
        model.model.embed_tokens.register_forward_hook(lambda module, arguments, y: y.requires_grad_())
    torch.manual_seed(1)
    model(IDS).pow(2).sum().backward()
    assert expected.any()
    torch.testing.assert_close(gradients(model), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"start": "pissa"}])
def test_autocast(model: Llama, settings: dict) -> None:
    """Products in bfloat16, A and B and their gradients in float32, near those without autocast."""
    ready(model, **settings)
    model(IDS).pow(2).mean().backward()
    exact = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(IDS)
        output.float().pow(2).mean().backward()
    assert output.dtype == torch.bfloat16
    cast = gradients(model)
    assert cast.dtype == torch.float32
    # a bfloat16 rounding is 2^-9; some twenty of them lie between a weight and the loss
    assert (cast - exact).norm() <= 20 * 2**-9 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_bases_keep_float32_adapters_and_train(model: Llama, dtype: torch.dtype) -> None:
    model.to(dtype)
    ready(model, dora=True)
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}
    output = model(IDS)
    assert output.dtype == dtype
    output.float().pow(2).mean().backward()
    assert gradients(model).isfinite().all() and gradients(model).any()


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"start": "olora"}, {"token_rows": {"embed_tokens": (1, 3)}}])
def test_compiles_as_one_graph_and_follows_a_switch(model: Llama, settings: dict) -> None:
    ready(model, **settings).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = model(IDS)
    torch.testing.assert_close(compiled(IDS), expected)
    compiled(IDS).pow(2).sum().backward()
    assert gradients(model).any()
    with lora_disabled(model):
        torch.testing.assert_close(compiled(IDS), model(IDS))
        assert not torch.allclose(model(IDS), expected)
    torch.testing.assert_close(compiled(IDS), expected)


def test_deepcopy_is_a_model_of_its_own() -> None:
    model = tied_llama()
    add_lora(model, LoRAConfig(targets=("embed_tokens", "q_proj"), modules_to_save=("norm",)))
    scramble(model)
    before = model(IDS)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IDS), before)
    scramble(twin, seed=2)
    assert not torch.equal(twin(IDS), before) and torch.equal(model(IDS), before)
    merge_lora(twin)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    with lora_disabled(model):
        base = tied_llama()
        assert torch.equal(model(IDS), base(IDS))


def test_gradients_on_an_int8_base_are_those_on_its_dequantized_twin(model: Llama) -> None:
    twin = copy.deepcopy(model)
    quantize_(model)
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "to_linear"):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, layer.to_linear())
    for settings in ({}, {"dora": True}):
        found = []
        for net in (model, twin):
            ready(net, **settings)
            net(IDS).pow(2).mean().backward()
            found.append(gradients(net))
            remove_lora(net)
        assert (found[0] - found[1]).abs().max() <= 1e-4 * found[1].abs().max()


class OpaqueInt8(nn.Module):
    """A quantized layer as other libraries have them: no `weight`, and a bias that is None."""

    def __init__(self, K: int, N: int) -> None:
        super().__init__()
        self.in_features, self.out_features = K, N
        self.register_buffer("qweight", torch.arange(N * K).view(N, K).to(torch.int8))
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.qweight.to(x.dtype).T * 0.01


def test_layers_without_a_weight_have_adapters_of_their_own() -> None:
    model = nn.ModuleDict({"q": OpaqueInt8(8, 8), "v": nn.Linear(8, 8, bias=False), "k": OpaqueInt8(8, 8)})
    assert add_lora(model, LoRAConfig(targets=("q", "k"))) == ["q", "k"]
    assert list(lora_layers(model)) == ["q", "k"] and len(lora_parameters(model)) == 4
    scramble(model)
    model["q"](torch.ones(1, 8)).sum().backward()
    assert model["q"].lora_A.grad.any() and model["k"].lora_A.grad is None
    with pytest.raises(ValueError, match="q is a OpaqueInt8: merge into the float layer"):
        merge_lora(model)


def test_token_rows_of_a_tied_head_keep_its_bias() -> None:
    """And of an embedding that scales its rows they are refused."""
    model = nn.ModuleDict({"e": nn.Embedding(10, 4), "l": nn.Linear(4, 4), "head": nn.Linear(4, 10)})
    model["head"].weight = model["e"].weight
    x = torch.randn(3, 4)
    before = model["head"](x)
    add_lora(model, LoRAConfig(targets=("l",), token_rows={"e": (1, 2)}))
    torch.testing.assert_close(model["head"](x), before)
    scramble(model)
    adapted = model["head"](x)
    merge_lora(model)
    torch.testing.assert_close(model["head"](x), adapted)

    class Scaled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return 7 * super().forward(ids)

    other = nn.ModuleDict({"e": Scaled(10, 4), "l": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match="e is a Scaled that computes more than a row"):
        add_lora(other, LoRAConfig(targets=("l",), token_rows={"e": (1, 2)}))


def test_adapters_on_a_part_and_on_the_whole_are_kept_apart(model: Llama) -> None:
    """One that was added to a submodule would be lost to the model's own record, and the other way round."""
    add_lora(model.model, LoRAConfig(targets=("q_proj",)))
    with pytest.raises(ValueError, match="call this on the same module"):
        add_lora(model, LoRAConfig(targets=("v_proj",)), name="other")
    remove_lora(model.model)
    add_lora(model)
    with pytest.raises(ValueError, match="call this on the same module"):
        add_lora(model.model, LoRAConfig(targets=("q_proj",)), name="other")
    assert len(lora_layers(model)) == 8


def test_rows_replaced_by_one_adapter_are_not_added_to_by_another() -> None:
    model = nn.ModuleDict({"e": nn.Embedding(10, 4), "l": nn.Linear(4, 4)})
    add_lora(model, LoRAConfig(targets=("e",)), name="a")
    add_lora(model, LoRAConfig(targets=("l",), token_rows={"e": (1, 2)}), name="b")
    with pytest.raises(ValueError, match="both replace rows of e"):
        set_adapter(model, "a", "b")
    add_lora(model, LoRAConfig(targets=("l",), token_rows={"e": (3,)}), name="c")
    set_adapter(model, "b", "c")  # other rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_an_adapter_adds_stays_float32_when_the_model_is_cast(dtype: torch.dtype) -> None:
    """Token rows too: Adam's second moments are zero in float16, and a step divides by them."""
    model = nn.ModuleDict({"e": nn.Embedding(10, 4), "l": nn.Linear(4, 4)})
    add_lora(model, LoRAConfig(targets=("l",), token_rows={"e": (1, 2)}, dora=True))
    scramble(model)
    before = [p.detach().clone() for p in lora_parameters(model)]
    model.to(dtype)
    assert model["l"].base.weight.dtype == dtype
    assert all(torch.equal(p, old) for p, old in zip(lora_parameters(model), before))
    optimizer = torch.optim.AdamW(lora_parameters(model), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (model["l"](model["e"](torch.arange(4))).float() * 1e-3).pow(2).sum().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in lora_parameters(model))
    assert model.double()["l"].lora_A.dtype == torch.float64


def test_names_that_modules_use_themselves_change_nothing(model: Llama) -> None:
    state = model.state_dict().keys()
    for name in ("train", "eval", "values", "type", "training"):
        with pytest.raises(ValueError, match="no word that modules use themselves"):
            add_lora(model, name=name)
    assert model.state_dict().keys() == state and all(p.requires_grad for p in model.parameters())


def test_a_linear_layer_with_layers_inside() -> None:
    """A container that looks like a linear layer: its parts, or itself, but not both."""

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features = self.out_features = 4
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(self.fc1(x))

    model = nn.ModuleDict({"mlp": MLP()})
    assert add_lora(model, LoRAConfig(targets="all-linear")) == ["mlp.fc1", "mlp.fc2"]
    remove_lora(model)
    with pytest.raises(ValueError, match="mlp is a target and so is a layer inside it"):
        add_lora(model, LoRAConfig(targets=("mlp", "fc1")))
    assert add_lora(model, LoRAConfig(targets=("mlp",))) == ["mlp"]
    with pytest.raises(ValueError, match=r"a bare layer takes LoRALinear\(layer\)"):
        add_lora(nn.Linear(4, 4), LoRAConfig(targets="all-linear"))


def test_after_an_optimizer_step_no_a_is_named_in_error() -> None:
    """A's gradient is still the first step's zero, while B has moved."""
    model = nn.ModuleDict({"l": nn.Linear(4, 4)})
    add_lora(model, LoRAConfig(targets=("l",)))
    model["l"](torch.ones(1, 4)).sum().backward()
    torch.optim.SGD(lora_parameters(model), 0.1).step()
    assert model["l"].lora_B.any() and adapters_without_gradient(model) == []


@pytest.mark.parametrize("fast_path", [False, True])
def test_modules_that_read_a_weight_without_calling_the_layer(fast_path: bool) -> None:
    """`nn.MultiheadAttention` reads out_proj.weight, `nn.TransformerEncoderLayer` its own in evaluation: no silent half."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    before = model(x)
    add_lora(model, LoRAConfig(rank=2, targets=("out_proj", "linear1", "linear2")))
    scramble(model)
    with torch.set_grad_enabled(not fast_path):
        after = model(x)
    assert (after - before).abs().max() > 0.01
    if not fast_path:
        after.sum().backward()
        assert adapters_without_gradient(model) == []
    merge_lora(model)
    torch.testing.assert_close(model(x), after, atol=1e-5, rtol=1e-5)


def test_rows_and_modules_that_only_want_to_know_a_weights_dtype() -> None:
    """T5 looks at `wo.weight.dtype` before it calls `wo`; attention computes with what it reads, and is refused."""

    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wo = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.wo(input=x.to(self.wo.weight.dtype))

    model, x = Curious(), torch.randn(2, 4)
    before = model(x)
    add_lora(model, LoRAConfig(targets=("wo",)), name="a")
    scramble(model)
    alone = model(x)
    with lora_rows(model, ["a", None]):
        torch.testing.assert_close(model(x), torch.stack((alone[0], before[1])))
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    add_lora(attention, LoRAConfig(targets=("out_proj",)), name="a")
    y = torch.randn(2, 3, 8)
    with lora_rows(attention, ["a", None]), pytest.raises(ValueError, match="whose weight is read instead of called"):
        attention(y, y, y)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_inside_a_context_is_outside_of_it(model: Llama, copied) -> None:
    logits = three(model)
    with lora_disabled(model):
        twin = copied(model)
    assert torch.equal(twin(IDS), logits[""])  # no adapter was active
    set_adapter(twin, "a")
    assert torch.equal(twin(IDS), logits["a"]) and torch.equal(model(IDS), logits["c"])


def test_adding_copies_nothing_of_the_base(model: Llama) -> None:
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    add_lora(model, LoRAConfig(targets="all-linear"))
    added = {id(p) for p in lora_parameters(model)}
    assert {p.data_ptr() for p in model.parameters() if id(p) not in added} == set(places.values())
    remove_lora(model)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places


def test_generation_with_adapters_equals_generation_with_the_merged_model(model: Llama) -> None:
    ready(model).eval()
    written = generate(model, [1, 2, 3], max_new_tokens=20)
    merge_lora(model)
    assert generate(model, [1, 2, 3], max_new_tokens=20) == written


def test_training_mode_of_the_layers_is_kept(model: Llama) -> None:
    for mode in (True, False):
        model.train(mode)
        add_lora(model, LoRAConfig(dropout=0.5))
        assert {layer.training for layer in lora_layers(model).values()} == {mode}
        assert {layer.adapters["default"].training for layer in lora_layers(model).values()} == {mode}
        remove_lora(model)
    with pytest.raises(ValueError, match="take layer.adapters"):
        _ = LoRALinear(nn.Linear(2, 2), rank=None).lora_A
