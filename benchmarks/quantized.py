"""Int8 Llamas on a CPU: ours beside llama.cpp, optimum-quanto, bitsandbytes, torchao and transformers, a process each.

python -m benchmarks.quantized [--only NAME ...] [--prompt 128] [--new 32] [--rounds 5] [--picture FILE.png]

The model has the shape of Llama 3.2 1B with random weights. Each peer starts from the same bfloat16 folder, quantizes it
(timed, with loading), and then reads a prompt and writes greedily, three times, of which the first warms up. Ours is also
loaded from int8 weights that were quantized and saved before, as a user would who does so more than once. A round starts
every peer once, because how fast memory is read depends on where a process got it, and when; the table gives medians over
the rounds. The limit is the time in which two threads read as many bytes as the int8 weights have: each process measures it
right after its tokens, so that a share of it compares like with like. For prefill it is the time in which PyTorch multiplies
as many integers. Below the table stands what is claimed, each ratio beside what it shall be. Peers that are not installed are
named and left out: the table in docs/quantization.md says what to install.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import llama_1b
from benchmarks.loading import peak

Step = Callable[[list[int]], int]  # new tokens -> the next one, greedily
Start = Callable[[int], Step]  # the length of a text -> a new text

PEAK_GB = 1.3  # at most, of a process that loads int8 weights and runs them, beside the interpreter with torch
INT8 = llama_1b.FOLDER / "int8"
LOADED = "ours int8 act., loaded"


def ours(scheme: str, activations: str) -> tuple[Start, float]:
    """llama_min with its products stacked, quantized by quant_lite, head and embedding included."""
    from llama_min import load_llama, stack_products
    from quant_lite import QuantConfig, quantize_

    started = time.perf_counter()
    model = load_llama(llama_1b.folder(), torch.bfloat16)
    stack_products(model)
    if scheme:
        quantize_(model, QuantConfig(scheme, activations=activations))
    seconds = time.perf_counter() - started

    return llama_start(model), seconds


def ours_loaded() -> tuple[Start, float]:
    """The same with int8 activations, from the file of `write_int8`."""
    from llama_min import Llama, stack_products
    from quant_lite import load_quantized

    started = time.perf_counter()
    with torch.device("meta"):
        model = Llama(llama_1b.CONFIG)
    stack_products(model)
    load_quantized(model, INT8)
    return llama_start(model), time.perf_counter() - started


def write_int8() -> None:
    """The folder quantized, as `save_quantized` writes it."""
    from llama_min import load_llama, stack_products
    from quant_lite import QuantConfig, quantize_, save_quantized

    model = load_llama(llama_1b.folder(), torch.bfloat16)
    stack_products(model)
    quantize_(model, QuantConfig(activations="int8"))
    save_quantized(model, INT8)


def llama_start(model: Any) -> Start:
    """How a llama_min model reads and writes."""

    def start(length: int) -> Step:
        cache = model.new_cache(1, length)
        return lambda tokens: int(model(torch.tensor([tokens]), cache, last_only=True)[0, -1].float().argmax())

    return start


def transformers_model(prepare: Callable[[torch.nn.Module], object] | None = None, **how: Any) -> tuple[Start, float]:
    """transformers, its linear layers changed by `prepare`."""
    from transformers import AutoModelForCausalLM, DynamicCache

    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(llama_1b.folder(), dtype=torch.bfloat16, **how).eval()
    if prepare is not None:
        prepare(model)
    seconds = time.perf_counter() - started

    def start(_: int) -> Step:
        cache = DynamicCache(config=model.config)

        def step(tokens: list[int]) -> int:
            output = model(torch.tensor([tokens]), past_key_values=cache, logits_to_keep=1)
            return int(output.logits[0, -1].argmax())

        return step

    return start, seconds


def quanto() -> tuple[Start, float]:
    """optimum-quanto, int8 weights."""
    from optimum.quanto import freeze, qint8, quantize

    def prepare(model: torch.nn.Module) -> None:
        quantize(model, weights=qint8)
        freeze(model)

    return transformers_model(prepare)


def bitsandbytes() -> tuple[Start, float]:
    """LLM.int8() as transformers loads it. It leaves the head in bfloat16."""
    from transformers import BitsAndBytesConfig

    return transformers_model(quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map={"": "cpu"})


def torchao() -> tuple[Start, float]:
    """Int8 weights alone."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    return transformers_model(lambda model: quantize_(model, Int8WeightOnlyConfig()))


def llama_cpp(kind: str) -> tuple[Start, float]:
    """Q8_0: blocks of 32 weights with a float16 scale, activations quantized alike; or BF16."""
    import llama_cpp

    path = llama_1b.FOLDER / f"{kind}.gguf"
    if not path.is_file():
        write_gguf(path, kind)
    started = time.perf_counter()
    how = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_load_model_from_file(str(path).encode(), how)
    seconds = time.perf_counter() - started

    def start(length: int) -> Step:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = length + 8, 2, 2
        context = llama_cpp.llama_new_context_with_model(model, settings)

        def step(tokens: list[int]) -> int:
            array = (llama_cpp.llama_token * len(tokens))(*tokens)
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            return int(np.ctypeslib.as_array(logits, (llama_1b.CONFIG.vocab_size,)).argmax())

        return step

    return start, seconds


def write_gguf(path: Path, kind: str) -> None:
    """The folder as a GGUF file, without a vocabulary: llama.cpp's quantizing is not timed, in Python it is slow."""
    import gguf
    from safetensors import safe_open

    config = llama_1b.CONFIG
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_tokenizer_model("no_vocab")
    names = {
        "embed_tokens": "token_embd",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
        "norm": "output_norm",
    }
    with safe_open(llama_1b.folder() / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            parts = name.split(".")
            block = f"blk.{parts[2]}." if parts[1] == "layers" else ""
            weight = file.get_tensor(name).float().numpy()
            target = f"{block}{names[parts[-2]]}.weight"
            if weight.ndim == 2:
                stored = gguf.GGMLQuantizationType[kind]
                writer.add_tensor(target, gguf.quants.quantize(weight, stored), raw_dtype=stored)
            else:
                writer.add_tensor(target, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)


PEERS: dict[str, Callable[[], tuple[Start, float]]] = {
    "ours int8 activations": lambda: ours("absmax", "int8"),
    LOADED: ours_loaded,
    "ours int8": lambda: ours("absmax", "float"),
    "ours bfloat16": lambda: ours("bfloat16", "float"),
    "llama.cpp Q8_0": lambda: llama_cpp("Q8_0"),
    "llama.cpp BF16": lambda: llama_cpp("BF16"),
    "optimum-quanto int8": quanto,
    "bitsandbytes int8": bitsandbytes,
    "torchao int8": torchao,
    "transformers bfloat16": transformers_model,
}
CLAIMS = (  # how many times faster, at least
    ("decode", "ours int8 activations", "llama.cpp Q8_0", 1.4),
    ("decode", "ours int8 activations", "optimum-quanto int8", 2.5),
    ("decode", "ours int8 activations", "bitsandbytes int8", 2.5),
    ("decode", "ours int8 activations", "transformers bfloat16", 4.5),
    ("decode", "ours int8", "llama.cpp Q8_0", 1.0),
    ("decode", "ours bfloat16", "llama.cpp BF16", 1.0),
    ("prefill", "ours int8 activations", "bitsandbytes int8", 1.4),
    ("prefill", "ours int8 activations", "llama.cpp Q8_0", 2.5),
    ("load", "ours int8 activations", "optimum-quanto int8", 1.0),
    ("load", "ours int8 activations", "bitsandbytes int8", 1.0),
    ("load", "ours int8 activations", "torchao int8", 1.0),
)


@torch.inference_mode()
def worker(name: str, prompt: int, new: int) -> None:
    """Measure one peer in this process; its figures go to stdout as JSON."""
    torch.set_num_threads(2)
    interpreter = peak()
    start, load = PEERS[name]()
    turns = [turn(start, prompt, new, seed) for seed in range(3)]
    prefill, decode = (statistics.mean(column) for column in zip(*turns[1:]))  # the first turn warms up
    figures = {"load": load, "prefill": prefill, "decode": decode, "peak": peak(), "interpreter": interpreter}
    print(json.dumps(figures | limits(prompt)))


def limits(prompt: int) -> dict[str, float]:
    """Seconds to read as many bytes as the int8 weights have, and to multiply all but the embedding with `prompt` rows."""
    weights = sum(parameter.numel() for parameter in _shapes())
    numbers = torch.ones(weights // 8, dtype=torch.int64)
    matrix = torch.ones(2 * llama_1b.CONFIG.intermediate_size, llama_1b.CONFIG.hidden_size, dtype=torch.int8)
    rows = torch.ones(prompt, llama_1b.CONFIG.hidden_size, dtype=torch.int8)
    product = statistics.median(seconds(lambda: torch._int_mm(matrix, rows.T)) for _ in range(16))
    table = llama_1b.CONFIG.vocab_size * llama_1b.CONFIG.hidden_size
    return {
        "reading": statistics.median(seconds(numbers.sum) for _ in range(16)),
        "multiplying": product * (weights - table) / matrix.numel(),
    }


def turn(start: Start, prompt: int, new: int, seed: int) -> tuple[float, float]:
    """Seconds to read a prompt, and of a token that follows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, llama_1b.CONFIG.vocab_size, (prompt,), generator=generator).tolist()
    step = start(prompt + new)
    first = seconds(lambda: tokens.append(step(tokens)))
    return first, statistics.median(seconds(lambda: tokens.append(step(tokens[-1:]))) for _ in range(new))


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _shapes() -> list[torch.nn.Parameter]:
    from llama_min import Llama

    with torch.device("meta"):
        return list(Llama(llama_1b.CONFIG).parameters())


def main(names: list[str], prompt: int, new: int, rounds: int, picture: Path | None) -> None:
    """Start the peers in turns and print a row each."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in list(samples):
            line = [sys.executable, "-m", "benchmarks.quantized", "--worker", name]
            line += ["--prompt", str(prompt), "--new", str(new)]
            done = subprocess.run(line, check=False, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} is left out: {(done.stderr.strip().splitlines() or ['it ended'])[-1]}", flush=True)
                del samples[name]
            else:
                samples[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in samples.items()
    }
    everything = [row for rows in samples.values() for row in rows]
    reading, multiplying = (statistics.median(row[key] for row in everything) for key in ("reading", "multiplying"))
    print(
        f"prompt {prompt}, {new} new tokens, {rounds} rounds, 2 threads; limits: reading the int8 weights {reading:.4f} s,"
    )
    print(f"multiplying them with the prompt {multiplying:.3f} s")
    heads = ("load s", "prefill tok/s", "decode tok/s", "(from-to)", "of reading", "peak GB", "less python")
    print(
        f"{'':22} {heads[0]:>7} {heads[1]:>14} {heads[2]:>13} {heads[3]:>13} {heads[4]:>10} {heads[5]:>8} {heads[6]:>11}"
    )
    for name, row in medians.items():
        rates = sorted(1 / sample["decode"] for sample in samples[name])
        speeds = f"{prompt / row['prefill']:14.1f} {1 / row['decode']:13.2f} {rates[0]:6.1f}-{rates[-1]:6.1f}"
        share = statistics.median(sample["reading"] / sample["decode"] for sample in samples[name])
        memory = f"{row['peak']:8.2f} {row['peak'] - row['interpreter']:11.2f}"
        print(f"{name:22} {row['load']:7.1f} {speeds} {share:10.2f} {memory}")
    for what, one, other, least in CLAIMS:
        if one in medians and other in medians:
            print(f"{what}: {one} {medians[other][what] / medians[one][what]:.2f} x {other} (at least {least})")
    if LOADED in medians:
        row = medians[LOADED]
        print(f"peak: {LOADED} {row['peak'] - row['interpreter']:.2f} GB beside the interpreter (at most {PEAK_GB})")
    if picture is not None:
        draw(medians, prompt, reading, multiplying, picture)


def draw(medians: dict[str, dict[str, float]], prompt: int, reading: float, multiplying: float, picture: Path) -> None:
    """Bars of decode and prefill beside what the machine can do at most in int8."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(medians)[::-1]
    left.barh(names, [1 / medians[name]["decode"] for name in names])
    left.axvline(1 / reading, color="black", linestyle="--", label="reading int8 weights")
    left.set_xlabel("decode, tokens/s")
    left.legend()
    right.barh(names, [prompt / medians[name]["prefill"] for name in names])
    right.axvline(prompt / multiplying, color="black", linestyle="--", label="multiplying int8 weights")
    right.legend()
    right.set_xlabel(f"prefill of {prompt}, tokens/s")
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path, default=None)
    parser.add_argument("--worker", choices=PEERS, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.prompt, options.new)
    else:
        llama_1b.folder()
        if not (INT8 / "quantized.safetensors").is_file():
            write_int8()
        main(options.only, options.prompt, options.new, options.rounds, options.picture)
