"""Adapters between here and peft, in both directions, and the arithmetic that both do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from llama_min import load_llama
from lora_lite import (
    AdapterError,
    LoRAConfig,
    add_lora,
    combine_adapters,
    load_adapter,
    lora_disabled,
    lora_layers,
    lora_parameter_groups,
    lora_parameters,
    lora_rows,
    merge_lora,
    save_adapter,
    set_adapter,
)
from tests.lora_lite.test_lora import filled
from tests.parity.test_llama_transformers import reference, tokens

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
NEW = (90, 91, 95)  # token ids whose rows are trained

# what is asked of each library for the same adapter: ours, theirs, and whether the base's head is tied
SAME: dict[str, tuple[dict, dict, bool]] = {
    "lora": ({}, {}, False),
    "rslora": ({"rslora": True}, {"use_rslora": True}, False),
    "dora": ({"dora": True}, {"use_dora": True}, False),
    "patterns": (
        {"rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 7}, "alpha_pattern": {"v_proj": 3.0}},
        {"rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 7}, "alpha_pattern": {"v_proj": 3}},
        False,
    ),
    "rslora with patterns": (
        {"rslora": True, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 5.0}},
        {"use_rslora": True, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 5}},
        False,
    ),
    "bias lora_only": ({"bias": "lora_only"}, {"bias": "lora_only"}, False),
    "bias all": ({"bias": "all"}, {"bias": "all"}, False),
    "all-linear": ({"targets": "all-linear"}, {"target_modules": "all-linear"}, True),
    "layers": (
        {"targets": ("q_proj",), "layers": (0, 2)},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
        False,
    ),
    "exclude": (
        {"targets": ("q_proj", "up_proj"), "exclude": ("layers.0.self_attn.q_proj",)},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        False,
    ),
    "embedding": ({"targets": ("q_proj", "embed_tokens")}, {"target_modules": ["q_proj", "embed_tokens"]}, False),
    "dora on an embedding": (
        {"targets": ("q_proj", "embed_tokens"), "dora": True},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        False,
    ),
    "head": ({"targets": ("q_proj", "lm_head")}, {"target_modules": ["q_proj", "lm_head"]}, False),
    "tied embedding and head": (
        {"targets": ("q_proj", "embed_tokens", "lm_head")},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True},
        True,
    ),
    "modules_to_save": (
        {"modules_to_save": ("lm_head", "model.norm")},
        {"modules_to_save": ["lm_head", "model.norm"]},
        False,
    ),
    "modules_to_save, tied": (
        {"modules_to_save": ("lm_head",)},
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        True,
    ),
    "new tokens": ({"token_rows": {"embed_tokens": NEW}}, {"trainable_token_indices": list(NEW)}, False),
    "new tokens, tied": ({"token_rows": {"embed_tokens": NEW}}, {"trainable_token_indices": list(NEW)}, True),
    "new tokens in both": (
        {"token_rows": {"embed_tokens": NEW, "lm_head": (3, 90)}},
        {"trainable_token_indices": {"embed_tokens": list(NEW), "lm_head": [3, 90]}},
        False,
    ),
}


@pytest.fixture(params=SAME, ids=[name.replace(" ", "-") for name in SAME])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LoRAConfig, dict, nn.Module]:
    """Our config, peft's settings, and transformers' random base in `tmp_path/base`, with biases that are not zero."""
    ours, theirs, tied = SAME[request.param]
    base = reference(tmp_path / "base", tied=tied, attention_bias=True)
    config = LoRAConfig(**{"rank": 4, "alpha": 12.0, "targets": TARGETS, **ours})
    settings = {"r": 4, "lora_alpha": 12, "target_modules": list(TARGETS), "task_type": "CAUSAL_LM", **theirs}
    return config, settings, base


@torch.no_grad()
def scramble(parameters: list[nn.Parameter]) -> None:
    """Change everything that is trained, so that each part of an adapter matters."""
    generator = torch.Generator().manual_seed(5)
    for p in parameters:
        p.add_(torch.randn(p.shape, generator=generator) * 0.1)


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest of any logit, in float64, over texts in which every token occurs, relative to the largest logit."""
    ids = torch.cat((tokens(60).flatten(), torch.arange(96)))[None]
    mine, their = (getattr(output, "logits", output) for output in (ours.double()(ids), theirs.double()(ids)))
    for model in (ours, theirs):
        model.float()  # what was float32 has its bits again
    return float((mine - their).abs().max() / their.abs().max())


# In float64 the two sides differ by the order of their sums, about 1e-15, which turns a rounding here and there where
# both go through float32 (norms, angles): 2^-24 = 6e-8 of a number, in one of 156 tokens, through 3 layers.
CLOSE = 1e-6


def test_ours_in_peft(tmp_path: Path, case: tuple[LoRAConfig, dict, nn.Module]) -> None:
    config, _, base = case
    ours = load_llama(tmp_path / "base", torch.float32)
    assert difference(ours, base) <= CLOSE
    add_lora(ours, config)
    scramble(lora_parameters(ours))
    save_adapter(ours, tmp_path / "adapter")
    assert difference(ours, base) > 0.01  # it does something
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert difference(ours, loaded) <= CLOSE


def test_theirs_here(tmp_path: Path, case: tuple[LoRAConfig, dict, nn.Module]) -> None:
    """And what `add_lora` trains for the same wishes is of the same size."""
    config, settings, base = case
    adapted = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    scramble(trained)
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load_llama(tmp_path / "base", torch.float32)
    names = load_adapter(ours, tmp_path / "adapter")
    assert difference(ours, adapted) <= CLOSE
    again = load_llama(tmp_path / "base", torch.float32)
    assert sorted(add_lora(again, config)) == sorted(names)
    assert sum(p.numel() for p in lora_parameters(again)) == sum(p.numel() for p in lora_parameters(ours))
    # peft has the two sides of a tied weight as parameters of their own
    if not settings.get("ensure_weight_tying"):
        assert sum(p.numel() for p in lora_parameters(again)) == sum(p.numel() for p in trained)


def test_round_trip_here(tmp_path: Path, case: tuple[LoRAConfig, dict, nn.Module]) -> None:
    """Saved and loaded, the logits are the same bits; disabled, those of the base; merged, equal to rounding."""
    config, _, _ = case
    ids = torch.arange(96)[None]
    ours, again, base = (load_llama(tmp_path / "base", torch.float32) for _ in range(3))
    add_lora(ours, config)
    scramble(lora_parameters(ours))
    save_adapter(ours, tmp_path / "adapter")
    load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        expected = ours(ids)
        assert torch.equal(again(ids), expected)
        with lora_disabled(ours):
            assert torch.equal(ours(ids), base(ids))
        merge_lora(again)
        # a merged weight is rounded once more, by 2^-24 of it, through sums of 112 products and 3 layers
        assert (again(ids) - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert again.state_dict().keys() == base.state_dict().keys()


def test_peft_adapter_on_one_side_of_a_tied_weight(tmp_path: Path) -> None:
    """Unless told otherwise peft adapts just what is named; so does what loads its files. Merging that is refused."""
    for number, targets in enumerate((["lm_head"], ["embed_tokens", "lm_head"])):
        base = reference(tmp_path / f"base{number}", tied=True)
        adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=targets)).eval()
        scramble([p for p in adapted.parameters() if p.requires_grad])
        adapted.save_pretrained(tmp_path / f"adapter{number}")
        ours = load_llama(tmp_path / f"base{number}", torch.float32)
        load_adapter(ours, tmp_path / f"adapter{number}")
        assert difference(ours, adapted) <= CLOSE
        with pytest.raises(ValueError, match="share one weight but no update"):
            merge_lora(ours)


@pytest.mark.parametrize("which", [["lm_head"], ["embed_tokens", "lm_head"]])
def test_peft_trains_tied_modules_apart_unless_told_otherwise(tmp_path: Path, which: list[str]) -> None:
    base = reference(tmp_path / "base", tied=True)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=which)
    adapted = peft.get_peft_model(base, config).eval()
    scramble([p for p in adapted.parameters() if p.requires_grad])
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load_llama(tmp_path / "base", torch.float32)
    load_adapter(ours, tmp_path / "adapter")
    assert difference(ours, adapted) <= CLOSE


def test_classifiers_of_peft(tmp_path: Path) -> None:
    """For these tasks peft adds "classifier" and "score" to modules_to_save, whichever of them the model has."""
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=3
    )
    config.pad_token_id = 0

    def net() -> nn.Module:
        torch.manual_seed(0)
        return transformers.LlamaForSequenceClassification(config).eval()

    adapted = peft.get_peft_model(net(), peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS")).eval()
    scramble([p for p in adapted.parameters() if p.requires_grad])
    adapted.save_pretrained(tmp_path)
    ours = net()
    load_adapter(ours, tmp_path)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("saved", ["lm_head", "self_attn", "model.norm"])
def test_all_biases_beside_saved_modules(tmp_path: Path, saved: str) -> None:
    """PEFT then stores the biases of its wrappers a second and a third time, under names of its own."""
    base = reference(tmp_path / "base", attention_bias=True, mlp_bias=True)
    config = peft.LoraConfig(r=4, target_modules=["down_proj"], bias="all", modules_to_save=[saved])
    theirs = peft.get_peft_model(base, config).eval()
    scramble([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_llama(tmp_path / "base", torch.float32)
    load_adapter(ours, tmp_path / "adapter")
    assert difference(ours, theirs) <= CLOSE


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_starts_like_peft_and_is_exported_as_plain_lora(tmp_path: Path, start: str, rslora: bool) -> None:
    """The same A and B as peft's up to sign, the same gradients of them, and a file of rank 2R for the unchanged base."""
    theirs = reference(tmp_path / "base")
    ours = load_llama(tmp_path / "base", torch.float32)
    before = ours(tokens(40))
    add_lora(ours, LoRAConfig(rank=4, alpha=12.0, targets=TARGETS, start=start, rslora=rslora))
    assert torch.equal(ours(tokens(40)), before)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": list(TARGETS), "use_rslora": rslora}
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(init_lora_weights=start, **settings)).eval()
    layers = {name.removeprefix("base_model.model."): m for name, m in adapted.named_modules() if hasattr(m, "lora_A")}
    for name, layer in lora_layers(ours).items():
        mine = layer.lora_B @ layer.lora_A
        their = layers[name].lora_B["default"].weight @ layers[name].lora_A["default"].weight
        torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-3)
    scramble(lora_parameters(ours))
    save_adapter(ours, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 8 and settings["init_lora_weights"] is True
    loaded = peft.PeftModel.from_pretrained(reference(tmp_path / "base"), tmp_path / "adapter")
    assert difference(ours, loaded) <= CLOSE
    again = load_llama(tmp_path / "base", torch.float32)
    load_adapter(again, tmp_path / "adapter")
    assert difference(again, loaded) <= CLOSE


def test_a_start_that_changes_the_base_is_refused(tmp_path: Path) -> None:
    theirs = reference(tmp_path / "base")
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa"))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="init_lora_weights='pissa' fits a changed base"):
        load_adapter(load_llama(tmp_path / "base", torch.float32), tmp_path / "adapter")


def test_gradients_equal(tmp_path: Path) -> None:
    """Of A, B and the magnitudes, for LoRA and DoRA."""
    for dora in (False, True):
        theirs = reference(tmp_path / f"base{dora}", attention_bias=True)
        ours = load_llama(tmp_path / f"base{dora}", torch.float32)
        add_lora(ours, LoRAConfig(rank=4, targets=TARGETS, dora=dora))
        scramble(lora_parameters(ours))
        save_adapter(ours, tmp_path / f"adapter{dora}")
        loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / f"adapter{dora}", is_trainable=True)
        for model in (ours, loaded):
            output = model(tokens(40))
            getattr(output, "logits", output).pow(2).mean().backward()
        their = {
            n.replace(".default", "").removeprefix("base_model.model."): p.grad for n, p in loaded.named_parameters()
        }
        for name, layer in lora_layers(ours).items():
            update = layer.adapters["default"]
            pairs = {"lora_A.weight": update.lora_A, "lora_B.weight": update.lora_B}
            if dora:
                pairs["lora_magnitude_vector.weight"] = update.magnitude
            for key, p in pairs.items():
                expected = their[f"{name}.{key}"]
                assert expected.abs().max() > 0
                assert (p.grad - expected).abs().max() <= 1e-4 * expected.abs().max(), f"{name}.{key}"


def two_adapters(tmp_path: Path) -> tuple[nn.Module, nn.Module]:
    """Ours and peft's model with the same two adapters "a" and "b", of different scale."""
    theirs = reference(tmp_path / "base")
    ours = load_llama(tmp_path / "base", torch.float32)
    for name, alpha in (("a", 12.0), ("b", 5.0)):
        add_lora(ours, LoRAConfig(rank=4, alpha=alpha, targets=TARGETS), name=name)
        scramble(lora_parameters(ours, name))
        save_adapter(ours, tmp_path / name, name=name)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "a", adapter_name="a")
    loaded.load_adapter(tmp_path / "b", adapter_name="b")
    return ours, loaded.eval()


def test_switching_and_summing(tmp_path: Path) -> None:
    ours, theirs = two_adapters(tmp_path)
    for active in (["a"], ["b"], ["a", "b"]):
        set_adapter(ours, *active)
        theirs.base_model.set_adapter(active)
        assert difference(ours, theirs) <= CLOSE


@pytest.mark.parametrize(("method", "theirs"), [("linear", "linear"), ("concat", "cat"), ("svd", "svd")])
@pytest.mark.parametrize("weights", [(0.7, 0.4), (1.0, -0.5)])
def test_weighted_sums(tmp_path: Path, method: str, theirs: str, weights: tuple[float, float]) -> None:
    ours, loaded = two_adapters(tmp_path)
    combine_adapters(ours, dict(zip("ab", weights)), "c", method, rank=3 if method == "svd" else None)
    settings = {"svd_rank": 3} if method == "svd" else {}
    loaded.add_weighted_adapter(["a", "b"], list(weights), "c", combination_type=theirs, **settings)
    loaded.set_adapter("c")
    assert difference(ours, loaded) <= (1e-4 if method == "svd" else CLOSE)  # an SVD in float32, of weights near 1


def test_a_different_adapter_for_each_row(tmp_path: Path) -> None:
    ours, theirs = (model.double() for model in two_adapters(tmp_path))
    ids = torch.arange(80).view(4, 20)
    with torch.no_grad(), lora_rows(ours, ["a", None, "b", "a"]):
        mine = ours(ids)
    with torch.no_grad():
        their = theirs(ids, adapter_names=["a", "__base__", "b", "a"]).logits
    assert (mine - their).abs().max() <= CLOSE * their.abs().max()


def test_lora_plus_groups(tmp_path: Path) -> None:
    """The same parameters with the same rates as peft's optimizer, layer by layer."""
    from peft.optimizers import create_loraplus_optimizer

    theirs = reference(tmp_path / "base")
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=4, target_modules=list(TARGETS)))
    optimizer = create_loraplus_optimizer(adapted, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    ours = load_llama(tmp_path / "base", torch.float32)
    add_lora(ours, LoRAConfig(rank=4, targets=TARGETS))

    def rates(groups: list[dict]) -> list[tuple[float, tuple[int, ...]]]:
        return sorted((group["lr"], tuple(p.shape)) for group in groups for p in group["params"])

    assert rates(lora_parameter_groups(ours, 1e-3, 16.0)) == rates(optimizer.param_groups)


def test_on_a_hugging_face_model(tmp_path: Path) -> None:
    """`add_lora` and `save_adapter` work on transformers' own model too."""
    theirs = reference(tmp_path / "base")
    add_lora(theirs, LoRAConfig(targets=TARGETS))
    filled(theirs)
    save_adapter(theirs, tmp_path / "adapter")
    ours = load_llama(tmp_path / "base", torch.float32)
    load_adapter(ours, tmp_path / "adapter")
    assert difference(ours, theirs) <= CLOSE


@pytest.mark.parametrize("dora", [False, True])
def test_conv1d_of_gpt2_both_ways(tmp_path: Path, dora: bool) -> None:
    """GPT-2's `Conv1D` stores its weight turned around."""

    def gpt2() -> nn.Module:
        torch.manual_seed(0)
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(vocab_size=96, n_positions=200, n_embd=32, n_layer=2, n_head=2, **ends)
        return transformers.GPT2LMHeadModel(config).eval()

    targets = ("c_attn", "c_fc", "wte")
    ours = gpt2()
    add_lora(ours, LoRAConfig(rank=4, targets=targets[:2], dora=dora))
    scramble(lora_parameters(ours))
    save_adapter(ours, tmp_path / "ours")
    assert difference_of_two(ours, gpt2()) > 0.01
    assert difference_of_two(ours, peft.PeftModel.from_pretrained(gpt2(), tmp_path / "ours")) <= CLOSE

    config = peft.LoraConfig(r=4, target_modules=list(targets[:2]), fan_in_fan_out=True, use_dora=dora)
    theirs = peft.get_peft_model(gpt2(), config).eval()
    scramble([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = gpt2()
    load_adapter(ours, tmp_path / "theirs")
    assert difference_of_two(ours, theirs) <= CLOSE
    before = ours(torch.arange(96)[None]).logits
    merge_lora(ours)
    assert (ours(torch.arange(96)[None]).logits - before).abs().max() <= CLOSE


@torch.no_grad()
def difference_of_two(ours: nn.Module, theirs: nn.Module) -> float:
    ids = torch.arange(96)[None]
    return float((ours(ids).logits - theirs(ids).logits).abs().max())


def test_gradient_checkpointing_of_a_hugging_face_model(tmp_path: Path) -> None:
    """On and off, reentrant or not, A and B get the same gradients."""
    gradients = []
    for settings in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = reference(tmp_path / "base").train()
        add_lora(model, LoRAConfig(targets=TARGETS), generator=torch.Generator().manual_seed(0))
        filled(model)
        if settings is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
            model.enable_input_require_grads()
        model(tokens(40), labels=tokens(40)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in lora_parameters(model)]))
    assert gradients[0].any()
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-5)
