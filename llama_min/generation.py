"""Write text token by token: greedy, or sampled with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llama_min.model import Llama

__all__ = ["generate", "next_token", "stream"]


def generate(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
) -> list[int]:
    """The tokens that `stream` yields, as a list: what follows `ids`, an end token left out."""
    return list(stream(model, ids, max_new_tokens, temperature, top_k, top_p, seed, eos_ids))


def stream(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
) -> Iterator[int]:
    """Yield new tokens one by one, until an end token or `max_new_tokens`.

    Args:
        model: a `Llama`, with adapters or quantized layers or without.
        ids: the prompt, at least one token.
        max_new_tokens: how many at the most.
        temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
        top_k: sample among the k likeliest only.
        top_p: sample among the fewest tokens whose probabilities sum to p (Holtzman et al. 2019).
        seed: of the sampling; the same seed gives the same text.
        eos_ids: where to stop; `None` takes the model's own.

    Raises:
        ValueError: an argument is out of range, or prompt and new tokens do not fit the context; raised at once,
            before the first token is asked for.
    """
    if not ids or max_new_tokens < 0:
        raise ValueError(f"{len(ids)} prompt tokens and max_new_tokens={max_new_tokens}: give >= 1 and >= 0")
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: needed are temperature >= 0, top_k >= 1, "
            "0 < top_p <= 1"
        )
    cache = model.new_cache(1, len(ids) + max_new_tokens)
    ends = set(model.config.eos_token_ids if eos_ids is None else eos_ids)
    device = cache.k.device
    generator = torch.Generator(device).manual_seed(seed)

    def tokens() -> Iterator[int]:
        step = torch.tensor([list(ids)], device=device)  # (1, T): the prompt first, then one token at a time
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                logits = model(step, cache)[0, -1].float()  # (V,)
                token = next_token(logits, temperature, top_k, top_p, generator)
            if token in ends:
                return
            yield token
            step = torch.tensor([[token]], device=device)

    return tokens()


def next_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """Choose a token by its logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    values, order = (logits / temperature).sort(descending=True)
    probabilities = values.softmax(-1)
    if top_k is not None:
        probabilities[top_k:] = 0
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # mass of the likelier tokens: 0 for the likeliest
        probabilities[before >= top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
