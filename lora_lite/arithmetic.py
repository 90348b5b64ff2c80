"""Sums of adapters and weights: merge into the base and back, combine adapters, correct a quantized base.

Shapes: K in features, N out features, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lora_lite.layers import LoRALinear, LowRank, TiedLowRank, float_weight, low_rank_of, place, stores_transposed
from lora_lite.lora import (
    Adapter,
    Adapters,
    LoRAConfig,
    adapter_names,
    adapters_of,
    base_modules,
    check_name,
    drop_wrappers,
    lora_layers,
    set_adapter,
    set_module,
    wrapped_layers,
)
from lora_lite.starts import low_rank_correction

__all__ = ["Merged", "combine_adapters", "correct_quantization", "merge_lora", "unmerge_lora"]


@dataclass(frozen=True)
class Merged:
    """What `merge_lora` did.

    Attributes:
        largest_change: of a single weight.
        requantization_errors: by the full name of each layer that was quantized anew, the largest difference between a
            weight that was to be stored and the one that is.
        kept: what `unmerge_lora` needs, or None where it was not kept.
    """

    largest_change: float
    requantization_errors: dict[str, float]
    kept: _Kept | None = None


@dataclass(frozen=True)
class _Kept:
    """The model before a merge: its wrappers by name, the bits of their base weights, and what it knew of adapters."""

    layers: dict[str, LoRALinear]
    weights: dict[str, Tensor]
    adapters: Adapters


@torch.no_grad()
def merge_lora(
    model: nn.Module, keep: bool = False, requantize: Callable[[nn.Linear], nn.Module] | None = None
) -> Merged:
    """Add the active adapters' updates to the base weights and put the base layers back in place.

    Each sum is formed in float32 and rounded once, to the dtype of the base weight. Trained biases and whole modules
    stay in place as they are. Afterwards the model has no trace of adapters.

    Args:
        keep: whether the result keeps the base weights' bits, for `unmerge_lora`.
        requantize: what makes a quantized layer from a float one, such as `Int8Linear.from_linear`; without it a
            quantized base is refused, for merging into it adds a rounding error, which the result reports.

    Raises:
        ValueError: there is no adapter, one is not active and would be lost, a base is quantized, or an update is not
            finite; nothing is changed then.
    """
    _refuse_what_cannot_be_merged(model, requantize is not None)
    state, layers = adapters_of(model), lora_layers(model)
    largest, errors = 0.0, {}
    originals: dict[str, Tensor] = {}
    wrapped = wrapped_layers(model)
    bases: dict[int, nn.Module] = {}  # what takes the place of a requantized base
    done: set[object] = set()  # a weight that two layers share is changed once
    for path, layer in layers.items():
        if _is_float(layer.base):
            weight = layer.base.weight
            assert isinstance(weight, nn.Parameter)
            if place(weight) not in done:
                done.add(place(weight))
                merged = _merged_bits(layer)
                largest = max(largest, _largest(merged.float() - weight.float()))
                if keep:
                    originals[path] = weight.detach().clone()
                weight.copy_(merged)
        else:
            assert requantize is not None
            change = layer.delta()
            largest = max(largest, _largest(change))
            linear = cast(Callable[[], nn.Linear], layer.base.to_linear)()
            linear.weight.copy_(linear.weight.float() + change)
            bases[id(layer)] = requantize(linear).train(layer.base.training)
            errors[path] = _largest(linear.weight.float() - float_weight(bases[id(layer)]).float())
    drop_wrappers(model)
    for path, layer in wrapped.items():
        if id(layer) in bases:
            set_module(model, path, bases[id(layer)])
    return Merged(largest, errors, _Kept(wrapped, originals, state) if keep else None)


def _refuse_what_cannot_be_merged(model: nn.Module, requantize: bool) -> None:
    """Raise before anything is changed."""
    if not adapter_names(model):
        raise ValueError("the model has no adapters to merge")
    state, layers = adapters_of(model), lora_layers(model)
    idle = [name for name in state.by_name if name not in state.active]
    if idle:
        raise ValueError(
            f"adapters {', '.join(map(repr, idle))} are not active and would be lost: delete_adapter first"
        )
    for path, layer in layers.items():
        if not _is_float(layer.base) and not requantize:
            raise ValueError(
                f"{path} is a {type(layer.base).__name__}: merge into the float layer before quantizing it, or give "
                "requantize="
            )
        if not all(p.isfinite().all() for p in layer.adapters.parameters()):
            raise ValueError(f"the adapter of {path} holds NaN or infinity: the training diverged")
        if _is_float(layer.base) and not _merged_bits(layer).isfinite().all():
            raise ValueError(f"the merged weight of {path} would pass the range of {layer.base.weight.dtype}")
    for path, other in _halves(model):
        raise ValueError(
            f"{path} and {other} share one weight but no update, so that a merge would change both: untie it"
        )


def _merged_bits(layer: LoRALinear) -> Tensor:
    """The base's weight with the active updates in it, summed in float32 and rounded once, as the base stores it."""
    base = float_weight(layer.base)
    merged = (base.float() + layer.delta()).to(base.dtype)
    return merged.T if stores_transposed(layer.base) else merged


@torch.no_grad()
def unmerge_lora(model: nn.Module, merged: Merged) -> None:
    """Undo a merge: the base weights have their very bits again, and the adapters are back and active.

    Raises:
        ValueError: the merge did not keep the base's bits, the model has other adapters by now, or its weights were
            changed since; nothing is changed then.
    """
    kept = merged.kept
    if kept is None:
        raise ValueError("the merge did not keep the base weights: call merge_lora(model, keep=True)")
    if adapter_names(model):
        raise ValueError("the model has adapters again: remove_lora first")
    for path, bits in kept.weights.items():
        layer = kept.layers[path]
        weight = layer.base.weight
        assert isinstance(weight, nn.Parameter)
        same = model.get_submodule(path) is layer.base and weight.dtype == bits.dtype and weight.device == bits.device
        if same:  # merge once more, and see whether that gives what is there now
            present = weight.detach().clone()
            weight.copy_(bits)
            same = torch.equal(_merged_bits(layer), present)
            weight.copy_(present)
        if not same:
            raise ValueError(f"the weight of {path} was changed after the merge: there is no way back to the base")
    for path, bits in kept.weights.items():
        weight = kept.layers[path].base.weight
        assert isinstance(weight, nn.Parameter)
        weight.copy_(bits)
    for path, layer in kept.layers.items():
        set_module(model, path, layer)
    model.requires_grad_(False)
    vars(model)["_lora_adapters"] = kept.adapters
    set_adapter(model, *kept.adapters.active)


@torch.no_grad()
def combine_adapters(
    model: nn.Module, weights: Mapping[str, float], name: str, method: str = "concat", rank: int | None = None
) -> None:
    """Make a new adapter `name` from a weighted sum of others, and make it the active one.

    With w_i a weight and s_i, A_i, B_i of adapter i, the sum of the updates is sum_i w_i s_i B_i A_i.

    - "concat": A = [A_1; A_2; ...], B = [w_1 s_1 B_1, w_2 s_2 B_2, ...]: that sum itself, of rank R_1 + R_2 + ...
    - "svd": the best approximation of that sum of the rank asked for (the largest R_i, if none is).
    - "linear": A = sum_i sign(w_i) sqrt(abs(w_i) s_i) A_i, B = sum_i sqrt(abs(w_i) s_i) B_i: as PEFT's, a product of
      sums, which has cross terms; it keeps the rank.

    Raises:
        ValueError: an adapter is not there, is DoRA, or trains biases, whole modules or token rows; ranks differ where
            `linear` needs equal ones; method or rank make no sense.
    """
    state = adapters_of(model)
    whole = rank is None or (isinstance(rank, int) and rank >= 1)
    if method not in ("concat", "svd", "linear") or (rank is not None and method != "svd") or not whole:
        raise ValueError(
            f"method={method!r}, rank={rank}: take concat, linear, or svd, which alone has a rank, of at least 1"
        )
    check_name(model, name)
    if not weights or not all(map(math.isfinite, weights.values())):
        raise ValueError(f"weights={dict(weights)} must be finite numbers by the names of adapters")
    for own in weights:
        state.require(own)
        if state.by_name[own].replaced:
            raise ValueError(f"adapter {own!r} trains biases or whole modules, which cannot be summed here")
    made: dict[str, nn.Module] = {}
    sums: dict[tuple[int, ...], LowRank] = {}  # layers that share their updates share the sum
    for path, layer in lora_layers(model).items():
        parts = {own: layer.adapters[own] for own in weights if own in layer.adapters}
        turned = any(isinstance(part, TiedLowRank) for part in parts.values())
        plain: dict[str, LowRank] = {}
        for own, part in parts.items():
            update = low_rank_of(part)
            if update is None or update.magnitude is not None or turned != isinstance(part, TiedLowRank):
                raise ValueError(f"adapter {own!r} of {path} is a {type(part).__name__} other than plain LoRA")
            plain[own] = update
        if plain:
            key = tuple(map(id, plain.values()))
            if key not in sums:
                sums[key] = _combined(path, plain, weights, method, rank)
            made[path] = TiedLowRank(sums[key]) if turned else sums[key]
    for path, layer in lora_layers(model).items():
        if path in made:
            layer.adapters[name] = made[path].train(layer.training)
    ranks = {path: low.rank for path, update in made.items() if (low := low_rank_of(update))}
    config = LoRAConfig(
        max(ranks.values()), max(ranks.values()), targets=tuple(made), rank_pattern=ranks, alpha_pattern=ranks
    )
    state.by_name[name] = Adapter(config)
    set_adapter(model, name)


def _combined(
    path: str, parts: dict[str, LowRank], weights: Mapping[str, float], method: str, rank: int | None
) -> LowRank:
    """The new update of one layer; its scale is 1."""
    pairs = {own: part.factors() for own, part in parts.items()}
    ranks = {own: A.shape[0] for own, (A, _) in pairs.items()}
    scales = {own: weights[own] * part.scale for own, part in parts.items()}
    if method == "linear":
        if len(set(ranks.values())) > 1:
            raise ValueError(f"{path}: linear needs adapters of one rank, these have {ranks}: take concat or svd")
        A, B = (torch.zeros_like(tensor) for tensor in next(iter(pairs.values())))
        for own, (A_i, B_i) in pairs.items():
            root = math.sqrt(abs(scales[own]))
            A += math.copysign(root, scales[own]) * A_i
            B += root * B_i
    else:
        A = torch.cat([A for A, _ in pairs.values()])
        B = torch.cat([scales[own] * B for own, (_, B) in pairs.items()], dim=1)
    if method == "svd":
        most = min(len(A), A.shape[1], len(B))
        rank = min(rank or max(ranks.values()), most)
        # B A = Qb (Rb Ra^T) Qa^T: the SVD of the small middle one is that of the whole
        Qb, Rb = torch.linalg.qr(B)
        Qa, Ra = torch.linalg.qr(A.T)
        U, S, Vh = torch.linalg.svd(Rb @ Ra.T)
        A, B = Vh[:rank] @ Qa.T, Qb @ (U[:, :rank] * S[:rank])
    update = LowRank((B.shape[0], A.shape[1]), len(A), len(A), device=A.device)
    update.lora_A.copy_(A)
    update.lora_B.copy_(B)
    return update


@torch.no_grad()
def correct_quantization(
    model: nn.Module, weights: Mapping[str, Tensor], magnitudes: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[float, float]]:
    """Set A and B of every adapted layer to `low_rank_correction` of its quantization error.

    Quantize the model, add adapters, then call this with the weights from before. What is trained afterwards starts
    from the corrected layer; with the adapter disabled the quantized model is as it was.

    Args:
        model: quantized, with plain LoRA adapters.
        weights: the float weight (N, K) of each layer from before, by the layer's full name.
        magnitudes: as in `low_rank_correction`, by the same names; layers without are corrected unweighted.

    Returns:
        For each layer the Frobenius norm of its error before and after.

    Raises:
        ValueError: a weight is missing, or a layer's adapter is no plain LoRA.
    """
    layers = lora_layers(model)
    missing = [name for name in layers if name not in weights]
    if not layers or missing:
        raise ValueError(f"weights lacks {', '.join(missing[:4]) or 'everything: the model has no adapters'}")
    errors = {}
    for name, layer in layers.items():
        update = next(iter(layer.adapters.values()))
        plain = isinstance(update, LowRank) and update.magnitude is None and update.start_A is None
        if len(layer.adapters) != 1 or not plain:
            raise ValueError(f"{name} has other than one plain LoRA adapter")
        assert isinstance(update, LowRank)
        quantized, a = float_weight(layer.base), (magnitudes or {}).get(name)
        A, B = low_rank_correction(weights[name], quantized, update.rank, a)
        update.lora_A.copy_(A)
        update.lora_B.copy_(B / update.scale)
        error = weights[name].float() - quantized.float()
        errors[name] = float(error.norm()), float((error - update.product()).norm())
    return errors


def _halves(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of modules that share a weight of which only one is adapted, or each in its own way."""
    layers, owners = wrapped_layers(model), dict[object, str]()
    for path, module in base_modules(model).items():
        weight = module._parameters.get("weight")
        if weight is not None:
            first = owners.setdefault(place(weight), path)
            updates = [
                {id(low_rank_of(u) or u) for u in layers[p].adapters.values()} if p in layers else set()
                for p in (first, path)
            ]
            if updates[0] != updates[1]:
                yield path, first


def _is_float(base: nn.Module) -> bool:
    weight = getattr(base, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.is_floating_point()


def _largest(change: Tensor) -> float:
    return float(change.abs().max()) if change.numel() else 0.0
