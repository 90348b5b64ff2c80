"""Greedy and sampled text, where it stops, and what is refused before it starts."""

from __future__ import annotations

import pytest
import torch

from llama_min import Llama, generate, stream
from llama_min.generation import next_token
from tests.llama_min.test_model import SMALL


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(SMALL).eval()


def test_greedy_equals_the_full_forward(model: Llama) -> None:
    ids = [3, 1, 4]
    for _ in range(20):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, ids[:3], 20) == ids[3:]


def test_stops_at_an_end_token_and_leaves_it_out(model: Llama) -> None:
    whole = generate(model, [3, 1, 4], 20)
    end = whole[6]
    assert generate(model, [3, 1, 4], 20, eos_ids=[end]) == whole[: whole.index(end)]


def test_a_seed_gives_the_same_text_and_another_seed_another(model: Llama) -> None:
    texts = [generate(model, [5], 30, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_streaming_can_be_abandoned(model: Llama) -> None:
    tokens = stream(model, [5], 30)
    assert [next(tokens), next(tokens)] == generate(model, [5], 2)
    tokens.close()


@pytest.mark.parametrize(
    ("top_k", "top_p", "possible"),
    [
        (1, None, {0}),
        (2, None, {0, 1}),
        (None, 0.5, {0}),
        (None, 0.7, {0, 1}),
        (3, 0.55, {0, 1}),
        (None, 1.0, {0, 1, 2, 3}),
    ],
)
def test_top_k_and_top_p_by_hand(top_k: int | None, top_p: float | None, possible: set[int]) -> None:
    """Probabilities 0.5, 0.25, 0.15, 0.1: just the allowed tokens are drawn, and each of them is."""
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = {next_token(logits, 1.0, top_k, top_p, generator) for _ in range(300)}
    assert drawn == possible


def test_sampling_follows_the_probabilities() -> None:
    """3,000 draws of a 0.8 token at temperature 0.5 (odds squared: 0.64 / 0.68): five standard errors of 0.0043."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.8, 0.2]).log()
    share = sum(next_token(logits, 0.5, None, None, generator) == 0 for _ in range(3000)) / 3000
    assert abs(share - 0.64 / 0.68) < 5 * 0.0043


def test_refused_before_it_starts(model: Llama) -> None:
    for settings, words in (
        ({"ids": [], "max_new_tokens": 5}, "0 prompt tokens"),
        ({"ids": [1], "temperature": -1.0}, "temperature=-1.0"),
        ({"ids": [1], "top_k": 0}, "top_k=0"),
        ({"ids": [1], "top_p": 0.0}, "top_p=0.0"),
        ({"ids": [1], "max_new_tokens": 64}, "a cache of 65 tokens is past the model's context of 64"),
    ):
        with pytest.raises(ValueError, match=words):
            stream(model, **settings)
