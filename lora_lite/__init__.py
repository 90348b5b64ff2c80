"""Low-rank adapters for any `nn.Module`, in PEFT's file format, and a small trainer for supervised fine-tuning."""

from lora_lite import _interrupt as _interrupt  # first: it is for the time in which the others are imported
from lora_lite.arithmetic import Merged, combine_adapters, correct_quantization, merge_lora, unmerge_lora
from lora_lite.checkpoints import CheckpointError
from lora_lite.data import DataError, encode_row, encode_rows, read_rows
from lora_lite.files import AdapterError, load_adapter, save_adapter, swap_adapter
from lora_lite.layers import LoRALinear
from lora_lite.lora import (
    LoRAConfig,
    active_adapters,
    adapter_names,
    adapters_without_gradient,
    add_lora,
    delete_adapter,
    lora_disabled,
    lora_layers,
    lora_parameter_groups,
    lora_parameters,
    lora_rows,
    remove_lora,
    set_adapter,
    trainable_summary,
)
from lora_lite.plan import plan
from lora_lite.starts import loftq, low_rank_correction
from lora_lite.trainer import Evaluation, Example, Step, TrainConfig, Trainer

__all__ = [
    "AdapterError",
    "CheckpointError",
    "DataError",
    "Evaluation",
    "Example",
    "LoRAConfig",
    "LoRALinear",
    "Merged",
    "Step",
    "TrainConfig",
    "Trainer",
    "active_adapters",
    "adapter_names",
    "adapters_without_gradient",
    "add_lora",
    "combine_adapters",
    "correct_quantization",
    "delete_adapter",
    "encode_row",
    "encode_rows",
    "load_adapter",
    "loftq",
    "lora_disabled",
    "lora_layers",
    "lora_parameter_groups",
    "lora_parameters",
    "lora_rows",
    "low_rank_correction",
    "merge_lora",
    "plan",
    "read_rows",
    "remove_lora",
    "save_adapter",
    "set_adapter",
    "swap_adapter",
    "trainable_summary",
    "unmerge_lora",
]
