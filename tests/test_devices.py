"""Nothing is made on another device than what it works with: a default device that holds no numbers shows what is.

On a GPU such a tensor is an error. Here PyTorch's "meta" device stands in for the other one, since most machines have no GPU.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_min import Llama, generate, generate_batch
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora, load_adapter, merge_lora, save_adapter
from quant_lite import (
    PerGroup,
    QuantConfig,
    error_bound,
    fake_quantize,
    load_quantized,
    matmul_error_bound,
    quantize_,
    quantize_cache_,
    save_quantized,
)
from tests.llama_min.test_model import SMALL

CONFIGS = [
    QuantConfig(),
    QuantConfig("zeropoint", PerGroup(16)),
    QuantConfig(activations="int8"),
    QuantConfig(activations="int8_full"),
    QuantConfig(activations="int8", outliers=3.0),
    QuantConfig(activations="int8", observer="minmax"),
    QuantConfig(activations="int8", observer="percentile"),
    QuantConfig(activations="int8", observer="mse", smoothing=0.5),
    QuantConfig(bits=4, gptq=True),
    QuantConfig("zeropoint", bits=4),
    QuantConfig("nf4"),
    QuantConfig("bfloat16"),
    QuantConfig(embeddings=True),
]
IDS = torch.tensor([[1, 5, 9, 3, 7, 2]])
EXAMPLES = [Example([1, 5, 9, 3], [0, 0, 1, 1]), Example([4, 2, 8], [0, 1, 1])] * 2


def tiny() -> Llama:
    torch.manual_seed(0)
    return Llama(replace(SMALL, tie_word_embeddings=True))


@pytest.mark.parametrize("kernels", ["torch", "c"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_quantizing_and_files(
    config: QuantConfig, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "torch":
        monkeypatch.setattr("quant_lite.kernels.library", lambda: None)
    model, again = tiny(), tiny()
    with torch.device("meta"):
        report = quantize_(model, config, [IDS])
        logits = model(IDS)
        save_quantized(model, tmp_path)
        load_quantized(again, tmp_path)
        loaded = again(IDS)
    assert report.layers and {tensor.device.type for tensor in (*model.buffers(), *again.buffers())} == {"cpu"}
    assert torch.equal(loaded, logits)


@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_bounds(config: QuantConfig) -> None:
    weight, x = torch.randn(24, 32), torch.randn(3, 32)
    with torch.device("meta"):
        q = config.quantize(weight)
        assert ((weight - q.dequantize()).abs() <= error_bound(q)).all()
        assert ((x @ weight.T - x @ q.dequantize().T).abs() <= matmul_error_bound(x, q)).all()
        assert fake_quantize(weight).device.type == "cpu"


def test_writing_with_an_int8_cache() -> None:
    model = tiny()
    with torch.device("meta"):
        alone = generate(model, [1, 5, 9], 6, eos_ids=())
        both = generate_batch(model, [[1, 5, 9], [4]], 6, temperature=0.8, top_k=9, top_p=0.9, eos_ids=())
        quantize_cache_(model)
        short = generate(model, [1, 5, 9], 6, eos_ids=())
    assert [len(text) for text in (alone, *both, short)] == [6, 6, 6, 6]


@pytest.mark.parametrize("packing", [None, 16])
def test_training_an_adapter(packing: int | None, tmp_path: Path) -> None:
    model, again = tiny(), tiny()
    with torch.device("meta"):
        add_lora(model, LoRAConfig(rank=2, dropout=0.1))
        config = TrainConfig(epochs=2, batch_size=2, packing=packing, learning_rate=1e-2, progress=False)
        history = Trainer(model, config).fit(EXAMPLES, EXAMPLES[:2])
        save_adapter(model, tmp_path)
        load_adapter(again, tmp_path)
        model.eval(), again.eval()
        logits = model(IDS)
        assert torch.equal(again(IDS), logits)
        merge_lora(model)
        merged = model(IDS)
    assert history[-1].loss < history[0].loss
    assert (merged - logits).abs().max() < 1e-4


def test_a_model_is_copied_as_it_is() -> None:
    model = tiny()
    quantize_(model, QuantConfig("nf4"))
    with torch.device("meta"):
        assert torch.equal(copy.deepcopy(model)(IDS), model(IDS))
