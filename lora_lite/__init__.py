"""Low-rank adapters for any `nn.Module`, in PEFT's file format, and a small trainer for supervised fine-tuning."""

from lora_lite.files import AdapterError, load_adapter, save_adapter
from lora_lite.lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    remove_lora,
    trainable_summary,
)
from lora_lite.trainer import Example, Step, TrainConfig, Trainer

__all__ = [
    "AdapterError",
    "Example",
    "LoRAConfig",
    "LoRALinear",
    "Step",
    "TrainConfig",
    "Trainer",
    "add_lora",
    "load_adapter",
    "lora_disabled",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "remove_lora",
    "save_adapter",
    "trainable_summary",
]
