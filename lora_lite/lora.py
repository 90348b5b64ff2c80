"""Add adapters to the layers of any `nn.Module`, switch them, and take them away again.

What a model knows of its adapters lies in one `Adapters` object beside its modules. An adapter is a set of low-rank
updates (`lora_lite.layers`), and of whole parameters that take the place of the base's own while it is active: trained
biases and `modules_to_save`. The base's weights are never written, so that with no adapter active the model is its
base, bit for bit.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lora_lite.layers import (
    LoRALinear,
    LowRank,
    TiedLowRank,
    TokenRows,
    float_weight,
    layer_size,
    place,
    stores_transposed,
)
from lora_lite.starts import olora, pissa

__all__ = [
    "Adapters",
    "LoRAConfig",
    "active_adapters",
    "adapter_names",
    "adapters_of",
    "adapters_without_gradient",
    "add_lora",
    "delete_adapter",
    "lora_disabled",
    "lora_layers",
    "lora_parameter_groups",
    "lora_parameters",
    "lora_rows",
    "remove_lora",
    "set_adapter",
    "trainable_summary",
]

_STARTS = {"lora": None, "pissa": pissa, "olora": olora}


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers get adapters, and of what kind.

    A pattern, wherever one is asked for, names the last segments of a dotted name ("q_proj", "self_attn.q_proj"), or
    is an fnmatch pattern on the whole name or its last segments ("model.layers.*.mlp.up_proj"), or, after "re:", a
    regular expression on the whole name ("re:.*layers\\.[0-3]\\..*_proj").

    Attributes:
        rank: R, the inner width of the update.
        alpha: the update is multiplied by alpha / rank.
        dropout: probability with which an input of the adapter (not of the base layer) is zeroed in training.
        targets: patterns; or "all-linear", every linear layer but the head.
        exclude: patterns of layers that get none although a target names them.
        layers: only those inside a block of these numbers (the first whole number in a name), if given.
        rank_pattern, alpha_pattern: another rank or alpha for the layers of a pattern; the first that fits counts.
        rslora: scale by alpha / sqrt(rank) (Kalajdzievski 2023).
        dora: learn lengths and directions of the weight's rows apart (Liu et al. 2024).
        start: of A and B: "lora" (B = 0), "pissa" (Meng et al. 2024) or "olora" (Buyukakyuz 2024); the layer starts as
            the base with each.
        bias: which biases are trained too: "none", "lora_only" (of the adapted layers) or "all".
        modules_to_save: patterns of modules that are trained whole, such as a new head.
        token_rows: token ids whose rows are trained, by pattern of the embedding: {"embed_tokens": (128256, 128257)}.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | str = ("q_proj", "k_proj", "v_proj", "o_proj")
    exclude: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    start: str = "lora"
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    token_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rank in {"rank": self.rank, **self.rank_pattern}.items():
            if not isinstance(rank, int) or rank < 1:
                raise ValueError(f"{name}={rank!r} must be a whole number of at least 1")
        for name, alpha in {"alpha": self.alpha, **self.alpha_pattern}.items():
            if not 0 < alpha < math.inf:
                raise ValueError(f"{name}={alpha!r} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must be at least 0 and below 1")
        for name in ("targets", "exclude", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, str) and not (name == "targets" and value == "all-linear"):
                other = ' or "all-linear"' if name == "targets" else ""
                raise ValueError(f"{name}={value!r} must be a tuple of patterns{other}")
        for name, value, known in (
            ("start", self.start, tuple(_STARTS)),
            ("bias", self.bias, ("none", "lora_only", "all")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not known: take one of {', '.join(known)}")
        if self.dora and self.start != "lora":
            raise ValueError(f"dora=True with start={self.start!r}: DoRA starts from B = 0")
        if not self.targets:
            raise ValueError("targets=() names no layer, such as ('q_proj', 'v_proj')")
        patterns = (*self.exclude, *self.modules_to_save, *self.rank_pattern, *self.alpha_pattern, *self.token_rows)
        for pattern in (*(() if isinstance(self.targets, str) else self.targets), *patterns):
            try:
                re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None

    def rank_of(self, name: str) -> int:
        """R of the layer with this full name."""
        return next((rank for pattern, rank in self.rank_pattern.items() if matches(name, pattern)), self.rank)

    def alpha_of(self, name: str) -> float:
        """Alpha of the layer with this full name."""
        return next((alpha for pattern, alpha in self.alpha_pattern.items() if matches(name, pattern)), self.alpha)


def matches(name: str, pattern: str) -> bool:
    """Whether a full dotted name fits a pattern of `LoRAConfig`."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


@dataclass
class Adapter:
    """One adapter of a model: its config, whether it is trained, and the parameters that it puts in the base's place."""

    config: LoRAConfig
    trainable: bool = True
    replaced: dict[str, nn.Parameter] = field(default_factory=dict)


@dataclass
class Adapters:
    """The adapters of a model by name, and which of them are active.

    Attributes:
        was_trainable: names of the parameters that required a gradient before the first adapter came.
        originals: the base's own parameters where some adapter replaces them.
        rows: inside `lora_rows`, the adapter of each row of a batch.
        contexts: how many of `lora_disabled` and `lora_rows` we are in.
    """

    by_name: dict[str, Adapter]
    was_trainable: set[str]
    active: tuple[str, ...] = ()
    originals: dict[str, nn.Parameter] = field(default_factory=dict)
    rows: tuple[str | None, ...] | None = None
    contexts: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy or pickle that is made inside a context is outside of it."""
        return {**self.__dict__, "rows": None, "contexts": 0}

    def require(self, *names: str) -> None:
        """Raise ValueError where a name is not an adapter's."""
        for name in names:
            if name not in self.by_name:
                raise ValueError(f"the model has no adapter {name!r}, it has {', '.join(map(repr, self.by_name))}")


def adapters_of(model: nn.Module) -> Adapters:
    """What `model` knows of its adapters.

    Raises:
        ValueError: it has none.
    """
    found: Adapters | None = getattr(model, "_lora_adapters", None)
    if found is None:
        raise ValueError("the model has no adapters: call add_lora or load_adapter first")
    return found


def adapter_names(model: nn.Module) -> list[str]:
    """The names of the model's adapters, in the order in which they came; empty if it has none."""
    found = getattr(model, "_lora_adapters", None)
    return list(found.by_name) if isinstance(found, Adapters) else []


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters whose updates are added up now."""
    return adapters_of(model).active


def add_lora(
    model: nn.Module,
    config: LoRAConfig | None = None,
    *,
    name: str = "default",
    generator: torch.Generator | None = None,
) -> list[str]:
    """Freeze `model`, wrap every layer that a target names in a `LoRALinear`, and make the new adapter the active one.

    A weight that several modules share (a head tied to its embedding, one layer under two names) gets one update,
    which all of them compute with.

    Args:
        model: changed in place.
        config: what to add and where; `None` takes `LoRAConfig()`.
        name: of the adapter; a model may have several.
        generator: draws the A matrices, in the order of the names; `None` takes PyTorch's global one.

    Returns:
        The full names of the adapted layers.

    Raises:
        ValueError: a pattern matches nothing (near names are listed), the model has an adapter of this name already,
            or a layer cannot have one; the model is unchanged then.
    """
    config = config or LoRAConfig()
    layers = find_layers(model, config)
    tokens = _find_token_rows(model, config)
    replaced = find_replaced(model, config, layers)
    wrap(model, name, config, layers, tokens, replaced, generator)
    return layers


def find_layers(model: nn.Module, config: LoRAConfig) -> list[str]:
    """The full names of the layers that the config's targets mean, in the order of the model."""
    sizes = {name: layer for name, layer in base_modules(model).items() if name and layer_size(layer)}
    if not sizes:
        raise ValueError("there is no linear layer or embedding inside the model; a bare layer takes LoRALinear(layer)")
    if config.targets == "all-linear":
        find = getattr(model, "get_output_embeddings", None)
        head = None if find is None else find()
        head = head.base if isinstance(head, LoRALinear) else head
        wanted = {name for name, layer in sizes.items() if not isinstance(layer, nn.Embedding) and layer is not head}
    else:
        wanted = set()
        for target in config.targets:
            found = {name for name in sizes if matches(name, target)}
            if not found:
                raise ValueError(f"target {target!r} matches no linear layer or embedding; {_near(target, sizes)}")
            wanted |= found
    for pattern in config.exclude:
        if not any(matches(name, pattern) for name in sizes):
            raise ValueError(f"exclude {pattern!r} matches no linear layer or embedding; {_near(pattern, sizes)}")
        wanted = {name for name in wanted if not matches(name, pattern)}
    saved = config.modules_to_save
    wanted = {name for name in wanted if not any(matches(path, p) for path in _paths(name) for p in saved)}
    if config.layers is not None:
        absent = set(config.layers) - {_block(name) for name in sizes}
        if absent:
            raise ValueError(f"layers={config.layers}: the model has no block {', '.join(map(str, sorted(absent)))}")
        wanted = {name for name in wanted if _block(name) in config.layers}
    around = {name for name in wanted if any(other.startswith(f"{name}.") for other in wanted)}
    if around and config.targets != "all-linear":
        raise ValueError(f"{min(around)} is a target and so is a layer inside it: target one of the two")
    names = [name for name in sizes if name in wanted - around]
    if not names:
        raise ValueError("exclude, layers and modules_to_save leave none of the layers that the targets match")
    for kind, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                raise ValueError(f"{kind} {pattern!r} matches none of the {len(names)} adapted layers")
    return names


def wrap(
    model: nn.Module,
    name: str,
    config: LoRAConfig,
    layers: Sequence[str],
    tokens: Mapping[str, Sequence[int]],
    replaced: Iterable[str],
    generator: torch.Generator | None = None,
    tie: bool = True,
) -> None:
    """Add an adapter to just these layers, token rows and parameters, whatever the config's patterns say.

    Without `tie`, modules that share a weight get an update each, or none: what PEFT makes unless told otherwise.
    """
    check_name(model, name)
    modules = base_modules(model)
    updates = _plan_updates(model, config, layers, tokens, generator, tie)
    if not adapter_names(model):
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        vars(model)["_lora_adapters"] = Adapters({}, trainable)
        model.requires_grad_(False)
    state, entry = adapters_of(model), Adapter(config)
    state.active = ()
    _activate(model)  # so that the base's own parameters are in place and can be copied
    copies: dict[int, nn.Parameter] = {}  # a parameter under several names has one copy
    for path in replaced:
        original = state.originals.setdefault(path, _parameter(model, path))
        copy = nn.Parameter(original.detach().clone())
        entry.replaced[path] = copies.setdefault(id(original), copy) if tie else copy
    wrappers: dict[int, LoRALinear] = {}  # a module under several names has one wrapper
    for names, update in updates:
        for layer in names:
            base, wrapper = modules[layer], model.get_submodule(layer)
            if not isinstance(wrapper, LoRALinear):
                if id(base) not in wrappers:
                    wrappers[id(base)] = LoRALinear(base, rank=None).train(base.training)
                wrapper = wrappers[id(base)]
                owner = model.get_submodule(layer.rpartition(".")[0])
                wrapper.only_read |= isinstance(owner, (nn.MultiheadAttention, nn.TransformerEncoderLayer))
                set_module(model, layer, wrapper)
            turned = stores_transposed(base) != stores_transposed(modules[names[0]])
            own = TiedLowRank(update) if turned and isinstance(update, LowRank) else update
            wrapper.adapters[name] = own.train(base.training)
    state.by_name[name] = entry
    set_adapter(model, name)


def check_name(model: nn.Module, name: str) -> None:
    """Raise ValueError where the model cannot get a new adapter of this name now."""
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ModuleDict, name) or hasattr(nn.Module(), name):
        raise ValueError(f"name={name!r} must be letters, digits, _ and -, and no word that modules use themselves")
    if name in adapter_names(model):
        raise ValueError(
            f"the model has an adapter {name!r} already: remove_lora or delete_adapter first, or give another name="
        )
    if adapter_names(model) and adapters_of(model).contexts:
        raise ValueError("inside lora_disabled or lora_rows no adapter can be added: leave it first")
    if (lora_layers(model) and not adapter_names(model)) or any(
        adapter_names(m) for m in model.modules() if m is not model
    ):
        raise ValueError(
            "a part of this model, or one that it is a part of, has adapters: call this on the same module"
        )


def _plan_updates(
    model: nn.Module,
    config: LoRAConfig,
    layers: Sequence[str],
    tokens: Mapping[str, Sequence[int]],
    generator: torch.Generator | None,
    tie: bool,
) -> list[tuple[list[str], nn.Module]]:
    """An update for each weight, with the names of all the layers that compute with that weight."""
    modules = base_modules(model)
    owners: dict[object, list[str]] = {}  # names of the modules that hold a tensor
    for path, module in modules.items():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners.setdefault(place(tensor), []).append(path)
    updates: list[tuple[list[str], nn.Module]] = []
    done: set[str] = set()
    for layer in (*layers, *tokens):
        if layer in done and layer in tokens:
            low_rank = [names for names, update in updates if isinstance(update, LowRank)]
            if layer in layers or any(layer in names for names in low_rank):
                raise ValueError(f"{layer} is a target and has token_rows: one weight can have one of the two")
        if layer in done:
            continue
        weight = getattr(modules[layer], "weight", None)
        names = owners[place(weight)] if isinstance(weight, torch.Tensor) else [layer]
        if not tie and layer not in tokens:
            names = [other for other in names if modules[other] is modules[layer]]
        for other in names:
            if layer_size(modules[other]) is None:
                kind = type(modules[other]).__name__
                raise ValueError(f"{layer} shares its weight with {other}, a {kind}, which cannot have an adapter")
        names = sorted(names, key=lambda other: not isinstance(modules[other], nn.Embedding))  # an embedding leads
        base = modules[names[0]]
        for other in names:
            _refuse_other_embeddings(other, modules[other])
        if layer in tokens and any(tokens.get(other, tokens[layer]) != tokens[layer] for other in names):
            raise ValueError(f"{' and '.join(names)} share one weight: their token_rows must be of the same tokens")
        if layer in tokens:
            rows = float_weight(base).T if isinstance(base, nn.Embedding) else float_weight(base)
            ids = torch.tensor(tokens[layer], device=rows.device)
            update: nn.Module = TokenRows(rows[ids], tuple(tokens[layer]))
        else:
            update = _low_rank(config, layer, base, generator)
            if config.dora and len({stores_transposed(modules[other]) for other in names}) > 1:
                raise ValueError(f"{' and '.join(names)} share one weight: DoRA's row lengths fit only one of them")
        updates.append((names, update))
        done |= set(names)
    return updates


def _refuse_other_embeddings(name: str, base: nn.Module) -> None:
    """An embedding that scales or renormalizes its rows is more than a linear layer on one-hot vectors."""
    if isinstance(base, nn.Embedding) and (type(base).forward is not nn.Embedding.forward or base.max_norm is not None):
        raise ValueError(
            f"{name} is a {type(base).__name__} that computes more than a row of its weight: not supported"
        )


def _low_rank(config: LoRAConfig, name: str, base: nn.Module, generator: torch.Generator | None) -> LowRank:
    """The update of one layer as the config wants it."""
    size = layer_size(base)
    assert size is not None
    device = next((t.device for t in (*base.parameters(), *base.buffers())), None)
    rank, alpha = config.rank_of(name), config.alpha_of(name)
    update = LowRank(size, rank, alpha, config.dropout, config.rslora, generator, device)
    start = _STARTS[config.start]
    if start is not None:
        update.start_at(*start(float_weight(base).detach(), rank, update.scale))
    if config.dora:
        update.measure_magnitude(base)
    return update


def set_adapter(model: nn.Module, *names: str) -> None:
    """Make these adapters the active ones, whose updates are added up, and the only ones that are trained.

    Raises:
        ValueError: the model has no such adapter, or two of them put a parameter in the same place (a trained bias,
            `modules_to_save`, a token's row, which no other update of that embedding may add to); or we are inside
            `lora_disabled` or `lora_rows`, whose end would undo it.
    """
    state = adapters_of(model)
    state.require(*names)
    if state.contexts:
        raise ValueError("the end of lora_disabled or lora_rows would undo a set_adapter inside it: call it outside")
    owners: dict[str, str] = {}
    for name in dict.fromkeys(names):
        taken = [*state.by_name[name].replaced]
        for path, layer in lora_layers(model).items():
            kinds = {type(layer.adapter(other)) for other in names}
            tokens = layer.adapter(name)
            if TokenRows in kinds and len(kinds - {type(None)}) > 1:
                taken.append(f"rows of {path}")
            elif isinstance(tokens, TokenRows):
                taken += [f"{path}, token {i}" for i in tokens.ids]
        for what in taken:
            other = owners.setdefault(what, name)
            if other != name:
                raise ValueError(f"adapters {other!r} and {name!r} both replace {what}: they cannot be active together")
    state.active = tuple(dict.fromkeys(names))
    _activate(model)
    for name, entry in state.by_name.items():
        for p in _parameters_of(model, name):
            p.requires_grad_(entry.trainable and name in state.active)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Throw one adapter away; with the last one the model is its base again.

    Raises:
        ValueError: the model has no such adapter.
    """
    state = adapters_of(model)
    state.require(name)
    if len(state.by_name) == 1:
        remove_lora(model)
        return
    state.active = tuple(active for active in state.active if active != name)
    if name in (state.rows or ()):
        raise ValueError(f"adapter {name!r} serves rows of this lora_rows: leave it first")
    _activate(model)
    del state.by_name[name]
    for layer in lora_layers(model).values():
        if name in layer.adapters:
            del layer.adapters[name]
    _unwrap(model, {path: layer for path, layer in wrapped_layers(model).items() if not layer.adapters})


def remove_lora(model: nn.Module) -> None:
    """Throw all adapters away: the base is back, and what was trainable before the first `add_lora` is again.

    Raises:
        ValueError: there is no adapter.
    """
    if not adapter_names(model):
        raise ValueError("the model has no adapters to remove")
    adapters_of(model).active, adapters_of(model).rows = (), None
    _activate(model)
    drop_wrappers(model)


def drop_wrappers(model: nn.Module) -> None:
    """Put the base layers back in place and forget the adapters; parameters stay as they are now."""
    trainable = adapters_of(model).was_trainable
    _unwrap(model, wrapped_layers(model))
    del model._lora_adapters
    for name, p in model.named_parameters():
        p.requires_grad_(name in trainable)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers of `model` by the full name of the layer that they wrap; one under several names comes once."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def lora_parameters(model: nn.Module, name: str | None = None) -> list[nn.Parameter]:
    """What is trained of one adapter, or of all: A and B, magnitudes, biases, whole modules, token rows.

    Raises:
        ValueError: there is no adapter (of this name), so that nothing would be trained.
    """
    state = adapters_of(model)
    state.require(*(() if name is None else (name,)))
    found: dict[int, nn.Parameter] = {}
    for own in state.by_name if name is None else (name,):
        found |= {id(p): p for p in _parameters_of(model, own)}
    return list(found.values())


def lora_parameter_groups(model: nn.Module, learning_rate: float, ratio: float = 16.0) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer, B's with `ratio` times the learning rate of all others.

    LoRA+ (Hayou et al. 2024, section 4): in wide layers features are learnt efficiently only if B moves faster than A.
    """
    parameters = [p for p in lora_parameters(model) if p.requires_grad]
    b = {id(p) for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] == "lora_B"}
    return [
        {"params": [p for p in parameters if id(p) not in b], "lr": learning_rate},
        {"params": [p for p in parameters if id(p) in b], "lr": learning_rate * ratio},
    ]


def lora_disabled(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, the model computes what its base computes, bit for bit; may be nested."""
    return _switched(model, None)


def lora_rows(model: nn.Module, names: Sequence[str | None]) -> AbstractContextManager[None]:
    """Inside, row i of a batch gets adapter `names[i]`, or none where that is None; the batch has len(names) rows.

    The batch must be the first dimension of what the layers see, and the backward pass belongs inside, too.

    Raises:
        ValueError: the model has no such adapter, or one trains biases or whole modules, which rows cannot have apart.
    """
    state = adapters_of(model)
    for name in filter(None, names):
        state.require(name)
        if state.by_name[name].replaced:
            raise ValueError(f"adapter {name!r} trains biases or whole modules: rows of one batch cannot differ there")
    return _switched(model, tuple(names))


@contextmanager
def _switched(model: nn.Module, rows: tuple[str | None, ...] | None) -> Iterator[None]:
    """Inside, no adapter is active but those of `rows`; afterwards it is as before, save what was deleted meanwhile."""
    state = adapters_of(model)
    before = state.active, state.rows
    state.active, state.rows = (), rows
    state.contexts += 1
    _activate(model)
    try:
        yield
    finally:
        state.contexts -= 1
        state.active, state.rows = tuple(name for name in before[0] if name in state.by_name), before[1]
        if getattr(model, "_lora_adapters", None) is state:  # else they were removed or merged inside
            _activate(model)


def adapters_without_gradient(model: nn.Module) -> list[str]:
    """After a backward pass: the full names of the trained A, B, ... that received no gradient, or only zeros.

    A's gradient is zero as long as B is, so at the first step it is not counted: neither while B is zero, nor after an
    optimizer's step has moved a B that did receive a gradient.
    """
    silent: list[str] = []
    state = adapters_of(model)
    for path, layer in lora_layers(model).items():
        for adapter in layer.active:
            update = layer.adapters[adapter]
            own = () if isinstance(update, TiedLowRank) else update.named_parameters()  # counted where its twin is
            for name, p in own:
                waits = False
                if isinstance(update, LowRank) and p is update.lora_A:
                    moved = p.grad is not None and update.lora_B.grad is not None and bool(update.lora_B.grad.any())
                    waits = moved or not update.lora_B.any()
                if p.requires_grad and not waits and (p.grad is None or not p.grad.any()):
                    silent.append(f"{path}.{adapter}.{name}")
    for adapter in state.active:
        for name, p in state.by_name[adapter].replaced.items():
            if p.requires_grad and (p.grad is None or not p.grad.any()):
                silent.append(name)
    return silent


def trainable_summary(model: nn.Module) -> str:
    """One line: how many parameters are trained, of how many, and what share that is."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    share = 100 * trained / total if total else 0.0
    return f"trainable: {trained:,} of {total:,} parameters ({share:.2f}%) in {len(lora_layers(model))} adapters"


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the base by its full name, as if there were no adapters; a shared one under each of its names."""
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, name: str) -> None:
        module = module.base if isinstance(module, LoRALinear) else module
        found[name] = module
        for child, inner in module._modules.items():
            if inner is not None:
                walk(inner, f"{name}.{child}" if name else child)

    walk(model, "")
    return found


def _find_token_rows(model: nn.Module, config: LoRAConfig) -> dict[str, Sequence[int]]:
    """The embeddings (or heads) whose rows are trained, each with the token ids."""
    found: dict[str, Sequence[int]] = {}
    rows: dict[str, int] = {}
    for name, module in base_modules(model).items():
        size = layer_size(module)
        if name and size:
            rows[name] = size[1] if isinstance(module, nn.Embedding) else size[0]
    for pattern, ids in config.token_rows.items():
        names = [name for name in rows if matches(name, pattern)]
        if not names:
            raise ValueError(f"token_rows {pattern!r} matches no embedding or linear layer; {_near(pattern, rows)}")
        for name in names:
            if not ids or len(set(ids)) < len(ids) or not all(0 <= i < rows[name] for i in ids):
                raise ValueError(f"token_rows of {name} must be different ids below {rows[name]}, got {list(ids)}")
            found[name] = ids
    return found


def find_replaced(model: nn.Module, config: LoRAConfig, layers: Sequence[str], tie: bool = True) -> list[str]:
    """The full names of the parameters that get a trained copy: biases, and all of `modules_to_save`.

    With `tie`, a parameter that modules share is named as each of them names it.
    """
    modules = base_modules(model)
    parameters = {
        f"{path}.{leaf}" if path else leaf: p
        for path, module in modules.items()
        for leaf, p in module._parameters.items()
        if p is not None
    }
    wanted: list[str] = []
    if config.bias == "all":
        wanted += [name for name in parameters if name.rsplit(".", 1)[-1] == "bias"]
    elif config.bias == "lora_only":
        wanted += [f"{layer}.bias" for layer in layers if f"{layer}.bias" in parameters]
    if config.bias != "none" and not wanted:
        raise ValueError(f"bias={config.bias!r}: none of these layers has a bias that is a parameter")
    for pattern in config.modules_to_save:
        roots = [path for path in modules if path and matches(path, pattern)]
        own = [name for name in parameters if any(name.startswith(f"{root}.") for root in roots)]
        for root in roots:
            buffers = [name for name, _ in modules[root].named_buffers()]
            if buffers:
                raise ValueError(
                    f"modules_to_save {root} has buffers ({', '.join(buffers[:3])}), which training changes"
                )
        if not own:
            raise ValueError(
                f"modules_to_save {pattern!r} matches no module with parameters; {_near(pattern, modules)}"
            )
        wanted += own
    shared = {id(parameters[name]) for name in wanted} if tie else set()
    return [name for name, p in parameters.items() if name in wanted or id(p) in shared]


def _activate(model: nn.Module) -> None:
    """Let the layers add up the active adapters, and put their whole parameters, or the base's own, in place."""
    state = adapters_of(model)
    for layer in lora_layers(model).values():
        layer.active = tuple(name for name in state.active if name in layer.adapters)
        layer.rows, layer.batch = None, 0
        if state.rows is not None:
            device = next(layer.adapters.parameters()).device
            served = [name for name in dict.fromkeys(state.rows) if name is not None and name in layer.adapters]
            places = {name: [row for row, own in enumerate(state.rows) if own == name] for name in served}
            layer.rows = tuple((name, torch.tensor(at, device=device)) for name, at in places.items())
            layer.batch = len(state.rows)
    for path, original in state.originals.items():
        entries = [state.by_name[name] for name in state.active]
        owned = [entry.replaced[path] for entry in entries if path in entry.replaced]
        own, present = owned[0] if owned else original, _parameter(model, path)
        if own is not present:
            if own.device != present.device or own.dtype != present.dtype:  # the model was moved meanwhile
                own.data = own.data.to(present)
            owner, _, leaf = path.rpartition(".")
            setattr(_base_module(model, owner), leaf, own)


def _parameters_of(model: nn.Module, name: str) -> list[nn.Parameter]:
    """Everything that one adapter trains."""
    updates = [layer.adapters[name] for layer in lora_layers(model).values() if name in layer.adapters]
    return [p for update in updates for p in update.parameters()] + [
        *adapters_of(model).by_name[name].replaced.values()
    ]


def wrapped_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers under all of their names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: layer for name, layer in modules if isinstance(layer, LoRALinear)}


def _unwrap(model: nn.Module, layers: Mapping[str, LoRALinear]) -> None:
    for name, layer in layers.items():
        set_module(model, name, layer.base)


def _base_module(model: nn.Module, path: str) -> nn.Module:
    module = model.get_submodule(path)
    return module.base if isinstance(module, LoRALinear) else module


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The base's parameter of this full name, or the one that an active adapter has put in its place."""
    path, _, leaf = name.rpartition(".")
    found = _base_module(model, path)._parameters[leaf]
    assert found is not None
    return found


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of a dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _paths(name: str) -> list[str]:
    """The dotted name and those of all modules around it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _block(name: str) -> int | None:
    """The first whole number in a dotted name: the index of the block that the layer is in."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _near(pattern: str, names: Iterable[str]) -> str:
    """What the caller may have meant."""
    segments = sorted({name.rsplit(".", 1)[-1] for name in names if name})
    near = difflib.get_close_matches(pattern, segments, n=4, cutoff=0.4) or segments[:8]
    return f"did you mean {', '.join(near)}?" if near else "the model has none"
