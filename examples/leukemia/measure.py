"""What quantization is for: bytes on disk and milliseconds, of one model in float32, bfloat16 and int8."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from examples.leukemia.folders import copy_tokenizer
from llama_min import Llama, save_llama
from quant_lite import QuantConfig, quantize_

__all__ = ["inference_times", "measure", "weight_bytes"]


def measure(merged: Llama, int8: Llama, base: Path, out: Path) -> dict[str, Any]:
    """Sizes and times for metrics.json, of the models in out/merged and out/int8 and of a bfloat16 copy.

    The copy is written to out/bfloat16, with the tokenizer of `base`, unless the merged model is bfloat16 already: then
    there is no float32 model to measure. Its products run by the C kernels: PyTorch's own of one row are slower.
    """
    dtype = str(next(merged.parameters()).dtype).removeprefix("torch.")
    folders = {"base": base, "adapter": out / "adapter", dtype: out / "merged"}
    half = copy.deepcopy(merged).to(torch.bfloat16)
    if dtype != "bfloat16":
        folders["bfloat16"] = out / "bfloat16"
        save_llama(half, out / "bfloat16")
        copy_tokenizer(base, out / "bfloat16")
    quantize_(half, QuantConfig("bfloat16"))
    length = min(128, merged.config.max_position_embeddings // 2)
    times = inference_times({dtype: merged, "bfloat16": half, "int8": int8}, length, new=16, rounds=7)
    sizes = weight_bytes(folders | {"int8": out / "int8"})
    return {"size_bytes": sizes, "prompt_tokens": length, "inference": times}


def weight_bytes(folders: Mapping[str, Path]) -> dict[str, int]:
    """Bytes of the weight files in each folder."""
    return {name: sum(path.stat().st_size for path in folder.glob("*.safetensors")) for name, folder in folders.items()}


@torch.inference_mode()
def inference_times(models: Mapping[str, Llama], length: int, new: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds to read a prompt of `length` tokens and to write one of `new` more, the models in turns."""
    samples: dict[str, dict[str, list[float]]] = {
        name: {"prefill_ms": [], "decode_ms_per_token": []} for name in models
    }
    for turn in tqdm(range(rounds + 1), desc="timing", unit=" round", delay=1):
        for name, model in models.items():
            prompt = torch.arange(length)[None] % model.config.vocab_size
            cache = model.new_cache(1, length + new)
            started = time.perf_counter()
            token = model(prompt, cache)[:, -1:].argmax(-1)
            read = time.perf_counter()
            for _ in range(new):
                token = model(token, cache)[:, -1:].argmax(-1)
            written = time.perf_counter()
            if turn:  # the first turn warms up
                samples[name]["prefill_ms"].append(1000 * (read - started))
                samples[name]["decode_ms_per_token"].append(1000 * (written - read) / new)
    return {name: {k: statistics.median(v) for k, v in times.items()} for name, times in samples.items()}
