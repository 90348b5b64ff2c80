"""Keys and values of the tokens seen so far in int8, a scale for each token and head.

Shapes: B batch, K key-value heads, T new tokens, S all tokens, C head width.
"""

from __future__ import annotations

from copy import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from quant_lite.quantize import PerToken, QuantizedTensor, absmax_quantize

__all__ = ["Int8KVCache", "quantize_cache_"]


def quantize_cache_(model: nn.Module) -> None:
    """Let `model.new_cache` give caches in int8 from now on: a quarter of float32's memory, and half of bfloat16's.

    Args:
        model: has `new_cache(batch, max_length, padding=None)`, as `llama_min.Llama` does. Its caches have `k` and `v`
            (layers, B, K, max_length, C), `length`, `append(layer, k, v)` and `repeat(batch)`.

    Raises:
        TypeError: it has no `new_cache`.
    """
    if not hasattr(type(model), "new_cache"):
        raise TypeError(f"{type(model).__name__} has no new_cache: this is for models that make their cache by it")
    model.__dict__["new_cache"] = MethodType(_new_cache, model)


def _new_cache(model: nn.Module, batch: int, max_length: int, padding: Any = None) -> Int8KVCache:
    kind: Any = type(model)
    return Int8KVCache(kind.new_cache(model, batch, max_length, padding))


class Int8KVCache:
    """A cache whose keys and values are int8, by absmax, with one float32 scale for the C numbers of a token and head.

    Each is off by at most half a step of its own head (`error_bound`). What attention reads is dequantized layer by
    layer; all else is as in the float cache that this one stands for.

    Args:
        cache: a new one, empty; its own keys and values are given up.
    """

    def __init__(self, cache: Any) -> None:
        shape, device = cache.k.shape, cache.k.device
        self.cache, self.dtype = cache, cache.k.dtype
        cache.k = cache.v = cache.k.new_empty(0)  # keeps dtype and device, which the rest of the cache asks for
        self.values = torch.zeros(2, *shape, dtype=torch.int8, device=device)  # keys, values
        self.scales = torch.ones(2, *shape[:-1], 1, device=device)

    def __getattr__(self, name: str) -> Any:
        if name == "cache":  # before there is one, as when copied
            raise AttributeError(name)
        return getattr(self.cache, name)

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        return int(self.cache.length)

    @length.setter
    def length(self, length: int) -> None:
        self.cache.length = length

    @property
    def nbytes(self) -> int:
        """Of all keys, values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this layer's new k and v (B, K, T, C) and return all of them so far, (B, K, S, C)."""
        new, end = slice(self.length, self.length + k.shape[2]), self.length + k.shape[2]
        read = []
        for part, x in enumerate((k, v)):
            q = absmax_quantize(x, PerToken())
            self.values[part, layer, :, :, new], self.scales[part, layer, :, :, new] = q.values, q.scale
            values, scales = self.values[part, layer, :, :, :end], self.scales[part, layer, :, :, :end]
            zero = torch.zeros(1, dtype=torch.int8, device=x.device)
            read.append(QuantizedTensor(values, scales, zero, self.dtype).dequantize())
        return read[0], read[1]

    def repeat(self, batch: int) -> Int8KVCache:
        """A cache of `batch` rows that all go on from this one-row cache: one prompt, several continuations."""
        copied = copy(self)
        copied.cache = copy(self.cache)
        copied.values = self.values.repeat(1, 1, batch, 1, 1, 1)  # (2, layers, batch, K, max_length, C)
        copied.scales = self.scales.repeat(1, 1, batch, 1, 1, 1)
        return copied
