"""Quantize the layers of a whole model in place, one by one, and report what that did to each."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant_lite.linear import BFloat16Linear, Int4Linear, Int8Embedding, Int8Linear
from quant_lite.quantize import (
    Granularity,
    PerChannel,
    PerGroup,
    QuantizedTensor,
    absmax_quantize,
    nf4_quantize,
    zeropoint_quantize,
)

__all__ = ["LayerReport", "QuantConfig", "QuantReport", "quantize_", "sqnr"]


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize a model.

    Attributes:
        scheme: "absmax", "zeropoint", "nf4" (always 4 bits), or "bfloat16", which rounds and does not quantize.
        granularity: which weights share a scale. None is `PerChannel(0)`, one scale an output channel, with 8 bits,
            `PerGroup(128)` with 4, and `PerGroup(64)` for NF4.
        bits: 8 or 4, of a weight.
        activations: "float", or "int8" to quantize each row of a layer's input, too.
        outliers: with int8 activations: columns of the input with a number of at least this size stay in float.
        skip: fnmatch patterns on full layer names that stay in float, such as `"*.down_proj"`.
    """

    scheme: str = "absmax"
    granularity: Granularity | None = None
    bits: int = 8
    activations: str = "float"
    outliers: float | None = None
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        schemes = ("absmax", "zeropoint", "nf4", "bfloat16")
        if self.scheme not in schemes:
            raise ValueError(f"scheme={self.scheme!r} is not known: take one of {', '.join(schemes)}")
        if self.activations == "int8" and (self.scheme != "absmax" or self.bits != 8):
            raise ValueError(
                f"activations='int8' needs scheme='absmax' and bits=8, not {self.scheme!r} and {self.bits}: products of "
                "integers have no room for zero points or levels"
            )

    def quantize(self, weight: Tensor) -> QuantizedTensor:
        """One weight (N, K) by this scheme (not "bfloat16")."""
        if self.scheme == "nf4":
            return nf4_quantize(weight, self.granularity or PerGroup(64))
        quantizer = absmax_quantize if self.scheme == "absmax" else zeropoint_quantize
        own = PerChannel(0) if self.bits == 8 else PerGroup(128)
        return quantizer(weight, self.granularity or own, self.bits)


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
    """

    layers: tuple[LayerReport, ...]
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int

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
        return "\n".join(lines)


def sqnr(x: Tensor, x_hat: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB, 10 log10(sum x^2 / sum (x - x_hat)^2); infinite without error."""
    return _decibel(float(x.double().pow(2).sum()), float((x.double() - x_hat.double()).pow(2).sum()))


@torch.no_grad()
def quantize_(model: nn.Module, config: QuantConfig | None = None) -> QuantReport:
    """Replace every `nn.Linear` of `model`, in place and one by one, by a layer of the config's scheme.

    A head that is tied to an embedding is quantized with it: both read one int8 copy (with 4 bits they stay in float).
    A weight that others share stays in float, and the report says so. The float layer inside an adapter is quantized
    like any other; the adapter stays in float.

    Raises:
        ValueError: there is nothing to quantize, a weight is not finite (named), or a `skip` pattern matches nothing.
            The model is unchanged where that is known before the first layer is replaced; only a weight that is not
            finite is found on the way, and then the layers before it are quantized already.
    """
    config = config or QuantConfig()
    chosen, kept = _choose(model, config)
    before = _bytes(model)
    rows = []
    for names in chosen:
        rows.append(_replace(model, names, config))
    return QuantReport(tuple(rows), kept, before, _bytes(model))


def _choose(model: nn.Module, config: QuantConfig) -> tuple[list[list[str]], dict[str, str]]:
    """Names of layers to quantize, those together that share a weight, and names of those that stay, with the reason."""
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    idle = [pattern for pattern in config.skip if not fnmatch.filter(linear, pattern)]
    if idle:
        raise ValueError(f"skip pattern {idle[0]!r} matches no linear layer: have {', '.join(list(linear)[:8])}")
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    chosen, kept = [], {}
    for name, layer in linear.items():
        others = [path.rpartition(".")[0] for path in owners[id(layer.weight)] if path != f"{name}.weight"]
        embeddings = [other for other in others if type(model.get_submodule(other)) is nn.Embedding]
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.skip):
            kept[name] = "skipped by the config"
        elif others and (len(embeddings) < len(others) or config.bits == 4 or config.scheme in ("nf4", "bfloat16")):
            kept[name] = "its weight is shared with another module"
        elif name:
            chosen.append([name, *embeddings])
    if not chosen:
        raise ValueError(
            "the model has no float linear layer to quantize; a bare nn.Linear takes Int8Linear.from_linear"
        )
    return chosen, kept


def _replace(model: nn.Module, names: list[str], config: QuantConfig) -> LayerReport:
    """Put a quantized layer in the place of the first name, and embeddings that read its weight in those of the others."""
    old = model.get_submodule(names[0])
    assert isinstance(old, nn.Linear)
    weight, size = old.weight.detach(), _bytes(old)
    try:
        layer, error = _layer(old, config)
    except ValueError as problem:
        raise ValueError(f"{names[0]}: {problem}") from None
    for name in names:
        if name == names[0]:
            new: nn.Module = layer
        else:
            assert isinstance(layer, Int8Linear)
            new = Int8Embedding(layer.quantized())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new.train(model.get_submodule(name).training))
    scheme = config.scheme if config.scheme in ("nf4", "bfloat16") else f"{config.scheme} int{config.bits}"
    return LayerReport(names[0], tuple(weight.shape), scheme, size, _bytes(layer), *error)


def _layer(old: nn.Linear, config: QuantConfig) -> tuple[Int8Linear | Int4Linear | BFloat16Linear, _Error]:
    """The layer that takes the place of `old`, and what its weight lost."""
    weight = old.weight.detach()
    if config.scheme == "bfloat16":
        if not weight.isfinite().all():
            raise ValueError("cannot round NaN or infinity: the weight holds at least one")
        halves = weight.to(torch.bfloat16)
        largest = float(weight.abs().max()) if weight.numel() else 0.0
        return BFloat16Linear(halves, old.bias, weight.dtype), _error(weight, lambda rows: halves[rows], largest / 256)
    q = config.quantize(weight)
    error = _error(weight, lambda rows: _rows(q, rows).dequantize(), largest_bound(q))
    if config.bits == 4 or config.scheme == "nf4":
        return Int4Linear(q, old.bias), error
    return Int8Linear(q, old.bias, config.activations, config.outliers), error


def largest_bound(q: QuantizedTensor) -> float:
    """A bound on all of `error_bound(q)`, from the largest scale alone: half its widest step, and all rounding.

    With R the largest of q - z (1 for NF4), u and v the unit roundoffs of float32 and of q.dtype, h half the widest step:
    s (h + u (R + 1)) and, for x_hat, 1.01 (u + v) s R and half of the dtype's smallest subnormal.
    """
    if not q.values.numel():
        return 0.0
    s, info = float(q.scale.max()), torch.finfo(q.dtype)
    half, reach = 0.5, float(max(q.values.max() - q.zero_point.min().int(), q.zero_point.max().int() - q.values.min()))
    if q.levels is not None:
        half, reach = float(q.levels.diff().max()) / 2, 1.0
    u, v = 2.0**-24, 0.0 if q.dtype == torch.float32 else info.eps / 2
    return s * (half + u * (reach + 1)) * (1 + u) + 1.01 * (u + v) * s * reach + info.smallest_normal * info.eps


_Error = tuple[float, float, float]  # largest error, its bound, SQNR


def _error(weight: Tensor, x_hat: Callable[[slice], Tensor], bound: float) -> _Error:
    """What a weight (N, K) lost, some rows at a time; differences of neighbours in float32 are exact."""
    most = signal = noise = 0.0
    step = max(1, 2**20 // max(weight.shape[1], 1))
    for start in range(0, weight.shape[0] if weight.numel() else 0, step):
        rows = slice(start, start + step)
        x = weight[rows].float()
        error = x - x_hat(rows)
        most = max(most, float(torch.linalg.vector_norm(error, float("inf"))))
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


def _rows(q: QuantizedTensor, rows: slice) -> QuantizedTensor:
    per_row = q.scale.shape[0] == q.values.shape[0]
    scale, zero = (q.scale[rows], q.zero_point[rows]) if per_row else (q.scale, q.zero_point)
    return QuantizedTensor(q.values[rows], scale, zero, q.dtype, q.group, q.levels)


def _bytes(module: nn.Module) -> int:
    """Of all parameters and buffers; what two modules read counts once."""
    stored = {(t.data_ptr(), t.nbytes): t.nbytes for t in (*module.parameters(), *module.buffers()) if t.numel()}
    return sum(stored.values())
