"""The folders that models are saved in, and the one that a run keeps its checkpoints in."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import llama_min
import lora_lite
from llama_min import Llama, LlamaConfig
from quant_lite import load_quantized, save_quantized

__all__ = ["copy_tokenizer", "load_int8", "save_int8", "training_folder"]

# what turns files into trained bits, beside PyTorch: where any of it changed, checkpoints are of another run
_PROGRAM = tuple(
    path for of in (__file__, lora_lite.__file__, llama_min.__file__) for path in sorted(Path(of).parent.glob("*.py"))
)


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


def training_folder(out: Path, settings: Mapping[str, Any]) -> Path:
    """The folder beside `out` for the checkpoints of this very run; those of other runs for `out` are removed.

    Its name has a hash of the settings, of all bytes of the files and folders that are among them, of this program, and
    of PyTorch's version and number of threads: what the trained bits depend on.
    """
    out = Path(os.path.realpath(out))
    digest = hashlib.sha256(f"{torch.__version__}, {torch.get_num_threads()} threads".encode())
    for name, value in {**settings, "program": _PROGRAM}.items():
        for each in value if isinstance(value, tuple) else (value,):
            digest.update(f"\n{name} {_digest(each) if isinstance(each, Path) else repr(each)}".encode())
    folder = out.parent / f".{out.name}.training-{digest.hexdigest()[:16]}"
    for stale in sorted(out.parent.glob(f".{glob.escape(out.name)}.training-*")):
        if stale != folder:
            print(f"{stale} is of a run with other settings or files, and is removed", file=sys.stderr, flush=True)
            shutil.rmtree(stale, ignore_errors=True)
    return folder


def _digest(path: Path) -> str:
    """sha256 of a file, or of the names and bytes of all files below a folder."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for each in tqdm(files, desc="hashing", unit=" file", delay=1):
        of_file = hashlib.sha256()
        with each.open("rb") as file:
            while block := file.read(2**20):
                of_file.update(block)
        name = each.relative_to(path).as_posix() if path.is_dir() else ""
        whole.update(f"{name!r} {of_file.hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
