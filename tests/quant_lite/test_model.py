"""Int8 layers, whole models and their files."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import quant_lite.files as files_module
import quant_lite.gptq as gptq_module
import quant_lite.linear as linear_module
import quant_lite.model as model_module
from llama_min import Llama
from lora_lite import LoRAConfig, add_lora
from quant_lite import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantConfig,
    QuantizedFileError,
    absmax_quantize,
    error_bound,
    load_quantized,
    quantize_,
    save_quantized,
    sqnr,
    zeropoint_quantize,
)
from quant_lite.files import checksum, of_layers
from quant_lite.linear import pack_nibbles, unpack_nibbles
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


@pytest.mark.parametrize(("scheme", "granularity"), [*KINDS, *((s, PerGroup(32)) for s in ("absmax", "zeropoint"))])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_by_blocks_is_the_product_with_w_hat(
    scheme: str, granularity, smooth: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several blocks of rows and of columns, none of them whole; no more of the weight is ever widened than a block."""
    monkeypatch.setattr(linear_module, "_BLOCK", 16)
    monkeypatch.setattr(linear_module, "_PIECE", 16 * 33)
    torch.manual_seed(0)
    quantizer = absmax_quantize if scheme == "absmax" else zeropoint_quantize
    weight = quantizer(torch.randn(40, 77), granularity)
    divisor = torch.rand(77) + 0.5 if smooth else None
    layer = Int8Linear(dataclasses.replace(weight, dtype=dtype), smooth=divisor)
    x, of_y = torch.randn(4, 77).to(dtype).requires_grad_(), torch.randn(4, 40).to(dtype)
    y = layer(x)
    with _Sizes() as sizes:
        y.backward(of_y)
    w_hat = weight.dequantize().double() / (1 if divisor is None else divisor.double())
    # rounded are the scale times the gradient (or w_hat, by groups), the sums of a block, their sum, and it by `smooth`
    rounding = 0.5 * torch.finfo(dtype).eps * 4.1 + 0.5 * torch.finfo(torch.float32).eps * 44
    assert ((x.grad.double() - of_y.double() @ w_hat).abs() <= rounding * of_y.double().abs() @ w_hat.abs()).all()
    assert 4 * 77 < max(sizes.seen) <= 16 * 33


@pytest.mark.parametrize("config", [QuantConfig(), QuantConfig(activations="int8"), QuantConfig(bits=4)])
def test_no_rows_cost_nothing(config: QuantConfig) -> None:
    """A trainer asks a head for the width of its logits with no rows: of a large head that would take gigabytes."""
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    quantize_(model, config)
    x = torch.zeros(2, 0, 6, requires_grad=True)
    with _Sizes() as sizes:
        y = model(x)
        y.sum().backward()
    assert y.shape == (2, 0, 5) and x.grad.shape == x.shape and max(sizes.seen) <= 1  # the sum


class _Sizes(TorchDispatchMode):
    """Inside, how many numbers each float tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.seen.add(result.numel())
        return result


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
    assert "0      2x2    absmax int8  24" in str(report) and "16.7% smaller" in str(report)


def test_sqnr_corners() -> None:
    assert sqnr(torch.ones(3), torch.ones(3)) == float("inf")
    assert sqnr(torch.zeros(3), torch.ones(3)) == float("-inf")
    assert sqnr(torch.tensor([10.0]), torch.tensor([9.0])) == pytest.approx(20)


@pytest.mark.parametrize("granularity", [None, PerTensor(), PerGroup(8)])
@pytest.mark.parametrize("scheme", ["absmax", "zeropoint"])
def test_a_tied_head_and_its_embedding_are_one_int8_copy(scheme: str, granularity) -> None:
    config = dataclasses.replace(SMALL, tie_word_embeddings=True)
    model = Llama(config)
    table = model.lm_head.weight.detach().clone()
    before = sum(p.nbytes for p in model.parameters())
    report = quantize_(model, QuantConfig(scheme, granularity=granularity, skip=("*.down_proj",)))
    head, embedding = model.lm_head, model.model.embed_tokens
    assert isinstance(head, Int8Linear) and isinstance(embedding, Int8Embedding)
    assert head.weight.data_ptr() == embedding.weight.data_ptr() and head.scale.data_ptr() == embedding.scale.data_ptr()
    quantizer = absmax_quantize if scheme == "absmax" else zeropoint_quantize
    expected = quantizer(table, granularity or PerChannel(0)).dequantize()
    ids = torch.tensor([[3, 0], [7, 3]])
    assert torch.equal(embedding(ids), expected[ids]) and torch.equal(embedding.to_embedding().weight, expected)
    assert report.kept == {f"model.layers.{i}.mlp.down_proj": "skipped by the config" for i in range(2)}
    assert isinstance(model.model.layers[1].mlp.up_proj, Int8Linear)
    assert len(report.layers) == 2 * 6 + 1 and report.bytes_before == before
    down = sum(layer.mlp.down_proj.weight.numel() for layer in model.model.layers)
    scales = sum(m.scale.nbytes for m in model.modules() if isinstance(m, Int8Linear))
    zeros = sum(m.zero_point.nbytes for m in model.modules() if isinstance(m, Int8Linear) and m.zero_point is not None)
    floats = sum(p.nbytes for p in model.parameters())
    int8 = sum(m.weight.numel() for m in model.modules() if isinstance(m, Int8Linear))
    assert report.bytes_after == int8 + scales + zeros + floats and floats >= 4 * down


@pytest.mark.parametrize("scheme", ["absmax", "zeropoint"])
def test_an_embedding_without_a_head_is_int8_where_asked(scheme: str, tmp_path: Path) -> None:
    """Looked up it is its own dequantization; smoothing looks at linear layers alone; files have it, and skip= keeps it."""
    torch.manual_seed(0)
    ids = torch.tensor([[3, 0], [7, 3]])
    model, again, kept = (Llama(SMALL) for _ in range(3))
    table = model.model.embed_tokens.weight.detach().clone()
    config = QuantConfig(scheme, embeddings=True, smoothing=0.5)
    report = quantize_(model, config, [ids])
    quantizer = absmax_quantize if scheme == "absmax" else zeropoint_quantize
    q = quantizer(table, PerChannel(0))
    embedding = model.model.embed_tokens
    assert isinstance(embedding, Int8Embedding) and torch.equal(embedding(ids), q.dequantize()[ids])
    row = report.layers[-1]
    assert (row.name, row.shape, row.bytes_before) == ("model.embed_tokens", tuple(table.shape), table.nbytes)
    assert row.max_error == float((table - q.dequantize()).abs().max()) <= row.bound
    assert not report.kept and report.bytes_after < 0.4 * report.bytes_before
    save_quantized(model, tmp_path)
    load_quantized(again, tmp_path)
    assert torch.equal(again(ids), model(ids))

    assert quantize_(kept, dataclasses.replace(config, skip=("*embed*",)), [ids]).kept == {
        "model.embed_tokens": "skipped by the config"
    }
    for other in (QuantConfig(embeddings=False), QuantConfig()):
        assert quantize_(Llama(SMALL), other).kept == {"model.embed_tokens": "no linear layer: Embedding"}
    for wrong in ({"bits": 4}, {"scheme": "nf4"}, {"scheme": "bfloat16"}):
        with pytest.raises(ValueError, match="embeddings=True needs an int8 scheme"):
            QuantConfig(embeddings=True, **wrong)
    alone = nn.Sequential(nn.Embedding(5, 4))
    assert [row.name for row in quantize_(alone, QuantConfig(embeddings=True)).layers] == ["0"]
    shared = nn.ModuleList([nn.Embedding(5, 4), nn.Embedding(5, 4), nn.Linear(4, 4)])
    shared[1].weight = shared[0].weight
    assert set(quantize_(shared, QuantConfig(embeddings=True)).kept) == {"0", "1"}


@pytest.mark.parametrize("scheme", ["nf4", "bfloat16"])
def test_what_shares_a_weight_and_cannot_be_one_copy_is_kept_and_named(scheme: str) -> None:
    model = Llama(dataclasses.replace(SMALL, tie_word_embeddings=True))
    report = quantize_(model, QuantConfig(scheme))
    assert report.kept == {"lm_head": "its weight is shared with another module"}
    assert "lm_head: stays in float" in str(report)
    halves = Llama(dataclasses.replace(SMALL, tie_word_embeddings=True)).to(torch.bfloat16)
    before = sum(p.nbytes for p in halves.parameters())
    report = quantize_(halves, QuantConfig("bfloat16"))
    assert not report.kept and report.bytes_before == report.bytes_after == before
    assert halves.lm_head.weight.data_ptr() == halves.model.embed_tokens.weight.data_ptr()
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    twins[1].weight = twins[0].weight
    assert set(quantize_(twins).kept) == {"0", "1"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(),
        QuantConfig("zeropoint", granularity=PerGroup(24)),
        QuantConfig(bits=4),
        QuantConfig("zeropoint", bits=4, granularity=PerGroup(7)),
        QuantConfig("nf4"),
        QuantConfig("bfloat16"),
    ],
    ids=str,
)
def test_the_report_says_what_the_layers_lost(config: QuantConfig, dtype: torch.dtype) -> None:
    """Against plain float64 sums over the layer as it came out; and the layer is its dequantized twin."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 20)).to(dtype)
    weight = model[0].weight.detach().clone()
    (row,) = quantize_(model, config).layers
    layer = model[0]
    w_hat = layer.to_linear().weight.detach()
    error = (weight.double() - w_hat.double()).abs()
    assert row.max_error == float(error.max()) <= row.bound
    assert row.sqnr == pytest.approx(sqnr(weight, w_hat), abs=1e-4)
    if config.scheme != "bfloat16":
        bound = float(error_bound(layer.quantized()).max())
        assert bound <= row.bound <= 1.3 * bound + 0.02 * float(w_hat.abs().max()) * (dtype == torch.bfloat16)
    stored = sum(t.nbytes for t in layer.buffers())
    assert row.bytes_after == stored and (config.scheme == "bfloat16" or stored < 20 * 50 * 2)
    for rows in (1, 9):
        x = torch.randn(rows, 50).to(dtype).requires_grad_()
        y, twin = layer(x), layer.to_linear()(x)
        size = x.detach().abs().float() @ w_hat.float().abs().T + layer.bias.abs()
        assert ((y - twin).abs().float() <= 60 * torch.finfo(dtype).eps / 2 * size).all()
        (of_x,) = torch.autograd.grad(y.sum(), x)
        limit = 30 * torch.finfo(dtype).eps / 2 * w_hat.float().abs().sum(0)
        assert ((of_x.float() - w_hat.float().sum(0)).abs() <= limit).all()


def test_outlying_columns_stay_in_float() -> None:
    """A column of large numbers spoils the rows' scales; kept apart, the product is as good as without that column."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 8, bias=False)
    x = torch.randn(12, 64)
    x[3, 5], x[:, 17] = 300.0, -80.0
    plain = Int8Linear.from_linear(linear, activations="int8")
    apart = Int8Linear(plain.quantized(), activations="int8", outliers=6.0)
    exact = x @ plain.to_linear().weight.T
    rest = x.index_fill(1, torch.tensor([5, 17]), 0.0)
    bound = rest.abs().amax(1, keepdim=True) / 127 / 2 * plain.to_linear().weight.abs().sum(1) * 1.001
    for rows in (slice(0, 12), slice(2, 4)):
        assert ((apart(x[rows]) - exact[rows]).abs() <= bound[rows]).all()
        assert not ((plain(x[rows]) - exact[rows]).abs() <= bound[rows]).all()
    assert torch.equal(apart(rest), plain(rest))


def test_nibbles_are_packed_two_to_a_byte() -> None:
    packed = pack_nibbles(torch.tensor([[1, 2, 15], [0, 9, 7]]))
    assert packed.tolist() == [[0x21, 0x0F], [0x90, 0x07]]
    assert unpack_nibbles(packed, 3).tolist() == [[1, 2, 15], [0, 9, 7]]


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that live at a time, besides a model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return result

    def freed(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(),
        QuantConfig("zeropoint", PerGroup(128)),
        QuantConfig(bits=4),
        QuantConfig("nf4"),
        QuantConfig("zeropoint", bits=4),
        QuantConfig(smoothing=0.5),
        QuantConfig(activations="int8", smoothing=0.5, observer="minmax"),
        QuantConfig("absmax", PerGroup(128), smoothing=0.5),
    ],
    ids=str,
)
def test_a_layer_is_quantized_beside_less_than_one_more(config: QuantConfig) -> None:
    """In bfloat16, of which int8 is half already."""
    N, K = 16384, 2048
    model = nn.Sequential(nn.Linear(K, N, bias=False, dtype=torch.bfloat16))
    with LiveBytes(model) as live:
        quantize_(model, config, [torch.randn(4, K).bfloat16()] if config.calibrated else ())
    result = sum(buffer.nbytes for buffer in model.buffers())
    assert result < live.most <= 2 * N * K


@pytest.mark.parametrize(
    "config",
    [QuantConfig(smoothing=0.5), QuantConfig("absmax", PerGroup(8), smoothing=0.5), QuantConfig(bits=4, gptq=True)],
    ids=str,
)
def test_some_rows_at_a_time_are_all_rows_at_once(config: QuantConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows at a time, the last time three."""
    torch.manual_seed(0)
    x, models = [torch.randn(5, 24)], [nn.Sequential(nn.Linear(24, 17)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    reports = [quantize_(models[0], config, x)]
    for module in (model_module, gptq_module):
        monkeypatch.setattr(module, "row_pieces", lambda weight: [slice(0, 7), slice(7, 14), slice(14, 17)])
    reports.append(quantize_(models[1], config, x))
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert reports[0].layers[0].sqnr == pytest.approx(reports[1].layers[0].sqnr, rel=1e-6)


def test_what_cannot_be_done_is_said() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"skip pattern 'q_proj' matches no linear layer: have 0, 2.0"):
        quantize_(model, QuantConfig(skip=("q_proj",)))
    assert isinstance(model[0], nn.Linear)
    with torch.no_grad():
        model[2][0].weight[0, 0] = float("nan")
    for scheme in ("absmax", "bfloat16"):
        with pytest.raises(ValueError, match=r"2.0: cannot (quantize|round) NaN"):
            quantize_(copy.deepcopy(model), QuantConfig(scheme))
    with pytest.raises(ValueError, match="no float linear layer"):
        quantize_(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="scheme='int3'"):
        Int8Linear.from_linear(nn.Linear(2, 2), "int3")
    with pytest.raises(ValueError, match="scheme='int3' is not known: take one of absmax, zeropoint, nf4, bfloat16"):
        QuantConfig("int3")
    with pytest.raises(ValueError, match="activations='int8' needs scheme='absmax' and bits=8, not 'nf4' and 8"):
        QuantConfig("nf4", activations="int8")
    with pytest.raises(ValueError, match="the values are not of 4 bits"):
        Int4Linear(absmax_quantize(torch.randn(2, 4), PerChannel(0)))


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


CONFIGS = (
    *(QuantConfig(scheme, granularity) for scheme, granularity in KINDS),
    QuantConfig(granularity=PerGroup(20), activations="int8", outliers=6.0),
    QuantConfig("zeropoint", PerGroup(9), bits=4),
    QuantConfig("nf4"),
    QuantConfig("bfloat16"),
)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_files_round_trip(tmp_path: Path, config: QuantConfig, tied: bool) -> None:
    torch.manual_seed(0)
    shape = dataclasses.replace(SMALL, tie_word_embeddings=tied)
    model = Llama(shape).eval()
    quantize_(model, config)
    path = save_quantized(model, tmp_path)
    with torch.device("meta"):
        again = Llama(shape)
    load_quantized(again, tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))
    kinds = [type(module) for module in model.modules()]
    assert [type(module) for module in again.modules()] == kinds
    assert [m.extra_repr() for m in again.modules()] == [m.extra_repr() for m in model.modules()]
    head, table = again.lm_head.state_dict(), again.model.embed_tokens.state_dict()
    same = [head[key].data_ptr() == table[key].data_ptr() for key in head.keys() & table.keys()]
    assert same == [tied] * len(same) and (same or not tied)
    assert list(tmp_path.iterdir()) == [path]


def saved(
    model: nn.Module, folder: Path, config: QuantConfig | None = None
) -> tuple[Path, dict[str, torch.Tensor], dict[str, str]]:
    """The file of a model once it is quantized, its tensors as they are now, and its header."""
    quantize_(model, config)
    path = save_quantized(model, folder)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    return path, {name: tensor.clone() for name, tensor in load_file(path).items()}, header


@pytest.mark.parametrize("config", [QuantConfig(), QuantConfig(bits=4)], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_of_other_ties_is_refused(tmp_path: Path, tied: bool, config: QuantConfig) -> None:
    quantize_(model := Llama(dataclasses.replace(SMALL, tie_word_embeddings=tied)), config)
    save_quantized(model, tmp_path)
    other = Llama(dataclasses.replace(SMALL, tie_word_embeddings=not tied))
    before = copy.deepcopy(other.state_dict())
    words = "are two in the model and one in the file" if tied else "are one in the model and two in the file"
    with pytest.raises(QuantizedFileError, match=rf"lm_head.weight and model.embed_tokens.weight {words}"):
        load_quantized(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_what_is_loaded_lies_in_the_file(tmp_path: Path, config: QuantConfig) -> None:
    """Mapped, 4 bits too: nothing is unpacked on the way."""
    torch.manual_seed(0)
    quantize_(model := nn.Sequential(nn.Linear(512, 256), nn.Linear(256, 512)), config)
    path = save_quantized(model, tmp_path)
    with torch.device("meta"):
        loaded = nn.Sequential(nn.Linear(512, 256), nn.Linear(256, 512))
    load_quantized(loaded, tmp_path)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    mapped = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    for name, tensor in loaded.state_dict().items():
        is_copied = name.endswith("bias")  # a few numbers
        assert is_copied or any(start <= tensor.data_ptr() < end for start, end in mapped), name
    assert torch.equal(loaded(torch.ones(2, 512)), model(torch.ones(2, 512)))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_file_that_lost_a_tensor_is_refused(tmp_path: Path, config: QuantConfig) -> None:
    """Each of them, also those that not every layer has: zero points, levels, smoothing, a bias."""
    path, tensors, header = saved(net(), tmp_path, config)
    assert len(tensors) >= 3
    for lost in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, metadata=header)
        with pytest.raises(QuantizedFileError, match=lost.partition(".")[0]):
            load_quantized(net(), tmp_path)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    """Eight times: that chance gives one order of two words eight times in a row happens once in 128."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4))
    quantize_(net)
    assert len({save_quantized(net, tmp_path / time).read_bytes() for time in "abcdefgh"}) == 1


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path, tensors, header = saved(net(), tmp_path)

    def refused(match: str, target: nn.Module) -> None:
        before = copy.deepcopy(target.state_dict())
        with pytest.raises(QuantizedFileError, match=match):
            load_quantized(target, tmp_path)
        assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())

    refused("2.0: the model has nothing of this name, needed is Linear", nn.Sequential(nn.Linear(8, 16)))
    refused("2.0: the model has a SiLU there", nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Sequential(nn.SiLU())))
    refused(r"0: weight is torch.int8 \(16, 8\), needed is torch.int8 \(16, 9\)", nn.Sequential(nn.Linear(9, 16)))
    refused(r"0: bias \(16,\) does not fit", nn.Sequential(nn.Linear(8, 16, bias=False), *net()[1:]))
    refused("missing 3.weight", nn.Sequential(*net(), nn.LayerNorm(4)))

    save_file({name: tensor for name, tensor in tensors.items() if name != "0.scale"}, path, metadata=header)
    refused(r"0: missing \['scale'\]", net())
    save_file({**tensors, "0.scale": tensors["0.scale"][:3].clone()}, path, metadata=header)
    refused(r"0: scale is torch.float32 \(3, 1\), needed is torch.float32 \(16, 1\)", net())
    for number in (0.0, -1.0, float("nan"), float("inf")):
        save_file({**tensors, "0.scale": torch.full((16, 1), number)}, path, metadata=header)
        refused("0: a scale is not positive and finite", net())

    def changed(**of_layer: object) -> None:
        odd = json.loads(header["quant_lite"])
        odd["layers"]["0"] |= of_layer
        odd["crc32"] = of_layers(odd["layers"], odd["shared"])
        save_file(tensors, path, metadata={"quant_lite": json.dumps(odd)})

    changed(kind="Int3Linear")
    refused("0: kind 'Int3Linear' and dtype 'float32' are not known", net())
    for number in (-1.0, 1e-50, 1e39):  # 0 and infinity in float32, as the kernels read it
        changed(activations="int8", input_scale=number)
        refused(re.escape(f"0: input_scale={number} must be a positive finite number"), net())
    changed(group=0)
    refused("0: group=0 is no number of neighbours", net())
    save_file(tensors, path)
    refused("was not written by save_quantized", net())
    path.write_bytes(path.read_bytes()[:200])
    refused("is not a whole safetensors file", net())
    path.unlink()
    refused("does not exist", net())
    with pytest.raises(ValueError, match="no quantized layer to save"):
        save_quantized(net(), tmp_path)


class _Counted(nn.Sequential):
    """Plain tensors of several dtypes beside quantized layers; -inf is what a mask's buffer may hold."""

    def __init__(self) -> None:
        super().__init__(*net(), nn.LayerNorm(4))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("bias", torch.tensor([0.0, -torch.inf]))


def _refused(match: str, folder: Path) -> None:
    target = _Counted()
    before, kinds = copy.deepcopy(target.state_dict()), [type(module) for module in target.modules()]
    with pytest.raises(QuantizedFileError, match=match):
        load_quantized(target, folder)
    assert [type(module) for module in target.modules()] == kinds
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_tensor_of_another_kind_is_refused_by_name(tmp_path: Path, config: QuantConfig) -> None:
    """The same bytes, which a header calls something else; and what is not finite where the model computes with it."""
    torch.manual_seed(0)
    path, tensors, header = saved(_Counted(), tmp_path, config)
    load_quantized(_Counted(), tmp_path)
    other = {torch.float32: torch.int32, torch.int64: torch.float64, torch.int8: torch.uint8, torch.bool: torch.int8}
    other |= {torch.uint8: torch.int8, torch.bfloat16: torch.float16}

    def write(name: str, tensor: torch.Tensor) -> None:
        """As a writer would that gives such a tensor its checksum."""
        changed = json.loads(header["quant_lite"])
        changed["checksums"][name] = checksum(tensor)
        save_file({**tensors, name: tensor}, path, metadata={"quant_lite": json.dumps(changed)})

    for name, tensor in tensors.items():
        write(name, tensor.view(other[tensor.dtype]))
        _refused(rf"{name.rpartition('.')[0]}.*{name.rpartition('.')[2]} (is|are) {other[tensor.dtype]}", tmp_path)
        if tensor.dtype == torch.float32 and name != "bias":
            write(name, torch.full_like(tensor, torch.nan))
            _refused(name.partition(".")[0] + ".*finite", tmp_path)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_flipped_bit_is_seen(tmp_path: Path, config: QuantConfig) -> None:
    torch.manual_seed(0)
    path, tensors, header = saved(_Counted(), tmp_path, config)
    whole, about = path.read_bytes(), json.loads(header["quant_lite"])
    data = 8 + int.from_bytes(whole[:8], "little")
    assert about["checksums"] == {name: checksum(tensor) for name, tensor in tensors.items()}
    for place in range(data, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        path.write_bytes(broken)
        _refused("other bytes than were saved: save the model again", tmp_path)
    about["layers"]["0"]["measured"] = False
    save_file(tensors, path, metadata={"quant_lite": json.dumps(about)})
    _refused("says other things of its layers than were saved: save the model again", tmp_path)
    save_file(tensors, path, metadata={"quant_lite": json.dumps({k: v for k, v in about.items() if k != "checksums"})})
    _refused("was written without checksums: save the model again", tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.bfloat16, torch.float32, torch.int64])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 1001])
def test_the_checksum_by_its_definition(dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over squares of 4 x 4 words and the rest, and at any place in a file, against whole numbers without an end."""
    monkeypatch.setattr(files_module, "_SIDE", 4)
    generator = torch.Generator().manual_seed(size)
    tensor = torch.randint(-100, 100, (size + 1,), generator=generator).to(dtype)[1:]
    raw = bytes(tensor.clone().view(torch.uint8).tolist())
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    sums = (sum(words), sum(i * word for i, word in enumerate(words)))
    name = str(dtype).removeprefix("torch.")
    assert checksum(tensor) == f"{name} [{size}] {sums[0] % 2**64:016x} {sums[1] % 2**64:016x}"


def test_the_checksum_makes_no_copy_of_the_tensor() -> None:
    tensor = torch.zeros(2**25, dtype=torch.int8)
    with torch.profiler.profile(profile_memory=True) as profile:
        checksum(tensor)
    made = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert 0 < made <= tensor.nbytes / 3
