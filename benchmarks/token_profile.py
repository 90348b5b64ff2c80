"""Where the time of one decoded token goes: the weight products alone beside the whole token, then part by part.

python -m benchmarks.token_profile [--folder FOLDER] [--dtype bfloat16] [--context 128] [--new 32] [--stacked]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import llama_min.model
from benchmarks import llama_1b
from llama_min import KVCache, Llama, load_llama, stack_products

PARTS = {
    "q_proj": "products: q, k, v, o",
    "qkv_proj": "products: q, k, v, o",
    "k_proj": "products: q, k, v, o",
    "v_proj": "products: q, k, v, o",
    "o_proj": "products: q, k, v, o",
    "gate_proj": "products: gate, up, down",
    "gate_up_proj": "products: gate, up, down",
    "up_proj": "products: gate, up, down",
    "down_proj": "products: gate, up, down",
    "lm_head": "products: head",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
    "norm": "norms",
    "embed_tokens": "embedding",
}


def timed(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    """The function, its time added to `spent[part]`."""

    def call(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        spent[part] += time.perf_counter() - started
        return result

    return call


def beside_its_products(model: Llama, token: torch.Tensor, cache: KVCache, new: int) -> tuple[float, float]:
    """Median seconds of a token and of its weight products alone, in turns; the clocks of the table would slow both."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    rows = [torch.randn(1, 1, linear.in_features, dtype=linear.weight.dtype) for linear in linears]
    whole, products = [], []
    for _ in range(new):
        started = time.perf_counter()
        model(token, cache)
        between = time.perf_counter()
        for linear, row in zip(linears, rows):
            linear(row)
        whole.append(between - started)
        products.append(time.perf_counter() - between)
    return statistics.median(whole), statistics.median(products)


@torch.inference_mode()
def main(folder: Path, dtype: torch.dtype, context: int, new: int, stacked: bool) -> None:
    """Print a table: part, milliseconds, share of the token; medians over the new tokens."""
    model = load_llama(folder, dtype)
    if stacked:
        stack_products(model)
    cache = model.new_cache(1, context + 2 * new + 3)
    token = model(torch.randint(0, model.config.vocab_size, (1, context)), cache, last_only=True).argmax(-1)
    shown = f"{folder.name} in {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    print(f"{shown}: a token after {context} others")
    whole, products = beside_its_products(model, token, cache, new)
    print(
        f"{1000 * whole:.2f} ms, its weight products alone {1000 * products:.2f} ms: {1 - products / whole:.1%} is else"
    )

    spent: dict[str, float] = defaultdict(float)
    for name, module in model.named_modules():
        part = PARTS.get(name.rpartition(".")[2])
        if part is not None:
            vars(module)["forward"] = timed(module.forward, part, spent)  # over the class's own
    for name, part in (("attend", "attention"), ("apply_rope", "rotary positions")):
        setattr(llama_min.model, name, timed(getattr(llama_min.model, name), part, spent))
    rows = []
    for number in range(new + 3):
        spent.clear()
        started = time.perf_counter()
        token = model(token, cache).float().argmax(-1)  # as `generate` does
        total = time.perf_counter() - started
        if number >= 3:
            rows.append({"a token": total, **spent, "all else": total - sum(spent.values())})
    medians = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
    whole = medians.pop("a token")
    for part, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"{part:26} {1000 * seconds:8.2f} ms {seconds / whole:7.1%}")
    print(f"{'a token, clocks included':26} {1000 * whole:8.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--stacked", action="store_true", help="q, k, v as one product, and gate, up")
    options = parser.parse_args()
    where = options.folder or llama_1b.folder()
    main(where, getattr(torch, options.dtype), options.context, options.new, options.stacked)
