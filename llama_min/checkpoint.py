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
_FLOATS = ("F32", "F16", "BF16", "F64")  # as safetensors spells them; int8 and 4-bit weights need their own loader


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
                header = file.get_slice(name)
                shape, kind = tuple(header.get_shape()), header.get_dtype()
                if name not in expected:
                    problems.append(f"unexpected {name} {shape}")
                elif shape != expected[name]:
                    problems.append(f"{name} has shape {shape}, the config says {expected[name]}")
                elif kind not in _FLOATS:
                    problems.append(f"{name} has dtype {kind}, needed is one of {', '.join(_FLOATS)}")
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


def save_llama(model: Llama, folder: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write `model` as a Hugging Face folder: `config.json` and its weights, a tied head stored once.

    The weights go to one `model.safetensors` where they fit `max_shard_bytes`, else to shards of at most that size
    (a larger tensor has one of its own) and their index. All files are written beside their targets and renamed, so
    that a kill leaves no half file under a final name; an older layout of the same folder is removed last.

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
    shards = _shards(tensors, max_shard_bytes)
    files = {_WEIGHTS: tensors} if len(shards) == 1 else {}
    for number, names in enumerate(shards if len(shards) > 1 else [], start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files[file] = {name: tensors[name] for name in names}
    texts = {"config.json": {**model.config.to_dict(), "torch_dtype": dtype}}
    if len(shards) > 1:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        weight_map = {name: file for file, part in files.items() for name in part}
        texts[_INDEX] = {"metadata": {"total_size": size}, "weight_map": weight_map}

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        beside = Path(temporary)
        for file, content in texts.items():
            (beside / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for file, part in files.items():
            save_file(part, beside / file, metadata={"format": "pt"})
            shutil.copymode(beside / "config.json", beside / file)  # save_file makes it the owner's alone
        for file in (*files, *texts):
            os.replace(beside / file, folder / file)
    for path in (folder / _WEIGHTS, folder / _INDEX, *folder.glob("model-*-of-*.safetensors")):
        if path.name not in (*files, *texts):
            path.unlink(missing_ok=True)


def _shards(tensors: dict[str, torch.Tensor], max_bytes: int) -> list[list[str]]:
    """Names in their order, parted so that no part passes `max_bytes` unless a single tensor does."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if parts[-1] and filled + size > max_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    return parts


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
    here = {path for path in files if path.parent == folder}  # "../x" and "a/x" have another parent
    what = [f"{path.name} lies outside the folder" for path in files.keys() - here]
    what += [f"{path.name} is missing" for path in here if not path.is_file()]
    what += [f"{path.name} is not in the index" for path in set(folder.glob("model-*-of-*.safetensors")) - here]
    if what:
        raise CheckpointError(f"{index}: {'; '.join(sorted(what))}. Download the folder again.")
    return files


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}): download it again") from None


def _named_in(problems: list[str], name: str) -> bool:
    return any(problem.startswith((f"{name} ", f"missing {name} ")) for problem in problems)
