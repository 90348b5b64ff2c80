"""Fine-tune in the terminal: python -m lora_lite train --model FOLDER --data FILE.jsonl --out DIR."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from lora_lite._interrupt import listen_again
from lora_lite.checkpoints import CheckpointError, checkpoint_steps
from lora_lite.data import ChatTokenizer, encode_rows, read_rows
from lora_lite.files import save_adapter
from lora_lite.lora import LoRAConfig, add_lora
from lora_lite.plan import plan
from lora_lite.trainer import Example, TrainConfig, Trainer

__all__ = ["load_by", "main"]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
DTYPES = ("bfloat16", "float32")
DEFAULTS: dict[str, Any] = {
    "model": None,
    "data": None,
    "out": None,
    "eval_data": None,
    "eval_share": 0.0,
    "loader": "llama_min",
    "dtype": "bfloat16",
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.0,
    "targets": list(TARGETS),
    **{field.name: field.default for field in fields(TrainConfig)},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where it succeeded, 2 for input that cannot be used, 130 after Ctrl-C."""
    options = vars(_parser().parse_args(arguments))
    first = os.environ.get("RANK", "0") == "0"
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        _train(_settings(options), options.get("resume", False), first)
    except (ValueError, OSError, ImportError, CheckpointError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume goes on from here", file=sys.stderr)
        return 130
    return 0


def _train(settings: dict[str, Any], resume: bool, first: bool) -> None:
    """Load, say what will be done, do it, save the adapter."""
    config = TrainConfig(**{field.name: settings[field.name] for field in fields(TrainConfig)})
    out = Path(settings["out"])
    if settings["dtype"] not in DTYPES:
        raise ValueError(f"dtype {settings['dtype']!r} is not known: take {' or '.join(DTYPES)}")
    model, tokenizer = load_by(settings["loader"], Path(settings["model"]), getattr(torch, settings["dtype"]))
    examples = encode_rows(read_rows(settings["data"]), tokenizer)
    held_out = encode_rows(read_rows(settings["eval_data"]), tokenizer) if settings["eval_data"] else []
    if settings["eval_share"]:
        examples, held_out = _split(examples, held_out, settings["eval_share"], config.seed)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not (config.shard and int(os.environ.get("WORLD_SIZE", "1")) > 1):  # else the trainer moves it, in parts
            model.cuda()
    lora = LoRAConfig(settings["rank"], settings["alpha"], settings["dropout"], tuple(settings["targets"]))
    add_lora(model, lora, generator=torch.Generator().manual_seed(config.seed))
    trainer = Trainer(model, config, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fit says it, too
        # by every process where the base is spread: all of them gather it
        told = plan(trainer, examples, held_out) if first or config.shard else ""
    if first:
        print(told, file=sys.stderr, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        if not checkpoint_steps(out / "checkpoints"):  # else it is of the run that is there, which this may not be
            _write(out / "config.json", json.dumps(settings, indent=2) + "\n")
    history = trainer.fit(examples, held_out, resume=resume)
    if first:
        save_adapter(model, out / "adapter", base_model=str(settings["model"]))
        scores = [step.eval_loss for step in history if step.eval_loss is not None]
        held = f", held out {min(scores):.3f} at best" if scores else ""
        lost = "" if not history else f"loss {history[0].loss:.3f} -> {history[-1].loss:.3f}{held}; "
        print(f"{lost}wrote {out / 'adapter'}", file=sys.stderr)


def load_by(loader: str, folder: Path, dtype: torch.dtype) -> tuple[nn.Module, ChatTokenizer]:
    """Model and tokenizer of a folder.

    lora_lite itself knows no model: the loader is named, and looked up only here.

    Args:
        loader: "llama_min", the package that comes with this one; "transformers", for any architecture that it knows;
            or "MODULE:FUNCTION", to be called as function(folder, dtype) and to return both.

    Raises:
        ValueError: there is no such loader, or the folder is none.
    """
    if not folder.is_dir():
        raise ValueError(f"--model {folder}: there is no such folder")
    module, _, function = loader.partition(":")
    if function:
        sys.path.insert(0, os.getcwd())
        model, tokenizer = getattr(importlib.import_module(module), function)(folder, dtype)
        return model, tokenizer
    llamas = importlib.import_module("llama_min")
    if loader == "llama_min":
        return llamas.load_llama(folder, dtype=dtype), llamas.load_tokenizer(folder)
    if loader == "transformers":
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), llamas.load_tokenizer(folder)
    raise ValueError(f"--loader {loader!r} is not known: take llama_min, transformers or MODULE:FUNCTION")


def _split(
    examples: list[Example], held_out: list[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Set a share of the examples aside, drawn by the seed."""
    if held_out:
        raise ValueError("--eval-data and --eval-share both say what is held out: give one of them")
    if not 0 < share < 1:
        raise ValueError(f"--eval-share {share} must lie between 0 and 1")
    if len(examples) < 2:
        raise ValueError("--eval-share needs two rows or more: one to train on, one to hold out")
    count = min(max(1, round(share * len(examples))), len(examples) - 1)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    aside = set(order[:count])
    return [e for i, e in enumerate(examples) if i not in aside], [examples[i] for i in sorted(aside)]


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The defaults, over them a config file, over it what the command line says."""
    found: dict[str, Any] = {}
    if path := options.get("config"):
        try:
            found = dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"--config {path} cannot be read as a JSON object ({error})") from None
        for name in found:
            if name not in DEFAULTS:
                near = difflib.get_close_matches(name, DEFAULTS, 3)
                raise ValueError(f"--config {path}: {name!r} is no setting; near it: {', '.join(near) or 'none'}")
            _check_type(path, name, found[name])
    settings = DEFAULTS | found | {name: value for name, value in options.items() if name in DEFAULTS}
    missing = [f"--{name}" for name in ("model", "data", "out") if settings[name] is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given, here or in --config")
    return settings


def _check_type(path: str, name: str, value: Any) -> None:
    """Refuse a value of a config file that is of another type than the option's."""
    kinds = _types()[name]
    fits = type(value) in kinds or (float in kinds and type(value) is int)  # true is no 1
    if not fits or (type(value) is list and not all(isinstance(part, str) for part in value)):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"--config {path}: {name} is {json.dumps(value)}, and must be {wanted}")


def _types() -> dict[str, tuple[type, ...]]:
    """The types that each setting may have."""
    hints = get_type_hints(TrainConfig)
    found: dict[str, tuple[type, ...]] = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    for name, default in DEFAULTS.items():
        found.setdefault(name, (str, type(None)) if default is None else (type(default),))
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lora_lite", description="Low-rank adapters in the terminal.")
    train = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "train",
        help="fine-tune a model with LoRA",
        epilog="example: python -m lora_lite train --model FOLDER --data FILE.jsonl --out DIR --packing 1024",
        argument_default=argparse.SUPPRESS,
    )
    train.add_argument("--model", help="folder of the base model")
    train.add_argument("--data", help=".jsonl or .csv with messages, or prompt and completion, or text")
    train.add_argument("--out", help="folder for the adapter, metrics.jsonl, curve.png and checkpoints")
    train.add_argument("--eval-data", help="held-out rows, of the same forms")
    train.add_argument("--eval-share", type=float, help="or the share of the data to hold out, drawn by --seed")
    train.add_argument("--config", help="JSON file of these settings; DIR/config.json is one; options come before it")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out, if any")
    train.add_argument("--loader", help="llama_min (the default), transformers, or MODULE:FUNCTION(folder, dtype)")
    train.add_argument("--dtype", choices=DTYPES, help="of the base; adapters are float32")
    train.add_argument("--rank", type=int, help=f"of the adapters (default: {DEFAULTS['rank']})")
    train.add_argument("--alpha", type=float, help=f"of the adapters (default: {DEFAULTS['alpha']})")
    train.add_argument("--dropout", type=float, help=f"of the adapters (default: {DEFAULTS['dropout']})")
    train.add_argument("--targets", nargs="+", help=f"layers to adapt (default: {' '.join(TARGETS)})")
    _add_fields(train)
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `TrainConfig`, explained in the words of its docstring."""
    attributes = re.split(r"\n {8}(\w+): ", re.split(r"Attributes:", TrainConfig.__doc__ or "")[1])
    said = dict(zip(attributes[1::2], (" ".join(text.split()) for text in attributes[2::2])))
    kinds = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        option, text = (
            f"--{field.name.replace('_', '-')}",
            f"{said[field.name]} (default: {field.default})".replace("%", "%%"),
        )
        kind = next((part for part in get_args(kinds[field.name]) if part is not type(None)), kinds[field.name])
        if kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(option, type=kind, help=text)


if __name__ == "__main__":
    listen_again()
    sys.exit(main())
