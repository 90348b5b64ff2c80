"""Prefill and decode of one folder by transformers and llama_min, its products single and stacked, in turns a token each.

python -m benchmarks.generation [--folder FOLDER] [--dtype bfloat16] [--prompt 128] [--new 32] [--rounds 5]

Default: the shape of Llama 3.2 1B. Prefill is the first token of a prompt, with the logits of its last position alone
on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from benchmarks import llama_1b
from llama_min import Llama, load_llama, stack_products

Step = Callable[[torch.Tensor], torch.Tensor]  # tokens (1, T) -> the next one (1, 1)


def ours(model: Llama, length: int) -> Step:
    """A new text of at most `length` tokens."""
    cache = model.new_cache(1, length)
    return lambda tokens: model(tokens, cache, last_only=True)[:, -1:].argmax(-1)


def theirs(model: transformers.PreTrainedModel, length: int) -> Step:
    """The same with transformers' default cache."""
    cache = transformers.DynamicCache(config=model.config)
    return lambda tokens: model(tokens, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)


@torch.inference_mode()
def main(folder: Path, dtype: torch.dtype, prompt: int, new: int, rounds: int) -> None:
    """Print both sides' medians and how many times as fast as transformers ours is."""
    model, stacked = load_llama(folder, dtype), load_llama(folder, dtype)
    stack_products(stacked)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    seconds: dict[tuple[str, str], list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    for turn in range(rounds + 1):  # turn 0 is short and warms up
        length = prompt if turn else 16
        tokens = torch.randint(0, model.config.vocab_size, (1, length), generator=generator)
        sides = {
            "transformers": theirs(peer, prompt + new),
            "llama_min": ours(model, prompt + new),
            "llama_min stacked": ours(stacked, prompt + new),
        }
        read = dict.fromkeys(sides, tokens)
        for number in range(new + 1 if turn else 3):
            names = list(sides)
            for name in names[(turn + number) % 3 :] + names[: (turn + number) % 3]:  # each is first as often
                started = time.perf_counter()
                read[name] = sides[name](read[name])
                if turn:
                    part = "decode" if number else "prefill"
                    seconds.setdefault((part, name), []).append(time.perf_counter() - started)
    shown = f"{folder.name} in {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, {rounds} rounds"
    print(f"{shown}: prompt {prompt}, {new} new tokens")
    for part, count in (("prefill", prompt), ("decode", 1)):
        medians = {name: statistics.median(seconds[part, name]) for name in names}
        for name, median in medians.items():
            speed = f"{1000 * median:9.1f} ms   {count / median:8.2f} tokens/s"
            print(f"{part:8} {name:17} {speed}   {medians['transformers'] / median:.3f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    where = options.folder or llama_1b.folder()
    main(where, getattr(torch, options.dtype), options.prompt, options.new, options.rounds)
