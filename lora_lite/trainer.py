"""Supervised fine-tuning in one file: the exact loss, the schedule, the loop.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lora_lite.lora import lora_parameter_groups

__all__ = ["Example", "Step", "TrainConfig", "Trainer", "learning_rate", "token_losses"]


@dataclass(frozen=True)
class Example:
    """Token ids, and a mask of equal length that is 1 on the tokens to learn to predict (the completion)."""

    ids: Sequence[int]
    mask: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.mask):
            raise ValueError(f"{len(self.ids)} ids and {len(self.mask)} mask values: they must be of equal length")

    @property
    def supervised(self) -> int:
        """How many tokens the loss counts; the first token follows nothing and is never one of them."""
        return sum(map(bool, self.mask[1:]))


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the examples.
        batch_size: examples in one optimizer step, whatever their split into micro-batches.
        micro_batch_size: examples in one forward pass; smaller needs less memory and gives the same gradients.
        learning_rate: at the end of the warm-up.
        warmup: share of the steps in which the rate rises from zero.
        final_learning_rate: share of the rate that the cosine ends at.
        lora_plus: how many times as fast B is trained as all else (LoRA+, Hayou et al. 2024; they advise 16).
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this Euclidean norm.
        evaluations: how often `eval_set` is scored, evenly spaced, the last time after the last step.
        seed: of the data order and of dropout.
        progress: whether a progress bar runs on stderr.
    """

    epochs: int = 1
    batch_size: int = 8
    micro_batch_size: int = 8
    learning_rate: float = 2e-4
    warmup: float = 0.05
    final_learning_rate: float = 0.0
    lora_plus: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    evaluations: int = 4
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_size", "evaluations"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1")
        for name in ("learning_rate", "lora_plus", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0")
        for name in ("warmup", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie between 0 and 1")


@dataclass(frozen=True)
class Step:
    """What one optimizer step did; `eval_loss` is set where the held-out examples were scored after it.

    Losses are in nats a supervised token; `grad_norm` is taken before clipping.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    eval_loss: float | None = None


def token_losses(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Sum of -log p(token) over the supervised tokens, in float32.

    Args:
        logits: (B, T, V); position t predicts token t + 1.
        ids: (B, T); mask: (B, T), 1 on supervised tokens.
    """
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses * mask[:, 1:].flatten()).sum()


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of step 0 <= step < steps: a linear warm-up, then half a cosine (Loshchilov & Hutter 2016, equation 5)."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Trainer:
    """Trains what `requires_grad` in a model: adapters after `add_lora`, or a whole model.

    The loss of an optimizer step is the sum of its supervised tokens' losses divided by their number over the *whole*
    step, so that the split into micro-batches changes nothing but rounding.

    Args:
        model: called as `model(ids)`, (B, T) -> logits (B, T, V), or an object that has them as `.logits`.
        config: `None` takes `TrainConfig()`.
    """

    def __init__(self, model: nn.Module, config: TrainConfig | None = None) -> None:
        self.model, self.config = model, config or TrainConfig()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter requires a gradient, nothing would be trained: call add_lora first")
        self.device = self.parameters[0].device

    def fit(self, train_set: Sequence[Example], eval_set: Sequence[Example] = ()) -> list[Step]:
        """Train; where there is an `eval_set`, end with the parameters that scored best on it.

        Returns:
            One record a step.

        Raises:
            ValueError: there is no example, or one has no supervised token.
            FloatingPointError: a loss is not finite; the message names the step.
        """
        for name, examples in (("train_set", train_set), ("eval_set", eval_set)):
            for number, example in enumerate(examples):
                if not example.supervised:
                    raise ValueError(f"example {number} of {name} has no supervised token: its completion is empty")
        if not train_set:
            raise ValueError("train_set is empty")
        was_training = self.model.training
        with torch.random.fork_rng():  # dropout is seeded, the caller's random state stays as it was
            torch.manual_seed(self.config.seed)
            try:
                return self._run(train_set, eval_set)
            finally:
                self.model.train(was_training)

    def _run(self, train_set: Sequence[Example], eval_set: Sequence[Example]) -> list[Step]:
        config = self.config
        batches = self._batches(len(train_set))
        steps = len(batches)
        every = max(1, steps // config.evaluations)
        groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": 1.0}]
        if config.lora_plus != 1:
            groups = lora_parameter_groups(self.model, learning_rate=1.0, ratio=config.lora_plus)
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        speeds = [group["lr"] for group in groups]  # as multiples of the schedule's rate
        history: list[Step] = []
        best_loss, best = math.inf, [p.detach().clone() for p in self.parameters]
        bar = tqdm(batches, desc="training", unit="step", disable=not config.progress)
        for step, batch in enumerate(bar):
            started = time.perf_counter()
            rate = learning_rate(step, steps, config)
            for group, speed in zip(optimizer.param_groups, speeds):
                group["lr"] = rate * speed
            self.model.train()
            examples = [train_set[i] for i in batch]
            loss = self._accumulate(examples)
            norm = float(nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm))
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise FloatingPointError(
                    f"step {step}: loss {loss}, gradient norm {norm} on examples {batch}: lower the learning rate"
                )
            optimizer.step()
            tokens = sum(len(example.ids) for example in examples)
            seconds = time.perf_counter() - started
            eval_loss = None
            if eval_set and ((step + 1) % every == 0 or step + 1 == steps):
                eval_loss = self.evaluate(eval_set)
                if eval_loss < best_loss:
                    best_loss, best = eval_loss, [p.detach().clone() for p in self.parameters]
            history.append(Step(step, loss, rate, norm, tokens, seconds, eval_loss))
            bar.set_postfix_str(f"loss {loss:.3f}, {tokens / seconds:,.0f} tokens/s")
        if eval_set:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, best):
                    parameter.copy_(value)
        return history

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> float:
        """Mean loss in nats over the supervised tokens of `examples`, dropout off."""
        was_training = self.model.training
        self.model.eval()
        total = sum(float(self._loss_sum(batch)) for batch in self._micro_batches(examples))
        self.model.train(was_training)
        return total / sum(example.supervised for example in examples)

    def _accumulate(self, examples: Sequence[Example]) -> float:
        """Leave in `.grad` the gradient of the step's loss, micro-batch by micro-batch, and return the loss."""
        for parameter in self.parameters:
            parameter.grad = None
        supervised = sum(example.supervised for example in examples)
        total = 0.0
        for batch in self._micro_batches(examples):
            loss = self._loss_sum(batch) / supervised
            loss.backward()
            total += loss.item()
        return total

    def _loss_sum(self, examples: Sequence[Example]) -> Tensor:
        """Forward `examples`, padded on the right, and sum the losses of their supervised tokens."""
        width = max(len(example.ids) for example in examples)
        ids = torch.zeros(len(examples), width, dtype=torch.long)
        mask = torch.zeros(len(examples), width)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.mask)] = torch.tensor(example.mask, dtype=torch.float32)
        ids, mask = ids.to(self.device), mask.to(self.device)
        output = self.model(ids)
        return token_losses(getattr(output, "logits", output), ids, mask)

    def _micro_batches(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """Cut into micro-batches by length, to pad little; the loss does not depend on the split."""
        ordered = sorted(examples, key=lambda example: len(example.ids))
        size = self.config.micro_batch_size
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    def _batches(self, examples: int) -> list[list[int]]:
        """Indices of each optimizer step, every epoch in a new order; the last step of an epoch may be smaller."""
        generator = torch.Generator().manual_seed(self.config.seed)
        batches = []
        for _ in range(self.config.epochs):
            order = torch.randperm(examples, generator=generator).tolist()
            batches += [order[i : i + self.config.batch_size] for i in range(0, examples, self.config.batch_size)]
        return batches
