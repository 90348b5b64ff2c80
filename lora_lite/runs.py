"""What a run needs around its loop: the model's parts and limits, its modes, random states, and hashes to know it by."""

from __future__ import annotations

import ctypes
import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = [
    "base_hash",
    "blocks",
    "checkpointed",
    "data_hash",
    "evaluating",
    "free_at_once",
    "limits",
    "random_states_kept",
    "return_freed_memory",
    "running_statistics",
    "seed_step",
    "trained_hash",
]

M_MMAP_THRESHOLD = -3  # in glibc's malloc.h


class Encoded(Protocol):
    """What is hashed of an example."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def mask(self) -> Sequence[int]: ...


def base_hash(model: nn.Module, trained: Collection[str]) -> str:
    """sha256 of names, shapes and a few numbers of all that is not trained."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in trained and not hasattr(tensor, "full_tensor"):  # one that is spread over processes
            # a copy: FSDP could not free a parameter whose memory numpy has seen
            few = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)].cpu().clone()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(few.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def trained_hash(model: nn.Module, trained: Sequence[str]) -> str:
    """sha256 of names and shapes of all that is trained, and of what its modules say of themselves, as scale and dropout."""
    digest = hashlib.sha256()
    for name in trained:
        said = model.get_submodule(name.rpartition(".")[0]).extra_repr()
        digest.update(f"{name} {tuple(model.get_parameter(name).shape)} {said}".encode())
    return digest.hexdigest()


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a pass in training changes by itself: those of batch norms (Ioffe & Szegedy 2015), by name."""
    moving = ("running_mean", "running_var", "num_batches_tracked")
    return {name: buffer for name, buffer in model.named_buffers() if name.rpartition(".")[2] in moving}


def data_hash(*sets: Sequence[Encoded]) -> str:
    """sha256 of the ids and masks of all examples, in order."""
    digest = hashlib.sha256()
    for examples in sets:
        digest.update(f"{len(examples)} examples".encode())
        for example in examples:
            digest.update(np.array([example.ids, example.mask], dtype=np.int64).tobytes())
    return digest.hexdigest()


def limits(model: nn.Module) -> tuple[int | None, int | None]:
    """How many positions and how many tokens the model knows, as far as its config says so."""
    config = getattr(model, "config", None)
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "vocab_size"))
    context, vocabulary = (number if isinstance(number, int) else None for number in found)
    return context, vocabulary


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that are stacked: of all `nn.ModuleList`s the one with the most parameters, the outermost such."""
    stacks: list[nn.ModuleList] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no nn.ModuleList of blocks")
    sizes = [sum(p.numel() for p in stack.parameters()) for stack in stacks]
    return list(stacks[sizes.index(max(sizes))])


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Inside, each block keeps its input alone and is run again in the backward pass (Chen et al. 2016)."""
    before = {block: block.forward for block in blocks(model)}
    for block, forward in before.items():
        # non-reentrant: an input that needs no gradient, as behind a frozen embedding, does not stop the adapters' own
        block.forward = partial(checkpoint, forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in before.items():
            del block.forward  # what lay over the class's own
            if block.forward != forward:
                block.forward = forward


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, dropout is off; each module then goes on in its own mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed what a model may draw from, anew at each step, so that a step draws the same wherever a run begins."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:4], "little")
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Afterwards the caller's random states are what they were."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)


def return_freed_memory() -> None:
    """Hand freed memory back to the system where the C library is glibc; nothing elsewhere.

    glibc keeps what is freed, and activations of the next length do not fit into the gaps: its heap grows pass by pass.
    """
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def free_at_once() -> None:
    """From now on blocks of a megabyte and more go back to the system when they are freed, where it is glibc's to say.

    glibc keeps ever larger blocks in its heap instead: of a base that is gathered block by block, in the end all of it.
    """
    option = _of_c_library("mallopt")
    if option is not None:
        option(M_MMAP_THRESHOLD, 2**20)


@cache
def _of_c_library(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library, or none to ask
        return None
    return found
