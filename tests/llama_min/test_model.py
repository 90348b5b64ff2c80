"""The model against itself: cache, shapes, limits, and the equations worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_min import (
    CheckpointError,
    KVCache,
    Llama,
    LlamaConfig,
    RopeScaling,
    generate,
    save_llama,
    stack_products,
    unstack_products,
)
from llama_min.model import SwiGLU, apply_rope, attend, attend_reference, rope_frequencies
from lora_lite import LoRAConfig, add_lora, remove_lora
from quant_lite import quantize_

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_is_autograds_to_the_bit_and_keeps_its_inputs_alone(dtype: torch.dtype) -> None:
    """What autograd makes of silu(gate) * up: the same values and gradients, with one matrix more in memory."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(2, 7, 48, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
    seed = torch.randn(2, 7, 48, generator=generator).to(dtype)
    results, kept = [], []

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept[-1].add(saved.data_ptr())
        return saved

    for form in (SwiGLU.apply, lambda gate, up: torch.nn.functional.silu(gate) * up):
        kept.append(set())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            y = form(*inputs)
        results.append((y, *torch.autograd.grad(y, inputs, seed)))
    for ours, autograds in zip(*results):
        assert torch.equal(ours, autograds)
    assert kept[0] == {x.data_ptr() for x in inputs} and len(kept[1]) == 3
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(SwiGLU.apply, doubles)


@torch.no_grad()
def test_packed_equals_unpacked(model: Llama) -> None:
    """Logit for logit, to float32 rounding as cached equals full; and no text changes a bit of another's."""
    texts = [ids(1, 20)[:, :length] + start for start, length in ((0, 7), (0, 1), (0, 20), (-1, 12))]
    texts[3].clamp_(min=0)
    rows = torch.stack([torch.cat(texts[:2] + texts[3:], 1)[0], texts[2].expand(2, -1).reshape(-1)[:20]])
    positions = torch.stack([torch.cat([torch.arange(n) for n in (7, 1, 12)]), torch.arange(20)])
    packed = model(rows, position_ids=positions)
    for row, start, text in ((0, 0, 0), (0, 7, 1), (0, 8, 3), (1, 0, 2)):
        length = texts[text].shape[1]
        alone = model(texts[text])[0]
        torch.testing.assert_close(packed[row, start : start + length], alone, atol=1e-5, rtol=1e-5)
    rows[0, :7] += 1
    changed = model(rows, position_ids=positions)
    assert torch.equal(changed[0, 7:], packed[0, 7:]) and torch.equal(changed[1], packed[1])
    assert not torch.equal(changed[0, :7], packed[0, :7])


@torch.no_grad()
def test_position_ids_have_limits(model: Llama) -> None:
    """What counts is the longest text, not the row; of another shape, or with a cache, they are refused."""
    row, positions = ids(1, 100), (torch.arange(100) % 50)[None]
    assert model(row, position_ids=positions).shape == (1, 100, 50)
    with pytest.raises(ValueError, match="0 \\+ 65 tokens do not fit the 64 positions"):
        model(row, position_ids=torch.arange(100)[None] % 65)
    for wrong in ({"position_ids": positions[:, :9]}, {"position_ids": positions, "cache": model.new_cache(1, 64)}):
        with pytest.raises(ValueError, match="position_ids must have the shape of tokens"):
            model(row, **wrong)


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


def _only_padding(cache: KVCache, T: int) -> torch.Tensor:
    return cache.padding_mask[..., : cache.length + T]


def _only_causal(cache: KVCache, T: int) -> torch.Tensor:
    return torch.full((T, cache.length + T), -1e30).triu(cache.length + 1)


@pytest.mark.parametrize("switched", [_only_padding, _only_causal])
@torch.no_grad()
def test_each_part_of_the_mask_matters(model: Llama, monkeypatch: pytest.MonkeyPatch, switched: Callable) -> None:
    """With one of them switched off, a padded row read in pieces is not what it is alone, by far."""
    tokens = ids(2, 14)
    alone = model(tokens[1:, 5:])
    monkeypatch.setattr(KVCache, "mask", switched)
    cache = model.new_cache(2, 14, [0, 5])
    together = torch.cat([model(piece, cache) for piece in tokens.split([9, 5], dim=1)], 1)
    assert (together[1:, 5:] - alone).abs().max() > 1e-2


def test_positions_are_counted_behind_the_padding(model: Llama) -> None:
    cache = model.new_cache(2, 9, [0, 2])
    assert cache.positions(4).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    cache.length = 4
    assert cache.positions(2).tolist() == [[4, 5], [2, 3]]
    assert model.new_cache(2, 9).positions(3).tolist() == [[0, 1, 2]]


def test_padding_that_does_not_fit(model: Llama) -> None:
    for padding in ([1], [1, -1], [1, 9]):
        with pytest.raises(ValueError, match="must be 2 numbers from 0 to below 9"):
            model.new_cache(2, 9, padding)


@pytest.mark.parametrize("stacked", [False, True])
@torch.no_grad()
def test_last_only(model: Llama, stacked: bool) -> None:
    """The last position's logits, and a cache that later tokens read the same: with padding and in pieces, too."""
    if stacked:
        stack_products(model)
    tokens = ids(2, 12)
    torch.testing.assert_close(model(tokens, last_only=True), model(tokens)[:, -1:], atol=1e-6, rtol=1e-5)
    for padding in (None, [3, 0]):
        short, whole = model.new_cache(2, 20, padding), model.new_cache(2, 20, padding)
        for piece in tokens.split((7, 4, 1), dim=1):
            expected = model(piece, whole)[:, -1:]
            torch.testing.assert_close(model(piece, short, last_only=True), expected, atol=1e-6, rtol=1e-5)
        assert short.length == whole.length == 12
        torch.testing.assert_close(short.k, whole.k, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_last_only_leaves_the_last_layer_one_position(model: Llama) -> None:
    seen: list[torch.Size] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(ids(2, 12), last_only=True)
    assert [shape[1] for shape in seen] == [12] * (len(seen) - 1) + [1]
    with pytest.raises(ValueError, match="without a cache and last_only"):
        model(ids(2, 12), last_only=True, position_ids=torch.arange(12).expand(2, 12))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_first_token_copies_no_weight(dtype: torch.dtype) -> None:
    """A head of 640,000 weights, frozen as adapters leave it, multiplies the last position alone, where it lies."""
    model = Llama(replace(SMALL, vocab_size=20_000)).to(dtype).requires_grad_(False)
    with torch.profiler.profile(profile_memory=True) as profile:
        logits = model(ids(1, 12), model.new_cache(1, 12), last_only=True)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert logits.nbytes <= allocated < model.lm_head.weight.nbytes


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
    angles = torch.tensor([math.pi / 2, 0.0]).view(1, 1, 1, 2)
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


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_stacked_products_change_no_logit_and_no_file(tmp_path: Path, bias: bool) -> None:
    torch.manual_seed(0)
    model = Llama(replace(SMALL, attention_bias=bias, mlp_bias=bias)).eval()
    tokens, before = ids(2, 12), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, text = model(tokens), generate(model, [3, 1, 4], 20)
    save_llama(model, tmp_path / "single")
    stack_products(model)
    assert len([module for module in model.modules() if isinstance(module, torch.nn.Linear)]) == 2 * 4 + 1
    torch.testing.assert_close(model(tokens), logits, atol=1e-6, rtol=1e-5)
    assert generate(model, [3, 1, 4], 20) == text
    save_llama(model, tmp_path / "stacked")
    files = [tmp_path / folder / "model.safetensors" for folder in ("single", "stacked")]
    assert files[0].read_bytes() == files[1].read_bytes()
    unstack_products(model)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(tokens), logits)
    assert not any(module.training for module in model.modules())


def test_stacked_products_take_other_linear_layers(model: Llama) -> None:
    """Quantized after stacking, every product is an int8 one, and equals its dequantized twin."""
    stack_products(model)
    quantize_(model)
    linears = [module for module in model.model.modules() if hasattr(module, "to_linear")]
    assert len(linears) == 2 * 4
    with torch.no_grad():
        logits = model(ids(2, 12))
        for parent in model.model.modules():
            for name, child in list(parent.named_children()):
                if hasattr(child, "to_linear"):
                    setattr(parent, name, child.to_linear())
        torch.testing.assert_close(model(ids(2, 12)), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_stacked_products_without_numbers(bias: bool) -> None:
    """A model on the meta device is stacked to the same shapes, for a file of stacked products to be loaded into."""
    config = replace(SMALL, attention_bias=bias, mlp_bias=bias)
    with torch.device("meta"):
        empty = Llama(config)
    model = Llama(config)
    stack_products(empty)
    stack_products(model)
    assert {name: t.shape for name, t in empty.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(ids(1, 5)), model(ids(1, 5)))


def test_what_is_no_plain_linear_is_not_stacked(model: Llama) -> None:
    names = model.state_dict().keys()
    with pytest.raises(ValueError, match=r"layers.0.self_attn.qkv_proj is NoneType, not Linear"):
        unstack_products(model)
    add_lora(model, LoRAConfig(targets=("layers.1.mlp.up_proj",)))
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj is LoRALinear, not Linear: stack once, after"):
        stack_products(model)
    remove_lora(model)
    assert model.state_dict().keys() == names
    stack_products(model)
    with pytest.raises(ValueError, match=r"self_attn.q_proj is NoneType, not Linear"):
        stack_products(model)
    with pytest.raises(ValueError, match="q_proj"):
        add_lora(model)
