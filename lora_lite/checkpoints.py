"""Checkpoints of a run, each a file that is whole or not there: written beside its place, synced, renamed.

A checkpoint is one safetensors file `step-00000012.safetensors`: the tensors by name, and in its metadata the rest of
the state as JSON and a sha256 of all of it. No pickle: reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["CheckpointError", "checkpoint_steps", "load_checkpoint", "load_newest", "save_checkpoint", "sync"]

_NAME = re.compile(r"step-(\d{8})\.safetensors")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says why and what is left."""


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps after which there is a checkpoint in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, os.listdir(folder)) if match)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int, best: int
) -> None:
    """Write the checkpoint of `step`, then delete all but the last `keep` of them and that of step `best`.

    Later ones are deleted, too: a run that is at this step again went back past them, because they are damaged.

    Raises:
        CheckpointError: it cannot be written, such as on a full disk; those before it stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = _path(folder, step)
    partial = place.with_suffix(".partial")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    try:
        for stale in folder.glob("*.partial"):  # of a process that was killed
            stale.unlink()
        save_file(held, partial, metadata={"state": text, "sha256": _digest(held, text)})
        sync(partial)
        os.replace(partial, place)
        sync(folder)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        whole = [_path(folder, step).name for step in checkpoint_steps(folder)[-1:]]
        left = f"the last whole checkpoint is {whole[0]}" if whole else "there is no checkpoint before it"
        raise CheckpointError(f"{place} could not be written ({error}); {left}") from error
    steps = checkpoint_steps(folder)
    kept = {*[earlier for earlier in steps if earlier <= step][-keep:], best}
    for other in steps:
        if other not in kept:
            _path(folder, other).unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint that is whole; None where there is none at all.

    A damaged one is passed over for the one before it, with a warning that says so.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        try:
            return load_checkpoint(_path(folder, step))
        except CheckpointError as error:
            warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
    if steps:
        raise CheckpointError(f"none of the {len(steps)} checkpoints in {folder} is whole: begin again elsewhere")
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of one checkpoint.

    Raises:
        CheckpointError: the file is not whole.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None
    text = metadata.get("state", "")
    if metadata.get("sha256") != _digest(tensors, text):
        raise CheckpointError(f"{path} is damaged (its sha256 is not that of what it holds)")
    return tensors, json.loads(text)


def sync(path: Path) -> None:
    """Have the system write a file or folder to the disk itself, where that can be asked for."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """sha256 of names, shapes, types and bytes of the tensors, and of the text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
