"""Build `kernels.c` with the system's C compiler at first use, and call it; without one, PyTorch's operators serve.

The library is kept in the user's cache folder under a hash of the source, the compiler, its flags and the processor. It
is written beside its place and renamed, so that processes which start at once do no harm to each other.
`QUANT_LITE_KERNELS=torch` leaves it out; `QUANT_LITE_KERNELS=c` makes it an error where it cannot be built.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["KernelError", "bfloat16_float", "int8_float", "int8_int8", "kernel_path", "library"]

_SOURCE = Path(__file__).with_name("kernels.c")
# sums in any order, so that they can be done 16 at a time; division and comparison stay exact
_FLAGS = ("-O3", "-fPIC", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")


class KernelError(RuntimeError):
    """`QUANT_LITE_KERNELS` asks for C kernels that cannot be built, or for something that is not known."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, built and loaded at the first call; None where PyTorch's operators serve instead.

    Raises:
        KernelError: `QUANT_LITE_KERNELS` is "c" and there is no compiler or it fails, or is neither "c" nor "torch".
    """
    wanted = os.environ.get("QUANT_LITE_KERNELS", "")
    if wanted not in ("", "c", "torch"):
        raise KernelError(f"QUANT_LITE_KERNELS={wanted!r} is not known: take c or torch")
    if wanted == "torch":
        return None
    try:
        path = _build()
        found = _load(path)
        if path.parent != _cache_folder():
            shutil.rmtree(path.parent, ignore_errors=True)  # of this process alone, and loaded by now
        return found
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        detail = (getattr(error, "stderr", "") or "").strip().splitlines()
        reason = f"{error}" + (f": {detail[0]}" if detail else "")
        if wanted == "c":
            raise KernelError(f"QUANT_LITE_KERNELS=c, but the kernels cannot be built: {reason}") from None
        warnings.warn(f"quant_lite runs on PyTorch's operators, slower: no C kernels ({reason})", stacklevel=2)
        return None


def kernel_path() -> str:
    """What int8 layers run on: "c" or "torch"."""
    return "torch" if library() is None else "c"


def int8_float(weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """y = scale * (x weight^T), float32: int8 weight (N, K), scale (N,), x (T, K) of any float dtype.

    Raises:
        KernelError: there are no kernels.
    """
    x = x.float().contiguous()
    y = torch.empty(x.shape[0], weight.shape[0])
    sizes = (*weight.shape, x.shape[0])
    _required().int8_float(weight.data_ptr(), scale.data_ptr(), x.data_ptr(), y.data_ptr(), *sizes)
    return y


def int8_int8(weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """y = scale * (x_hat weight^T), float32, with x_hat the rows of x quantized by absmax to 8 bits.

    Args:
        weight: int8 (N, K), K at most 65,536.
        scale: (N,).
        x: (T, K) of any float dtype.

    Raises:
        KernelError: there are no kernels.
        MemoryError: there is no memory for the quantized rows.
        ValueError: x holds NaN or infinity.
    """
    x = x.float().contiguous()
    y = torch.empty(x.shape[0], weight.shape[0])
    places = (weight.data_ptr(), scale.data_ptr(), x.data_ptr(), y.data_ptr())
    failed = _required().int8_int8(*places, *weight.shape, x.shape[0])
    if failed == 1:
        raise MemoryError(f"no memory to quantize {x.shape[0]} rows of {x.shape[1]} numbers")
    if failed:
        raise ValueError("cannot quantize activations that hold NaN or infinity: look where they come from")
    return y


def bfloat16_float(weight: Tensor, x: Tensor) -> Tensor:
    """y = x weight^T, float32: bfloat16 weight (N, K), x (T, K) of any float dtype.

    Raises:
        KernelError: there are no kernels.
    """
    x = x.float().contiguous()
    y = torch.empty(x.shape[0], weight.shape[0])
    _required().bfloat16_float(weight.data_ptr(), x.data_ptr(), y.data_ptr(), *weight.shape, x.shape[0])
    return y


def _required() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise KernelError("there are no C kernels: see kernel_path()")
    return found


def _build() -> Path:
    """The library's file, compiled unless it is there."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler: install gcc or clang")
    flags = (*_FLAGS, *_machine_flags())
    source = _SOURCE.read_bytes()
    about = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256(repr((source, about, flags, _processor())).encode()).hexdigest()[:24]
    cached = _cache_folder() / f"kernels-{key}.so"
    if cached.is_file():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".building-", dir=cached.parent))
    except OSError:  # a home that cannot be written to
        beside = Path(tempfile.mkdtemp(prefix="quant_lite-"))
        cached = beside / cached.name
    try:
        # compiled for OpenMP but not linked to one: PyTorch's own, which is loaded already, has the functions. Two
        # OpenMP libraries would keep two sets of threads, which wait for each other in busy loops.
        commands = (
            [compiler, *flags, "-c", str(_SOURCE), "-o", str(beside / "kernels.o")],
            [compiler, "-shared", str(beside / "kernels.o"), "-o", str(beside / "kernels.so"), "-lm"],
        )
        for command in commands:
            subprocess.run(command, capture_output=True, text=True, check=True)
        os.replace(beside / "kernels.so", cached)
    finally:
        if beside != cached.parent:
            shutil.rmtree(beside, ignore_errors=True)
    return cached


def _load(path: Path) -> ctypes.CDLL:
    openmp = _openmp_of_torch()
    if openmp is not None:
        ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)  # loaded already; its functions can now be found
    found = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    for name, pointers in (("int8_float", 4), ("int8_int8", 4), ("bfloat16_float", 3)):
        getattr(found, name).argtypes = [pointer] * pointers + [size] * 3
    return found


def _openmp_of_torch() -> str | None:
    """The file of the OpenMP library that PyTorch has loaded, on Linux."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    names = (line.split()[-1] for line in maps.splitlines() if line.count("/"))
    return next((name for name in names if Path(name).name.startswith("libgomp")), None)


def _machine_flags() -> tuple[str, ...]:
    """Instructions of just this processor, and OpenMP where PyTorch's can be found."""
    threads = ("-fopenmp",) if _openmp_of_torch() is not None else ()
    if platform.machine().lower() in ("x86_64", "amd64"):
        return ("-march=native", "-mprefer-vector-width=512", *threads)
    return ("-mcpu=native", *threads)


def _processor() -> str:
    """What tells processors apart that share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _cache_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "quant_lite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quant_lite"
