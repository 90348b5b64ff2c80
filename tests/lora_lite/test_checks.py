"""Our own layer passes every check of `lora_lite.checks`, and wrong ones fail just the check that names their fault."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_lite import LoRALinear, checks, merge_lora
from lora_lite.lora import LoRAConfig, wrap


def merge(layer: nn.Module) -> nn.Linear:
    """`merge_lora` of a model that consists of this one layer."""
    assert isinstance(layer, LoRALinear)
    model = nn.ModuleDict({"layer": layer.base})
    wrap(model, "default", LoRAConfig(targets=("layer",)), ["layer"], {}, [])
    model["layer"].adapters["default"] = layer.adapters["default"]
    merge_lora(model)
    return model["layer"]


def test_ours_passes_all() -> None:
    checks.check_all(LoRALinear, merge)


class Student(nn.Module):
    """A right one, as a student writes it: matrices as modules, the dropout as a module. Faults are put in below."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        self.base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.drop = nn.Dropout(dropout)

    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        h = self.lora_A(self.drop(x.to(self.lora_A.weight.dtype)))
        y = self.base(x)
        return y + (self.scale() * self.lora_B(h)).to(y.dtype)


@torch.no_grad()
def student_merge(layer: nn.Module) -> nn.Linear:
    merged = nn.Linear(layer.base.in_features, layer.base.out_features, bias=layer.base.bias is not None)
    merged.weight.copy_(layer.base.weight + layer.scale() * layer.lora_B.weight @ layer.lora_A.weight)
    if layer.base.bias is not None:
        merged.bias.copy_(layer.base.bias)
    return merged


def test_a_students_right_one_passes_all() -> None:
    checks.check_all(Student, student_merge)


class Swapped(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.lora_A, self.lora_B = self.lora_B, self.lora_A

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale() * self.lora_A(self.lora_B(self.drop(x)))


class AlphaForgotten(Student):
    def scale(self) -> float:
        return 1 / self.rank


class ScaleForgotten(Student):
    def scale(self) -> float:
        return 1.0


class ScaleUpsideDown(Student):
    def scale(self) -> float:
        return self.rank / self.alpha


class NotDividedByRank(Student):
    def scale(self) -> float:
        return self.alpha


class DividedBySquareRoot(Student):
    def scale(self) -> float:
        return self.alpha / math.sqrt(self.rank)


class BaseNotFrozen(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.base.requires_grad_(True)


class OnlyTheWeightFrozen(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        if self.base.bias is not None:
            self.base.bias.requires_grad_(True)


class BothZero(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        nn.init.zeros_(self.lora_A.weight)


class BothRandom(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        nn.init.normal_(self.lora_B.weight)


class DropoutOnOutput(Student):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.drop(self.scale() * self.lora_B(self.lora_A(x)))


class DropoutOnTheBase(Student):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.drop(x)) + self.scale() * self.lora_B(self.lora_A(self.drop(x)))


class DropoutInEval(Student):
    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.drop.p, training=True)
        return self.base(x) + self.scale() * self.lora_B(self.lora_A(dropped))


class DropoutForgotten(Student):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale() * self.lora_B(self.lora_A(x))


class BiasDropped(Student):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight) + self.scale() * self.lora_B(self.lora_A(self.drop(x)))


class BiasDroppedLater(Student):
    """Right at the start, where the update is zero."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.lora_B.weight.any():
            y = F.linear(x, self.base.weight) + self.scale() * self.lora_B(self.lora_A(self.drop(x)))
        return y


class MergesInEval(Student):
    def train(self, mode: bool = True) -> MergesInEval:
        if not mode:
            with torch.no_grad():
                self.base.weight += self.scale() * self.lora_B.weight @ self.lora_A.weight
        return super().train(mode)


class DetachesA(Student):
    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(self.drop(x), self.lora_A.weight.detach())
        return self.base(x) + self.scale() * self.lora_B(inner)


class DetachesX(Student):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale() * self.lora_B(self.lora_A(self.drop(x.detach())))


class HalfOfTheRank(Student):
    """The second half of A is read from the first."""

    def forward(self, x: Tensor) -> Tensor:
        half = self.lora_A(self.drop(x))[..., : self.rank // 2].repeat(*[1] * (x.dim() - 1), 2)
        return self.base(x) + self.scale() * self.lora_B(half)


class FlattensItsInput(Student):
    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, x.shape[-1])
        return self.base(x) + self.scale() * self.lora_B(self.lora_A(self.drop(x)))


class NoCast(Student):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale() * self.lora_B(self.lora_A(self.drop(x)))


class HalfAdapter(Student):
    """A and B follow the base's dtype."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.to(base.weight.dtype)


class OutsideTheState(Student):
    """Multiplies by something that state_dict() does not know."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.secret = torch.randn(())

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.secret * (y - self.base(x))


class DropoutOnTheInside(Student):
    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale() * self.lora_B(self.drop(self.lora_A(x)))


class DropoutWithoutRescaling(Student):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.rand_like(x) >= self.drop.p if self.training else 1.0
        return self.base(x) + self.scale() * self.lora_B(self.lora_A(x * mask))


class DropoutOfOneTenth(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, 0.1 if dropout else 0.0)


class RescalesButKeepsTooMuch(Student):
    """The right numbers, too often."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.drop.p
        mask = (torch.rand_like(x) >= p / 4) / (1 - p) if self.training and p else 1.0
        return self.base(x) + self.scale() * self.lora_B(self.lora_A(x * mask))


class KeepsWithP(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, 1 - dropout if dropout else 0.0)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


class ClimbsWithB(Student):
    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(self.lora_A(self.drop(x)), Reversed.apply(self.lora_B.weight))
        return self.base(x) + self.scale() * h


class ThawsInTraining(Student):
    def train(self, mode: bool = True) -> ThawsInTraining:
        self.base.requires_grad_(mode)
        return super().train(mode)


A_FOR_ALL = nn.Linear(checks.K, checks.R, bias=False)


class OneAForAll(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        if rank == checks.R:
            self.lora_A = A_FOR_ALL


class EqualRows(Student):
    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank, alpha, dropout)
        nn.init.constant_(self.lora_A.weight, 0.1)


MUTANTS: list[tuple[type[Student], Callable, str]] = [
    (Swapped, checks.check_shapes, "swapped"),
    (AlphaForgotten, checks.check_scale, "alpha is forgotten"),
    (ScaleForgotten, checks.check_scale, "alpha is forgotten"),
    (ScaleUpsideDown, checks.check_scale, "alpha / rank is upside down"),
    (NotDividedByRank, checks.check_scale, "not divided by rank"),
    (DividedBySquareRoot, checks.check_scale, r"multiplied by 6, alpha / rank = 12 / 4 = 3 should be"),
    (BaseNotFrozen, checks.check_parameter_count, "freeze the base's weight and bias"),
    (BaseNotFrozen, checks.check_gradients, "base.weight, base.bias got a gradient"),
    (OnlyTheWeightFrozen, checks.check_gradients, "base.bias got a gradient"),
    (BothZero, checks.check_start, "both start at zero"),
    (BothRandom, checks.check_start, "lora_B must start at zero"),
    (DropoutOnOutput, checks.check_dropout, "must fall on the input of A"),
    (DropoutOnTheInside, checks.check_dropout, "must fall on the input of A"),
    (DropoutWithoutRescaling, checks.check_dropout, "must be divided by 1 - p"),
    (DropoutOfOneTenth, checks.check_dropout, "must be divided by 1 - p"),
    (RescalesButKeepsTooMuch, checks.check_dropout, r"dropout=0.5 kept \d+ of 400, not 200"),
    (KeepsWithP, checks.check_dropout, "must be divided by 1 - p"),
    (ClimbsWithB, checks.check_gradients, "the gradient of lora_B is not that of"),
    (ThawsInTraining, checks.check_parameter_count, "freeze the base's weight and bias"),
    (OneAForAll, checks.check_parameter_count, "two layers share parameters"),
    (EqualRows, checks.check_start, "lora_A starts with rank 1 of 4"),
    (DropoutOnTheBase, checks.check_dropout, "with B = 0 dropout must change nothing"),
    (DropoutInEval, checks.check_dropout, r"dropout is on in eval\(\)"),
    (DropoutForgotten, checks.check_dropout, "changes nothing"),
    (BiasDropped, checks.check_start, "before training, the layer must give what its base gives"),
    (BiasDroppedLater, checks.check_forward, "the base's bias is dropped"),
    (MergesInEval, checks.check_base_unchanged, "the base's weight changed without a merge"),
    (DetachesA, checks.check_gradients, "lora_A gets no gradient"),
    (DetachesX, checks.check_gradients, "the gradient of x is not that of"),
    (HalfOfTheRank, checks.check_rank, "has rank 2, asked for is 4"),
    (FlattensItsInput, checks.check_forward, r"x \(40,\) gives y \(1, 24\), not \(24,\)"),
    (NoCast, checks.check_dtypes, "a bfloat16 x fails"),
    (HalfAdapter, checks.check_dtypes, "lora_A is torch.bfloat16 over a bfloat16 base: keep it float32"),
    (OutsideTheState, checks.check_state, "something is not in it"),
]


@pytest.mark.parametrize(
    ("mutant", "check", "words"), MUTANTS, ids=[f"{m[0].__name__}-{m[1].__name__}" for m in MUTANTS]
)
def test_a_wrong_layer_fails_by_name(mutant: type[Student], check: Callable, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(mutant)
    with pytest.raises(AssertionError):
        checks.check_all(mutant, student_merge)


@torch.no_grad()
def merges_twice(layer: nn.Module) -> nn.Linear:
    layer.base.weight += layer.scale() * layer.lora_B.weight @ layer.lora_A.weight
    return student_merge(layer)


@torch.no_grad()
def forgets_the_bias(layer: nn.Module) -> nn.Linear:
    merged = student_merge(layer)
    merged.bias = None
    return merged


@torch.no_grad()
def zeroes_the_bias(layer: nn.Module) -> nn.Linear:
    merged = student_merge(layer)
    if merged.bias is not None:
        merged.bias.zero_()
    return merged


@torch.no_grad()
def forgets_the_scale(layer: nn.Module) -> nn.Linear:
    merged = student_merge(layer)
    merged.weight.copy_(layer.base.weight + layer.lora_B.weight @ layer.lora_A.weight)
    return merged


@torch.no_grad()
def subtracts(layer: nn.Module) -> nn.Linear:
    merged = student_merge(layer)
    merged.weight.copy_(2 * layer.base.weight - merged.weight)
    return merged


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (merges_twice, "the update is merged twice"),
        (forgets_the_bias, "the merged layer's bias is not the base's"),
        (zeroes_the_bias, "another output: is its bias the base's"),
        (forgets_the_scale, r"the merged weight differs from W \+ \(alpha / rank\) B A"),
        (subtracts, "it is subtracted"),
        (lambda layer: layer.base, "nothing is merged"),
        (lambda layer: layer, "merging gives a Student"),
    ],
)
def test_a_wrong_merge_fails_by_name(wrong: Callable, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        checks.check_merge(Student, wrong)
