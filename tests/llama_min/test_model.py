"""The model against itself: cache, shapes, limits, and the equations worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llama_min import CheckpointError, Llama, LlamaConfig, RopeScaling
from llama_min.model import apply_rope, attend, attend_reference, rope_frequencies

SMALL = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    rope_theta=10000.0,
)


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 13], [12, 1, 1, 6]])
@torch.no_grad()
def test_cached_equals_full(model: Llama, chunks: list[int]) -> None:
    """Prefill in pieces and decoding one by one give what one forward pass gives, to float32 rounding."""
    tokens, cache = ids(3, 20), model.new_cache(3, 20)
    pieces = [model(piece, cache) for piece in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_repeated_cache_serves_several_continuations(model: Llama) -> None:
    prompt, ends = ids(1, 9), ids(4, 5)
    cache = model.new_cache(1, 14)
    model(prompt, cache)
    together = model(ends, cache.repeat(4))
    for row in range(4):
        alone = model(torch.cat((prompt, ends[row : row + 1]), 1))[:, 9:]
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunks", [[9, 5], [3, 4, 2, 1, 1, 1, 1, 1], [1] * 14])
@torch.no_grad()
def test_left_padding_changes_nothing_behind_it(model: Llama, chunks: list[int]) -> None:
    """Three prompts of 9, 4 and 8 tokens, the padding filled with other tokens, read at once or in pieces."""
    padding = [0, 5, 1]
    tokens = ids(3, 14)
    cache = model.new_cache(3, 14, padding)
    together = torch.cat([model(piece, cache) for piece in tokens.split(chunks, dim=1)], 1)
    assert together.isfinite().all()
    for row, count in enumerate(padding):
        alone = model(tokens[row : row + 1, count:])
        torch.testing.assert_close(together[row : row + 1, count:], alone, atol=1e-5, rtol=1e-5)


def test_padding_that_does_not_fit(model: Llama) -> None:
    for padding in ([1], [1, -1], [1, 9]):
        with pytest.raises(ValueError, match="must be 2 numbers from 0 to below 9"):
            model.new_cache(2, 9, padding)


@torch.no_grad()
def test_last_only(model: Llama) -> None:
    tokens = ids(2, 12)
    torch.testing.assert_close(model(tokens, last_only=True), model(tokens)[:, -1:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [None, [3, 0]])
@torch.inference_mode()
def test_decoding_allocates_nothing_that_grows(dtype: torch.dtype, padding: list[int] | None) -> None:
    """A token after 700 others allocates to the byte what one after 3,000 does, and the cache stays where it was."""
    model = Llama(replace(SMALL, max_position_embeddings=4096)).to(dtype)
    cache = model.new_cache(2, 4096, padding)
    assert cache.k.dtype == dtype
    place = cache.k.data_ptr()
    bytes_allocated = []
    for length in (700, 3000):
        model(ids(2, length - cache.length), cache)
        with torch.profiler.profile(profile_memory=True) as profile:
            model(ids(2, 1), cache)
        events = [event.self_cpu_memory_usage for event in profile.key_averages()]
        bytes_allocated.append(sum(size for size in events if size > 0))
    assert bytes_allocated[0] == bytes_allocated[1] > 0
    assert cache.k.data_ptr() == place


@torch.no_grad()
def test_right_padding_changes_nothing_before_it(model: Llama) -> None:
    tokens = ids(1, 12)
    padded = torch.cat((tokens, torch.zeros(1, 5, dtype=torch.long)), 1)
    torch.testing.assert_close(model(padded)[:, :12], model(tokens), atol=1e-5, rtol=1e-5)


def test_fused_attention_equals_the_equation(generator: torch.Generator) -> None:
    q, k, v = (torch.randn(2, heads, 11, 8, generator=generator) for heads in (4, 2, 2))
    causal = torch.full((11, 11), float("-inf")).triu(1)
    expected = attend_reference(q, k, v, causal)
    torch.testing.assert_close(attend(q, k, v, None), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attend(q, k, v, causal), expected, atol=1e-6, rtol=1e-5)
    one = attend_reference(q[:, :, -1:], k, v, causal[-1:])
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, None), one, atol=1e-6, rtol=1e-5)
    rows = torch.zeros(2, 1, 1, 11)
    rows[0, ..., :4] = torch.finfo(torch.float32).min  # each row of the batch its own mask
    one = attend_reference(q[:, :, -1:], k, v, rows)
    torch.testing.assert_close(attend(q[:, :, -1:], k, v, rows), one, atol=1e-6, rtol=1e-5)


def test_rope_turns_a_pair_by_its_angle() -> None:
    """The pair (1, 0), half a head apart, turned by 90 degrees is (0, 1)."""
    x = torch.tensor([1.0, 5.0, 0.0, 0.0]).view(1, 1, 1, 4)  # pairs (1, 0) and (5, 0)
    angles = torch.tensor([math.pi / 2, 0.0, math.pi / 2, 0.0]).view(1, 1, 1, 4)
    turned = apply_rope(x, angles.cos(), angles.sin()).flatten()
    torch.testing.assert_close(turned, torch.tensor([0.0, 5.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_llama3_scaling_by_hand() -> None:
    """Pairs that turn often keep their frequency, pairs that turn less than once lose a factor of 8."""
    config = LlamaConfig(head_dim=128, rope_theta=500000.0, rope_scaling=RopeScaling())
    scaled, plain = rope_frequencies(config), rope_frequencies(LlamaConfig(head_dim=128, rope_theta=500000.0))
    turns = 8192 * plain / (2 * math.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_angles_survive_a_cast_to_bfloat16(model: Llama) -> None:
    before = model.model.inv_freq.clone()
    assert torch.equal(model.to(torch.bfloat16).model.inv_freq, before)


def test_positions_past_the_context_raise(model: Llama) -> None:
    with pytest.raises(ValueError, match="65 tokens do not fit the 64 positions"):
        model(ids(1, 65))
    with pytest.raises(ValueError, match="past the model's context of 64"):
        model.new_cache(1, 65)
    with pytest.raises(ValueError, match="add a batch dimension"):
        model(ids(1, 5)[0])


def test_heads_must_divide() -> None:
    with pytest.raises(CheckpointError, match="num_attention_heads=4 is not a multiple of num_key_value_heads=3"):
        LlamaConfig(num_attention_heads=4, num_key_value_heads=3)
