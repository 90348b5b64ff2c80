"""One product for q, k, v and one for gate, up: the same sums in fewer calls, for a model that only writes text.

q_proj (H C, D)                                     gate_proj (F, D)
k_proj (K C, D)   ->  qkv_proj ((H + 2K) C, D)      up_proj   (F, D)   ->  gate_up_proj (2F, D)
v_proj (K C, D)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from llama_min.config import LlamaConfig
from llama_min.model import Llama

__all__ = ["stack_products", "unstack_products", "unstacked"]


def stack_products(model: Llama) -> None:
    """Replace q_proj, k_proj, v_proj by one `qkv_proj` and gate_proj, up_proj by one `gate_up_proj`, in place.

    Decoding gains the time of the calls it saves. The weights are copied, a layer at a time. Load and merge adapters
    before, for they name the single layers; quantize after. `save_llama` writes the single layers all the same.

    Raises:
        ValueError: a layer is stacked already or is no plain `nn.Linear`; nothing is changed then.
    """
    places = list(_places(model))
    for path, parent, _, parts in places:
        _refuse_others(path, parent, parts)
    for _, parent, stacked, parts in places:
        linears = [parent.get_submodule(part) for part in parts]
        for part in parts:
            delattr(parent, part)
        weight = _joined([linear.get_parameter("weight").detach() for linear in linears])
        has_bias = isinstance(linears[0].bias, nn.Parameter)
        bias = _joined([linear.get_parameter("bias").detach() for linear in linears]) if has_bias else None
        setattr(parent, stacked, _linear(weight, bias))


def unstack_products(model: Llama) -> None:
    """Put the single layers back in place of the stacked ones, with the very same weights.

    Raises:
        ValueError: the products are not stacked, or no longer plain `nn.Linear` layers; nothing is changed then.
    """
    places = list(_places(model))
    for path, parent, stacked, _ in places:
        _refuse_others(path, parent, {stacked: 0})
    for _, parent, stacked, parts in places:
        whole = parent.get_submodule(stacked).state_dict()
        setattr(parent, stacked, None)
        split = {kind: tensor.split(list(parts.values())) for kind, tensor in whole.items()}
        for number, part in enumerate(parts):
            bias = split["bias"][number].clone() if "bias" in split else None
            setattr(parent, part, _linear(split["weight"][number].clone(), bias))


def unstacked(state: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """A state dict of `Llama(config)` with the single layers' names, from one with or without stacked products."""
    stacks = _stacks(config)
    result = {}
    for name, tensor in state.items():
        parent, layer, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", name)
        if layer in stacks:
            rows = tensor.split(list(stacks[layer].values()))
            result.update({f"{parent}.{part}.{kind}": row.clone() for part, row in zip(stacks[layer], rows)})
        else:
            result[name] = tensor
    return result


def _stacks(config: LlamaConfig) -> dict[str, dict[str, int]]:
    """The stacked layers: of which parts, with how many rows each."""
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size},
    }


def _places(model: Llama) -> Iterator[tuple[str, nn.Module, str, dict[str, int]]]:
    """Where products are stacked: path and module of the parent, name of the stack, its parts."""
    for number, layer in enumerate(model.model.layers):
        for (stacked, parts), parent in zip(_stacks(model.config).items(), ("self_attn", "mlp")):
            yield f"model.layers.{number}.{parent}", layer.get_submodule(parent), stacked, parts


def _refuse_others(path: str, parent: nn.Module, names: dict[str, int]) -> None:
    for name in names:
        kind = type(getattr(parent, name, None))
        if kind is not nn.Linear:
            raise ValueError(
                f"{path}.{name} is {kind.__name__}, not Linear: stack once, after merging adapters and before "
                "quantizing, and unstack only what is stacked"
            )


def _joined(tensors: list[Tensor]) -> Tensor:
    """The tensors, one below the other."""
    if not tensors[0].is_meta:
        return torch.cat(tensors)
    # PyTorch would import its compiler to join what holds no numbers: 70 MB
    return tensors[0].new_empty(sum(len(tensor) for tensor in tensors), *tensors[0].shape[1:])


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear.eval()
