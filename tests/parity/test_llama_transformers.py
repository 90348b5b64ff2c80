"""Our Llama against transformers': an implementation that shares no code with it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llama_min.model
from llama_min import LlamaConfig, generate, load_llama, load_tokenizer, save_llama
from llama_min.generation import distribution
from llama_min.model import rope_frequencies

transformers = pytest.importorskip("transformers")

THETA = 20000.0  # not the default, which a reader that ignores the field would take
ORIGINAL = 64  # context before scaling; the sequences run far past it
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
GRID = list(itertools.product((1, 2, 4), (True, False), (None, LLAMA3)))  # key-value heads, tied, scaling

FILTERS = [*itertools.product((None, 40), (None, 0.8), (None, 0.05)), (1, None, None), (None, 0.01, None)]


def reference(
    folder: Path, kv_heads: int = 2, tied: bool = False, scaling: dict | None = None, **more
) -> torch.nn.Module:
    """A random transformers Llama, saved to `folder`; weights are wide enough for every part to matter."""
    rope = {"rope_theta": THETA, "rope_type": "default"} if scaling is None else {"rope_theta": THETA, **scaling}
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        **more,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    return model


def tokens(length: int) -> torch.Tensor:
    return torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def largest_difference(ours: torch.nn.Module, theirs: torch.nn.Module, length: int) -> float:
    """Of any logit; with these weights the largest logits are about 6."""
    ids = tokens(length)
    return float((ours(ids) - theirs(ids).logits).abs().max())


@pytest.mark.parametrize(("kv_heads", "tied", "scaling"), GRID)
def test_logits_equal(tmp_path: Path, kv_heads: int, tied: bool, scaling: dict | None) -> None:
    theirs = reference(tmp_path, kv_heads, tied, scaling)
    ours = load_llama(tmp_path, dtype=torch.float32)
    assert ours.config.num_key_value_heads == kv_heads
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied
    assert largest_difference(ours, theirs, length=3000) <= 1e-5


@torch.no_grad()
def test_packed_rows_equal(tmp_path: Path) -> None:
    """Rows of several texts, told by their positions, as transformers reads them; taken for one text they differ."""
    theirs, ids = reference(tmp_path), tokens(600)
    positions = torch.stack([torch.arange(600) % 250, torch.arange(600) % 77])
    ours = load_llama(tmp_path, torch.float32)
    expected = theirs(ids, position_ids=positions, use_cache=False).logits
    assert (ours(ids, position_ids=positions) - expected).abs().max() <= 1e-5
    assert (ours(ids) - expected).abs().max() > 0.1


@pytest.mark.parametrize("attention_bias", [True, False])
@pytest.mark.parametrize("mlp_bias", [True, False])
@pytest.mark.parametrize("head_dim", [8, 16, 32])  # 16 is hidden size / heads
def test_biases_and_head_dim(tmp_path: Path, attention_bias: bool, mlp_bias: bool, head_dim: int) -> None:
    theirs = reference(tmp_path, attention_bias=attention_bias, mlp_bias=mlp_bias, head_dim=head_dim)
    ours = load_llama(tmp_path, torch.float32)
    assert ours.config.head_dim == head_dim
    assert largest_difference(ours, theirs, 1000) <= 1e-5


@torch.no_grad()
def what_bfloat16_explains(exact: torch.nn.Module, ids: torch.Tensor) -> float:
    """The largest change of a logit when every module's output is off by up to a rounding to bfloat16.

    A float32 model with the bfloat16 model's weights runs eight times, each number that a module gives out multiplied
    by 1 + u x, u = 2^-9 the unit roundoff of bfloat16 and x uniform in [-1, 1] (stochastic arithmetic: Vignes 2004).
    That leaves out roundings inside a module, so that the figure is, if anything, too strict.
    """
    random = torch.Generator().manual_seed(3)

    def round_at_random(module: torch.nn.Module, arguments: tuple, output: object) -> object:
        if not isinstance(output, torch.Tensor):
            return output
        return output * (1 + 2**-9 * (2 * torch.rand(output.shape, generator=random) - 1))

    before = exact(ids).logits
    hooks = [module.register_forward_hook(round_at_random) for module in exact.modules()]
    changes = [float((exact(ids).logits - before).abs().max()) for _ in range(8)]
    for hook in hooks:
        hook.remove()
    return max(changes)


def in_bfloat16(folder: Path) -> tuple[torch.nn.Module, torch.nn.Module, float]:
    """Ours and theirs, both in bfloat16, and by how much their logits may differ: each is off by its own roundings."""
    reference(folder, scaling=LLAMA3)
    ours = load_llama(folder, torch.bfloat16)
    theirs, exact = (transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16) for _ in range(2))
    exact.float()
    return ours, theirs, 2 * what_bfloat16_explains(exact, tokens(2000))


def test_bfloat16_logits_equal_within_rounding(tmp_path: Path) -> None:
    ours, theirs, tolerance = in_bfloat16(tmp_path)
    assert largest_difference(ours, theirs, 2000) <= tolerance
    with torch.no_grad():
        ids = tokens(2000)
        cache = ours.new_cache(2, 2000)
        pieces = [ours(piece, cache) for piece in ids.split([700, 1290, *[1] * 10], dim=1)]
        assert (torch.cat(pieces, 1) - theirs(ids).logits).abs().max() <= tolerance


@torch.no_grad()
def test_hidden_states_after_each_layer(tmp_path: Path) -> None:
    theirs = reference(tmp_path, scaling=LLAMA3)
    ours = load_llama(tmp_path, torch.float32)
    seen: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}

    def keep(name: str):
        def hook(layer, arguments, output) -> None:
            seen[name].append(output[0] if isinstance(output, tuple) else output)

        return hook

    for name, model in (("ours", ours), ("theirs", theirs)):
        for layer in (*model.model.layers, model.model.norm):
            layer.register_forward_hook(keep(name))
        model(tokens(1500))
    assert len(seen["ours"]) == len(seen["theirs"]) == 4
    for mine, their in zip(seen["ours"], seen["theirs"]):
        assert mine.std() > 0.1
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal(tmp_path: Path, tied: bool) -> None:
    """Of a mean cross-entropy over 600 tokens, every parameter, relative to the largest entry of its gradient."""
    theirs = reference(tmp_path, tied=tied, scaling=LLAMA3)
    ours = load_llama(tmp_path, torch.float32)
    ids = tokens(300)
    for model in (ours, theirs):
        output = model(ids)
        logits = getattr(output, "logits", output)
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    mine, their = (dict(model.named_parameters()) for model in (ours, theirs))
    assert mine.keys() == their.keys()
    for name, parameter in mine.items():
        expected = their[name].grad
        assert expected.abs().max() > 0
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def _without_groups(q, k, v, mask):
    """Head h looks at key-value head h mod K instead of h // group."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class _NormWithoutWeight(llama_min.model.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / self.weight


class _NormWithoutEpsilon(llama_min.model.RMSNorm):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, 0.0)


class _GELU(llama_min.model.MLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.nn.functional.gelu(self.gate_proj(x)) * self.up_proj(x))


SWITCHES = {
    "the norm's weight": ("RMSNorm", _NormWithoutWeight),
    "the norm's epsilon": ("RMSNorm", _NormWithoutEpsilon),
    "SwiGLU": ("MLP", _GELU),
    "llama3 scaling": (
        "rope_frequencies",
        lambda config: 1 / THETA ** (torch.arange(0, 16, 2, device="cpu") / 16),
    ),
    "rope_theta": ("rope_frequencies", lambda config: rope_frequencies(replace(config, rope_theta=10000.0))),
    "rotary positions": ("apply_rope", lambda x, cos, sin: x),
    "split-half layout": (
        "apply_rope",
        lambda x, cos, sin: torch.stack(
            (x[..., ::2] * cos - x[..., 1::2] * sin, x[..., 1::2] * cos + x[..., ::2] * sin), -1
        ).flatten(-2),
    ),
    "grouped-query attention": ("attend", _without_groups),
    "causality": (
        "attend",
        lambda q, k, v, mask: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    ),
}


@pytest.mark.parametrize("feature", SWITCHES)
def test_each_feature_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    """With one feature switched off the same comparison fails, by far: the parity tests do see it."""
    theirs = reference(tmp_path, kv_heads=2, tied=False, scaling=LLAMA3)
    monkeypatch.setattr(llama_min.model, *SWITCHES[feature])
    assert largest_difference(load_llama(tmp_path, torch.float32), theirs, 2000) > 1e-2


@pytest.mark.parametrize(
    "feature", [name for name in SWITCHES if name != "the norm's epsilon"]
)  # less than a rounding of bfloat16
def test_each_feature_matters_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    _, theirs, tolerance = in_bfloat16(tmp_path)
    monkeypatch.setattr(llama_min.model, *SWITCHES[feature])
    assert largest_difference(load_llama(tmp_path, torch.bfloat16), theirs, 2000) > 2 * tolerance


@pytest.mark.parametrize("which", ["self_attn", "mlp"])
def test_biases_matter(tmp_path: Path, which: str) -> None:
    theirs = reference(tmp_path, attention_bias=True, mlp_bias=True)
    ours = load_llama(tmp_path, torch.float32)
    for name, parameter in ours.named_parameters():
        if which in name and name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    assert largest_difference(ours, theirs, 50) > 1e-2


def test_tying_matters(tmp_path: Path) -> None:
    theirs = reference(tmp_path, tied=True)
    ours = load_llama(tmp_path, torch.float32)
    ours.lm_head.weight = torch.nn.Parameter(ours.lm_head.weight.roll(1, 0))
    assert largest_difference(ours, theirs, 50) > 1e-2


def test_shards_load(tmp_path: Path) -> None:
    theirs = reference(tmp_path / "one", scaling=LLAMA3)
    theirs.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    one, many = (load_llama(tmp_path / name, torch.float32).state_dict() for name in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_what_we_save_transformers_loads(tmp_path: Path, tied: bool, max_shard_bytes: int) -> None:
    theirs = reference(tmp_path / "theirs", tied=tied, scaling=LLAMA3)
    save_llama(load_llama(tmp_path / "theirs", torch.float32), tmp_path / "ours", max_shard_bytes)
    assert (tmp_path / "ours" / "model.safetensors").exists() == (max_shard_bytes > 10**6)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(tokens(200)).logits, theirs(tokens(200)).logits)
    assert LlamaConfig.from_pretrained(tmp_path / "ours").rope_scaling is not None


def test_greedy_story_equals_transformers(real: Path) -> None:
    """200 tokens through our cache and through theirs, from trained weights."""
    folder = real / "stories260k"
    ids = load_tokenizer(folder).encode("Once upon a time", bos=True)
    ours = generate(load_llama(folder, torch.float32), ids, max_new_tokens=200, eos_ids=())
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=200, do_sample=False)
    assert len(ours) == 200
    assert ours == expected[0, len(ids) :].tolist()


def test_penalized_story_equals_transformers(real: Path) -> None:
    folder = real / "stories260k"
    ids = load_tokenizer(folder).encode("Once upon a time", bos=True)
    model = load_llama(folder, torch.float32)
    ours = generate(model, ids, max_new_tokens=100, eos_ids=(), repetition_penalty=1.2)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=100, do_sample=False, repetition_penalty=1.2)
    assert ours == expected[0, len(ids) :].tolist()
    assert ours != generate(model, ids, max_new_tokens=100, eos_ids=())


@pytest.mark.parametrize("settings", [dict(zip(("top_k", "top_p", "min_p"), row)) for row in FILTERS], ids=str)
def test_distributions_equal_transformers(settings: dict[str, float | None]) -> None:
    """The filters that transformers' `generate` puts together for the same settings, over a flat and a peaked vocabulary."""
    names = {
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    chain = [transformers.TemperatureLogitsWarper(0.8)]
    chain += [names[name](value) for name, value in settings.items() if value is not None]
    for spread in (0.3, 3.0):
        logits = torch.randn(1000, generator=torch.Generator().manual_seed(7)) * spread
        expected = logits[None]
        for warper in chain:
            expected = warper(None, expected)
        result = distribution(logits, 0.8, **settings)
        torch.testing.assert_close(result, expected[0].softmax(-1), atol=1e-7, rtol=1e-5)
    assert any(settings.values()) == bool((result == 0).any())
