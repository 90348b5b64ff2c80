"""The compressed-tensors layout: Hugging Face folders of int8 and int4 weights, which transformers and vLLM read.

`int-quantized` has a layer's weight as int8 (N, K). `pack-quantized` has it as int32 (N, ceil(K bits / 32)), from the
lowest bits up; a row of int8, and the 32 bits that it becomes:

    q          -127    0     5   127
    q + 128       1  128   133   255        = 0xFF858001

With 4 bits it is q + 8, and eight numbers in 32 bits. x_hat = q * scale, as everywhere in this package.

Shapes: N out features, K in features, G groups.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quant_lite.files import QuantizedFileError, checksum, differences, is_finite, replaceable, to_place_of
from quant_lite.linear import (
    BFloat16Linear,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    pack_nibbles,
    unpack_nibbles,
)
from quant_lite.quantize import QuantizedTensor
from quant_lite.replacing import put_layer

__all__ = ["load_compressed", "save_compressed"]

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_METHOD = "compressed-tensors"
_CHECKSUMS = "quant_lite.checksums"  # in the header of the weights, where other readers pass over it
_PACK, _INT, _MIXED = "pack-quantized", "int-quantized", "mixed-precision"
_GROUP_KEYS = ("targets", "weights", "input_activations", "output_activations", "format")
_WEIGHTS_KEYS = (  # all that the library writes
    *("num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder"),
    *("scale_dtype", "zp_dtype", "observer", "observer_kwargs"),
)
_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}  # a row as it comes
# settings of training, of generating, of a caller's wishes, and of what the tensors or their ties say themselves
_NO_FUNCTION = re.compile(
    r"architectures|(torch_)?dtype|transformers_version|attn_implementation|tie_word_embeddings|use_cache|return_dict|"
    r"(bos|eos|pad|sep|cls|unk|mask|decoder_start)_token_ids?|max_position_embeddings|output_.*|initializer_.*|init_std|"
    r".*dropout.*|.*drop_path.*|id2label|label2id|num_labels|problem_type|pretraining_tp|chunk_size_.*|.*_loss_.*"
)


@dataclass(frozen=True)
class _Scheme:
    """What the layout has to say of a layer's weight and input."""

    format: str
    bits: int
    strategy: str
    group: int | None
    activations: str

    def to_dict(self, targets: list[str]) -> dict[str, Any]:
        """One entry of `config_groups`."""
        weights = {"num_bits": self.bits, "type": "int", "symmetric": True, "strategy": self.strategy, "dynamic": False}
        return {
            "targets": targets,
            "format": self.format,
            "weights": weights | {"group_size": self.group},
            "input_activations": None if self.activations == "float" else dict(_TOKEN),
            "output_activations": None,
        }


def save_compressed(model: nn.Module, folder: str | Path, config: dict[str, Any] | None = None) -> Path:
    """Write a model that `quantize_` changed as a Hugging Face folder in the compressed-tensors layout; returns it.

    `model.safetensors` has the names of `model.state_dict()`. A layer with int8 activations is `int-quantized`
    (`<layer>.weight` int8), one with float activations `pack-quantized` (`<layer>.weight_packed` int32 and
    `<layer>.weight_shape`); both have `<layer>.weight_scale`, float32 (N, 1) or (N, G), so that q times scale is what
    `dequantize` returns. `config.json` is the model's with a `quantization_config`, whose `ignore` names the linear
    layers that stay in float. Other readers quantize a layer's input as `activations="int8_full"` does: quantize so
    for the same integers there and here. An int8 embedding is written in float, with the values that it stands for:
    the layout is of linear layers; where a head was tied to it, the config, and that of each part, says that it no
    longer is. The header of the weights has a checksum of each tensor besides, which `load_compressed` looks at.
    Files are written beside their targets and renamed, the config last.

    Args:
        model: a model of llama_min or transformers, or any with `model.config.to_dict()`.
        folder: without a checkpoint in several files.
        config: what `config.json` says of the architecture, in place of `model.config.to_dict()`.

    Raises:
        ValueError: no layer is quantized; a layer has what the layout lacks (zero points, NF4, outliers kept apart,
            smoothing, a calibrated scale of the input, groups that do not divide K), all such layers named; the config
            is missing or is no JSON; the model has other layers than its config (adapters, stacked products); or its
            class could not load packed layers: it ties them whatever the config says, or its `_init_weights` reads them.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (Int8Linear, Int4Linear))}
    if not layers:
        raise ValueError("the model has no quantized linear layer to save: call quantize_ first")
    refused = [f"{name}: {problem}" for name, layer in layers.items() for problem in _lacks(layer)]
    if refused:
        raise ValueError(f"the compressed-tensors layout has no place for {'; '.join(refused)}; or use save_quantized")
    folder = Path(folder)
    if (folder / _INDEX).exists():
        raise ValueError(f"{folder} holds a checkpoint in several files ({_INDEX}): give another folder")
    tied = _is_tied(model)
    settings = _settings(
        model, config, tied, [name for name, layer in layers.items() if _scheme(layer).format == _PACK]
    )
    tensors = _plain_tensors(model, tied)
    for name, layer in layers.items():
        tensors |= {f"{name}.{part}": tensor.cpu().contiguous() for part, tensor in _parts(layer).items()}
    dtype = str(next(iter(layers.values())).dtype).removeprefix("torch.")
    settings["torch_dtype" if "torch_dtype" in settings else "dtype"] = dtype
    settings["quantization_config"] = _quantization_config(model, layers)
    _write(folder, tensors, _as_json(settings))
    return folder


@torch.no_grad()
def load_compressed(model: nn.Module, folder: str | Path) -> None:
    """Put the weights of a folder in the compressed-tensors layout into a float model of the same architecture, in place.

    The folder is one of `save_compressed`, or of the compressed-tensors library and llm-compressor: symmetric int8 or
    int4, `int-quantized` or `pack-quantized`, in one file or with an index. The model's dtype stays; plain tensors are
    cast to it. int8 weights and plain tensors of that dtype are mapped, so that a model built on the meta device costs
    little more than the quantized weights; packed ones are copied, a layer at a time.

    Raises:
        QuantizedFileError: a file is missing or damaged, the folder is in another layout, or it does not fit the model;
            every scheme that is not read, every setting that makes another function than `model.config`, every missing,
            unexpected and misshapen tensor and every layer that `quantize_` would keep in float is named, and the model
            is unchanged.
    """
    folder = Path(folder)
    schemes, problems = _schemes(model, folder / _CONFIG)
    problems += _other_settings(model, _read_json(folder / _CONFIG))
    tensors = _read(folder)
    _join_biases(model, schemes, tensors)
    layers = {}
    for name, scheme in schemes.items():
        parts = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.rpartition(".")[0] == name}
        try:
            layers[name] = _build(scheme, parts, replaceable(model, name, nn.Linear))
        except ValueError as problem:
            problems.append(f"{name}: {problem}")
    needed = {name: t for name, t in model.state_dict().items() if name.rpartition(".")[0] not in schemes}
    plain = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in schemes}
    ties = _ties(needed, plain, model)
    problems += differences(model, {name: t for name, t in needed.items() if name not in ties}, plain)
    if problems:
        raise QuantizedFileError(f"{folder} does not fit the model: {'; '.join(sorted(problems))}")
    for name, layer in layers.items():
        put_layer(model, name, to_place_of(model.get_submodule(name).weight, layer))
    plain = {name: to_place_of(needed[name], t.to(needed[name].dtype)) for name, t in plain.items()}
    model.load_state_dict(plain, strict=False, assign=True)  # checked above: just the quantized layers are absent
    for name, known in ties.items():  # assign=True parts what was tied
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, model.get_parameter(known))


def _lacks(layer: Int8Linear | Int4Linear) -> list[str]:
    """What of a layer cannot be said in the layout, each with the way out."""
    groups = layer.group is not None and layer.in_features % layer.group != 0
    return [
        problem
        for there, problem in (
            (getattr(layer, "levels", None) is not None, "NF4 levels (take scheme='absmax')"),
            (layer.zero_point is not None, "zero points, which readers differ on (take scheme='absmax')"),
            (getattr(layer, "outliers", None) is not None, "outlier columns kept apart (take outliers=None)"),
            (getattr(layer, "smooth", None) is not None, "smoothing of the input (quantize without)"),
            (getattr(layer, "input_scale", None) is not None, "a calibrated input scale (take dynamic activations)"),
            (groups, f"groups of {layer.group} in {layer.in_features} features (take a size that divides)"),
        )
        if there
    ]


def _settings(model: nn.Module, config: dict[str, Any] | None, tied: bool, packed: list[str]) -> dict[str, Any]:
    """What `config.json` says of the architecture, once it is known to be that of the model's layers.

    Where nothing is tied any more, that is said at every level: a model of several parts has a config for each.
    """
    own: Any = getattr(model, "config", None)
    if config is None and not hasattr(own, "to_dict"):
        raise ValueError(f"{type(model).__name__} has no config.to_dict(): give config=, what config.json shall say")
    settings = own.to_dict() if config is None else config
    if not settings.get("model_type"):
        raise ValueError("the config has no model_type, by which transformers would know the architecture: add it")
    settings = {name: value for name, value in settings.items() if name != "quantization_config"}
    _as_json(settings)
    written = settings if tied else {**_with_ties(settings, False), "tie_word_embeddings": False}
    if config is None:
        _check_reading(model, settings, written, packed)
    architectures = settings.get("architectures") or [type(model).__name__]
    return {"tie_word_embeddings": False, **written, "architectures": architectures}


def _with_ties(settings: dict[str, Any], tied: bool | None) -> dict[str, Any]:
    """The settings with each `tie_word_embeddings` so, at every level."""
    return {
        name: tied if name == "tie_word_embeddings" else _with_ties(value, tied) if isinstance(value, dict) else value
        for name, value in settings.items()
    }


def _check_reading(model: nn.Module, settings: dict[str, Any], written: dict[str, Any], packed: list[str]) -> None:
    """Refuse what the model's class would not make the model of again, from what is written in place of `settings`."""
    kind = type(model.config)
    config = model.config
    if hasattr(kind, "from_dict"):
        config, before = (kind.from_dict(_from_json(_as_json(said))) for said in (written, settings))
        now, then = (_with_ties(read.to_dict(), None) for read in (config, before))
        changed = sorted(name for name in then.keys() | now.keys() if now.get(name) != then.get(name))
        if changed:
            raise ValueError(
                f"{kind.__name__} takes other {', '.join(changed)} from a head that is not tied to its embedding any "
                "more: skip the head"
            )
    again = _unquantized(model, config)
    expected = {name.rpartition(".")[0] for name in again.state_dict()}
    other = sorted(expected ^ {name.rpartition(".")[0] for name in model.state_dict()})
    if other:
        raise ValueError(
            f"the model's layers are not those of its config: {', '.join(other[:4])} ({len(other)} differ); merge or "
            "remove adapters, and quantize without stacking products"
        )
    for names in _owners(again):
        for name in packed:
            if f"{name}.weight" in names and len(names) > 1:
                others = ", ".join(other for other in names if other != f"{name}.weight")
                raise ValueError(
                    f"{name}: {type(model).__name__} ties its weight to {others} whatever the config says, and a "
                    f"packed layer has none: skip {name}, or take activations='int8_full'"
                )
    unready = _unready(again, packed)
    if unready:
        few = ", ".join(list(unready)[:4]) + (f" and {len(unready) - 4} more" if len(unready) > 4 else "")
        raise ValueError(
            f"{few}: {' and '.join(sorted(set(unready.values())))}, which transformers calls on loading, reads the "
            "weight there, and a packed layer has none: take activations='int8_full', or skip such layers"
        )


def _unready(again: nn.Module, packed: list[str]) -> dict[str, str]:
    """Packed layers that a class of transformers cannot initialize, and whose `_init_weights` it is: as it loads them,
    they have no weight, and a few classes ask for it nevertheless."""
    names = {module: name for name, module in again.named_modules()}
    for name in packed:
        del again.get_submodule(name).weight
    unready: dict[str, str] = {}

    def visit(module: nn.Module, owner: Any) -> None:
        owner = module if hasattr(module, "_init_weights") else owner
        for child in module.children():
            visit(child, owner)
        inside = [name for name in packed if name == names[module] or name.startswith(f"{names[module]}.")]
        if not inside or not hasattr(owner, "_init_weights"):
            return
        try:
            owner._init_weights(module)
        except AttributeError as problem:  # another one would meet the float model as well
            if "has no attribute 'weight'" in str(problem):
                unready.update(dict.fromkeys(inside, f"{type(owner).__name__}._init_weights"))

    with torch.device("meta"):
        visit(again, again)
    return unready


def _unquantized(model: nn.Module, config: Any) -> nn.Module:
    """The model that a config describes, on the meta device."""
    try:
        with torch.device("meta"):
            return type(model)(config)
    except TypeError as problem:
        kind = type(model).__name__
        raise ValueError(
            f"{kind}(model.config) makes no model ({problem}): give the model inside, or config="
        ) from None


def _as_json(settings: dict[str, Any]) -> str:
    for name, value in settings.items():
        try:
            json.dumps(_told(value), allow_nan=False)
        except (TypeError, ValueError) as problem:
            raise ValueError(f"the config's {name}={value!r} cannot be written as JSON ({problem})") from None
    return json.dumps(_told(settings), indent=2) + "\n"


def _told(value: Any) -> Any:
    """What JSON has no number for as transformers writes it: {"__float__": "Infinity"}."""
    if isinstance(value, float) and math.isinf(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {name: _told(each) for name, each in value.items()}
    return [_told(each) for each in value] if isinstance(value, (list, tuple)) else value


def _from_json(text: str) -> Any:
    """What `_as_json` wrote."""
    return json.loads(text, object_hook=lambda said: float(said["__float__"]) if said.keys() == {"__float__"} else said)


def _is_tied(model: nn.Module) -> bool:
    """Whether floats are shared, as by an embedding and its head, and no quantized layer shares with a table."""
    kinds: dict[bool, set[int]] = {True: set(), False: set()}
    for layer in model.modules():
        if isinstance(layer, (Int8Linear, Int8Embedding)) and layer.weight.numel():
            kinds[isinstance(layer, Int8Linear)].add(layer.weight.data_ptr())
    floats = [tensor.data_ptr() for _, tensor in _floats(model) if tensor.numel()]
    return len(set(floats)) < len(floats) and not kinds[True] & kinds[False]


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state of all but what is quantized."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in model.state_dict().items():
        if not isinstance(modules[name.rpartition(".")[0]], (Int8Linear, Int4Linear, Int8Embedding)):
            yield name, tensor


def _plain_tensors(model: nn.Module, tied: bool) -> dict[str, Tensor]:
    """What stays in float, by name, and int8 embeddings dequantized; tied, only the first of what shares memory."""
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, layer in modules.items():
        if isinstance(layer, Int8Embedding):
            tensors[f"{name}.weight"] = layer.quantized().dequantize().cpu()
    for name, tensor in _floats(model):
        known = first.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if tied and known != name:
            continue
        parent, _, leaf = name.rpartition(".")
        layer = modules[parent]
        of_layer = isinstance(layer, BFloat16Linear) and leaf == "weight"
        tensor = (tensor.to(layer.dtype) if of_layer else tensor).detach().cpu().contiguous()
        tensors[name] = tensor if known == name else tensor.clone()
    return tensors


def _parts(layer: Int8Linear | Int4Linear) -> dict[str, Tensor]:
    """The layer's tensors in the layout; a scale of the whole tensor becomes one a row, which all readers take."""
    parts: dict[str, Tensor] = {} if layer.bias is None else {"bias": layer.bias.clone()}  # others may read its memory
    parts["weight_scale"] = layer.scale.expand(layer.out_features, -1)
    if isinstance(layer, Int8Linear) and layer.activations != "float":
        return parts | {"weight": layer.weight}
    q = layer.quantized().values
    parts["weight_packed"] = _pack(q, 8 if isinstance(layer, Int8Linear) else 4)
    return parts | {"weight_shape": torch.tensor(q.shape, device="cpu")}


def _scheme(layer: Int8Linear | Int4Linear) -> _Scheme:
    strategy = "channel" if layer.group is None else "group"
    if isinstance(layer, Int4Linear):
        return _Scheme(_PACK, 4, strategy, layer.group, "float")
    return _Scheme(_PACK if layer.activations == "float" else _INT, 8, strategy, layer.group, layer.activations)


def _quantization_config(model: nn.Module, layers: dict[str, Int8Linear | Int4Linear]) -> dict[str, Any]:
    members: dict[_Scheme, list[str]] = {}
    for name, layer in layers.items():
        members.setdefault(_scheme(layer), []).append(name)
    alone = len(members) == 1
    formats = {scheme.format for scheme in members}
    return {
        "quant_method": _METHOD,
        "format": formats.pop() if len(formats) == 1 else _MIXED,
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, BFloat16Linear))],
        "config_groups": {
            f"group_{number}": scheme.to_dict(["Linear"] if alone else names)
            for number, (scheme, names) in enumerate(members.items())
        },
    }


def _write(folder: Path, tensors: dict[str, Tensor], config: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
        (Path(beside) / _CONFIG).write_text(config, encoding="utf-8")
        checksums = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()}, sort_keys=True)
        save_file(tensors, Path(beside) / _WEIGHTS, metadata={"format": "pt", _CHECKSUMS: checksums})
        _sort_metadata(Path(beside) / _WEIGHTS)
        shutil.copymode(Path(beside) / _CONFIG, Path(beside) / _WEIGHTS)  # save_file makes it the owner's alone
        for file in (_WEIGHTS, _CONFIG):
            os.replace(Path(beside) / file, folder / file)


def _sort_metadata(path: Path) -> None:
    """Put a safetensors header's metadata in order, which `save_file` leaves to chance: one model, the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) > size:
            raise RuntimeError(
                f"{path}: a header of {size} bytes would take {len(text)}: another release of safetensors?"
            )
        file.seek(8)
        file.write(text)


def _pack(q: Tensor, bits: int) -> Tensor:
    """int8 (N, K) to int32 (N, ceil(K bits / 32)), bits past the end 0."""
    rows = q.view(torch.uint8) ^ 128 if bits == 8 else pack_nibbles(q, -8)  # q xor 128 is q + 128, unsigned
    return nn.functional.pad(rows, (0, -rows.shape[1] % 4)).contiguous().view(torch.int32)


def _unpack(packed: Tensor, columns: int, bits: int) -> Tensor:
    """What `_pack` packed, as int8 (N, columns)."""
    rows = packed.contiguous().view(torch.uint8)
    if bits == 4:
        return unpack_nibbles(rows, columns).sub_(8)
    return (rows[:, :columns] ^ 128).view(torch.int8)


def _schemes(model: nn.Module, path: Path) -> tuple[dict[str, _Scheme], list[str]]:
    """The scheme of each linear layer that the config quantizes, and what of the config is not read here."""
    about = _read_json(path).get("quantization_config")
    if not isinstance(about, dict) or about.get("quant_method") != _METHOD:
        raise QuantizedFileError(f"{path} has no quantization_config of {_METHOD}: give a folder in that layout")
    groups, ignore = about.get("config_groups"), about.get("ignore") or []
    if not isinstance(groups, dict) or not all(isinstance(g, dict) and g.get("targets") for g in groups.values()):
        raise QuantizedFileError(f"{path}: config_groups={groups!r} are not groups with targets: write it again")
    if not isinstance(ignore, list) or not all(isinstance(group["targets"], list) for group in groups.values()):
        raise QuantizedFileError(f"{path}: ignore and targets must be lists of names: write it again")
    problems = [f"quantization_status={about.get('quantization_status')!r}, needed is 'compressed'"]
    problems = [] if about.get("quantization_status") == "compressed" else problems
    unread = ("kv_cache_scheme", "transform_config", "sparsity_config")
    problems += [f"{key}={about[key]!r} is not read" for key in unread if about.get(key)]
    by_target: dict[str, _Scheme] = {}
    for number, group in groups.items():
        scheme, wrong = _read_scheme(group, about.get("format"))
        problems += [f"{number}: {problem}" for problem in wrong]
        by_target |= {str(target): scheme for target in group["targets"] if target not in by_target}
    for pattern in [target for target in (*by_target, *map(str, ignore)) if target.startswith("re:")]:
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as problem:
            raise QuantizedFileError(f"{path}: {pattern!r} is no regular expression ({problem})") from None
    schemes = {}
    for name, layer in model.named_modules():
        target = _match(name, layer, list(by_target))
        if target is None or _match(name, layer, list(map(str, ignore))) is not None:
            continue
        if isinstance(layer, nn.Linear):
            schemes[name] = by_target[target]
        elif isinstance(layer, nn.Embedding):
            problems.append(f"{name}: an embedding is quantized, only linear layers are read")
    if not schemes and not problems:
        problems.append(f"no linear layer of the model is a target of {path.name}: {', '.join(by_target)}")
    return schemes, problems


def _other_settings(model: nn.Module, settings: dict[str, Any]) -> list[str]:
    """What of the folder's config would make another function of the same tensors than the model's config does.

    Both as the model's own class of configs reads them, so that what a file leaves out has its default.
    """
    own: Any = getattr(model, "config", None)
    if not hasattr(own, "from_dict") or not hasattr(own, "to_dict"):
        return []
    mine = _as_read(type(own), own.to_dict())
    kind = settings.get("model_type", mine.get("model_type"))
    if kind != mine.get("model_type"):
        return [f"{_CONFIG}: model_type={kind!r}, the model's is {mine.get('model_type')!r}"]
    try:
        theirs = _as_read(type(own), settings)
    except Exception as problem:  # noqa: BLE001 (a class of configs is foreign code and may raise anything; it is told)
        return [f"{_CONFIG}: {type(own).__name__} cannot read it: {problem}"]
    return [
        f"{_CONFIG}: {name}={theirs.get(name)!r}, the model's is {mine[name]!r}"
        for name in sorted(mine)  # what its class does not know changes nothing in the model
        if theirs.get(name) != mine[name]
    ]


def _as_read(kind: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as a class of configs reads them, by their full names; without the quantization, which is ours to read."""
    plain = {name: value for name, value in settings.items() if name != "quantization_config"}
    return _flat(kind.from_dict(copy.deepcopy(plain)).to_dict())


def _flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The settings by their full names, without those that logits do not depend on, lists for tuples."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name.startswith("_") or _NO_FUNCTION.fullmatch(name):
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[above + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _match(name: str, layer: nn.Module, targets: list[str]) -> str | None:
    """The target that names a layer most narrowly: by its name, then by a pattern, then by its class."""
    classes = {kind.__name__ for kind in type(layer).__mro__}
    patterns = [target for target in targets if target.startswith("re:")]
    found = [target for target in targets if target == name]
    found += [target for target in patterns if re.match(target.removeprefix("re:"), name)]
    return next(iter(found + [target for target in targets if target in classes]), None)


def _read_scheme(group: dict[str, Any], format: str | None) -> tuple[_Scheme, list[str]]:
    """A config group's scheme, and each of its settings that is not read."""
    weights, inputs = group.get("weights"), group.get("input_activations")
    weights = weights if isinstance(weights, dict) else {}
    format = group.get("format") or format
    bits = (8,) if format == _INT or inputs else (4, 8)
    strategy, size = weights.get("strategy"), weights.get("group_size")
    allowed: dict[str, tuple[Any, ...]] = {
        "num_bits": bits,
        "type": ("int",),
        "symmetric": (True,),
        "dynamic": (False,),
        "strategy": ("tensor", "channel", "group"),
        "actorder": (None, False, "weight", "static"),
    }
    wrong = [
        f"weights.{key}={weights.get(key)!r} is not read, only {' or '.join(map(repr, values))}"
        for key, values in allowed.items()
        if weights.get(key) not in values
    ]
    if format not in (_PACK, _INT):
        wrong.append(f"format={format!r} is not read, only {_PACK!r} or {_INT!r}")
    if strategy == "group" and not (isinstance(size, int) and size > 0):
        wrong.append(f"weights.group_size={size!r} must be a whole number above 0")
    if inputs is not None:
        kept = {key: inputs.get(key) for key in _TOKEN} if isinstance(inputs, dict) else inputs
        wrong += [] if kept == _TOKEN else [f"input_activations={kept!r} are not read, only {_TOKEN!r}"]
    wrong += [f"{key}={group[key]!r} is not known" for key in group if key not in _GROUP_KEYS]
    wrong += [f"weights.{key}={weights[key]!r} is not known" for key in weights if key not in _WEIGHTS_KEYS]
    if group.get("output_activations") is not None:
        wrong.append("output_activations are not read")
    if wrong:  # all that is wrong is named at once, so go on with what can be read
        return _Scheme(str(format), 8, "channel", None, "float"), wrong
    group_size = size if strategy == "group" else None
    return _Scheme(
        str(format), weights["num_bits"], str(strategy), group_size, "int8_full" if inputs else "float"
    ), wrong


def _build(scheme: _Scheme, parts: dict[str, Tensor], old: nn.Linear) -> Int8Linear | Int4Linear:
    """A layer from the tensors of a file.

    Raises:
        ValueError: they do not fit the scheme or the float layer `old`.
    """
    N, K = old.weight.shape
    groups = 1 if scheme.group is None else -(-K // scheme.group)
    packed = scheme.format == _PACK
    needed: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {
        "weight_packed" if packed else "weight": (
            (N, -(-K * scheme.bits // 32)) if packed else (N, K),
            (torch.int32 if packed else torch.int8,),
        ),
        "weight_scale": (
            (1,) if scheme.strategy == "tensor" else (N, groups),
            (torch.float32, torch.float16, torch.bfloat16),
        ),
    }
    if packed:
        needed["weight_shape"] = ((2,), (torch.int64, torch.int32))
    if old.bias is not None:
        needed["bias"] = ((N,), (torch.float32, torch.float16, torch.bfloat16))
    _check_parts(parts, needed)
    if packed and parts["weight_shape"].tolist() != [N, K]:
        raise ValueError(f"weight_shape says {parts['weight_shape'].tolist()}, the model's weight is {[N, K]}")
    if scheme.group is not None and K % scheme.group:
        raise ValueError(f"groups of {scheme.group} do not divide {K} features")
    scale = parts["weight_scale"].float().view(-1, groups)
    if not (scale.isfinite().all() and (scale >= 0).all()):
        raise ValueError("weight_scale holds a number that is negative or not finite")
    q = _unpack(parts["weight_packed"], K, scheme.bits) if packed else parts["weight"]
    zeros = torch.zeros_like(scale, dtype=torch.int8)
    weight = QuantizedTensor(q, scale, zeros, old.weight.dtype, scheme.group)
    if "bias" in parts and not is_finite(parts["bias"]):
        raise ValueError("bias holds NaN or infinity")
    bias = parts["bias"].to(old.bias.dtype) if old.bias is not None else None
    return Int4Linear(weight, bias) if scheme.bits == 4 else Int8Linear(weight, bias, scheme.activations)


def _check_parts(parts: dict[str, Tensor], needed: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]) -> None:
    problems = [f"missing {part}" for part in needed if part not in parts]
    problems += [f"unexpected {part}" for part in parts if part not in needed]
    for part, (shape, dtypes) in needed.items():
        if part in parts and (tuple(parts[part].shape) != shape or parts[part].dtype not in dtypes):
            found = f"{part} is {parts[part].dtype} {tuple(parts[part].shape)}"
            problems.append(f"{found}, needed is {' or '.join(map(str, dtypes))} {shape}")
    if problems:
        raise ValueError(", ".join(problems))


def _join_biases(model: nn.Module, schemes: Collection[str], tensors: dict[str, Tensor]) -> None:
    """Let a quantized layer's bias be the tensor of its other names in the model, if the file has the same or one alone."""
    for names in _owners(model):
        biases = [name for name in names if name.endswith(".bias") and name.removesuffix(".bias") in schemes]
        given = [name for name in names if name in tensors]
        if len(names) == 1 or not biases or len({checksum(tensors[name]) for name in given}) != 1:
            continue
        one = tensors[given[0]]
        one = one.to(model.get_parameter(given[0]).dtype) if one.is_floating_point() else one
        tensors |= dict.fromkeys((*given, *biases), one)


def _owners(model: nn.Module) -> list[list[str]]:
    """The names of each parameter."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return list(owners.values())


def _ties(needed: dict[str, Tensor], given: dict[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Names that the file lacks since the model reads the parameter of another name there, and that name."""
    return {
        name: next(other for other in names if other in given)
        for names in _owners(model)
        for name in names
        if name in needed and name not in given and any(other in given for other in names)
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise QuantizedFileError(f"{path} does not exist: give a folder in the compressed-tensors layout")
    try:
        content = _from_json(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise QuantizedFileError(f"{path} is no whole JSON ({problem}): write it again") from None
    if not isinstance(content, dict):
        raise QuantizedFileError(f"{path} holds no object: write it again")
    return content


def _read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, mapped: of one file, or of those that its index names; compared with their checksums."""
    tensors: dict[str, Tensor] = {}
    path = folder / _WEIGHTS
    files = [path]
    if not path.is_file() and (folder / _INDEX).is_file():
        index = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise QuantizedFileError(f"{folder / _INDEX} has no weight_map: write it again")
        files = [folder / str(file) for file in dict.fromkeys(index.values())]
    for path in files:
        if not path.is_file():
            raise QuantizedFileError(f"{path} does not exist: give a folder in the compressed-tensors layout")
        try:
            with safe_open(path, framework="pt") as file:
                checksums = json.loads((file.metadata() or {}).get(_CHECKSUMS, "{}"))  # other writers leave none
                here = {name: file.get_tensor(name) for name in sorted(file.keys())}
            changed = [name for name, kept in checksums.items() if name not in here or checksum(here[name]) != kept]
        except (OSError, SafetensorError) as error:
            raise QuantizedFileError(f"{path} is not a whole safetensors file ({error}): write it again") from None
        except (ValueError, AttributeError):
            raise QuantizedFileError(f"{path}: its header's {_CHECKSUMS} is damaged: save the model again") from None
        if changed:
            raise QuantizedFileError(
                f"{path}: {', '.join(changed)} has other bytes than were saved: save the model again"
            )
        twice = sorted(tensors.keys() & here.keys())
        if twice:
            raise QuantizedFileError(f"{path}: {', '.join(twice)} is in another file, too: write the folder again")
        tensors |= here
    return tensors
