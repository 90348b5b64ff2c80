"""Prefill and decode of one Llama: ours in float32, ours in int8, and transformers, taking turns.

python -m benchmarks.generation [FOLDER]      # default: the embedded tiny Llama
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from examples.leukemia.pretrain import TINY_LLAMA
from llama_min import Llama, load_llama
from quant_lite import quantize_

PROMPT, NEW, ROUNDS = 128, 32, 15
Run = Callable[[torch.Tensor], tuple[float, float]]


def ours(model: Llama) -> Run:
    def run(prompt: torch.Tensor) -> tuple[float, float]:
        cache = model.new_cache(1, PROMPT + NEW)
        started = time.perf_counter()
        token = model(prompt, cache)[:, -1:].argmax(-1)
        read = time.perf_counter()
        for _ in range(NEW):
            token = model(token, cache)[:, -1:].argmax(-1)
        return read - started, (time.perf_counter() - read) / NEW

    return run


def theirs(model: transformers.PreTrainedModel) -> Run:
    def run(prompt: torch.Tensor) -> tuple[float, float]:
        cache = transformers.DynamicCache(config=model.config)
        started = time.perf_counter()
        token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
        read = time.perf_counter()
        for _ in range(NEW):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        return read - started, (time.perf_counter() - read) / NEW

    return run


@torch.inference_mode()
def main(folder: Path) -> None:
    """Print the medians and each one's ratio to transformers."""
    model = load_llama(folder, torch.float32)
    int8 = copy.deepcopy(model)
    quantize_(int8)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    runs = {"transformers float32": theirs(peer), "llama_min float32": ours(model), "llama_min int8": ours(int8)}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    prompt = torch.randint(0, model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            sample = run(prompt)
            if turn:  # the first turn warms up
                samples[name].append(sample)
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in samples.items()}
    print(f"{folder}: prompt {PROMPT}, {NEW} new tokens, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    base = medians["transformers float32"]
    for name, (prefill, decode) in medians.items():
        speeds = f"prefill {PROMPT / prefill:8.0f} tokens/s ({base[0] / prefill:.2f} x)"
        print(f"{name:22} {speeds}   decode {1 / decode:7.0f} tokens/s ({base[1] / decode:.2f} x)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TINY_LLAMA)
