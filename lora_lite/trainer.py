"""Supervised fine-tuning in one file: the exact loss, packing, the schedule, the loop.

Shapes: B batch, T time, D model width, V vocabulary, n supervised tokens.

What does not teach lies beside it: `data` makes examples from files, `checkpoints` writes files that are whole or not
there, `watch` shows how a run goes, `plan` tells beforehand, `ranks` sums over the processes of a run, `runs` has the
small rest.
"""

from __future__ import annotations

import inspect
import json
import math
import signal
import sys
import threading
import time
import warnings
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_lite.checkpoints import checkpoint_steps, load_newest, save_checkpoint
from lora_lite.lora import adapter_names, adapters_without_gradient, lora_parameter_groups
from lora_lite.ranks import is_spread, join_ranks, shard_base, shard_device
from lora_lite.runs import (
    base_hash,
    blocks,
    checkpointed,
    data_hash,
    evaluating,
    limits,
    random_states_kept,
    return_freed_memory,
    running_statistics,
    seed_step,
    trained_hash,
)
from lora_lite.watch import Watch, draw_curve, peak_memory, read_metrics

__all__ = [
    "Evaluation",
    "Example",
    "Step",
    "TrainConfig",
    "Trainer",
    "cross_entropy",
    "deal",
    "learning_rate",
    "pack",
]

# Settings that change how a step is computed, or what is shown, and not what it computes: a resumed run may change them.
FREE = ("micro_batch_size", "packing", "gradient_checkpointing", "shard", "save_every", "keep", "progress")
LOGITS = 2**24  # how many logits may exist at a time: 64 MB of them in float32
LONG_PASS = 1.0  # seconds from which a pass is followed by handing memory back, which takes milliseconds


@dataclass(frozen=True)
class Example:
    """Token ids, and a mask of equal length that is 1 on the tokens to learn to predict (the completion).

    Attributes:
        ids, mask: (T,) each.
        name: what messages call it, such as the file and line that it comes from.
    """

    ids: Sequence[int]
    mask: Sequence[int]
    name: str = ""

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
        batch_size: examples in one optimizer step, whatever their split into micro-batches and over processes.
        micro_batch_size: examples in one forward pass; smaller needs less memory and gives the same gradients.
        packing: tokens of a row into which several examples are packed, a row a forward pass; None pads instead.
        max_length: tokens that longer examples are cut to; None cuts nothing.
        learning_rate: at the end of the warm-up.
        warmup: share of the steps in which the rate rises from zero.
        final_learning_rate: share of the rate that the cosine ends at.
        lora_plus: how many times as fast B is trained as all else (LoRA+, Hayou et al. 2024; they advise 16).
        weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this Euclidean norm.
        autocast: compute in bfloat16 what PyTorch deems safe, over a float32 model.
        gradient_checkpointing: keep only what goes into each block and compute the rest again in the backward pass.
        shard: with several processes, spread the frozen base over them (FSDP2): for a base that fits no one device.
        evaluations: how often `eval_set` is scored, evenly spaced, the last time after the last step; never twice
            after one step.
        patience: stop after so many evaluations in a row without a new best; None never stops early.
        save_every: steps from one checkpoint to the next, where the run has a folder; each new best has one, too.
        keep: how many of the newest checkpoints are kept; that of the best step is always.
        seed: of the data order and of dropout.
        progress: whether a progress bar runs on stderr.
    """

    epochs: int = 1
    batch_size: int = 8
    micro_batch_size: int = 8
    packing: int | None = None
    max_length: int | None = None
    learning_rate: float = 2e-4
    warmup: float = 0.05
    final_learning_rate: float = 0.0
    lora_plus: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    autocast: bool = False
    gradient_checkpointing: bool = False
    shard: bool = False
    evaluations: int = 4
    patience: int | None = None
    save_every: int = 100
    keep: int = 2
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_size", "evaluations", "save_every", "keep"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1")
        for name, least in (("packing", 2), ("max_length", 2), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name}={value!r} must be None or a whole number of at least {least}")
        for name in ("learning_rate", "lora_plus", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0")
        for name in ("warmup", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie between 0 and 1")


@dataclass(frozen=True)
class Step:
    """What one optimizer step did; `eval_loss` and `eval_accuracy` are set where held-out examples were scored after it.

    Losses are in nats a supervised token; `grad_norm` is taken before clipping; `tokens` are all that the step read and
    `supervised` those that it learnt to predict; `seconds` are without the evaluation; `peak_memory` is in bytes.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised: int
    seconds: float
    peak_memory: int | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores on held-out examples: mean loss in nats a supervised token, and the share of tokens ranked first."""

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss): as unsure as a choice among so many equally likely tokens."""
        return math.exp(min(self.loss, 700.0))


class _CrossEntropy(torch.autograd.Function):
    """`cross_entropy` with its gradient, both a chunk of rows at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, *trained: Tensor) -> tuple[Tensor, Tensor]:
        loss = torch.zeros((), device=hidden.device)
        hits = torch.zeros((), dtype=torch.long, device=hidden.device)
        of_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        of_trained = [torch.zeros_like(p) for p in trained]
        with torch.no_grad():
            size = max(1, LOGITS // max(1, head(hidden[:0]).shape[-1]))  # rows of a chunk
        for done in range(0, len(hidden), size):
            x = hidden[done : done + size].detach().requires_grad_(of_hidden is not None)
            y = targets[done : done + size, None]  # (size, 1)
            with torch.set_grad_enabled(of_hidden is not None or bool(trained)):
                logits = head(x)  # (size, V)
            z = logits.detach().to(torch.float32, copy=True)
            log_norm = z.logsumexp(-1, keepdim=True)
            loss += (log_norm - z.gather(1, y)).sum()
            hits += (z.argmax(-1, keepdim=True) == y).sum()
            if logits.requires_grad:
                # the gradient of -log softmax(z)[y] is softmax(z) - onehot(y)
                z.sub_(log_norm).exp_().scatter_add_(1, y, torch.full_like(log_norm, -1))
                wanted = ([] if of_hidden is None else [x]) + list(trained)
                found = torch.autograd.grad(logits, wanted, z.to(logits.dtype), allow_unused=True)
                if of_hidden is not None:
                    of_hidden[done : done + size] = found[0]
                    found = found[1:]
                for total, gradient in zip(of_trained, found):
                    total += 0 if gradient is None else gradient
        ctx.gradients = (of_hidden, None, None, *of_trained)
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        del ctx.gradients
        return tuple(None if gradient is None else gradient * of_outputs[0] for gradient in gradients)


def cross_entropy(hidden: Tensor, targets: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Sum of -log softmax(head(hidden))[target] over the rows, in float32, and how many targets have the largest logit.

    The (n, V) matrix of logits never exists whole: chunk by chunk the logits, their loss and its gradient softmax - 1 at
    the target are made and thrown away; what stays for the backward pass is the gradient of `hidden`. So a frozen head
    costs two products a row, one forward and one backward, and nothing is computed twice.

    Args:
        hidden: (n, D), what the head reads; with `nn.Identity()` as the head, the logits themselves.
        targets: (n,), token ids.
        head: any module, (m, D) -> (m, V); its parameters that require a gradient get theirs.
    """
    trained = [p for p in head.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    loss, hits = _CrossEntropy.apply(hidden, targets, head, *trained)
    return loss, hits


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of step 0 <= step < steps: a linear warm-up, then half a cosine (Loshchilov & Hutter 2016, equation 5)."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def pack(examples: Sequence[Example], row: int) -> list[list[Example]]:
    """Rows of at most `row` tokens (or one longer example), by best fit decreasing (Johnson 1974).

    The longest first, each into the fullest row that has room for it. At most 11/9 of the fewest rows, and one.
    """
    rows: list[list[Example]] = []
    free: list[tuple[int, int]] = []  # tokens left, and of which row; ascending
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        at = bisect_left(free, (len(example.ids), 0))
        if at == len(free):
            rows.append([])
            left, number = max(row, len(example.ids)), len(rows) - 1
        else:
            left, number = free.pop(at)
        rows[number].append(example)
        insort(free, (left - len(example.ids), number))
    return rows


def deal(examples: Sequence[Example], ranks: int) -> list[list[Example]]:
    """Each example to one rank, so that all have about as many tokens: the longest first, to whoever has the fewest."""
    shares: list[list[Example]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        least = loads.index(min(loads))
        shares[least].append(example)
        loads[least] += len(example.ids)
    return shares


@dataclass
class _State:
    """Where a run is: `step` steps are done, and held-out examples were last scored after `evaluated` of them.

    `waited` counts the evaluations since the best one, which came after `best_step` steps.
    """

    step: int = 0
    evaluated: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    waited: int = 0


class _Stop(Exception):
    """A signal asked the run to end."""


@dataclass(frozen=True)
class _MicroBatch:
    """What one forward pass reads: ids (B, T), positions (B, T) where examples lie end to end, and what it predicts.

    Hidden state number `where[i]`, counted through the flattened (B T), predicts `targets[i]`; both are (n,).
    """

    ids: Tensor
    positions: Tensor | None
    where: Tensor
    targets: Tensor


def _collate(examples: Sequence[Example], packed: bool, device: torch.device) -> _MicroBatch:
    """Lay examples end to end in one row, or pad them on the right to a row each."""
    lengths = [len(example.ids) for example in examples]
    width = sum(lengths) if packed else max(lengths)
    ids = torch.zeros(1 if packed else len(examples), width, dtype=torch.long, device="cpu")
    positions = torch.zeros_like(ids)
    where, start = [], 0
    for example, length in zip(examples, lengths):
        ids.view(-1)[start : start + length] = torch.tensor(example.ids, device="cpu")
        positions.view(-1)[start : start + length] = torch.arange(length, device="cpu")
        where.append(torch.tensor(example.mask[1:], device="cpu").bool().nonzero().flatten() + start)
        start += length if packed else width
    flat = torch.cat(where)
    targets = ids.view(-1)[flat + 1]
    return _MicroBatch(ids.to(device), positions.to(device) if packed else None, flat.to(device), targets.to(device))


class Trainer:
    """Trains what `requires_grad` in a model: adapters after `add_lora`, or a whole model.

    The loss of an optimizer step is the sum of its supervised tokens' losses divided by their number over the *whole*
    step, so that the split into micro-batches changes nothing but rounding.

    A model that has `get_output_embeddings()` (transformers' name for the head) and whose last act is to apply that head
    is run up to it: the head then sees supervised positions alone, a chunk at a time. Whether it is the last act is
    tried on two tokens. Of any other model the logits are taken, of which only supervised positions are looked at.

    Args:
        model: called as `model(ids)`, (B, T) -> logits (B, T, V), or an object that has them as `.logits`. For packing
            it must take `position_ids` (B, T) and begin a new text where they start again, as `llama_min` and
            transformers do.
        config: `None` takes `TrainConfig()`.
        out: a folder for metrics.jsonl, the curve, TensorBoard's files and checkpoints; None writes nothing.

    Raises:
        ValueError: nothing requires a gradient, or something that does is no float32 (or wider).
    """

    def __init__(self, model: nn.Module, config: TrainConfig | None = None, out: str | Path | None = None) -> None:
        self.model, self.config = model, config or TrainConfig()
        self.out = None if out is None else Path(out)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("no parameter requires a gradient, nothing would be trained: call add_lora first")
        for name, p in trained.items():
            if p.dtype.itemsize < 4:
                raise ValueError(f"{name} is trained in {p.dtype}, which rounds small steps away: call .float() first")
        self.names, self.parameters = list(trained), list(trained.values())
        self.device = self.parameters[0].device
        spread_on = shard_device(self.device) if self.config.shard else self.device
        self.ranks = join_ranks(spread_on)
        self._moving = running_statistics(model)
        spread = self.ranks.world > 1 and is_spread(model)  # by an earlier trainer, which knew the base whole
        self._base: str = vars(model)["_base_hash"] if spread else base_hash(model, {**trained, **self._moving})
        self._sharded = spread or (self.config.shard and self.ranks.world > 1)
        if self._sharded:  # before the first pass: no device ever holds all of the base
            self.device = spread_on
            shard_base(model, blocks(model), self.device)
            vars(model)["_base_hash"] = self._base
        self._learnt: dict[str, Tensor] = {**trained, **self._moving}
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._options = {"use_cache": False} if "use_cache" in accepted else {}  # transformers' models fill one else
        # while it trains, wrapped in DDP where there are other ranks
        self._parallel: Callable[..., Any] = self.loss_sum
        self._stop_signal: int = 0  # of the signal that asked the run to end
        self._best: list[Tensor] | None = None  # the parameters that scored best so far
        self.head = self._find_head()

    def fit(self, train_set: Sequence[Example], eval_set: Sequence[Example] = (), resume: bool = False) -> list[Step]:
        """Train; where there is an `eval_set`, end with the parameters that scored best on it.

        Args:
            resume: go on from the newest whole checkpoint in `out` and end with the very bits of a run that was never
                interrupted, given as many processes and threads; begin where there is no checkpoint.

        Returns:
            One record a step.

        Raises:
            ValueError: there is no example, or one has no supervised token; packing mixes examples in this model, or
                padding is seen by it; `out` holds checkpoints and `resume` is not set, or they are of another run.
            FloatingPointError: a loss is not finite; the message names the step and the examples.
            CheckpointError: a checkpoint cannot be written; those before it are whole.
        """
        train_set, eval_set = self.cut(train_set, "train_set"), self.cut(eval_set, "eval_set")
        if not train_set:
            raise ValueError("train_set is empty")
        with ExitStack() as until_the_end:
            until_the_end.enter_context(random_states_kept(self.device))
            until_the_end.callback(self.model.train, self.model.training)
            self.model.train()
            self.check_batches((*train_set, *eval_set))
            self._begin(train_set, eval_set, resume)
            self._parallel = until_the_end.enter_context(self.ranks.data_parallel(self.loss_sum, self.parameters))
            until_the_end.callback(self._watch.close)
            until_the_end.callback(setattr, self, "_stop_signal", 0)
            until_the_end.callback(setattr, self, "_parallel", self.loss_sum)
            if self.config.gradient_checkpointing:
                until_the_end.enter_context(checkpointed(self.model))
            try:
                with self._signals():
                    self._run(train_set, eval_set)
            except _Stop:
                signal.raise_signal(self._stop_signal)  # all is saved: now do what the signal does
                raise SystemExit(128 + self._stop_signal) from None
        return self._history

    def _run(self, train_set: Sequence[Example], eval_set: Sequence[Example]) -> None:
        """Step after step, scored and saved in between, until the end, early or not."""
        config, state, steps = self.config, self._state, len(self._batches)
        scored = {math.ceil(steps * k / config.evaluations) for k in range(1, config.evaluations + 1)}
        try:
            while True:
                improved = False
                if eval_set and state.step in scored and state.evaluated < state.step:
                    improved = self._score(eval_set)
                ended = state.step == steps or (config.patience is not None and state.waited >= config.patience)
                if improved or ended or state.step % config.save_every == 0:
                    self._save()
                if ended:
                    break
                self._step(train_set)
        except _Stop:
            self._save()
            raise
        if self._best is not None:
            with torch.no_grad():
                for learnt, value in zip(self._learnt.values(), self._best):
                    learnt.copy_(value)
        self._draw()
        if self._stop_signal:  # asked after the last step: all is saved
            raise _Stop

    def _step(self, train_set: Sequence[Example]) -> None:
        """One optimizer step."""
        started, config, step = time.perf_counter(), self.config, self._state.step
        seed_step(config.seed, step, self.ranks.rank)
        rate = learning_rate(step, len(self._batches), config)
        for group, speed in zip(self._optimizer.param_groups, self._speeds):
            group["lr"] = rate * speed
        examples = [train_set[i] for i in self._batches[step]]
        moving = [tensor.clone() for tensor in self._moving.values()]
        try:
            loss = self._accumulate(examples)
        except _Stop:  # in the middle of the step, which is done again from its beginning
            for tensor, before in zip(self._moving.values(), moving):
                tensor.copy_(before)
            raise
        norm = float(nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm))
        self._check_finite("gradient norm", norm, [example.name for example in examples])
        if step == min(1, len(self._batches) - 1):  # at step 0 every A waits for its B
            self._warn_of_silence()
        self._optimizer.step()
        self.ranks.copy_from_first(self._moving.values())  # each rank moved its own; they go on alike, as DDP has it
        self._state.step = step + 1
        tokens, supervised = sum(len(example.ids) for example in examples), _supervised(examples)
        seconds = time.perf_counter() - started
        record = Step(step, loss, rate, norm, tokens, supervised, seconds, peak_memory(self.device))
        self._history.append(record)
        line = {name: value for name, value in asdict(record).items() if not name.startswith("eval_")}
        self._watch.step({**line, "tokens_per_second": tokens / seconds})

    def _score(self, eval_set: Sequence[Example]) -> bool:
        """Score the held-out examples, keep the parameters if they are the best so far, and tell whether they are."""
        found, state = self.evaluate(eval_set), self._state
        improved, state.evaluated = found.loss < state.best_loss, state.step
        if improved:
            state.best_loss, state.best_step, state.waited = found.loss, state.step, 0
            self._best = [learnt.detach().clone() for learnt in self._learnt.values()]
        else:
            state.waited += 1
        if self._history:  # not so where the run goes on without the metrics.jsonl that it had
            self._history[-1] = replace(self._history[-1], eval_loss=found.loss, eval_accuracy=found.accuracy)
        line = {"eval_loss": found.loss, "eval_perplexity": found.perplexity, "eval_accuracy": found.accuracy}
        self._watch.write({"step": state.step - 1, **line})
        self._draw()
        return improved

    def evaluate(self, examples: Sequence[Example]) -> Evaluation:
        """Score `examples`, dropout off.

        Raises:
            FloatingPointError: the loss is not finite; the message names the examples.
        """
        loss, hits = 0.0, 0
        suspects: list[str] = []
        with torch.no_grad(), evaluating(self.model):
            for batch, weight in self.passes(examples):
                batch_loss, batch_hits = self.loss_sum(batch)
                loss, hits = loss + weight * batch_loss.item(), hits + weight * int(batch_hits)
                suspects += [] if math.isfinite(batch_loss.item()) else [example.name for example in batch]
                self._heed_signal()
        (loss, right), supervised = self._sum_over_ranks([loss, hits]), _supervised(examples)
        self._check_finite("loss on eval_set", loss, suspects)
        return Evaluation(loss / supervised, right / supervised, supervised)

    def _accumulate(self, examples: Sequence[Example]) -> float:
        """Leave in `.grad` the gradient of the step's loss, micro-batch by micro-batch, and return the loss."""
        for parameter in self.parameters:
            parameter.grad = None
        supervised, total = _supervised(examples), 0.0
        suspects: list[str] = []
        passes = self.passes(examples)
        for number, (batch, weight) in enumerate(passes, 1):
            started = time.perf_counter()
            with self.ranks.averaging(self._parallel, last=number == len(passes)):
                loss = self._parallel(batch)[0] * (weight / supervised)
                if not loss.requires_grad:
                    raise ValueError("the loss depends on no trained parameter: is the adapter active?")
                (loss * self.ranks.world).backward()  # the mean over the ranks is then the sum
            total += loss.item()
            suspects += [] if math.isfinite(loss.item()) else [example.name for example in batch]
            del loss
            if time.perf_counter() - started > LONG_PASS:
                return_freed_memory()
            self._heed_signal()
        (total,) = self._sum_over_ranks([total])
        self._check_finite("loss", total, suspects)
        return total

    def loss_sum(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """The summed loss of the supervised tokens of `examples`, run in one pass, and how many were ranked first."""
        batch = _collate(examples, self.config.packing is not None, self.device)
        with self._precision():
            hidden = self._hidden(batch.ids, batch.positions).flatten(0, 1)  # (B T, D), or (B T, V) without a head
            return cross_entropy(hidden[batch.where], batch.targets, self.head or nn.Identity())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.autocast)

    def _hidden(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """What the head reads, (B, T, D), or the logits (B, T, V) where there is no head to stop at.

        A hook on the head keeps what comes in and hands on no position of it, so that the model's own call of its head
        costs nothing.
        """
        if self.head is None:
            return self._logits(ids, positions)
        caught: list[Tensor] = []

        def catch(_: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            caught.append(arguments[0])
            return (arguments[0][:, :0],)

        hook = self.head.register_forward_pre_hook(catch)
        try:
            self._logits(ids, positions)
        finally:
            hook.remove()
        return caught[0]

    def _logits(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """The model's logits (B, T, V)."""
        options = self._options if positions is None else {**self._options, "position_ids": positions}
        output = self.model(ids, **options)
        logits: Tensor = getattr(output, "logits", output)
        return logits

    @torch.no_grad()
    def _find_head(self) -> nn.Module | None:
        """The model's head, if what it gives for what it reads is what the model returns, to the bit; else None."""
        find = getattr(self.model, "get_output_embeddings", None)
        head = None if find is None else find()
        if not isinstance(head, nn.Module):
            return None
        caught: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
        with evaluating(self.model), self._precision():
            try:
                # two tokens, because the first may be padding, whose embedding is often zero and would hide what comes
                # after the head
                logits = self._logits(torch.tensor([[0, 1]], device=self.device), None)
            finally:
                hook.remove()
            return head if len(caught) == 1 and torch.equal(head(caught[0]), logits) else None

    def check_batches(self, examples: Sequence[Example]) -> None:
        """Raise ValueError where examples that are run together would see each other, or padding, in this model."""
        if self.config.packing is not None:
            self._check_packing()
        elif self.config.micro_batch_size > 1 and len({len(example.ids) for example in examples}) > 1:
            self._check_padding()

    @torch.no_grad()
    def _check_packing(self) -> None:
        """Raise ValueError unless an example's logits are, to the bit, whatever lies before it in its row."""
        if not self._takes_positions:
            name = type(self.model).__name__
            raise ValueError(f"{name}.forward takes no position_ids, so examples cannot be packed: set packing=None")
        positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]], device=self.device)
        # token 0 may be padding, whose embedding is often zero: neither text is of it alone
        texts = [[0, 1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 1, 0, 1, 1]]  # which begin otherwise, and end alike
        rows = torch.tensor(texts, device=self.device)[:, None]
        with evaluating(self.model):
            one, other = (self._logits(row, positions)[:, 4:] for row in rows)
        if not torch.equal(one, other):
            raise ValueError(
                f"attention of {type(self.model).__name__} crosses the examples of a packed row: set packing=None "
                "(transformers' models need attn_implementation 'sdpa', 'eager' or a flash one)"
            )

    @torch.no_grad()
    def _check_padding(self) -> None:
        """Raise ValueError unless an example's logits are, but for rounding, whatever follows it in its row."""
        rows = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], device=self.device)[:, None]
        with evaluating(self.model):
            one, other = (self._logits(row, None)[:, :2].float() for row in rows)
        if (one - other).abs().max() > 1e-2 * one.abs().max():
            raise ValueError(
                f"{type(self.model).__name__} looks ahead, and would see the padding of shorter examples: "
                "set micro_batch_size=1"
            )

    def passes(self, examples: Sequence[Example]) -> list[tuple[list[Example], int]]:
        """What this rank runs of `examples`, a micro-batch a pass, each with its weight.

        The weight is 1, or 0 where a pass only keeps step with ranks that have more: gradients are averaged in the last
        pass of all, and a sharded base is gathered in each.
        """
        shares = [self._micro_batches(share) for share in deal(examples, self.ranks.world)]
        own = [(batch, 1) for batch in shares[self.ranks.rank]]
        most = max(map(len, shares)) if self._sharded else 1
        return own + [(shares[0][0], 0)] * (most - len(own))

    def _micro_batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """What each forward pass reads: packed rows, or examples of like length, to pad little."""
        if self.config.packing is not None:
            return pack(examples, self.config.packing)
        ordered = sorted(examples, key=lambda example: len(example.ids))
        size = self.config.micro_batch_size
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    def order(self, examples: int) -> list[list[int]]:
        """Indices of each optimizer step, every epoch in a new order; the last step of an epoch may be smaller."""
        generator = torch.Generator().manual_seed(self.config.seed)
        batches = []
        for _ in range(self.config.epochs):
            order = torch.randperm(examples, generator=generator, device="cpu").tolist()
            batches += [order[i : i + self.config.batch_size] for i in range(0, examples, self.config.batch_size)]
        return batches

    def cut(self, examples: Sequence[Example], what: str = "examples") -> list[Example]:
        """The examples, named, and cut to `max_length`; how much was cut off is said in a warning.

        Args:
            what: the examples are, in messages.

        Raises:
            ValueError: an example has no supervised token (left), or more or other tokens than the model knows.
        """
        limit, context, vocabulary = self.config.max_length, *limits(self.model)
        kept, long, lost, taught = [], 0, 0, 0
        for number, example in enumerate(examples):
            name = example.name or f"example {number} of {what}"
            short = replace(example, ids=example.ids[:limit], mask=example.mask[:limit], name=name)
            if not example.supervised:
                raise ValueError(f"{name} has no supervised token: its completion is empty")
            if not short.supervised:
                raise ValueError(f"{name} has no supervised token left within max_length={limit}: raise it")
            if context is not None and len(short.ids) > context:
                raise ValueError(f"{name} has {len(short.ids)} tokens, the model's context {context}: set max_length")
            if vocabulary is not None and not 0 <= min(short.ids) <= max(short.ids) < vocabulary:
                raise ValueError(
                    f"{name} has token {max(short.ids)}, the model knows {vocabulary}: another tokenizer's?"
                )
            long += len(short.ids) < len(example.ids)
            lost += len(example.ids) - len(short.ids)
            taught += example.supervised - short.supervised
            kept.append(short)
        if long:
            told = f"{long} of {len(kept)} examples of {what} were cut to {limit} tokens"
            warnings.warn(f"{told}: {lost} tokens lost, {taught} of them supervised", stacklevel=3)
        return kept

    def _make_optimizer(self) -> tuple[torch.optim.AdamW, list[float]]:
        """AdamW, and the rate of each of its groups as a multiple of the schedule's."""
        groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": 1.0}]
        if self.config.lora_plus != 1:
            groups = lora_parameter_groups(self.model, learning_rate=1.0, ratio=self.config.lora_plus)
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay)
        return optimizer, [group["lr"] for group in groups]

    def _begin(self, train_set: Sequence[Example], eval_set: Sequence[Example], resume: bool) -> None:
        """Set up a run at its beginning, or where its newest checkpoint is."""
        self._batches = self.order(len(train_set))
        self._optimizer, self._speeds = self._make_optimizer()
        self._state, self._stop_signal = _State(), 0
        self._best = None
        self._saved: tuple[int, int] | None = None
        settings = {name: value for name, value in asdict(self.config).items() if name not in FREE}
        self._of_run = {
            "settings": settings,
            "data": data_hash(train_set, eval_set),
            "base": self._base,
            "adapters": trained_hash(self.model, self.names),
        }
        first, out = self.ranks.rank == 0, self.out
        found = self._find_checkpoint(out, resume) if first and out is not None else None
        tensors, state, lines = self.ranks.from_first(found or ({}, asdict(self._state), []))
        self._state = _State(**state)
        self._restore(tensors)
        self._history = _records(lines)
        progress = self.config.progress and first
        self._watch = Watch(out if first else None, lines, len(self._batches), self._state.step, progress)

    def _find_checkpoint(self, out: Path, resume: bool) -> tuple[dict[str, Tensor], dict[str, Any], list[Any]] | None:
        """Tensors, state and metrics of the newest checkpoint, if there is one, of this very run."""
        folder = out / "checkpoints"
        if not resume:
            if done := checkpoint_steps(folder):
                raise ValueError(f"{out} holds a run that is at step {done[-1]}: resume it, or give another folder")
            return None
        found = load_newest(folder)
        if found is None:
            return None
        tensors, stored = found
        now = json.loads(json.dumps(self._of_run))
        other = [name for name, value in now["settings"].items() if stored["settings"].get(name) != value]
        other += [f"the {part}" for part in ("data", "base", "adapters") if stored.get(part) != now[part]]
        if other:
            raise ValueError(f"the run in {out} began otherwise: {', '.join(other)} differ; give another folder")
        state = stored["state"]
        self._saved = state["step"], state["evaluated"]
        return tensors, state, read_metrics(out, *self._saved)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        """Put a checkpoint's tensors, by their names in `_save`, where they belong."""
        for name, tensor in tensors.items():
            kind, _, key = name.partition(".")
            if kind == "optimizer":
                part, _, key = key.partition(".")
                parameter = self.parameters[self.names.index(key)]
                where = "cpu" if part == "step" else parameter.device
                self._optimizer.state[parameter][part] = tensor.to(where)
        with torch.no_grad():
            for name, learnt in self._learnt.items():
                if f"parameter.{name}" in tensors:
                    learnt.copy_(tensors[f"parameter.{name}"])
        if any(name.startswith("best.") for name in tensors):
            self._best = [tensors[f"best.{name}"].to(self.device) for name in self._learnt]

    def _save(self) -> None:
        """Write a checkpoint of all that a run is made of; random numbers need none, each step seeds its own."""
        state, saved = self._state, self._saved
        self._saved = state.step, state.evaluated
        if self.out is None or self.ranks.rank or saved == self._saved:
            return
        tensors = {f"parameter.{name}": learnt for name, learnt in self._learnt.items()}
        for name, parameter in zip(self.names, self.parameters):
            for part, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{part}.{name}"] = value
        tensors |= {f"best.{name}": value for name, value in zip(self._learnt, self._best or ())}
        self._watch.sync()
        stored = {**self._of_run, "state": asdict(state)}
        save_checkpoint(self.out / "checkpoints", state.step, tensors, stored, self.config.keep, state.best_step)

    def _draw(self) -> None:
        if self.out is not None and self.ranks.rank == 0 and self._history:
            draw_curve(self._history, self.out / "curve.png")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Inside, where there is a folder to save to, Ctrl-C and SIGTERM end the run at the next place fit for it."""
        before: dict[int, Any] = {}

        def ask(number: int, _: object) -> None:
            self._stop_signal = number
            signal.signal(number, before[number])  # asked again, end at once
            # a handler of the caller's says itself what it does
            if before[number] in (signal.SIG_DFL, signal.default_int_handler):
                print(f"\n{signal.Signals(number).name}: saving, then stopping", file=sys.stderr, flush=True)

        if self.out is not None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for asked, handler in before.items():
                signal.signal(asked, handler)

    def _heed_signal(self) -> None:
        """Between two passes: end, unless other ranks have to be told first."""
        if self._stop_signal and self.ranks.world == 1:
            raise _Stop

    def _sum_over_ranks(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the ranks; whether any was asked to stop goes with them, so that all stop together."""
        asked = [float(self._stop_signal == number) for number in (signal.SIGINT, signal.SIGTERM)]
        *sums, interrupted, terminated = self.ranks.sum([*numbers, *asked], self.device)
        if interrupted or terminated:
            self._stop_signal = int(signal.SIGTERM if terminated else signal.SIGINT)
            raise _Stop
        return sums

    def _check_finite(self, what: str, value: float, suspects: list[str]) -> None:
        """Raise FloatingPointError where a number that all ranks agree on is not finite."""
        if not math.isfinite(value):
            names = list(dict.fromkeys(self.ranks.gather(suspects)))
            on = f" on {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise FloatingPointError(
                f"step {self._state.step}: {what} {value}{on if names else ''}: look at these, or lower the learning rate"
            )

    def _warn_of_silence(self) -> None:
        """Name what is trained and received no gradient."""
        if adapter_names(self.model):
            silent = adapters_without_gradient(self.model)
        else:
            silent = [name for name, p in zip(self.names, self.parameters) if p.grad is None]
        if silent and self.ranks.rank == 0:
            more = f" and {len(silent) - 8} more" if len(silent) > 8 else ""
            told = f"after {self._state.step + 1} steps these receive no gradient and learn nothing"
            warnings.warn(f"{told}: {', '.join(silent[:8])}{more}", stacklevel=2)


def _supervised(examples: Sequence[Example]) -> int:
    return sum(example.supervised for example in examples)


def _records(lines: Sequence[dict[str, Any]]) -> list[Step]:
    """The steps that lines of metrics.jsonl tell of; the scores of an evaluation follow their step."""
    names = {field.name for field in fields(Step)}
    records: list[Step] = []
    for line in lines:
        known = {name: value for name, value in line.items() if name in names}
        if "loss" in line:
            records.append(Step(**known))
        elif records:
            records[-1] = replace(records[-1], **known)
    return records
