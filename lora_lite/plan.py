"""What a run will do, told before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lora_lite.lora import trainable_summary
from lora_lite.runs import blocks, evaluating, random_states_kept
from lora_lite.trainer import LOGITS, Example, Trainer

__all__ = ["plan"]


def plan(trainer: Trainer, train_set: Sequence[Example], eval_set: Sequence[Example] = ()) -> str:
    """What `trainer.fit` would do, in four lines: what is trained, on how much, in how many steps, with what memory.

    The memory of activations is that of up to 64 tokens of the first example, run once and scaled up. What the
    interpreter with its libraries takes is not counted.

    Raises:
        ValueError: as `trainer.fit` raises it.
    """
    config, model, ranks = trainer.config, trainer.model, trainer.ranks.world
    train_set, eval_set = trainer.cut(train_set, "train_set"), trainer.cut(eval_set, "eval_set")
    if not train_set:
        raise ValueError("train_set is empty")
    trainer.check_batches((*train_set, *eval_set))
    batches = trainer.order(len(train_set))
    passes = [examples for batch in batches for examples, _ in trainer.passes([train_set[i] for i in batch])]
    sizes = [_read_tokens(examples, config.packing is not None) for examples in passes]
    tokens, supervised = sum(len(e.ids) for e in train_set), sum(e.supervised for e in train_set)
    padding = sum(sizes) / sum(len(e.ids) for examples in passes for e in examples) - 1
    how = f"{padding:.1%} padding" if config.packing is None else f"packed into rows of {config.packing}"

    everything = (*model.parameters(), *model.buffers())
    here = [t.to_local() if hasattr(t, "to_local") else t for t in everything]  # of a spread base this process's part
    weights = sum(t.numel() * t.element_size() for t in here)
    copies = 4 if eval_set else 3  # the gradient, AdamW's two means, and the best so far
    trained = copies * sum(p.numel() * p.element_size() for p in trainer.parameters)
    taught = [(size, sum(e.supervised for e in examples)) for size, examples in zip(sizes, passes)]
    with evaluating(model), random_states_kept(trainer.device):  # telling what will be done changes nothing of it
        activations = max(sizes) * _bytes_a_token(trainer, train_set[0])
        logits = _logit_bytes(trainer, taught)
    total = weights + trained + activations + logits
    where = "supervised positions alone" if trainer.head is not None else "all positions (the head is not the last act)"
    lines = (
        f"{trainable_summary(model)}; logits at {where}",
        f"{len(train_set):,} examples, {tokens:,} tokens, {supervised:,} supervised, {how}; {len(eval_set):,} held out",
        f"{len(batches):,} steps: {config.epochs} epochs, {config.batch_size} examples a step, {ranks} processes, up to "
        + f"{max(sizes):,} tokens a pass",
        f"about {total / 1e6:,.1f} MB: weights {weights / 1e6:,.1f}, gradients and optimizer {trained / 1e6:,.1f}, "
        + f"activations {activations / 1e6:,.1f}, logits {logits / 1e6:,.1f}; and the interpreter",
    )
    return "\n".join(lines)


def _read_tokens(examples: Sequence[Example], packed: bool) -> int:
    """How many tokens a pass over `examples` reads, padding included."""
    lengths = [len(example.ids) for example in examples]
    return sum(lengths) if packed else len(lengths) * max(lengths)


@torch.no_grad()
def _logit_bytes(trainer: Trainer, passes: Sequence[tuple[int, int]]) -> int:
    """Of the logits that exist at a time in the largest of the passes, each given by its tokens and supervised tokens.

    Behind a head they are a chunk, in float32 and in the model's dtype with its gradient. Without one there are also all
    logits of the pass and the supervised ones, each with its gradient.
    """
    hidden = trainer._hidden(torch.zeros(1, 1, dtype=torch.long, device=trainer.device), None)[0]  # (1, D or V)
    vocabulary = hidden.shape[-1] if trainer.head is None else trainer.head(hidden[:0]).shape[-1]
    width = hidden.element_size()
    rows = min(max(supervised for _, supervised in passes), max(1, LOGITS // vocabulary))
    whole = 0 if trainer.head is not None else 2 * max(map(sum, passes))
    return vocabulary * (rows * (4 + 2 * width) + whole * width)


def _bytes_a_token(trainer: Trainer, example: Example) -> float:
    """What the graph of a forward pass keeps for the backward pass, a token."""
    few = replace(example, ids=example.ids[:64], mask=[1] * len(example.ids[:64]))
    model = trainer.model
    frozen = [t for t in (*model.parameters(), *model.buffers()) if not hasattr(t, "to_local")]
    weights = {t.untyped_storage().data_ptr() for t in frozen}
    gathered = {tuple(p.shape) for p in model.parameters() if hasattr(p, "to_local")}  # blocks of a spread base
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        shape = tuple(tensor.shape)
        known = shape in gathered or shape[::-1] in gathered
        if tensor.untyped_storage().data_ptr() not in weights and not known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = trainer.loss_sum([few])[0]  # alive until all is counted, so that no place is used twice
    total = sum(kept.values()) / len(few.ids)
    del loss
    if not trainer.config.gradient_checkpointing:
        return total
    stacked = len(blocks(model))  # the inputs of all, float32 at the most, and the inside of one
    return total / stacked + stacked * 4 * getattr(getattr(model, "config", None), "hidden_size", 0)
