"""Adapters of lora_lite and peft on one transformers model, taking turns: add and remove, a forward, a training step.

python -m benchmarks.lora [--folder FOLDER] [--dtype bfloat16] [--batch 2] [--length 256] [--rounds 5]

Default: the shape of Llama 3.2 1B, rank 8 on q, k, v, o. Resident size is that of the process, base included.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from benchmarks import llama_1b
from lora_lite import LoRAConfig, add_lora, lora_parameters, remove_lora

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def resident() -> float:
    """The resident size of this process now, in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "needs the memory figures of a Linux kernel"
    return int(found[1]) * 1024 / 1e6


def by_peft(model: torch.nn.Module) -> torch.nn.Module:
    """Adapters of peft in place of the model's layers."""
    return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS)))


def add_and_remove(model: torch.nn.Module, rounds: int) -> None:
    """Seconds and megabytes to add adapters and to take them away, on the same model in turns."""
    places = [p.data_ptr() for p in model.parameters()]
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for library in ("peft", "lora_lite"):
            before, started = resident(), time.perf_counter()
            adapted = by_peft(model) if library == "peft" else add_lora(model, LoRAConfig(rank=8, targets=TARGETS))
            samples.setdefault((library, "add"), []).append(time.perf_counter() - started)
            samples.setdefault((library, "MB"), []).append(resident() - before)
            started = time.perf_counter()
            _ = adapted.unload() if library == "peft" else remove_lora(model)
            samples.setdefault((library, "remove"), []).append(time.perf_counter() - started)
            del adapted
            assert [p.data_ptr() for p in model.parameters()] == places, "the base was copied"
    for library in ("peft", "lora_lite"):
        add, size, remove = (statistics.median(samples[library, part]) for part in ("add", "MB", "remove"))
        print(f"add {1000 * add:7.1f} ms, {size:5.1f} MB   remove {1000 * remove:7.1f} ms   {library}")


def steps(models: dict[str, torch.nn.Module], batch: int, length: int, rounds: int) -> None:
    """A forward without gradients, a forward and backward with the optimizer's step, by both in turns."""
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]) for name, model in models.items()
    }

    def forward(name: str, tokens: torch.Tensor) -> None:
        with torch.no_grad():
            models[name](tokens)

    def train(name: str, tokens: torch.Tensor) -> None:
        models[name](tokens, labels=tokens).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    generator = torch.Generator().manual_seed(0)
    parts: dict[str, Callable[[str, torch.Tensor], None]] = {"forward": forward, "training step": train}
    for part, run in parts.items():
        samples: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(rounds + 1):  # turn 0 warms up
            tokens = torch.randint(0, 100_000, (batch, length), generator=generator)
            for name in sorted(models, reverse=bool(turn % 2)):
                started = time.perf_counter()
                run(name, tokens)
                if turn:
                    samples[name].append(time.perf_counter() - started)
        for name, seconds in samples.items():
            median = statistics.median(seconds)
            ratio = statistics.median(samples["peft"]) / median
            print(f"{part:14} {1000 * median:9.1f} ms {batch * length / median:8.1f} tokens/s  {ratio:.3f} x  {name}")


def main(folder: Path, dtype: torch.dtype, batch: int, length: int, rounds: int) -> None:
    """Print medians, and how many times as fast as peft lora_lite is."""

    def load() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()

    print(f"{folder.name} in {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, {rounds} rounds")
    base = load()
    add_and_remove(base, rounds)
    add_lora(base, LoRAConfig(rank=8, targets=TARGETS))
    models = {"peft": by_peft(load()), "lora_lite": base}
    ours = sum(p.numel() for p in lora_parameters(base))
    theirs = sum(p.numel() for p in models["peft"].parameters() if p.requires_grad)
    print(f"trained parameters: {ours:,} of lora_lite, {theirs:,} of peft")
    steps(models, batch, length, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    where = options.folder or llama_1b.folder()
    main(where, getattr(torch, options.dtype), options.batch, options.length, options.rounds)
