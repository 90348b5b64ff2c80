"""The processes of one run: who they are, sums over them, and a frozen base that is spread over them.

`torchrun` tells each process its rank in environment variables. The processes hold the same trained parameters and read
different examples; after each step's backward pass their gradients are summed, so that all take the same step.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lora_lite.runs import free_at_once, return_freed_memory

__all__ = ["Ranks", "is_spread", "join_ranks", "shard_base", "shard_device"]


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world` of them, and what they do together; alone, all of it does nothing."""

    rank: int = 0
    world: int = 1

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Leave in each `.grad` the sum over all ranks, in float32; None stays None where every rank has none."""
        if self.world == 1:
            return
        have = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device).float()
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        together = torch.cat([have, *flat])
        dist.all_reduce(together)
        have, *summed = together.split([len(parameters), *(p.numel() for p in parameters)])
        for p, some, gradient in zip(parameters, have.tolist(), summed):
            p.grad = gradient.view_as(p).to(p.dtype) if some else None

    def sum(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Each of `numbers`, summed over the ranks in float64."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return [float(number) for number in total]

    def gather(self, things: list[Any]) -> list[Any]:
        """The lists of all ranks, joined."""
        if self.world == 1:
            return things
        lists: list[list[Any]] = [[] for _ in range(self.world)]
        dist.all_gather_object(lists, things)
        return [thing for one in lists for thing in one]

    def from_first(self, thing: Any) -> Any:
        """What rank 0 passes in, on every rank; the others' own is ignored."""
        if self.world == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box)
        return box[0]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor by rank 0's."""
        if self.world > 1:
            with torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)


def join_ranks(device: torch.device) -> Ranks:
    """This process among those that `torchrun` started; the only one where nothing did.

    Args:
        device: where what is summed over the ranks lies.
    """
    if not dist.is_available():
        return Ranks()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


def shard_device(device: torch.device) -> torch.device:
    """Where a spread base lies: on this process's GPU where there is one, whatever holds the model now."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else device


def is_spread(model: nn.Module) -> bool:
    """Whether `shard_base` has been there."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shard_base(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Spread the frozen parameters over the ranks (FSDP2), each block's gathered only while it is computed.

    Block by block the parameters move to `device`, each rank its part, so that no device ever holds all of them. What is
    trained stays whole on every rank: adapters are small, and so are saved and stepped as in one process.

    Raises:
        ValueError: nothing is frozen, so that nothing could be spread.
    """
    from torch.distributed.fsdp import fully_shard

    if is_spread(model):
        return
    if not any(not p.requires_grad for p in model.parameters()):
        raise ValueError(
            "shard=True spreads the frozen base over the ranks, and nothing is frozen: call add_lora first"
        )
    if device.type == "cpu":
        free_at_once()
    for block in blocks:
        fully_shard(block, ignored_params={p for p in block.parameters() if p.requires_grad})
    trained = {p for p in model.parameters() if p.requires_grad}
    fully_shard(model, ignored_params=trained, reshard_after_forward=False)  # the head is used after the forward pass
    for p in trained:
        p.data = p.data.to(device)
    return_freed_memory()
