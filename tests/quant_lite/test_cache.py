"""The int8 key-value cache: what it holds, how far attention may be off, and that generation goes through it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from llama_min import Llama, generate, generate_batch
from quant_lite import Int8KVCache, PerToken, absmax_quantize, error_bound, quantize_cache_
from tests.llama_min.test_model import SMALL


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


def test_what_it_gives_back_is_what_came_within_the_bound(model: Llama) -> None:
    K, C = SMALL.num_key_value_heads, SMALL.head_dim
    cache = Int8KVCache(model.new_cache(2, 9))
    k, v = torch.randn(2, K, 5, C), torch.randn(2, K, 5, C) * 100
    for layer in range(2):
        for start, end in ((0, 3), (3, 5)):
            cache.length = start
            keys, values = cache.append(layer, k[:, :, start:end], v[:, :, start:end])
            assert keys.shape == values.shape == (2, K, end, C)
            for given, read in ((k[:, :, :end], keys), (v[:, :, :end], values)):
                assert ((given - read).abs() <= error_bound(absmax_quantize(given, PerToken()))).all()
                assert not torch.equal(given, read)
    assert cache.nbytes == 2 * 2 * 2 * K * 9 * (C + 4)


@torch.no_grad()
def test_generation_runs_through_it(model: Llama) -> None:
    tokens = torch.arange(12)[None]
    plain = model.new_cache(1, 12)
    expected = model(tokens, plain)
    quantize_cache_(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    cache = twin.new_cache(1, 12)
    assert isinstance(cache, Int8KVCache)
    parts = [twin(tokens[:, :7], cache), twin(tokens[:, 7:8], cache), twin(tokens[:, 8:], cache)]
    assert cache.length == 12
    off = (torch.cat(parts, 1) - expected).abs()
    assert 0 < off.max() <= 0.02 * expected.abs().max()
    prompts = [[1, 2, 3, 4], [5, 6]]  # padded on the left: masks and positions are the float cache's own
    together = generate_batch(twin, prompts, 6, eos_ids=())
    assert together == [generate(twin, prompt, 6, eos_ids=()) for prompt in prompts]
    one = twin.new_cache(1, 8)
    twin(tokens[:, :4], one)
    several = one.repeat(3)
    again = twin(tokens[:, 4:5].expand(3, 1), several)
    assert torch.allclose(again[0], again[2], atol=1e-5) and one.length == 4 and several.length == 5
    assert torch.allclose(again[0], twin(tokens[:, 4:5], one)[0], atol=1e-5)


def test_a_model_without_caches_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no new_cache"):
        quantize_cache_(nn.Linear(2, 2))
