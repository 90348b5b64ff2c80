"""A linear layer whose weight is int8, with activations in float or quantized on the way to 8 bits, too.

Shapes: ... any leading dimensions, T rows, K in features, N out features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant_lite import kernels
from quant_lite.quantize import Granularity, PerChannel, QuantizedTensor, absmax_quantize, zeropoint_quantize

__all__ = ["PER_ROW", "Int8Linear"]


PER_ROW = PerChannel(0)  # one scale an output channel
_FEW = 4  # rows up to which a product is all about reading the weight; more are for matrix products
_MOST_BYTES = 65_536  # numbers whose products of two bytes sum up within int32


class Int8Linear(nn.Module):
    """y = s * (x (q - z)^T) + bias: int8 weights, activations in their own dtype or quantized, too.

    The scale of an output channel is a common factor of its whole sum, so it is applied once, to y. With
    `activations="int8"` each row of x is quantized by absmax (Dettmers et al. 2022, section 2: "vector-wise"), and all
    products are of integers ("W8A8"). Gradients flow to x as if x were not quantized (the straight-through estimator of
    Bengio et al. 2013, section 3), and not to the weight.

    A few rows on the CPU, a decoded token above all, go through `kernels.c` where that can be built; anything else
    through PyTorch's operators. The results agree to float32 rounding.

    Args:
        weight: int8 (N, K), with scales per output channel (N, 1) or for the whole tensor (1, 1).
        bias: (N,) or None.
        activations: "float" or "int8", which needs a weight without zero points and K <= 65,536.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None, activations: str = "float") -> None:
        super().__init__()
        if weight.values.dim() != 2 or weight.scale.shape[1] != 1:
            raise ValueError(
                f"weight {tuple(weight.values.shape)} with scale {tuple(weight.scale.shape)}: Int8Linear takes (N, K) "
                "with (N, 1) or (1, 1), from PerChannel(0) or PerTensor()"
            )
        if activations not in ("float", "int8"):
            raise ValueError(f"activations={activations!r} is not known: take float or int8")
        self.out_features, self.in_features = weight.values.shape
        self.dtype, self.activations = weight.dtype, activations
        self.register_buffer("weight", weight.values)
        self.register_buffer("scale", weight.scale)
        symmetric = not weight.zero_point.any()
        self.register_buffer("zero_point", None if symmetric else weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        if activations == "int8" and (not symmetric or self.in_features > _MOST_BYTES):
            raise ValueError(
                f"activations='int8' needs a weight without zero points and at most {_MOST_BYTES} in features, this one "
                f"has {'none' if symmetric else 'some'} and {self.in_features}: take scheme='absmax', or float"
            )

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, scheme: str = "absmax", granularity: Granularity = PER_ROW, activations: str = "float"
    ) -> Int8Linear:
        """Quantize the weight of a float layer; its bias stays as it is.

        Args:
            linear: (N, K), finite.
            scheme: "absmax" or "zeropoint".
            granularity: `PerChannel(0)` or `PerTensor()`.
            activations: "float" or "int8".
        """
        quantizers = {"absmax": absmax_quantize, "zeropoint": zeropoint_quantize}
        if scheme not in quantizers:
            raise ValueError(f"scheme={scheme!r} is not known: take one of {', '.join(quantizers)}")
        return cls(quantizers[scheme](linear.weight.detach(), granularity), linear.bias, activations)

    def quantized(self) -> QuantizedTensor:
        """The weight as `absmax_quantize` or `zeropoint_quantize` returned it."""
        zero = self.zero_point if self.zero_point is not None else torch.zeros_like(self.scale, dtype=torch.int8)
        return QuantizedTensor(self.weight, self.scale, zero, self.dtype)

    def to_linear(self) -> nn.Linear:
        """The float layer that this one stands for, weight dequantized."""
        weight = self.quantized().dequantize()
        # on the meta device, where nothing is drawn: neither time nor the caller's random numbers are spent
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear

    @property
    def path(self) -> str:
        """What a decoded token's product runs on: "c" or "torch"."""
        return kernels.kernel_path() if self.weight.device.type == "cpu" else "torch"

    def forward(self, x: Tensor) -> Tensor:  # (..., K) -> (..., N)
        rows = x.reshape(-1, self.in_features)  # (T, K)
        if rows.requires_grad and torch.is_grad_enabled():
            y = _Product.apply(rows, self)
        else:
            y = self.product(rows)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def product(self, x: Tensor) -> Tensor:
        """s * (x (q - z)^T): (T, N) in the dtype of x, from x (T, K), on the faster path for so many rows."""
        few = 0 < len(x) <= _FEW and self.weight.numel() > 0 and x.device.type == "cpu"
        if not few or torch.compiler.is_compiling() or kernels.library() is None:
            return self.product_reference(x)
        scale = self.scale.expand(self.out_features, 1).contiguous()
        product = kernels.int8_int8 if self.activations == "int8" else kernels.int8_float
        y = product(self.weight, scale, x)
        if self.zero_point is not None:
            y -= x.float().sum(-1, keepdim=True) * (self.zero_point * self.scale).T
        return y.to(x.dtype)

    def product_reference(self, x: Tensor) -> Tensor:
        """The same in PyTorch's operators, for any number of rows."""
        if self.activations == "int8":
            q = absmax_quantize(x.detach(), PER_ROW)
            sums = _integer_product(q.values, self.weight)  # (T, N), exact
            return (sums.float() * (q.scale * self.scale.T)).to(x.dtype)
        y = F.linear(x, self.weight.to(x.dtype))  # int8 fits every float dtype exactly
        if self.zero_point is not None:
            y = y - x.sum(-1, keepdim=True) * self.zero_point.to(x.dtype).T
        return (y * self.scale.T).to(x.dtype)  # scale.T is (1, N) or (1, 1)

    def gradient(self, of_y: Tensor) -> Tensor:
        """The gradient of x (T, K) from that of the product (T, N): (grad s) (q - z)."""
        scaled = of_y * self.scale.T.to(of_y.dtype)
        of_x = scaled @ self.weight.to(of_y.dtype)
        if self.zero_point is not None:
            of_x = of_x - scaled @ self.zero_point.to(of_y.dtype).expand(self.out_features, 1)
        return of_x

    def extra_repr(self) -> str:
        scheme = "absmax" if self.zero_point is None else "zeropoint"
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {scheme}, activations={self.activations}"


def _integer_product(q: Tensor, weight: Tensor) -> Tensor:
    """q (T, K) times weight (N, K) transposed, both int8: (T, N), exact."""
    if q.device.type == "cpu" and q.numel() and weight.numel():
        return torch._int_mm(q, weight.T)  # int32; elsewhere it takes only some sizes
    return q.double() @ weight.double().T


class _Product(torch.autograd.Function):
    """The product with a gradient to x."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        return layer.product(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *of_y: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.gradient(of_y[0]), None  # type: ignore[attr-defined]
