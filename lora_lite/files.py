"""Adapters on disk, in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Shapes: K in features, N out features, R rank, V vocabulary, D model width, n token rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_lite.layers import LowRank, TiedLowRank, TokenRows, layer_size, low_rank_of, stores_transposed
from lora_lite.lora import (
    LoRAConfig,
    adapter_names,
    adapters_of,
    base_modules,
    lora_layers,
    set_adapter,
    wrap,
    wrapped_layers,
)

__all__ = ["AdapterError", "load_adapter", "save_adapter", "swap_adapter"]

_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_TOKENS = "token_adapter.trainable_tokens_delta"


class AdapterError(ValueError):
    """An adapter folder that cannot be used, or a model whose adapter cannot be saved; the message says why."""


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    base_model: str | None = None,
    task_type: str | None = "CAUSAL_LM",
) -> None:
    """Write one of the model's adapters where `peft.PeftModel.from_pretrained` reads it.

    Both files are written beside their targets, read back, and renamed. PiSSA and OLoRA become plain LoRA of rank 2R,
    [A; A0] and [B, -B0], so that they fit the unchanged base.

    Args:
        model: with adapters from `add_lora` or `load_adapter`.
        folder: made if it is not there.
        name: of the adapter; `None` takes the only one.
        base_model: name or path of the base model, noted in the config for whoever loads the adapter.
        task_type: PEFT's; None for a model that is no language model.

    Raises:
        AdapterError: the model has no such adapter, or a weight is not finite.
    """
    names = adapter_names(model)
    if not names or (name is None and len(names) > 1) or name not in (None, *names):
        have = f"the model has the adapters {names}" if names else "the model has no adapters to save"
        raise AdapterError(f"{have}: call add_lora first, or give one of them as name=")
    name = name or names[0]
    tensors, settings = _tensors(model, name), _settings(model, name, base_model, task_type)
    broken = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise AdapterError(f"{', '.join(broken[:4])} holds NaN or infinity: the training diverged, lower its rate")
    metadata = {"format": "pt"}
    adapted = [path for path, layer in wrapped_layers(model).items() if low_rank_of(layer.adapter(name))]
    if digest := _base_hash(model, adapted):
        metadata["base_sha256"] = digest

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
        save_file(tensors, Path(beside) / _WEIGHTS, metadata=metadata)
        _sort_metadata(Path(beside) / _WEIGHTS)
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (Path(beside) / _CONFIG).write_text(text, encoding="utf-8")
        shutil.copymode(Path(beside) / _CONFIG, Path(beside) / _WEIGHTS)  # save_file makes it the owner's alone
        written = load_file(Path(beside) / _WEIGHTS)
        if written.keys() != tensors.keys() or not all(torch.equal(written[key], tensors[key]) for key in tensors):
            raise AdapterError(f"{folder}: what was written reads back otherwise: check the disk")
        (folder / _CONFIG).unlink(missing_ok=True)  # so that a kill between the two leaves no pair that does not fit
        for file in (_WEIGHTS, _CONFIG):
            os.replace(Path(beside) / file, folder / file)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, in place: the library writes it in one that changes by chance."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load_adapter(
    model: nn.Module, folder: str | Path, name: str = "default", trainable: bool = False, any_base: bool = False
) -> list[str]:
    """Add the adapter that `save_adapter` or PEFT wrote to `folder`, and make it the active one.

    Loading is strict: what is missing, unexpected or misshapen, and a base model other than the one that the adapter
    was saved with, is listed in one error, and the model is then as before.

    Args:
        model: the base model, perhaps with other adapters; changed in place.
        name: of the adapter in this model.
        trainable: whether it may be trained on.
        any_base: do not compare the base model's hash (only `save_adapter` writes one, and only of float weights).

    Returns:
        The full names of the adapted layers.

    Raises:
        AdapterError: the files are missing or damaged, do not fit the model, or use a feature that is not supported.
        ValueError: the model has an adapter of this name already.
    """
    found = _read(model, Path(folder), any_base)
    try:
        wrap(model, name, found.config, found.layers, found.tokens, found.replaced, torch.Generator(), found.tied)
    except ValueError as error:
        raise AdapterError(f"{folder}: {error}") from None
    adapters_of(model).by_name[name].trainable = trainable
    _fill(model, name, found)
    set_adapter(model, name)
    return list(found.layers)


def swap_adapter(model: nn.Module, folder: str | Path, name: str = "default", any_base: bool = False) -> None:
    """Put the weights of another saved adapter into the adapter `name`, in place: nothing is rebuilt or recompiled.

    Raises:
        AdapterError: as `load_adapter`, or the saved one has other layers or ranks, or is of another kind; the model is
            then as before.
        ValueError: the model has no adapter of this name.
    """
    adapters_of(model).require(name)
    found = _read(model, Path(folder), any_base)
    new, old = found.tensors, _tensors(model, name, exported=False)
    problems = [f"{key} is in one of the two only" for key in sorted(new.keys() ^ old.keys())]
    problems += [
        f"{key} is {tuple(new[key].shape)} there and {tuple(old[key].shape)} here"
        for key in sorted(new.keys() & old.keys())
        if new[key].shape != old[key].shape
    ]
    updates = [layer.adapter(name) for layer in lora_layers(model).values()]
    if found.config.rslora != adapters_of(model).by_name[name].config.rslora or any(map(_has_start, updates)):
        problems.append("the scaling or the start of A and B is of another kind")
    for path, layer in lora_layers(model).items():
        rows = layer.adapter(name)
        if isinstance(rows, TokenRows) and list(rows.ids) != list(found.tokens.get(path, rows.ids)):
            problems.append(
                f"the rows of {path} are of the tokens {found.tokens[path]} there and {list(rows.ids)} here"
            )
    if problems:
        raise AdapterError(f"{folder} does not fit adapter {name!r}: {'; '.join(problems)}. Load it under a new name.")
    _fill(model, name, found)


@dataclass
class _Found:
    """What an adapter folder holds, checked against a model."""

    config: LoRAConfig
    tensors: dict[str, Tensor]
    layers: list[str]
    tokens: dict[str, list[int]]
    replaced: list[str]
    tied: bool


def _tensors(model: nn.Module, name: str, exported: bool = True) -> dict[str, Tensor]:
    """Everything that one adapter trains, by PEFT's keys; `exported` with a frozen start as further ranks."""
    tensors: dict[str, Tensor] = {}
    wrapped = wrapped_layers(model)
    for path, layer in wrapped.items():
        update = layer.adapter(name)
        key = _PREFIX + path
        if isinstance(update, TokenRows):
            if not any(tensor is update.rows for tensor in tensors.values()):  # a tied head's rows are the embedding's
                tensors[f"{key}.{_TOKENS}"] = update.rows
        elif own := low_rank_of(update):
            A, B = own.factors() if exported else (own.lora_A, own.lora_B)
            if isinstance(update, TiedLowRank):
                A, B = B.T, A.T
            first, second = _pair(path, layer.base)
            tensors[first], tensors[second] = A, B
            if own.magnitude is not None:
                tensors[f"{key}.lora_magnitude_vector"] = own.magnitude
    adapted = [path for path, layer in wrapped.items() if low_rank_of(layer.adapter(name))]
    for path, p in adapters_of(model).by_name[name].replaced.items():
        tensors[_replaced_key(path, adapted)] = p
    # PEFT takes a name in modules_to_save for the end of one: what it would take besides goes with it, unchanged
    whole = _whole(model, name)
    for path, module in base_modules(model).items() if whole else ():
        if path not in adapted and any(path.endswith(end) for end in whole):
            for leaf, p in module.named_parameters():
                tensors.setdefault(f"{_PREFIX}{path}.{leaf}", p)
    # a copy of each: safetensors stores no tensor that shares memory with another
    return {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in tensors.items()}


def _settings(model: nn.Module, name: str, base_model: str | None, task_type: str | None) -> dict[str, Any]:
    """The adapter's `adapter_config.json`."""
    config, layers = adapters_of(model).by_name[name].config, wrapped_layers(model)
    updates = {path: layer.adapters[name] for path, layer in layers.items() if name in layer.adapters}
    low_rank = {path: own for path, update in updates.items() if (own := low_rank_of(update))}
    wider = 2 if any(_has_start(update) for update in low_rank.values()) else 1  # and the scale must stay
    ranks = {path: wider * u.rank for path, u in low_rank.items()}
    alphas = {path: u.alpha * (math.sqrt(wider) if u.rslora else wider) for path, u in low_rank.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    replaced = adapters_of(model).by_name[name].replaced
    tied = any(isinstance(update, TiedLowRank) for update in updates.values())
    tied |= len({id(p) for p in replaced.values()}) < len(replaced)
    modules, names = base_modules(model), list(low_rank)
    tokens: dict[str, list[int]] = {}
    for key in _tensors(model, name):
        if key.endswith(_TOKENS):
            path = key.removeprefix(_PREFIX).removesuffix(f".{_TOKENS}")
            update = updates[path]
            assert isinstance(update, TokenRows)
            tokens[path] = list(update.ids)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": _target_modules(modules, names),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "bias": config.bias,
        "fan_in_fan_out": any(_is_conv1d(layers[path].base) for path in low_rank),
        "init_lora_weights": True,
        "modules_to_save": _whole(model, name) or None,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "rank_pattern": {_pattern(path, names): r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {_pattern(path, names): a for path, a in alphas.items() if a != alpha},
        "trainable_token_indices": tokens or None,
        "ensure_weight_tying": tied,
    }


def _whole(model: nn.Module, name: str) -> list[str]:
    """The modules that an adapter trains whole: those of its whole parameters that are more than trained biases."""
    entry = adapters_of(model).by_name[name]
    biases = entry.config.bias != "none"
    return sorted({p.rpartition(".")[0] for p in entry.replaced if not biases or p.rsplit(".", 1)[-1] != "bias"})


def _target_modules(modules: Iterable[str], names: list[str]) -> list[str] | str:
    """Last segments of the names where those find just these layers, as PEFT users write them; else full names.

    PEFT takes a name for the end of one, so where a full name is another's end it is a regular expression.
    """
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    if {name for name in modules if name.rsplit(".", 1)[-1] in ends} == set(names):
        return ends
    if any(path != name and path.endswith(f".{name}") for name in names for path in modules):
        return "|".join(re.escape(name) for name in sorted(names))
    return sorted(names)


def _pattern(path: str, names: list[str]) -> str:
    """A layer's key in PEFT's rank_pattern, which is looked for at the end of names: anchored where that finds others."""
    return f"^{path}" if any(name.endswith(f".{path}") for name in names) else path


# Fields of adapter_config.json that are read, and those that say nothing of what a saved adapter computes. Any other
# field must be empty: it would be a feature that is not known here.
_READ = (
    *("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "bias", "init_lora_weights", "modules_to_save", "use_rslora", "use_dora", "rank_pattern"),
    *("alpha_pattern", "trainable_token_indices", "ensure_weight_tying"),
)
_IDLE = (
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "runtime_config"),
)
# starts that leave the base as it was; the others (pissa, olora, loftq, corda, ...) save A and B for a changed base
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def _read(model: nn.Module, folder: Path, any_base: bool) -> _Found:
    """Read an adapter folder and check every key of it against the model."""
    settings = _read_settings(folder / _CONFIG)
    tensors, metadata = _read_tensors(folder / _WEIGHTS)
    modules = base_modules(model)
    adaptable = [path for path, module in modules.items() if path and layer_size(module)]
    layers = [path for path in adaptable if any(key in tensors for key in _pair(path, modules[path]))]
    try:
        targets, config = _targeted(settings, adaptable), _config(settings, layers)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise AdapterError(f"{folder / _CONFIG}: {error}") from None
    tied = bool(settings.get("ensure_weight_tying")) or _equal_where_shared(modules, layers, tensors)
    problems = [
        f"{path} is no target of its own config" for path in layers if targets and path not in targets and not tied
    ]
    tokens, untold = _tokens(settings, tensors, modules)
    problems += [f"missing the rows that trainable_token_indices names for {end}" for end in untold]
    replaced = _replaced(settings, modules, layers, tied)

    shapes: dict[str, tuple[int, ...]] = {}  # of every key that must be there
    for path in dict.fromkeys((*layers, *targets)):
        shapes |= _pair_shapes(
            path, modules[path], _by_pattern(settings, "rank_pattern", path, settings["r"]), config.dora
        )
    for path, ids in tokens.items():
        N, K = layer_size(modules[path]) or (0, 0)
        size = K if isinstance(modules[path], nn.Embedding) else N
        if not all(isinstance(i, int) and 0 <= i < size for i in ids):
            problems.append(f"trainable_token_indices of {path} are {ids}, it has {size} rows: resize it first")
            ids = []
        shapes[f"{_PREFIX}{path}.{_TOKENS}"] = (len(ids), _tensor_at(modules, f"{path}.weight").shape[-1])
    for path in replaced:
        shapes[_replaced_key(path, layers)] = tuple(_tensor_at(modules, path).shape)

    problems += _misfits(tensors, shapes, layers, modules)
    digest = metadata.get("base_sha256")
    if digest and not any_base and _base_hash(model, layers) not in (digest, None):
        problems.append(
            "the base model's weights hash to another sha256 than those it was saved over (any_base=True loads it anyway)"
        )
    if problems or not layers:
        raise AdapterError(
            f"{folder / _WEIGHTS} does not fit the model: {'; '.join(problems) or 'it holds no adapter'}. "
            "Load the base model that the adapter was trained on."
        )
    return _Found(config, tensors, layers, tokens, replaced, tied)


def _misfits(
    tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], layers: list[str], modules: dict[str, nn.Module]
) -> list[str]:
    """What is missing, unexpected, misshapen or not finite; first takes out of `tensors` what PEFT adds to a file."""
    problems: list[str] = []
    for key in list(tensors):  # with bias="all" PEFT adds the biases of its own wrappers, under their names
        plain = {
            re.sub(r"\.(modules_to_save|original_module)\.", ".", key),
            re.sub(r"\.modules_to_save\.[\w-]+\.", ".", key),
        }
        if plain - {key} and (plain - {key}) & tensors.keys():
            del tensors[key]
    for path in layers:  # PEFT adds an adapted embedding's own weight
        stored = tensors.pop(f"{_PREFIX}{path}.base_layer.weight", None)
        if stored is not None and not _same(stored, _tensor_at(modules, f"{path}.weight")):
            problems.append(f"{_PREFIX}{path}.base_layer.weight is not the weight of the model's {path}")
    problems += [f"missing {key}" for key in shapes if key not in tensors]
    problems += [f"unexpected key {key}{_why(key, modules)}" for key in tensors if key not in shapes]
    for key in [key for key in shapes if key in tensors]:
        if tuple(tensors[key].shape) != shapes[key]:
            problems.append(f"{key} has shape {tuple(tensors[key].shape)}, needed is {shapes[key]}")
        elif not tensors[key].isfinite().all():
            problems.append(f"{key} holds NaN or infinity")
    return problems


def _config(settings: dict[str, Any], layers: list[str]) -> LoRAConfig:
    """Our config of what PEFT's says of these layers."""
    ranks = {path: _by_pattern(settings, "rank_pattern", path, settings["r"]) for path in layers}
    alphas = {path: float(_by_pattern(settings, "alpha_pattern", path, settings["lora_alpha"])) for path in layers}
    return LoRAConfig(
        rank=settings["r"],
        alpha=float(settings["lora_alpha"]),
        dropout=settings.get("lora_dropout") or 0.0,
        targets=tuple(layers) or ("none",),
        rank_pattern={f"re:{re.escape(path)}": rank for path, rank in ranks.items() if rank != settings["r"]},
        alpha_pattern={f"re:{re.escape(p)}": alpha for p, alpha in alphas.items() if alpha != settings["lora_alpha"]},
        rslora=bool(settings.get("use_rslora")),
        dora=bool(settings.get("use_dora")),
        bias=settings.get("bias") or "none",
        modules_to_save=tuple(settings.get("modules_to_save") or ()),
    )


def _pair_shapes(path: str, base: nn.Module, rank: int, dora: bool) -> dict[str, tuple[int, ...]]:
    """The keys of one layer's update and their shapes."""
    size = layer_size(base)
    assert size is not None
    N, K = size
    first, second = _pair(path, base)
    shapes: dict[str, tuple[int, ...]] = {first: (rank, K), second: (N, rank)}
    return {**shapes, f"{_PREFIX}{path}.lora_magnitude_vector": (N,)} if dora else shapes


@torch.no_grad()
def _fill(model: nn.Module, name: str, found: _Found) -> None:
    """Copy what was read into the adapter, which has just these layers and shapes."""
    for path, layer in wrapped_layers(model).items():
        update = layer.adapter(name)
        if isinstance(update, TokenRows) and f"{_PREFIX}{path}.{_TOKENS}" in found.tensors:
            update.rows.copy_(found.tensors[f"{_PREFIX}{path}.{_TOKENS}"])
        elif isinstance(update, LowRank):
            first, second = _pair(path, layer.base)
            update.lora_A.copy_(found.tensors[first])
            update.lora_B.copy_(found.tensors[second])
            update.alpha = found.config.alpha_of(path)
            if update.magnitude is not None:
                update.magnitude.copy_(found.tensors[f"{_PREFIX}{path}.lora_magnitude_vector"])
    for path, p in adapters_of(model).by_name[name].replaced.items():
        p.copy_(found.tensors[_replaced_key(path, found.layers)])


def _pair(path: str, base: nn.Module) -> tuple[str, str]:
    """PEFT's keys of A and B."""
    if isinstance(base, nn.Embedding):
        return f"{_PREFIX}{path}.lora_embedding_A", f"{_PREFIX}{path}.lora_embedding_B"
    return f"{_PREFIX}{path}.lora_A.weight", f"{_PREFIX}{path}.lora_B.weight"


def _replaced_key(path: str, layers: Iterable[str]) -> str:
    """PEFT's key of a parameter that takes the base's place."""
    parent, _, leaf = path.rpartition(".")
    return f"{_PREFIX}{parent}.base_layer.{leaf}" if parent in layers else _PREFIX + path


def _why(key: str, modules: dict[str, nn.Module]) -> str:
    """What is wrong with a key that was not expected, where it is plain."""
    path = re.sub(r"\.lora_(embedding_)?[AB](\.weight)?$", "", key.removeprefix(_PREFIX))
    if path == key.removeprefix(_PREFIX) or layer_size(modules.get(path, nn.Identity())) is not None:
        return ""
    return f" (the model has no linear layer {path})"


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _tensor_at(modules: dict[str, nn.Module], path: str) -> Tensor:
    parent, _, leaf = path.rpartition(".")
    tensor = getattr(modules[parent], leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _same(stored: Tensor, present: Tensor) -> bool:
    """Equal, in the coarser of the two dtypes."""
    return stored.shape == present.shape and (
        torch.equal(stored.to(present), present) or torch.equal(present.to(stored), stored)
    )


def _tokens(
    settings: dict[str, Any], tensors: Iterable[str], modules: dict[str, nn.Module]
) -> tuple[dict[str, list[int]], list[str]]:
    """The token ids of each layer that has trained rows in the file, and what the config names without there being any."""
    wanted = settings.get("trainable_token_indices") or {}
    paths = [key.removeprefix(_PREFIX).removesuffix(f".{_TOKENS}") for key in tensors if key.endswith(_TOKENS)]
    paths = [path for path in paths if path in modules and layer_size(modules[path])]
    if isinstance(wanted, list):
        return {path: wanted for path in paths}, [] if paths else ["the embedding"]
    found = {path: ids for path in paths for end, ids in wanted.items() if path == end or path.endswith(f".{end}")}
    told = {id(getattr(modules[path], "weight", None)): ids for path, ids in found.items()}
    untold = []
    for end, ids in wanted.items():
        named = [m for path, m in modules.items() if path == end or path.endswith(f".{end}")]
        if not named or any(told.get(id(getattr(m, "weight", None))) != ids for m in named):  # a tied head has no own
            untold.append(end)
    return found, untold


def _replaced(settings: dict[str, Any], modules: dict[str, nn.Module], layers: list[str], tied: bool) -> list[str]:
    """The parameters that a file must hold whole: biases, and those of modules_to_save, as PEFT finds them.

    PEFT takes a name in modules_to_save for the end of one, and forgives names that are not there: it adds "score" and
    "classifier" on its own for classification tasks.
    """
    parameters = {
        _join(path, leaf): p for path, m in modules.items() for leaf, p in m._parameters.items() if p is not None
    }
    roots = [path for path in modules if any(path.endswith(m) for m in settings.get("modules_to_save") or ())]
    wanted = {name for name in parameters if any(name.startswith(f"{root}.") for root in roots)}
    if settings.get("bias") == "all":
        wanted |= {name for name in parameters if name.rsplit(".", 1)[-1] == "bias"}
    elif settings.get("bias") == "lora_only":
        wanted |= {f"{layer}.bias" for layer in layers if f"{layer}.bias" in parameters}
    shared = {id(parameters[name]) for name in wanted} if tied else set()
    return [name for name, p in parameters.items() if name in wanted or id(p) in shared]


def _equal_where_shared(modules: dict[str, nn.Module], layers: list[str], tensors: dict[str, Tensor]) -> bool:
    """Whether layers with one weight also have one update in the file; then they go on sharing it."""
    sharing: dict[int, list[str]] = {}
    for path, module in modules.items():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            sharing.setdefault(id(module.weight), []).append(path)
    groups = [names for names in sharing.values() if len(names) > 1 and set(names) & set(layers)]
    for names in groups:
        pairs = []
        for path in names:
            A, B = (tensors.get(key) for key in _pair(path, modules[path]))
            if A is None or B is None:
                return False
            pairs.append((A, B) if stores_transposed(modules[path]) else (B.T, A.T))
        if not all(torch.equal(one, other) for pair in pairs[1:] for one, other in zip(pair, pairs[0])):
            return False
    return bool(groups)


def _by_pattern(settings: dict[str, Any], kind: str, path: str, default: Any) -> Any:
    """A layer's own rank or alpha, as PEFT finds it: the first pattern that fits the end of its name."""
    for pattern, value in (settings.get(kind) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _targeted(settings: dict[str, Any], paths: list[str]) -> list[str]:
    """The layers that the config's own targets name, as PEFT reads them: ends of names, or a regular expression.

    Empty for "all-linear": which layers PEFT means by that depends on its version, so the file's keys tell.
    """

    def named(path: str, wanted: Any) -> bool:
        if isinstance(wanted, str):
            return re.fullmatch(wanted, path) is not None
        return any(path == end or path.endswith(f".{end}") for end in wanted or ())

    wanted, excluded = settings.get("target_modules"), settings.get("exclude_modules")
    if wanted == "all-linear":
        return []
    blocks, lists = settings.get("layers_to_transform"), settings.get("layers_pattern") or [r"[^.]*"]
    blocks = [blocks] if isinstance(blocks, int) else blocks
    lists = [lists] if isinstance(lists, str) else lists
    found = []
    for path in paths:
        saved = any(re.match(rf"(^|.*\.){m}($|\..*)", path) for m in settings.get("modules_to_save") or ())
        block = next((m[1] for p in lists if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", path))), None)
        other = blocks and not isinstance(wanted, str) and (block is None or int(block) not in blocks)
        if named(path, wanted) and not named(path, excluded) and not saved and not other:
            found.append(path)
    return found


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist: give a folder that save_adapter or PEFT wrote") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} holds no JSON object")
    if settings.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type={settings.get('peft_type')!r} is not supported: only LORA is")
    for key, value in settings.items():
        empty = value is None or value is False or value in ([], {}, "")
        if key not in (*_READ, *_IDLE) and not empty:
            raise AdapterError(f"{path}: {key}={value!r} is not supported")
    if settings.get("init_lora_weights") not in _PLAIN_STARTS:
        raise AdapterError(
            f"{path}: init_lora_weights={settings['init_lora_weights']!r} fits a changed base: save it from peft with "
            "path_initial_model_for_weight_conversion, as plain LoRA"
        )
    if settings.get("bias") not in (None, "none", "all", "lora_only"):
        raise AdapterError(f"{path}: bias={settings['bias']!r} is not supported")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise AdapterError(f"{path}: r={rank!r} and lora_alpha={alpha!r} must both be given as numbers")
    return settings


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise AdapterError(f"{path} does not exist: give a folder that save_adapter or PEFT wrote")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in sorted(file.keys())}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a whole safetensors file ({error}): copy it again") from None


def _base_hash(model: nn.Module, adapted: Iterable[str]) -> str | None:
    """sha256 of the base's parameters: of adapted layers whole, of the others some 8,000 numbers each.

    Rounded to bfloat16, so that a base loaded in float32 or in bfloat16 is the same one. None where that cannot be:
    float16 rounds otherwise, no process has the whole of a base that is spread over several, and adapters move between a quantized base and the float one that it was made of.
    """
    modules, adapted, digest, seen = base_modules(model), set(adapted), hashlib.sha256(), set[int]()
    originals = adapters_of(model).originals if adapter_names(model) else {}
    for path in sorted(modules):
        weight = getattr(modules[path], "weight", None)
        if layer_size(modules[path]) and (not isinstance(weight, Tensor) or not weight.is_floating_point()):
            return None
        for leaf, p in modules[path]._parameters.items():
            p = originals.get(_join(path, leaf), p)
            if p is None or id(p) in seen:
                continue
            if p.dtype == torch.float16 or hasattr(p, "full_tensor"):  # the latter is spread over several processes
                return None
            seen.add(id(p))
            sample = p.detach().flatten()[:: 1 if path in adapted else max(1, p.numel() // 8192)]
            digest.update(f"{path}.{leaf} {tuple(p.shape)} ".encode())
            digest.update(sample.cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _has_start(update: nn.Module | None) -> bool:
    own = low_rank_of(update)
    return own is not None and own.start_A is not None


def _is_conv1d(base: nn.Module) -> bool:
    return stores_transposed(base) and not isinstance(base, nn.Embedding)
