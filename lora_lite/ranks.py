"""The processes of one run: who they are, sums over them, and a frozen base that is spread over them.

`torchrun` tells each process its rank in environment variables. The processes hold the same trained parameters and read
different examples; in each step's last backward pass their gradients are averaged, so that all take the same step.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lora_lite.runs import free_at_once, return_freed_memory

__all__ = ["Ranks", "is_spread", "join_ranks", "shard_base", "shard_device"]

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world` of them, and what they do together; alone, all of it does nothing."""

    rank: int = 0
    world: int = 1

    @contextmanager
    def data_parallel(self, forward: Forward, parameters: Sequence[nn.Parameter]) -> Iterator[Forward]:
        """`forward`, wrapped in DDP (Li et al. 2020): its backward pass leaves in each `.grad` the mean over the ranks.

        On entry the parameters become rank 0's. A `.grad` stays None where no rank has one. Alone it is `forward` itself.
        """
        if self.world == 1:
            yield forward
            return
        # of its own: ranks may reduce gradients and gather a spread base in different orders
        group = dist.new_group()
        try:
            yield DistributedDataParallel(
                _Forward(forward, parameters), process_group=group, find_unused_parameters=True
            )
        finally:
            dist.destroy_process_group(group)

    def averaging(self, forward: Forward, last: bool) -> AbstractContextManager[None]:
        """Inside, a pass through what `data_parallel` gave averages gradients if it is the step's last, else adds to them."""
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) and not last else nullcontext()

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

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor by rank 0's."""
        if self.world > 1:
            with torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)


class _Forward(nn.Module):
    """A function and the parameters that it reads, as a module, which is what DDP wraps."""

    def __init__(self, forward: Forward, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.run, self.parameters_read = forward, nn.ParameterList(parameters)
        self.unread = nn.Parameter(parameters[0].new_zeros(()))  # DDP, told to look for such, warns where none is

    def forward(self, *arguments: Any) -> Any:
        return self.run(*arguments)


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
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    if not frozen:
        raise ValueError(
            "shard=True spreads the frozen base over the ranks, and nothing is frozen: call add_lora first"
        )
    whole = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if whole > frozen and os.environ.get("RANK", "0") == "0":
        told = f"shard=True spreads {frozen / 1e6:,.1f} MB of frozen parameters over the ranks"
        warnings.warn(
            f"{told}; {whole / 1e6:,.1f} MB of buffers, such as the weights of int8 layers, stay whole on each: "
            "a base that fits no one device must be one of parameters (bfloat16)",
            stacklevel=3,
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
