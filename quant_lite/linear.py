"""A linear layer whose weight is int8.

Shapes: ... any leading dimensions, K in features, N out features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant_lite.quantize import Granularity, PerChannel, QuantizedTensor, absmax_quantize, zeropoint_quantize

__all__ = ["PER_ROW", "Int8Linear"]


PER_ROW = PerChannel(0)  # one scale an output channel


class Int8Linear(nn.Module):
    """y = s * (x (q - z)^T) + bias: int8 weights, activations in their own dtype ("weight-only", W8A16).

    The scale of an output channel is a common factor of its whole sum, so it is applied once, to y. This is the plain
    form on torch operators: it widens q to the dtype of x on every call. Gradients flow to x, not to the weight.

    Args:
        weight: int8 (N, K), with scales per output channel (N, 1) or for the whole tensor (1, 1).
        bias: (N,) or None.
    """

    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    path = "torch operators"

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if weight.values.dim() != 2 or weight.scale.shape[1] != 1:
            raise ValueError(
                f"weight {tuple(weight.values.shape)} with scale {tuple(weight.scale.shape)}: Int8Linear takes (N, K) "
                "with (N, 1) or (1, 1), from PerChannel(0) or PerTensor()"
            )
        self.out_features, self.in_features = weight.values.shape
        self.dtype = weight.dtype
        self.register_buffer("weight", weight.values)
        self.register_buffer("scale", weight.scale)
        symmetric = not weight.zero_point.any()
        self.register_buffer("zero_point", None if symmetric else weight.zero_point)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: str = "absmax", granularity: Granularity = PER_ROW) -> Int8Linear:
        """Quantize the weight of a float layer; its bias stays as it is.

        Args:
            linear: (N, K), finite.
            scheme: "absmax" or "zeropoint".
            granularity: `PerChannel(0)` or `PerTensor()`.
        """
        quantizers = {"absmax": absmax_quantize, "zeropoint": zeropoint_quantize}
        if scheme not in quantizers:
            raise ValueError(f"scheme={scheme!r} is not known: take one of {', '.join(quantizers)}")
        return cls(quantizers[scheme](linear.weight.detach(), granularity), linear.bias)

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

    def forward(self, x: Tensor) -> Tensor:  # (..., K) -> (..., N)
        y = F.linear(x, self.weight.to(x.dtype))  # int8 fits every float dtype exactly
        if self.zero_point is not None:
            y = y - x.sum(-1, keepdim=True) * self.zero_point.to(x.dtype).T
        y = (y * self.scale.T).to(x.dtype)  # scale.T is (1, N) or (1, 1)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        scheme = "absmax" if self.zero_point is None else "zeropoint"
        return f"in_features={self.in_features}, out_features={self.out_features}, {scheme}, {self.path}"
