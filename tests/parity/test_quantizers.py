"""The checks of `quant_lite.checks`, unchanged, on the quantizers of three libraries: which of them breaks which."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quant_lite import PerTensor, PerToken, QuantizedTensor, absmax_quantize, checks
from quant_lite.checks import Quantizer, tensors

bitsandbytes = pytest.importorskip("bitsandbytes")
torchao = pytest.importorskip("torchao")
compressed_tensors = pytest.importorskip("compressed_tensors")

# matrices of float32 numbers, which all of them take; and such without zeros, tiny and huge numbers
MATRICES = tensors((torch.float32,), min_dims=2, max_dims=2, min_side=2)
ORDINARY = MATRICES.map(lambda x: (x.sign() + (x == 0)) * x.abs().clamp(0.01, 100.0))


def of_bitsandbytes(inputs: object) -> Quantizer:
    """int8_vectorwise_quant (LLM.int8): absmax, a scale a row; its statistics are max|x|."""
    F = bitsandbytes.functional

    def quantize(x: Tensor) -> tuple[Tensor, Tensor, None]:
        values, largest, _ = F.int8_vectorwise_quant(x)
        return values, largest / 127, None

    def dequantize(values: Tensor, scale: Tensor, _: None) -> Tensor:
        return F.int8_vectorwise_dequant(values, scale * 127)

    return Quantizer(quantize, dequantize, granularity=PerToken(), inputs=inputs)


def of_torchao(mapping: str, granularity: object, inputs: object, dtype: torch.dtype = torch.float32) -> Quantizer:
    """choose_qparams_affine and quantize_affine, as its int8 configurations call them."""
    primitives = torchao.quantization.quant_primitives
    low = -127 if mapping == "SYMMETRIC_NO_CLIPPING_ERR" else -128

    def block(x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape) if granularity == PerTensor() else (1, x.shape[1])

    def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kind = getattr(primitives.MappingType, mapping)
        scale, zero = primitives.choose_qparams_affine(x, kind, block(x), torch.int8, low, 127, scale_dtype=dtype)
        return quantize_with(x, scale, zero), scale, zero

    def quantize_with(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return primitives.quantize_affine(x, block(x), scale, zero, torch.int8, low, 127)

    def dequantize(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return primitives.dequantize_affine(values, block(values), scale, zero, torch.int8, low, 127)

    return Quantizer(quantize, dequantize, quantize_with, granularity, mapping != "ASYMMETRIC", inputs=inputs)


def of_compressed_tensors(symmetric: bool, inputs: object) -> Quantizer:
    """calculate_qparams and quantize, a scale a row, as llm-compressor calls them."""
    quantization = compressed_tensors.quantization
    args = quantization.QuantizationArgs(num_bits=8, symmetric=symmetric, strategy="channel")
    calculate = quantization.utils.calculate_qparams

    def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, zero = calculate(x.amin(1, keepdim=True), x.amax(1, keepdim=True), args)
        return quantize_with(x, scale, zero), scale, zero

    def quantize_with(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return quantization.quantize(x, scale, zero, args, dtype=torch.int8)

    def dequantize(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return quantization.dequantize(values, scale, zero, args)

    return Quantizer(quantize, dequantize, quantize_with, PerToken(), symmetric, inputs=inputs)


def of_quant_lite(inputs: object) -> Quantizer:
    def quantize(x: Tensor) -> tuple[Tensor, Tensor, None]:
        q = absmax_quantize(x, PerToken())
        return q.values, q.scale, None

    def dequantize(values: Tensor, scale: Tensor, _: None) -> Tensor:
        return QuantizedTensor(values, scale, torch.zeros_like(scale, dtype=torch.int8), torch.float32).dequantize()

    return Quantizer(quantize, dequantize, granularity=PerToken(), inputs=inputs)


def broken(quantizer: Quantizer) -> set[str]:
    """Names of the checks that it fails."""
    names = [name for name in checks.__all__ if name.startswith("check_")]
    names = [name for name in names if name not in ("check_all", "check_finer_scales")]
    if not quantizer.symmetric:
        names.remove("check_sign_symmetry")
    if quantizer.quantize_with is None:
        names = [n for n in names if n not in ("check_given_scale", "check_saturation", "check_idempotent")]
    failed = set()
    for name in names:
        try:
            getattr(checks, name)(quantizer)
        except AssertionError:
            failed.add(name.removeprefix("check_"))
    return failed


CASES: dict[str, tuple[Callable[[object], Quantizer], str, str]] = {
    # what breaks on ordinary matrices, and what only on others
    "bitsandbytes": (of_bitsandbytes, "not_finite", "shapes zero dequantize error_bound scaling"),
    "torchao": (
        lambda i: of_torchao("SYMMETRIC_NO_CLIPPING_ERR", PerToken(), i),
        "not_finite",
        "dequantize error_bound",
    ),
    "torchao, -128 to 127": (
        lambda i: of_torchao("SYMMETRIC", PerToken(), i),
        "not_finite sign_symmetry",
        "dequantize error_bound",
    ),
    "torchao, bfloat16 scales": (
        lambda i: of_torchao("SYMMETRIC", PerToken(), i, torch.bfloat16),
        "not_finite sign_symmetry error_bound given_scale",
        "",
    ),
    "torchao, zero point": (
        lambda i: of_torchao("ASYMMETRIC", PerTensor(), i),
        "not_finite",
        "shapes zero dequantize error_bound levels idempotent",
    ),
    "compressed-tensors": (
        lambda i: of_compressed_tensors(True, i),
        "not_finite sign_symmetry",
        "dequantize error_bound",
    ),
    "compressed-tensors, zero point": (
        lambda i: of_compressed_tensors(False, i),
        "not_finite rounding",
        "shapes zero dequantize error_bound levels idempotent",
    ),
    "ours": (of_quant_lite, "", ""),
}


@pytest.mark.parametrize("name", CASES)
def test_which_library_breaks_which_property(name: str) -> None:
    make, ordinary, others = CASES[name]
    assert broken(make(ORDINARY)) == set(ordinary.split())
    assert broken(make(MATRICES)) == set(ordinary.split()) | set(others.split())


def test_what_breaks_is_named() -> None:
    """The faults that the documents speak of."""
    with pytest.raises(AssertionError, match=r"the scale was rounded down, and the largest numbers are clamped"):
        checks.check_error_bound(of_torchao("SYMMETRIC", PerToken(), ORDINARY, torch.bfloat16))
    with pytest.raises(AssertionError, match="use -127 to 127"):
        checks.check_sign_symmetry(of_compressed_tensors(True, ORDINARY))
    with pytest.raises(AssertionError, match=r"a scale is 0.0: where all is zero take 1"):
        checks.check_shapes(of_bitsandbytes(MATRICES))
    columns = tensors((torch.float32,), min_dims=2, max_dims=2, min_side=1)
    with pytest.raises(
        AssertionError, match=r"quantize fails for x \(\d, 1\)"
    ):  # it reduces over no axes, which is all
        checks.check_shapes(of_torchao("SYMMETRIC", PerToken(), columns))
