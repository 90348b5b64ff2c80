"""Quantized models on disk: plain tensors in one safetensors file that says what each layer is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quant_lite.linear import Int8Linear
from quant_lite.quantize import QuantizedTensor

__all__ = ["QuantizedFileError", "load_quantized", "save_quantized"]

_FILE = "quantized.safetensors"


class QuantizedFileError(ValueError):
    """A folder of quantized weights that cannot be used: the message names the file, what is wrong and the way out."""


def save_quantized(model: nn.Module, folder: str | Path) -> Path:
    """Write the state of a model that `quantize_` changed to `folder/quantized.safetensors`; returns that path.

    The tensors bear the names of `model.state_dict()`: `<layer>.weight` int8 and `<layer>.scale` float32, and
    `<layer>.zero_point` where the scheme has one. A tensor that two names share is stored once. The file is written
    beside its target and renamed.

    Raises:
        ValueError: the model has no quantized layer.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    if not layers:
        raise ValueError("the model has no quantized layer to save: call quantize_ first")
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.state_dict().items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if known != name:
            shared[name] = known
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    dtypes = {name: str(layer.dtype).removeprefix("torch.") for name, layer in layers.items()}
    both = sorted(name for name, layer in layers.items() if layer.activations == "int8")  # weight and activations
    about = {"int8": dtypes, "int8_activations": both, "shared": shared}
    metadata = {"format": "pt", "quant_lite": json.dumps(about, sort_keys=True)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
        (Path(beside) / "mode").touch()
        save_file(tensors, Path(beside) / _FILE, metadata=metadata)
        shutil.copymode(Path(beside) / "mode", Path(beside) / _FILE)  # save_file makes it the owner's alone
        os.replace(Path(beside) / _FILE, folder / _FILE)
    return folder / _FILE


def load_quantized(model: nn.Module, folder: str | Path) -> None:
    """Fill `model`, in place, from `folder/quantized.safetensors`: float layers become int8 where the file says so.

    Args:
        model: the architecture that was saved, before quantization. It may lie on PyTorch's meta device: its own
            values are not read.
        folder: where `save_quantized` wrote.

    Raises:
        QuantizedFileError: the file is missing, damaged or of another architecture; every missing, unexpected and
            misshapen tensor is named, and the model is unchanged.
    """
    path = Path(folder) / _FILE
    tensors, dtypes, both, shared = _read(path)
    modules = dict(model.named_modules())
    problems: list[str] = []
    layers: dict[str, Int8Linear] = {}
    for name, dtype in dtypes.items():
        old = modules.get(name)
        parts = {part: tensors.get(f"{name}.{part}") for part in ("weight", "scale", "zero_point", "bias")}
        weight, scale = parts["weight"], parts["scale"]
        if not isinstance(old, nn.Linear):
            problems.append(f"the model has no linear layer {name}")
        elif weight is None or scale is None:
            problems.append(f"missing {name}.weight or {name}.scale")
        elif weight.dtype != torch.int8 or tuple(weight.shape) != (old.out_features, old.in_features):
            problems.append(
                f"{name}.weight is {weight.dtype} {tuple(weight.shape)}, "
                f"needed is torch.int8 {(old.out_features, old.in_features)}"
            )
        elif scale.dtype != torch.float32 or tuple(scale.shape) not in ((1, 1), (old.out_features, 1)):
            problems.append(f"{name}.scale is {scale.dtype} {tuple(scale.shape)}, needed is float32, one a channel")
        else:
            zero = parts["zero_point"]
            zero = torch.zeros_like(scale, dtype=torch.int8) if zero is None else zero
            quantized = QuantizedTensor(weight, scale, zero, getattr(torch, dtype))
            activations = "int8" if name in both else "float"
            layers[name] = Int8Linear(quantized, parts["bias"], activations).train(old.training)

    inside = {f"{name}.{key}" for name, layer in layers.items() for key in layer.state_dict()}
    inside |= {f"{name}.{part}" for name in dtypes for part in ("weight", "scale", "zero_point", "bias")}
    plain = {name: t for name, t in model.state_dict().items() if name not in inside}
    rest = {name: t for name, t in tensors.items() if name not in inside}
    rest.update({name: tensors[known] for name, known in shared.items() if known in tensors})
    problems += [f"missing {name}" for name in plain.keys() - rest.keys()]
    problems += [f"unexpected {name}" for name in rest.keys() - plain.keys()]
    problems += [
        f"{name} has shape {tuple(rest[name].shape)}, the model's is {tuple(plain[name].shape)}"
        for name in plain.keys() & rest.keys()
        if rest[name].shape != plain[name].shape
    ]
    if problems:
        raise QuantizedFileError(f"{path} does not fit the model: {'; '.join(sorted(problems))}")
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    model.load_state_dict(rest, strict=False, assign=True)  # checked above: just the quantized layers are absent
    for name, known in shared.items():  # assign=True parts what was tied
        parent, _, child = name.rpartition(".")
        source, _, leaf = known.rpartition(".")
        setattr(model.get_submodule(parent), child, getattr(model.get_submodule(source), leaf))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], set[str], dict[str, str]]:
    """Tensors, the original dtype of each int8 layer, which of them have int8 activations, and shared names."""
    if not path.is_file():
        raise QuantizedFileError(f"{path} does not exist: give a folder that save_quantized wrote")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["quant_lite"])
            dtypes, shared = dict(about["int8"]), dict(about["shared"])
            both = {str(name) for name in about.get("int8_activations", ())}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise QuantizedFileError(f"{path} is not a whole safetensors file ({error}): write it again") from None
    except (KeyError, TypeError, ValueError):
        raise QuantizedFileError(f"{path} was not written by save_quantized: its header does not say so") from None
    known = ("float32", "float16", "bfloat16")
    odd = [f"{name}: {dtype!r}" for name, dtype in dtypes.items() if dtype not in known]
    if odd:
        raise QuantizedFileError(f"{path} names an unknown dtype for {odd[0]}: known are {', '.join(known)}")
    return tensors, dtypes, both, shared
