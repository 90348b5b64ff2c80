"""Quantize the layers of a whole model in place, one by one, and report what that did to each."""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from quant_lite.calibrate import MinMaxObserver, MSEObserver, PercentileObserver, range_parameters
from quant_lite.gptq import gptq_quantize
from quant_lite.linear import BFloat16Linear, Int4Linear, Int8Embedding, Int8Linear, row_pieces
from quant_lite.outliers import smoothing_scales
from quant_lite.quantize import (
    Granularity,
    PerChannel,
    PerGroup,
    QuantizedTensor,
    absmax_quantize,
    nf4_quantize,
    zeropoint_quantize,
)
from quant_lite.replacing import MERGED, SET_BY_HOOK, WAYS_OUT, is_plain_embedding, put_layer, reason_to_stay

__all__ = ["LayerReport", "QuantConfig", "QuantReport", "quantize_", "sqnr"]


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize a model.

    Attributes:
        scheme: "absmax", "zeropoint", "nf4" (always 4 bits), or "bfloat16", which rounds and does not quantize.
        granularity: which weights share a scale. None is `PerChannel(0)`, one scale an output channel, with 8 bits,
            `PerGroup(128)` with 4, and `PerGroup(64)` for NF4.
        bits: 8 or 4, of a weight.
        activations: "float", or "int8" to quantize each row of a layer's input, too; "int8_full" as `Int8Linear` has it.
        outliers: with int8 activations: columns of the input with a number of at least this size stay in float.
        observer: with int8 activations: "minmax", "percentile" (99.99) or "mse" finds one scale for a layer's inputs in
            calibration, in place of one for each row as it comes.
        smoothing: alpha of SmoothQuant, from 0 to 1, found in calibration; None for none.
        gptq: whether the integers are chosen by GPTQ in calibration, and not each by rounding.
        embeddings: whether embeddings that no head shares become int8, too; those that a head shares always go with it.
        skip: fnmatch patterns on full layer names that stay in float, such as `"*.down_proj"`.
    """

    scheme: str = "absmax"
    granularity: Granularity | None = None
    bits: int = 8
    activations: str = "float"
    outliers: float | None = None
    observer: str | None = None
    smoothing: float | None = None
    gptq: bool = False
    embeddings: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        schemes = ("absmax", "zeropoint", "nf4", "bfloat16")
        if self.scheme not in schemes:
            raise ValueError(f"scheme={self.scheme!r} is not known: take one of {', '.join(schemes)}")
        if self.activations not in ("float", "int8", "int8_full"):
            raise ValueError(f"activations={self.activations!r} is not known: take float, int8 or int8_full")
        if self.activations != "float" and (self.scheme != "absmax" or self.bits != 8):
            raise ValueError(
                f"activations={self.activations!r} needs scheme='absmax' and bits=8, not {self.scheme!r} and {self.bits}: products of "
                "integers have no room for zero points or levels"
            )
        if self.activations == "float" and self.outliers is not None or self.activations != "int8" and self.observer:
            raise ValueError(f"outliers= and observer= are of int8 activations: these are {self.activations}")
        if self.observer is not None and self.observer not in _OBSERVERS:
            raise ValueError(f"observer={self.observer!r} is not known: take one of {', '.join(_OBSERVERS)}")
        if self.gptq and self.scheme != "absmax":
            raise ValueError(f"gptq=True needs scheme='absmax', not {self.scheme!r}")
        if self.smoothing is not None and (self.bits != 8 or self.scheme not in ("absmax", "zeropoint")):
            raise ValueError(f"smoothing= needs an int8 scheme, not {self.scheme!r} with bits={self.bits}")
        if self.embeddings and (self.bits != 8 or self.scheme not in ("absmax", "zeropoint")):
            raise ValueError(f"embeddings=True needs an int8 scheme, not {self.scheme!r} with bits={self.bits}")

    @property
    def calibrated(self) -> bool:
        """Whether this needs inputs to calibrate on."""
        return self.gptq or self.observer is not None or self.smoothing is not None

    def quantize(self, weight: Tensor, hessian: Tensor | None = None) -> QuantizedTensor:
        """One weight (N, K) by this scheme (not "bfloat16"); `hessian` (K, K) is GPTQ's."""
        if self.scheme == "nf4":
            return nf4_quantize(weight, self.granularity or PerGroup(64))
        granularity = self.granularity or (PerChannel(0) if self.bits == 8 else PerGroup(128))
        if hessian is not None:
            return gptq_quantize(weight, hessian, granularity, self.bits)
        quantizer = absmax_quantize if self.scheme == "absmax" else zeropoint_quantize
        return quantizer(weight, granularity, self.bits)


_SKIPPED, _SHARED = "skipped by the config", "its weight is shared with another module"
_WAYS_OUT = {
    **WAYS_OUT,
    _SKIPPED: "leave some out of skip=",
    _SHARED: "give it a copy of the weight, or, where it is a head's and its embedding's, take an int8 scheme",
}
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
_OBSERVERS = {"minmax": MinMaxObserver, "percentile": PercentileObserver, "mse": MSEObserver}


@dataclass(frozen=True)
class LayerReport:
    """One layer: its scheme, sizes in bytes, the largest error of a weight and its bound, and the SQNR in dB."""

    name: str
    shape: tuple[int, ...]
    scheme: str
    bytes_before: int
    bytes_after: int
    max_error: float
    bound: float
    sqnr: float


@dataclass(frozen=True)
class QuantReport:
    """What `quantize_` did; `print` it for a table.

    Attributes:
        layers: the quantized ones.
        kept: names of layers that stay in float, each with the reason.
        bytes_before, bytes_after: of all parameters and buffers of the model, each stored once.
        perplexity_before, perplexity_after: on the tokens of the calibration; None where there are none, or no logits.
    """

    layers: tuple[LayerReport, ...]
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None

    def __str__(self) -> str:
        rows = [("layer", "shape", "scheme", "bytes", "bytes after", "max error", "bound", "SQNR dB")]
        for r in self.layers:
            shape = "x".join(map(str, r.shape))
            sizes = (f"{r.bytes_before:,}", f"{r.bytes_after:,}")
            rows.append((r.name, shape, r.scheme, *sizes, f"{r.max_error:.2e}", f"{r.bound:.2e}", f"{r.sqnr:.1f}"))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines += [f"{name}: stays in float ({reason})" for name, reason in self.kept.items()]
        saved = 100 * (1 - self.bytes_after / self.bytes_before) if self.bytes_before else 0.0
        lines.append(f"model: {self.bytes_before:,} -> {self.bytes_after:,} bytes ({saved:.1f}% smaller)")
        if self.perplexity_before is not None and self.perplexity_after is not None:
            change = 100 * (self.perplexity_after / self.perplexity_before - 1)
            lines.append(f"perplexity: {self.perplexity_before:.4f} -> {self.perplexity_after:.4f} ({change:+.2f}%)")
        return "\n".join(lines)

    def draw(self, picture: str | Path) -> None:
        """Write a picture of it: the SQNR of each layer, and its bytes before and after.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 1.5 + 0.2 * len(self.layers)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        places = range(len(self.layers), 0, -1)
        left.barh(places, [min(row.sqnr, 200.0) for row in self.layers])
        left.set_yticks(places, [row.name for row in self.layers], fontsize=7)
        left.set_xlabel("SQNR, dB")
        right.barh(places, [row.bytes_before / 1e6 for row in self.layers], label="before", color="lightgray")
        right.barh(places, [row.bytes_after / 1e6 for row in self.layers], label="after")
        right.set_xlabel("MB")
        right.legend()
        figure.savefig(picture, dpi=120)


def sqnr(x: Tensor, x_hat: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB, 10 log10(sum x^2 / sum (x - x_hat)^2); infinite without error."""
    return _decibel(float(x.double().pow(2).sum()), float((x.double() - x_hat.double()).pow(2).sum()))


@torch.no_grad()
def quantize_(model: nn.Module, config: QuantConfig | None = None, calibration: Iterable[Any] = ()) -> QuantReport:
    """Replace every `nn.Linear` of `model`, in place and one by one, by a layer of the config's scheme.

    A head that is tied to an embedding is quantized with it: both read one int8 copy (with 4 bits they stay in float, and
    in bfloat16 they share what is bfloat16 already). An embedding alone becomes int8 where the config says so. A weight
    that others share stays in float, and so do matrices that are no `nn.Linear`'s (convolutions, experts in one tensor)
    and layers whose module reads `self.<layer>.weight` by itself, as its source says (transformers' Mamba): the report
    names them. The float layer inside an adapter is quantized like any other; the adapter stays in float, with what it
    trains whole (`modules_to_save`), and so does a layer with a `forward` other than `nn.Linear`'s, be it a subclass's or
    its own, or with a hook of `register_backward_hook`; other hooks go on. A layer whose weight is read in another way,
    from afar, needs to be in `skip`.

    A weight that is computed (`torch.nn.utils.parametrize`) is quantized as it is now, for good; one that was trained with
    `fake_quantize` and the config's scheme becomes the integers that it was trained with.

    Args:
        model: any module with linear layers.
        config: None takes `QuantConfig()`.
        calibration: inputs, for each of which the model is called: a tuple holds several, a dictionary those of keyword
            arguments, and anything else, as a tensor, is the only one. Observers, SmoothQuant and GPTQ look at what
            they become in the model. Where they are token ids (B, T) and the model returns logits (B, T, V), those of the
            next ones, the change of perplexity is measured, without what `attention_mask` calls padding. GPTQ runs the
            model once for each layer, and needs some matrices (K, K) of float64 besides.

    Raises:
        TypeError: a weight has another dtype than float32, float16 and bfloat16 (named), or `calibration` is one input.
        ValueError: there is nothing to quantize, a weight is not finite or holds no numbers yet, or an adapter that is
            to be taken out again (named), a `skip` pattern matches nothing, or the config needs inputs to calibrate on.
        The model is unchanged where that is known before the first layer is replaced; only a weight that is not finite
        is found on the way, and then the layers before it are quantized already.
    """
    config = config or QuantConfig()
    if isinstance(calibration, (Tensor, Mapping, str)):
        raise TypeError(f"calibration= is a {type(calibration).__name__}: give a list of inputs, if only of this one")
    batches = list(calibration)
    if config.calibrated and not batches:
        raise ValueError("observer=, smoothing= and gptq= need inputs to calibrate on: give some as calibration=")
    chosen, kept = _choose(model, config)
    before = _bytes(model)
    perplexity = _perplexity(model, batches)
    seen = _Seen(model, chosen, config, batches)
    rows = [_replace(model, names, config, seen) for names in chosen]
    after = _perplexity(model, batches)
    return QuantReport(tuple(rows), kept, before, _bytes(model), perplexity, after)


def watch_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any], see: Callable[[str, Tensor], object]
) -> None:
    """Call the model with each batch, and show `see` what comes into each named layer, as rows (T, K), T above 0."""

    def show(name: str, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = inputs[0] if inputs else named["input"]
        rows = x.shape[:-1].numel()
        if rows:  # an expert that no token went to has seen nothing
            see(name, x.detach().reshape(rows, x.shape[-1]))

    layers = {name: model.get_submodule(name) for name in names}
    hooks = [layer.register_forward_pre_hook(partial(show, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with _in_eval(model):
            for batch in batches:
                _call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards, and after an error, each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Seen:
    """What the layers' inputs were in calibration, as far as a config asks."""

    def __init__(
        self, model: nn.Module, chosen: Sequence[Sequence[str]], config: QuantConfig, calibration: Sequence[Any]
    ) -> None:
        self.model, self.calibration, self.config = model, calibration, config
        names = [group[0] for group in chosen if isinstance(model.get_submodule(group[0]), nn.Linear)]
        # a head's weight that is an embedding, too, is neither smoothed nor chosen for the head's inputs alone
        self.alone = [group[0] for group in chosen if len(group) == 1 and group[0] in names]
        self.smooth: dict[str, Tensor] = {}  # (K,) of each layer
        self.input_scale: dict[str, float] = {}
        if config.smoothing is not None:
            most: dict[str, Tensor] = {}

            def largest(name: str, x: Tensor) -> None:
                columns = x.abs().amax(0).float()
                most[name] = torch.maximum(most[name], columns) if name in most else columns

            watch_inputs(model, self.alone, calibration, largest)
            _refuse_unseen(self.alone, most)
            for name in self.alone:
                layer = model.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                self.smooth[name] = smoothing_scales(most[name], layer.weight.detach(), config.smoothing)
        if config.gptq:  # its own passes come when layers are replaced already
            reached: set[str] = set()
            watch_inputs(model, self.alone, calibration, lambda name, _: reached.add(name))
            _refuse_unseen(self.alone, reached)
        if config.observer is not None:
            observers = {name: _OBSERVERS[config.observer]() for name in names}
            called: set[str] = set()

            def observe(name: str, x: Tensor) -> None:
                called.add(name)
                observers[name].update(self._smoothed(name, x))

            watch_inputs(model, names, calibration, observe)
            _refuse_unseen(names, called)
            for name, observer in observers.items():
                self.input_scale[name] = float(range_parameters(*observer.range())[0])

    def hessian(self, name: str) -> Tensor | None:
        """Sum of x x^T over a layer's inputs, (K, K) float64, for GPTQ; layers before it are quantized by then."""
        if not self.config.gptq or name not in self.alone:
            return None
        sums: list[Tensor] = []

        def add(_: str, x: Tensor) -> None:
            wide = self._smoothed(name, x).double()
            sums[:] = [sums[0] + wide.T @ wide] if sums else [wide.T @ wide]

        watch_inputs(self.model, [name], self.calibration, add)
        _refuse_unseen([name], [name] * len(sums))  # quantized layers before it may send tokens elsewhere
        return sums[0]

    def _smoothed(self, name: str, x: Tensor) -> Tensor:
        return x / self.smooth[name].to(x.dtype) if name in self.smooth else x


def _refuse_unseen(names: Sequence[str], seen: Collection[str]) -> None:
    unseen = [name for name in names if name not in seen]
    if unseen:
        raise ValueError(f"calibration never reached {', '.join(unseen[:4])}: skip such layers, or give other inputs")


def _perplexity(model: nn.Module, batches: Sequence[Any]) -> float | None:
    """exp of the mean negative log-likelihood of each token but the first of each row; None without tokens or logits."""
    total, count, told = 0.0, 0, False
    with _in_eval(model):
        for batch in batches:
            ids, real = _tokens(model, batch)
            logits = None if ids is None else _logits(_call(model, batch))
            if ids is None or logits is None or logits.shape[:2] != ids.shape:
                continue
            if ids.numel() and int(ids.max()) >= logits.shape[2]:  # features, or labels: not of the next token
                continue
            told = True
            targets = ids[:, 1:].long().masked_fill(~(real[:, 1:] & real[:, :-1]), -100).to(logits.device)
            logits = logits[:, :-1].flatten(0, 1).float()
            total += float(F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=-100))
            count += int((targets >= 0).sum())
    if told and not count:
        raise ValueError("calibration text of single tokens has nothing to predict: give rows of two tokens or more")
    return float(torch.tensor(total / count, dtype=torch.float64, device="cpu").exp()) if told else None


def _tokens(model: nn.Module, batch: Any) -> tuple[Tensor | None, Tensor]:
    """Token ids (B, T), None if a batch's first argument is anything else; and, (B, T), which of them are no padding.

    In a dictionary the first is that of the model's arguments, or `input_ids`; of an encoder with a decoder, the latter's.
    """
    decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    named = batch if isinstance(batch, Mapping) else {}
    first: Sequence[str] = () if decoder else ("input_ids", *inspect.signature(model.forward).parameters, *named)
    ids = next((named[name] for name in ("decoder_input_ids", *first) if name in named), None)
    mask = named.get("decoder_attention_mask" if decoder else "attention_mask")
    if not named and not decoder:
        ids = batch[0] if isinstance(batch, tuple) and batch else batch
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in _INTEGERS:
        return None, torch.empty(0)
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        return ids, mask.to(ids.device).bool()
    return ids, torch.ones_like(ids, dtype=torch.bool)


def _logits(output: Any) -> Tensor | None:
    """(B, T, V) of what a model returns: alone, first of several, or by name, as transformers' do."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, (tuple, list)):
        output = output[0] if output else None
    else:
        output = getattr(output, "logits", output)
    return output if isinstance(output, Tensor) and output.dim() == 3 and output.is_floating_point() else None


def _choose(model: nn.Module, config: QuantConfig) -> tuple[list[list[str]], dict[str, str]]:
    """Names of layers to quantize, those together that share a weight, and names of those that stay, with the reason."""
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    modules = model.named_modules() if config.embeddings else ()
    tables = {name: m for name, m in modules if isinstance(m, nn.Embedding) and is_plain_embedding(m)}
    candidates = [*linear, *tables]
    idle = [pattern for pattern in config.skip if not fnmatch.filter(candidates, pattern)]
    if idle:
        raise ValueError(f"skip pattern {idle[0]!r} matches no linear layer: have {', '.join(candidates[:8])}")
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    chosen: list[list[str]] = []
    kept: dict[str, str] = {}
    named = set(linear)
    for name, layer in linear.items():
        readers = [path.rpartition(".")[0] for path in owners.get(id(layer.weight), ())]
        others = [reader for reader in readers if reader != name]
        named.update(others)
        embeddings = [other for other in others if is_plain_embedding(model.get_submodule(other))]
        shared = bool(others) and (len(embeddings) < len(others) or not _can_share(layer, config))
        # in bfloat16 the embedding stays as it is: the head reads its very memory
        together = [name, *(embeddings if config.scheme != "bfloat16" else [])]
        reason = _reason_to_keep(model, together, config, shared)
        if reason is not None:
            kept[name] = reason
        elif name:
            _check_weight(name, layer)
            chosen.append(together)
    # what a head shares was chosen or kept with it
    for name in [name for name in tables if name not in named]:
        reason = _reason_to_keep(model, [name], config, shared=len(owners[id(tables[name].weight)]) > 1)
        if reason is not None:
            kept[name] = reason
        elif name:
            _check_weight(name, tables[name])
            chosen.append([name])
    if not chosen:
        raise ValueError(_nothing_to_quantize(kept))
    return chosen, kept | _other_matrices(model, named | tables.keys())


def _reason_to_keep(model: nn.Module, names: list[str], config: QuantConfig, shared: bool) -> str | None:
    """Why a layer, with those that read its weight, stays in float, a key of `_WAYS_OUT`; None where it need not.

    Raises:
        ValueError: its weight is not what it is to be: a hook sets it, or an adapter is to be taken out of it.
    """
    if any(fnmatch.fnmatchcase(names[0], pattern) for pattern in config.skip):
        return _SKIPPED
    if shared:
        return _SHARED
    packed = config.bits == 4 or config.scheme == "nf4"
    reasons = {name: reason_to_stay(model, name, packed) for name in names}
    for name, reason in reasons.items():
        if reason in (SET_BY_HOOK, MERGED) and reasons[names[0]] in (None, reason):
            raise ValueError(f"{name}: {reason}: {WAYS_OUT[reason]}, or skip it")
    return reasons[names[0]]


def _nothing_to_quantize(kept: Mapping[str, str]) -> str:
    """Why, layer by layer, and for each reason the way out."""
    if not kept:
        return "the model has no float linear layer to quantize; a bare nn.Linear takes Int8Linear.from_linear"
    few = ", ".join(f"{name or 'the model itself'} ({reason})" for name, reason in list(kept.items())[:4])
    more = f" and {len(kept) - 4} more" if len(kept) > 4 else ""
    ways = "; ".join(_WAYS_OUT[reason] for reason in dict.fromkeys(kept.values()))
    return f"the model has no float linear layer to quantize, each has to stay in float: {few}{more}; {ways}"


def _check_weight(name: str, layer: nn.Linear | nn.Embedding) -> None:
    """Refuse what no scheme can read."""
    if is_lazy(layer.weight) or layer.weight.is_meta:
        raise ValueError(f"{name}: its weight holds no numbers yet: load or initialize the model first")
    if layer.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(
            f"{name}: its weight is {layer.weight.dtype}: convert the model to float32, float16 or bfloat16, or skip it"
        )


def _other_matrices(model: nn.Module, known: set[str]) -> dict[str, str]:
    """Modules with a matrix that is no linear layer's, but for those of adapters: name -> why it stays."""
    found = {}
    for path, parameter in model.named_parameters():
        name, _, leaf = path.rpartition(".")
        if name not in known and parameter.dim() >= 2 and not leaf.startswith("lora_"):
            found[name or leaf] = f"no linear layer: {type(model.get_submodule(name)).__name__}"
    return found


def _can_share(head: nn.Linear, config: QuantConfig) -> bool:
    """Whether a head and its embedding can go on reading one memory: in int8, or where they are bfloat16 already."""
    if config.scheme == "bfloat16":
        return head.weight.dtype == torch.bfloat16
    return config.bits == 8 and config.scheme != "nf4"


def _replace(model: nn.Module, names: list[str], config: QuantConfig, seen: _Seen) -> LayerReport:
    """Put a quantized layer in the place of the first name, and embeddings that read its weight in those of the others."""
    old = model.get_submodule(names[0])
    assert isinstance(old, (nn.Linear, nn.Embedding))
    weight, size = old.weight.detach(), _bytes(old)
    try:
        layer, error = _layer(old, config, names[0], seen)
    except ValueError as problem:
        raise ValueError(f"{names[0]}: {problem}") from None
    for name in names:
        if name == names[0]:
            new: nn.Module = layer
        else:
            assert isinstance(layer, Int8Linear)
            new = Int8Embedding(layer.quantized())
        put_layer(model, name, new)
    scheme = config.scheme if config.scheme in ("nf4", "bfloat16") else f"{config.scheme} int{config.bits}"
    return LayerReport(names[0], tuple(weight.shape), scheme, size, _bytes(layer), *error)


def _layer(
    old: nn.Linear | nn.Embedding, config: QuantConfig, name: str, seen: _Seen
) -> tuple[Int8Linear | Int4Linear | BFloat16Linear | Int8Embedding, _Error]:
    """The layer that takes the place of `old`, and what its weight lost."""
    weight = old.weight.detach()
    if isinstance(old, nn.Embedding):
        table = config.quantize(weight)
        return Int8Embedding(table), _error(weight, lambda rows: table.rows(rows).dequantize(), largest_bound(table))
    if config.scheme == "bfloat16":
        largest = _largest(weight)
        if not math.isfinite(largest):
            raise ValueError("cannot round NaN or infinity: the weight holds at least one")
        halves = weight.to(torch.bfloat16)
        if not math.isfinite(_largest(halves)):
            raise ValueError(f"a weight of {largest} is past bfloat16's range: scale it down or skip it")
        if halves is weight:
            return BFloat16Linear(halves, old.bias, weight.dtype), (0.0, 0.0, math.inf)
        bound = max(largest / 256, 2.0**-134)  # half a unit of the largest number, or of a subnormal one
        return BFloat16Linear(halves, old.bias, weight.dtype), _error(weight, lambda rows: halves[rows], bound)
    smooth = seen.smooth.get(name)
    q = _trained_for(old, config) or _quantized(weight, smooth, config, seen.hessian(name))
    bound = largest_bound(q) if not config.gptq else math.inf  # GPTQ rounds to where the sum is best, not the number
    error = _error(weight, lambda rows: q.rows(rows).dequantize(), bound, smooth)
    if config.bits == 4 or config.scheme == "nf4":
        return Int4Linear(q, old.bias), error
    scale = seen.input_scale.get(name)
    return Int8Linear(q, old.bias, config.activations, config.outliers, scale, smooth), error


def _largest(weight: Tensor) -> float:
    """max|w| without a copy of the weight; NaN where there is one, 0 where there is none at all."""
    low, high = (float(end) for end in weight.aminmax()) if weight.numel() else (0.0, 0.0)
    return max(-low, high)


def _trained_for(old: nn.Linear, config: QuantConfig) -> QuantizedTensor | None:
    """The integers that a fake-quantized weight was trained with, where these are the config's.

    Quantized once more, what they stand for may get another scale: with a zero point its range is rarely 15 or 255 steps.
    """
    if config.calibrated or not is_parametrized(old, "weight"):
        return None
    original = getattr(old.get_submodule("parametrizations.weight"), "original", None)
    if not isinstance(original, Tensor) or original.shape != old.weight.shape or not original.isfinite().all():
        return None
    q = config.quantize(original.detach())
    return q if torch.equal(q.dequantize(), old.weight) else None


def _quantized(weight: Tensor, smooth: Tensor | None, config: QuantConfig, hessian: Tensor | None) -> QuantizedTensor:
    """The weight (N, K), times `smooth` (K,), quantized.

    Some rows at a time, so that there never is a second float weight: but for GPTQ, and where rows share a scale.
    """
    if smooth is None:
        return config.quantize(weight, hessian)
    by_rows = config.granularity in (None, PerChannel(0)) or isinstance(config.granularity, PerGroup)
    if hessian is not None or not by_rows or not weight.numel():
        return config.quantize(_times(weight, smooth), hessian)
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    parts = []
    for rows in row_pieces(weight):
        part = config.quantize(_times(weight[rows], smooth))
        values[rows] = part.values
        parts.append(replace(part, values=values[rows]))
    scale, zero = torch.cat([part.scale for part in parts]), torch.cat([part.zero_point for part in parts])
    return replace(parts[0], values=values, scale=scale, zero_point=zero)


def _times(weight: Tensor, smooth: Tensor) -> Tensor:
    """weight (N, K) times smooth (K,) in float32, rounded to its dtype."""
    return (weight.float() * smooth).to(weight.dtype)


def largest_bound(q: QuantizedTensor) -> float:
    """A bound on all of `error_bound(q)`, from the largest scale alone: half its widest step, and all rounding.

    With R the largest of q - z (1 for NF4), u and v the unit roundoffs of float32 and of q.dtype, h half the widest step:
    s (h + 2^-14) and, for x_hat, 1.01 (u + v) s R and the dtype's smallest subnormal number.
    """
    if not q.values.numel():
        return 0.0
    s, info = float(q.scale.max()), torch.finfo(q.dtype)
    half, reach = 0.5, float(max(q.values.max() - q.zero_point.min().int(), q.zero_point.max().int() - q.values.min()))
    if q.levels is not None:
        half, reach = float(q.levels.diff().max()) / 2, 1.0
    u, v = 2.0**-24, 0.0 if q.dtype == torch.float32 else info.eps / 2
    return s * (half + 2.0**-14) * (1 + 4 * u) + 1.01 * (u + v) * s * reach + info.smallest_normal * info.eps


_Error = tuple[float, float, float]  # largest error, its bound, SQNR


def _error(weight: Tensor, x_hat: Callable[[slice], Tensor], bound: float, smooth: Tensor | None = None) -> _Error:
    """What a weight (N, K), times `smooth`, lost, some rows at a time; differences of neighbours in float32 are exact."""
    most = signal = noise = 0.0
    for rows in row_pieces(weight) if weight.numel() else ():
        x = (weight[rows] if smooth is None else _times(weight[rows], smooth)).float()
        error = x - x_hat(rows)
        most = max(most, _largest(error))  # PyTorch takes many times as long for the norm of infinity
        signal += _squares(x)
        noise += _squares(error)
    return most, bound, _decibel(signal, noise)


def _squares(x: Tensor) -> float:
    """The sum of squares, by rows in float32 where nothing can be lost there, else in float64."""
    rows = torch.linalg.vector_norm(x, dim=-1)
    if not 1e-15 < float(rows.max()) < 1e15:
        rows = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    return float(rows.double().square().sum())


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _bytes(module: nn.Module) -> int:
    """Of all parameters and buffers; what two modules read counts once."""
    stored = {(t.data_ptr(), t.nbytes): t.nbytes for t in (*module.parameters(), *module.buffers()) if t.numel()}
    return sum(stored.values())
