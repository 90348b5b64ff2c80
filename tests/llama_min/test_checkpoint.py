"""Folders that are damaged, incomplete or of another model are refused in one clear error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.leukemia.pretrain import TINY_LLAMA
from llama_min import CheckpointError, Llama, LlamaConfig, RopeScaling, load_llama, save_llama
from lora_lite import add_lora
from tests.llama_min.test_model import SMALL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_llama(Llama(SMALL), tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_round_trip(folder: Path) -> None:
    model = load_llama(folder, torch.float32)
    again = folder.parent / "again"
    save_llama(model, again)
    state, state2 = model.state_dict(), load_llama(again, torch.float32).state_dict()
    assert all(torch.equal(state[name], state2[name]) for name in state)
    assert LlamaConfig.from_pretrained(again) == LlamaConfig.from_pretrained(folder)
    assert not list(again.glob(".saving*"))
    assert not model.training


def test_dtype_is_converted(folder: Path) -> None:
    model = load_llama(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"model_type": "mllama"}, "mllama"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type='linear'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size=None must be a whole number above 0"),
        ({"hidden_size": "x", "num_hidden_layers": 0}, "hidden_size='x' must be .*; num_hidden_layers=0 must be"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps='x' must be a number, 0 or above"),
        ({"head_dim": 2.5}, "head_dim=2.5 must be a whole number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be true or false"),
        ({"rope_scaling": "llama3"}, "rope_scaling='llama3' must be an object"),
        ({"eos_token_id": ["a"]}, "eos_token_id="),
        ({"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "of their own for full_attention"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 5.0}}, "low_freq_factor=5.0, .* makes no sense"),
        ({"rope_scaling": LLAMA3 | {"factor": 0}}, "factor=0, .* makes no sense"),
        ({"is_causal": False}, "is_causal=False"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size=8192"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types holds 'sliding_attention'"),
        ({"num_experts": 4}, "num_experts=4"),
        ({"n_routed_experts": 4}, "n_routed_experts=4"),
        ({"vision_config": {"hidden_size": 8}}, "vision_config="),
    ],
)
def test_unknown_settings_raise_by_name(folder: Path, fields: dict, names: str) -> None:
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=names):
        load_llama(folder)


def test_rope_theta_is_found_wherever_it_stands(folder: Path) -> None:
    for fields in (
        {"rope_theta": 5e5},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": None, "rope_parameters": None, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    ):
        change(folder, **fields)
        assert LlamaConfig.from_pretrained(folder).rope_theta == 5e5


def test_the_original_context_at_the_top_has_the_last_word(folder: Path) -> None:
    """As in transformers; and `rope_type: null` leaves `type` to say it."""
    inner = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    for rope in (LLAMA3, inner, {**LLAMA3, "rope_type": None, "type": "llama3"}):
        change(folder, rope_scaling=rope, original_max_position_embeddings=128)
        scaling = LlamaConfig.from_pretrained(folder).rope_scaling
        assert scaling is not None and scaling.original_max_position_embeddings == 128
    change(folder, rms_norm_eps=0.0)
    assert LlamaConfig.from_pretrained(folder).rms_norm_eps == 0.0


LLAMA_1 = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_2_70B = LLAMA_1 | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 4096,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
}
LLAMA_3_8B = LLAMA_1 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_31_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA_31_8B = LLAMA_3_8B | {
    "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": LLAMA_31_SCALING,
}
LLAMA_32_1B = LLAMA_31_8B | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": LLAMA_31_SCALING | {"factor": 32.0},
    "tie_word_embeddings": True,
}
VERSION_5 = {
    key: value for key, value in LLAMA_32_1B.items() if key not in ("torch_dtype", "rope_theta", "rope_scaling")
}
VERSION_5 |= {"dtype": "bfloat16", "rope_parameters": LLAMA_32_1B["rope_scaling"] | {"rope_theta": 500000.0}}


@pytest.mark.parametrize(
    ("settings", "expected", "parameters"),
    [
        (LLAMA_1, {"num_key_value_heads": 32, "head_dim": 128, "rope_theta": 1e4, "dtype": "float16"}, 6738415616),
        (LLAMA_2_70B, {"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5}, 68976648192),
        (LLAMA_3_8B, {"num_key_value_heads": 8, "rope_theta": 5e5, "rope_scaling": None}, 8030261248),
        (LLAMA_31_8B, {"eos_token_ids": (128001, 128008, 128009), "rope_scaling": RopeScaling()}, 8030261248),
        (LLAMA_32_1B, {"head_dim": 64, "rope_scaling": RopeScaling(factor=32.0)}, 1235814400),
        (VERSION_5, {"rope_theta": 5e5, "rope_scaling": RopeScaling(factor=32.0), "dtype": "bfloat16"}, 1235814400),
    ],
    ids=["1", "2", "3", "3.1", "3.2", "3.2 as transformers 5 writes it"],
)
def test_every_generation_of_config(settings: dict, expected: dict, parameters: int) -> None:
    """What their config.json says, against what is known of each and the number of parameters that is published."""
    config = LlamaConfig.from_dict(settings)
    assert {name: getattr(config, name) for name in expected} == expected
    with torch.device("meta"):
        assert sum(p.numel() for p in Llama(config).parameters()) == parameters
    assert LlamaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("spelling", ["type", "rope_type"])
def test_both_spellings_of_rope_type(folder: Path, spelling: str) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    change(folder, rope_scaling={spelling: "llama3", **scaling})
    assert load_llama(folder).config.rope_scaling is not None


def test_every_problem_is_in_one_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load_llama(folder)
    message = str(caught.value)
    assert "missing model.norm.weight" in message
    assert "model.layers.0.mlp.up_proj.weight has shape (3, 3), the config says (48, 32)" in message
    assert "unexpected model.layers.7.mlp.up_proj.weight" in message
    assert message.count("model.layers.0.mlp.up_proj.weight") == 1


def test_the_rotary_table_of_old_exports_is_passed_over(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    assert load_llama(folder, torch.float32)


@pytest.mark.parametrize("keep", [0, 5, 100, 2000])
def test_truncated_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load_llama(folder)


def test_missing_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor"):
        load_llama(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json does not exist"):
        load_llama(folder)
    (folder / "config.json").write_text("{half")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_llama(folder)


def shard(folder: Path, weight_map: dict[str, str] | None = None) -> dict[str, str]:
    """Part the one file in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = weight_map or {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_index_that_leaves_the_folder_or_names_a_lost_shard(folder: Path) -> None:
    weight_map = shard(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match="b.safetensors is missing"):
        load_llama(folder)
    weight_map["model.norm.weight"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="elsewhere.safetensors lies outside the folder"):
        load_llama(folder)


def test_shard_that_lacks_what_the_index_promises(folder: Path) -> None:
    weight_map = shard(folder)
    tensors = load_file(folder / "a.safetensors")
    lost = min(tensors)
    del tensors[lost]
    save_file(tensors, folder / "a.safetensors")
    assert weight_map[lost] == "a.safetensors"
    with pytest.raises(CheckpointError, match=f"{lost} is listed for a.safetensors but not in it"):
        load_llama(folder)


def test_a_shard_that_the_index_does_not_know(folder: Path) -> None:
    save_llama(load_llama(folder, torch.float32), folder, max_shard_bytes=30_000)
    save_file({"x": torch.zeros(1)}, folder / "model-00009-of-00009.safetensors")
    with pytest.raises(CheckpointError, match="model-00009-of-00009.safetensors is not in the index"):
        load_llama(folder)


def test_all_that_is_wrong_with_shards_is_in_one_error(folder: Path) -> None:
    """One shard lost, one cut, one elsewhere, one too many, one with a tensor too many, misplaced and misshapen."""
    save_llama(load_llama(folder, torch.float32), folder, max_shard_bytes=9_000)
    files = sorted(folder.glob("model-*.safetensors"))
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    of = {file.name: [name for name, place in weight_map.items() if place == file.name] for file in files}
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    shutil.copy(files[2], folder.parent / files[2].name)
    weight_map |= dict.fromkeys(of[files[2].name], f"../{files[2].name}")
    tensors = load_file(files[3])
    (odd, *_), moved = of[files[3].name], of[files[4].name][0]
    save_file({name: t for name, t in load_file(files[4]).items() if name != moved}, files[4])
    save_file(tensors | {odd: torch.zeros(3), moved: torch.zeros(2), "extra": torch.zeros(1)}, files[3])
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError) as caught:
        load_llama(folder)
    message = str(caught.value)
    for words in (
        f"{files[0].name} is missing",
        f"{files[1].name} is not a whole safetensors file",
        f"{files[2].name} lies outside the folder",
        f"{files[2].name} is not in the index",
        f"{odd} has shape (3,), the config says",
        f"{moved} is in {files[3].name} but not listed for it",
        f"{moved} is listed for {files[4].name} but not in it",
        "unexpected extra (1,)",
    ):
        assert message.count(words) == 1, words
    for file in files[:3]:
        assert not any(name in message for name in of[file.name])  # a lost file is one problem, not one a tensor


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory figures where Linux gives them")
def test_loading_holds_the_weights_and_no_more(tmp_path: Path) -> None:
    """A process that loads 30 MB of bfloat16 and reads them all grows by 30 MB at its peak; as float32, by 60."""
    config = replace(SMALL, vocab_size=5000, hidden_size=512, intermediate_size=1024, num_hidden_layers=6)
    save_llama(Llama(config).to(torch.bfloat16), tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    code = (
        "import re, sys, torch; from pathlib import Path; from llama_min import load_llama\n"
        "read = lambda key: int(re.search(key + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "[p.sum() for p in load_llama(sys.argv[3], getattr(torch, sys.argv[2])).parameters()]\n"  # starts the threads
        "before = read('VmRSS'); model = load_llama(sys.argv[1], getattr(torch, sys.argv[2]))\n"
        "[p.sum() for p in model.parameters()]; print(read('VmHWM') - before)"
    )
    grown = {}
    for dtype in ("bfloat16", "float32"):
        line = [sys.executable, "-c", code, str(tmp_path), dtype, str(TINY_LLAMA)]
        grown[dtype] = int(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    # from below only to see that all was read: the kernel may take back a page of the file meanwhile
    # each tensor has a map of its own, in which the kernel also shows the 64 KB around what is read, at both ends
    ends = 2 * 65536 * len(load_file(tmp_path / "model.safetensors"))
    assert 0.9 * size <= grown["bfloat16"] <= 1.1 * size + ends
    assert 0.9 * 2 * size <= grown["float32"] <= 1.1 * 2 * size


def test_a_tied_head_may_stand_in_the_file_if_it_is_the_embedding(tmp_path: Path) -> None:
    save_llama(Llama(replace(SMALL, tie_word_embeddings=True)), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    model = load_llama(tmp_path, torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    save_file(tensors | {"lm_head.weight": torch.zeros(50, 32)}, path)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.embed_tokens.weight although"):
        load_llama(tmp_path, torch.float32)


def test_training_in_place_leaves_the_file_alone(folder: Path) -> None:
    """Weights that keep their dtype are pages of the file; writing to them must copy, not write through."""
    before = (folder / "model.safetensors").read_bytes()
    model = load_llama(folder, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before
    save_llama(model, folder)  # over the very file that is mapped
    again = load_llama(folder, torch.float32).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_integers_where_floats_belong(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.norm.weight": torch.zeros(32, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match="model.norm.weight has dtype I8, needed is one of F32, F16, BF16, F64"):
        load_llama(folder)
    save_file(load_file(path) | {"model.norm.weight": torch.zeros(3, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match=r"has shape \(3,\), the config says \(32,\); .* has dtype I8"):
        load_llama(folder)


def test_a_stray_shard_beside_an_index_of_one(folder: Path) -> None:
    weights = folder / "model.safetensors"
    name = "model-00001-of-00002.safetensors"
    weights.rename(folder / name)
    index = {"weight_map": dict.fromkeys(load_file(folder / name), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_llama(folder)
    save_file({"x": torch.zeros(1)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors is not in the index"):
        load_llama(folder)
    (folder / "model.safetensors.index.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        load_llama(folder)


def test_shards_of_a_given_size_and_back(folder: Path) -> None:
    """Every layout replaces the one before it, and the tensors stay the same."""
    before = load_llama(folder, torch.float32)
    for limit, shards in ((20_000, 4), (4_000, None), (10**9, 1)):
        save_llama(before, folder, max_shard_bytes=limit)
        files = sorted(folder.glob("*.safetensors"))
        assert shards in (None, len(files))
        for file in files:
            tensors = load_file(file)
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            assert size <= limit or len(tensors) == 1
        assert (folder / "model.safetensors.index.json").exists() == (len(files) > 1)
        after = load_llama(folder, torch.float32).state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.state_dict().items())


def test_adapters_are_not_saved_as_a_plain_model(tmp_path: Path) -> None:
    model = Llama(SMALL)
    add_lora(model)
    with pytest.raises(ValueError, match="merge adapters first"):
        save_llama(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()
