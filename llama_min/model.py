"""Llama 3.1 in one file, to be read from top to bottom (Dubey et al. 2024, "The Llama 3 Herd of Models").

Shapes: B batch, T time (new tokens), S time with what the cache holds, D model width, H heads, K key-value heads,
C head width, F feed-forward width, V vocabulary.

Parameters bear the names of a Hugging Face checkpoint, so that loading is `load_state_dict(strict=True)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_min.config import LlamaConfig

__all__ = ["KVCache", "Llama", "SwiGLU", "apply_rope", "attend", "attend_reference", "rope_frequencies"]


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, the mean over D, in float32 (Zhang & Sennrich 2019, equation 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x32 = x.float()
        x32 = x32 * torch.rsqrt((x32 * x32).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """The angle in radians by which each pair of numbers turns per position: f_i = theta^(-2i/C), (C/2,).

    Su et al. 2021 (RoFormer), equation 15. With `rope_scaling`, stretched as in Llama 3.1 (Dubey et al. 2024; the
    formula is `apply_scaling` in the code published with it): over the L tokens of the first training context a pair
    turns L f / (2 pi) times; pairs that turn often keep f, pairs that seldom turn get f / factor, those between a blend:

        keep = clamp((turns - low) / (high - low), 0, 1)        f' = keep f + (1 - keep) f / factor
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent  # (C/2,)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # (C/2,)
    return keep * frequency + (1 - keep) * frequency / scaling.factor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + C/2]) by its angle: x (B, heads, T, C), cos and sin (B or 1, 1, T, C/2).

    Hugging Face checkpoints store the two numbers of a pair half a head apart ("split-half"), not side by side:

        split-half    x0 x1 x2 x3 | y0 y1 y2 y3        pair i is (x_i, y_i)
        interleaved   x0 y0 x1 y1 x2 y2 x3 y3
    """
    first, second = x.chunk(2, dim=-1)  # (B, heads, T, C/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)  # (B, heads, T, C)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C) + mask) v, written out (Vaswani et al. 2017, equation 1).

    Grouped-query attention (Ainslie et al. 2023): the H/K heads of a group share one key-value head.

    Args:
        q: (B, H, T, C); k, v: (B, K, S, C).
        mask: (T, S) or (B, 1, T, S), added to the scores: 0 where a query may look, hugely negative where not.

    Returns:
        (B, H, T, C).
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, H, S, C)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + mask  # (B, H, T, S)
    return torch.softmax(scores.float(), dim=-1).to(q.dtype) @ v  # (B, H, T, C)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attend_reference` through PyTorch's fused kernel, which never stores the (T, S) scores.

    `mask=None` stands for the usual causal mask over T = S, or for one new token that may look at everything. The H/K
    heads of one new token that share a key-value head are given to the kernel as H/K queries, so that it reads each
    key and value once and not H/K times.
    """
    if q.shape[2] == 1:
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # (B, K, H/K, C)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(q.shape)  # (B, H, 1, C)
    return F.scaled_dot_product_attention(  # (B, H, T, C)
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )


def attend_packed(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention among texts that lie end to end, each seeing itself alone: no score across texts is computed.

    Args:
        q: (B, H, T, C); k, v: (B, K, T, C); the rows are read one after the other.
        lengths: of the texts, B T in all; a text ends with its row.

    Returns:
        (B, H, T, C).
    """
    B, H, T, C = q.shape
    texts = zip(*(x.transpose(0, 1).reshape(1, -1, B * T, C).split(lengths, dim=2) for x in (q, k, v)))
    y = torch.cat([attend(q, k, v, None) for q, k, v in texts], dim=2)  # (1, H, B T, C)
    return y.view(H, B, T, C).transpose(0, 1)


def text_lengths(position_ids: Tensor) -> list[int]:
    """How long the texts are that lie end to end in the rows of (B, T): one begins where positions do not go on by 1."""
    goes_on = torch.zeros_like(position_ids, dtype=torch.bool)
    goes_on[:, 1:] = position_ids[:, 1:] == position_ids[:, :-1] + 1
    starts = (~goes_on).flatten().nonzero().flatten().tolist()
    return [stop - start for start, stop in zip(starts, [*starts[1:], position_ids.numel()])]


class KVCache:
    """Keys and values of the tokens seen so far, allocated once: two tensors (layers, B, K, max_length, C).

    Prompts of unequal length are padded on the left, so that every row writes its next token in the same column:

        padding 2    .  .  a0 b1 c2 | d3        each token with its position; padding is never looked at
        padding 0    e0 f1 g2 h3 i4 | j5

    Raises:
        ValueError: `padding` is not one number for each row, from 0 to below `max_length`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        padding: Sequence[int] | None = None,
    ) -> None:
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, max_length, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.max_length = max_length
        self.length = 0
        self.padding: Tensor | None = None  # (B,)
        self.padding_mask: Tensor | None = None  # (B, 1, 1, max_length), added to the scores
        if padding is not None and any(padding):
            if len(padding) != batch or not all(0 <= count < max_length for count in padding):
                raise ValueError(f"padding={list(padding)} must be {batch} numbers from 0 to below {max_length}")
            self.padding = torch.tensor(padding, device=device)
            padded = torch.arange(max_length, device=device) < self.padding[:, None]  # (B, max_length)
            # the lowest number and not -inf: a padded query sees nothing else, and the softmax of only -inf is NaN
            self.padding_mask = (padded.to(dtype) * torch.finfo(dtype).min)[:, None, None]  # (B, 1, 1, max_length)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this layer's new k and v (B, K, T, C) and return all of them so far, (B, K, S, C)."""
        keys, values, T = self.k[layer], self.v[layer], k.shape[2]  # (B, K, max_length, C)
        keys.narrow(2, self.length, T).copy_(k)
        values.narrow(2, self.length, T).copy_(v)
        return keys.narrow(2, 0, self.length + T), values.narrow(2, 0, self.length + T)  # (B, K, S, C) each

    def positions(self, T: int) -> Tensor:
        """The positions of the next T tokens in their own texts, (1, T), or (B, T) with padding (at 0 itself)."""
        columns = torch.arange(self.length, self.length + T, device=self.k.device)[None]  # (1, T)
        return columns if self.padding is None else (columns - self.padding[:, None]).clamp(min=0)

    def mask(self, T: int) -> Tensor | None:
        """What to add to the scores of the next T tokens, (T, S) or (B, 1, T, S); None as in `attend`."""
        S = self.length + T
        padding = None if self.padding_mask is None else self.padding_mask[..., :S]  # (B, 1, 1, S), a view
        if T == 1 or (self.length == 0 and padding is None):
            return padding
        lowest = torch.finfo(self.k.dtype).min
        causal = torch.full((T, S), lowest, dtype=self.k.dtype, device=self.k.device).triu(self.length + 1)  # (T, S)
        return causal if padding is None else torch.minimum(causal, padding)  # (B, 1, T, S)

    def repeat(self, batch: int) -> KVCache:
        """A cache of `batch` rows that all go on from this one-row cache: one prompt, several continuations."""
        copied = copy(self)
        copied.k, copied.v = self.k.repeat(1, batch, 1, 1, 1), self.v.repeat(1, batch, 1, 1, 1)  # (layers, batch, ...)
        return copied


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.layer, self.heads, self.kv_heads, self.head_dim = layer, H, K, C
        self.q_proj = nn.Linear(D, H * C, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * C, D, bias=config.attention_bias)
        self.qkv_proj: nn.Module | None = None  # takes the place of the three after `stack_products`

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        lengths: list[int] | None,
        last_only: bool = False,
    ) -> Tensor:
        B, T, _ = x.shape
        H, K, C = self.heads, self.kv_heads, self.head_dim
        if self.qkv_proj is None:
            q = apply_rope(self.q_proj(x).view(B, T, H, C).transpose(1, 2), cos, sin)  # (B, H, T, C)
            k = apply_rope(self.k_proj(x).view(B, T, K, C).transpose(1, 2), cos, sin)  # (B, K, T, C)
            v = self.v_proj(x).view(B, T, K, C).transpose(1, 2)  # (B, K, T, C)
        else:
            qkv = self.qkv_proj(x).view(B, T, H + 2 * K, C).transpose(1, 2)  # (B, H + 2K, T, C)
            q, k = apply_rope(qkv[:, : H + K], cos, sin).split((H, K), dim=1)  # (B, H, T, C), (B, K, T, C)
            v = qkv[:, H + K :]  # (B, K, T, C)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, C)
        if last_only:  # T = 1 from here on
            q, mask, T = q[:, :, -1:], None if mask is None else mask[..., -1:, :], 1
        y = attend(q, k, v, mask) if lengths is None else attend_packed(q, k, v, lengths)  # (B, H, T, C)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, H * C))  # (B, T, D)


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, for whose gradient gate and up alone are kept.

    Autograd would also keep silu(gate): a fifth of what a block keeps. Computing it again costs next to nothing.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # (B, T, F), (B, T, F) -> (B, T, F)
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)  # in place: (B, T, F) is not allocated twice

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """grad up silu'(gate) and grad silu(gate), (B, T, F) each."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, equation 6)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        D, F_, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(D, F_, bias=bias)
        self.up_proj = nn.Linear(D, F_, bias=bias)
        self.down_proj = nn.Linear(F_, D, bias=bias)
        self.gate_up_proj: nn.Module | None = None  # takes the place of the two after `stack_products`

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)  # (B, T, F) each
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # (B, T, F) each
        return self.down_proj(SwiGLU.apply(gate, up))  # (B, T, D)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        lengths: list[int] | None,
        last_only: bool = False,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos, sin, mask, cache, lengths, last_only)
        x = (x[:, -1:] if last_only else x) + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm: everything below the head."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        table = torch.empty(config.vocab_size, config.hidden_size)
        if not table.is_meta:  # there is nothing to draw there, and PyTorch would import its compiler to do it
            table.normal_()
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.max_length = config.max_position_embeddings
        self.inv_freq = rope_frequencies(config)  # no buffer: model.to(bfloat16) would round the angles

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        last_only: bool = False,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """What the head reads, (B, T, D), from token ids (B, T); arguments and errors as of `Llama.forward`."""
        if tokens.dim() != 2:
            raise ValueError(f"tokens must have the shape (B, T), got {tuple(tokens.shape)}: add a batch dimension")
        start, limit = (0, self.max_length) if cache is None else (cache.length, cache.max_length)
        lengths, T = None, tokens.shape[1]
        if position_ids is not None:
            if cache is not None or last_only or position_ids.shape != tokens.shape:
                shapes = f"{tuple(position_ids.shape)} for tokens {tuple(tokens.shape)}"
                raise ValueError(
                    f"position_ids must have the shape of tokens and go without a cache and last_only, got {shapes}"
                )
            lengths = text_lengths(position_ids)
        longest = T if lengths is None else max(lengths, default=0)
        if start + longest > limit:
            raise ValueError(f"{start} + {longest} tokens do not fit the {limit} positions: shorten the prompt")

        x = self.embed_tokens(tokens)  # (B, T, D)
        positions = position_ids
        if positions is None:
            positions = torch.arange(T, device=x.device)[None] if cache is None else cache.positions(T)  # (B or 1, T)
        angles = positions[:, None, :, None].float() * self.inv_freq.to(x.device)  # (B or 1, 1, T, C/2)
        # the cosine of a float32 angle: bfloat16 cannot tell position 256 from 257
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        mask = None if cache is None else cache.mask(T)
        *before, last = self.layers
        for layer in before:
            x = layer(x, cos, sin, mask, cache, lengths)  # (B, T, D)
        # nothing reads what the last layer makes of other positions than the last, but for their keys and values
        x = last(x, cos, sin, mask, cache, lengths, last_only)  # (B, T, D), or (B, 1, D) with last_only
        if cache is not None:
            cache.length += T
        return self.norm(x)  # (B, T, D)


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

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        last_only: bool = False,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each position.

        Args:
            tokens: token ids (B, T). Padding on the right needs no mask: attention never looks ahead. Padding on the
                left needs a cache that knows of it.
            cache: where the keys and values of earlier calls lie; this call's are added to it.
            last_only: compute the logits of the last position alone, all that generation needs, and of the last layer
                only what they depend on.
            position_ids: (B, T), for rows in which several texts lie end to end: where the positions start again, a new
                text begins, which sees nothing of those before it.

        Returns:
            (B, T, V), or (B, 1, V) with `last_only`, in the dtype of the weights.

        Raises:
            ValueError: `tokens` is not (B, T), or runs past `max_position_embeddings` or past the cache; `position_ids`
                has another shape, or comes with a cache or with `last_only`.
        """
        return self.lm_head(self.model(tokens, cache, last_only, position_ids))  # (B, T, V) or (B, 1, V)

    def new_cache(self, batch: int, max_length: int, padding: Sequence[int] | None = None) -> KVCache:
        """An empty cache for `batch` rows of at most `max_length` tokens, in the dtype of the weights.

        Args:
            padding: how many tokens of padding each row's prompt has on its left.

        Raises:
            ValueError: `max_length` is past the model's context, or `padding` does not fit.
        """
        if max_length > self.config.max_position_embeddings:
            raise ValueError(
                f"a cache of {max_length} tokens is past the model's context of "
                f"{self.config.max_position_embeddings}: ask for fewer new tokens or shorten the prompt"
            )
        weight = self.model.norm.weight
        return KVCache(self.config, batch, max_length, weight.dtype, weight.device, padding)

    def get_output_embeddings(self) -> nn.Module:
        """The head, by the name under which libraries of this field ask a model for it."""
        return self.lm_head
