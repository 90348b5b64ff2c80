"""Adapters between here and peft, in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_min import load_llama
from lora_lite import LoRAConfig, add_lora, load_adapter, lora_parameters, save_adapter
from tests.lora_lite.test_lora import filled
from tests.parity.test_llama_transformers import reference, tokens

peft = pytest.importorskip("peft")

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")


@torch.no_grad()
def assert_equal_logits(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Both add the same three products; transformers and peft may order the sums otherwise."""
    output = theirs(tokens(40)).logits
    torch.testing.assert_close(ours(tokens(40)), output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [TARGETS, (r"layers\.[02]\.self_attn\.q_proj",)])
def test_ours_in_peft(tmp_path: Path, targets: tuple[str, ...]) -> None:
    theirs = reference(tmp_path / "base")
    ours = load_llama(tmp_path / "base", torch.float32)
    before = ours(tokens(40))
    add_lora(ours, LoRAConfig(rank=4, alpha=12.0, targets=targets))
    save_adapter(filled(ours), tmp_path / "adapter")
    assert (ours(tokens(40)) - before).abs().max() > 0.1  # it does something
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    assert_equal_logits(ours, loaded)


def test_theirs_here(tmp_path: Path) -> None:
    theirs = reference(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=list(TARGETS), init_lora_weights=False)
    adapted = peft.get_peft_model(theirs, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load_llama(tmp_path / "base", torch.float32)
    names = load_adapter(ours, tmp_path / "adapter")
    assert len(names) == 3 * len(TARGETS)
    assert_equal_logits(ours, adapted)
    ours_count = sum(p.numel() for p in lora_parameters(ours))
    assert ours_count == sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)


def test_on_a_hugging_face_model(tmp_path: Path) -> None:
    """`add_lora` and `save_adapter` work on transformers' own model too."""
    theirs = reference(tmp_path / "base")
    add_lora(theirs, LoRAConfig(targets=TARGETS))
    filled(theirs)
    save_adapter(theirs, tmp_path / "adapter")
    ours = load_llama(tmp_path / "base", torch.float32)
    load_adapter(ours, tmp_path / "adapter")
    assert_equal_logits(ours, theirs)
