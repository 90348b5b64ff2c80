"""Llama 3.1 in one file, to be read from top to bottom (Dubey et al. 2024, "The Llama 3 Herd of Models").

Shapes: B batch, T time (new tokens), S time with what the cache holds, D model width, H heads, K key-value heads,
C head width, F feed-forward width, V vocabulary.

Parameters bear the names of a Hugging Face checkpoint, so that loading is `load_state_dict(strict=True)`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_min.config import LlamaConfig

__all__ = ["KVCache", "Llama", "apply_rope", "attend", "attend_reference", "rope_frequencies"]


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, the mean over D, in float32 (Zhang & Sennrich 2019, equation 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """The angle in radians by which each pair of numbers turns per position: theta^(-2i/C), (C/2,).

    Su et al. 2021 (RoFormer), equation 15; with `rope_scaling`, stretched as Llama 3.1 does: a pair whose wavelength
    2 pi / f is short keeps its frequency f, a long one gets f / factor, and between them a blend of the two.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent  # (C/2,)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    # turns: how often a pair turns within the context on which the model was first trained
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: short wavelength, unchanged; 0: long, stretched
    return keep * frequency + (1 - keep) * frequency / scaling.factor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + C/2]) by its angle: x (B, heads, T, C), cos and sin (B or 1, 1, T, C).

    Hugging Face checkpoints store the two numbers of a pair half a head apart ("split-half"), not side by side:

        split-half    x0 x1 x2 x3 | y0 y1 y2 y3        pair i is (x_i, y_i)
        interleaved   x0 y0 x1 y1 x2 y2 x3 y3
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C) + mask) v, written out (Vaswani et al. 2017, equation 1).

    Grouped-query attention (Ainslie et al. 2023): the H/K heads of a group share one key-value head.

    Args:
        q: (B, H, T, C); k, v: (B, K, S, C); mask: (T, S) or (B, 1, T, S), true where a query may look.

    Returns:
        (B, H, T, C).
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, H, S, C)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores.float(), dim=-1).to(q.dtype) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attend_reference` through PyTorch's fused kernel, which never stores the (T, S) scores.

    `mask=None` stands for the usual causal mask over T = S, or for one new token that may look at everything.
    """
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)


class KVCache:
    """Keys and values of the tokens seen so far, allocated once: two tensors (layers, B, K, max_length, C)."""

    def __init__(self, config: LlamaConfig, batch: int, max_length: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, max_length, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.max_length = max_length
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this layer's new k and v (B, K, T, C) and return all of them so far, (B, K, S, C)."""
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def repeat(self, batch: int) -> KVCache:
        """A cache of `batch` rows that all go on from this one-row cache: one prompt, several continuations."""
        copy = KVCache.__new__(KVCache)
        copy.k, copy.v = self.k.repeat(1, batch, 1, 1, 1), self.v.repeat(1, batch, 1, 1, 1)
        copy.max_length, copy.length = self.max_length, self.length
        return copy


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.layer, self.head_dim = layer, C
        self.q_proj = nn.Linear(D, H * C, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * C, D, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, C)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, C)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, C)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, C)
        y = attend(q, k, v, mask)  # (B, H, T, C)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, equation 6)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        D, F_, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(D, F_, bias=bias)
        self.up_proj = nn.Linear(D, F_, bias=bias)
        self.down_proj = nn.Linear(F_, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything below the head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A Llama language model: `model(tokens)` gives the logits of each next token.

    Its parameters are what `nn.Linear` and `nn.Embedding` draw; `load_llama` fills one with a checkpoint's.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.inv_freq = rope_frequencies(config)  # no buffer: model.to(bfloat16) would round the angles

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each position.

        Args:
            tokens: token ids (B, T). Padding on the right needs no mask: attention never looks ahead.
            cache: where the keys and values of earlier calls lie; this call's are added to it.

        Returns:
            (B, T, V) in the dtype of the weights.

        Raises:
            ValueError: `tokens` is not (B, T), or runs past `max_position_embeddings` or past the cache.
        """
        if tokens.dim() != 2:
            raise ValueError(f"tokens must have the shape (B, T), got {tuple(tokens.shape)}: add a batch dimension")
        T = tokens.shape[1]
        start = 0 if cache is None else cache.length
        limit = self.config.max_position_embeddings if cache is None else cache.max_length
        if start + T > limit:
            raise ValueError(f"{start} + {T} tokens do not fit the {limit} positions: shorten the prompt")

        x = self.model.embed_tokens(tokens)  # (B, T, D)
        cos, sin = self._rotation(start, T, x)  # (1, 1, T, C)
        mask = None
        if start > 0 and T > 1:  # query i may look at the `start` cached keys and at the new ones up to itself
            mask = torch.ones(T, start + T, dtype=torch.bool, device=tokens.device).tril(start)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask, cache)  # (B, T, D)
        if cache is not None:
            cache.length += T
        return self.lm_head(self.model.norm(x))  # (B, T, V)

    def _rotation(self, start: int, T: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of position times frequency, both halves alike: (1, 1, T, C), computed in float32."""
        positions = torch.arange(start, start + T, device=x.device, dtype=torch.float32)
        angles = positions[:, None] * self.inv_freq.to(x.device)[None, :]  # (T, C/2)
        angles = torch.cat((angles, angles), dim=-1)[None, None]  # (1, 1, T, C)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    def new_cache(self, batch: int, max_length: int) -> KVCache:
        """An empty cache for `batch` rows of at most `max_length` tokens, in the dtype of the embedding.

        Raises:
            ValueError: `max_length` is past the model's context.
        """
        if max_length > self.config.max_position_embeddings:
            raise ValueError(
                f"a cache of {max_length} tokens is past the model's context of "
                f"{self.config.max_position_embeddings}: ask for fewer new tokens or shorten the prompt"
            )
        weight = self.model.embed_tokens.weight
        return KVCache(self.config, batch, max_length, weight.dtype, weight.device)
