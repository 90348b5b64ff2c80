"""Which layers of a model another layer can take the place of, and putting it there."""

from __future__ import annotations

import inspect
import re
from functools import cache, partial
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["MERGED", "SET_BY_HOOK", "WAYS_OUT", "is_plain_embedding", "put_layer", "reason_to_stay"]

SET_BY_HOOK = "its weight is set by a hook, as pruning does"
MERGED = "an adapter is merged into it"

_ADAPTER = "part of an adapter"
_FORWARD = "its forward is not nn.Linear's"
_READ = "its module reads the weight by itself"
_HOOK = "it has a hook of register_backward_hook, which looks into it"
WAYS_OUT = {  # by reason
    _ADAPTER: "merge or remove the adapter first",
    _FORWARD: "put what its forward does besides the product into a module around a plain nn.Linear",
    _READ: "let its module call the layer",
    _HOOK: "take register_full_backward_hook",
    MERGED: "unmerge it, or merge it for good (merge_and_unload)",
    SET_BY_HOOK: "make it a parameter first (torch.nn.utils.prune.remove)",
}

# what a module knows its hooks by; the dictionaries move whole, so that a handle goes on removing its hook
_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
)


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a new layer in the place of the one that is called `name`, with its mode and its hooks, forward and backward.

    What merges adapters into the layer refuses to from then on, where that holds integers.
    """
    above, _, child = name.rpartition(".")
    parent = model.get_submodule(above)
    old = parent.get_submodule(child)
    for hooks in _HOOKS:
        setattr(layer, hooks, getattr(old, hooks))
    setattr(parent, child, layer.train(old.training))
    weight = getattr(layer, "weight", None)
    if _merges(parent) and not (isinstance(weight, Tensor) and weight.is_floating_point()):
        # it would add to the integers what it casts to them before: nearly always 0
        vars(parent)["merge"] = partial(_refuse_merge, name, type(layer).__name__)
    if isinstance(parent, nn.TransformerEncoderLayer):
        # without gradients its fused path would read the weights past their layers: this is how it is told to take none
        parent.activation_relu_or_gelu = 0


def _merges(module: nn.Module) -> bool:
    """Whether it adds an adapter to the layer inside and takes it out again, as the library peft's do."""
    return callable(getattr(module, "merge", None)) and callable(getattr(module, "unmerge", None))


def _refuse_merge(name: str, kind: str, *_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        f"{name}: no adapter can be merged into integers ({kind}): merge it into the float layer before quantizing, or "
        "keep it beside"
    )


def reason_to_stay(model: nn.Module, name: str, packed: bool = False) -> str | None:
    """Why no other layer can take the place of a linear one, or a plain embedding, a key of `WAYS_OUT`; None where one can.

    Args:
        packed: the other layer has no `weight`, as one of 4 bits.
    """
    layer = model.get_submodule(name)
    if any(part.startswith("lora_") or part == "modules_to_save" for part in name.split(".")):
        return _ADAPTER
    plain = isinstance(layer, nn.Embedding) or type(layer).forward is nn.Linear.forward
    if not plain or "forward" in vars(layer):  # a subclass's, or patched
        return _FORWARD
    if _holds_merged(model, name) and not _has_dora_of_peft(model, name):
        return MERGED
    if (
        isinstance(layer, NonDynamicallyQuantizableLinear)
        or _has_dora_of_peft(model, name)
        or _reads(model, name, packed)
    ):
        return _READ
    if _has_old_backward_hook(layer):
        return _HOOK
    if "weight" not in layer._parameters and not is_parametrized(layer, "weight"):
        return SET_BY_HOOK
    return None


def is_plain_embedding(module: nn.Module) -> bool:
    """Whether it only looks rows up: not a subclass that does more, nor one that rescales what it looks up."""
    plain = type(module) is nn.Embedding and module.max_norm is None and "forward" not in vars(module)
    return plain and not _has_old_backward_hook(module)


_STAYS = r"(?!\.(?:device|shape|size|ndim|dim)\b|\.data\.\w+_\(|\s*=[^=])"  # what is the same after, or sets it


def _reads(model: nn.Module, name: str, packed: bool) -> bool:
    """Whether the class of the module around a layer reads `self.<layer>.weight`, for its dtype even, as Mamba's do.

    Its source says so, where there is one; or that of a class further out, as RWKV's, by the last two names. Not
    counted are its device and shape, which stay; setting it, as a model does that ties or initializes it; and a class
    that knows of int8, as T5's, unless nothing is there to be known.
    """
    above, _, child = name.rpartition(".")
    parent: Any = type(model.get_submodule(above))
    source = _source(parent)
    weight = rf"\bself\.{re.escape(child)}\.weight\b"
    if not packed and re.search(rf"{weight}\.dtype\s*!=\s*torch\.int8", source):
        return False
    return bool(re.search(weight + _STAYS, source)) or _is_read_from_afar(model, name)


def _is_read_from_afar(model: nn.Module, name: str) -> bool:
    """Whether a class further out than the module around a layer reads `<anything>.<module>.<layer>.weight`."""
    steps = ["", *name.split(".")]
    kinds: set[Any] = {type(model.get_submodule(".".join(steps[1 : depth + 1]))) for depth in range(len(steps) - 2)}
    return any(f".{name}".endswith(path) for kind in kinds for path in _read_paths(kind))


@cache
def _read_paths(kind: type) -> frozenset[str]:
    """What of its modules' weights a class reads: `block.attention.output.weight` is ".attention.output".

    Not in lines that initialize a weight or tie another to it. A number in brackets is a step, anything else any.
    """
    lines = [line for line in _source(kind).splitlines() if not re.search(r"\binit\.|\.weight\s*=\s*[\w.]+$", line)]
    chain = rf"(?<![\"'\w.])\w+((?:\.\w+|\[\w+\])+)\.weight\b{_STAYS}"
    found = (re.sub(r"\[(\d+)\]", r".\1", path) for line in lines for path in re.findall(chain, line))
    return frozenset(path.rpartition("]")[2] for path in found if path.count(".") > 1 or "]." in path)


@cache
def _source(kind: type) -> str:
    """Of a module's class and those it comes from, up to PyTorch's own."""
    found = []
    for base in kind.__mro__:
        if issubclass(base, nn.Module) and not base.__module__.startswith("torch."):
            try:
                found.append(inspect.getsource(base))
            except (OSError, TypeError):  # written where no file is
                continue
    return "\n".join(found)


def _holds_merged(model: nn.Module, name: str) -> bool:
    """Whether the module around a layer has an adapter in the layer's weight, which it means to take out again."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return _merges(parent) and getattr(parent, "merged", False) is True


def _has_dora_of_peft(model: nn.Module, name: str) -> bool:
    """Whether this is the base layer of an adapter of the library peft that looks at its weight, whatever its dtype."""
    above = model.get_submodule(name.rpartition(".")[0])
    return bool(len(getattr(above, "lora_magnitude_vector", ())))


def _has_old_backward_hook(layer: nn.Module) -> bool:
    """Whether it has a hook that sees gradients of the layer's last operation, of which another layer has another."""
    return bool(layer._backward_hooks) and layer._is_full_backward_hook is False
