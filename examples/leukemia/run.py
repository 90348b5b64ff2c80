"""The main job: abstracts -> items -> LoRA -> evaluation -> int8 -> evaluation -> report, each step a few lines."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from examples.leukemia.data import SPLITS, UserError, read_abstracts, split
from examples.leukemia.evaluate import evaluate
from examples.leukemia.files import new_folder
from examples.leukemia.folders import copy_tokenizer, load_int8, save_int8
from examples.leukemia.notice import NOTICE
from examples.leukemia.report import write_report
from examples.leukemia.tasks import TASKS, Item, build_items, encode_item
from llama_min import Llama, Tokenizer, load_llama, load_tokenizer, save_llama
from lora_lite import (
    LoRAConfig,
    TrainConfig,
    Trainer,
    add_lora,
    merge_lora,
    save_adapter,
    trainable_summary,
)
from quant_lite import QuantConfig, kernel_path, quantize_

__all__ = ["Settings", "run"]

REHEARSAL = 0.1  # share of the passages that the tasks' stage reads again


@dataclass(frozen=True)
class Settings:
    """What a run is made from; all of it lands in metrics.json."""

    model: Path
    abstracts: Path
    out: Path
    dtype: str = "float32"
    rank: int = 8
    alpha: float = 16.0
    text_epochs: int = 2
    task_epochs: int = 4
    learning_rate: float = 2e-3
    batch_size: int = 8
    row_tokens: int = 1024
    max_titles: int = 40
    seed: int = 0


def run(settings: Settings) -> Path:
    """Do the main job and return the folder of its outcome, whole, at `settings.out`.

    Raises:
        UserError: the input cannot be used.
        CheckpointError: the model folder cannot.
    """
    with new_folder(settings.out) as out:
        started = time.perf_counter()
        records, data_counts = read_abstracts(settings.abstracts)
        tokenizer = load_tokenizer(settings.model)
        model = load_llama(settings.model, dtype=getattr(torch, settings.dtype))
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"{settings.model}: the tokenizer knows {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
                "put the model's own tokenizer beside it"
            )
        _say(f"model: {settings.model}, {sum(p.numel() for p in model.parameters()):,} parameters")
        items = _prepare(records, tokenizer, model, settings.seed, out)

        metrics: dict[str, Any] = {
            "notice": NOTICE,
            "settings": {
                key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()
            },
            "made_with": _made_with(),
            "data": data_counts
            | {"synthetic (invented)": sum(record.pubmed_id.startswith("SYN-") for record in records)}
            | {"articles": _articles(items), "items": _item_counts(items)},
            "scores": {},
        }
        scores = metrics["scores"]
        scores["base"] = evaluate(model, tokenizer, items["test"], settings.max_titles, "base")

        generator = torch.Generator().manual_seed(settings.seed)
        add_lora(model, LoRAConfig(settings.rank, settings.alpha), generator=generator)
        metrics["trainable"] = trainable_summary(model)
        _say(metrics["trainable"])
        metrics["training"] = _train(model, tokenizer, items, settings)
        save_adapter(model, out / "adapter", base_model=str(settings.model))
        scores["base+LoRA"] = evaluate(model, tokenizer, items["test"], settings.max_titles, "base+LoRA")

        metrics["largest_merge_change"] = merge_lora(model).largest_change
        save_llama(model, out / "merged")
        copy_tokenizer(settings.model, out / "merged")

        quantized, metrics["quantization"] = _quantize(model, settings.model, out / "int8")
        scores["LoRA+int8"] = evaluate(quantized, tokenizer, items["test"], settings.max_titles, "LoRA+int8")

        metrics["size_bytes"] = _sizes(settings, out)
        float_name = f"LoRA merged ({settings.dtype})"
        metrics["prompt_tokens"] = min(128, model.config.max_position_embeddings // 2)
        metrics["inference"] = _inference_times(
            {float_name: model, "LoRA+int8": quantized}, metrics["prompt_tokens"], new=16, rounds=7
        )
        metrics["seconds"] = round(time.perf_counter() - started, 1)
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        write_report(metrics, out)
    return settings.out


def _prepare(records: Sequence[Any], tokenizer: Tokenizer, model: Llama, seed: int, out: Path) -> dict[str, list[Item]]:
    """Split, build the items of each side, and write them as out/data/SIDE.jsonl."""
    parts = split(records, seed)
    small = [name for name in SPLITS if not parts[name]]
    if small:
        raise UserError(
            f"{len(records)} articles are too few to split (nothing falls to {', '.join(small)}): give 30 or more"
        )
    context = model.config.max_position_embeddings
    try:
        items = {name: build_items(parts[name], tokenizer, context) for name in SPLITS}
    except (ValueError, ImportError) as error:  # a chat template that cannot write these turns
        raise UserError(f"the model's tokenizer: {error}") from None
    (out / "data").mkdir()
    for name, rows in items.items():
        lines = [json.dumps(vars(item), ensure_ascii=False) + "\n" for item in rows]
        (out / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return items


def _train(
    model: Llama, tokenizer: Tokenizer, items: dict[str, list[Item]], settings: Settings
) -> dict[str, list[dict[str, Any]]]:
    """First the adapter reads the abstracts, then it learns the tasks; each stage keeps its best-scoring adapter.

    Two stages, because the loss is a mean over tokens: in one mixture the hundreds of tokens of a passage would drown
    the two of a label. The second stage rereads some passages, so that the first is not forgotten.
    """
    history = {}
    rng = random.Random(settings.seed)
    reread = [item for item in items["train"] if item.task == "text" and rng.random() < REHEARSAL]
    stages: dict[str, tuple[tuple[str, ...], int, list[Item]]] = {
        "text": (("text",), settings.text_epochs, []),
        "tasks": (("subtype", "title"), settings.task_epochs, reread),
    }
    for stage, (tasks, epochs, extra) in stages.items():
        chosen = {
            side: [encode_item(item, tokenizer) for item in items[side] if item.task in tasks]
            for side in ("train", "validation")
        }
        if not chosen["train"] or not epochs:
            _say(f"no training on {stage}: {len(chosen['train'])} items, {epochs} epochs")
            continue
        chosen["train"] += [encode_item(item, tokenizer) for item in extra]
        config = TrainConfig(
            epochs=epochs,
            batch_size=settings.batch_size,
            packing=max(2, settings.row_tokens),  # a longer item has its row alone
            learning_rate=settings.learning_rate,
            seed=settings.seed,
        )
        _say(f"training on {stage}: {len(chosen['train'])} items, {epochs} epochs")
        steps = Trainer(model, config).fit(chosen["train"], chosen["validation"])
        history[stage] = [vars(step) for step in steps]
    if not history:
        raise UserError("there is nothing to train on: both stages are empty; give more abstracts or epochs")
    return history


def _quantize(model: Llama, tokenizer_folder: Path, folder: Path) -> tuple[Llama, dict[str, Any]]:
    """Write an int8 copy of `model` to `folder`; return what the file gives back, and the report."""
    quantized = copy.deepcopy(model)
    report = quantize_(quantized, QuantConfig())
    save_int8(quantized, folder)
    copy_tokenizer(tokenizer_folder, folder)
    # JSON has no infinity, which is the SQNR of a layer without error, such as one of zeros
    layers = [vars(row) | {"sqnr": row.sqnr if math.isfinite(row.sqnr) else None} for row in report.layers]
    return load_int8(folder), {"layers": layers, "kept_in_float": report.kept, "table": str(report)}


def _articles(items: dict[str, list[Item]]) -> dict[str, int]:
    return {name: len({item.pubmed_id for item in rows}) for name, rows in items.items()}


def _item_counts(items: dict[str, list[Item]]) -> dict[str, dict[str, int]]:
    """How many items each task has on each side, and how many of them were cut to fit, by how many words."""
    counts = {}
    for task in TASKS:
        rows = {name: [item for item in items[name] if item.task == task] for name in SPLITS}
        everything = [item for name in SPLITS for item in rows[name]]
        counts[task] = {name: len(rows[name]) for name in SPLITS} | {
            "cut_to_fit": sum(item.words_cut > 0 for item in everything),
            "words_cut": sum(item.words_cut for item in everything),
        }
        if task == "subtype":
            counts[task] |= dict(sorted(Counter(f"label {item.completion}" for item in everything).items()))
    return counts


def _sizes(settings: Settings, out: Path) -> dict[str, int]:
    """Bytes of the weight files on disk."""
    return {
        "base": sum(path.stat().st_size for path in settings.model.glob("*.safetensors")),
        "adapter": (out / "adapter" / "adapter_model.safetensors").stat().st_size,
        f"LoRA merged ({settings.dtype})": (out / "merged" / "model.safetensors").stat().st_size,
        "LoRA+int8": (out / "int8" / "quantized.safetensors").stat().st_size,
    }


@torch.inference_mode()
def _inference_times(models: dict[str, Llama], length: int, new: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds to read a prompt of `length` tokens and to write one of `new` more, the models in turns."""
    samples: dict[str, dict[str, list[float]]] = {
        name: {"prefill_ms": [], "decode_ms_per_token": []} for name in models
    }
    for turn in range(rounds + 1):
        for name, model in models.items():
            prompt = torch.arange(length)[None] % model.config.vocab_size
            cache = model.new_cache(1, length + new)
            started = time.perf_counter()
            token = model(prompt, cache)[:, -1:].argmax(-1)
            read = time.perf_counter()
            for _ in range(new):
                token = model(token, cache)[:, -1:].argmax(-1)
            written = time.perf_counter()
            if turn:  # the first turn warms up
                samples[name]["prefill_ms"].append(1000 * (read - started))
                samples[name]["decode_ms_per_token"].append(1000 * (written - read) / new)
    return {name: {k: statistics.median(v) for k, v in times.items()} for name, times in samples.items()}


def _made_with() -> dict[str, Any]:
    packages = ("torch", "safetensors", "numpy", "tokenizers", "sentencepiece")
    return {
        "command": " ".join(["python -m examples.leukemia", *sys.argv[1:]]),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "int8_path": {"c": "the C kernels", "torch": "PyTorch's operators"}[kernel_path()],
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
