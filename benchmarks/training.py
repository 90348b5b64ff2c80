"""The same fine-tuning by lora_lite's Trainer and by TRL's SFTTrainer with peft, taking turns, each in its own process.

python -m benchmarks.training [--data pairs] [--rounds 3] [--int8] [--layers 2]

Same model, tokens, order, starting adapter (rank 8 on q, k, v, o), batch of 4 and rate; TRL with its own defaults.
"pairs" are real abstracts as prompts and their titles as completions, "rows" full rows without padding or masks.
Printed are medians of examples a second and of peak memory, as ratios to TRL's, and the losses side by side. Default: the
shape of Llama 3.2 1B in bfloat16; --layers takes fewer of its layers, to see that all of it runs.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import llama_1b
from llama_min import Llama, load_llama, load_tokenizer, save_llama
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora
from lora_lite.watch import peak_memory
from quant_lite import QuantConfig, quantize_

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


def ours(folder: Path, examples: list[Example], packing: int, int8: bool, checkpointing: bool) -> list[float]:
    """Losses of lora_lite's Trainer, on its own Llama."""
    model = load_llama(folder, dtype=torch.bfloat16)
    if int8:
        quantize_(model, QuantConfig(activations="int8"))
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
    return clock(lambda: [step.loss for step in trainer.fit([unshuffled[i] for i in range(len(examples))])], examples)


def theirs(folder: Path, examples: list[Example]) -> list[float]:
    """Losses of TRL's SFTTrainer with peft, on transformers' Llama."""
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
        return clock(
            lambda: trainer.train() and [line["loss"] for line in trainer.state.log_history if "loss" in line], examples
        )


def clock(run: Any, examples: list[Example]) -> list[float]:
    """Run, and print what the parent reads."""
    started = time.perf_counter()
    losses = run()
    seconds = time.perf_counter() - started
    peak = peak_memory(torch.device("cpu"))
    print(json.dumps({"speed": len(examples) / seconds, "peak": peak, "losses": losses}))
    return list(losses)


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One library's run in a process of its own."""
    line = [sys.executable, "-m", "benchmarks.training", "--run", name, "--folder", str(folder), "--data", options.data]
    line += ["--count", str(options.count), "--packing", str(options.packing)]
    line += ["--checkpointing"] if options.checkpointing else []
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(next(text for text in done.stdout.splitlines() if text.startswith('{"speed"')))
    return found


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Both (or all three) in turns, and what came of it."""
    names = ["trl", "ours", *(["int8"] if options.int8 else [])]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(measure(name, options, folder))
    examples = pairs(options.count) if options.data == "pairs" else rows(options.count)
    tokens, supervised = sum(len(e.ids) for e in examples), sum(e.supervised for e in examples)
    print(f"{len(examples)} {options.data}, {tokens:,} tokens, {supervised:,} supervised, batch {BATCH}")
    speed, peak = ({n: statistics.median(run[key] for run in found[n]) for n in names} for key in ("speed", "peak"))
    for name in names:
        print(
            f"{name:5} {speed[name]:7.3f} examples/s ({speed[name] / speed['trl']:.2f} x)   "
            f"peak {peak[name] / 1e9:5.2f} GB ({peak[name] / peak['trl']:.2f} x)"
        )
    for step, losses in enumerate(zip(*(found[name][0]["losses"] for name in names))):
        print(f"step {step:3}: " + "   ".join(f"{name} {loss:.4f}" for name, loss in zip(names, losses)))


def draw_shallow(layers: int, folder: Path) -> Path:
    """A folder with a model of so few layers, else of the same shape."""
    torch.manual_seed(0)
    model = Llama(replace(llama_1b.CONFIG, num_hidden_layers=layers)).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=0.02)
    save_llama(model, folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("pairs", "rows"), default="pairs")
    parser.add_argument("--count", type=int, default=24, help="examples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--packing", type=int, default=512, help="of ours")
    parser.add_argument("--checkpointing", action="store_true", help="of ours; TRL's default has it")
    parser.add_argument("--int8", action="store_true", help="ours over an int8 base with int8 activations, too")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--run", choices=("trl", "ours", "int8"), default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run is None:
        with tempfile.TemporaryDirectory() as place:
            drawn = draw_shallow(chosen.layers, Path(place)) if chosen.layers else None
            compare(chosen, chosen.folder or drawn or llama_1b.folder())
    else:
        data = pairs(chosen.count) if chosen.data == "pairs" else rows(chosen.count)
        if chosen.run == "trl":
            theirs(chosen.folder, data)
        else:
            ours(chosen.folder, data, chosen.packing, chosen.run == "int8", chosen.checkpointing)
