"""Linear layers and embeddings whose weight is stored in fewer bits: int8, int4, NF4 or bfloat16.

Shapes: ... any leading dimensions, T rows, K in features, N out features, G = ceil(K / group) groups, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant_lite import kernels
from quant_lite.outliers import outlier_columns
from quant_lite.quantize import (
    Granularity,
    PerChannel,
    PerToken,
    QuantizedTensor,
    absmax_quantize,
    full_range_rows,
    is_traced,
    zeropoint_quantize,
)

__all__ = ["PER_ROW", "BFloat16Linear", "Int4Linear", "Int8Embedding", "Int8Linear", "row_pieces"]


PER_ROW = PerChannel(0)  # one scale an output channel
_FEW = 4  # rows up to which a product is all about reading the weight; more are for matrix products
_BLOCK = 2048  # rows of a weight from whose product a gradient is summed at a time
_PIECE = 2**22  # numbers of a weight that are widened at a time for that: 8 MB in 16 bits
_MOST_BYTES = 65_536  # numbers whose products of two bytes sum up within int32


class _HasProduct(Protocol):
    """What `_multiply` and `_Product` need of a layer."""

    out_features: int
    in_features: int

    def product(self, x: Tensor) -> Tensor: ...

    def gradient(self, of_y: Tensor) -> Tensor: ...


def _multiply(layer: _HasProduct, x: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K) -> (..., N), with a gradient to x where one is asked for."""
    if not x.is_floating_point():  # results would be cast to it
        raise TypeError(f"the input is {x.dtype}: a linear layer multiplies floats, convert it")
    rows = x.reshape(x.shape[:-1].numel(), layer.in_features)  # (T, K)
    if rows.requires_grad and torch.is_grad_enabled():
        y = _Product.apply(rows, layer)
    else:
        y = _product(layer, rows)
    y = y.view(*x.shape[:-1], layer.out_features)
    return y if bias is None else y + bias.to(x.dtype)


def _product(layer: _HasProduct, x: Tensor) -> Tensor:
    """The layer's, which widens no weight where there is no row: a trainer asks a head so for the size of its output."""
    return layer.product(x) if x.shape[0] else x.new_empty(0, layer.out_features)


class _Product(torch.autograd.Function):
    """The product with a gradient to x, none to the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _HasProduct) -> Tensor:
        ctx.layer = layer
        return _product(layer, x)

    @staticmethod
    def backward(ctx: Any, *of_y: Tensor) -> tuple[Tensor, None]:
        (G,) = of_y
        return ctx.layer.gradient(G) if len(G) else G.new_empty(0, ctx.layer.in_features), None


class _Stored(nn.Module):
    """A layer whose buffers keep their dtype through `model.to(dtype)`, `half()` and the like, and follow it to a device.

    A scale that is rounded after the weight was divided by it breaks the bound; and kernels.c reads just one dtype.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Stored:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(now.device)
        return self


class Int8Linear(_Stored):
    """y = x w_hat^T + bias, w_hat = scale (q - z): int8 weights, activations in their own dtype or quantized, too.

    With `activations="int8"` each row of x is quantized by absmax (Dettmers et al. 2022, section 2: "vector-wise"), and
    all products are of integers ("W8A8"). `outliers` keeps the columns of x that hold a number so large apart: their
    products are of floats, and the rows' scales do not suffer from them (section 3, "LLM.int8()"). `input_scale` is one
    scale for all rows, from calibration, in place of one a row as it comes. `smooth` divides x by column before all
    that; the weight was multiplied by it (SmoothQuant, Xiao et al. 2023, equation 3). Gradients flow to x as if x were
    not quantized (the straight-through estimator of Bengio et al. 2013, section 3), and not to the weight.

    "int8_full" is "int8" with all 256 integers: a row's scale is max|x| / 127.5, and q from -128 to 127. That is no finer
    where the largest number is (127.5 steps become 127), but it is what readers of the compressed-tensors layout do.

    A few rows on the CPU, a decoded token above all, go through `kernels.c` where that can be built; anything else
    through PyTorch's operators. The results agree to float32 rounding.

    Args:
        weight: int8 (N, K), with scales per output channel (N, 1), for the whole tensor (1, 1), or by groups (N, G).
        bias: (N,) or None; its memory is read, not copied, so that what shared it with a float layer's still does.
        activations: "float"; or "int8" or "int8_full", which need a weight without zero points and K <= 65,536.
        outliers: with int8 activations, how large a number must be for its column to be kept apart; None for never.
        input_scale: with int8 activations, positive.
        smooth: (K,), positive, or None.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    smooth: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None = None,
        activations: str = "float",
        outliers: float | None = None,
        input_scale: float | None = None,
        smooth: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_shapes("Int8Linear", weight)
        if activations not in ("float", "int8", "int8_full"):
            raise ValueError(f"activations={activations!r} is not known: take float, int8 or int8_full")
        if activations == "float" and outliers is not None or activations != "int8" and input_scale is not None:
            raise ValueError(f"outliers= and input_scale= are of int8 activations: these are {activations}")
        for argument, number in (("outliers", outliers), ("input_scale", input_scale)):
            is_number = isinstance(number, (int, float))
            if number is not None and not (
                is_number and 0 < torch.tensor(number, dtype=torch.float32, device="cpu") < math.inf
            ):
                raise ValueError(f"{argument}={number!r} must be a positive finite number in float32, as it is read")
        self.out_features, self.in_features = weight.values.shape
        self.dtype, self.group, self.measured = weight.dtype, weight.group, weight.measured
        self.activations, self.lowest = activations, -128 if activations == "int8_full" else -127
        self.outliers, self.input_scale = outliers, input_scale
        self.register_buffer("weight", weight.values.contiguous())
        self.register_buffer("scale", weight.scale.contiguous())
        symmetric = not weight.zero_point.any()
        self.register_buffer("zero_point", None if symmetric else weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_buffer("smooth", smooth)
        if activations != "float" and (not symmetric or self.in_features > _MOST_BYTES):
            raise ValueError(
                f"activations={activations!r} needs a weight without zero points and at most {_MOST_BYTES} in features, this one "
                f"has {'none' if symmetric else 'some'} and {self.in_features}: take scheme='absmax', or float"
            )

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, scheme: str = "absmax", granularity: Granularity = PER_ROW, activations: str = "float"
    ) -> Int8Linear:
        """Quantize the weight of a float layer; its bias is copied as it is.

        Args:
            linear: (N, K), finite.
            scheme: "absmax" or "zeropoint".
            granularity: `PerChannel(0)`, `PerTensor()` or `PerGroup(size)`.
            activations: "float", "int8" or "int8_full".
        """
        quantizers = {"absmax": absmax_quantize, "zeropoint": zeropoint_quantize}
        if scheme not in quantizers:
            raise ValueError(f"scheme={scheme!r} is not known: take one of {', '.join(quantizers)}")
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(quantizers[scheme](linear.weight.detach(), granularity), bias, activations)

    def quantized(self) -> QuantizedTensor:
        """The weight as its quantizer returned it (times `smooth`, where there is one)."""
        zero = self.zero_point if self.zero_point is not None else _no_zero_point(self.scale)
        return QuantizedTensor(self.weight, self.scale, zero, self.dtype, self.group, measured=self.measured)

    def to_linear(self) -> nn.Linear:
        """The float layer that this one stands for, weight dequantized."""
        weight = self.quantized().dequantize()
        return _linear(weight if self.smooth is None else (weight / self.smooth).to(weight.dtype), self.bias)

    @property
    def path(self) -> str:
        """What a decoded token's product runs on: "c" or "torch"."""
        return kernels.kernel_path() if self.weight.device.type == "cpu" else "torch"

    def forward(self, input: Tensor) -> Tensor:  # (..., K) -> (..., N)
        if input.dtype == torch.float16:  # sums of x q may be past its range, and gradients times a scale below it
            return self.forward(input.float()).to(input.dtype)
        return _multiply(self, input, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """x w_hat^T: (T, N) in the dtype of x, from x (T, K), on the faster path for so many rows."""
        integers = self.activations != "float" and self.group is None  # for many rows, too
        weight, smooth = self.weight, self.smooth  # once: to read a buffer of a module takes half a microsecond
        if not _for_kernels(weight, x, few=not integers):
            return self.product_reference(x)
        if smooth is not None:
            x = (x / smooth).to(x.dtype)
        scale = self._of_rows(self.scale)
        if self.activations != "float":
            x, apart = self._part_outliers(x)
            if x.shape[0] <= _FEW:
                y = kernels.int8_int8(weight, scale, x, self.group, self.input_scale, self.lowest)
            else:
                y = self._many(x, scale)
            return y if apart is None else y + apart
        by_float = kernels.int8_fixed if self.in_features <= _MOST_BYTES else kernels.int8_float
        zero = self.zero_point
        return by_float(weight, scale, x, self.group, None if zero is None else self._of_rows(zero))

    def _of_rows(self, of_groups: Tensor) -> Tensor:
        """Scale or zero point as (N, G): where all rows have one, it is repeated."""
        if of_groups.shape[0] == self.out_features:
            return of_groups
        return of_groups.expand(self.out_features, -1).contiguous()

    def product_reference(self, x: Tensor) -> Tensor:
        """The same in PyTorch's operators, for any number of rows."""
        if self.smooth is not None:
            x = (x / self.smooth).to(x.dtype)
        if self.activations == "float":
            y = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
            for rows in row_pieces(self.weight):
                units, factor = self._units(rows, x.dtype)
                y[:, rows] = F.linear(x, units) * factor
            return y
        x, apart = self._part_outliers(x.detach())
        q = self._quantize_input(x)
        size = self.group or max(self.in_features, 1)
        y = torch.zeros(len(x), self.out_features, dtype=torch.float32, device=x.device)
        for g, start in enumerate(range(0, self.in_features, size)):
            columns = slice(start, start + size)
            sums = _integer_product(q.values[:, columns], self.weight[:, columns])  # (T, N), exact
            y = torch.addcmul(y, sums.float(), self.scale[:, g])
        y = (y * q.scale).to(x.dtype)
        return y if apart is None else y + apart

    def _many(self, x: Tensor, scale: Tensor) -> Tensor:
        """x w_hat^T for many rows (T, K), in integers: the sums of some rows of the weight at a time stay in the cache."""
        q, input_scale = kernels.quantize_rows(x, self.input_scale, self.lowest)
        dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
        y = torch.empty(len(x), self.out_features, dtype=dtype, device=x.device)
        step = max(16, 2**19 // len(x))
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            sums = _integer_product(self.weight[rows], q)  # (n, T)
            kernels.scale_sums(sums, scale[rows], input_scale, y, start)
        return y.to(x.dtype)

    def gradient(self, of_y: Tensor) -> Tensor:
        """The gradient of x (T, K) from that of the product (T, N): grad w_hat, a piece of w_hat at a time."""
        alone = self.out_features <= _BLOCK  # one block of rows: there is nothing to add up
        of_x = of_y.new_zeros(len(of_y), self.in_features, dtype=of_y.dtype if alone else torch.float32)
        group = self.group or 1
        for rows in _slices(self.out_features, _BLOCK):
            scaled = of_y[:, rows]
            if self.group is None:  # the scale goes to the gradient; q - z is exact in every dtype
                scale = self.scale if len(self.scale) == 1 else self.scale[rows]
                scaled = torch.mul(scaled, scale.T, out=torch.empty_like(scaled))
            for columns in _slices(self.in_features, max(1, _PIECE // _BLOCK // group) * group):
                of_x[:, columns] += scaled @ self._columns(rows, columns, of_y.dtype)
        return (of_x if self.smooth is None else of_x / self.smooth).to(of_y.dtype)

    def _columns(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """A block of w_hat; without the scale where that is a whole row's, with it where it is a group's."""
        part = replace(self.quantized().rows(rows), dtype=dtype)
        values = part.values[:, columns]
        if self.group is None:
            return values.to(dtype) if self.zero_point is None else values.to(dtype) - part.zero_point.to(dtype)
        groups = slice(columns.start // self.group, -(-columns.stop // self.group))
        return replace(
            part, values=values, scale=part.scale[:, groups], zero_point=part.zero_point[:, groups]
        ).dequantize()

    def _units(self, rows: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
        """Some rows of the weight in a float dtype, and what their products are to be multiplied by.

        q - z is exact in every dtype. So a row's own scale waits for the sum; scales of groups cannot.
        """
        part = replace(self.quantized().rows(rows), dtype=dtype)
        if self.group is not None:
            return part.dequantize(), 1.0
        units = part.values.to(dtype)
        return units if self.zero_point is None else units - part.zero_point.to(dtype), part.scale.T

    def _part_outliers(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x with its outlying columns set to zero, and what these add to the product, in float (None: there are none)."""
        if self.outliers is None:
            return x, None
        if is_traced():  # all columns take part, zero where they are not outlying: which they are is not yet known
            outlying = (x.abs() >= self.outliers).any(0)
            weight = replace(self.quantized(), dtype=torch.float32).dequantize()
            return x.masked_fill(outlying, 0.0), ((x.float() * outlying) @ weight.T).to(x.dtype)
        columns = outlier_columns(x, self.outliers)  # (K',)
        if not len(columns):
            return x, None
        wide = x.float()[:, columns]  # (T, K')
        weight = self.weight[:, columns].float() * _spread_columns(self.scale, self.group, columns)
        return x.index_fill(1, columns, 0.0), (wide @ weight.T).to(x.dtype)

    def _quantize_input(self, x: Tensor) -> QuantizedTensor:
        """Rows of x as int8: each with the scale of its own, or all with the calibrated one, past which they saturate."""
        if self.input_scale is None:
            return full_range_rows(x) if self.lowest == -128 else absmax_quantize(x, PerToken())
        if not is_traced() and not x.isfinite().all():
            raise ValueError("cannot quantize activations that hold NaN or infinity: look where they come from")
        scale = torch.tensor(self.input_scale, dtype=torch.float32, device=x.device)
        values = (x.float() / scale).round_().clamp_(-127, 127).to(torch.int8)
        return QuantizedTensor(values, scale, torch.zeros_like(scale, dtype=torch.int8), x.dtype)

    def extra_repr(self) -> str:
        scheme = "absmax" if self.zero_point is None else "zeropoint"
        return f"{_sizes(self)}, {scheme}, activations={self.activations}"


class Int4Linear(_Stored):
    """y = x w_hat^T + bias: 4-bit weights, two in a byte, dequantized some rows at a time for each product.

    Integers (`absmax_quantize(..., bits=4)` or zero-point) or NF4 (Dettmers et al. 2023, equation 4).

    Args:
        weight: (N, K), with scales per output channel, for the whole tensor, or by groups.
        bias: (N,) or None, read where it lies.
        packed: uint8 (N, ceil(K / 2)), what a file has of the values: these are not looked at then, only at their shape.
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    levels: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None, packed: Tensor | None = None) -> None:
        super().__init__()
        _check_shapes("Int4Linear", weight)
        if packed is None:
            packed = pack_nibbles(weight.values, -8 if weight.levels is None else 0)
        self.out_features, self.in_features = weight.values.shape
        self.dtype, self.group, self.measured = weight.dtype, weight.group, weight.measured
        self.register_buffer("packed", packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point if weight.zero_point.any() else None)
        self.register_buffer("levels", weight.levels)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def quantized(self) -> QuantizedTensor:
        """The weight as its quantizer returned it."""
        return self._rows(slice(None), self.dtype)

    def to_linear(self) -> nn.Linear:
        """The float layer that this one stands for, weight dequantized."""
        return _linear(self.quantized().dequantize(), self.bias)

    def forward(self, input: Tensor) -> Tensor:  # (..., K) -> (..., N)
        return _multiply(self, input, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """x w_hat^T: (T, N) in the dtype of x, from x (T, K)."""
        y = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
        for rows in row_pieces(self.packed):
            y[:, rows] = F.linear(x, self._rows(rows, x.dtype).dequantize())
        return y

    def gradient(self, of_y: Tensor) -> Tensor:
        """The gradient of x (T, K) from that of the product (T, N): grad w_hat."""
        of_x = torch.zeros(len(of_y), self.in_features, dtype=torch.float32, device=of_y.device)
        for rows in row_pieces(self.packed):
            of_x += of_y[:, rows] @ self._rows(rows, of_y.dtype).dequantize()
        return of_x.to(of_y.dtype)

    def _rows(self, rows: slice, dtype: torch.dtype) -> QuantizedTensor:
        values = unpack_nibbles(self.packed[rows], self.in_features)
        values = values - 8 if self.levels is None else values
        per_row = self.scale.shape[0] == self.out_features
        scale = self.scale[rows] if per_row else self.scale
        if self.zero_point is None:
            zero = _no_zero_point(scale)
        else:
            zero = self.zero_point[rows] if per_row else self.zero_point
        return QuantizedTensor(values, scale, zero, dtype, self.group, self.levels, self.measured)

    def extra_repr(self) -> str:
        scheme = "nf4" if self.levels is not None else "absmax" if self.zero_point is None else "zeropoint"
        return f"{_sizes(self)}, {scheme}, group={self.group}"


class BFloat16Linear(_Stored):
    """y = x W^T + bias with W in bfloat16: half of float32's bytes, and a few rows by `kernels.c`.

    Args:
        weight: bfloat16 (N, K).
        bias: (N,) or None, read where it lies.
        dtype: of the layer that this one stands for.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        if weight.dtype != torch.bfloat16 or weight.dim() != 2:
            raise ValueError(f"BFloat16Linear takes a bfloat16 weight (N, K), not {weight.dtype} {tuple(weight.shape)}")
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def to_linear(self) -> nn.Linear:
        """The float layer that this one stands for."""
        return _linear(self.weight.to(self.dtype), self.bias)

    def forward(self, input: Tensor) -> Tensor:  # (..., K) -> (..., N)
        return _multiply(self, input, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """x W^T: (T, N) in the dtype of x, from x (T, K), on the faster path for so many rows."""
        return kernels.bfloat16_float(self.weight, x) if _for_kernels(self.weight, x) else self.product_reference(x)

    def product_reference(self, x: Tensor) -> Tensor:
        """The same in PyTorch's operators, for any number of rows."""
        return F.linear(x, self.weight.to(x.dtype))

    def gradient(self, of_y: Tensor) -> Tensor:
        """The gradient of x (T, K) from that of the product (T, N): grad W."""
        return of_y @ self.weight.to(of_y.dtype)

    def extra_repr(self) -> str:
        return _sizes(self)


class Int8Embedding(_Stored):
    """A table of int8 rows, dequantized as they are looked up; a tied head reads the same memory.

    Args:
        weight: int8 (V, D), with scales per row, for the whole table, or by groups.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, weight: QuantizedTensor) -> None:
        super().__init__()
        _check_shapes("Int8Embedding", weight)
        self.num_embeddings, self.embedding_dim = weight.values.shape
        self.dtype, self.group, self.measured = weight.dtype, weight.group, weight.measured
        self.register_buffer("weight", weight.values.contiguous())
        self.register_buffer("scale", weight.scale.contiguous())
        self.register_buffer("zero_point", weight.zero_point if weight.zero_point.any() else None)

    def forward(self, input: Tensor) -> Tensor:  # (...) -> (..., D)
        flat = input.reshape(-1)
        return self.quantized().rows(flat).dequantize().view(*input.shape, self.embedding_dim)

    def quantized(self) -> QuantizedTensor:
        """The table as its quantizer returned it."""
        zero = self.zero_point if self.zero_point is not None else _no_zero_point(self.scale)
        return QuantizedTensor(self.weight, self.scale, zero, self.dtype, self.group, measured=self.measured)

    def to_embedding(self) -> nn.Embedding:
        """The float table that this one stands for."""
        return nn.Embedding.from_pretrained(self.quantized().dequantize(), freeze=False)

    def extra_repr(self) -> str:
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}"


def pack_nibbles(values: Tensor, lowest: int = 0) -> Tensor:
    """(N, K) of lowest..lowest + 15 to uint8 (N, ceil(K / 2)): the even columns in the lower halves of the bytes.

    Raises:
        ValueError: a value is out of that range.
    """
    if values.numel() and not lowest <= int(values.min()) <= int(values.max()) <= lowest + 15:
        raise ValueError("the values are not of 4 bits: quantize with bits=4 or nf4_quantize")
    packed = torch.zeros(len(values), -(-values.shape[1] // 2), dtype=torch.uint8, device=values.device)
    for rows in row_pieces(values):
        nibbles = (values[rows] - lowest).to(torch.uint8)
        packed[rows] = nibbles[:, 0::2]
        packed[rows, : values.shape[1] // 2] |= nibbles[:, 1::2] << 4
    return packed


def unpack_nibbles(packed: Tensor, columns: int) -> Tensor:
    """What `pack_nibbles` packed, as int8 (N, columns)."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)[:, :columns].to(torch.int8)


def _no_zero_point(scale: Tensor) -> Tensor:
    """Zeros of the shape of a scale, one byte of them in memory: this is asked for at each token."""
    return torch.zeros((), dtype=torch.int8, device=scale.device).expand(scale.shape)


def _check_shapes(layer: str, weight: QuantizedTensor) -> None:
    (N, K), scale = weight.values.shape, tuple(weight.scale.shape)
    groups = -(-K // weight.group) if weight.group is not None else 1
    if weight.values.dim() != 2 or scale not in ((N, groups), (1, groups)):
        raise ValueError(
            f"weight {tuple(weight.values.shape)} with scale {scale}: {layer} takes (N, K) with (N, 1), (1, 1) or (N, G), "
            "from PerChannel(0), PerTensor() or PerGroup(size)"
        )


def _for_kernels(weight: Tensor, x: Tensor, few: bool = True) -> bool:
    """Whether kernels.c multiplies these: some rows, and only a few where so asked, on the CPU, if it could be built.

    What is recorded takes PyTorch's operators: of C there would be nothing to see but what it wrote this time.
    """
    T = x.shape[0]
    fits = 0 < T and not (few and T > _FEW) and x.is_cpu and weight.numel() > 0 and weight.is_contiguous()
    plain = fits and type(x) is Tensor and not torch.compiler.is_compiling() and not is_traced()
    return plain and kernels.library() is not None


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a (n, K) times b (m, K) transposed, both int8: (n, m), exact, int32 on the CPU."""
    if a.shape[1] == 1:  # torch._int_mm (2.13) gives anything there
        return a.int() * b.int().T
    if a.device.type == "cpu" and a.numel() and b.numel():
        return torch._int_mm(a, b.T)  # elsewhere it takes only some sizes
    return a.double() @ b.double().T


def _spread_columns(scale: Tensor, group: int | None, columns: Tensor) -> Tensor:
    """The scale (N, 1) or (N, G) at some columns, broadcastable to (N, K')."""
    return scale if group is None else scale[:, columns // group]


def row_pieces(weight: Tensor) -> list[slice]:
    """Slices of the rows of a stored weight, about 2^20 numbers each: widened, they stay in the cache."""
    return _slices(len(weight), max(1, 2**20 // max(weight.shape[1], 1)))


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    # on the meta device, where nothing is drawn: neither time nor the caller's random numbers are spent
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return linear


def _sizes(layer: _HasProduct) -> str:
    return f"in_features={layer.in_features}, out_features={layer.out_features}"
