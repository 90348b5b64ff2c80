"""Absmax and zero-point int8 post-training quantization whose errors are bounded and proved."""

from quant_lite.bounds import matmul_error_bound
from quant_lite.files import QuantizedFileError, load_quantized, save_quantized
from quant_lite.kernels import kernel_path
from quant_lite.linear import BFloat16Linear, Int4Linear, Int8Embedding, Int8Linear
from quant_lite.model import LayerReport, QuantConfig, QuantReport, quantize_, sqnr
from quant_lite.quantize import (
    NF4_LEVELS,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizedTensor,
    absmax_quantize,
    error_bound,
    nf4_quantize,
    quantize_with,
    zeropoint_quantize,
)

__all__ = [
    "NF4_LEVELS",
    "BFloat16Linear",
    "Int4Linear",
    "Int8Embedding",
    "Int8Linear",
    "LayerReport",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QuantConfig",
    "QuantReport",
    "QuantizedFileError",
    "QuantizedTensor",
    "absmax_quantize",
    "error_bound",
    "kernel_path",
    "load_quantized",
    "matmul_error_bound",
    "nf4_quantize",
    "quantize_",
    "quantize_with",
    "save_quantized",
    "sqnr",
    "zeropoint_quantize",
]
