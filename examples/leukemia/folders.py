"""The folders that models are saved in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from llama_min import Llama, LlamaConfig
from quant_lite import load_quantized, save_quantized

__all__ = ["copy_tokenizer", "load_int8", "save_int8"]


def save_int8(model: Llama, folder: Path) -> None:
    """Write a quantized model with its config: what `load_int8` reads."""
    save_quantized(model, folder)
    text = json.dumps(model.config.to_dict(), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def load_int8(folder: Path) -> Llama:
    """The model that `save_int8` wrote, without ever making its float weights."""
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_pretrained(folder))
    load_quantized(model, folder)
    return model.eval()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files, so that the folder is complete for any library that reads it."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(("tokenizer", "special_tokens_map", "chat_template")) and path.is_file():
            shutil.copyfile(path, folder / path.name)
