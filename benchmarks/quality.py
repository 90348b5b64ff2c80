"""Bits a weight against perplexity: every scheme on a trained model and held-out text, with LQER's correction beside some.

python -m benchmarks.quality --folder FOLDER [--text FILE] [--calibration FILE] [--picture FILE.png]

The folder is a trained Llama with its tokenizer. Each line of a text is a row; the default was written for this purpose,
for models that tell stories. What calibrates is the first half of the calibration text's lines, or of the text's own, and
what is measured is the second half of the text, so that no scheme has seen it.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_min import Llama, load_llama, load_tokenizer
from lora_lite import LoRAConfig, add_lora, correct_quantization
from quant_lite import PerChannel, PerGroup, PerTensor, QuantConfig, quantize_, quantize_cache_

STORIES = Path(__file__).with_name("stories.txt")
CHANNEL, GROUP = PerChannel(0), PerGroup(32)
SCHEMES = {
    "int8 absmax, tensor": QuantConfig("absmax", PerTensor()),
    "int8 absmax, channel": QuantConfig("absmax", CHANNEL),
    "int8 absmax, group 32": QuantConfig("absmax", GROUP),
    "int8 zero-point, tensor": QuantConfig("zeropoint", PerTensor()),
    "int8 zero-point, channel": QuantConfig("zeropoint", CHANNEL),
    "int8 zero-point, group 32": QuantConfig("zeropoint", GROUP),
    "int8 GPTQ, channel": QuantConfig("absmax", CHANNEL, gptq=True),
    "W8A8, dynamic, tensor": QuantConfig("absmax", PerTensor(), activations="int8"),
    "W8A8, dynamic": QuantConfig("absmax", CHANNEL, activations="int8"),
    "W8A8, dynamic, group 32": QuantConfig("absmax", GROUP, activations="int8"),
    "W8A8, dynamic, -128 to 127": QuantConfig("absmax", CHANNEL, activations="int8_full"),
    "W8A8, LLM.int8 outliers": QuantConfig("absmax", CHANNEL, activations="int8", outliers=6.0),
    "W8A8, static min-max": QuantConfig("absmax", CHANNEL, activations="int8", observer="minmax"),
    "W8A8, static percentile": QuantConfig("absmax", CHANNEL, activations="int8", observer="percentile"),
    "W8A8, static MSE": QuantConfig("absmax", CHANNEL, activations="int8", observer="mse"),
    "W8A8, SmoothQuant": QuantConfig("absmax", CHANNEL, activations="int8", smoothing=0.5),
    "bfloat16": QuantConfig("bfloat16"),
    "int4 absmax, channel": QuantConfig("absmax", CHANNEL, bits=4),
    "int4 absmax, group 32": QuantConfig("absmax", GROUP, bits=4),
    "int4 zero-point, group 32": QuantConfig("zeropoint", GROUP, bits=4),
    "int4 GPTQ, group 32": QuantConfig("absmax", GROUP, bits=4, gptq=True),
    "NF4, group 64": QuantConfig("nf4", PerGroup(64)),
}
CORRECTED = ("int4 absmax, channel", "int4 absmax, group 32")
RANK = 8


@dataclass(frozen=True)
class Row:
    """One scheme: bits a weight of the linear layers, scales included, and perplexity."""

    name: str
    bits: float
    perplexity: float


def table(model: Llama, text: Sequence[Tensor], calibration: Sequence[Tensor]) -> list[Row]:
    """A row for the float model and for each scheme; the model stays as it is."""
    rows = [Row("float32", 32.0, perplexity(model, text))]
    cached = copy.deepcopy(model)
    quantize_cache_(cached)
    rows.append(Row("int8 key-value cache", 32.0, perplexity(cached, text)))
    weights = {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, config in SCHEMES.items():
        quantized = copy.deepcopy(model)
        report = quantize_(quantized, config, calibration)
        count = sum(math.prod(layer.shape) for layer in report.layers)
        bits = 8 * sum(layer.bytes_after for layer in report.layers) / count
        rows.append(Row(name, bits, perplexity(quantized, text)))
        if name in CORRECTED:
            adapted = add_lora(quantized, LoRAConfig(RANK, RANK, targets=("*_proj",)))
            correct_quantization(quantized, {layer: weights[layer] for layer in adapted})
            size = sum(RANK * sum(weights[layer].shape) for layer in adapted)
            rows.append(Row(f"{name} + LQER rank {RANK}", bits + 32 * size / count, perplexity(quantized, text)))
    return rows


@torch.no_grad()
def perplexity(model: Llama, rows: Sequence[Tensor]) -> float:
    """exp of the mean negative log-likelihood of a token, with the cache that the model makes."""
    total = 0.0
    for ids in rows:
        logits = model(ids, model.new_cache(1, ids.shape[1]))[0, :-1].float()  # (T - 1, V)
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return math.exp(total / sum(ids.shape[1] - 1 for ids in rows))


def read(folder: Path, text: Path) -> list[Tensor]:
    """Each line of a text as token ids (1, T), with a BOS, cut to the model's context."""
    tokenizer = load_tokenizer(folder)
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [torch.tensor([tokenizer.encode(line, bos=True)[:512]]) for line in lines]


def draw(rows: Sequence[Row], picture: Path) -> None:
    """Bits against the change of perplexity, in percent; numbers on the points, names beside the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows[1:], start=1):
        change = 100 * (row.perplexity / rows[0].perplexity - 1)
        color = "tab:orange" if "LQER" in row.name else "tab:blue"
        axes.plot(row.bits, change, "o", color=color, label=f"{number}  {row.name}: {change:+.2f}%")
        side = -11 if number % 2 else 4  # neighbours are often close
        axes.annotate(str(number), (row.bits, change), fontsize=8, xytext=(side, 3), textcoords="offset points")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    axes.set_xlabel("bits a weight, scales included")
    axes.set_xscale("log", base=2)
    axes.set_xticks([4, 8, 16, 32], ["4", "8", "16", "32"])
    axes.set_ylabel("change of perplexity, %")
    axes.set_yscale("symlog", linthresh=0.1)
    figure.savefig(picture, dpi=150)


def main(folder: Path, text: Path, calibration: Path | None, picture: Path | None) -> None:
    """Print the table, best perplexity a bit first where bits are equal."""
    lines = read(folder, text)
    half = len(lines) // 2
    seen = read(folder, calibration)[:half] if calibration else lines[:half]
    rows = table(load_llama(folder, torch.float32), lines[half:], seen)
    print(f"{folder.name}: {sum(ids.shape[1] - 1 for ids in lines[half:])} held-out tokens")
    print(f"{'':36} {'bits':>6} {'perplexity':>11} {'change':>9}")
    for row in rows:
        change = 100 * (row.perplexity / rows[0].perplexity - 1)
        print(f"{row.name:36} {row.bits:6.2f} {row.perplexity:11.4f} {change:+8.3f}%")
    if picture is not None:
        draw(rows, picture)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=STORIES)
    parser.add_argument("--calibration", type=Path, default=None)
    parser.add_argument("--picture", type=Path, default=None)
    options = parser.parse_args()
    main(options.folder, options.text, options.calibration, options.picture)
