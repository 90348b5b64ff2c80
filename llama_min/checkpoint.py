"""Load and save Hugging Face Llama folders: `config.json` beside one safetensors file, or an index and its shards."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llama_min.config import CheckpointError, LlamaConfig
from llama_min.model import Llama

__all__ = ["load_llama", "save_llama"]

_WEIGHTS, _INDEX, _HEAD, _EMBEDDING = (
    "model.safetensors",
    "model.safetensors.index.json",
    "lm_head.weight",
    "model.embed_tokens.weight",
)


def load_llama(folder: str | Path, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu") -> Llama:
    """Load a Llama from a Hugging Face folder, in evaluation mode.

    The model is built without memory (on PyTorch's meta device) and the files are mapped, so that the peak is the
    weights plus one tensor.

    Args:
        folder: holds `config.json` and `model.safetensors`, or `model.safetensors.index.json` with its shards.
        dtype: of the weights in memory; each tensor is converted as it is read.
        device: where the weights go.

    Raises:
        CheckpointError: a file is missing, damaged or not a Llama's; all missing, unexpected and misshapen tensors
            are listed in one message.
    """
    folder = Path(folder)
    config = LlamaConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = Llama(config)
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}

    loaded: dict[str, torch.Tensor] = {}
    problems: list[str] = []
    for path, listed in _weight_files(folder).items():
        with _open(path) as file:
            names = set(file.keys())
            problems += [f"{name} is listed for {path.name} but not in it" for name in sorted(listed - names)]
            for name in sorted(names):
                if name.endswith("rotary_emb.inv_freq"):
                    continue  # old exports carry this table; it follows from the config
                shape = tuple(file.get_slice(name).get_shape())
                if name not in expected:
                    problems.append(f"unexpected {name} {shape}")
                elif shape != expected[name]:
                    problems.append(f"{name} has shape {shape}, the config says {expected[name]}")
                else:
                    loaded[name] = file.get_tensor(name).to(device=device, dtype=dtype)

    if config.tie_word_embeddings and _EMBEDDING in loaded:
        head = loaded.setdefault(_HEAD, loaded[_EMBEDDING])
        if not torch.equal(head, loaded[_EMBEDDING]):
            problems.append(f"{_HEAD} differs from {_EMBEDDING} although the config ties them")
    missing = expected.keys() - loaded.keys()
    problems += [f"missing {name} {expected[name]}" for name in sorted(missing) if not _named_in(problems, name)]
    if problems:
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json: {'; '.join(problems)}. Download the folder again."
        )
    model.load_state_dict(loaded, strict=True, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def save_llama(model: Llama, folder: str | Path) -> None:
    """Write `model` as a Hugging Face folder: `config.json` and `model.safetensors`, a tied head stored once.

    Each file is written beside its target and renamed, so that a kill leaves no half file under a final name.

    Raises:
        ValueError: the model's parameters are not a plain Llama's (merge or remove adapters first).
    """
    with torch.device("meta"):
        expected = Llama(model.config).state_dict().keys()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if tensors.keys() != expected:
        other = sorted(tensors.keys() ^ expected)
        raise ValueError(f"not a plain Llama: {', '.join(other[:4])} ({len(other)} names differ); merge adapters first")
    if model.config.tie_word_embeddings:
        del tensors[_HEAD]
    dtype = str(tensors[_EMBEDDING].dtype).removeprefix("torch.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
        save_file(tensors, Path(beside) / _WEIGHTS, metadata={"format": "pt"})
        settings = {**model.config.to_dict(), "torch_dtype": dtype}
        (Path(beside) / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(Path(beside) / "config.json", Path(beside) / _WEIGHTS)  # save_file makes it the owner's alone
        for name in (_WEIGHTS, "config.json"):
            os.replace(Path(beside) / name, folder / name)


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files of a folder, each with the tensors that the index (where there is one) promises in it."""
    if (folder / _WEIGHTS).is_file():
        return {folder / _WEIGHTS: set()}
    index = folder / _INDEX
    if not index.is_file():
        raise CheckpointError(
            f"{folder} holds neither {_WEIGHTS} nor {_INDEX}: give a Hugging Face folder with safetensors weights"
        )
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str]] = {}
        for tensor, name in weight_map.items():
            files.setdefault(folder / name, set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index ({error!r}): download it again") from None
    outside = sorted(path.name for path in files if path.parent != folder)
    absent = sorted(path.name for path in files if path.parent == folder and not path.is_file())
    if outside or absent:
        what = [f"{name} lies outside the folder" for name in outside] + [f"{name} is missing" for name in absent]
        raise CheckpointError(f"{index}: {'; '.join(what)}. Download the folder again.")
    return files


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): download it again") from None


def _named_in(problems: list[str], name: str) -> bool:
    return any(problem.startswith((f"{name} ", f"missing {name} ")) for problem in problems)
