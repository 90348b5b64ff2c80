"""Adapter folders: round trip, strictness, and what is refused by name. Parity with peft is in tests/parity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llama_min import Llama
from lora_lite import (
    AdapterError,
    LoRAConfig,
    add_lora,
    files,
    load_adapter,
    lora_layers,
    lora_parameters,
    merge_lora,
    save_adapter,
    set_adapter,
    swap_adapter,
)
from quant_lite import quantize_
from tests.llama_min.test_model import SMALL
from tests.lora_lite.test_lora import IDS, filled


def base() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


def base_of(state: torch.Tensor) -> Llama:
    """The same model, with the random state as it was."""
    model = base()
    torch.set_rng_state(state)
    return model


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


def test_equal_adapters_are_equal_files(tmp_path: Path) -> None:
    """Eight times: that chance gives one order of two words eight times in a row happens once in 128."""
    model = base()
    add_lora(model, LoRAConfig(rank=2))
    for time in "abcdefgh":
        save_adapter(model, tmp_path / time)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert len({(tmp_path / time / file).read_bytes() for time in "abcdefgh"}) == 1


def test_trainable_on_request(folder: Path) -> None:
    model = base()
    load_adapter(model, folder, trainable=True)
    assert {n.rsplit(".", 1)[1] for n, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_part_of_the_layers_is_named_in_full(tmp_path: Path) -> None:
    model = base()
    add_lora(model, LoRAConfig(targets=("layers.1.self_attn.q_proj",)))
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
        ({"use_qalora": True}, "use_qalora=True is not supported"),
        ({"lora_bias": True}, "lora_bias=True is not supported"),
        ({"a_feature_of_next_year": 1}, "a_feature_of_next_year=1 is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' fits a changed base"),
        ({"bias": "some"}, "bias='some' is not supported"),
        ({"new_feature": 0}, "new_feature=0 is not supported"),
        ({"lora_dropout": "x"}, "adapter_config.json: "),
        ({"rank_pattern": [1]}, "adapter_config.json: "),
        ({"target_modules": "("}, "adapter_config.json: "),
        ({"lora_alpha": -1}, "alpha=-1.0 must be above 0"),
        ({"trainable_token_indices": {"zzz": [1]}}, "missing the rows that trainable_token_indices names for zzz"),
        ({"trainable_token_indices": [1]}, "missing the rows that trainable_token_indices names for the embedding"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"r": None}, "r=None"),
        # known features that the weights do not bear out
        ({"use_dora": True}, "missing .*q_proj.lora_magnitude_vector"),
        ({"rank_pattern": {"q_proj": 4}}, r"q_proj.lora_A.weight has shape \(3, 32\), needed is \(4, 32\)"),
        ({"modules_to_save": ["lm_head"]}, "missing base_model.model.lm_head.weight"),
        ({"target_modules": ["q_proj"]}, "layers.0.mlp.down_proj is no target of its own config"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, "missing .*layers.1.mlp.up_proj.lora_B.weight"),
    ],
)
def test_unknown_features_are_refused(folder: Path, fields: dict, words: str) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(AdapterError, match=words):
        load_adapter(base(), folder)


def test_another_base_is_named_by_its_hash(folder: Path) -> None:
    """Not the same base loaded in bfloat16, nor a quantized one; but one weight that differs by a bfloat16 step."""
    load_adapter(base().to(torch.bfloat16), folder)
    quantized = base()
    quantize_(quantized)
    load_adapter(quantized, folder)
    other = base()
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[3, 4] *= 1 + 2**-7
    with pytest.raises(AdapterError, match="hash to another sha256"):
        load_adapter(other, folder)
    assert not lora_layers(other)
    load_adapter(other, folder, any_base=True)
    other = base()
    with torch.no_grad():
        other.model.norm.weight += 1  # no adapted layer's
    with pytest.raises(AdapterError, match="hash to another sha256"):
        load_adapter(other, folder)
    load_adapter(base().half(), folder)  # float16 rounds otherwise and is not compared


def test_hot_swap(tmp_path: Path) -> None:
    """Other weights in the same tensors, so that what holds them (a compiled graph) goes on; or an error, unchanged."""
    for number, settings in enumerate(({"alpha": 8.0}, {"alpha": 3.0}, {"rank": 4}, {"targets": ("v_proj",)})):
        other = base()
        add_lora(other, LoRAConfig(**{"rank": 3, "targets": ("q_proj",), **settings}))
        save_adapter(filled(other, seed=number), tmp_path / str(number))
    model, expected = base(), base()
    load_adapter(model, tmp_path / "0")
    load_adapter(expected, tmp_path / "1")
    places = [p.data_ptr() for p in lora_parameters(model)]
    swap_adapter(model, tmp_path / "1")
    assert torch.equal(model(IDS), expected(IDS))
    assert [p.data_ptr() for p in lora_parameters(model)] == places
    for number, words in (
        ("2", r"lora_A.weight is \(4, 32\) there and \(3, 32\) here"),
        ("3", "in one of the two only"),
    ):
        with pytest.raises(AdapterError, match=words):
            swap_adapter(model, tmp_path / number)
    with pytest.raises(ValueError, match="no adapter 'b'"):
        swap_adapter(model, tmp_path / "1", name="b")
    assert torch.equal(model(IDS), expected(IDS))


def test_a_file_that_is_not_finite_is_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=f"{key} holds NaN or infinity"):
        load_adapter(base(), folder)


def test_targets_as_peft_writes_them(folder: Path) -> None:
    """The same layers as a regular expression, as "all-linear", with exclusions and blocks: all of them are understood."""
    path = folder / "adapter_config.json"
    plain = json.loads(path.read_text())
    for fields in (
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj", "up_proj"], "exclude_modules": r".*up_proj"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
    ):
        path.write_text(json.dumps(plain | fields))
        assert len(load_adapter(base(), folder)) == 4
    path.write_text(json.dumps(plain | {"layers_to_transform": 1}))
    with pytest.raises(AdapterError, match="layers.0.self_attn.q_proj is no target of its own config"):
        load_adapter(base(), folder)


def three_of_one_name() -> nn.Module:
    torch.manual_seed(0)
    inner = {name: nn.ModuleDict({"proj": nn.Linear(4, 4)}) for name in ("s1", "s2")}
    return nn.ModuleDict({"proj": nn.Linear(4, 4), **inner})


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_pattern": {"re:proj": 2.0}},
        {"rank_pattern": {"re:proj": 2}},
        {"targets": ("re:proj",)},
        {"targets": ("re:proj", "s1.proj"), "rank_pattern": {"re:proj": 2}},
    ],
)
def test_a_name_that_is_the_end_of_another(tmp_path: Path, settings: dict) -> None:
    """PEFT takes names for ends of names: here "proj" is a layer, and the end of two others."""
    model = three_of_one_name()
    add_lora(model, LoRAConfig(**{"targets": ("proj",), **settings}))
    save_adapter(filled(model), tmp_path, task_type=None)
    again = three_of_one_name()
    load_adapter(again, tmp_path)
    sizes = [{path: (m.rank, m.scale) for path, m in lora_layers(net).items()} for net in (model, again)]
    assert sizes[0] == sizes[1]


def with_rows(*ids: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"e": nn.Embedding(10, 4), "l": nn.Linear(4, 4)})
    add_lora(model, LoRAConfig(targets=("l",), token_rows={"e": ids}))
    return model


def test_rows_of_other_tokens_are_not_swapped_in(tmp_path: Path) -> None:
    save_adapter(with_rows(1, 2), tmp_path, task_type=None)
    with pytest.raises(AdapterError, match=r"rows of e are of the tokens \[1, 2\] there and \[5, 6\] here"):
        swap_adapter(with_rows(5, 6), tmp_path)
    swap_adapter(with_rows(1, 2), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {key: t for key, t in load_file(path).items() if "trainable_tokens_delta" not in key}
    save_file(tensors, path)
    torch.manual_seed(0)
    with pytest.raises(AdapterError, match="missing the rows that trainable_token_indices names for e"):
        load_adapter(nn.ModuleDict({"e": nn.Embedding(10, 4), "l": nn.Linear(4, 4)}), tmp_path)


def test_one_of_two_adapters_is_saved_as_if_it_were_alone(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({name: nn.Linear(4, 4) for name in ("fc1", "fc2")})

    model = net()
    add_lora(model, LoRAConfig(targets=("fc1",), start="pissa", rank=2), name="a")
    add_lora(model, LoRAConfig(targets=("fc2",), bias="all"), name="b")
    save_adapter(model, tmp_path, name="b", task_type=None)
    load_adapter(net(), tmp_path)
    swap_adapter(model, tmp_path, name="b")  # the start of the other adapter is no hindrance


def test_layers_that_share_a_weight_still_do_after_loading(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        model["b"].weight = model["a"].weight
        return model

    model, again = net(), net()
    add_lora(model, LoRAConfig(targets=("a",)))
    save_adapter(filled(model), tmp_path, task_type=None)
    load_adapter(again, tmp_path)
    assert len(lora_parameters(again)) == 2
    merge_lora(again)


def heads() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in ("body", "head", "aux_head")})


def test_a_saved_module_whose_name_ends_another(tmp_path: Path) -> None:
    """PEFT would save "aux_head" for "head", too; so it goes along, unchanged, and the pair of files fits PEFT and us."""
    model, again = heads(), heads()
    add_lora(model, LoRAConfig(targets=("body",), modules_to_save=("head",)))
    with torch.no_grad():
        model["head"].weight.add_(1)
    save_adapter(model, tmp_path, task_type=None)
    load_adapter(again, tmp_path)
    swap_adapter(model, tmp_path)
    for name in ("head", "aux_head"):
        assert torch.equal(model[name].weight, again[name].weight)
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(heads(), tmp_path).base_model.model
    x = torch.randn(2, 4)
    assert torch.equal(theirs["head"](x), model["head"](x)) and torch.equal(theirs["aux_head"](x), model["aux_head"](x))


def test_a_parameter_on_the_model_itself(tmp_path: Path) -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.l, self.bias = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.l(x) + self.bias

    model, again, x = Rooted(), Rooted(), torch.randn(2, 4)
    add_lora(model, LoRAConfig(targets=("l",), bias="all"))
    with torch.no_grad():
        model.bias.add_(1)
    save_adapter(model, tmp_path / "b", task_type=None)
    add_lora(model, LoRAConfig(targets=("l",)), name="plain")
    set_adapter(model, "default")
    save_adapter(model, tmp_path / "plain", name="plain", task_type=None)
    load_adapter(Rooted(), tmp_path / "plain")  # the base's hash is that of its own bias
    load_adapter(again, tmp_path / "b")
    assert torch.equal(again(x), model(x))


def test_rows_past_the_vocabulary(tmp_path: Path) -> None:
    save_adapter(with_rows(1, 2), tmp_path, task_type=None)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": [1, 55]}))
    torch.manual_seed(0)
    with pytest.raises(AdapterError, match=r"of e are \[1, 55\], it has 10 rows: resize it first"):
        load_adapter(nn.ModuleDict({"e": nn.Embedding(10, 4), "l": nn.Linear(4, 4)}), tmp_path)


def test_modules_with_running_statistics_are_refused() -> None:
    model = nn.ModuleDict({"l": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
    with pytest.raises(ValueError, match=r"norm has buffers \(running_mean, running_var"):
        add_lora(model, LoRAConfig(targets=("l",), modules_to_save=("norm",)))


def test_a_kill_between_the_two_renames_leaves_no_pair_that_does_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base()
    add_lora(model, LoRAConfig(rank=3, alpha=64.0, targets=("q_proj", "down_proj")))
    rename = files.os.replace
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: stop() if Path(b).name == "adapter_config.json" else rename(a, b)
    )
    with pytest.raises(KeyboardInterrupt):
        save_adapter(model, folder)
    with pytest.raises(AdapterError, match="adapter_config.json does not exist"):
        load_adapter(base(), folder)


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    load_adapter(base_of(before), folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_kill_while_saving_leaves_the_old_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops it before the first rename; nothing else is left behind."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = base()
    add_lora(model)
    for module, name in ((files, "save_file"), (files.json, "dumps"), (files, "load_file")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, stop)
            save_adapter(model, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def stop(*arguments: object, **settings: object) -> None:
    raise KeyboardInterrupt


def test_what_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base()
    add_lora(model)
    read = files.load_file
    monkeypatch.setattr(files, "load_file", lambda path: {key: tensor + 1 for key, tensor in read(path).items()})
    with pytest.raises(AdapterError, match="reads back otherwise"):
        save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())


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
