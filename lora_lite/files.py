"""Adapters on disk, in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_lite.lora import LoRAConfig, is_linear, lora_layers, wrap_layers

__all__ = ["AdapterError", "load_adapter", "save_adapter"]

_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


class AdapterError(ValueError):
    """An adapter folder that cannot be used, or a model whose adapter cannot be saved; the message says why."""


def save_adapter(model: nn.Module, folder: str | Path, base_model: str | None = None) -> None:
    """Write the model's adapter where `peft.PeftModel.from_pretrained` reads it.

    Both files are written beside their targets and renamed.

    Args:
        model: with adapters from `add_lora` or `load_adapter`.
        folder: made if it is not there.
        base_model: name or path of the base model, noted in the config for whoever loads the adapter.

    Raises:
        AdapterError: the model has no adapter, or a weight is not finite.
    """
    layers = lora_layers(model)
    if not layers:
        raise AdapterError("the model has no adapters to save: call add_lora first")
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    broken = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise AdapterError(f"{', '.join(broken[:4])} holds NaN or infinity: the training diverged, lower its rate")
    sizes = {(layer.rank, layer.alpha, layer.dropout) for layer in layers.values()}
    if len(sizes) > 1:
        raise AdapterError(f"the adapters differ in (rank, alpha, dropout): {sorted(sizes)}; add them with one config")
    rank, alpha, dropout = sizes.pop()

    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": _target_modules(model, list(layers)),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
        save_file(tensors, Path(beside) / _WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (Path(beside) / _CONFIG).write_text(text, encoding="utf-8")
        shutil.copymode(Path(beside) / _CONFIG, Path(beside) / _WEIGHTS)  # save_file makes it the owner's alone
        for name in (_WEIGHTS, _CONFIG):
            os.replace(Path(beside) / name, folder / name)


def load_adapter(model: nn.Module, folder: str | Path, trainable: bool = False) -> list[str]:
    """Add the adapter that `save_adapter` or PEFT wrote to `folder`.

    Loading is strict: what is missing, unexpected or misshapen is listed in one error, and the model is then as before.

    Args:
        model: a base model without adapters, changed in place.
        trainable: whether A and B may be trained on.

    Returns:
        The names of the wrapped layers.

    Raises:
        AdapterError: the files are missing or damaged, do not fit the model, or use a feature that is not supported.
    """
    folder = Path(folder)
    settings = _read_settings(folder / _CONFIG)
    tensors = _read_tensors(folder / _WEIGHTS)
    modules = dict(model.named_modules())
    names = list(dict.fromkeys(m[1] for key in tensors if (m := re.fullmatch(_KEY, key))))
    problems = [f"unexpected key {key}" for key in tensors if not re.fullmatch(_KEY, key)]
    for name in names:
        layer = modules.get(name)
        if layer is None or not is_linear(layer):
            problems.append(f"the model has no linear layer {name}")
            continue
        shapes = {"lora_A": (settings["r"], layer.in_features), "lora_B": (layer.out_features, settings["r"])}
        for part, shape in shapes.items():
            key = f"{_PREFIX}{name}.{part}.weight"
            if key not in tensors:
                problems.append(f"missing {key}")
            elif tensors[key].shape != shape:
                problems.append(f"{key} has shape {tuple(tensors[key].shape)}, needed is {shape}")
    if problems or not names:
        raise AdapterError(
            f"{folder / _WEIGHTS} does not fit the model: {'; '.join(problems) or 'it holds no adapter'}. "
            "Load the base model that the adapter was trained on."
        )

    targets = tuple(re.escape(name) for name in names)
    config = LoRAConfig(settings["r"], settings["lora_alpha"], settings.get("lora_dropout") or 0.0, targets)
    wrap_layers(model, names, config, generator=None)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for part in ("lora_A", "lora_B"):
                parameter = getattr(layer, part)
                parameter.copy_(tensors[f"{_PREFIX}{name}.{part}.weight"])
                parameter.requires_grad_(trainable)
    return names


_KEY = re.escape(_PREFIX) + r"(.+)\.lora_[AB]\.weight"

# fields of adapter_config.json that change what the adapter computes, with the values that mean "plain LoRA"
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "use_rslora": (None, False),
    "use_dora": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "lora_bias": (None, False),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (None, False),
    "layer_replication": (None, []),
}


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist: give a folder that save_adapter or PEFT wrote") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} holds no JSON object")
    for field, values in _PLAIN.items():
        value = settings.get(field, None if field != "peft_type" else "missing")
        if value not in values:
            raise AdapterError(f"{path}: {field}={value!r} is not supported: only plain LoRA adapters are")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise AdapterError(f"{path}: r={rank!r} and lora_alpha={alpha!r} must both be given as numbers")
    return settings


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdapterError(f"{path} does not exist: give a folder that save_adapter or PEFT wrote")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a whole safetensors file ({error}): copy it again") from None


def _target_modules(model: nn.Module, names: list[str]) -> list[str]:
    """Last segments of the names where those find just these layers, as PEFT users write them; else full names."""
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    found = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in ends}
    return ends if found == set(names) else sorted(names)
