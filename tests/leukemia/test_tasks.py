"""Items, their encoding and how they are fitted to a context; and the scores, against plain computations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.leukemia.annotate import SUBTYPES, find_subtypes
from examples.leukemia.data import Record, UserError, read_abstracts
from examples.leukemia.evaluate import _title_batches, completion_log_probs, perplexity, subtype_accuracy, title_rouge
from examples.leukemia.pretrain import TINY_LLAMA
from examples.leukemia.synthetic import ABSTRACTS
from examples.leukemia.tasks import Item, build_items, encode_item, encode_prompt, fit_item
from llama_min import Llama, generate, load_llama, load_tokenizer
from lora_lite import Example

TOKENIZER = load_tokenizer(TINY_LLAMA)
RECORDS = read_abstracts(ABSTRACTS)[0][:12]


@pytest.fixture(scope="module")
def model() -> Llama:
    return load_llama(TINY_LLAMA, torch.float32)


def quiet(_: int) -> None:
    return None


@pytest.mark.parametrize("context", [1024, 120])
@pytest.mark.parametrize("chats", [True, False])
def test_items_fit_and_keep_their_completions(context: int, chats: bool, real: Path) -> None:
    tokenizer = TOKENIZER if chats else load_tokenizer(real / "stories260k")
    context = context if chats else context * 2
    items = build_items(RECORDS, tokenizer, context)
    by_article = {record.pubmed_id: record for record in RECORDS}
    for item in items:
        record, example = by_article[item.pubmed_id], encode_item(item, tokenizer)
        assert len(example.ids) <= context
        whole = {"subtype": record.subtype, "title": record.title}.get(item.task, item.completion)
        assert item.completion == whole
        if item.task == "subtype":
            assert not find_subtypes(item.source)
            scored = [encode_item(item, tokenizer, completion=label) for label in SUBTYPES]
            assert max(len(example.ids) for example in scored) <= context
    for record in RECORDS:  # nothing of a text is lost: its passages, joined, are the abstract
        passages = [i.completion for i in items if i.pubmed_id == record.pubmed_id and i.task == "text"]
        assert " ".join(passages) == record.abstract
    assert any(item.words_cut for item in items) == (context < 1000)


@pytest.mark.parametrize("chats", [True, False])
def test_only_completion_and_end_are_supervised(chats: bool, real: Path) -> None:
    tokenizer = TOKENIZER if chats else load_tokenizer(real / "stories260k")
    for item in build_items(RECORDS[:2], tokenizer, 1024):
        example, prompt = encode_item(item, tokenizer), encode_prompt(item, tokenizer)
        assert list(example.ids[: len(prompt)]) == prompt
        assert not any(example.mask[: len(prompt)]) and all(example.mask[len(prompt) :])
        assert example.ids[-1] in tokenizer.eos_ids
        assert tokenizer.decode(example.ids[len(prompt) : -1]).strip() == item.completion
        assert example.ids.count(tokenizer.bos_id) == 1


def test_as_many_words_as_fit() -> None:
    item = Item("1", "title", "Write a title.", " ".join(["leukemia"] * 400), "A title")
    fitted = fit_item(item, TOKENIZER, 100)
    kept = len(fitted.source.split())
    assert fitted.words_cut == 400 - kept > 0
    assert len(encode_item(fitted, TOKENIZER).ids) <= 100
    one_more = replace(fitted, source=f"{fitted.source} leukemia")
    assert len(encode_item(one_more, TOKENIZER).ids) > 100
    with pytest.raises(UserError, match="article 1: instruction and title alone pass the model's context of 10"):
        fit_item(item, TOKENIZER, 10)


def test_labels_come_from_the_file_or_the_text() -> None:
    def labels(record: Record) -> list[str]:
        return [item.completion for item in build_items([record], TOKENIZER, 1024) if item.task == "subtype"]

    assert labels(Record("1", "On AML", "Text.", "CML")) == ["CML"]
    assert labels(Record("1", "On AML", "Text.")) == ["AML"]
    assert labels(Record("1", "On cells", "Text.")) == []
    assert labels(Record("1", "On cells", "Text.", "unknown")) == []


def plain_log_prob(model: Llama, example: Example) -> float:
    """Token by token from one full forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([list(example.ids)]))[0].double()
    total = 0.0
    for t in range(1, len(example.ids)):
        if example.mask[t]:
            total += float(logits[t - 1, example.ids[t]] - logits[t - 1].logsumexp(-1))
    return total


def test_log_probs_equal_plain_ones(model: Llama) -> None:
    for item in build_items(RECORDS[:1], TOKENIZER, 1024):
        labels = (*SUBTYPES, "a longer answer") if item.task == "subtype" else (item.completion,)
        examples = [encode_item(item, TOKENIZER, completion=label) for label in labels]
        expected = [plain_log_prob(model, example) for example in examples]
        assert completion_log_probs(model, examples).tolist() == pytest.approx(expected, rel=1e-4)


def test_perplexity_equals_the_plain_one(model: Llama) -> None:
    items = [item for item in build_items(RECORDS, TOKENIZER, 100) if item.task == "text"]
    assert len(items) > len(RECORDS)
    examples = [encode_item(item, TOKENIZER) for item in items]
    nll = -sum(plain_log_prob(model, example) for example in examples)
    scores = perplexity(model, TOKENIZER, items, quiet)
    value = scores["perplexity"]
    assert value.value == pytest.approx(math.exp(nll / sum(e.supervised for e in examples)), rel=1e-4)
    assert value.n == len(RECORDS) and value.low < value.value < value.high
    size = sum(len(item.completion.encode()) for item in items)
    assert scores["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-4)


def test_accuracy_counts_the_likeliest_label(model: Llama) -> None:
    items = [item for item in build_items(RECORDS, TOKENIZER, 1024) if item.task == "subtype"]
    scores = subtype_accuracy(model, TOKENIZER, items, quiet)
    right = 0
    for item in items:
        by_label = {x: plain_log_prob(model, encode_item(item, TOKENIZER, completion=x)) for x in SUBTYPES}
        right += max(by_label, key=by_label.__getitem__) == item.completion
    score = scores["subtype_accuracy"]
    assert (score.value, score.n) == (right / len(items), len(items))
    assert sum(sum(row.values()) for row in scores["subtype_confusion"].values()) == len(items)
    # Wilson's interval by its formula
    n, p, z = len(items), right / len(items), 1.959964
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert score.low == pytest.approx(centre - half / (1 + z * z / n), abs=1e-6)
    assert score.high == pytest.approx(centre + half / (1 + z * z / n), abs=1e-6)


def test_titles_are_scored(model: Llama) -> None:
    """An item whose title is what the model writes scores 1; the mean and the interval are over items."""
    item = next(item for item in build_items(RECORDS[:1], TOKENIZER, 1024) if item.task == "title")
    written = TOKENIZER.decode(generate(model, encode_prompt(item, TOKENIZER), 48, eos_ids=TOKENIZER.eos_ids))
    scores = title_rouge(model, TOKENIZER, [replace(item, completion=written), replace(item, completion="zzz")], quiet)
    score = scores["title_rouge_l"]
    assert (score.value, score.low, score.high, score.n) == (0.5, 0.0, 1.0, 2)
    alone = title_rouge(model, TOKENIZER, [replace(item, completion=written)], quiet)["title_rouge_l"]
    assert (alone.value, alone.low) == (1.0, None)


def test_titles_written_together_are_those_written_alone(model: Llama) -> None:
    """Nine prompts, longest first, so that batches reorder them: each item meets the title of its own prompt."""
    items = [item for item in build_items(RECORDS, TOKENIZER, 1024) if item.task == "title"][:9]
    items.sort(key=lambda item: -len(encode_prompt(item, TOKENIZER)))
    alone = [generate(model, encode_prompt(item, TOKENIZER), 48, eos_ids=TOKENIZER.eos_ids) for item in items]
    assert len({tuple(title) for title in alone}) > 1
    own = [replace(item, completion=TOKENIZER.decode(title)) for item, title in zip(items, alone)]
    scores = title_rouge(model, TOKENIZER, own, quiet)
    assert scores["title_rouge_l"].value == 1.0
    shifted = [replace(item, completion=own[i - 1].completion) for i, item in enumerate(items)]
    assert title_rouge(model, TOKENIZER, shifted, quiet)["title_rouge_l"].value < 1.0
    batches = list(_title_batches([[0] * n for n in (90, 30, 95, 40, 52)], context=100))
    assert batches == [(48, [1, 3, 4]), (10, [0]), (5, [2])]


def test_no_items_no_score(model: Llama) -> None:
    assert perplexity(model, TOKENIZER, [], quiet)["perplexity"] is None
    assert subtype_accuracy(model, TOKENIZER, [], quiet)["subtype_accuracy"] is None
    assert title_rouge(model, TOKENIZER, [], quiet)["title_rouge_l"] is None
