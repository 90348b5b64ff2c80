"""Folders in the compressed-tensors layout against its library, which shares no code with ours, and transformers."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import quant_lite.compressed
from llama_min import Llama, load_llama
from llama_min.stacking import stack_products
from lora_lite import LoRAConfig, add_lora
from quant_lite import (
    Int4Linear,
    Int8Linear,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantConfig,
    QuantizedFileError,
    absmax_quantize,
    load_compressed,
    quantize_,
    save_compressed,
    smoothing_scales,
)
from quant_lite.quantize import PerToken, full_range_rows

transformers = pytest.importorskip("transformers")
library = pytest.importorskip("compressed_tensors")
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.lifecycle import forward
from compressed_tensors.quantization.utils import calculate_qparams

TINY = "examples/leukemia/data/tiny-llama"
WEIGHT_ONLY = [
    QuantConfig(),
    QuantConfig(granularity=PerTensor(), skip=("*.down_proj", "lm_head")),
    QuantConfig(granularity=PerGroup(32)),
    QuantConfig(bits=4, granularity=PerGroup(16)),
    QuantConfig(bits=4, granularity=PerChannel(0)),
]
W8A8 = [QuantConfig(activations="int8"), QuantConfig(activations="int8", granularity=PerGroup(16))]
TOKENS = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))


def random_llama(tied: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A transformers Llama with biases, whose weights are wide enough for every part to matter."""
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=0.15)
            parameter.data = parameter.data.to(dtype)  # not model.to, which would round RoPE's angles, too
    return model.requires_grad_(False)


def quantized_layers(model: nn.Module) -> dict[str, Int8Linear | Int4Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (Int8Linear, Int4Linear))}


def twin_of(model: nn.Module) -> nn.Module:
    """The same model with float layers that hold the dequantized weights."""
    twin = copy.deepcopy(model)
    for name, layer in quantized_layers(model).items():
        twin.set_submodule(name, layer.to_linear())
    return twin


def by_transformers(folder: Path, **more) -> nn.Module:
    """As anyone loads it; every tensor of the file must have its place, and every place a tensor."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **more)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [*WEIGHT_ONLY, *W8A8], ids=str)
def test_the_library_decompresses_to_our_values_exactly(
    tmp_path: Path, config: QuantConfig, dtype: torch.dtype
) -> None:
    """Bit for bit; and from those values and our scales the library makes the very bytes of our file."""
    torch.manual_seed(0)
    sizes = (
        (50, 21) if config.granularity in (None, PerChannel(0)) else (96, 20)
    )  # 50 x 4 or 8 bits end within an int32
    model = nn.ModuleDict({name: nn.Linear(*sizes) for name in ("down_proj", "lm_head", "up")}).to(dtype)
    model["down_proj"] = nn.ModuleDict({"down_proj": model["down_proj"]})
    quantize_(model, config)
    assert save_compressed(model, tmp_path, {"model_type": "llama"}) == tmp_path
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["dtype"] == str(dtype).removeprefix("torch.")
    parsed = QuantizationConfig.model_validate(about["quantization_config"])
    (scheme,) = parsed.config_groups.values()
    assert parsed.format == ("int-quantized" if config.activations == "int8" else "pack-quantized")
    assert parsed.ignore == (["down_proj.down_proj", "lm_head"] if config.skip else [])
    compressor = BaseCompressor.get_value_from_registry(parsed.format)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, layer in quantized_layers(model).items():
        parts = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        values = compressor.decompress(parts, scheme)["weight"]
        assert values.dtype == torch.float32
        assert torch.equal(values.to(dtype), layer.quantized().dequantize())
        assert torch.equal(parts["bias"], layer.bias)
        again = compressor.compress({"weight": values, "weight_scale": parts["weight_scale"]}, scheme)
        assert again.keys() == parts.keys() - {"bias"}
        assert all(torch.equal(again[key], parts[key]) and again[key].dtype == parts[key].dtype for key in again)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", WEIGHT_ONLY, ids=str)
def test_transformers_loads_the_folder_with_equal_logits(tmp_path: Path, config: QuantConfig, tied: bool) -> None:
    """Those of our layers' dequantized twin to the bit. Ours sum q x before the scale, with at most as many roundings
    again, so they may be as far from the logits in float64 as transformers' own, four times over."""
    ours = random_llama(tied)
    quantize_(ours, config)
    theirs = by_transformers(save_compressed(ours, tmp_path))
    logits, wide = theirs(TOKENS).logits, copy.deepcopy(theirs).double()(TOKENS).logits
    assert torch.equal(logits, twin_of(ours)(TOKENS).logits)
    rounding = float((logits - wide).abs().max())
    assert 0 < rounding < 1e-4
    assert float((ours(TOKENS).logits - wide).abs().max()) <= 4 * rounding
    stays_tied = tied and (config.bits == 4 or "lm_head" in config.skip)
    assert theirs.config.tie_word_embeddings == stays_tied
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (not tied and "lm_head" in config.skip)

    again = random_llama(tied)
    load_compressed(again, tmp_path)
    assert torch.equal(again(TOKENS).logits, ours(TOKENS).logits)
    assert (getattr(again.lm_head, "weight", None) is again.model.embed_tokens.weight) == stays_tied
    assert quantized_layers(again).keys() == quantized_layers(ours).keys()


def of_parts(name: str, tied: bool = True) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A small model of transformers' whose config has configs of its parts, or whose class ties, and inputs for it."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text, sight = {"vocab_size": 96, "tie_word_embeddings": tied, **sizes}, {"image_size": 16, "patch_size": 8, **sizes}
    ids = {"input_ids": TOKENS[:, :9].clamp(min=4)}
    if name == "Llava":
        parts = transformers.LlamaConfig(**text), transformers.CLIPVisionConfig(**sight)
        more = {"image_token_index": 95, "tie_word_embeddings": tied}
        config = transformers.LlavaConfig(text_config=parts[0], vision_config=parts[1], **more)
    elif name == "Qwen2VL":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        eyes = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 8}
        config = transformers.Qwen2VLConfig(
            text_config={"rope_parameters": rope, "num_key_value_heads": 2, **text},
            vision_config=eyes,
            tie_word_embeddings=tied,
        )
    elif name == "Blip":
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3}
        words = {"encoder_hidden_size": 32, **special, **text}
        config = transformers.BlipConfig(text_config=words, vision_config=sight)
        ids["pixel_values"] = torch.ones(2, 3, 16, 16)
    else:
        shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 96}
        config = transformers.T5Config(decoder_start_token_id=0, **shape)
        ids["decoder_input_ids"] = ids["input_ids"].flip(1)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.requires_grad_(False), ids


@torch.no_grad()
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["Llava", "Qwen2VL", "Blip"])
def test_a_head_that_the_config_of_a_part_ties(tmp_path: Path, name: str, tied: bool, skip: bool) -> None:
    """Against the dequantized twin: where the head is written apart, no config of a part ties it again."""
    ours, inputs = of_parts(name, tied)
    head = "text_decoder.cls.predictions.decoder" if name == "Blip" else "lm_head"
    quantize_(ours, QuantConfig(skip=(head,) if skip else ()))
    logits, twin = ours(**inputs).logits, twin_of(ours)
    theirs, info = type(ours).from_pretrained(save_compressed(ours, tmp_path), output_loading_info=True)
    assert not any(info.values()), info
    settings = json.loads((tmp_path / "config.json").read_text())
    assert skip or not (settings["tie_word_embeddings"] or settings["text_config"]["tie_word_embeddings"])
    assert torch.equal(theirs.eval()(**inputs).logits, twin(**inputs).logits)
    again, _ = of_parts(name, tied)
    load_compressed(again, tmp_path)
    assert torch.equal(again(**inputs).logits, logits)


@torch.no_grad()
def test_a_class_that_ties_whatever_its_config_says(tmp_path: Path) -> None:
    """T5's: a packed head cannot be loaded and is refused; with int8 activations it can, and nothing else changes."""
    ours, inputs = of_parts("T5")
    quantize_(ours)
    with pytest.raises(ValueError, match="lm_head: T5ForConditionalGeneration ties its weight to .*: skip lm_head, or"):
        save_compressed(ours, tmp_path)
    assert not list(tmp_path.iterdir())
    ours, _ = of_parts("T5")
    quantize_(ours, QuantConfig(activations="int8_full"))
    theirs, info = type(ours).from_pretrained(save_compressed(ours, tmp_path), output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.config.scale_decoder_outputs  # which T5Config takes from the tie where nothing else says it
    assert torch.equal(theirs.lm_head.weight, ours.lm_head.weight)
    off, size = (theirs(**inputs).logits - ours(**inputs).logits).norm(), ours(**inputs).logits.norm()
    assert off < 0.05 * size  # scaled or not is a factor of 32 ** -0.5


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_a_class_that_reads_weights_where_a_packed_layer_has_none(tmp_path: Path, bits: int) -> None:
    """T5's and SigLIP's _init_weights, which transformers calls as it loads: named, and the way out can be loaded."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    sight = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(image_size=16, patch_size=8, **sizes))
    pixels, torch_ids = {"pixel_values": torch.randn(2, 3, 16, 16)}, {"input_ids": TOKENS[:, :9]}
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 96}
    text = transformers.T5EncoderModel(transformers.T5Config(**shape))
    for model, inputs, layers, fine in (
        (sight, pixels, "encoder.layers.0.self_attn.k_proj, .* and 4 more", ()),
        (text, torch_ids, f"encoder.block.0.layer.0.SelfAttention.q, .* and {2 if bits == 8 else 1} more", ()),
    ):
        model.eval().requires_grad_(False)
        packed = copy.deepcopy(model)
        quantize_(packed, QuantConfig(bits=bits, granularity=PerGroup(16)))
        with pytest.raises(ValueError, match=rf"{layers}: .*_init_weights.*: take activations='int8_full', or skip"):
            save_compressed(packed, tmp_path / "packed")
        assert not (tmp_path / "packed").exists()
        whole = copy.deepcopy(model)
        quantize_(whole, QuantConfig(activations="int8_full"))
        folder = save_compressed(whole, tmp_path / type(model).__name__)
        theirs, info = type(model).from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        y, z = theirs.eval()(**inputs).last_hidden_state, whole(**inputs).last_hidden_state
        assert (y - z).norm() < 0.02 * z.norm()


def test_a_config_that_takes_more_from_the_tie_is_refused(tmp_path: Path) -> None:
    class Scaled(transformers.LlamaConfig):
        def __post_init__(self, **more) -> None:
            super().__post_init__(**more)
            self.rms_norm_eps = 1e-6 if self.tie_word_embeddings else 1e-3

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    ours = transformers.LlamaForCausalLM(Scaled(vocab_size=96, tie_word_embeddings=True, **shape))
    quantize_(ours)
    with pytest.raises(
        ValueError, match="Scaled takes other rms_norm_eps from a head that is not tied .*: skip the head"
    ):
        save_compressed(ours, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("config", W8A8, ids=str)
def test_int8_activations_differ_from_the_library_by_its_half_step_alone(
    tmp_path: Path, config: QuantConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer on the very input that the library's had.

    It rounds a row to steps of absmax / 127.5, ours to absmax / 127: x_hat is off by half a step of either, and a layer's
    output by at most (s + s') / 2 sum |w_hat|. Given our step it must agree to the rounding of K + 4 float operations.
    """
    ours = random_llama()
    quantize_(ours, config)
    theirs = by_transformers(save_compressed(ours, tmp_path))
    layers = quantized_layers(ours)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in layers:
        keep = lambda _, x, y, name=name: seen.update({name: (x[0], y)})
        theirs.get_submodule(name).register_forward_hook(keep)

    def excess(halves: float) -> float:
        """How far any layer's output passes so many sums of half steps, in units of the rounding that is allowed."""
        worst = -math.inf
        for name, layer in layers.items():
            x, y = seen[name]
            absmax = x.abs().amax(-1, keepdim=True)
            reach = layer.to_linear().weight.abs().sum(-1)  # sum |w_hat| of each output
            rounding = (layer.in_features + 4) * 2.0**-24 * (1.01 * absmax * reach + y.abs())
            allowed = halves * absmax * (1 / 127 + 1 / 127.5) / 2 * reach
            worst = max(worst, float((((layer(x) - y).abs() - allowed) / rounding).max()))
        return worst

    logits = theirs(TOKENS).logits
    assert excess(halves=1) <= 1
    assert excess(halves=0) > 100  # 127.5 is not 127: it can be seen
    floats = twin_of(ours)(TOKENS).logits  # both are roundings of these; independent ones are sqrt(2) apart
    assert float((ours(TOKENS).logits - logits).norm()) <= 2 * float((logits - floats).norm())

    of_library = forward.compute_dynamic_scales_and_zp

    def absmax_127(value: torch.Tensor, **more) -> tuple[torch.Tensor, None]:
        scale, _ = of_library(value=value, **more)
        assert torch.equal(scale, value.abs().amax(-1, keepdim=True) / 127.5)
        return absmax_quantize(value, PerToken()).scale, None

    monkeypatch.setattr(forward, "compute_dynamic_scales_and_zp", absmax_127)
    theirs(TOKENS)
    assert excess(halves=0) <= 1


@torch.no_grad()
@pytest.mark.parametrize("config", W8A8, ids=str)
def test_int8_activations_of_the_full_range_are_the_librarys(tmp_path: Path, config: QuantConfig) -> None:
    """Every integer and scale of every layer's input, and its output to the rounding of K + 4 float operations.

    Over the whole model some number on the border of two steps usually falls on the other side, and the positions that
    read it differ by as much as quantizing costs; at most of those here the logits are transformers' but for rounding.
    """
    ours = random_llama()
    quantize_(ours, dataclasses.replace(config, activations="int8_full"))
    floats = twin_of(ours)(TOKENS).logits
    theirs = by_transformers(save_compressed(ours, tmp_path))
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in quantized_layers(ours):
        keep = lambda _, x, y, name=name: seen.update({name: (x[0], y)})
        theirs.get_submodule(name).register_forward_hook(keep)
    logits = theirs(TOKENS).logits
    for name, layer in quantized_layers(ours).items():
        x, y = seen[name]
        rows = x.reshape(-1, x.shape[-1])
        scale, _ = forward.compute_dynamic_scales_and_zp(x, QuantizationArgs(**_token()), None)
        scale = scale.reshape(-1, 1)
        q = full_range_rows(rows)
        assert torch.equal(q.scale, scale) and int(q.values.min()) == -128
        assert torch.equal(q.values, (rows / scale).round().clamp(-128, 127).to(torch.int8))
        reach = layer.to_linear().weight.abs().sum(-1)
        rounding = (layer.in_features + 4) * 2.0**-24 * (1.01 * x.abs().amax(-1, keepdim=True) * reach + y.abs())
        assert ((layer(x) - y).abs() <= rounding).all()
    off = (ours(TOKENS).logits - logits).abs().amax(-1)  # of each position
    assert float(off.median()) < 1e-4
    assert float((logits - floats).abs().amax(-1).median()) > 0.01

    again = random_llama()
    load_compressed(again, tmp_path)
    assert torch.equal(again(TOKENS).logits, ours(TOKENS).logits)


@torch.no_grad()
def test_bfloat16_scales_stay_float32_unless_transformers_rounds_them(tmp_path: Path) -> None:
    """Exact where the weights are dequantized on loading; else transformers casts scales, by up to 2^-8 of each."""
    ours = random_llama(dtype=torch.bfloat16)
    quantize_(ours)
    save_compressed(ours, tmp_path)
    exact = by_transformers(tmp_path, quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
    cast = by_transformers(tmp_path)
    cast(TOKENS)  # which decompresses
    differ = 0
    for name, layer in quantized_layers(ours).items():
        values = layer.to_linear().weight
        assert exact.get_submodule(name).weight.dtype == torch.bfloat16
        assert torch.equal(exact.get_submodule(name).weight, values)
        off = (cast.get_submodule(name).weight - values).abs().float()
        assert (off <= 3 * 2.0**-8 * values.abs()).all()  # the cast of the scale, and of the product in either
        differ += int(off.count_nonzero())
    assert differ > 0
    assert torch.equal(exact(TOKENS).logits, twin_of(ours)(TOKENS).logits)


def test_two_schemes_in_one_model(tmp_path: Path) -> None:
    ours = random_llama()
    quantize_(ours, QuantConfig(bits=4, granularity=PerGroup(32), skip=("*.mlp.*",)))
    quantize_(ours, QuantConfig(granularity=PerGroup(16), skip=("*.0.mlp.up_proj",)))
    theirs, again = by_transformers(save_compressed(ours, tmp_path)), random_llama()
    load_compressed(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(theirs(TOKENS).logits, twin_of(ours)(TOKENS).logits)
        assert torch.equal(again(TOKENS).logits, ours(TOKENS).logits)
    assert {type(layer) for layer in quantized_layers(again).values()} == {Int4Linear, Int8Linear}


@torch.no_grad()
@pytest.mark.parametrize("skip", [(), ("lm_head",)])
def test_our_own_llama_both_ways(tmp_path: Path, root: Path, skip: tuple[str, ...]) -> None:
    """Real shapes, a tied head, a config of llama_min; loaded into a model on the meta device, too."""
    ours = load_llama(root / TINY, dtype=torch.float32)
    quantize_(ours, QuantConfig(skip=skip))
    theirs = by_transformers(save_compressed(ours, tmp_path))
    ids = torch.arange(2, 40)[None]
    assert (
        float((theirs(ids).logits - ours(ids)).abs().max()) <= 1e-4
    )  # logits reach 20: 100 roundings of 2^-24 of that
    with torch.device("meta"):
        again = Llama(ours.config)
    load_compressed(again.eval(), tmp_path)
    assert torch.equal(again(ids), ours(ids))
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == bool(skip)


def library_folder(folder: Path, name: str, dtype: torch.dtype, shard: str) -> dict[str, torch.Tensor]:
    """A folder that the library wrote by itself with absmax scales of its own; returns the weights that it stands for."""
    model = random_llama(dtype=dtype)
    scheme = {
        "W8A8": QuantizationScheme(targets=["Linear"], **_args("channel", 8), input_activations=_token()),
        "tensor": QuantizationScheme(targets=["re:.*_proj"], **_args("tensor", 8)),
        "W8": QuantizationScheme(targets=["Linear"], **_args("group", 8, group_size=32)),
        "W4": QuantizationScheme(targets=["Linear"], **_args("group", 4, group_size=16)),
    }[name]
    ignore = ["lm_head", "re:.*1.mlp.down_proj"]
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=ignore))
    for layer in model.modules():
        if getattr(layer, "quantization_scheme", None):
            weight, args = layer.weight.data, layer.quantization_scheme.weights
            blocks = weight.unflatten(-1, (-1, args.group_size or weight.shape[1]))
            low, high = (f(blocks, -1) for f in (torch.amin, torch.amax))
            low, high = (low.min()[None], high.max()[None]) if args.strategy == "tensor" else (low, high)
            scale, zero = calculate_qparams(low, high, args)
            layer.weight_scale.data, layer.weight_zero_point.data = scale, zero
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder, max_shard_size=shard)
    compressor.update_config(str(folder))
    compressor.decompress_model(model)
    return {name: layer.weight.data for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def _args(strategy: str, bits: int, **more) -> dict:
    return {"weights": {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, **more}}


def _token() -> dict:
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "shard"), [("W8A8", "1GB"), ("tensor", "30KB"), ("W8", "1GB"), ("W4", "30KB")])
def test_folders_of_the_library_are_read(tmp_path: Path, name: str, shard: str, dtype: torch.dtype) -> None:
    """With its own scales, in the model's dtype, and values down to -128: the very weights that it decompresses to."""
    weights = library_folder(tmp_path, name, dtype, shard)
    other = random_llama(dtype=torch.float16)
    load_compressed(other, tmp_path)
    assert {t.dtype for t in other.parameters()} == {torch.float16} and other(TOKENS).logits.dtype == torch.float16
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "30KB")
    ours = random_llama(dtype=dtype)
    load_compressed(ours, tmp_path)
    layers = quantized_layers(ours)
    assert len(layers) == 13 and len(weights) == 15  # all but the head and one down_proj
    assert min(int(layer.quantized().values.min()) for layer in layers.values()) == (-8 if name == "W4" else -128)
    for path, weight in weights.items():
        layer = ours.get_submodule(path)
        assert torch.equal(layer.to_linear().weight if path in layers else layer.weight, weight), path
    activations = "int8_full" if name == "W8A8" else "float"
    assert all(getattr(layer, "activations", "float") == activations for layer in layers.values())


def test_what_the_layout_lacks_is_refused(tmp_path: Path, root: Path) -> None:
    """All layers in one message, each with its way out, and nothing is written."""
    linear = nn.Linear(40, 16)
    weight = absmax_quantize(linear.weight.detach())
    smooth = smoothing_scales(torch.rand(40) + 0.1, linear.weight)
    model = nn.ModuleDict(
        {
            "zeros": Int8Linear.from_linear(linear, "zeropoint"),
            "columns": Int8Linear(weight, linear.bias, "int8", outliers=6.0),
            "static": Int8Linear(weight, linear.bias, "int8", input_scale=0.1),
            "smooth": Int8Linear(weight, linear.bias, "int8", smooth=smooth),
            "groups": Int8Linear.from_linear(linear, granularity=PerGroup(12)),
            "nf4": nn.Sequential(linear),
            "fine": Int8Linear.from_linear(linear),
        }
    )
    quantize_(model["nf4"], QuantConfig("nf4"))
    with pytest.raises(ValueError, match="has no place for") as caught:
        save_compressed(model, tmp_path, {"model_type": "llama"})
    for words in (
        "zeros: zero points",
        "columns: outlier",
        "static: a calibrated",
        "smooth: smoothing",
        "nf4.0: NF4 levels",
    ):
        assert words in str(caught.value)
    assert "groups: groups of 12 in 40 features (take a size that divides)" in str(caught.value)
    assert "fine" not in str(caught.value)

    def refused(words: str, model: nn.Module, config: dict | None = None) -> None:
        with pytest.raises(ValueError, match=words):
            save_compressed(model, tmp_path, config)

    refused("no quantized linear layer to save", random_llama())
    model = nn.ModuleDict({"fine": model["fine"]})
    refused(r"ModuleDict has no config.to_dict\(\): give config=", model)
    refused("no model_type", model, {"vocab_size": 3})
    refused("the config's odd=.* cannot be written as JSON", model, {"model_type": "llama", "odd": {1, 2}})
    refused("the config's odd=nan cannot be written as JSON", model, {"model_type": "llama", "odd": math.nan})
    adapted = load_llama(root / TINY, dtype=torch.float32)
    quantize_(adapted)
    add_lora(adapted, LoRAConfig(rank=2))
    refused("layers are not those of its config: .*k_proj.* merge or remove adapters", adapted)
    stacked = load_llama(root / TINY, dtype=torch.float32)
    stack_products(stacked)
    quantize_(stacked)
    refused("layers are not those of its config: .*without stacking products", stacked)
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.safetensors.index.json").touch()
    refused("checkpoint in several files", model, {"model_type": "llama"})


def test_a_save_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = random_llama()
    quantize_(ours)
    save_compressed(ours, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(tensors: dict, path: Path, **_) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(quant_lite.compressed, "save_file", half)
    quantized_layers(ours)["lm_head"].scale.mul_(2)
    with pytest.raises(OSError, match="disk full"):
        save_compressed(ours, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@torch.no_grad()
@pytest.mark.parametrize(
    "config", [QuantConfig(activations="int8"), QuantConfig(granularity=PerGroup(32), bits=4)], ids=str
)
def test_a_flipped_bit_is_refused_and_one_model_is_one_file(tmp_path: Path, config: QuantConfig) -> None:
    """Of any tensor, by its name. transformers, which knows nothing of checksums, reads the file as ever."""
    ours = random_llama()
    quantize_(ours, config)
    for copy_of in range(4):  # the order of a header's entries is chance, unless somebody sees to it
        save_compressed(ours, tmp_path / str(copy_of))
    weights = tmp_path / "0" / "model.safetensors"
    whole = weights.read_bytes()
    assert {(tmp_path / str(other) / "model.safetensors").read_bytes() for other in range(4)} == {whole}
    by_transformers(weights.parent)
    load_compressed(random_llama(), weights.parent)

    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    for name in header.keys() - {"__metadata__"}:
        first, last = header[name]["data_offsets"]
        changed = bytearray(whole)
        changed[start + (first + last) // 2] ^= 1
        weights.write_bytes(changed)
        with pytest.raises(QuantizedFileError, match=re.escape(f"{name} has other bytes than were saved")):
            load_compressed(random_llama(), weights.parent)
    weights.write_bytes(whole.replace(b'quant_lite.checksums":"{', b'quant_lite.checksums":"['))
    with pytest.raises(QuantizedFileError, match="quant_lite.checksums is damaged"):
        load_compressed(random_llama(), weights.parent)


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    """By name, everything at once, and the model stays as it was."""
    ours, net = random_llama(), random_llama()
    quantize_(ours, QuantConfig(granularity=PerGroup(32), skip=("lm_head",)))
    save_compressed(ours, tmp_path)
    before = copy.deepcopy(net.state_dict())
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    whole = weights.read_bytes()
    first, second = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"

    def refused(*words: str) -> None:
        with pytest.raises(QuantizedFileError) as caught:
            load_compressed(net, tmp_path)
        assert all(word in str(caught.value) for word in words), caught.value
        after = net.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[name], t) for name, t in before.items())
        assert not quantized_layers(net)

    broken = dict(tensors)
    del broken[f"{second}.weight_packed"], broken["model.norm.weight"]
    broken[f"{first}.weight_scale"] = tensors[f"{first}.weight_scale"][:, :1].contiguous()
    broken[f"{first}.weight_g_idx"], broken["other"] = torch.zeros(3), torch.zeros(3)
    broken[f"{first}.bias"] = tensors[f"{first}.bias"].int()
    broken["model.layers.0.mlp.up_proj.weight_shape"] = torch.tensor([64, 96])
    broken["model.layers.0.mlp.gate_proj.weight_scale"] = torch.full((96, 2), math.inf)
    broken["model.layers.1.input_layernorm.weight"] = torch.ones(64, dtype=torch.int32)
    broken["model.layers.0.input_layernorm.weight"] = torch.full((64,), math.nan)
    broken["model.layers.1.self_attn.q_proj.bias"] = torch.full((64,), math.inf)
    save_file(broken, weights)
    refused(
        "model.layers.0.input_layernorm.weight holds NaN or infinity",
        "model.layers.1.self_attn.q_proj: bias holds NaN or infinity",
        f"{second}: missing weight_packed",
        "missing model.norm.weight",
        "unexpected other",
        f"{first}: unexpected weight_g_idx, weight_scale is torch.float32 (64, 1), needed is",
        "bias is torch.int32 (64,)",
        "up_proj: weight_shape says [64, 96], the model's weight is [96, 64]",
        "gate_proj: weight_scale holds a number that is negative or not finite",
        "model.layers.1.input_layernorm.weight is torch.int32, the model's is torch.float32",
    )
    weights.write_bytes(whole[: len(whole) // 2])
    refused("model.safetensors is not a whole safetensors file")
    weights.unlink()
    refused("model.safetensors does not exist")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "absent.safetensors"}}')
    refused("absent.safetensors does not exist")
    weights.write_bytes(whole)

    def with_config(change: Callable[[dict], object], *words: str) -> None:
        changed = copy.deepcopy(settings)
        change(changed["quantization_config"])
        config.write_text(json.dumps(changed))
        refused(*words)

    group = lambda q: q["config_groups"]["group_0"]
    weight = lambda q: group(q)["weights"]
    with_config(
        lambda q: weight(q).update(symmetric=False, num_bits=6), "weights.symmetric=False", "weights.num_bits=6"
    )
    with_config(lambda q: group(q).update(inptu_activations=None), "group_0: inptu_activations=None is not known")
    with_config(lambda q: weight(q).update(zero_scale=3), "group_0: weights.zero_scale=3 is not known")
    with_config(lambda q: weight(q).update(group_size=None), "weights.group_size=None")
    with_config(lambda q: weight(q).update(strategy="block", type="float"), "strategy='block'", "type='float'")
    with_config(lambda q: weight(q).update(actorder="group"), "weights.actorder='group'")
    with_config(lambda q: weight(q).update(group_size=48), "weight_scale is", "groups of 48 do not divide")
    with_config(lambda q: group(q).update(format="float-quantized"), "format='float-quantized' is not read")
    with_config(lambda q: group(q).update(input_activations=_token() | {"dynamic": False}), "input_activations=")
    with_config(lambda q: group(q).update(output_activations=_token()), "output_activations are not read")
    with_config(lambda q: group(q).update(targets=["Linear", "Embedding"]), "embed_tokens: an embedding is quantized")
    with_config(lambda q: group(q).update(targets=["Conv1d"]), "no linear layer of the model is a target", "Conv1d")
    with_config(lambda q: q.update(quantization_status="frozen"), "quantization_status='frozen'")
    with_config(lambda q: q.update(kv_cache_scheme=_token()), "kv_cache_scheme=")
    with_config(lambda q: q.update(ignore=[]), "lm_head: missing weight_packed")
    with_config(lambda q: q.update(config_groups=None), "config_groups=None are not groups with targets")
    with_config(lambda q: q.update(ignore="lm_head"), "ignore and targets must be lists")
    with_config(lambda q: q.update(ignore=["re:("]), "'re:(' is no regular expression")
    with_config(lambda q: group(q).update(weights="int8"), "group_0: weights.num_bits=None is not read")
    with_config(lambda q: q.update(quant_method="gptq"), "no quantization_config of compressed-tensors")
    config.write_text(json.dumps(settings)[:-9])
    refused("config.json is no whole JSON")
    config.unlink()
    refused("config.json does not exist")
    config.write_text(json.dumps(settings))
    load_compressed(net, tmp_path)
    assert len(quantized_layers(net)) == 14


def test_a_folder_whose_config_computes_something_else_is_refused(tmp_path: Path, root: Path) -> None:
    """Every setting that differs is named, for transformers' models and ours; what changes no logits may differ."""
    ours = random_llama()
    quantize_(ours)
    path = save_compressed(ours, tmp_path / "theirs") / "config.json"
    settings = json.loads(path.read_text())
    small = load_llama(root / TINY, dtype=torch.float32)
    quantize_(small)
    path_of_ours = save_compressed(small, tmp_path / "ours") / "config.json"

    def refused(model: nn.Module, path: Path, change: dict, *words: str) -> None:
        whole = path.read_text()
        path.write_text(json.dumps(json.loads(whole) | change))
        before = list(model.state_dict())
        with pytest.raises(QuantizedFileError) as caught:
            load_compressed(model, path.parent)
        assert all(word in str(caught.value) for word in words), caught.value
        assert list(model.state_dict()) == before and not quantized_layers(model)
        path.write_text(whole)

    net = random_llama()
    rope = settings["rope_parameters"]
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    for change, word in (
        (heads, "num_attention_heads=8, the model's is 4"),
        (heads, "head_dim=8, the model's is 16"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05, the model's is 1e-06"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', the model's is 'silu'"),
        (
            {"rope_parameters": rope | {"rope_theta": 5e5}},
            "rope_parameters.rope_theta=500000.0, the model's is 10000.0",
        ),
        ({"rope_parameters": rope | {"rope_type": "linear", "factor": 2.0}}, "rope_parameters.rope_type='linear'"),
        ({"model_type": "mistral"}, "model_type='mistral', the model's is 'llama'"),
    ):
        refused(net, path, change, "config.json", word)
    float_small = load_llama(root / TINY, dtype=torch.float32)
    eight = {"num_attention_heads": 2 * small.config.num_attention_heads, "head_dim": small.config.head_dim // 2}
    eight["num_key_value_heads"] = 2 * small.config.num_key_value_heads
    refused(float_small, path_of_ours, eight, "num_attention_heads=", "head_dim=", "num_key_value_heads=")
    refused(float_small, path_of_ours, {"rms_norm_eps": 0.1}, "rms_norm_eps=0.1")
    refused(float_small, path_of_ours, {"rope_theta": 3.0}, "rope_theta=3.0")
    refused(float_small, path_of_ours, {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported")

    harmless = {"use_cache": False, "eos_token_id": 7, "dtype": "bfloat16", "max_position_embeddings": 99}
    harmless |= {"attention_dropout": 0.5, "initializer_range": 0.5, "transformers_version": "4.0.0", "pad_token_id": 3}
    path.write_text(json.dumps(settings | harmless))
    load_compressed(net, path.parent)
    with torch.no_grad():
        assert torch.equal(net(TOKENS).logits, ours(TOKENS).logits)


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL"])
def test_the_config_of_a_part_that_computes_something_else_is_refused(tmp_path: Path, name: str) -> None:
    ours, _ = of_parts(name)
    quantize_(ours)
    path = save_compressed(ours, tmp_path) / "config.json"
    settings = json.loads(path.read_text())
    settings["text_config"]["rms_norm_eps"] = 0.5
    path.write_text(json.dumps(settings))
    with pytest.raises(QuantizedFileError, match="text_config.rms_norm_eps=0.5, the model's is 1e-0"):
        load_compressed(of_parts(name)[0], tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    library_folder(tmp_path, "W4", torch.float32, "30KB")
    load_compressed(random_llama(), tmp_path)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor + 1}, second)
    with pytest.raises(QuantizedFileError, match=rf"{second.name}: {re.escape(name)} is in another file, too"):
        load_compressed(random_llama(), tmp_path)


def test_a_model_made_from_the_folders_own_config_is_filled(tmp_path: Path) -> None:
    """Its config names the quantization, too; and keys that its class does not know change nothing in it."""
    model = random_llama()
    quantize_(model, QuantConfig(activations="int8_full"))
    save_compressed(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"unsloth_version": "2026.1", "made_by": "somebody"}))
    again = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
    load_compressed(again, tmp_path)
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_config_that_holds_infinity(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16}
    config = transformers.Mamba2Config(**sizes, state_size=8, n_groups=1)
    assert math.isinf(config.time_step_limit[1])
    model, again = (transformers.Mamba2ForCausalLM(config).eval() for _ in range(2))
    quantize_(model, QuantConfig(activations="int8_full"))
    save_compressed(model, tmp_path)
    assert list(transformers.AutoConfig.from_pretrained(tmp_path).time_step_limit) == list(config.time_step_limit)
    load_compressed(again, tmp_path)
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)
