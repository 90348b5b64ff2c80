"""One layer with its adapters (Hu et al. 2021, "LoRA", equation 3), and the forms that an adapter can take.

Shapes: ... any leading dimensions, B batch, K in features, N out features, R rank, V vocabulary, D model width.

An embedding is a linear layer on one-hot vectors: K = V and N = D. It and transformers' `Conv1D` store the weight as
(K, N), every other layer as (N, K); here `weight` is always (N, K).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "LoRALinear",
    "LowRank",
    "TiedLowRank",
    "TokenRows",
    "float_weight",
    "layer_size",
    "low_rank_of",
    "place",
    "stores_transposed",
]


def layer_size(module: nn.Module) -> tuple[int, int] | None:
    """(N, K) of a layer that can have an adapter, else None; by duck typing, so that quantized layers count."""
    if isinstance(module, LoRALinear):
        return None
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    weight = getattr(module, "weight", None)
    if isinstance(getattr(module, "nf", None), int) and isinstance(weight, Tensor) and weight.dim() == 2:
        return weight.shape[1], weight.shape[0]  # transformers' Conv1D
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (sizes[0], sizes[1]) if isinstance(sizes[0], int) and isinstance(sizes[1], int) else None


def stores_transposed(base: nn.Module) -> bool:
    """Whether the layer stores its weight as (K, N): an embedding or transformers' `Conv1D`."""
    return isinstance(base, nn.Embedding) or not hasattr(base, "in_features")


def float_weight(base: nn.Module) -> Tensor:
    """The weight (N, K) of a layer; a quantized layer's is that of its `to_linear()`.

    Raises:
        TypeError: the layer has neither a floating point weight nor `to_linear`.
    """
    weight = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        return weight.T if stores_transposed(base) else weight
    to_linear = getattr(base, "to_linear", None)
    if to_linear is None:
        raise TypeError(f"{type(base).__name__} has neither a floating point weight nor to_linear()")
    dense: nn.Linear = to_linear()
    return dense.weight.detach()


def place(tensor: Tensor) -> tuple[object, ...]:
    """What is equal for two tensors that lie in the same memory in the same way: then a change of one is of both."""
    somewhere = tensor.data_ptr() if tensor.numel() and not tensor.is_meta else id(tensor)
    return somewhere, tensor.shape, tensor.dtype, tensor.device


class Float32(nn.Module):
    """Parameters that stay float32 when the model around them is cast to 16 bits, where small steps would be lost."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrower = moved.is_floating_point() and moved.dtype.itemsize < tensor.dtype.itemsize
            return tensor.to(moved.device) if narrower else moved

        return super()._apply(keep, recurse)


def low_rank_product(x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """u = scale B A x for each row: (..., N), in the dtype of A, from x (..., K) of any dtype, A (R, K) and B (N, R)."""
    return F.linear(F.linear(x.to(A.dtype), A) * scale, B)


class _LowRankProduct(torch.autograd.Function):
    """`low_rank_product` with its gradient written out. As rows x (T, K), u (T, N), with i = x A^T and G of u:

        of i = scale G B        of B = scale G^T i        of A = (of i)^T x        of x = (of i) A

    What waits for the backward pass is x as it came, in 16 bits where the model is in 16 bits: the layers that read the
    same x keep it once. PyTorch's own gradient would keep a float32 copy for each.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return low_rank_product(x, A, B, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *of_output: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B = ctx.saved_tensors
        wide = x.reshape(-1, x.shape[-1]).to(A.dtype)  # (T, K)
        G = of_output[0].reshape(len(wide), -1).to(A.dtype)  # (T, N)
        # (R, T): products with the few rows of R come first, which on CPUs is up to 10 times as fast as with few columns
        of_inner = ctx.scale * (B.T @ G.T)
        of_x = (of_inner.T @ A).view_as(x).to(x.dtype) if ctx.needs_input_grad[0] else None
        of_A = of_inner @ wide if ctx.needs_input_grad[1] else None
        of_B = (ctx.scale * (A @ wide.T) @ G).T if ctx.needs_input_grad[2] else None
        return of_x, of_A, of_B, None


class LowRank(Float32):
    """scale * B A x: a trainable update of rank R (Hu et al. 2021, equation 3).

    A (R, K) starts as `nn.Linear` does and B (N, R) at zero, so that the update starts at zero. Both are float32
    whatever the base is; x is cast in and the update cast out.

    With `magnitude` m (N,), the layer is DoRA's (Liu et al. 2024, equation 5): the updated weight V = W + scale B A
    gives the directions and m the lengths of its rows, which start as those of W. Their norm gets no gradient
    (section 4.3):

        y = m / norm(V) * (V x) + bias

    Where A and B start from the base weight (PiSSA, OLoRA), a frozen copy of the start is subtracted, so that the base
    stays as it is and the layer starts as the base to the bit:

        y = W x + scale (B A - B0 A0) x        which is (W - scale B0 A0) x + scale B A x, as in the papers

    Args:
        size: (N, K).
        rank, alpha: scale = alpha / R, or alpha / sqrt(R) with `rslora` (Kalajdzievski 2023, equation 4).
        dropout: on x, in training only; an embedding's x are token ids and keep whole.
        generator: draws A; `None` takes PyTorch's global one.
    """

    def __init__(
        self,
        size: tuple[int, int],
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank={rank!r} must be a whole number of at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout!r} must be at least 0 and below 1")
        N, K = size
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        # drawn on the CPU, wherever it goes: the same seed gives the same adapter
        A = torch.empty(rank, K, device=device if device is None or device.type == "meta" else "cpu")
        if not A.is_meta:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)  # uniform in +-1/sqrt(K), as nn.Linear
        self.lora_A = nn.Parameter(A.to(device))
        self.lora_B = nn.Parameter(torch.zeros(N, rank, device=device))
        self.magnitude: nn.Parameter | None = None
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)

    @property
    def scale(self) -> float:
        """alpha / R, or alpha / sqrt(R)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @torch.no_grad()
    def measure_magnitude(self, base: nn.Module) -> None:
        """Make the adapter DoRA's: m = norm(W + scale B A), the length of each row, (N,)."""
        self.magnitude = nn.Parameter(self.adapted_weight(base).norm(dim=1))

    @torch.no_grad()
    def start_at(self, A: Tensor, B: Tensor) -> None:
        """Start from A (R, K) and B (N, R) and subtract a frozen copy of them ever after."""
        self.lora_A.copy_(A)
        self.lora_B.copy_(B)
        self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of plain LoRA with the same product: a frozen start as further ranks, [A; A0] and [B, -B0]."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.start_A)), torch.cat((self.lora_B, -self.start_B), dim=1)

    def product(self) -> Tensor:
        """scale (B A - B0 A0): (N, K), float32."""
        A, B = self.factors()
        return self.scale * (B @ A)

    def adapted_weight(self, base: nn.Module) -> Tensor:
        """W + scale (B A - B0 A0), DoRA's V: (N, K), float32."""
        return float_weight(base).float() + self.product()

    def ratio(self, V: Tensor) -> Tensor:
        """DoRA's m / norm(V), (N, 1), of which only m gets a gradient; a row of zeros stays one."""
        assert self.magnitude is not None
        length = V.detach().norm(dim=1).clamp(min=torch.finfo(V.dtype).tiny)
        return (self.magnitude / length)[:, None]

    def delta(self, base: nn.Module) -> Tensor:
        """The change of the base's weight: (N, K), float32."""
        if self.magnitude is None:
            return self.product()
        V = self.adapted_weight(base)
        return self.ratio(V) * V - float_weight(base).float()

    def update(self, x: Tensor, embedding: bool = False, turned: bool = False) -> Tensor:
        """scale (B A - B0 A0) x, (..., N), from x (..., K) or an embedding's ids; `turned` with the transposed product.

        The start is a product of its own, so that it cancels to the bit as long as A and B are where they started.
        """
        if self.dropout and self.training and not embedding:
            x = F.dropout(x.to(self.lora_A.dtype), self.dropout)

        def product(A: Tensor, B: Tensor) -> Tensor:
            if turned:
                A, B = B.T, A.T
            if embedding:
                return F.linear(F.embedding(x, A.T) * self.scale, B)
            product: Tensor = _LowRankProduct.apply(x, A, B, self.scale)
            return product

        update = product(self.lora_A, self.lora_B)
        if self.start_A is not None and self.start_B is not None:
            update = update - product(self.start_A, self.start_B)
        return update

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, base: nn.Module) -> Tensor:
        """Add the update to y (..., N), from x (..., K) or token ids (...); `base_y` is what the base alone gives."""
        update = self.update(x, embedding=isinstance(base, nn.Embedding))  # (..., N)
        if self.magnitude is None:
            return y + update.to(y.dtype)
        with torch.no_grad():
            V = self.adapted_weight(base)
        ratio = self.ratio(V)[:, 0]
        bias = getattr(base, "bias", None)
        product = base_y if bias is None else base_y - bias  # W x
        return y + ((ratio - 1) * product + ratio * update).to(y.dtype)

    def extra_repr(self) -> str:
        kind = ", DoRA" if self.magnitude is not None else ""
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.dropout}{kind}"


class TiedLowRank(nn.Module):
    """The same update for the head whose weight is an embedding's: its (A, B) are the embedding's (B^T, A^T).

    The two layers share one weight M (V, D), the embedding's W transposed; so M + (scale B A)^T serves both.
    """

    def __init__(self, adapter: LowRank) -> None:
        super().__init__()
        self.adapter = adapter

    @property
    def lora_A(self) -> Tensor:
        """What reads the head's x, (R, D): B^T."""
        return self.adapter.lora_B.T

    @property
    def lora_B(self) -> Tensor:
        """What writes the head's y, (V, R): A^T."""
        return self.adapter.lora_A.T

    def delta(self, base: nn.Module) -> Tensor:
        """The change of the head's weight, (V, D), float32."""
        return self.adapter.delta(base).T

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, base: nn.Module) -> Tensor:
        """Add the update to y (..., V), from x (..., D)."""
        return y + self.adapter.update(x, turned=True).to(y.dtype)


def low_rank_of(update: nn.Module | None) -> LowRank | None:
    """The low-rank update itself, also where a tied head turns it around; None for anything else."""
    update = update.adapter if isinstance(update, TiedLowRank) else update
    return update if isinstance(update, LowRank) else None


class TokenRows(Float32):
    """New values for some rows of an embedding, or of the head tied to it: all that new tokens need to be learnt.

    Args:
        rows: (n, D), what the tokens start from; kept in float32.
        ids: the n token ids.
    """

    def __init__(self, rows: Tensor, ids: tuple[int, ...]) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.detach().float().clone())
        self.ids = ids
        self.register_buffer("index", torch.tensor(ids, device=rows.device), persistent=False)
        self.index: Tensor

    def delta(self, base: nn.Module) -> Tensor:
        """The change of the base's weight in float32: of an embedding's W (D, V) by columns, of a head's by rows."""
        W = float_weight(base).float()
        dim = 1 if isinstance(base, nn.Embedding) else 0
        change = (self.rows.float().T if dim else self.rows.float()) - W.index_select(dim, self.index)
        return torch.zeros_like(W).index_copy(dim, self.index, change)

    def forward(self, x: Tensor, y: Tensor, base_y: Tensor, base: nn.Module) -> Tensor:
        """Replace in y what the new rows change: of an embedding (..., D) from ids, of a head (..., V) from (..., D)."""
        rows = self.rows.to(y.dtype)
        if isinstance(base, nn.Embedding):
            hits = x[..., None] == self.index  # (..., n)
            return torch.where(hits.any(-1, keepdim=True), rows[hits.int().argmax(-1)], y)
        bias = getattr(base, "bias", None)
        return y.index_copy(-1, self.index, F.linear(x, rows, None if bias is None else bias[self.index]))

    def extra_repr(self) -> str:
        return f"{len(self.ids)} tokens"


class LoRALinear(nn.Module):
    """y = base(x) + (alpha / R) B A x: a frozen linear layer or embedding with trainable low-rank updates.

    Hu et al. 2021, equation 3. The layer may have several adapters by name; the active ones are added up. With none
    active it is the base, bit for bit.

    Args:
        base: anything with `in_features`, `out_features` and `forward`, such as `nn.Linear` or a quantized layer; an
            `nn.Embedding`; transformers' `Conv1D`.
        rank, alpha, dropout, generator: of the first adapter, as in `LowRank`; `rank=None` adds none yet.
        name: of the first adapter.

    Raises:
        TypeError: the base is none of these.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int | None = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        name: str = "default",
    ) -> None:
        super().__init__()
        size = layer_size(base)
        if size is None:
            raise TypeError(
                f"{type(base).__name__} has no in_features and out_features: LoRALinear wraps linear layers"
            )
        self.base = base.requires_grad_(False)
        self.out_features, self.in_features = size
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.rows: tuple[tuple[str, Tensor], ...] | None = None  # adapter, and the rows of the batch that it serves
        self.batch = 0  # how many rows that batch has
        self.only_read = False  # whether its owner reads `weight` instead of calling it
        if rank is not None:
            device = next((t.device for t in (*base.parameters(), *base.buffers())), None)
            self.adapters[name] = LowRank(size, rank, alpha, dropout, generator=generator, device=device)
            self.active = (name,)

    def adapter(self, name: str) -> nn.Module | None:
        """The update that the adapter of this name makes here, if it makes one."""
        return dict(self.adapters.items()).get(name)

    def forward(self, input: Tensor) -> Tensor:  # (..., K) -> (..., N); an embedding's ids (...) -> (..., N)
        x = input  # named as `nn.Linear` and `nn.Embedding` name it
        y = base_y = self.base(x)
        if self.rows is None:
            for name in self.active:
                y = self.adapters[name](x, y, base_y, self.base)
            return y
        if x.shape[0] != self.batch:
            raise ValueError(f"lora_rows names an adapter for each of {self.batch} rows, the batch has {x.shape[0]}")
        for name, rows in self.rows:
            y = y.index_copy(0, rows, self.adapters[name](x[rows], y[rows], base_y[rows], self.base))
        return y

    @property
    def weight(self) -> Tensor:
        """What the layer multiplies by, as the base stores its weight, with the active adapters in it.

        Computed at each access, for modules that read a layer's weight instead of calling it, such as
        `nn.MultiheadAttention`; so they too are adapted. Inside `lora_rows` there is no one such weight: it is the
        base's, for modules that only want to know its dtype.

        Raises:
            ValueError: inside `lora_rows`, where the owner is known to compute with it.
        """
        if self.rows and self.only_read:
            raise ValueError("inside lora_rows no layer can be adapted whose weight is read instead of called")
        plain = float_weight(self.base)  # (N, K)
        weight = (plain.float() + self.delta()).to(plain.dtype) if self.active else plain
        return weight.T if stores_transposed(self.base) else weight

    def delta(self) -> Tensor:
        """The change of the weight (N, K) by the active adapters, float32: (alpha / R) B A for one that is plain LoRA.

        Raises:
            ValueError: the rows of the batch have different adapters, or no adapter is active.
        """
        if self.rows is not None or not self.active:
            raise ValueError(
                "inside lora_rows each row has its own change of the weight, and without adapters none has"
            )
        updates: list[Any] = [self.adapters[name] for name in self.active]
        changes = [update.delta(self.base) for update in updates]
        return torch.stack(changes).sum(0) if len(changes) > 1 else changes[0]

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return getattr(self.base, "bias", None)

    def _only(self) -> Any:
        """The only adapter, which `layer.lora_A` and the like mean."""
        if len(self.adapters) != 1:
            raise ValueError(f"the layer has the adapters {list(self.adapters)}: take layer.adapters[name]")
        return next(iter(self.adapters.values()))

    @property
    def lora_A(self) -> Tensor:
        """A (R, K) of the only adapter."""
        return self._only().lora_A

    @property
    def lora_B(self) -> Tensor:
        """B (N, R) of the only adapter."""
        return self._only().lora_B

    @property
    def rank(self) -> int:
        """R of the only adapter."""
        return self._only().rank

    @property
    def alpha(self) -> float:
        """Numerator of the only adapter's scale."""
        return self._only().alpha

    @property
    def scale(self) -> float:
        """alpha / R of the only adapter."""
        return self._only().scale

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, active={list(self.active)}"
