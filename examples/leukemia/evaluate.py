"""Score a model on held-out items: perplexity of text, accuracy on subtypes, ROUGE-L of titles, each with its interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.leukemia.annotate import SUBTYPES
from examples.leukemia.tasks import Item, encode_item, encode_prompt
from llama_min import Llama, Tokenizer, generate_batch
from lora_lite import Example

__all__ = ["Score", "completion_log_probs", "evaluate", "perplexity", "subtype_accuracy", "title_rouge"]

CONFIDENCE = 0.95
MAX_TITLE_TOKENS = 48
TITLES_AT_ONCE = 8


@dataclass(frozen=True)
class Score:
    """A measured value with its 95% confidence interval (None for n = 1) and how many articles it rests on."""

    value: float
    low: float | None
    high: float | None
    n: int


def evaluate(model: Llama, tokenizer: Tokenizer, items: Sequence[Item], max_titles: int, name: str) -> dict[str, Any]:
    """All scores of `model` on held-out items, for metrics.json; a task without items has the score None.

    Args:
        max_titles: titles are written for that many items at the most, the first ones (writing is the slow part).
        name: of the model, for the progress bar.
    """
    of_task: dict[str, list[Item]] = {task: [] for task in ("text", "subtype", "title")}
    for item in items:
        of_task[item.task].append(item)
    total = len(of_task["text"]) + len(of_task["subtype"]) + min(max_titles, len(of_task["title"]))
    with tqdm(total=total, desc=f"evaluating {name}", unit="item") as bar:
        result: dict[str, Any] = {}
        result |= perplexity(model, tokenizer, of_task["text"], bar.update)
        result |= subtype_accuracy(model, tokenizer, of_task["subtype"], bar.update)
        result |= title_rouge(model, tokenizer, of_task["title"][:max_titles], bar.update)
    return {key: vars(value) if isinstance(value, Score) else value for key, value in result.items()}


def perplexity(
    model: Llama, tokenizer: Tokenizer, items: Sequence[Item], done: Callable[[int], Any]
) -> dict[str, Score | float | None]:
    """exp of the mean negative log-likelihood of a token, and the same in bits a byte of text.

    Bits a byte can be compared between tokenizers. The interval resamples whole articles (percentile bootstrap).
    """
    if not items:
        return {"perplexity": None, "bits_per_byte": None}
    articles: dict[str, np.ndarray[Any, Any]] = {}  # per article: negative log-likelihood, tokens, bytes
    for item in items:
        example = encode_item(item, tokenizer)
        nll = -float(completion_log_probs(model, [example])[0])
        counts = np.array([nll, example.supervised, len(item.completion.encode())])
        articles[item.pubmed_id] = articles.get(item.pubmed_id, np.zeros(3)) + counts
        done(1)
    table = np.stack(list(articles.values()))
    score = _bootstrap(lambda rows: math.exp(rows[:, 0].sum() / rows[:, 1].sum()), table)
    return {"perplexity": score, "bits_per_byte": float(table[:, 0].sum() / table[:, 2].sum() / math.log(2))}


def subtype_accuracy(
    model: Llama, tokenizer: Tokenizer, items: Sequence[Item], done: Callable[[int], Any]
) -> dict[str, Any]:
    """Share of items whose right label is the likeliest of all, by the log-probability of the label and its end token.

    The interval is Wilson's (1927). Beside it: the share that the most frequent label would get, and the confusions
    {true label: {chosen label: count}}.
    """
    from scipy.stats import binomtest

    if not items:
        return {"subtype_accuracy": None, "subtype_majority": None, "subtype_confusion": {}}
    confusion = {label: dict.fromkeys(SUBTYPES, 0) for label in SUBTYPES}
    for item in items:
        examples = [encode_item(item, tokenizer, completion=label) for label in SUBTYPES]
        best = int(completion_log_probs(model, examples).argmax())
        confusion[item.completion][SUBTYPES[best]] += 1
        done(1)
    right = sum(confusion[label][label] for label in SUBTYPES)
    interval = binomtest(right, len(items)).proportion_ci(CONFIDENCE, method="wilson")
    majority = max(sum(row.values()) for row in confusion.values()) / len(items)
    return {
        "subtype_accuracy": Score(right / len(items), float(interval.low), float(interval.high), len(items)),
        "subtype_majority": majority,
        "subtype_confusion": confusion,
    }


def title_rouge(
    model: Llama, tokenizer: Tokenizer, items: Sequence[Item], done: Callable[[int], Any]
) -> dict[str, Score | None]:
    """ROUGE-L (Lin 2004), the F-measure of the longest common subsequence, of greedily written titles."""
    from rouge_score.rouge_scorer import RougeScorer

    if not items:
        return {"title_rouge_l": None}
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    prompts = [encode_prompt(item, tokenizer) for item in items]
    scores = np.zeros((len(items), 1))
    for room, batch in _title_batches(prompts, model.config.max_position_embeddings):
        titles = generate_batch(model, [prompts[i] for i in batch], room, eos_ids=tokenizer.eos_ids)
        for i, title in zip(batch, titles):
            scores[i] = scorer.score(items[i].completion, tokenizer.decode(title))["rougeL"].fmeasure
        done(len(batch))
    return {"title_rouge_l": _bootstrap(lambda rows: float(rows.mean()), scores)}


def _title_batches(prompts: Sequence[Sequence[int]], context: int) -> Iterator[tuple[int, list[int]]]:
    """Which prompts are continued together, and by how many tokens: those with the same room, of similar length."""

    def room(i: int) -> int:
        return min(MAX_TITLE_TOKENS, context - len(prompts[i]))

    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for tokens, group in groupby(by_length, room):
        same = list(group)
        yield from ((tokens, same[i : i + TITLES_AT_ONCE]) for i in range(0, len(same), TITLES_AT_ONCE))


@torch.inference_mode()
def completion_log_probs(model: Llama, examples: Sequence[Example]) -> Tensor:
    """log p(completion | prompt) of each example, (len(examples),), summed over its supervised tokens.

    What all examples begin with (one prompt with several labels) is run once; its keys and values serve all of them.
    """
    shared = _shared_prompt(examples)
    device = next(model.parameters()).device
    width = max(len(example.ids) for example in examples) - shared
    ids = torch.zeros(len(examples), width, dtype=torch.long, device=device)
    mask = torch.zeros(len(examples), width, device=device)
    for row, example in enumerate(examples):
        length = len(example.ids) - shared
        ids[row, :length] = torch.tensor(example.ids[shared:])
        mask[row, :length] = torch.tensor(example.mask[shared:], dtype=torch.float32)

    cache = model.new_cache(1, shared + width)
    prompt = model(torch.tensor([examples[0].ids[:shared]], device=device), cache)[:, -1:]  # (1, 1, V)
    rest = model(ids, cache.repeat(len(examples)))[:, :-1]  # (B, width - 1, V)
    logits = torch.cat((prompt.expand(len(examples), -1, -1), rest), dim=1)  # position t predicts ids[:, t]
    log_probs = F.log_softmax(logits.float(), dim=-1)
    chosen = log_probs.gather(-1, ids[..., None]).squeeze(-1)  # (B, width)
    return (chosen * mask).sum(-1)


def _shared_prompt(examples: Sequence[Example]) -> int:
    """How many tokens, at least one, all examples begin with before the first supervised token of any."""
    starts = [next(t for t, on in enumerate(example.mask) if on and t > 0) for example in examples]
    same = 1
    while same < min(starts) and len({example.ids[same] for example in examples}) == 1:
        same += 1
    return same


def _bootstrap(statistic: Callable[[np.ndarray[Any, Any]], float], rows: np.ndarray[Any, Any]) -> Score:
    """The statistic of `rows` and its percentile bootstrap interval over rows (Efron 1979), 2,000 seeded resamples."""
    from scipy.stats import bootstrap

    value = statistic(rows)
    if len(rows) < 2:  # nothing to resample
        return Score(value, None, None, len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all rows alike: the interval has no width, which is right
        interval = bootstrap(
            (np.arange(len(rows)),),
            lambda index: statistic(rows[index]),
            n_resamples=2000,
            confidence_level=CONFIDENCE,
            method="percentile",
            vectorized=False,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Score(value, float(interval.low), float(interval.high), len(rows))
