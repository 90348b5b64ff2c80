"""Our trainer against transformers' Trainer over peft: the same losses and gradient norms, step after step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama_min import load_llama
from lora_lite import Example, LoRAConfig, TrainConfig, Trainer, add_lora
from tests.parity.test_llama_transformers import reference

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS, BATCH = 6, 8


def examples() -> list[Example]:
    """Prompts and completions of very unequal lengths, on which the mean of micro-batch means would differ."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(STEPS * BATCH):
        prompt, completion = (int(torch.randint(1, most, (), generator=draw)) for most in (30, 12))
        ids = torch.randint(0, 96, (prompt + completion,), generator=draw).tolist()
        found.append(Example(ids, [0] * prompt + [1] * completion))
    return found


def collate(rows: list[Example]) -> dict[str, torch.Tensor]:
    width = max(len(row.ids) for row in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    for n, row in enumerate(rows):
        length = len(row.ids)
        ids[n, :length], attention[n, :length] = torch.tensor(row.ids), 1
        labels[n, :length] = torch.where(torch.tensor(row.mask) == 1, ids[n, :length], -100)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def draw_a(model: torch.nn.Module, suffix: str) -> None:
    """The same A in both, layer by layer."""
    draw = torch.Generator().manual_seed(0)
    for _, p in sorted((name.split(".model.")[-1], p) for name, p in model.named_parameters() if name.endswith(suffix)):
        with torch.no_grad():
            p.uniform_(-0.2, 0.2, generator=draw)


def theirs(model: torch.nn.Module, data: list[Example], out: Path) -> list[tuple[float, float]]:
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    draw_a(adapted, "lora_A.default.weight")
    settings = transformers.TrainingArguments(
        str(out),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=BATCH // 2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(adapted, settings, train_dataset=data, data_collator=collate)
    trainer.train()
    return [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("settings", [{"packing": 64}, {"micro_batch_size": 3, "gradient_checkpointing": True}])
def test_losses_and_gradient_norms_agree(settings: dict[str, Any], tmp_path: Path) -> None:
    """Six steps at a large rate, so that a difference in one would show in all that follow.

    Float32 sums of some 100 tokens' losses and gradients differ by at most 100 * 2^-24 = 6e-6 of themselves.
    """
    model, data = reference(tmp_path / "base"), examples()
    ours = load_llama(tmp_path / "base", dtype=torch.float32)
    expected = theirs(model, data, tmp_path / "out")
    add_lora(ours, LoRAConfig(rank=4, alpha=8, targets=tuple(TARGETS)))
    draw_a(ours, "lora_A")
    config = TrainConfig(
        batch_size=BATCH, learning_rate=1e-2, warmup=0.0, final_learning_rate=1.0, progress=False, **settings
    )
    trainer = Trainer(ours, config)
    order = [i for batch in trainer.order(len(data)) for i in batch]
    placed = dict(zip(order, data))
    steps = trainer.fit([placed[i] for i in range(len(data))])
    assert len(expected) == STEPS
    for step, (loss, norm) in zip(steps, expected, strict=True):
        assert step.loss == pytest.approx(loss, rel=1e-5)
        assert step.grad_norm == pytest.approx(norm, rel=1e-5)
