"""Quantized models on disk: plain tensors in one safetensors file that says what each layer is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quant_lite.linear import BFloat16Linear, Int4Linear, Int8Embedding, Int8Linear
from quant_lite.quantize import QuantizedTensor
from quant_lite.replacing import WAYS_OUT, is_plain_embedding, put_layer, reason_to_stay

__all__ = ["QuantizedFileError", "load_quantized", "save_quantized"]

_FILE = "quantized.safetensors"
_KINDS = {kind.__name__: kind for kind in (Int8Linear, Int4Linear, Int8Embedding, BFloat16Linear)}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FLOATS = (*_DTYPES.values(), torch.float64)
_SIDE = 1024  # of the square of words that a checksum sums up at a time: 8 MB
_Module = TypeVar("_Module", bound=nn.Module)
_Moved = TypeVar("_Moved", Tensor, nn.Module)
_Layer = Int8Linear | Int4Linear | Int8Embedding | BFloat16Linear


class QuantizedFileError(ValueError):
    """A folder of quantized weights that cannot be used: the message names the file, what is wrong and the way out."""


def save_quantized(model: nn.Module, folder: str | Path) -> Path:
    """Write the state of a model that `quantize_` changed to `folder/quantized.safetensors`; returns that path.

    The tensors bear the names of `model.state_dict()`: `<layer>.weight` int8 (or `<layer>.packed`, two 4-bit values a
    byte) and `<layer>.scale` float32, and `<layer>.zero_point` where the scheme has one. A tensor that two names share
    is stored once. The header has a JSON object `quant_lite`: what each layer is, and a checksum of each tensor. The file
    is written beside its target and renamed.

    Raises:
        ValueError: the model has no quantized layer.
    """
    layers = {name: layer for name, layer in model.named_modules() if type(layer).__name__ in _KINDS}
    if not layers:
        raise ValueError("the model has no quantized layer to save: call quantize_ first")
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict().items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) if tensor.numel() else name
        if known != name:
            shared[name] = known
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    described = {name: _describe(layer) for name, layer in layers.items()}
    about: dict[str, Any] = {"layers": described, "shared": shared, "crc32": of_layers(described, shared)}
    about["checksums"] = {name: checksum(tensor) for name, tensor in tensors.items()}
    metadata = {"quant_lite": json.dumps(about, sort_keys=True)}  # one: of several the order in the file is chance
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
        (Path(beside) / "mode").touch()
        save_file(tensors, Path(beside) / _FILE, metadata=metadata)
        shutil.copymode(Path(beside) / "mode", Path(beside) / _FILE)  # save_file makes it the owner's alone
        os.replace(Path(beside) / _FILE, folder / _FILE)
    return folder / _FILE


def load_quantized(model: nn.Module, folder: str | Path) -> None:
    """Put what `save_quantized` wrote into a float model of the same architecture, in place.

    The file is mapped, so that a model built on the meta device costs the int8 weights and no more.

    Raises:
        QuantizedFileError: the file is missing, damaged, not of this format or of another architecture; every missing,
            unexpected and misshapen tensor is named, and every one of another kind or with other bytes than were saved,
            and layers that `quantize_` would keep in float; the model is unchanged.
    """
    path = Path(folder) / _FILE
    tensors, about, shared, checksums = _read(path)
    problems = [
        f"{name} has other bytes than were saved: save the model again"
        for name, tensor in tensors.items()
        if checksums.get(name) != checksum(tensor)
    ]
    for name, known in shared.items():
        if known in tensors:
            tensors[name] = tensors[known]
    layers: dict[str, _Layer] = {}
    for name, description in about.items():
        parts = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.rpartition(".")[0] == name}
        try:
            kind: type[nn.Embedding | nn.Linear] = nn.Embedding if description["kind"] == "Int8Embedding" else nn.Linear
            layers[name] = _build(description, parts, replaceable(model, name, kind))
        except (ValueError, RuntimeError, KeyError, TypeError) as problem:
            problems.append(f"{name}: {problem if isinstance(problem, ValueError) else repr(problem)}")

    plain = {name: t for name, t in model.state_dict().items() if name.rpartition(".")[0] not in about}
    rest = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in about}
    problems += differences(model, plain, rest) + _other_ties(model, shared, tensors, about)
    if problems:
        raise QuantizedFileError(f"{path} does not fit the model: {'; '.join(sorted(problems))}")
    for name, layer in layers.items():
        put_layer(model, name, to_place_of(model.get_submodule(name).weight, layer))
    rest = {name: to_place_of(plain[name], t) for name, t in rest.items()}
    model.load_state_dict(rest, strict=False, assign=True)  # checked above: just the quantized layers are absent
    for name, known in shared.items():  # assign=True parts what was tied
        if name in rest:
            parent, _, child = name.rpartition(".")
            source, _, leaf = known.rpartition(".")
            setattr(model.get_submodule(parent), child, getattr(model.get_submodule(source), leaf))


def to_place_of(old: Any, new: _Moved) -> _Moved:
    """What is mapped, on the device of what it takes the place of; a place on the meta device has no memory to move to."""
    return new if old.is_meta else new.to(old.device)


def checksum(tensor: Tensor) -> str:
    """dtype, shape, and sum w_i and sum i w_i mod 2^64 of the 64-bit words w_i of its bytes, zeros at the end.

    After Fletcher 1982. A bit that flips adds or takes 2^k, k < 64, in the first sum, which is never 0 mod 2^64: it is
    always seen. The second is not that of words in another order. Words lie in squares of S x S, and with i = S r + c it
    is S sum_r r (sum_c w) + sum_c c (sum_r w), which needs no product a word. One square at a time is copied.
    """
    data = tensor.reshape(-1).view(torch.uint8)
    height = min(_SIDE, -(-len(data) // (8 * _SIDE)))  # of a small tensor less than a square
    square, places = torch.empty(height, _SIDE, dtype=torch.int64, device="cpu"), torch.arange(_SIDE, device="cpu")
    raw = square.view(-1).view(torch.uint8)  # the words' bytes
    words = placed = torch.zeros((), dtype=torch.int64, device="cpu")
    for start in range(0, len(data), max(len(raw), 1)):
        piece = data[start : start + len(raw)]
        raw[: len(piece)] = piece
        raw[len(piece) :] = 0
        of_rows, of_columns = square.sum(1), square.sum(0)
        words = words + of_rows.sum()
        placed = placed + start // 8 * of_rows.sum()
        placed = placed + _SIDE * (of_rows * places[:height]).sum() + (of_columns * places).sum()
    sums = " ".join(f"{int(number) % 2**64:016x}" for number in (words, placed))
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {sums}"


def of_layers(layers: dict[str, dict[str, Any]], shared: dict[str, str]) -> int:
    """CRC-32 of what the header says of the layers."""
    return zlib.crc32(json.dumps([layers, shared], sort_keys=True).encode())


def _describe(layer: nn.Module) -> dict[str, Any]:
    """What a layer's tensors do not say of it."""
    about: dict[str, Any] = {"kind": type(layer).__name__, "dtype": str(layer.dtype).removeprefix("torch.")}
    about["tensors"] = sorted(name for name, buffer in layer.named_buffers() if buffer is not None)
    if not isinstance(layer, BFloat16Linear):
        about |= {"group": layer.group, "measured": layer.measured}
    if isinstance(layer, Int8Linear):
        about |= {"activations": layer.activations, "outliers": layer.outliers, "input_scale": layer.input_scale}
    if isinstance(layer, Int4Linear):
        about["in_features"] = layer.in_features
    return about


def replaceable(model: nn.Module, name: str, kind: type[_Module]) -> _Module:
    """The model's float layer of that name, an `nn.Linear` or `nn.Embedding`.

    Raises:
        ValueError: it is of another kind, or does something else than the layer that would take its place.
    """
    try:
        old: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        old = None
    if isinstance(old, kind):
        reason = None if is_plain_embedding(old) else "it does more than look rows up: put that into a module around it"
        if isinstance(old, nn.Linear):
            stays = reason_to_stay(model, name)
            reason = stays and f"{stays}: {WAYS_OUT[stays]}"
        if reason is None:
            return old
        raise ValueError(f"the model's {type(old).__name__} has to stay in float: {reason}")
    found = "nothing of this name" if old is None else f"a {type(old).__name__} there"
    raise ValueError(f"the model has {found}, needed is {kind.__name__}")


def _build(about: dict[str, Any], parts: dict[str, Tensor], old: nn.Linear | nn.Embedding) -> _Layer:
    """A layer from its description and tensors.

    Raises:
        ValueError: they do not fit each other or the float layer `old`.
    """
    kind, dtype = about["kind"], about["dtype"]
    if kind not in _KINDS or dtype not in _DTYPES:
        raise ValueError(f"kind {kind!r} and dtype {dtype!r} are not known")
    shape = tuple(old.weight.shape)
    main = "packed" if kind == "Int4Linear" else "weight"
    allowed = {main, "scale", "zero_point", "levels", "smooth", "bias"}
    needed_parts = {main, *(["scale"] if kind != "BFloat16Linear" else []), *about["tensors"]}
    if needed_parts - parts.keys() or parts.keys() - (needed_parts & allowed):
        missing, unexpected = sorted(needed_parts - parts.keys()), sorted(parts.keys() - (needed_parts & allowed))
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    bias = parts.get("bias")
    if (bias is None) != (getattr(old, "bias", None) is None) or (bias is not None and tuple(bias.shape) != shape[:1]):
        raise ValueError(f"bias {None if bias is None else tuple(bias.shape)} does not fit the model's layer")
    for part in ("bias", "smooth"):
        if part in parts and parts[part].dtype not in _FLOATS:
            raise ValueError(f"{part} is {parts[part].dtype}, needed is a float")
    if bias is not None and not is_finite(bias):
        raise ValueError("bias is not finite")
    stored = (shape[0], -(-shape[1] // 2)) if kind == "Int4Linear" else shape
    needed = {"Int4Linear": torch.uint8, "BFloat16Linear": torch.bfloat16}.get(kind, torch.int8)
    if parts[main].dtype != needed or tuple(parts[main].shape) != stored:
        raise ValueError(f"{main} is {parts[main].dtype} {tuple(parts[main].shape)}, needed is {needed} {stored}")
    if kind == "BFloat16Linear":
        return BFloat16Linear(parts["weight"], bias, _DTYPES[dtype])
    q = _quantized(about, parts, shape)
    if kind == "Int4Linear":
        return Int4Linear(q, bias, parts["packed"])
    if kind == "Int8Embedding":
        return Int8Embedding(q)
    smooth = parts.get("smooth")
    if smooth is not None and (tuple(smooth.shape) != shape[1:] or not _positive(smooth)):
        raise ValueError(f"smooth is {tuple(smooth.shape)}, needed are positive finite numbers {shape[1:]}")
    return Int8Linear(q, bias, about["activations"], about["outliers"], about["input_scale"], smooth)


def _quantized(about: dict[str, Any], parts: dict[str, Tensor], shape: tuple[int, ...]) -> QuantizedTensor:
    scale, levels, group = parts["scale"], parts.get("levels"), about["group"]
    if group is not None and (not isinstance(group, int) or group < 1):
        raise ValueError(f"group={group!r} is no number of neighbours")
    zero = parts.get("zero_point", torch.zeros_like(scale, dtype=torch.int8))
    groups = 1 if group is None else -(-shape[1] // int(group))
    if scale.dtype != torch.float32 or tuple(scale.shape) not in ((shape[0], groups), (1, groups)):
        raise ValueError(f"scale is {scale.dtype} {tuple(scale.shape)}, needed is torch.float32 {(shape[0], groups)}")
    if not _positive(scale):
        raise ValueError("a scale is not positive and finite")
    if zero.dtype != torch.int8 or zero.shape != scale.shape:
        raise ValueError(f"zero_point is {zero.dtype} {tuple(zero.shape)}, needed is torch.int8 {tuple(scale.shape)}")
    if levels is not None and (levels.dtype != torch.float32 or tuple(levels.shape) != (16,)):
        raise ValueError(f"levels are {levels.dtype} {tuple(levels.shape)}, needed is torch.float32 (16,)")
    if levels is not None and not is_finite(levels):
        raise ValueError("levels are not finite")
    # what is packed stays so, in the file's own memory
    values = parts["weight"] if "weight" in parts else torch.empty(shape, dtype=torch.int8, device="meta")
    return QuantizedTensor(values, scale, zero, _DTYPES[about["dtype"]], group, levels, bool(about["measured"]))


def _positive(numbers: Tensor) -> bool:
    return bool((numbers.isfinite() & (numbers > 0)).all())


def is_finite(numbers: Tensor) -> bool:
    """Whether floats hold neither NaN nor infinity, without a copy of them."""
    return not numbers.numel() or all(bool(end.isfinite()) for end in numbers.aminmax())


def differences(model: nn.Module, needed: dict[str, Tensor], given: dict[str, Tensor]) -> list[str]:
    """How tensors that are given differ from those that a model needs: missing, unexpected and misshapen ones.

    And those of another kind: a float is one of any width, anything else of the very dtype. Parameters that are floats
    must be finite; buffers need not, as a mask is not.
    """
    problems = [f"missing {name}" for name in needed.keys() - given.keys()]
    problems += [f"unexpected {name}" for name in given.keys() - needed.keys()]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, the model's is {tuple(needed[name].shape)}"
        for name in needed.keys() & given.keys()
        if given[name].shape != needed[name].shape
    ]
    of_kind = {name for name in needed.keys() & given.keys() if _same_kind(given[name], needed[name])}
    problems += [
        f"{name} is {given[name].dtype}, the model's is {needed[name].dtype}"
        for name in needed.keys() & given.keys() - of_kind
    ]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    problems += [
        f"{name} holds NaN or infinity: a parameter is finite"
        for name in of_kind & parameters
        if given[name].dtype in _FLOATS and not is_finite(given[name])
    ]
    return problems


def _other_ties(
    model: nn.Module, shared: dict[str, str], tensors: Collection[str], layers: Collection[str]
) -> list[str]:
    """Parameters of the file that are one in the model and two in the file, or the other way round.

    A quantized layer's bias may be one or two: the layer keeps what the file has, a copy where a cast has made it one.
    """
    names = {*tensors, *(f"{name}.weight" for name in layers)}
    parameters = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in names}
    first: dict[int, str] = {}
    problems = []
    for name, parameter in parameters.items():
        if name.endswith(".bias") and name.removesuffix(".bias") in layers:
            continue
        known = first.setdefault(parameter, name)
        if known != name and shared.get(name, name) != shared.get(known, known):
            problems.append(
                f"{name} and {known} are one in the model and two in the file: part them in the model first"
            )
    return problems + [
        f"{name} and {known} are two in the model and one in the file: tie them in the model first"
        for name, known in shared.items()
        if name in parameters and known in parameters and parameters[name] != parameters[known]
    ]


def _same_kind(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype or (one.dtype in _FLOATS and other.dtype in _FLOATS)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], dict[str, str], dict[str, str]]:
    """Tensors, what each quantized layer is, names that share a tensor with another, and checksums."""
    if not path.is_file():
        raise QuantizedFileError(f"{path} does not exist: give a folder that save_quantized wrote")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["quant_lite"])
            layers = {str(name): dict(layer) for name, layer in about["layers"].items()}
            shared = {str(name): str(known) for name, known in about["shared"].items()}
            checksums = dict(about["checksums"]) if "checksums" in about else None
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise QuantizedFileError(f"{path} is not a whole safetensors file ({error}): write it again") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise QuantizedFileError(f"{path} was not written by save_quantized: its header does not say so") from None
    if checksums is None:
        raise QuantizedFileError(f"{path} was written without checksums: save the model again")
    if about.get("crc32") != of_layers(layers, shared):
        raise QuantizedFileError(f"{path} says other things of its layers than were saved: save the model again")
    return tensors, layers, shared, checksums
