"""What quantization costs a trained model, and that what calibration text teaches is used as its paper says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import quality
from llama_min import Llama, load_llama
from quant_lite import (
    Int8Linear,
    MSEObserver,
    PerChannel,
    PerGroup,
    QuantConfig,
    absmax_quantize,
    gptq_quantize,
    quantize_,
    smoothing_scales,
)
from tests.llama_min.test_model import SMALL

U = 2.0**-24


def test_a_trained_model_keeps_its_perplexity(real: Path, tmp_path: Path) -> None:
    """Held-out text of stories260k: int8 within 0.3%, W8A8 within 1%; GPTQ and LQER are better than rounding alone."""
    folder = real / "stories260k"
    lines = quality.read(folder, quality.STORIES)
    rows = quality.table(load_llama(folder, torch.float32), lines[4:], lines[:4])
    change = {row.name: abs(row.perplexity / rows[0].perplexity - 1) for row in rows}
    finer = [f"int8 {scheme}, {size}" for scheme in ("absmax", "zero-point") for size in ("channel", "group 32")]
    assert all(change[name] <= 0.003 for name in (*finer, "int8 GPTQ, channel", "int8 key-value cache"))
    dynamic = [name for name in change if name.startswith("W8A8, dynamic")]
    assert len(dynamic) == 4 and all(change[name] <= 0.01 for name in (*dynamic, "W8A8, LLM.int8 outliers"))
    assert change["int4 GPTQ, group 32"] < change["int4 absmax, group 32"] < 0.2
    for name in quality.CORRECTED:
        assert change[f"{name} + LQER rank {quality.RANK}"] < change[name]
    bits = {row.name: row.bits for row in rows}
    assert bits["int8 absmax, tensor"] == pytest.approx(8, abs=0.01)
    assert bits["int4 absmax, group 32"] == pytest.approx(4 + 32 / 32, abs=0.05)
    quality.draw(rows, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 10_000


@pytest.fixture
def text() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (2, 12), generator=generator) for _ in range(3)]


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).train()


def test_the_report_tells_perplexity(model: Llama, text: list[torch.Tensor], tmp_path: Path) -> None:
    """Against log-probabilities token by token, before and after; the model's mode stays."""

    def by_token() -> float:
        with torch.no_grad():
            scores = [
                float(model(ids)[row, t].log_softmax(-1)[ids[row, t + 1]])
                for ids in text
                for row in range(2)
                for t in range(11)
            ]
        return math.exp(-sum(scores) / len(scores))

    before = by_token()
    report = quantize_(model, QuantConfig(bits=4), text)
    assert model.training
    assert report.perplexity_before == pytest.approx(before, rel=1e-5)
    assert report.perplexity_after == pytest.approx(by_token(), rel=1e-5)
    assert report.perplexity_before != report.perplexity_after
    assert f"perplexity: {before:.4f} -> {report.perplexity_after:.4f}" in str(report)
    report.draw(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


def inputs_of(model: Llama, name: str, text: list[torch.Tensor]) -> torch.Tensor:
    """All that comes into a layer, (rows, K)."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, x, __: seen.append(x[0].detach().flatten(0, 1)))
    with torch.no_grad():
        for ids in text:
            model.eval()(ids)
    hook.remove()
    return torch.cat(seen)


NAME = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_static_scales_are_those_of_the_float_models_inputs(
    model: Llama, text: list[torch.Tensor], observer: str
) -> None:
    x = inputs_of(model, NAME, text)
    largest = float(x.abs().max())
    if observer == "mse":
        by_hand = MSEObserver()
        by_hand.update(x)
        largest = max(-by_hand.range()[0], by_hand.range()[1])
    quantize_(model, QuantConfig(activations="int8", observer=observer), text)
    layer = model.get_submodule(NAME)
    assert isinstance(layer, Int8Linear)
    assert layer.input_scale == pytest.approx(largest / 127, rel=1e-3 if observer == "mse" else 2 * U)
    q = (x / layer.input_scale).round().clamp(-127, 127)  # saturates where calibration was cut
    expected = (q @ layer.weight.float().T) * layer.input_scale * layer.scale.T
    for rows in (slice(0, 2), slice(0, 60)):
        off = (layer(x[rows]) - expected[rows]).abs()
        assert (
            off <= 80 * U * (q[rows].abs() @ layer.weight.float().abs().T) * layer.input_scale * layer.scale.T
        ).all()


def test_smoothing_moves_the_largest_numbers_into_the_weight(model: Llama, text: list[torch.Tensor]) -> None:
    x, weight = inputs_of(model, NAME, text), model.get_submodule(NAME).weight.detach().clone()
    expected = smoothing_scales(x.abs().amax(0), weight, 0.5)
    quantize_(model, QuantConfig(activations="int8", smoothing=0.5), text)
    layer = model.get_submodule(NAME)
    assert isinstance(layer, Int8Linear) and layer.smooth is not None
    assert torch.allclose(layer.smooth, expected, rtol=1e-5)
    assert torch.equal(layer.weight, absmax_quantize(weight * layer.smooth, PerChannel(0)).values)
    # it stands for the same weight: half a step of the smoothed one, divided by the smoothing
    off = (layer.to_linear().weight - weight).abs() * layer.smooth
    assert (off <= layer.scale / 2 * 1.001 + 4 * U * weight.abs().max()).all()
    for rows in (slice(0, 2), slice(0, 60)):
        smoothed = x[rows] / layer.smooth
        bound = smoothed.abs().amax(1, keepdim=True) / 254 * (layer.weight.float().abs().sum(1) * layer.scale.T) * 1.01
        assert ((layer(x[rows]) - x[rows] @ layer.to_linear().weight.T).abs() <= bound).all()


def test_gptq_takes_the_inputs_of_layers_that_are_quantized_before(model: Llama, text: list[torch.Tensor]) -> None:
    first = "model.layers.0.self_attn.q_proj"
    x, weight = inputs_of(model, first, text).double(), model.get_submodule(first).weight.detach().clone()
    report = quantize_(model, QuantConfig(bits=4, granularity=PerGroup(8), gptq=True), text)
    values = gptq_quantize(weight, x.T @ x, PerGroup(8), 4).values
    assert torch.equal(model.get_submodule(first).quantized().values, values)
    assert not torch.equal(values, absmax_quantize(weight, PerGroup(8), 4).values)
    last = inputs_of(model, "lm_head", text).double()
    torch.manual_seed(0)
    head = Llama(SMALL).lm_head.weight.detach()
    assert torch.equal(model.lm_head.quantized().values, gptq_quantize(head, last.T @ last, PerGroup(8), 4).values)
    assert report.perplexity_after is not None


def test_a_tied_head_is_neither_smoothed_nor_chosen_by_gptq(text: list[torch.Tensor]) -> None:
    for config in (QuantConfig(activations="int8", smoothing=0.5), QuantConfig(gptq=True)):
        torch.manual_seed(0)
        model = Llama(dataclasses.replace(SMALL, tie_word_embeddings=True))
        plain = absmax_quantize(model.lm_head.weight.detach(), PerChannel(0)).values
        quantize_(model, config, text)
        assert torch.equal(model.lm_head.weight, plain) and model.lm_head.smooth is None


def test_what_calibration_needs_is_said(text: list[torch.Tensor]) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(50, 50), nn.Linear(4, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.used(F.one_hot(ids, 50).float())

    for config in (
        QuantConfig(activations="int8", observer="minmax"),
        QuantConfig(smoothing=0.5),
        QuantConfig(gptq=True),
    ):
        with pytest.raises(ValueError, match="need inputs to calibrate on"):
            quantize_(Idle(), config)
        with pytest.raises(ValueError, match="calibration never reached idle"):
            quantize_(Idle(), config, text)
    for config, words in (
        ({"observer": "minmax"}, "are of int8 activations"),
        ({"observer": "range", "activations": "int8"}, "observer='range' is not known: take one of minmax"),
        ({"gptq": True, "scheme": "zeropoint"}, "gptq=True needs scheme='absmax'"),
        ({"smoothing": 0.5, "bits": 4}, "smoothing= needs an int8 scheme"),
    ):
        with pytest.raises(ValueError, match=words):
            QuantConfig(**config)
