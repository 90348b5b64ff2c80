"""The same fine-tuning by lora_lite's Trainer and by TRL's SFTTrainer with peft, taking turns, each in its own process.

python -m benchmarks.training [--data pairs rows] [--count 8] [--rounds 2] [--layers 2]

Same model, tokens, order, starting adapter (rank 8 on q, k, v, o), batch of 4 and rate; with --checkpointing both compute
each block's activations again in the backward pass, without it neither; TRL has its own defaults for the rest. "pairs" are
real abstracts as prompts and their titles as completions, with ours over an int8 base, too; "rows" are full rows without
padding or masks. Printed are medians of examples a second and of peak memory (resident, of the process, with loading), as
ratios, beside what they shall be, and the losses side by side. Default: the shape of Llama 3.2 1B in bfloat16; --layers
takes fewer of its layers, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import llama_1b
from llama_min import Llama, LlamaConfig, load_llama, load_tokenizer, save_llama
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora
from lora_lite.watch import peak_memory
from quant_lite import QuantConfig, load_quantized, quantize_, save_quantized

REAL = Path(os.environ.get("LORA_LITE_REAL", Path(__file__).parents[2] / "shared" / "real"))
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
BATCH, RATE = 4, 2e-4


def pairs(count: int) -> list[Example]:
    """The first titled abstracts: the abstract is the prompt, the title is learnt."""
    tokenizer = load_tokenizer(REAL / "llama3_tokenizer")
    with (REAL / "pubmed_leukemia_abstracts.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["title"] and row["abstract"]][:count]
    examples = []
    for row in rows:
        prompt = tokenizer.encode(f"{row['abstract']}\nTitle: ", bos=True)
        title = tokenizer.encode(row["title"], eos=True)
        examples.append(Example(prompt + title, [0] * len(prompt) + [1] * len(title)))
    return examples


def rows(count: int, length: int = 256) -> list[Example]:
    """Abstracts one after the other, cut into rows of equal length, every token learnt."""
    tokens = [token for example in pairs(10**6) for token in example.ids]
    cut = [tokens[i : i + length] for i in range(0, len(tokens) - length, length)]
    return [Example(row, [1] * length) for row in cut[:count]]


def draw_adapters(matrices: dict[str, torch.nn.Parameter]) -> None:
    """The same A in both libraries: drawn layer by layer, by the layers' names."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in sorted(matrices):
            bound = matrices[name].shape[1] ** -0.5
            matrices[name].uniform_(-bound, bound, generator=generator)


def write_int8(folder: Path, target: Path) -> None:
    """The model with int8 weights and activations, as a file: who trains it never has its bfloat16 weights."""
    model = load_llama(folder, dtype=torch.bfloat16)
    quantize_(model, QuantConfig(activations="int8"))
    save_quantized(model, target)


def read_int8(folder: Path, quantized: Path) -> Llama:
    """What `write_int8` wrote."""
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_pretrained(folder)).to(torch.bfloat16)
    load_quantized(model, quantized)
    return model


def ours(model: Llama, examples: list[Example], packing: int, checkpointing: bool) -> None:
    """Train by lora_lite's Trainer, on its own Llama."""
    add_lora(model, LoRAConfig(rank=8, alpha=16.0, targets=TARGETS))
    named = dict(model.named_parameters())
    draw_adapters({name.split(".adapters.")[0]: p for name, p in named.items() if name.endswith("lora_A")})
    config = TrainConfig(
        batch_size=BATCH,
        packing=packing,
        learning_rate=RATE,
        warmup=0.0,
        final_learning_rate=1.0,
        gradient_checkpointing=checkpointing,
        progress=False,
    )
    trainer = Trainer(model, config)
    places = trainer.order(len(examples))  # the order in which the other library reads them
    unshuffled = dict(zip([i for batch in places for i in batch], examples))
    clock(lambda: [step.loss for step in trainer.fit([unshuffled[i] for i in range(len(examples))])], examples)


def theirs(folder: Path, examples: list[Example], checkpointing: bool) -> None:
    """Train by TRL's SFTTrainer with peft, on transformers' Llama."""
    import peft
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(REAL / "llama3_tokenizer" / "tokenizer.json"),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    table = [{"input_ids": list(e.ids), "completion_mask": list(e.mask)} for e in examples]
    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            out,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            gradient_checkpointing=checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model,
            settings,
            train_dataset=Dataset.from_list(table),
            processing_class=tokenizer,
            peft_config=lora,
        )
        named = dict(trainer.model.named_parameters())
        matrices = {
            n.removeprefix("base_model.model."): p for n, p in named.items() if n.endswith("lora_A.default.weight")
        }
        draw_adapters({name.split(".lora_A")[0]: p for name, p in matrices.items()})
        clock(
            lambda: trainer.train() and [line["loss"] for line in trainer.state.log_history if "loss" in line], examples
        )


def clock(run: Callable[[], list[float]], examples: list[Example]) -> None:
    """Run, and print what the parent reads."""
    started = time.perf_counter()
    losses = run()
    seconds = time.perf_counter() - started
    peak = peak_memory(torch.device("cpu"))
    print(json.dumps({"speed": len(examples) / seconds, "peak": peak, "losses": losses}), flush=True)


def start(name: str, options: argparse.Namespace, folder: Path, place: Path) -> str:
    """One worker in a process of its own; what it printed."""
    line = [sys.executable, "-m", "benchmarks.training", "--run", name, "--folder", str(folder), "--place", str(place)]
    line += ["--packing", str(options.packing), *(["--checkpointing"] if options.checkpointing else [])]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def compare(data: str, options: argparse.Namespace, folder: Path, place: Path) -> None:
    """The libraries in turns, and what came of it."""
    examples = pairs(options.count) if data == "pairs" else rows(options.count)
    (place / "examples.json").write_text(json.dumps([asdict(example) for example in examples]), encoding="utf-8")
    names = ["trl", "ours", *(["int8"] if data == "pairs" else [])]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            printed = start(name, options, folder, place).splitlines()
            found[name].append(json.loads(next(line for line in printed if line.startswith('{"speed"'))))
            speed, peak = found[name][-1]["speed"], found[name][-1]["peak"]
            print(f"round {turn} {name:5} {speed:7.3f} examples/s   peak {peak / 1e9:5.2f} GB", flush=True)
    tokens, supervised = sum(len(e.ids) for e in examples), sum(e.supervised for e in examples)
    print(f"\n{len(examples)} {data}, {tokens:,} tokens, {supervised:,} supervised, batch {BATCH}; medians:")
    report(data, found)


def report(data: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Medians beside what they shall be, and the losses of each step."""
    speed, peak = ({n: statistics.median(run[key] for run in found[n]) for n in found} for key in ("speed", "peak"))
    for name in found:
        print(
            f"{name:5} {speed[name]:7.3f} examples/s ({speed[name] / speed['trl']:.2f} x)   "
            f"peak {peak[name] / 1e9:5.2f} GB ({peak[name] / peak['trl']:.2f} x)"
        )
    losses = {name: found[name][0]["losses"] for name in found}
    apart = max(abs(a / b - 1) for a, b in zip(losses["ours"], losses["trl"], strict=True))
    bars = [("loss of ours from TRL's, largest difference", apart, "<=", 0.01)]
    if data == "pairs":
        bars += [
            ("examples/s, ours to TRL", speed["ours"] / speed["trl"], ">=", 2.5),
            ("peak memory, ours to TRL", peak["ours"] / peak["trl"], "<=", 0.5),
            ("examples/s, int8 base to bfloat16 base", speed["int8"] / speed["ours"], ">=", 1.0),
            ("peak memory, int8 base to TRL", peak["int8"] / peak["trl"], "<=", 0.3),
        ]
    else:
        bars += [("examples/s, ours to TRL", speed["ours"] / speed["trl"], ">=", 1.15)]
    for what, value, relation, bar in bars:
        met = value >= bar if relation == ">=" else value <= bar
        print(f"{'met   ' if met else 'MISSED'} {what}: {value:.4g} (shall be {relation} {bar})")
    for step, values in enumerate(zip(*losses.values())):
        print(f"step {step:3}: " + "   ".join(f"{name} {loss:.4f}" for name, loss in zip(losses, values)))
    print(flush=True)


def draw_shallow(layers: int, folder: Path) -> Path:
    """A folder with a model of so few layers, else of the same shape."""
    torch.manual_seed(0)
    model = Llama(replace(llama_1b.CONFIG, num_hidden_layers=layers)).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=0.02)
    save_llama(model, folder)
    return folder


def work(options: argparse.Namespace) -> None:
    """What a process of its own does."""
    if options.run == "quantize":
        write_int8(options.folder, options.place)
        return
    stored = json.loads((options.place / "examples.json").read_text(encoding="utf-8"))
    examples = [Example(**example) for example in stored]
    if options.run == "trl":
        theirs(options.folder, examples, options.checkpointing)
    else:
        whole = options.run == "ours"
        model = load_llama(options.folder, torch.bfloat16) if whole else read_int8(options.folder, options.place)
        ours(model, examples, options.packing, options.checkpointing)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=("pairs", "rows"), default=["pairs", "rows"])
    parser.add_argument("--count", type=int, default=8, help="examples")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--packing", type=int, default=384, help="of ours")
    parser.add_argument("--checkpointing", action="store_true", help="of all; TRL's default")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--run", choices=("quantize", "trl", "ours", "int8"), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run is None:
        with tempfile.TemporaryDirectory() as temporary:
            drawn = draw_shallow(chosen.layers, Path(temporary) / "float") if chosen.layers else None
            model_folder = chosen.folder or drawn or llama_1b.folder()
            if "pairs" in chosen.data:
                start("quantize", chosen, model_folder, Path(temporary))
            for kind in chosen.data:
                compare(kind, chosen, model_folder, Path(temporary))
    else:
        work(chosen)
