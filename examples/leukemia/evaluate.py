"""Score a model on held-out items: perplexity of text, accuracy on subtypes, and what it writes for the other tasks.

Each score has its 95% interval; the metrics themselves are in metrics.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.leukemia.gazetteer import Gazetteer
from examples.leukemia.lab import read_flag
from examples.leukemia.metrics import (
    Score,
    bootstrap,
    chrf,
    exact_match,
    faithful,
    macro_f1,
    mean_score,
    proportion,
    sari,
    shares,
    token_f1,
)
from examples.leukemia.reading import reading_counts, reading_grade
from examples.leukemia.retrieved import own_article_found
from examples.leukemia.tasks import TASKS, Item, encode_item, encode_prompt
from examples.leukemia.terms import read_terms
from llama_min import Llama, Tokenizer, generate_batch
from lora_lite import Example

__all__ = [
    "Evaluation",
    "completion_log_probs",
    "evaluate",
    "perplexity",
    "subtype_scores",
    "worst",
    "write_answers",
]

MAX_ANSWER_TOKENS = 128
SPARE_TOKENS = 8  # that an answer may be longer than the longest expected one: what rambles is cut
ANSWERS_AT_ONCE = 16
Scores = dict[str, Any]  # metric: Score, or a plain value
Done = Callable[[int], Any]  # told how many items more are done
Answer = tuple[Item, str, float]  # what was asked, what the model said, and its score: more is better


@dataclass
class Evaluation:
    """What a model scored, by task (None without items), and its answers, by task."""

    scores: dict[str, Scores | None] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The scores, each `Score` as an object."""
        return {
            task: row and {name: vars(value) if isinstance(value, Score) else value for name, value in row.items()}
            for task, row in self.scores.items()
        }


def evaluate(
    model: Llama,
    tokenizer: Tokenizer,
    gazetteer: Gazetteer,
    items: Sequence[Item],
    most: int,
    name: str,
    retrieve: Callable[[list[Item]], list[Item]] | None = None,
) -> Evaluation:
    """All scores of `model` on held-out items.

    Args:
        most: answers are written for that many items of a task at the most, the first ones (writing is the slow part).
            Open questions count as a task of their own.
        name: of the model, for the progress bar.
        retrieve: puts passages that it finds in place of the sources of questions; None leaves that comparison out.
    """
    of_task = {task: [item for item in items if item.task == task] for task in TASKS}
    for task in WRITTEN.keys() - {"question"}:
        of_task[task] = of_task[task][:most]
    ways = _ways_of_asking(of_task.pop("question"), most, retrieve)
    result, written = Evaluation(), dict[str, Scores]()
    total = sum(map(len, of_task.values())) + sum(map(len, ways.values()))
    with tqdm(total=total, desc=f"evaluating {name}", unit="item") as bar:
        result.scores["text"] = perplexity(model, tokenizer, of_task["text"], bar.update)
        if of_task["subtype"]:
            labels = tuple(gazetteer.labels)
            scored = subtype_scores(model, tokenizer, labels, of_task["subtype"], bar.update)
            result.scores["subtype"], result.answers["subtype"] = scored
        for task, score in WRITTEN.items():
            for way, asked in ways.items() if task == "question" else [("", of_task[task])]:
                if not asked:
                    continue
                texts = write_answers(model, tokenizer, asked, bar.update)
                scores, points = score(asked, texts, gazetteer)
                named = {f"{metric}{way}": value for metric, value in scores.items()}
                written[task] = written.get(task, {}) | named
                if not way:
                    result.answers[task] = list(zip(asked, texts, points))
        if ways.get("_retrieved"):
            asked = ways["_retrieved"]
            written["question"]["gold_recall"] = proportion(
                own_article_found(asked), [item.pubmed_id for item in asked]
            )
    result.scores = {task: (result.scores | written).get(task) for task in TASKS}
    return result


def _ways_of_asking(
    questions: Sequence[Item], most: int, retrieve: Callable[[list[Item]], list[Item]] | None
) -> dict[str, list[Item]]:
    """The questions, `most` of a kind, with what each way of asking gives to read: {what the metric's name ends in: items}.

    Questions of articles are asked with their article, with nothing (closed book) and with what is retrieved. Open ones,
    which name no article, are scored apart: with nothing, with what is retrieved, and with their file's context if they
    have one.
    """
    of_articles = [item for item in questions if not item.open][:most]
    of_none = [item for item in questions if item.open][:most]
    ways = {"": of_articles}
    for way, asked in (("closed_book", of_articles), ("open", of_none)):
        ways[f"_{way}"] = [replace(item, source="") for item in asked]
    if retrieve:
        ways["_retrieved"] = retrieve(ways["_closed_book"])
        ways["_open_retrieved"] = retrieve(ways["_open"])
    return ways | {"_open_context": [item for item in of_none if item.source]}


def worst(evaluations: dict[str, Evaluation], judge: str, most: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Of each task that is answered the items on which `judge` scores lowest, with what every model said."""
    found = {}
    for task, answers in evaluations[judge].answers.items():
        places = sorted(range(len(answers)), key=lambda place: answers[place][2])[:most]
        found[task] = [
            {
                "pubmed_id": answers[place][0].pubmed_id,
                "prompt": answers[place][0].prompt,
                "expected": answers[place][0].completion,
                "answers": {name: each.answers[task][place][1] for name, each in evaluations.items()},
                "score": {name: each.answers[task][place][2] for name, each in evaluations.items()},
            }
            for place in places
        ]
    return found


def perplexity(model: Llama, tokenizer: Tokenizer, items: Sequence[Item], done: Done) -> Scores | None:
    """exp of the mean negative log-likelihood of a token, and the same in bits a byte of text.

    Bits a byte can be compared between tokenizers. The intervals resample whole articles.
    """
    articles: dict[str, np.ndarray[Any, Any]] = {}  # per article: negative log-likelihood, tokens, bytes
    for item in items:
        example = encode_item(item, tokenizer)
        nll = -float(completion_log_probs(model, [example])[0])
        counts = np.array([nll, example.supervised, len(item.completion.encode())])
        articles[item.pubmed_id] = articles.get(item.pubmed_id, np.zeros(3)) + counts
        done(1)
    if not articles:
        return None
    rows = list(articles.values())
    return {
        "perplexity": bootstrap(lambda sums: np.exp(sums[..., 0] / sums[..., 1]), rows),
        "bits_per_byte": bootstrap(lambda sums: sums[..., 0] / sums[..., 2] / math.log(2), rows),
    }


def subtype_scores(
    model: Llama, tokenizer: Tokenizer, labels: Sequence[str], items: Sequence[Item], done: Done
) -> tuple[Scores, list[Answer]]:
    """How often the right label is the likeliest of all, by the log-probability of the label and its end token.

    Beside the accuracy: macro-F1, the share that the most frequent label would get, and the confusions {true label:
    {chosen label: count}}.
    """
    from sklearn.metrics import confusion_matrix

    answers: list[Answer] = []
    for item in items:
        examples = [encode_item(item, tokenizer, completion=label) for label in labels]
        chosen = labels[int(completion_log_probs(model, examples).argmax())]
        answers.append((item, chosen, float(chosen == item.completion)))
        done(1)
    pairs = [(item.completion, chosen) for item, chosen, _ in answers]
    confusion = confusion_matrix(*zip(*pairs), labels=labels)  # rows are true labels, columns chosen ones
    cells = [labels.index(true) * len(labels) + labels.index(chosen) for true, chosen in pairs]
    return {
        "accuracy": proportion([point for *_, point in answers]),
        "macro_f1": bootstrap(macro_f1, np.eye(len(labels) ** 2)[cells].tolist()),
        "majority": float(confusion.sum(1).max()) / len(items),
        "confusion": {label: dict(zip(labels, map(int, confusion[row]))) for row, label in enumerate(labels)},
    }, answers


# Each of these scores the texts that were written for items: {metric: Score}, and a number an item.


def _summaries(items: Sequence[Item], texts: Sequence[str], gazetteer: Gazetteer) -> tuple[Scores, list[float]]:
    """ROUGE-1, -2 and -L (Lin 2004), F-measures; chrF; shares of numbers and entities that the source holds."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(names.values()), use_stemmer=True)
    found = [scorer.score(item.completion, text) for item, text in zip(items, texts)]
    scores: Scores = {name: mean_score([row[key].fmeasure for row in found]) for name, key in names.items()}
    scores["chrf"] = _mean_chrf(items, texts)
    held = [faithful(text, item.source, gazetteer) for item, text in zip(items, texts)]
    for kind in ("numbers", "entities"):
        rows = [row[kind] for row in held if row[kind][1]]  # a text without any cannot be false in that
        ratio = bootstrap(lambda sums: sums[..., 0] / sums[..., 1], rows) if rows else None
        scores[f"{kind}_faithful"] = ratio
    return scores, [row["rougeL"].fmeasure for row in found]


def _questions(items: Sequence[Item], texts: Sequence[str], _: Gazetteer) -> tuple[Scores, list[float]]:
    """Exact match and F1 of words, as for SQuAD (Rajpurkar et al. 2016)."""
    f1 = [token_f1(text, item.completion) for item, text in zip(items, texts)]
    same = [exact_match(text, item.completion) for item, text in zip(items, texts)]
    articles = [item.pubmed_id for item in items]  # one may be asked several questions
    return {"exact_match": proportion(same, articles), "f1": mean_score(f1, articles)}, f1


def _terms(items: Sequence[Item], texts: Sequence[str], _: Gazetteer) -> tuple[Scores, list[float]]:
    """Precision, recall and F1 of the terms listed."""
    pairs = [(read_terms(text), read_terms(item.completion)) for item, text in zip(items, texts)]
    counts = [(len(given & wanted), len(given), len(wanted)) for given, wanted in pairs]
    return dict(shares(counts)), [2 * right / (given + wanted) for right, given, wanted in counts]


def _plain(items: Sequence[Item], texts: Sequence[str], _: Gazetteer) -> tuple[Scores, list[float]]:
    """SARI, chrF, and the reading grade of what was written; beside them those of the source left as it is, and the grade
    of what was expected."""
    values = [sari(item.source, text, [item.completion]) for item, text in zip(items, texts)]
    scores: Scores = {"sari": mean_score(values), "chrf": _mean_chrf(items, texts)}
    sources = [item.source for item in items]
    scores["source_sari"] = mean_score([sari(item.source, item.source, [item.completion]) for item in items]).value
    scores["source_chrf"] = _mean_chrf(items, sources).value
    scores["reading_grade"] = bootstrap(reading_grade, [reading_counts(text) for text in texts])
    for name, of in (("source", sources), ("expected", [item.completion for item in items])):
        scores[f"{name}_grade"] = bootstrap(reading_grade, [reading_counts(text) for text in of]).value
    return scores, values


def _mean_chrf(items: Sequence[Item], texts: Sequence[str]) -> Score:
    return mean_score([chrf(text, item.completion) for item, text in zip(items, texts)])


def _lab(items: Sequence[Item], texts: Sequence[str], _: Gazetteer) -> tuple[Scores, list[float]]:
    """Share of values that are told rightly to be low, normal or high, and what the most frequent of these would get."""
    right = [float(read_flag(text) == item.completion) for item, text in zip(items, texts)]
    most = max(Counter(item.completion for item in items).values())
    return {"accuracy": proportion(right), "majority": most / len(items)}, right


WRITTEN = {"summary": _summaries, "question": _questions, "terms": _terms, "plain": _plain, "lab": _lab}


def write_answers(model: Llama, tokenizer: Tokenizer, items: Sequence[Item], done: Done) -> list[str]:
    """What the model says, greedily, to each prompt, in the order of the items.

    It may write as many tokens as the longest expected answer has and a few more, and what the context has room for.
    """
    prompts = [encode_prompt(item, tokenizer) for item in items]
    longest = max(len(tokenizer.encode(item.completion)) for item in items)
    most = min(MAX_ANSWER_TOKENS, longest + SPARE_TOKENS)
    texts = [""] * len(items)
    for room, batch in _batches(prompts, model.config.max_position_embeddings, most):
        written = generate_batch(model, [prompts[i] for i in batch], room, eos_ids=tokenizer.eos_ids)
        for i, tokens in zip(batch, written):
            texts[i] = tokenizer.decode(tokens).strip()
        done(len(batch))
    return texts


def _batches(prompts: Sequence[Sequence[int]], context: int, most: int) -> Iterator[tuple[int, list[int]]]:
    """Which prompts are continued together, and by how many tokens: those with the same room, of similar length."""

    def room(i: int) -> int:
        return min(most, context - len(prompts[i]))

    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for tokens, group in groupby(by_length, room):
        same = list(group)
        yield from ((tokens, same[i : i + ANSWERS_AT_ONCE]) for i in range(0, len(same), ANSWERS_AT_ONCE))


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
