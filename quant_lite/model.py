"""Quantize the linear layers of a whole model in place, and report what that did to each."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant_lite.linear import PER_ROW, Int8Linear
from quant_lite.quantize import Granularity, error_bound

__all__ = ["LayerReport", "QuantConfig", "QuantReport", "quantize_", "sqnr"]


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize a model.

    Attributes:
        scheme: "absmax" or "zeropoint".
        granularity: `PerChannel(0)`, one scale an output channel, or `PerTensor()`.
        activations: "float", or "int8" to quantize each row of a layer's input, too.
        skip: fnmatch patterns on full layer names that stay in float, such as `"*.down_proj"`.
    """

    scheme: str = "absmax"
    granularity: Granularity = PER_ROW
    activations: str = "float"
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerReport:
    """One layer: sizes in bytes, the largest error of a weight and its bound, and the SQNR in dB."""

    name: str
    shape: tuple[int, ...]
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
        kept: names of linear layers that stay in float, each with the reason.
        bytes_before, bytes_after: of all parameters and buffers of the model, each stored once.
    """

    layers: tuple[LayerReport, ...]
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        rows = [("layer", "shape", "bytes", "int8 bytes", "max error", "bound", "SQNR dB")]
        for r in self.layers:
            shape = "x".join(map(str, r.shape))
            sizes = (f"{r.bytes_before:,}", f"{r.bytes_after:,}")
            rows.append((r.name, shape, *sizes, f"{r.max_error:.2e}", f"{r.bound:.2e}", f"{r.sqnr:.1f}"))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines += [f"{name}: stays in float ({reason})" for name, reason in self.kept.items()]
        saved = 100 * (1 - self.bytes_after / self.bytes_before) if self.bytes_before else 0.0
        lines.append(f"model: {self.bytes_before:,} -> {self.bytes_after:,} bytes ({saved:.1f}% smaller)")
        return "\n".join(lines)


def sqnr(x: Tensor, x_hat: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB, 10 log10(sum x^2 / sum (x - x_hat)^2); infinite without error."""
    signal = float(x.double().pow(2).sum())
    noise = float((x.double() - x_hat.double()).pow(2).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@torch.no_grad()
def quantize_(model: nn.Module, config: QuantConfig | None = None) -> QuantReport:
    """Replace every `nn.Linear` of `model`, in place and one by one, by an `Int8Linear`.

    A weight that another module shares (a head tied to the embedding) stays in float, and the report says so. The
    float layer inside an adapter is quantized like any other; the adapter stays in float.

    Raises:
        ValueError: there is nothing to quantize, a weight is not finite (named), or a `skip` pattern matches nothing.
            The model is unchanged then.
    """
    config = config or QuantConfig()
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    kept: dict[str, str] = {}
    chosen: dict[str, nn.Linear] = {}
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    idle = [pattern for pattern in config.skip if not fnmatch.filter(linear, pattern)]
    if idle:
        raise ValueError(f"skip pattern {idle[0]!r} matches no linear layer: have {', '.join(list(linear)[:8])}")
    for name, layer in linear.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in config.skip):
            kept[name] = "skipped by the config"
        elif owners[id(layer.weight)] > 1:
            kept[name] = "its weight is shared with another module"
        elif not layer.weight.isfinite().all():
            raise ValueError(f"the weight of {name} holds NaN or infinity: it cannot be quantized")
        elif name:
            chosen[name] = layer
    if not chosen:
        raise ValueError(
            "the model has no float linear layer to quantize; a bare nn.Linear takes Int8Linear.from_linear"
        )

    before = _model_bytes(model)
    rows = []
    for name, layer in chosen.items():
        int8 = Int8Linear.from_linear(layer, config.scheme, config.granularity, config.activations)
        rows.append(_report(name, layer, int8))
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, int8.train(layer.training))
    return QuantReport(tuple(rows), kept, before, _model_bytes(model))


def _report(name: str, layer: nn.Linear, int8: Int8Linear) -> LayerReport:
    q = int8.quantized()
    weight, x_hat = layer.weight.detach(), q.dequantize()
    error = (weight.double() - x_hat.double()).abs()
    return LayerReport(
        name=name,
        shape=tuple(weight.shape),
        bytes_before=_module_bytes(layer),
        bytes_after=_module_bytes(int8),
        max_error=float(error.max()) if error.numel() else 0.0,
        bound=float(error_bound(q).max()) if error.numel() else 0.0,
        sqnr=sqnr(weight, x_hat),
    )


def _module_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _model_bytes(model: nn.Module) -> int:
    """`parameters()` names a shared tensor once, so a tied head counts once."""
    return _module_bytes(model)
