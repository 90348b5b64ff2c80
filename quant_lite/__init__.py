"""Absmax and zero-point int8 post-training quantization whose errors are bounded and proved."""

from quant_lite.files import QuantizedFileError, load_quantized, save_quantized
from quant_lite.kernels import kernel_path
from quant_lite.linear import Int8Linear
from quant_lite.model import LayerReport, QuantConfig, QuantReport, quantize_, sqnr
from quant_lite.quantize import (
    PerChannel,
    PerTensor,
    QuantizedTensor,
    absmax_quantize,
    error_bound,
    zeropoint_quantize,
)

__all__ = [
    "Int8Linear",
    "LayerReport",
    "PerChannel",
    "PerTensor",
    "QuantConfig",
    "QuantReport",
    "QuantizedFileError",
    "QuantizedTensor",
    "absmax_quantize",
    "error_bound",
    "kernel_path",
    "load_quantized",
    "quantize_",
    "save_quantized",
    "sqnr",
    "zeropoint_quantize",
]
