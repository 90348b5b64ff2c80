"""Output that is whole or not there at all, and the model folders in it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from examples.leukemia.data import UserError
from llama_min import Llama, LlamaConfig
from quant_lite import load_quantized, save_quantized

__all__ = ["copy_tokenizer", "load_int8", "new_folder", "save_int8"]

_MARK = "metrics.json"  # a folder that holds this file is a finished run of ours


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target` when the block ends, and disappears if it fails.

    It lies beside the target, so that becoming it is one rename. An earlier run at `target` stays whole until then
    and is replaced whole; a folder that holds anything else is refused.

    Raises:
        UserError: `target` holds other files, or cannot be written.
    """
    if target.exists() and not (target / _MARK).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an earlier run's folder: give an --out that is new or empty")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(13, "Permission denied")
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.unfinished-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): give another --out") from None
    try:
        work.chmod(0o777 & ~_umask())  # mkdtemp's folder is the owner's alone
        yield work
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(work, target)
            shutil.rmtree(old)
        else:
            os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
