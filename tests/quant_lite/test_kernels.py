"""The C kernels against PyTorch's operators, and how they are built: once, side by side, or not at all."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from quant_lite import (
    BFloat16Linear,
    Int8Linear,
    PerChannel,
    PerGroup,
    QuantConfig,
    QuantizedTensor,
    absmax_quantize,
    kernels,
    quantize_,
)

ROOT = Path(__file__).parents[2]
needs_c = pytest.mark.skipif(
    shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler here: PyTorch's operators serve"
)
U = 2.0**-24  # unit roundoff of float32
groups = st.sampled_from([None, 1, 7, 64, 128])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
sizes = st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 5))  # N, K, T; vectors and what is left


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """So many share a product, on whatever machine and with however many workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Random, over many orders of magnitude where `spread` is large."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10 ** (spread * torch.randn(shape, generator=generator))


def bytes_of(N: int, K: int, seed: int) -> torch.Tensor:
    return torch.randint(-127, 128, (N, K), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def weight(N: int, K: int, group: int | None, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int8 values, their scales, and in float64 what they stand for."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randint(-127, 128, (N, K), dtype=torch.int8, generator=generator)
    scale = torch.rand(N, -(-K // group) if group else 1, generator=generator)
    spread = scale.repeat_interleave(group, 1)[:, :K] if group else scale
    return w, scale, w.double() * spread.double()


def assert_near(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, slack: torch.Tensor | float) -> None:
    """y against x w^T in float64: within `slack`, what rounding y to its dtype adds, and no more."""
    exact = x.double() @ w.T
    unit, smallest = torch.finfo(y.dtype).eps / 2, torch.finfo(y.dtype).smallest_normal * torch.finfo(y.dtype).eps
    limit = slack + unit * (exact.abs() + slack) + smallest
    assert ((y.double() - exact).abs() <= limit).all()


def of_sums(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """What float32 may lose: K products in any order, (K + 1) u sum |w x| (Higham 2002, section 3.1), and two scalings."""
    return (w.shape[1] + 3) * U * 1.01 * (x.double().abs() @ w.abs().T) + 1e-44


@needs_c
@given(sizes, groups, st.integers(0, 2**31), st.floats(0, 3), dtypes)
def test_int8_by_float(
    size: tuple[int, int, int], group: int | None, seed: int, spread: float, dtype: torch.dtype
) -> None:
    """One by one in float32, and in 24 bits: there each number is off by at most max |x| / (2^24 - 2^17)."""
    N, K, T = size
    values, scale, w = weight(N, K, group, seed)
    x = numbers(T, K, seed=seed, spread=spread).clamp(-1, 1).to(dtype)
    assert_near(kernels.int8_float(values, scale, x, group), x, w, of_sums(x, w))
    cut = x.double().abs().amax(1, keepdim=True) / (2**24 - 2**17) * w.abs().sum(1)
    assert_near(
        kernels.int8_fixed(values, scale, x, group), x, w, cut * 1.0001 + 2 * U * (x.double() @ w.T).abs() + 1e-44
    )


@needs_c
def test_float_activations_may_be_anything_and_long() -> None:
    """NaN and infinity spread as in any float product; past 65,536 numbers sums of bytes would leave int32."""
    layer = Int8Linear.from_linear(nn.Linear(70, 4, bias=False))
    x = torch.ones(2, 70)
    x[1, 3] = float("nan")
    assert layer(x)[0].isfinite().all() and layer(x)[1].isnan().all()
    x[1, 3] = float("inf")
    assert not layer(x)[1].isfinite().any()
    K = 70_000
    w, x = torch.full((3, K), 127, dtype=torch.int8), torch.full((1, K), 2.0)
    zero = torch.zeros(3, 1, dtype=torch.int8)
    assert Int8Linear(QuantizedTensor(w, torch.ones(3, 1), zero, torch.float32))(x).tolist() == [[2 * 127 * K] * 3]


@needs_c
@given(sizes, st.integers(0, 2**31), st.floats(0, 3), dtypes)
def test_bfloat16_by_float(size: tuple[int, int, int], seed: int, spread: float, dtype: torch.dtype) -> None:
    N, K, T = size
    w = numbers(N, K, seed=seed + 1, spread=spread).clamp(-100, 100).to(torch.bfloat16)
    x = numbers(T, K, seed=seed, spread=spread).clamp(-1, 1).to(dtype)
    assert_near(kernels.bfloat16_float(w, x), x, w.double(), of_sums(x, w.double()))


def by_operators(w: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, lowest: int = -127) -> torch.Tensor:
    """W8A8 by the definition: quantize the rows, sum integers, scale."""
    if lowest == -127:
        q = absmax_quantize(x, PerChannel(0))
        values, s = q.values, q.scale
    else:
        s = x.float().abs().amax(-1, keepdim=True) / 127.5
        up = torch.nextafter(s, torch.tensor(math.inf))  # of a subnormal scale the nearest may be far too small
        s = torch.where((s < 2.0**-126) & (127.5 * s.double() < x.double().abs().amax(-1, keepdim=True)), up, s)
        s = torch.where(s == 0, torch.ones_like(s), s)
        values = (x.float() / s).round().clamp(-128, 127)
    return ((values.long() @ w.long().T).float() * scale.T * s).to(x.dtype)


@needs_c
@pytest.mark.parametrize(("activations", "lowest"), [("int8", -127), ("int8_full", -128)])
@given(sizes, st.integers(0, 2**31), st.floats(0, 3), dtypes)
def test_int8_by_int8_to_the_bit(
    activations: str, lowest: int, size: tuple[int, int, int], seed: int, spread: float, dtype: torch.dtype
) -> None:
    """The same scales, the same roundings to even, exact sums: there is nothing to differ in, for few rows and many."""
    N, K, T = size
    w, scale, _ = weight(N, K, None, seed)
    x = numbers(T, K, seed=seed, spread=spread).clamp(-1, 1).to(dtype)
    assert torch.equal(kernels.int8_int8(w, scale, x, lowest=lowest), by_operators(w, scale, x, lowest))
    layer = Int8Linear(QuantizedTensor(w, scale, torch.zeros(N, 1, dtype=torch.int8), dtype), activations=activations)
    for rows in (x, x.repeat(9, 1)):  # few and many
        assert torch.equal(layer.product(rows), by_operators(w, scale, rows, lowest))
        assert torch.equal(layer.product_reference(rows), by_operators(w, scale, rows, lowest))


@needs_c
@given(sizes, st.integers(1, 70), st.integers(0, 2**31), st.floats(0, 3))
def test_int8_by_int8_in_groups(size: tuple[int, int, int], group: int, seed: int, spread: float) -> None:
    N, K, T = size
    values, scale, w = weight(N, K, group, seed)
    x_hat = absmax_quantize(numbers(T, K, seed=seed, spread=spread), PerChannel(0)).dequantize()
    x = x_hat  # a row that is its own quantization: what is left is rounding
    assert_near(kernels.int8_int8(values, scale, x, group), x, w, of_sums(x, w))


@needs_c
def test_a_given_input_scale_saturates() -> None:
    w, scale = bytes_of(4, 6, 1), torch.ones(4, 1)
    x = torch.tensor([[63.6, -64.0, 0.25, 0.24, 1e30, -0.75]])
    q = torch.tensor([[127, -127, 0, 0, 127, -2]])  # in steps of 0.5, ties to even
    assert kernels.int8_int8(w, scale, x, input_scale=0.5).tolist() == ((q @ w.long().T) * 0.5).tolist()
    values, scales = kernels.quantize_rows(x.repeat(40, 1), 0.5)
    assert values.tolist() == q.tolist() * 40 and scales.tolist() == [[0.5]] * 40


@needs_c
@pytest.mark.parametrize("lowest", [-127, -128])
def test_int8_by_int8_in_the_corners(lowest: int) -> None:
    """Zero rows, ties, subnormals, the largest numbers, the longest sums; NaN and infinity are refused."""
    for number, sign in ((-127, 1), (127, -1), (-128, -1)):
        w, scale = bytes_of(5, 65_536, 0).fill_(number), torch.full((5, 1), 0.5)
        x = torch.full((1, 65_536), 3.0 * sign)
        assert torch.equal(kernels.int8_int8(w, scale, x, lowest=lowest), by_operators(w, scale, x, lowest))
    w = bytes_of(3, 6, 1)
    largest = torch.finfo(torch.float32).max
    x = torch.tensor(
        [
            [0.0] * 6,
            [127.0, 0.5, 1.5, -2.5, -0.5, 126.5],
            [1e-45, -1e-45, 3e-45, 0, 1e-42, 1e-40],
            [largest, -largest, 1.0, 0, largest / 254, largest / 2],
        ]
    )
    assert torch.equal(kernels.int8_int8(w, scale[:3], x, lowest=lowest), by_operators(w, scale[:3], x, lowest))
    for bad in (float("nan"), float("inf"), float("-inf")):
        x[1, 3] = bad
        with pytest.raises(ValueError, match="activations that hold NaN or infinity"):
            kernels.int8_int8(w, scale[:3], x, lowest=lowest)


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("scheme", ["absmax", "zeropoint", "bfloat16"])
@pytest.mark.parametrize("granularity", [PerChannel(0), PerGroup(32)])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layers_paths_agree(activations: str, scheme: str, granularity, rows: int, dtype: torch.dtype) -> None:
    """Few rows and many, over a weight whose rows are no multiple of a vector; non-contiguous x; and the gradient of x."""
    torch.manual_seed(0)
    linear = nn.Linear(77, 24).to(dtype)
    if activations == "int8" and scheme == "zeropoint":
        with pytest.raises(ValueError, match="activations='int8' needs a weight without zero points"):
            Int8Linear.from_linear(linear, scheme, activations=activations)
        return
    if scheme == "bfloat16":
        layer = BFloat16Linear(linear.weight.to(torch.bfloat16), linear.bias, dtype)
    else:
        layer = Int8Linear.from_linear(linear, scheme, granularity, activations)
    x = torch.randn(77, rows).to(dtype).T.requires_grad_()
    y, twin = layer(x), layer.product_reference(x.detach()) + layer.bias
    # each path rounds sums of 77 products, and the operators in bfloat16 also w_hat (by groups), the sum and y
    w_hat = layer.to_linear().weight.detach().float()
    size = x.detach().abs().float() @ w_hat.abs().T + layer.bias.abs()
    steps = 4 if dtype == torch.bfloat16 else 80
    assert y.dtype == dtype and ((y - twin).abs().float() <= steps * torch.finfo(dtype).eps / 2 * size).all()
    y.sum().backward()
    expected = w_hat.sum(0).expand(rows, -1)
    # a gradient of 24 ones: each w_hat, each partial sum and the result are rounded
    limit = 30 * torch.finfo(dtype).eps / 2 * w_hat.abs().sum(0)
    assert ((x.grad.float() - expected).abs() <= limit).all() if rows else x.grad.shape == (0, 77)


def test_activations_by_int8_are_near_and_refuse_what_is_not_finite() -> None:
    """|x W^T - y| <= |W| s_x / 2 row by row, and the weight's own error: here the weight is exact, of integers."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, (8, 64)))
        linear.weight[:, 0] = 127
    layer = Int8Linear.from_linear(linear, activations="int8")
    assert torch.equal(layer.weight.float(), linear.weight)
    for rows in (2, 30):
        x = torch.randn(rows, 64)
        bound = x.abs().amax(1, keepdim=True) / 127 / 2 * linear.weight.abs().sum(1)
        assert ((layer(x) - linear(x)).abs() <= bound * 1.0001).all()
        x[0, 0] = float("nan")
        with pytest.raises(ValueError, match="NaN or infinity"):
            layer(x)


PROGRAM = (
    "import torch; from torch import nn; from quant_lite import Int8Linear, kernel_path; torch.manual_seed(0); "
    "layer = Int8Linear.from_linear(nn.Linear(64, 16)); layer(torch.ones(1, 64)); "
    "print(kernel_path(), layer.path, round(float(layer(torch.ones(1, 64)).sum()), 3))"
)


def run(cache: Path, **environment: str) -> subprocess.Popen[str]:
    names = {**os.environ, "XDG_CACHE_HOME": str(cache), **environment}
    line = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen(line, cwd=ROOT, env=names, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@needs_c
def test_many_processes_build_at_once_and_later_ones_not_at_all(tmp_path: Path) -> None:
    processes = [run(tmp_path) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert len({out for out, _ in outputs}) == 1 and outputs[0][0].startswith("c c "), outputs
    (built,) = (tmp_path / "quant_lite").iterdir()  # one library, and nothing half made beside it
    before = built.stat().st_mtime_ns
    assert run(tmp_path).communicate(timeout=120) == outputs[0]
    assert built.stat().st_mtime_ns == before


@needs_c
@pytest.mark.parametrize("left", [0, 5000])
def test_a_damaged_library_is_built_anew(tmp_path: Path, left: int) -> None:
    expected = run(tmp_path).communicate(timeout=120)
    (built,) = (tmp_path / "quant_lite").iterdir()
    whole = built.read_bytes()
    built.write_bytes(whole[:left])
    assert run(tmp_path).communicate(timeout=120) == expected
    assert whole in [path.read_bytes() for path in (tmp_path / "quant_lite").iterdir()]


@needs_c
@pytest.mark.parametrize("lost", [{"CC": "", "PATH": ""}, {"CC": "/bin/false"}, {"CC": "broken"}])
def test_what_was_built_serves_where_there_is_no_compiler_any_more(tmp_path: Path, lost: dict[str, str]) -> None:
    """None is found, or none that works: a library of this source, these flags and this processor is whole."""
    if lost["CC"] == "broken":
        compiler = tmp_path / "cc"
        compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo other && exit\nexit 1\n')
        compiler.chmod(0o755)
        lost = {"CC": str(compiler)}
    expected = run(tmp_path).communicate(timeout=120)
    assert expected[0].startswith("c c ") and expected[1] == ""
    (built,) = (tmp_path / "quant_lite").iterdir()
    assert run(tmp_path, **lost).communicate(timeout=120) == expected
    assert run(tmp_path, QUANT_LITE_KERNELS="c", **lost).communicate(timeout=120) == expected
    whole = built.read_bytes()
    built.write_bytes(whole[:5000])
    out, errors = run(tmp_path, **lost).communicate(timeout=120)
    assert out.startswith("torch torch ") and errors.count("no C kernels") == 1
    built.write_bytes(whole)
    of_another = built.with_name(built.name.replace("kernels-", "kernels-0", 1))  # source, flags or processor
    built.rename(of_another)
    assert run(tmp_path, **lost).communicate(timeout=120)[0].startswith("torch torch ")


@needs_c
@pytest.mark.parametrize("empty", [True, False])
def test_a_folder_in_the_place_of_the_library(tmp_path: Path, empty: bool) -> None:
    """It stays, the library is of this process alone, and nothing is left behind; without a compiler operators serve."""
    expected = run(tmp_path).communicate(timeout=120)
    (built,) = (tmp_path / "quant_lite").iterdir()
    built.unlink()
    built.mkdir()
    if not empty:
        (built / "file").touch()
    assert run(tmp_path).communicate(timeout=120) == expected and expected[1] == ""
    assert list((tmp_path / "quant_lite").iterdir()) == [built] and built.is_dir()
    out, errors = run(tmp_path, CC="", PATH="").communicate(timeout=120)
    assert out.startswith("torch torch ") and errors.count("no C kernels") == 1


@needs_c
def test_a_library_that_cannot_be_read_is_built_anew(tmp_path: Path) -> None:
    expected = run(tmp_path).communicate(timeout=120)
    (built,) = (tmp_path / "quant_lite").iterdir()
    built.unlink()
    built.symlink_to(built)
    assert run(tmp_path).communicate(timeout=120) == expected


@needs_c
def test_a_compiler_may_speak_any_language(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_bytes(b'#!/bin/sh\n[ "$1" = --version ] && echo "compil\xe9" && exit\nexec gcc "$@"\n')
    compiler.chmod(0o755)
    out, errors = run(tmp_path / "cache", CC=str(compiler)).communicate(timeout=120)
    assert out.startswith("c c ") and errors == ""
    compiler.write_bytes(b'#!/bin/sh\n[ "$1" = --version ] && exit\necho "rat\xe9" >&2; exit 1\n')
    out, errors = run(tmp_path / "other", CC=str(compiler)).communicate(timeout=120)
    assert out.startswith("torch torch ") and "no C kernels" in errors and "rat" in errors


@needs_c
def test_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    """The library is then of this process alone, and leaves nothing behind."""
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    out, errors = run(tmp_path / "file" / "cache", TMPDIR=str(tmp_path / "tmp")).communicate(timeout=120)
    assert out.startswith("c c ") and errors == ""
    assert not list((tmp_path / "tmp").iterdir())


@needs_c
def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no name: the library is then of this process alone."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    path = kernels._build()
    assert path.is_file() and kernels._cache_folder() is None
    shutil.rmtree(path.parent)


def test_without_a_compiler_operators_serve_and_say_so_once(tmp_path: Path) -> None:
    plain, _ = run(tmp_path, QUANT_LITE_KERNELS="torch").communicate(timeout=120)
    out, errors = run(tmp_path, CC="/bin/false", PATH="").communicate(timeout=120)
    assert out == plain and out.startswith("torch torch ")
    assert errors.count("quant_lite runs on PyTorch's operators, slower: no C kernels") == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"QUANT_LITE_KERNELS": "c", "CC": "/bin/false", "PATH": ""},
            "QUANT_LITE_KERNELS=c, but the kernels cannot be",
        ),
        ({"QUANT_LITE_KERNELS": "rust"}, "QUANT_LITE_KERNELS='rust' is not known: take c or torch"),
    ],
)
def test_kernels_that_are_asked_for_and_cannot_be_had(tmp_path: Path, environment: dict, words: str) -> None:
    process = run(tmp_path, **environment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and words in errors


@needs_c
def test_defaults_of_dtype_and_device_change_nothing() -> None:
    """The kernels write float32 into memory that PyTorch allots: by a default dtype of 16 bits it would be half of it."""
    script = """
import torch
from quant_lite import Int8Linear
torch.manual_seed(0)
layers = [Int8Linear.from_linear(torch.nn.Linear(64, 48), activations=kind) for kind in ("float", "int8")]
few, many = torch.randn(2, 64), torch.randn(4000, 64)
cases = [(layer, x) for layer in layers for x in (few, many)]
expected = [layer(x) for layer, x in cases]
for dtype in (torch.bfloat16, torch.float16, torch.float64):
    torch.set_default_dtype(dtype)
    for _ in range(5):
        assert all(torch.equal(layer(x), y) for (layer, x), y in zip(cases, expected)), dtype
torch.set_default_dtype(torch.float32)
with torch.device("meta"):
    assert all(torch.equal(layer(x), y) for (layer, x), y in zip(cases, expected)), "meta"
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr[-500:]


TRACERS = {
    "jit": lambda layer, x: torch.jit.trace(layer, x),
    "fx": lambda layer, x: make_fx(layer)(x),
    "fx before autograd": lambda layer, x: make_fx(layer, pre_dispatch=True)(x),
    "fx of fakes": lambda layer, x: make_fx(layer, tracing_mode="fake", _allow_non_fake_inputs=True)(x),
    "export": lambda layer, x: torch.export.export(layer, (x,)).module(),
    "compile": lambda layer, x: torch.compile(layer, backend="eager"),
}
TRACED = [
    *(QuantConfig(scheme, granularity) for scheme in ("absmax", "zeropoint") for granularity in (None, PerGroup(16))),
    *(QuantConfig(activations=kind) for kind in ("int8", "int8_full")),
    QuantConfig(activations="int8", granularity=PerGroup(16)),
    QuantConfig(activations="int8", outliers=2.0),
    QuantConfig(activations="int8", observer="minmax"),
    QuantConfig(bits=4),
    QuantConfig("bfloat16"),
]


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("config", TRACED, ids=str)
@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_layer_computes(tracer: str, config: QuantConfig, rows: int) -> None:
    """Of other rows than it was traced with, with outliers elsewhere; to the rounding of K + 4 operations."""
    model = nn.Sequential(nn.Linear(64, 24)).eval()
    x, other = numbers(rows, 64, seed=1, spread=0.0), 3 * numbers(rows, 64, seed=2, spread=0.0)
    quantize_(model, config, [x] if config.calibrated else ())
    layer = model[0]
    traced = TRACERS[tracer](model, x)
    reach = layer.to_linear().weight.abs().sum(-1)
    for rows_of in (other, x):
        y = layer(rows_of)
        rounding = 68 * 2.0**-24 * (1.01 * rows_of.abs().amax(-1, keepdim=True) * reach + y.abs())
        assert ((traced(rows_of) - y).abs() <= rounding).all()
