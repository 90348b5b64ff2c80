"""Absmax and zero-point int8 post-training quantization whose errors are bounded and proved."""

from quant_lite.bounds import matmul_error_bound
from quant_lite.cache import Int8KVCache, quantize_cache_
from quant_lite.calibrate import MinMaxObserver, MSEObserver, PercentileObserver, range_parameters
from quant_lite.compressed import load_compressed, save_compressed
from quant_lite.files import QuantizedFileError, load_quantized, save_quantized
from quant_lite.gptq import gptq_quantize
from quant_lite.kernels import kernel_path
from quant_lite.linear import BFloat16Linear, Int4Linear, Int8Embedding, Int8Linear
from quant_lite.model import LayerReport, QuantConfig, QuantReport, quantize_, sqnr
from quant_lite.outliers import outlier_columns, smoothing_scales
from quant_lite.qat import fake_quantize, fake_quantize_with
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
    "Int8KVCache",
    "Int8Linear",
    "LayerReport",
    "MSEObserver",
    "MinMaxObserver",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "PercentileObserver",
    "QuantConfig",
    "QuantReport",
    "QuantizedFileError",
    "QuantizedTensor",
    "absmax_quantize",
    "error_bound",
    "fake_quantize",
    "fake_quantize_with",
    "gptq_quantize",
    "kernel_path",
    "load_compressed",
    "load_quantized",
    "matmul_error_bound",
    "nf4_quantize",
    "outlier_columns",
    "quantize_",
    "quantize_cache_",
    "quantize_with",
    "range_parameters",
    "save_compressed",
    "save_quantized",
    "smoothing_scales",
    "sqnr",
    "zeropoint_quantize",
]
