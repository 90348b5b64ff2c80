"""Ids against the published vectors and transformers; chats, special tokens, damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.leukemia.pretrain import TINY_LLAMA
from llama_min import CheckpointError, load_tokenizer

TINY = load_tokenizer(TINY_LLAMA)


@pytest.mark.parametrize("folder", ["llama3_tokenizer", "llama2_tokenizer"])
def test_published_vectors(real: Path, folder: str) -> None:
    """llama.cpp's test texts and the ids that belong to them."""
    tokenizer = load_tokenizer(real / folder)
    texts = (real / folder / "vectors.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (real / folder / "vectors.out").read_text(encoding="utf-8").split("\n")
    expected = [[int(number) for number in line.split()] for line in lines[: len(texts)]]
    assert len(texts) > 40
    for text, ids in zip(texts, expected):
        assert tokenizer.encode(text) == ids, repr(text)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TINY.decode(TINY.encode(text)) == text


def test_text_that_spells_a_special_token_stays_text() -> None:
    ids = TINY.encode("<|eot_id|><|begin_of_text|>")
    assert not {TINY.bos_id, *TINY.eos_ids} & set(ids)
    assert TINY.decode(ids) == "<|eot_id|><|begin_of_text|>"


def test_one_bos_and_the_end_of_a_text() -> None:
    ids = TINY.encode("leukemia", bos=True, eos=True)
    assert ids[0] == TINY.bos_id and ids.count(TINY.bos_id) == 1
    assert ids[-1] == TINY.eos_ids[-1] and TINY.decode(ids) == "leukemia"


def test_bos_and_eos_are_those_that_the_folder_names(tmp_path: Path) -> None:
    """A Llama with another vocabulary, such as one of `<s>` and `</s>`, in either spelling of the config."""
    shutil.copyfile(TINY_LLAMA / "tokenizer.json", tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).bos_id == TINY.bos_id  # no config: Llama 3's names
    bos = {"content": "<|end_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": "<|start_header_id|>"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a", bos=True)[0] == 1 and tokenizer.eos_ids == (2, 4, 1)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    assert load_tokenizer(tmp_path).bos_id is None
    with pytest.raises(ValueError, match="has no BOS token"):
        load_tokenizer(tmp_path).encode("a", bos=True)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Which leukemia? "},
    {"role": "assistant", "content": "CML"},
]


def test_chat_equals_the_format_of_the_model_card(real: Path) -> None:
    """Against the text of Meta's format, encoded by transformers with special tokens recognised."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(real / "llama3_tokenizer" / "tokenizer.json"))
    tokenizer = load_tokenizer(real / "llama3_tokenizer")
    text = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhich leukemia?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nCML<|eot_id|>"
    )
    ids, mask = tokenizer.encode_chat(CHAT)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert len(mask) == len(ids)
    assert theirs.decode([i for i, on in zip(ids, mask) if on]) == "CML<|eot_id|>"


def test_generation_prompt_is_the_chat_up_to_the_answer() -> None:
    prompt, mask = TINY.encode_chat(CHAT[:2], add_generation_prompt=True)
    whole, _ = TINY.encode_chat(CHAT)
    assert whole[: len(prompt)] == prompt
    assert not any(mask)


def test_bad_messages_raise() -> None:
    with pytest.raises(ValueError, match="message 0 has role 'doctor'"):
        TINY.encode_chat([{"role": "doctor", "content": "x"}])
    with pytest.raises(ValueError, match="content of type NoneType"):
        TINY.encode_chat([{"role": "user"}])


def test_sentencepiece_has_no_chat(real: Path) -> None:
    tokenizer = load_tokenizer(real / "stories260k")
    assert tokenizer.encode("Once", bos=True)[0] == 1
    assert tokenizer.encode("Once", eos=True)[-1] == 2
    assert not tokenizer.can_chat
    with pytest.raises(ValueError, match="no chat tokens"):
        tokenizer.encode_chat(CHAT)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="tokenizer.model is not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json is not a tokenizer"):
        load_tokenizer(tmp_path)
