"""Calibration of models whatever their inputs are: floats, several at once, by name; perplexity where there is one."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quant_lite import (
    Int8Linear,
    PerGroup,
    QuantConfig,
    load_compressed,
    load_quantized,
    quantize_,
    save_compressed,
    save_quantized,
)

CONFIGS = [
    QuantConfig(),
    QuantConfig(activations="int8", observer="minmax"),
    QuantConfig(activations="int8", observer="percentile", smoothing=0.5),
    QuantConfig(gptq=True),
]
IDS = torch.tensor([[1, 5, 2, 7], [3, 3, 8, 0]])


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 4))


class Vision(nn.Module):
    """Patches by a convolution, PyTorch's own transformer layers, and a head over their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 5)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, 5)
        return self.head(self.body(self.patches(pixels).flatten(2).mT).mean(1))


class Two(nn.Module):
    """Two inputs, of which the second has a default."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(6, 8), nn.Linear(3, 8)

    def forward(self, x: Tensor, *, more: Tensor | None = None) -> Tensor:
        return self.left(x) if more is None else self.left(x) + self.right(more).sum(0)


class Text(nn.Module):
    """Logits over nine tokens: as a tensor, by name, first of a tuple, or as an attribute."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.table, self.head = form, nn.Embedding(9, 16), nn.Linear(16, 9)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Any:
        logits = self.head(self.table(tokens))
        named = {"logits": logits, "other": 3}
        return {"tensor": logits, "named": named, "first": (logits, 3)}.get(self.form, _Output(logits))


class _Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def error(model: nn.Module, before: Tensor, *inputs: Tensor, **named: Tensor) -> float:
    return float((model(*inputs, **named) - before).norm() / before.norm())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@torch.no_grad()
def test_models_of_floats(config: QuantConfig) -> None:
    for model, x in ((mlp().eval(), torch.randn(64, 12)), (Vision().eval(), torch.randn(4, 3, 8, 8))):
        before = model(x)
        report = quantize_(model, config, [x[:2], x])
        assert len(report.layers) == sum(type(layer) is Int8Linear for layer in model.modules()) >= 2
        assert error(model, before, x) < 0.03
        assert report.perplexity_before is None and report.perplexity_after is None and "perplexity" not in str(report)


@torch.no_grad()
def test_what_observers_see_inside_pytorchs_own_layers() -> None:
    """Its fused path would pass by the layers: each has a scale of its inputs, that of the largest one there was."""
    model, x, most = Vision().eval(), torch.randn(4, 3, 8, 8), {}
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear:
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: most.update({name: max(most.get(name, 0.0), float(inputs[0].abs().max()))})
            )
    for part in x.split(2):
        model(part)
    report = quantize_(model, QuantConfig(activations="int8", observer="minmax"), x.split(2))
    assert {row.name for row in report.layers} == set(most) and len(most) == 5
    scales = {name: layer.input_scale for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    assert scales == pytest.approx({name: largest / 127 for name, largest in most.items()}, rel=1e-6)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=str)
@torch.no_grad()
def test_inputs_in_tuples_and_by_name(config: QuantConfig) -> None:
    x, more = torch.randn(50, 6), torch.randn(50, 3)
    wanted = Two()(x, more=more)
    model = Two()
    quantize_(model, config, [{"x": x, "more": more}])
    assert error(model, wanted, x, more=more) < 0.03
    model = Two()
    model.forward = lambda x, more: Two.forward(model, x, more=more)
    quantize_(model, config, ((x, more) for _ in range(2)))  # an iterator is read once
    assert error(model, wanted, x, more) < 0.03
    for nothing in (x, {"x": x, "more": more[:0]}):
        model = Two()
        with pytest.raises(ValueError, match="calibration never reached right: skip such layers, or give other inputs"):
            quantize_(model, config, [nothing])
        assert type(model.left) is nn.Linear


@pytest.mark.parametrize("form", ["tensor", "named", "first", "attribute"])
def test_perplexity_of_each_form_of_logits_and_tokens(form: str) -> None:
    """By hand: exp of the mean of -log p of tokens 2 to 4, of each row; what is padding, on either side, does not count."""
    model = Text(form)
    log_p = Text()(IDS).log_softmax(-1).double()
    by_row = [-sum(float(log_p[r, t, IDS[r, t + 1]]) for t in range(3)) for r in range(2)]
    exact = math.exp(sum(by_row) / 6)
    padded = torch.cat((torch.zeros(2, 2, dtype=torch.int64), IDS, torch.zeros(2, 3, dtype=torch.int64)), 1)
    mask = torch.zeros_like(padded)
    mask[:, 2:6] = 1
    kinds = [IDS, IDS.int(), (IDS,), {"tokens": IDS}, {"attention_mask": mask, "tokens": padded}]
    for given in kinds:
        report = quantize_(Text(form), calibration=[given])
        assert report.perplexity_before == pytest.approx(exact, rel=1e-5)
        assert report.perplexity_after == pytest.approx(exact, rel=0.02) and "perplexity" in str(report)
    both = quantize_(model, calibration=[IDS[:1], (torch.tensor([[4]]),), {"tokens": IDS[1:]}])
    assert both.perplexity_before == pytest.approx(exact, rel=1e-5)
    wide = Text(form)
    with torch.no_grad():
        wide.head.bias[4] = 1e4
    assert quantize_(wide, calibration=[IDS]).perplexity_before == math.inf


def test_no_perplexity_where_the_output_is_not_over_the_tokens() -> None:
    """Features of another width, one answer a text, labels of words, booleans: none is a distribution of next tokens."""
    table, one = nn.Embedding(9, 4), nn.Linear(4, 3)
    labels = nn.Sequential(table, one)
    answer = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(16, 9))
    for model, given in ((labels, IDS), (answer, IDS), (mlp(), torch.ones(5, 12))):
        report = quantize_(model, calibration=[given])
        assert report.perplexity_before is report.perplexity_after is None


def test_a_single_input_in_the_place_of_several_is_refused() -> None:
    for given, kind in ((torch.randn(5, 12), "Tensor"), ({"input": torch.randn(5, 12)}, "dict"), ("a text", "str")):
        model = mlp()
        with pytest.raises(TypeError, match=rf"calibration= is a {kind}: give a list of inputs"):
            quantize_(model, calibration=given)
        assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="need inputs to calibrate on"):
        quantize_(mlp(), CONFIGS[1], iter(()))


@torch.no_grad()
def test_models_of_transformers() -> None:
    """A vision transformer by its argument's name, an encoder with a decoder, and a tokenizer's dictionary with padding."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    sight = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)
    ).eval()
    pixels = {"pixel_values": torch.randn(4, 3, 8, 8)}
    before = sight(**pixels).logits
    report = quantize_(sight, QuantConfig(activations="int8", observer="mse"), [pixels])
    assert len(report.layers) == 2 * 6 + 1 and report.perplexity_before is None
    assert (sight(**pixels).logits - before).norm() / before.norm() < 0.05

    shape = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    shape |= {"decoder_start_token_id": 0, "pad_token_id": 0}
    both = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)).eval()
    exact = math.exp(float(both(input_ids=IDS.flip(1), labels=IDS.clamp(min=1)).loss))
    given = torch.cat((torch.zeros(2, 1, dtype=torch.int64), IDS.clamp(min=1)), 1)  # what it predicts is the decoder's
    report = quantize_(both, calibration=[{"input_ids": IDS.flip(1), "decoder_input_ids": given}])
    assert report.perplexity_before == pytest.approx(exact, rel=1e-4)
    both = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)).eval()
    assert quantize_(both, calibration=[{"input_ids": IDS, "labels": IDS}]).perplexity_before is None

    assert (
        "encoder.block.0.layer.1.DenseReluDense.wo" not in report.kept
    )  # whose module asks for its dtype, but knows int8
    for config in (QuantConfig(bits=4), QuantConfig("nf4")):  # where there is no weight to be asked
        both = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)).eval()
        assert "encoder.block.0.layer.1.DenseReluDense.wo" in quantize_(both, config).kept
        assert both(input_ids=IDS, decoder_input_ids=IDS).logits.isfinite().all()

    text = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes)).eval()
    batch = transformers.BatchEncoding({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0], [1] * 4])})
    exact = [float(text(ids[None], labels=ids[None]).loss) for ids in (IDS[0, :3], IDS[1])]
    report = quantize_(text, QuantConfig(smoothing=0.5), [batch])
    assert report.perplexity_before == pytest.approx(math.exp((2 * exact[0] + 3 * exact[1]) / 5), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["Mamba", "FalconMamba"])
def test_a_layer_whose_weight_its_module_reads_stays_in_float(name: str) -> None:
    """transformers' Mamba gives three to functions of its own, and casts what its head reads to that one's dtype."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**shape)).eval()
    before = model(IDS).logits
    report = quantize_(model)
    kept = [layer for layer, reason in report.kept.items() if reason == "its module reads the weight by itself"]
    assert sorted(layer.split(".")[-1] for layer in kept) == [
        *["dt_proj"] * 2,
        "lm_head",
        *["out_proj"] * 2,
        *["x_proj"] * 2,
    ]
    assert [row.name.split(".")[-1] for row in report.layers] == ["in_proj"] * 2
    assert 0 < (model(IDS).logits - before).norm() / before.norm() < 0.05


@torch.no_grad()
def test_a_layer_whose_weight_is_scaled_from_afar_stays_in_float() -> None:
    """RWKV's outermost module divides two layers' weights of each block before it runs."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=8, context_length=16, rescale_every=2
    )
    model = transformers.RwkvForCausalLM(config).eval()
    before = model(IDS).logits
    report = quantize_(model)
    kept = {
        name.split(".", 3)[3] for name, why in report.kept.items() if why == "its module reads the weight by itself"
    }
    assert kept == {"attention.output", "feed_forward.value"}
    assert len(report.layers) == 8 * 5 + 1
    assert (model(IDS).logits - before).norm() / before.norm() < 0.05


class Far(nn.Module):
    """Of layers inside its parts it reads one's weight; it initializes or names the others', or asks their device."""

    tied_to = "one.sub.tied.weight"

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Module()
        self.one.sub = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("tied", "read", "placed", "started")})
        nn.init.zeros_(self.one.sub.started.weight)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.one.sub.tied.weight
        self.other = None
        self.rows = nn.ModuleList(nn.ModuleDict({"by": nn.Linear(8, 8), "any": nn.Linear(8, 8)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.one
        for i in range(2):
            x = x.to(self.rows[1].by.weight.dtype) @ self.rows[i].any.weight
        x = x.to(parts.sub.placed.weight.device) @ parts.sub.read.weight.T
        return self.one.sub["started"](self.one.sub["placed"](self.one.sub["tied"](x)))


def test_what_a_class_reads_of_the_layers_of_its_parts() -> None:
    for model, name in ((Far(), ""), (nn.Sequential(Far()), "0.")):
        report = quantize_(model)
        read = {"one.sub.read", "rows.1.by", "rows.0.any", "rows.1.any"}
        assert set(report.kept) == {name + path for path in read}
        assert model(torch.randn(2, 8)).isfinite().all()


class Reads(nn.Module):
    """Of four layers it reads one's weight and one's dtype; the others' device, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_weight, self.by_dtype, self.by_device, self.by_call = (nn.Linear(8, 8) for _ in range(4))
        self.by_call.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.by_weight.weight.T
        x = self.by_dtype(x.to(self.by_dtype.weight.dtype))
        return self.by_call(self.by_device(x.to(self.by_device.weight.device)))


def test_what_a_class_reads_of_its_layers() -> None:
    for model in (Reads(), type("Derived", (Reads,), {})()):
        report = quantize_(model)
        assert set(report.kept) == {"by_weight", "by_dtype"}
        assert model(torch.randn(2, 8)).isfinite().all()


class Biased(nn.Module):
    """Two layers and a parameter beside them that are one bias, as a masked language model has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.other = nn.Linear(16, 4), nn.Linear(16, 4)
        self.bias = nn.Parameter(torch.randn(4))
        self.head.bias = self.other.bias = self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.other(x) + self.bias


def of_transformers(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    settings = getattr(transformers, f"{name}Config")(vocab_size=50, tie_word_embeddings=True, **sizes)
    return getattr(transformers, f"{name}ForMaskedLM")(settings).eval()


BIASES = {
    "Biased": {"bias", "head.bias", "other.bias"},
    "Bert": {"cls.predictions.bias", "cls.predictions.decoder.bias"},
    "Roberta": {"lm_head.bias", "lm_head.decoder.bias"},
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "config"),
    [(name, QuantConfig()) for name in BIASES]
    + [("Biased", QuantConfig(bits=4, granularity=PerGroup(8))), ("Biased", QuantConfig("bfloat16"))],
    ids=str,
)
def test_a_bias_that_is_another_parameter_stays_one(name: str, config: QuantConfig, tmp_path: Path) -> None:
    """Quantized, saved and loaded. A cast parts them, and each is then saved and loaded as it is."""
    build = Biased if name == "Biased" else lambda: of_transformers(name)
    inputs = torch.randn(3, 16) if name == "Biased" else IDS

    def one(model: nn.Module) -> bool:
        return len({tensor.data_ptr() for key, tensor in model.state_dict().items() if key in BIASES[name]}) == 1

    def same(model: nn.Module, other: nn.Module) -> bool:
        y, z = model(inputs), other(inputs)
        return torch.equal(y, z) if name == "Biased" else torch.equal(y.logits, z.logits)

    model, again = build(), build()
    assert one(model)
    next(p for key, p in model.named_parameters() if key in BIASES[name]).normal_()
    quantize_(model, config)
    assert one(model) and BIASES[name] <= model.state_dict().keys()
    save_quantized(model, tmp_path)
    load_quantized(again, tmp_path)
    assert one(again) and same(again, model)

    if config.scheme != "bfloat16":
        folder = save_compressed(model, tmp_path, None if name != "Biased" else {"model_type": "biased"})
        load_compressed(again := build(), folder)
        assert one(again) and same(again, model)
        tensors = load_file(folder / "model.safetensors")
        lacking = {key: tensor for key, tensor in tensors.items() if key != max(BIASES[name], key=len)}
        assert len(lacking) == len(tensors) - 1  # save_pretrained leaves out what is tied
        save_file(lacking, folder / "model.safetensors")
        load_compressed(again := build(), folder)
        assert one(again) and same(again, model)

    cast, again = copy.deepcopy(model).bfloat16(), build().bfloat16()
    assert not one(cast)
    save_quantized(cast, tmp_path)
    load_quantized(again, tmp_path)
    for key, tensor in cast.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


def test_a_layer_made_of_a_float_one_has_a_bias_of_its_own() -> None:
    """What quantize_ leaves nothing beside may share memory; what was given and goes on may not."""
    linear = nn.Linear(8, 4)
    layer = Int8Linear.from_linear(linear)
    before = layer.bias.clone()
    with torch.no_grad():
        linear.bias.add_(1)
    assert torch.equal(layer.bias, before)
