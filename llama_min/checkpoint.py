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
from llama_min.stacking import unstacked

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

    The model is built without memory (on PyTorch's meta device) and the files are mapped: weights that keep their
    dtype on the CPU are the file's own pages, read when they are first used, and others are converted one by one, so
    that the peak is the weights plus one tensor.

    Args:
        folder: holds `config.json` and `model.safetensors`, or `model.safetensors.index.json` with its shards.
        dtype: of the weights in memory.
        device: where the weights go.

    Raises:
        CheckpointError: a file is missing, damaged or not a Llama's; all shards and tensors that are missing,
            unexpected, misshapen or of a dtype that is no float are listed in one message, before any is read.
    """
    folder = Path(folder)
    config = LlamaConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = Llama(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    loaded: dict[str, torch.Tensor] = {}
    for path, names in _find_tensors(folder, expected, config.tie_word_embeddings).items():
        for name in names:
            # a map for each tensor: what was read through it is given back with the tensor, not with the last of the file
            with safe_open(path, framework="pt") as mapped:
                loaded[name] = mapped.get_tensor(name).to(device, dtype)

    if config.tie_word_embeddings:
        if _HEAD in loaded and not torch.equal(loaded[_HEAD], loaded[_EMBEDDING]):
            raise CheckpointError(
                f"{folder}: {_HEAD} differs from {_EMBEDDING} although config.json ties them: set tie_word_embeddings "
                "to false there"
            )
        loaded[_HEAD] = loaded[_EMBEDDING]
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
    state = unstacked(model.state_dict(), model.config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
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


def _find_tensors(folder: Path, expected: dict[str, tuple[int, ...]], tied: bool) -> dict[Path, list[str]]:
    """Which file holds which of the expected tensors, by the files' headers; raises where they do not fit."""
    promised = _weight_files(folder)
    found: dict[Path, list[str]] = {}
    seen: set[str] = set()
    problems: list[str] = []
    for path, names in promised.items():
        try:
            file = _open(path, folder)
        except CheckpointError as error:
            problems.append(str(error))
            seen |= names or expected.keys()  # said once for the file, not for each of its tensors
            continue
        with file:
            held = set(file.keys())
            problems += [f"{name} is listed for {path.name} but not in it" for name in sorted(names - held)]
            for name in sorted(held):
                if name.endswith("rotary_emb.inv_freq"):
                    continue  # old exports carry this table; it follows from the config
                header = file.get_slice(name)
                shape, kind = tuple(header.get_shape()), header.get_dtype()
                if name not in expected:
                    problems.append(f"unexpected {name} {shape}")
                elif names and name not in names:
                    problems.append(f"{name} is in {path.name} but not listed for it")
                else:
                    if shape != expected[name]:
                        problems.append(f"{name} has shape {shape}, the config says {expected[name]}")
                    if kind not in _FLOATS:
                        problems.append(f"{name} has dtype {kind}, needed is one of {', '.join(_FLOATS)}")
                    found.setdefault(path, []).append(name)
            seen |= held | names
    if any(promised.values()):  # by an index
        others = set(folder.glob("model-*-of-*.safetensors")) - promised.keys()
        problems += [f"{path.name} is not in the index" for path in sorted(others)]
    optional = {_HEAD} if tied else set()
    problems += [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - seen - optional)]
    if problems:
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json: {'; '.join(problems)}. Download the folder again."
        )
    return found


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """The safetensors files of a folder, each with the tensors that its index promises; an empty set without index."""
    if (folder / _WEIGHTS).is_file():
        return {folder / _WEIGHTS: set()}
    index = folder / _INDEX
    if not index.is_file():
        raise CheckpointError(
            f"{folder} holds neither {_WEIGHTS} nor {_INDEX}: give a Hugging Face folder with safetensors weights"
        )
    files: dict[Path, set[str]] = {}
    try:
        for tensor, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            files.setdefault(folder / name, set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not a safetensors index ({error!r}): download it again") from None
    return files


def _open(path: Path, folder: Path) -> safe_open:
    """A safetensors file of `folder`, mapped; an index may have named one that is elsewhere, missing or damaged."""
    if path.parent != folder:  # "../x", "a/x" and "/x" have another parent
        raise CheckpointError(f"{path.name} lies outside the folder")
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing")
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file ({error})") from None
