"""Int8 layers, whole models and their files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from llama_min import Llama
from lora_lite import LoRAConfig, add_lora
from quant_lite import (
    Int8Linear,
    PerChannel,
    PerTensor,
    QuantConfig,
    QuantizedFileError,
    error_bound,
    load_quantized,
    quantize_,
    save_quantized,
    sqnr,
)
from tests.llama_min.test_model import SMALL

KINDS = [(s, g) for s in ("absmax", "zeropoint") for g in (PerChannel(0), PerTensor())]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Sequential(nn.Linear(16, 4, bias=False)))


@pytest.mark.parametrize(("scheme", "granularity"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_equals_its_dequantized_twin(scheme: str, granularity, bias: bool) -> None:
    """The twin is a float layer, so a fault of the forward pass is not mistaken for rounding.

    Both sum K = 64 products; the order differs, so they may differ by K u sum |x_k w_k|, with u = 2^-24 doubled for
    the scale that is applied after the sum.
    """
    torch.manual_seed(0)
    layer = Int8Linear.from_linear(nn.Linear(64, 32, bias=bias), scheme, granularity)
    twin, x = layer.to_linear(), torch.randn(5, 64)
    weight = twin.weight.detach().abs() + 2 * 128 * layer.scale  # the zero point's share is summed apart
    slack = 64 * 2 * 2.0**-24 * (x.abs() @ weight.T) + 1e-7
    assert ((layer(x) - twin(x)).abs() <= slack).all()


def test_the_twin_draws_no_random_numbers() -> None:
    """DoRA over an int8 base asks for it in every forward pass: dropout's seed must not depend on that."""
    layer = Int8Linear.from_linear(nn.Linear(8, 4))
    before = torch.get_rng_state()
    layer.to_linear()
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_matmul_error_follows_from_the_weights(seed: int, kind) -> None:
    """|x W^T - x W_hat^T|_ij <= |x_i| . bound_j: the elementwise bound carried through the product."""
    torch.manual_seed(seed)
    linear, x = nn.Linear(12, 7, bias=False), torch.randn(3, 12)
    layer = Int8Linear.from_linear(linear, *kind)
    allowed = x.double().abs() @ error_bound(layer.quantized()).double().T + 1e-5
    assert ((layer(x) - linear(x)).abs() <= allowed).all()


def test_gradient_flows_to_the_input() -> None:
    layer = Int8Linear.from_linear(nn.Linear(6, 3))
    x = torch.randn(2, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.to_linear().weight.detach().sum(0).expand(2, 6))
    assert not list(layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_keep_their_dtype(dtype: torch.dtype) -> None:
    layer = Int8Linear.from_linear(nn.Linear(6, 3).to(dtype))
    assert layer(torch.randn(2, 6, dtype=dtype)).dtype == dtype
    assert layer.to_linear().weight.dtype == dtype


def test_report_by_hand() -> None:
    """One layer (2, 2): 16 bytes of weight and 8 of bias become 4 + 2 scales of 4 + 8."""
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[127.0, 0.25], [0.0, 127.0]]))
    report = quantize_(model)
    (row,) = report.layers
    assert (row.name, row.shape, row.bytes_before, row.bytes_after) == ("0", (2, 2), 24, 20)
    assert row.max_error == 0.25 and 0.5 <= row.bound < 0.5001
    assert row.sqnr == pytest.approx(10 * torch.log10(torch.tensor(2 * 127**2 / 0.0625 + 1)).item(), abs=1e-4)
    assert (report.bytes_before, report.bytes_after) == (24, 20)
    assert "0      2x2" in str(report) and "16.7% smaller" in str(report)


def test_sqnr_corners() -> None:
    assert sqnr(torch.ones(3), torch.ones(3)) == float("inf")
    assert sqnr(torch.zeros(3), torch.ones(3)) == float("-inf")
    assert sqnr(torch.tensor([10.0]), torch.tensor([9.0])) == pytest.approx(20)


def test_skips_and_shared_weights_are_kept_and_named() -> None:
    config = SMALL.__class__(**{**vars(SMALL), "tie_word_embeddings": True})
    model = Llama(config)
    report = quantize_(model, QuantConfig(skip=("*.down_proj",)))
    assert report.kept["lm_head"] == "its weight is shared with another module"
    assert report.kept["model.layers.0.mlp.down_proj"] == "skipped by the config"
    assert isinstance(model.model.layers[1].mlp.up_proj, Int8Linear)
    assert len(report.layers) == 2 * 6
    assert "lm_head: stays in float" in str(report)


def test_nothing_changes_when_it_cannot_be_done() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"skip pattern 'q_proj' matches no linear layer: have 0, 2.0"):
        quantize_(model, QuantConfig(skip=("q_proj",)))
    with torch.no_grad():
        model[2][0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the weight of 2.0 holds NaN"):
        quantize_(model)
    assert isinstance(model[0], nn.Linear)
    with pytest.raises(ValueError, match="no float linear layer"):
        quantize_(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="scheme='int3'"):
        Int8Linear.from_linear(nn.Linear(2, 2), "int3")


def test_adapter_on_an_int8_base_trains() -> None:
    model = net()
    quantize_(model)
    add_lora(model, LoRAConfig(targets=("0",)))
    model(torch.randn(3, 8)).sum().backward()
    assert model[0].lora_B.grad.abs().sum() > 0
    before = model(torch.ones(1, 8))
    with torch.no_grad():
        model[0].lora_B.fill_(0.1)
    assert not torch.equal(model(torch.ones(1, 8)), before)


@pytest.mark.parametrize(("scheme", "granularity"), KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_files_round_trip(tmp_path: Path, scheme: str, granularity, tied: bool) -> None:
    torch.manual_seed(0)
    config = SMALL.__class__(**{**vars(SMALL), "tie_word_embeddings": tied})
    model = Llama(config).eval()
    quantize_(model, QuantConfig(scheme, granularity))
    path = save_quantized(model, tmp_path)
    with torch.device("meta"):
        again = Llama(config)
    load_quantized(again, tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    model = net()
    quantize_(model)
    path = save_quantized(model, tmp_path)

    def refused(match: str, target: nn.Module) -> None:
        before = copy.deepcopy(target.state_dict())
        with pytest.raises(QuantizedFileError, match=match):
            load_quantized(target, tmp_path)
        assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())

    refused("the model has no linear layer 2.0", nn.Sequential(nn.Linear(8, 16)))
    refused(r"0.weight is torch.int8 \(16, 8\), needed is torch.int8 \(16, 9\)", nn.Sequential(nn.Linear(9, 16)))
    refused("missing 3.weight", nn.Sequential(*net(), nn.LayerNorm(4)))

    tensors = load_file(path)
    header = {"quant_lite": json.dumps({"int8": {"0": "float32", "2.0": "float32"}, "shared": {}})}
    save_file({name: tensor for name, tensor in tensors.items() if name != "0.scale"}, path, metadata=header)
    refused("missing 0.weight or 0.scale", net())
    save_file(tensors, path)
    refused("was not written by save_quantized", net())
    path.write_bytes(path.read_bytes()[:200])
    refused("is not a whole safetensors file", net())
    path.unlink()
    refused("does not exist", net())
    with pytest.raises(ValueError, match="no quantized layer to save"):
        save_quantized(net(), tmp_path)
