"""Time and memory to load a folder, as it is and as float32: llama_min and transformers, taking turns, a process each.

python -m benchmarks.loading [--folder FOLDER] [--rounds 5]      # default: the shape of Llama 3.2 1B

Two figures of peak resident size of the process: when loading has returned, and when every weight has been read once
(a mapped file is resident only where it was read). Both hold Python and PyTorch themselves, about 0.2 GB.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import llama_1b


def load(library: str, dtype: torch.dtype, folder: Path) -> None:
    """Load once in this process and print seconds, peak after loading and peak after reading, in GB."""
    if library == "llama_min":
        from llama_min import load_llama

        started = time.perf_counter()
        model: torch.nn.Module = load_llama(folder, dtype)
    else:
        from transformers import LlamaForCausalLM

        started = time.perf_counter()
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    seconds, loaded = time.perf_counter() - started, peak()
    for parameter in model.parameters():
        parameter.detach().view(torch.int16).flatten()[::1024].sum()  # every page of 4 KB, twice
    print(seconds, loaded, peak())


def peak() -> float:
    """The largest resident size of this process so far, in GB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "needs the memory figures of a Linux kernel"
    return int(found[1]) * 1024 / 1e9


def main(folder: Path, rounds: int) -> None:
    """Print medians, the peaks also as multiples of the weights' own size."""
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    print(f"{folder.name}: {stored:.2f} GB of weights on disk, {rounds} rounds")
    for dtype, size in (("bfloat16", stored), ("float32", 2 * stored)):
        samples: dict[str, list[list[float]]] = {"transformers": [], "llama_min": []}
        for _ in range(rounds):
            for library, rows in samples.items():
                line = [sys.executable, "-m", "benchmarks.loading", "--child", library, dtype, "--folder", str(folder)]
                printed = subprocess.run(line, check=True, capture_output=True, text=True).stdout
                rows.append([float(word) for word in printed.split()])
        for library, rows in samples.items():
            seconds, loaded, read = (statistics.median(column) for column in zip(*rows))
            peaks = f"peak {loaded:5.2f} GB loaded, {read:5.2f} GB read ({read / size:.2f} x the weights)"
            print(f"{dtype:8} {library:12} {seconds:6.2f} s   {peaks}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    where = options.folder or llama_1b.folder()
    if options.child:
        load(options.child[0], getattr(torch, options.child[1]), where)
    else:
        main(where, options.rounds)
