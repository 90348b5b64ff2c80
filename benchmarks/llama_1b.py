"""A folder with random bfloat16 weights in the shape of Llama 3.2 1B (1.24 billion parameters), made once: 2.5 GB.

python -m benchmarks.llama_1b
"""

from __future__ import annotations

from pathlib import Path

import torch

from llama_min import Llama, LlamaConfig, RopeScaling, save_llama

FOLDER = Path(__file__).parent / "weights" / "llama-1b"
CONFIG = LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    rope_scaling=RopeScaling(factor=32.0),
    tie_word_embeddings=True,
    bos_token_id=128000,
    eos_token_ids=(128001,),
)


def folder() -> Path:
    """Where the weights lie; draws and writes them where they do not."""
    if not (FOLDER / "config.json").is_file():  # save_llama writes it last
        with torch.device("meta"):
            model = Llama(CONFIG).to(torch.bfloat16)
        model.to_empty(device="cpu")
        model.lm_head.weight = model.model.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(1.0) if "norm" in name else parameter.normal_(std=0.02, generator=generator)
        save_llama(model, FOLDER)
    return FOLDER


if __name__ == "__main__":
    print(folder())
