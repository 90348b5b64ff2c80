"""Adapter folders: round trip, strictness, and what is refused by name. Parity with peft is in tests/parity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama_min import Llama
from lora_lite import AdapterError, LoRAConfig, add_lora, load_adapter, lora_layers, save_adapter
from tests.llama_min.test_model import SMALL
from tests.lora_lite.test_lora import IDS, filled


def base() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = base()
    add_lora(model, LoRAConfig(rank=3, alpha=7.5, targets=("q_proj", "down_proj")))
    save_adapter(filled(model), tmp_path / "adapter", base_model="a/b")
    return tmp_path / "adapter"


def test_round_trip(folder: Path) -> None:
    model, original = base(), base()
    add_lora(original, LoRAConfig(rank=3, alpha=7.5, targets=("q_proj", "down_proj")))
    names = load_adapter(model, folder)
    assert sorted(names) == sorted(lora_layers(original))
    assert torch.equal(model(IDS), filled(original)(IDS))
    assert not any(p.requires_grad for p in model.parameters())
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (3, 7.5, ["down_proj", "q_proj"])
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_trainable_on_request(folder: Path) -> None:
    model = base()
    load_adapter(model, folder, trainable=True)
    assert {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_part_of_the_layers_is_named_in_full(tmp_path: Path) -> None:
    model = base()
    add_lora(model, LoRAConfig(targets=(r"layers\.1\.self_attn\.q_proj",)))
    save_adapter(model, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["model.layers.1.self_attn.q_proj"]


def test_every_problem_is_in_one_error_and_the_model_is_unchanged(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    prefix = "base_model.model.model.layers.0"
    del tensors[f"{prefix}.self_attn.q_proj.lora_B.weight"]
    tensors[f"{prefix}.mlp.down_proj.lora_A.weight"] = torch.zeros(3, 5)
    tensors[f"{prefix}.mlp.experts.lora_A.weight"] = torch.zeros(3, 5)
    tensors["something.else"] = torch.zeros(1)
    save_file(tensors, path)
    model = base()
    before = model.state_dict().keys()
    with pytest.raises(AdapterError) as caught:
        load_adapter(model, folder)
    for words in (
        f"missing {prefix}.self_attn.q_proj.lora_B.weight",
        f"{prefix}.mlp.down_proj.lora_A.weight has shape (3, 5), needed is (3, 48)",
        "the model has no linear layer model.layers.0.mlp.experts",
        "unexpected key something.else",
    ):
        assert words in str(caught.value)
    assert model.state_dict().keys() == before and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern="),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"r": None}, "r=None"),
    ],
)
def test_unknown_features_are_refused(folder: Path, fields: dict, words: str) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(AdapterError, match=words):
        load_adapter(base(), folder)


def test_missing_and_truncated_files(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(AdapterError, match="is not a whole safetensors file"):
        load_adapter(base(), folder)
    path.unlink()
    with pytest.raises(AdapterError, match="adapter_model.safetensors does not exist"):
        load_adapter(base(), folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(AdapterError, match="cannot be read as JSON"):
        load_adapter(base(), folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="adapter_config.json does not exist"):
        load_adapter(base(), folder)


def test_nothing_empty_or_broken_is_saved(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter"):
        save_adapter(base(), tmp_path / "empty")
    model = base()
    add_lora(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.lora_A[0, 0] = float("nan")
    with pytest.raises(AdapterError, match=r"layers.1.self_attn.k_proj.lora_A.weight holds NaN"):
        save_adapter(model, tmp_path / "broken")
    assert not list(tmp_path.iterdir())
