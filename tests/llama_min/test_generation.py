"""Greedy and sampled text, batches, where it stops, and what is refused before it starts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llama_min import Llama, StreamDecoder, generate, generate_batch, load_llama, load_tokenizer, stream
from llama_min.generation import distribution, penalize_repetition
from lora_lite import add_lora
from quant_lite import quantize_
from tests.llama_min.test_model import SMALL
from tests.lora_lite.test_lora import filled

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8], [9, 7]]


class Playback(nn.Module):
    """A student's model: just `model(tokens)`, no cache. It is sure of the script's token at every position."""

    def __init__(self, script: list[int], vocabulary: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor([0, *script]), vocabulary).float() * 9)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[1 : tokens.shape[1] + 1].expand(tokens.shape[0], -1, -1)


class Pieces:
    """As much of a tokenizer as decoding needs: token i stands for `texts[i]`."""

    leading_space = False

    def __init__(self, texts: list[bytes]) -> None:
        self.texts = texts

    def token_bytes(self, token: int) -> bytes:
        return self.texts[token]


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


@torch.no_grad()
def greedy_by_full_forwards(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt) :]


def test_greedy_equals_the_full_forward(model: Llama) -> None:
    assert generate(model, PROMPTS[0], 20) == greedy_by_full_forwards(model, PROMPTS[0], 20)


def test_adapters_and_int8_layers_generate_unchanged(model: Llama) -> None:
    plain = generate(model, PROMPTS[0], 20)
    quantize_(model)
    add_lora(model)
    filled(model)
    changed = generate(model, PROMPTS[0], 20)
    assert changed == greedy_by_full_forwards(model, PROMPTS[0], 20) != plain
    assert generate_batch(model, PROMPTS, 20)[0] == changed


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(model: Llama) -> None:
    assert generate_batch(model, PROMPTS, 20) == [generate(model, prompt, 20) for prompt in PROMPTS]
    sampled = generate_batch(model, PROMPTS, 20, temperature=1.0, seed=5)
    assert sampled == [generate(model, prompt, 20, temperature=1.0, seed=5 + i) for i, prompt in enumerate(PROMPTS)]
    assert generate_batch(model, []) == []


def test_rows_of_a_batch_end_each_at_its_own_place(model: Llama) -> None:
    whole = generate_batch(model, PROMPTS, 20)
    ends = {whole[0][4], whole[2][9]}
    expected = []
    for row in whole:
        cuts = [i for i, token in enumerate(row) if token in ends]
        expected.append(row[: cuts[0]] if cuts else row)
    assert generate_batch(model, PROMPTS, 20, eos_ids=sorted(ends)) == expected
    assert len({len(row) for row in expected}) > 1


def test_one_prompt_in_several_samples(model: Llama) -> None:
    texts = generate_batch(model, [[5]] * 3, 30, temperature=1.0)
    assert len({tuple(text) for text in texts}) == 3


@pytest.mark.parametrize("rows", [1, 3])
def test_any_module_with_the_call_shape(model: Llama, rows: int) -> None:
    """One without a cache, and one whose output carries its logits in a field, as transformers' do."""

    class Student(nn.Module):
        def __init__(self, wrapped: bool) -> None:
            super().__init__()
            self.inner, self.wrapped = model, wrapped

        def forward(self, tokens: torch.Tensor) -> object:
            logits = self.inner(tokens)
            return type("Output", (), {"logits": logits}) if self.wrapped else logits

    expected = generate_batch(model, PROMPTS[:rows], 15)
    for wrapped in (False, True):
        assert generate_batch(Student(wrapped), PROMPTS[:rows], 15) == expected


def test_log_probabilities(model: Llama) -> None:
    """Those of softmax(logits) in one full forward, whatever the sampling did to it."""
    settings = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.3, "seed": 3}
    tokens = generate(model, PROMPTS[0], 12, logprobs=True, **settings)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0] + tokens]))[0]
    expected = logits.log_softmax(-1)[range(6, 18), tokens]
    torch.testing.assert_close(torch.tensor([token.logprob for token in tokens]), expected, atol=1e-5, rtol=1e-5)
    assert tokens == generate(model, PROMPTS[0], 12, **settings)
    assert generate(model, PROMPTS[0], 1)[0].logprob is None


def test_stops_at_an_end_token_and_leaves_it_out(model: Llama) -> None:
    whole = generate(model, [3, 1, 4], 20)
    end = whole[6]
    assert generate(model, [3, 1, 4], 20, eos_ids=[end, 49]) == whole[: whole.index(end)]


def test_a_seed_gives_the_same_text_and_another_seed_another(model: Llama) -> None:
    texts = [generate(model, [5], 30, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_streaming_can_be_abandoned(model: Llama) -> None:
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    tokens = stream(model, [5], 30)
    assert not calls
    first = [next(tokens), next(tokens)]
    assert len(calls) == 2  # no work ahead of the reader
    tokens.close()
    assert not torch.is_inference_mode_enabled()
    assert first == generate(model, [5], 2)


def test_the_smallest_temperature_takes_the_likeliest(model: Llama) -> None:
    greedy = generate(model, [1, 2, 3], 10)
    assert generate(model, [1, 2, 3], 10, temperature=1e-45) == greedy
    assert generate(model, [1, 2, 3], 10, temperature=1e-38) == greedy
    assert generate(model, [1, 2, 3], 10, temperature=5e-324) == greedy


def test_a_stop_string_that_begins_with_the_first_tokens_space(real: Path) -> None:
    """Sentencepiece spells a space before a text's first word; before a text that goes on it is a real one."""
    model, tokenizer = load_llama(real / "stories260k", torch.float32), load_tokenizer(real / "stories260k")
    ids = tokenizer.encode("Once upon a", bos=True)
    assert tokenizer.decode(generate(model, ids, 1)) == "time"
    assert generate(model, ids, 5, stop=[" time"], tokenizer=tokenizer) == []


def test_stop_strings_by_hand() -> None:
    """The text is "one. tw|o.\\n|three": tokens are held while they may lie in the stop string, and cut from it on."""
    texts = [b"one", b". tw", b"o.", b"\n", b"three"]
    model, tokenizer = Playback([0, 1, 2, 3, 4], 5), Pieces(texts)
    for stop, kept in (
        ([".\n"], [0, 1, 2]),  # token 2 begins before it
        (["\n"], [0, 1, 2]),
        (["two"], [0, 1]),
        (["one"], []),
        (["three", "o.\n"], [0, 1]),
        (["four", "threefold"], [0, 1, 2, 3, 4]),  # never comes: what was held back is given at the end
    ):
        assert generate(model, [0], 5, stop=stop, tokenizer=tokenizer) == kept
        decoder = StreamDecoder(tokenizer, stop)
        text = "".join(map(decoder.push, range(5))) + decoder.flush()
        assert text == min(("one. two.\nthree".split(s)[0] for s in stop), key=len)


ALPHABET = "ab\u00e9"  # the last one is two bytes, so that tokens part a character


@given(st.text(ALPHABET, max_size=12), st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_in_any_text(text: str, stops: list[str], data: st.DataObject) -> None:
    """Against the definition: the first stop string that is complete ends the text where the earliest one begins."""
    code = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(code) - 1)))))
    bounds = [0, *(cut for cut in cuts if cut < len(code)), len(code)]
    pieces = [code[a:b] for a, b in itertools.pairwise(bounds)]
    model, tokenizer = Playback([*range(len(pieces))], len(pieces)), Pieces(pieces)

    end, length = len(text), len(pieces)
    for length in range(1, len(pieces) + 1):
        sofar = b"".join(pieces[:length]).decode(errors="ignore")
        found = [sofar.index(stop) for stop in stops if stop in sofar]
        if found:
            end = min(found)
            break
    kept = [i for i in range(length) if not found or len(code[: bounds[i]].decode(errors="ignore")) < end]

    assert generate(model, [0], len(pieces), stop=stops, tokenizer=tokenizer) == kept
    decoder = StreamDecoder(tokenizer, stops)
    assert "".join(map(decoder.push, range(len(pieces)))) + decoder.flush() == text[:end]
    assert decoder.stopped == bool(found)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.45}, [1, 0, 0, 0]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 3, "top_p": 0.55}, [1, 0, 0, 0]),  # of what top_k left, the first holds 0.556
        ({"min_p": 0.4}, [2 / 3, 1 / 3, 0, 0]),
        ({"min_p": 0.1}, [0.5, 0.25, 0.15, 0.1]),
        ({"min_p": 0.26, "temperature": 0.5}, [1, 0, 0, 0]),  # after temperature the second is 0.25 of the first
    ],
)
def test_distribution_by_hand(settings: dict, expected: list[float]) -> None:
    """Logits of the probabilities 0.5, 0.25, 0.15, 0.1, in another order."""
    order = [2, 0, 3, 1]
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()[order]
    result = distribution(logits, **{"temperature": 1.0, **settings})
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float32)[order], atol=1e-6, rtol=1e-5)


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([2.0, -1.0, 3.0, -4.0])
    result = penalize_repetition(logits, torch.tensor([0, 3, 0]), 2.0)
    assert result.tolist() == [1.0, -1.0, 3.0, -8.0]
    assert logits.tolist() == [2.0, -1.0, 3.0, -4.0]


def test_the_penalty_covers_prompt_and_text(model: Llama) -> None:
    """So high a one that no token comes twice, as long as there are new ones of positive logit."""
    text = PROMPTS[0] + generate(model, PROMPTS[0], 10, repetition_penalty=1e6)
    assert len(set(text)) == len(set(PROMPTS[0])) + 10
    assert len(set(PROMPTS[0] + generate(model, PROMPTS[0], 10))) < len(set(text))


def test_sampling_follows_the_probabilities() -> None:
    """3,000 draws of a 0.8 token at temperature 0.5 (odds squared: 0.64 / 0.68): five standard errors of 0.0043."""
    logits = torch.tensor([0.8, 0.2]).log()
    model = Playback([0], 2)
    model.logits.data[:] = logits
    tokens = generate_batch(model, [[0]] * 3000, 1, temperature=0.5)
    share = sum(row == [0] for row in tokens) / 3000
    assert abs(share - 0.64 / 0.68) < 5 * 0.0043


def test_refused_before_it_starts(model: Llama) -> None:
    for settings, words in (
        ({"ids": [], "max_new_tokens": 5}, "prompt 0 is empty"),
        ({"ids": [1], "max_new_tokens": -1}, "max_new_tokens=-1 must be 0 or above"),
        ({"ids": [1], "temperature": -1.0}, "temperature=-1.0 must be 0 or above"),
        ({"ids": [1], "temperature": float("nan")}, "temperature=nan must be"),
        ({"ids": [1], "top_k": 0}, "top_k=0 must be a whole number, 1 or above"),
        ({"ids": [1], "top_k": 1.5}, "top_k=1.5 must be a whole number, 1 or above"),
        ({"ids": [1], "top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"ids": [1], "min_p": 1.5}, "min_p=1.5 must be from 0 to 1"),
        ({"ids": [1], "repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"ids": [1], "stop": ["x"]}, "needs tokenizer="),
        ({"ids": [1], "stop": "x", "tokenizer": Pieces([])}, "must be a list of strings"),
        ({"ids": [1], "max_new_tokens": 64}, "a cache of 65 tokens is past the model's context of 64"),
    ):
        with pytest.raises(ValueError, match=words):
            stream(model, **settings)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate_batch(model, [[1], []])
    student = Playback([0] * 9, 4)
    student.config = SMALL
    with pytest.raises(ValueError, match="1 [+] 64 tokens are past the model's context of 64"):
        stream(student, [1], 64)
