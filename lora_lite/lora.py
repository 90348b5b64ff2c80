"""Low-rank adapters for the linear layers of any `nn.Module` (Hu et al. 2021, "LoRA", equation 3).

Shapes: B batch, T time, K in features, N out features, R rank.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "LoRAConfig",
    "LoRALinear",
    "add_lora",
    "lora_disabled",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "remove_lora",
    "trainable_summary",
]


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers get adapters, and of what size.

    Attributes:
        rank: R, the inner width of the update.
        alpha: the update is multiplied by alpha / rank.
        dropout: probability with which an input of the adapter (not of the base layer) is zeroed in training.
        targets: each a whole segment of a layer's dotted name ("q_proj"), its last segments ("self_attn.q_proj"),
            or a regular expression that matches those.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        _check_size(self.rank, self.dropout)
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f"targets={self.targets!r} must be a tuple of names, such as ('q_proj', 'v_proj')")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"target {target!r} is no regular expression: {error}") from None


class LoRALinear(nn.Module):
    """y = base(x) + (alpha / R) B A x: a frozen linear layer with a trainable low-rank update.

    Hu et al. 2021, equation 3. A (R, K) starts as `nn.Linear` does, B (N, R) at zero, so that the layer starts as the
    base layer. A and B are float32 whatever the base is; x is cast in and the update cast out.

    Args:
        base: anything with `in_features`, `out_features` and `forward`: `nn.Linear` or a quantized layer.
        rank: R >= 1.
        alpha: numerator of the scale.
        dropout: on the adapter's input, in training only.
        generator: draws A; `None` takes PyTorch's global one.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_size(rank, dropout)
        if not is_linear(base):
            raise TypeError(
                f"{type(base).__name__} has no in_features and out_features: LoRALinear wraps linear layers"
            )
        self.base = base
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.enabled = True
        a = torch.empty(rank, self.in_features)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)  # uniform in +-1/sqrt(K), as nn.Linear
        device = next((t.device for t in (*base.parameters(), *base.buffers())), None)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    @property
    def scale(self) -> float:
        """alpha / R."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The update of the weight, (alpha / R) B A: (N, K), float32."""
        return self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:  # (..., K) -> (..., N)
        y = self.base(x)
        if not self.enabled:
            return y
        h = x.to(self.lora_A.dtype)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        update = F.linear(F.linear(h, self.lora_A), self.lora_B) * self.scale  # (..., R) in between
        return y + update.to(y.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"


def add_lora(model: nn.Module, config: LoRAConfig | None = None, generator: torch.Generator | None = None) -> list[str]:
    """Freeze `model` and wrap every linear layer that a target names in a `LoRALinear`.

    Args:
        model: changed in place.
        config: sizes and targets; `None` takes `LoRAConfig()`.
        generator: draws the A matrices, in the order of the names; `None` takes PyTorch's global one.

    Returns:
        The names of the wrapped layers.

    Raises:
        ValueError: a target matches no linear layer (near names are listed), or the model has adapters already, or
            two names share one layer.
    """
    config = config or LoRAConfig()
    _refuse_a_second(model)
    linear = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if name and is_linear(layer)}
    wanted: set[str] = set()
    for target in config.targets:
        matched = {name for name in linear if re.fullmatch(rf"(?:.*\.)?(?:{target})", name)}
        if not matched:
            raise ValueError(f"target {target!r} matches no linear layer; {_near(target, linear)}")
        wanted |= matched
    names = [name for name in linear if name in wanted]  # in the order of the model
    wrap_layers(model, names, config, generator)
    return names


def wrap_layers(model: nn.Module, names: list[str], config: LoRAConfig, generator: torch.Generator | None) -> None:
    """Freeze `model` and wrap the linear layers with these full names, whatever the config's targets say.

    Raises:
        ValueError: as `add_lora`; the model is unchanged then.
    """
    _refuse_a_second(model)
    seen: dict[int, str] = {}
    for name in names:
        twin = seen.setdefault(id(model.get_submodule(name)), name)
        if twin != name:
            raise ValueError(f"{name} and {twin} are one layer: target one of the two names only")

    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    model.requires_grad_(False)
    for name in names:
        base = model.get_submodule(name)
        layer = LoRALinear(base, config.rank, config.alpha, config.dropout, generator)
        _set_module(model, name, layer.train(base.training))
    model._lora_was_trainable = trainable  # type: ignore[assignment]  # so that remove_lora can restore it


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapters of `model` by the name of the layer that they wrap."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """A and B of every adapter, for an optimizer.

    Raises:
        ValueError: there is none, so that nothing would be trained.
    """
    parameters = [p for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)]
    if not parameters:
        raise ValueError("the model has no adapters: call add_lora or load_adapter first")
    return parameters


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what its base computes, bit for bit; may be nested."""
    layers = list(lora_layers(model).values())
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before):
            layer.enabled = enabled


@torch.no_grad()
def merge_lora(model: nn.Module) -> float:
    """Add every update to its base weight and put the base layers back in place.

    The sum is formed in float32 and rounded once, to the dtype of the base weight.

    Returns:
        The largest change of a single weight.

    Raises:
        ValueError: there is no adapter, or a base weight is not floating point (quantized) or is shared with another
            module (a tied head); nothing is changed then.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapters to merge")
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    weights: dict[str, nn.Parameter] = {}
    for name, layer in layers.items():
        weight = getattr(layer.base, "weight", None)
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise ValueError(
                f"{name} is a {type(layer.base).__name__}: merge into the float layer before quantizing it"
            )
        if owners[id(weight)] > 1:
            raise ValueError(f"the weight of {name} is shared with another module, which the merge would change too")
        weights[name] = weight
    largest = 0.0
    for name, weight in weights.items():
        merged = (weight.float() + layers[name].delta()).to(weight.dtype)
        if merged.numel():
            largest = max(largest, float((merged.float() - weight.float()).abs().max()))
        weight.copy_(merged)
    remove_lora(model)
    return largest


def remove_lora(model: nn.Module) -> None:
    """Throw the adapters away: the base layers are back, and what was trainable before `add_lora` is again.

    Raises:
        ValueError: there is no adapter.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapters to remove")
    for name, layer in layers.items():
        _set_module(model, name, layer.base)
    trainable = model.__dict__.pop("_lora_was_trainable", set())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def trainable_summary(model: nn.Module) -> str:
    """One line: how many parameters are trained, of how many, and what share that is."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    share = 100 * trained / total if total else 0.0
    return f"trainable: {trained:,} of {total:,} parameters ({share:.2f}%) in {len(lora_layers(model))} adapters"


def is_linear(module: nn.Module) -> bool:
    """By duck typing, so that quantized layers count; an adapter itself does not."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and not isinstance(module, LoRALinear)


def _refuse_a_second(model: nn.Module) -> None:
    """A cell that is run again must not stack adapters on adapters."""
    present = lora_layers(model)
    if present:
        raise ValueError(
            f"the model has adapters already ({next(iter(present))} and {len(present) - 1} more): "
            "call merge_lora or remove_lora first"
        )


def _check_size(rank: int, dropout: float) -> None:
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank={rank!r} must be a whole number of at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} must be at least 0 and below 1")


def _near(target: str, linear: dict[str, nn.Module]) -> str:
    """What the caller may have meant."""
    segments = sorted({name.rsplit(".", 1)[-1] for name in linear})
    near = difflib.get_close_matches(target, segments, n=4, cutoff=0.4) or segments[:8]
    return f"did you mean {', '.join(near)}?" if near else "the model has no linear layers"


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
