"""What users do to models before and after they quantize them: casts, pruning, layers of PyTorch's own, odd shapes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from lora_lite import LoRAConfig, add_lora, lora_parameters, merge_lora, unmerge_lora
from quant_lite import (
    BFloat16Linear,
    Int4Linear,
    Int8Linear,
    PerChannel,
    PerGroup,
    QuantConfig,
    QuantizedFileError,
    absmax_quantize,
    error_bound,
    fake_quantize,
    load_compressed,
    load_quantized,
    matmul_error_bound,
    quantize_,
    quantize_with,
    save_compressed,
    save_quantized,
    zeropoint_quantize,
)

CONFIGS = [
    QuantConfig(),
    QuantConfig("zeropoint", PerGroup(16)),
    QuantConfig(activations="int8"),
    QuantConfig(bits=4),
    QuantConfig("nf4"),
    QuantConfig("bfloat16"),
]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 8))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("rows", [1, 40])
@torch.no_grad()
def test_a_cast_of_the_model_leaves_what_is_stored_as_it_was(config: QuantConfig, rows: int) -> None:
    model, x = net(), torch.randn(rows, 64)
    quantize_(model, config)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(x)
    for cast in (model.half, model.double, lambda: model.to(torch.bfloat16), model.float):
        cast()
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
        assert all(model.state_dict()[name].dtype == tensor.dtype for name, tensor in stored.items())
        assert torch.equal(model(x), before)
    assert model.to("meta")[0].bias.is_meta  # to another device they go


@given(st.integers(0, 10**6), st.sampled_from([absmax_quantize, zeropoint_quantize]), st.sampled_from([None, 1, 5, 16]))
def test_a_layers_product_is_within_the_bound_on_either_path(seed: int, scheme, group: int | None) -> None:
    """Rows and groups of zeros, whose zero point is -128, and inputs of which one outweighs all others a million times."""
    generator = torch.Generator().manual_seed(seed)

    def wild(*shape: int) -> Tensor:
        size = 10 ** (2 * torch.randn(shape, generator=generator))
        some = torch.rand(shape, generator=generator) < 0.8
        return torch.randn(shape, generator=generator) * size * some

    w, x = wild(6, 32), wild(3, 32)
    w[0], w[1, :16] = 0, 0
    q = scheme(w, PerChannel(0) if group is None else PerGroup(group))
    layer, bound = Int8Linear(q), matmul_error_bound(x, q).double()
    exact = x.double() @ w.double().T
    for y in (layer.product(x), layer.product_reference(x)):
        assert ((y.double() - exact).abs() <= bound).all()
    assert not layer.product(x)[:, 0].any()


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["absmax", "zeropoint", "nf4"])
def test_what_was_trained_with_fake_quantization_is_what_is_quantized(scheme: str) -> None:
    """To the bit, zero points, too: x_hat rarely uses all 15 steps of its range, and would get another scale of its own."""

    class Fake(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return fake_quantize(w, PerGroup(16), 4, scheme)

    model, x = net(), torch.randn(5, 64)
    for layer in (model[0], model[2]):
        parametrize.register_parametrization(layer, "weight", Fake())
    weights, trained = [model[0].weight, model[2].weight], model(x)
    quantize_(model, QuantConfig(scheme, PerGroup(16), bits=4))
    for layer, weight in zip((model[0], model[2]), weights):
        assert torch.equal(layer.quantized().dequantize(), weight)
    torch.testing.assert_close(model(x), trained)
    assert "0.parametrizations.weight.original" not in model.state_dict()


@torch.no_grad()
def test_a_weight_that_is_computed_otherwise_is_quantized_as_it_is() -> None:
    class Twice(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    model = net()
    chosen = absmax_quantize(2 * model[0].weight, PerChannel(0))
    parametrize.register_parametrization(model[0], "weight", Twice())
    quantize_(model)
    q = model[0].quantized()
    assert torch.equal(q.values, chosen.values) and torch.equal(q.scale, chosen.scale)


def test_a_weight_that_a_hook_sets_is_refused_until_it_is_one() -> None:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match="0: its weight is set by a hook, as pruning does"):
        quantize_(model)
    assert type(model[2]) is nn.Linear
    prune.remove(model[0], "weight")
    quantize_(model)
    assert (model[0].weight == 0).float().mean() >= 0.5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("grad", [True, False])  # without gradients PyTorch takes another path, over the weights alone
def test_a_transformer_layer_of_pytorchs_own_still_runs(config: QuantConfig, grad: bool) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 1).eval()
    x = torch.randn(2, 5, 64)
    with torch.set_grad_enabled(grad):
        before = model(x)
        report = quantize_(model, config)
        after = model(x)
    assert (after - before).norm() / before.norm() < (0.2 if config.bits == 4 or config.scheme == "nf4" else 0.02)
    assert report.kept["layers.0.self_attn.out_proj"] == "its module reads the weight by itself"
    assert report.kept["layers.0.self_attn"] == "no linear layer: MultiheadAttention"


def test_what_stays_in_float_is_named() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 8, 8))

    model = nn.ModuleDict({"table": nn.Embedding(9, 8), "experts": Experts(), "conv": nn.Conv1d(8, 8, 3)})
    model["linear"], model["norm"] = nn.Linear(8, 8), nn.LayerNorm(8)
    assert quantize_(model).kept == {
        "table": "no linear layer: Embedding",
        "experts": "no linear layer: Experts",
        "conv": "no linear layer: Conv1d",
    }


def test_what_cannot_be_read_is_refused_before_anything_changes() -> None:
    for odd, kind, words in (
        (nn.Linear(48, 8).double(), TypeError, "2: its weight is torch.float64: convert the model"),
        (nn.Linear(48, 8, device="meta"), ValueError, "2: its weight holds no numbers yet"),
        (nn.LazyLinear(8), ValueError, "2: its weight holds no numbers yet"),
    ):
        model = nn.Sequential(nn.Linear(64, 48), nn.SiLU(), odd)
        with pytest.raises(kind, match=words):
            quantize_(model)
        assert type(model[0]) is nn.Linear
        if not isinstance(odd, nn.LazyLinear):
            quantize_(model, QuantConfig(skip=("2",)))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_no_features_and_no_rows(config: QuantConfig) -> None:
    model = nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 0), nn.Linear(0, 3))
    quantize_(model, config)
    for shape in ((3, 0), (0, 0), (2, 0, 0), (0,)):
        assert model(torch.zeros(shape)).shape == (*shape[:-1], 3)
    with pytest.raises(RuntimeError):
        model[1](torch.zeros(2, 8))  # twice the features are no twice the rows


def test_a_weight_that_does_not_lie_row_by_row() -> None:
    w, x = torch.randn(64, 48), torch.randn(2, 64)
    layer = BFloat16Linear(w.to(torch.bfloat16).T)
    torch.testing.assert_close(layer(x), x @ w.to(torch.bfloat16).float(), rtol=1e-5, atol=1e-5)
    q = absmax_quantize(w.T, PerChannel(0))
    torch.testing.assert_close(Int8Linear(q)(x), x @ q.dequantize().T, rtol=1e-5, atol=1e-5)
    replaced = Int8Linear(q)
    replaced.weight = replaced.weight.T.contiguous().T  # as somebody may put it there
    assert torch.equal(replaced(x), replaced.product_reference(x) + 0)


def test_bfloat16s_own_limits() -> None:
    tiny = nn.Sequential(nn.Linear(4, 2, bias=False))
    nn.init.constant_(tiny[0].weight, 1.4e-45 * 30_000)
    (row,) = quantize_(tiny, QuantConfig("bfloat16")).layers
    assert 0 < row.max_error <= row.bound
    large = nn.Sequential(nn.Linear(4, 2, bias=False))
    nn.init.constant_(large[0].weight, 3.4028e38)
    with pytest.raises(ValueError, match="0: a weight of 3.4.*e.38 is past bfloat16's range"):
        quantize_(large, QuantConfig("bfloat16"))
    nn.init.constant_(large[0].weight, float("nan"))
    with pytest.raises(ValueError, match="0: cannot round NaN or infinity"):
        quantize_(large, QuantConfig("bfloat16"))


def test_what_is_bfloat16_already_is_neither_copied_nor_measured() -> None:
    model = nn.Sequential(nn.Linear(512, 2048, bias=False)).to(torch.bfloat16)
    place, size = model[0].weight.data_ptr(), model[0].weight.nbytes
    with torch.profiler.profile(profile_memory=True) as profile:
        (row,) = quantize_(model, QuantConfig("bfloat16")).layers
    assert model[0].weight.data_ptr() == place and (row.max_error, row.bound) == (0, 0)
    assert sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()) < size / 16


def test_a_layer_remembers_that_its_scale_was_given(tmp_path) -> None:
    """Zeros of a measured tensor stand for zeros alone; with a given scale, for anything up to half a step."""
    q = quantize_with(torch.full((2, 4), 0.4), torch.ones(2, 1))
    model = nn.Sequential(Int8Linear(q))
    save_quantized(model, tmp_path)
    again = nn.Sequential(nn.Linear(4, 2, bias=False))
    load_quantized(again, tmp_path)
    for layer in (model[0], again[0], Int4Linear(q)):
        assert torch.equal(error_bound(layer.quantized()), error_bound(q)) and (error_bound(q) >= 0.4).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_float16_neither_overflows_nor_underflows(config: QuantConfig, rows: int) -> None:
    """4,096 products of 1 x 0.01 are 41, and gradients of 1e-3 x 1e-4 stay what they are, whatever the steps are."""
    model = nn.Sequential(nn.Linear(4096, 2, bias=False)).half()
    nn.init.constant_(model[0].weight, 0.01)
    quantize_(model, config)
    y = model(torch.ones(rows, 4096, dtype=torch.float16))
    torch.testing.assert_close(y.float(), torch.full((rows, 2), 40.97), rtol=2e-3, atol=0)
    wide = nn.Sequential(nn.Linear(512, 600, bias=False)).half()
    nn.init.normal_(wide[0].weight, std=1e-3)
    quantize_(wide, config)
    x = torch.randn(rows, 512, dtype=torch.float16, requires_grad=True)
    of_y = (1e-2 * torch.randn(rows, 600)).half()
    wide(x).backward(of_y)
    expected = of_y.float() @ wide[0].to_linear().weight.float()
    assert x.grad is not None and (x.grad.float() - expected).norm() / expected.norm() < 2e-3


def test_peft_adapters_stay_in_float() -> None:
    peft = pytest.importorskip("peft")
    for dora in (False, True):
        config = peft.LoraConfig(r=4, target_modules=["0"], use_dora=dora, init_lora_weights="gaussian")
        model = peft.get_peft_model(net(), config).eval()
        nn.init.normal_(model.base_model.model[0].lora_B["default"].weight, std=0.1)
        x = torch.randn(5, 64)
        before = model(x)
        report = quantize_(model)
        assert (model(x) - before).norm() / before.norm() < 0.02
        model(x).sum().backward()
        trained = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
        assert trained and all(parameter.grad is not None for parameter in trained)
        base = "base_model.model.0.base_layer"
        assert {row.name for row in report.layers} == {"base_model.model.2"} | (set() if dora else {base})
        assert report.kept["base_model.model.0.lora_A.default"] == "part of an adapter"
        assert not dora or report.kept[base] == "its module reads the weight by itself"


def adapted_by_peft(**more) -> nn.Module:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(net(), peft.LoraConfig(r=4, target_modules=["0"], **more)).eval()
    torch.manual_seed(1)
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight, std=0.1)
    return model


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("config", [QuantConfig(), QuantConfig(bits=4), QuantConfig(activations="int8")], ids=str)
def test_no_adapter_is_merged_into_integers(config: QuantConfig, safe: bool, tmp_path) -> None:
    """What peft would add to int8 in a safe merge is cast to int8, nearly always to 0: the adapter would be gone."""
    x = torch.randn(5, 64)
    base = adapted_by_peft()
    quantize_(base, config)
    save_quantized(base, tmp_path)
    loaded = adapted_by_peft()
    load_quantized(loaded, tmp_path)
    for model in (base, loaded, copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        before = model(x)
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(ValueError, match="base_model.model.0.base_layer: .* into integers .*: merge .* before"):
                merge(safe_merge=safe)
            assert torch.equal(model(x), before)
        plain = model.unload()
        assert type(plain[0]) is type(base.base_model.model[2])
        with pytest.raises(AssertionError):
            torch.testing.assert_close(plain(x), before)


@torch.no_grad()
def test_an_adapter_is_merged_into_bfloat16_as_ever() -> None:
    model, x = adapted_by_peft(), torch.randn(5, 64)
    quantize_(model, QuantConfig("bfloat16"))
    before = model(x)
    merged = model.merge_and_unload(safe_merge=True)
    assert (merged(x) - before).norm() / before.norm() < 2e-3


@torch.no_grad()
def test_a_layer_with_an_adapter_in_it_is_refused_until_it_can_be_kept(tmp_path) -> None:
    """peft would take the adapter out of the integers again, and round what it takes to integers, too."""
    model, x = adapted_by_peft(), torch.randn(5, 64)
    quantize_(other := adapted_by_peft())
    save_quantized(other, tmp_path)
    before = model(x)
    model.merge_adapter()
    name = "base_model.model.0.base_layer"
    words = f"{name}: .* merged into it: unmerge it, or merge it for good"
    with pytest.raises(ValueError, match=words):
        quantize_(model)
    with pytest.raises(QuantizedFileError, match="merged into it"):
        load_quantized(model, tmp_path)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())
    quantize_(model, QuantConfig(skip=(name,)))
    model.unmerge_adapter()
    assert (model(x) - before).norm() / before.norm() < 0.02
    dora = adapted_by_peft(use_dora=True)
    dora.merge_adapter()
    assert name in quantize_(dora).kept
    for_good = adapted_by_peft().merge_and_unload()
    assert len(quantize_(for_good).layers) == 2 and (for_good(x) - before).norm() / before.norm() < 0.02


@torch.no_grad()
def test_a_table_with_an_adapter_in_it_is_refused() -> None:
    """Alone, and where a head reads it, too."""
    peft = pytest.importorskip("peft")
    for tied in (False, True):
        model = nn.Sequential(nn.Embedding(9, 64), nn.Linear(64, 9, bias=False))
        if tied:
            model[1].weight = model[0].weight
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
        adapted.merge_adapter()
        with pytest.raises(ValueError, match="base_model.model.0.base_layer: .* merged into it"):
            quantize_(adapted, QuantConfig(embeddings=not tied))


@torch.no_grad()
def test_what_lora_lite_merged_and_was_quantized_has_no_way_back() -> None:
    model, x = net(), torch.randn(5, 64)
    add_lora(model, LoRAConfig(rank=2, targets=("0",)))
    nn.init.normal_(lora_parameters(model)[-1])
    merged = merge_lora(model, keep=True)
    quantize_(model)
    before = model(x)
    with pytest.raises(ValueError, match="the weight of 0 was changed after the merge"):
        unmerge_lora(model, merged)
    assert torch.equal(model(x), before)


def test_an_embedding_that_does_more_than_look_up_keeps_its_head_in_float() -> None:
    class Tied(nn.Module):
        def __init__(self, **how: float) -> None:
            super().__init__()
            self.table, self.body = nn.Embedding(9, 8, **how), nn.Linear(8, 8)
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.body(self.table(ids)))

    torch.manual_seed(0)
    model = Tied(max_norm=0.5)
    assert quantize_(model).kept["head"] == "its weight is shared with another module"
    plain = Tied()
    quantize_(plain)
    with pytest.raises((IndexError, RuntimeError)):
        plain(torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="single tokens has nothing to predict"):
        quantize_(Tied(), calibration=[torch.tensor([[3]])])


def test_hooks_come_along() -> None:
    model, seen = net(), []
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    quantize_(model)
    model(torch.randn(1, 64))
    assert seen == ["before", "after"]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_backward_hooks_come_along(config: QuantConfig) -> None:
    """With the gradients of the layer's input and output; each handle goes on removing its hook."""
    model, x = net(), torch.randn(3, 64, requires_grad=True)
    seen: list[tuple] = []
    before = model[2].register_full_backward_pre_hook(lambda _, of_y: seen.append(("before", *of_y)))
    after = model[2].register_full_backward_hook(lambda _, of_x, of_y: seen.append(("after", *of_x, *of_y)))
    forward = model[2].register_forward_hook(lambda *_: seen.append(("forward",)))
    quantize_(model, config)
    (model(x) ** 2).sum().backward()
    assert [words for words, *_ in seen] == ["forward", "before", "after"]
    with torch.no_grad():
        of_y = 2 * model(x)
    of_x = of_y @ model[2].to_linear().weight
    torch.testing.assert_close([*seen[1][1:], *seen[2][1:]], [of_y, of_x, of_y], rtol=0.02, atol=1e-3)
    seen.clear()
    for handle in (before, after, forward):
        handle.remove()
    model(x).sum().backward()
    assert not seen


def test_a_hook_that_looks_into_its_layer_keeps_it_in_float() -> None:
    """It sees the gradients of the layer's last operation, of which an int8 layer has another."""
    model, seen = net(), []
    handle = model[2].register_backward_hook(lambda _, of_x, of_y: seen.append(len(of_x)))
    report = quantize_(model)
    assert report.kept == {"2": "it has a hook of register_backward_hook, which looks into it"}
    model(torch.randn(3, 64, requires_grad=True)).sum().backward()
    assert seen == [3]  # bias, x, weight
    handle.remove()
    quantize_(model)
    assert type(model[2]) is Int8Linear


def test_a_scale_of_no_dimensions_has_a_bound() -> None:
    w, x = torch.randn(4, 8), torch.randn(3, 8)
    q = quantize_with(w, w.abs().amax() / 127)
    assert ((x @ w.T - x @ q.dequantize().T).abs() <= matmul_error_bound(x, q)).all()


def test_a_view_of_a_saved_tensor_is_saved_as_it_is(tmp_path) -> None:
    def make() -> nn.Sequential:
        model = net()
        model[1].register_buffer("square", torch.arange(9.0).view(3, 3))
        model[1].register_buffer("turned", model[1].square.T)
        return model

    model = make()
    quantize_(model)
    save_quantized(model, tmp_path)
    again = make()
    load_quantized(again, tmp_path)
    assert torch.equal(again[1].turned, model[1].turned) and torch.equal(again[1].square, model[1].square)


def test_a_layer_with_a_forward_of_its_own_stays_in_float() -> None:
    """A plain product would take the place of a cosine, an adapter in the layer itself, or of a patched method."""

    class Cosine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(nn.functional.normalize(input), nn.functional.normalize(self.weight))

    model = nn.Sequential(nn.Linear(64, 48), Cosine(48, 8, bias=False), nn.Linear(8, 8))
    product = model[2].forward
    model[2].forward = lambda input: 2 * product(input)
    x = torch.randn(5, 64)
    before = model(x)
    report = quantize_(model)
    assert report.kept == {"1": "its forward is not nn.Linear's", "2": "its forward is not nn.Linear's"}
    assert type(model[0]) is Int8Linear and (model(x) - before).norm() / before.norm() < 0.02


class _Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_where_every_layer_has_to_stay_it_is_said_why_and_what_to_do() -> None:
    own = nn.Sequential(_Doubled(8, 8), nn.Sequential(_Doubled(8, 8)), nn.Linear(8, 8))
    words = r"0 \(its forward is not nn.Linear's\), 1.0 \(.*\), 2 \(skipped by the config\); put what its forward does "
    with pytest.raises(ValueError, match=words + "besides the product into a module .*; leave some out of skip="):
        quantize_(own, QuantConfig(skip=("2",)))
    tied = nn.ModuleDict({"table": nn.Embedding(9, 8), "head": nn.Linear(8, 9, bias=False)})
    tied["head"].weight = tied["table"].weight
    with pytest.raises(ValueError, match=r"head \(its weight is shared .*\); .*take an int8 scheme"):
        quantize_(tied, QuantConfig("nf4"))
    with pytest.raises(ValueError, match=r"the model itself \(its forward is not nn.Linear's\)"):
        quantize_(_Doubled(8, 8))
    with pytest.raises(ValueError, match=r"3 \(.*\) and 2 more; put"):
        quantize_(nn.Sequential(*(_Doubled(4, 4) for _ in range(6))))
    with pytest.raises(ValueError, match="a bare nn.Linear takes Int8Linear.from_linear"):
        quantize_(nn.Linear(4, 4))


def test_files_replace_no_layer_that_has_to_stay_in_float(tmp_path) -> None:
    """By the same rule as `quantize_`, of both layouts; what it kept comes back from what it saved."""

    def own(*_: object) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 48), nn.SiLU(), _Doubled(48, 8))

    def patched(model: nn.Module) -> nn.Module:
        product = model[2].forward
        model[2].forward = lambda input: 2 * product(input)
        return model

    def hooked(model: nn.Module) -> nn.Module:
        model[2].register_backward_hook(lambda *_: None)
        return model

    plain = net()
    quantize_(plain)
    save_quantized(plain, tmp_path / "ours")
    save_compressed(plain, tmp_path / "theirs", {"model_type": "two"})

    def pruned(model: nn.Module) -> nn.Module:
        prune.l1_unstructured(model[2], "weight", 0.5)
        return model

    for change, words in (
        (own, "its forward is not"),
        (patched, "its forward is not"),
        (hooked, "register_backward_hook"),
        (pruned, "its weight is set by a hook"),
    ):
        for load, folder in ((load_quantized, "ours"), (load_compressed, "theirs")):
            model = change(net())
            weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
            with pytest.raises(QuantizedFileError, match=f"2: the model's .* has to stay in float: .*{words}"):
                load(model, tmp_path / folder)
            assert [layer.weight for layer in model if isinstance(layer, nn.Linear)] == weights
    kept = own()
    quantize_(kept)
    save_quantized(kept, tmp_path / "ours")
    save_compressed(kept, tmp_path / "theirs", {"model_type": "two"})
    for load, folder in ((load_quantized, "ours"), (load_compressed, "theirs")):
        model, x = own(), torch.randn(3, 64)
        load(model, tmp_path / folder)
        assert type(model[2]) is _Doubled and torch.equal(model(x), kept(x))
    table = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9, bias=False))
    table[1].weight = table[0].weight
    quantize_(table)
    save_quantized(table, tmp_path / "ours")
    with pytest.raises(
        QuantizedFileError, match="0: the model's Embedding has to stay in float: it does more than look"
    ):
        load_quantized(nn.Sequential(nn.Embedding(9, 8, max_norm=1.0), nn.Linear(8, 9, bias=False)), tmp_path / "ours")


def test_what_peft_trains_whole_stays_in_float() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(net(), peft.LoraConfig(r=4, target_modules=["0"], modules_to_save=["2"]))
    copy = "base_model.model.2.modules_to_save.default"
    weight = model.get_submodule(copy).weight
    report = quantize_(model)
    assert report.kept[copy] == "part of an adapter"
    assert model.get_submodule(copy).weight is weight and weight.requires_grad
    model(torch.randn(3, 64)).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_layers_are_called_as_those_they_replace(config: QuantConfig) -> None:
    """By the name of nn.Linear's argument, and with hooks that ask for keywords or to be called at errors, too."""
    model, seen, x = net(), [], torch.randn(2, 64)
    model[0].register_forward_pre_hook(lambda _, args, named: seen.append(sorted(named)), with_kwargs=True)
    model[0].register_forward_hook(lambda _, args, named, y: seen.append(sorted(named)), with_kwargs=True)
    model[0].register_forward_hook(lambda *_: seen.append("always"), always_call=True)
    quantize_(model, config)
    assert torch.equal(model[0](input=x), model[0](x))
    assert seen == [["input"], ["input"], "always", [], [], "always"]
    with pytest.raises(RuntimeError):
        model[0](torch.randn(2, 63))
    assert seen[6:] == [[], "always"]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_inputs_that_are_no_floats_are_refused(config: QuantConfig, dtype: torch.dtype) -> None:
    model = net()
    quantize_(model, config)
    for rows in (1, 40, 0):
        with pytest.raises(TypeError, match=f"the input is {dtype}"):
            model[0](torch.ones(rows, 64, dtype=dtype))


class _Words(nn.Module):
    """A model of token ids that calls its head by the argument's name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.drop = nn.Embedding(9, 64), net(), nn.Dropout(0.5)
        self.head = nn.Linear(8, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(input=self.drop(self.body(self.table(ids))))


@pytest.mark.parametrize(
    "config", [QuantConfig(activations="int8", observer="minmax"), QuantConfig(smoothing=0.5), QuantConfig(gptq=True)]
)
def test_calibration_sees_inputs_given_by_name(config: QuantConfig) -> None:
    model, ids = _Words().eval(), torch.arange(9)[None]
    before = model(ids)
    assert len(quantize_(model, config, [ids]).layers) == 3
    assert (model(ids) - before).norm() / before.norm() < 0.05


@pytest.mark.parametrize("config", [QuantConfig(), QuantConfig(gptq=True)])
def test_calibration_leaves_each_module_in_its_mode(config: QuantConfig) -> None:
    model = _Words().train()
    model.drop.eval()
    model.body[2].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with pytest.raises(IndexError):
        quantize_(model, config, [torch.tensor([[1, 99]])])
    assert {name: module.training for name, module in model.named_modules()} == modes
    quantize_(model, config, [torch.arange(9)[None]])
    assert {name: module.training for name, module in model.named_modules()} == modes
