"""Build `kernels.c` with the system's C compiler at first use, and call it; without one, PyTorch's operators serve.

The library is kept in the user's cache folder under hashes of the source, flags and processor, of the compiler, and of its
own content. It is written beside its place and renamed, so that processes which start at once do no harm to each other; a
damaged one is built anew. Where no compiler works, a library that another one built of the same source serves.
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
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "KernelError",
    "bfloat16_float",
    "int8_fixed",
    "int8_float",
    "int8_int8",
    "kernel_path",
    "library",
    "quantize_rows",
    "scale_sums",
]

_SOURCE = Path(__file__).with_name("kernels.c")
# arithmetic is done as it is written: a compiler may not reorder sums of floats on its own
_FLAGS = ("-O3", "-fPIC", "-fno-trapping-math", "-fno-math-errno")


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


def int8_float(
    weight: Tensor, scale: Tensor, x: Tensor, group: int | None = None, zero_point: Tensor | None = None
) -> Tensor:
    """y = x w_hat^T with w_hat = scale * (weight - zero_point), in the dtype of x, summed in float32.

    Args:
        weight: int8 (N, K).
        scale: float32 (N, G), one for each `group` neighbours of a row; (N, 1) without `group`.
        x: (T, K) of any float dtype.
        zero_point: int8, of the shape of scale; None for zeros.

    Raises:
        KernelError: there are no kernels.
        MemoryError: there is no memory for a float32 copy of x.
    """
    return _call(_required().int8_float, weight, (scale, zero_point), x, (_size(group, weight),))


def int8_fixed(
    weight: Tensor, scale: Tensor, x: Tensor, group: int | None = None, zero_point: Tensor | None = None
) -> Tensor:
    """What `int8_float` gives, faster on most processors, with x cut to 24 bits below the largest number of its row.

    Args, Raises: as `int8_float`, K at most 65,536.
    """
    return _call(_required().int8_fixed, weight, (scale, zero_point), x, (_size(group, weight),))


def int8_int8(
    weight: Tensor,
    scale: Tensor,
    x: Tensor,
    group: int | None = None,
    input_scale: float | None = None,
    lowest: int = -127,
) -> Tensor:
    """y = x_hat w_hat^T, in the dtype of x, with x_hat the rows of x quantized by absmax to 8 bits.

    Args:
        weight: int8 (N, K), K at most 65,536.
        scale: float32 (N, G), one for each `group` neighbours of a row; (N, 1) without `group`.
        x: (T, K) of any float dtype.
        input_scale: one scale for all rows of x, past whose range they saturate; None takes max / 127 of each.
        lowest: -127, or -128: the rows' scales are max / 127.5 then, and the least number of a row is half a step off.

    Raises:
        KernelError: there are no kernels.
        MemoryError: there is no memory for the quantized rows.
        ValueError: x holds NaN or infinity.
    """
    fixed = ctypes.c_float(input_scale or 0.0)
    return _call(_required().int8_int8, weight, (scale,), x, (_size(group, weight),), fixed, ctypes.c_int(lowest))


def bfloat16_float(weight: Tensor, x: Tensor) -> Tensor:
    """y = x weight^T, in the dtype of x, summed in float32: bfloat16 weight (N, K), x (T, K) of any float dtype.

    Raises:
        KernelError: there are no kernels.
    """
    return _call(_required().bfloat16_float, weight, (), x)


def quantize_rows(x: Tensor, input_scale: float | None = None, lowest: int = -127) -> tuple[Tensor, Tensor]:
    """Rows of x (T, K) by absmax to int8, or with one scale for all: the values (T, K) and float32 scales (T, 1).

    Args: as of `int8_int8`.

    Raises:
        KernelError: there are no kernels.
        MemoryError: there is no memory for a float32 copy of a row.
        ValueError: x holds NaN or infinity.
    """
    x = (x if x.dtype in (torch.float32, torch.bfloat16) else x.float()).contiguous()
    # whatever dtype and device are the default: C writes bytes and float32 there
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    half, fixed = x.dtype == torch.bfloat16, ctypes.c_float(input_scale or 0.0)
    places = (x.data_ptr(), q.data_ptr(), scale.data_ptr())
    _check(_required().quantize_rows(*places, *x.shape, half, fixed, lowest), *x.shape)
    return q, scale


def scale_sums(sums: Tensor, scale: Tensor, input_scale: Tensor, y: Tensor, column: int) -> None:
    """Columns of y (T, N), float32 or bfloat16, from `column` on: sums^T times the scales of their column and row.

    Args:
        sums: int32 (n, T).
        scale: float32 (n, 1).
        input_scale: float32 (T, 1).
        y: written to.

    Raises:
        KernelError: there are no kernels.
    """
    places = (sums.data_ptr(), scale.data_ptr(), input_scale.data_ptr(), y[:, column:].data_ptr())
    _required().scale_sums(*places, *sums.shape, y.shape[1], y.dtype == torch.bfloat16)


def _call(
    product: Callable[..., int],
    weight: Tensor,
    of_groups: tuple[Tensor | None, ...],
    x: Tensor,
    sizes: tuple[int, ...] = (),
    *more: ctypes.c_float | ctypes.c_int,
) -> Tensor:
    """y (T, N) by one of the products of kernels.c, which read and write float32 and bfloat16.

    Args:
        of_groups: what the weight (N, K) comes with, in the order of the product's arguments.
    """
    if x.dtype not in (torch.float32, torch.bfloat16):
        return _call(product, weight, of_groups, x.float(), sizes, *more).to(x.dtype)
    x = x.contiguous()
    (N, K), T = weight.shape, x.shape[0]
    y = torch.empty(T, N, dtype=x.dtype, device=x.device)
    places = [None if tensor is None else tensor.data_ptr() for tensor in (weight, *of_groups, x, y)]
    _check(product(*places, N, K, T, *sizes, x.dtype == torch.bfloat16, *more), T, K)
    return y


def _size(group: int | None, weight: Tensor) -> int:
    """How many neighbours share a scale: without groups, all of a row."""
    return group or max(weight.shape[1], 1)


def _check(failed: int, T: int, K: int) -> None:
    if failed == 1:
        raise MemoryError(f"no memory to prepare {T} rows of {K} numbers")
    if failed:
        raise ValueError("cannot quantize activations that hold NaN or infinity: look where they come from")


def _required() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise KernelError("there are no C kernels: see kernel_path()")
    return found


def _build() -> Path:
    """The library's file, compiled unless it is there; where no compiler works, what any compiler left there."""
    flags = (*_FLAGS, *_machine_flags())
    name = f"kernels-{_digest(repr((_SOURCE.read_bytes(), flags, _processor())).encode())}"
    try:
        compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise FileNotFoundError("no C compiler: install gcc or clang")
        about = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
        by_this = f"{name}-{_digest(about)}"
        return _cached(by_this) or _compile(compiler, flags, by_this)
    except (OSError, subprocess.SubprocessError):
        cached = _cached(name)
        if cached is None:
            raise
        return cached


def _cached(name: str) -> Path | None:
    """A whole library of that name in the cache: to load half a file can end the process."""
    folder = _cache_folder()
    for path in sorted(folder.glob(f"{name}-*.so")) if folder else ():
        try:
            if path.stem.endswith(f"-{_digest(path.read_bytes())}"):
                return path
        except OSError:  # a folder stands there, or what cannot be read
            continue
    return None


def _compile(compiler: str, flags: tuple[str, ...], name: str) -> Path:
    """The new library in the cache; or in a folder of its own, for this process, where the cache cannot take it."""
    folder = _cache_folder()
    try:
        if folder is None:
            raise FileNotFoundError("no home folder")
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    except OSError:  # a home that is not there or cannot be written to
        beside = folder = Path(tempfile.mkdtemp(prefix="quant_lite-"))
    built = beside / "kernels.so"
    # compiled for OpenMP but not linked to one: PyTorch's own, which is loaded already, has the functions. Two
    # OpenMP libraries would keep two sets of threads, which wait for each other in busy loops.
    commands = (
        [compiler, *flags, "-c", str(_SOURCE), "-o", str(beside / "kernels.o")],
        [compiler, "-shared", str(beside / "kernels.o"), "-o", str(built), "-lm"],
    )
    try:
        for command in commands:
            subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
        cached = folder / f"{name}-{_digest(built.read_bytes())}.so"
    except (OSError, subprocess.SubprocessError):
        shutil.rmtree(beside, ignore_errors=True)
        raise
    try:
        os.replace(built, cached)
    except OSError:  # something stands in its place that is no file
        return built
    if beside != folder:
        shutil.rmtree(beside, ignore_errors=True)
    return cached


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _load(path: Path) -> ctypes.CDLL:
    openmp = _openmp_of_torch()
    if openmp is not None:
        ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)  # loaded already; its functions can now be found
    found = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    sizes = (*[size] * 4, ctypes.c_int)
    found.int8_float.argtypes = found.int8_fixed.argtypes = [*[pointer] * 5, *sizes]
    found.int8_int8.argtypes = [*[pointer] * 4, *sizes, ctypes.c_float, ctypes.c_int]
    found.quantize_rows.argtypes = [pointer] * 3 + [size] * 2 + [ctypes.c_int, ctypes.c_float, ctypes.c_int]
    found.scale_sums.argtypes = [pointer] * 4 + [size] * 3 + [ctypes.c_int]
    found.scale_sums.restype = None
    found.bfloat16_float.argtypes = [pointer] * 3 + [size] * 3 + [ctypes.c_int]
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


def _cache_folder() -> Path | None:
    """The user's; None where there is no home folder, as in some containers."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "quant_lite"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "quant_lite"
