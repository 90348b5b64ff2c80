"""How good an answer is, each metric a few lines; and how sure a mean over articles is.

n items, k sums that a metric is made of. Every metric here is a function of sums over items, so that a resample of the
items needs no more than another weighting of the sums.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.leukemia.gazetteer import Gazetteer
from examples.leukemia.terms import key_terms

__all__ = [
    "Score",
    "bootstrap",
    "chrf",
    "exact_match",
    "faithful",
    "macro_f1",
    "mean_score",
    "numbers_of",
    "proportion",
    "sari",
    "shares",
    "token_f1",
]

CONFIDENCE = 0.95
RESAMPLES = 2000
Floats = NDArray[Any]


@dataclass(frozen=True)
class Score:
    """A measured value with its 95% confidence interval (None where one item cannot be resampled) and how many items it rests on."""

    value: float
    low: float | None
    high: float | None
    n: int


def bootstrap(
    statistic: Callable[[Floats], Floats], rows: Sequence[Any], articles: Sequence[str] | None = None
) -> Score:
    """A statistic of sums over items, and its percentile bootstrap interval (Efron 1979), seeded.

    Args:
        statistic: from sums (..., k) to values (...).
        rows: (n, k), what each item adds to the sums; n at least 1.
        articles: n ids, of which each item is; items of one article are alike, and drawn together. None: all of others.
    """
    table, items = np.asarray(rows, dtype=np.float64), len(rows)
    if articles is not None:
        _, of_item = np.unique(articles, return_inverse=True)
        joined = np.zeros((of_item.max() + 1, table.shape[1]))
        np.add.at(joined, of_item, table)
        table = joined
    n, value = len(table), float(statistic(table.sum(0)))
    if n < 2:  # nothing to resample
        return Score(value, None, None, items)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)  # (resamples, n)
    edge = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(statistic(drawn @ table), (edge, 100 - edge))
    return Score(value, float(low), float(high), items)


def proportion(hits: Sequence[float], articles: Sequence[str] | None = None) -> Score:
    """The share of ones among values that are 0 or 1, and Wilson's interval (1927).

    Resampling would find [0, 0] or [1, 1] where no value or every value is 1, as if nothing else were possible.

    Args:
        articles: as of `bootstrap`. Where one has several items, these are not independent: articles are resampled then,
            and where all values are the same, Wilson's formula is told how many articles there are.
    """
    from scipy.stats import binomtest

    right, n = round(sum(hits)), len(hits)
    independent = n if articles is None else len(set(articles))
    if independent < n and 0 < right < n:
        return mean_score(hits, articles)
    interval = binomtest(right * independent // n, independent).proportion_ci(CONFIDENCE, method="wilson")
    return Score(right / n, float(interval.low), float(interval.high), n)


def mean_score(values: Sequence[float], articles: Sequence[str] | None = None) -> Score:
    """The mean of a value an item; `articles` as of `bootstrap`."""
    return bootstrap(lambda sums: sums[..., 0] / sums[..., 1], [(value, 1.0) for value in values], articles)


def macro_f1(sums: Floats) -> Floats:
    """Mean F1 over the labels that occur, of confusions (..., L * L): rows are true labels, columns chosen ones."""
    size = round(sums.shape[-1] ** 0.5)
    confusion = sums.reshape(*sums.shape[:-1], size, size)
    both = confusion.sum(-1) + confusion.sum(-2)  # 2 TP + FN + FP, by label
    f1 = 2 * np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(both, 1)
    return f1.sum(-1) / (both > 0).sum(-1)


def shares(counts: Sequence[tuple[int, int, int]]) -> dict[str, Score]:
    """Precision, recall and F1 over all items together (micro) of (right, given, wanted) an item; 0 of nothing is 0."""

    def ratio(upper: Floats, lower: Floats) -> Floats:
        return upper / np.maximum(lower, 1e-9)

    return {
        "precision": bootstrap(lambda s: ratio(s[..., 0], s[..., 1]), counts),
        "recall": bootstrap(lambda s: ratio(s[..., 0], s[..., 2]), counts),
        "f1": bootstrap(lambda s: ratio(2 * s[..., 0], s[..., 1] + s[..., 2]), counts),
    }


def exact_match(answer: str, expected: str) -> float:
    """1 where both are the same words (Rajpurkar et al. 2016: small letters, no punctuation, no articles)."""
    return float(_words(answer) == _words(expected))


def token_f1(answer: str, expected: str) -> float:
    """F1 of the words that two texts share, each as often as it comes in both (Rajpurkar et al. 2016)."""
    given, wanted = Counter(_words(answer)), Counter(_words(expected))
    if not given or not wanted:
        return float(given == wanted)
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


def _words(text: str) -> list[str]:
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def faithful(answer: str, source: str, gazetteer: Gazetteer) -> dict[str, tuple[int, int]]:
    """(how many of them the source holds, how many there are) of an answer's numbers and of the entities that it names."""
    pairs = {"numbers": (numbers_of(answer), numbers_of(source))}
    pairs["entities"] = (set(key_terms(answer, gazetteer)), set(key_terms(source, gazetteer)))
    return {kind: (len(given & held), len(given)) for kind, (given, held) in pairs.items()}


_KARYOTYPE = re.compile(r"\b(?:t|inv|del|ins|der|dup|add|dic)\([\w;.?]+\)")
# 10^9, 10**-9, and 10(9) as in PubMed
_POWER = re.compile(r"(?<![\d.])10(?:\^|\*\*?|(?=\())\(?(-?\d{1,2}(?:\.\d+)?)\)?(?!\d)")
_UNIT = r"(?:[mkcdnpuµμ]?(?:g|l|L|m|M|mol|IU|U|Gy)|mcg|[x×k]|h|hrs?|s|min|d|days?|wks?|mo|y|yrs?|yo|fold|st|nd|rd|th)"
_SIGN = r"(?:(?<![^\s(\[<>=≤≥~,;:-])-)?"  # a hyphen between two numbers or behind a word is none
# other letters right behind a number make a name of it
_NUMBER = re.compile(rf"{_SIGN}(?<![\w.])(?<![A-Z]-)\d+(?:\.\d+)?(?!\.?\d|-[A-Z]{{2}})(?={_UNIT}?(?![A-Za-z]))")


# a space of thousands, thin or not; but an ordinary one behind what has a number of its own parts two: in group 1 234 had
_COUNTED = (
    r"(?:age|aged|arm|case|chapter|chromosome|class|cohort|course|cycle|day|exon|figure|grade|group|hour|level|month|part|phase"
    r"|protocol|score|stage|stratum|study|table|trial|type|week|year|january|february|march|april|may|june|july|august"
    r"|september|october|november|december)s?"
)
_THOUSANDS = re.compile(
    rf"(?:(?P<own>\b{_COUNTED}[\s-])|(?<![\w.,)])(?<![A-Za-z]-))(?P<number>\d{{1,3}}(?:[ \u00a0\u2007\u2009\u202f]\d{{3}})+)(?!\d)",
    re.IGNORECASE,
)


def _joined(match: re.Match[str]) -> str:
    parts = re.split(r"\s", match["number"])
    if match["own"] and " " in match["number"] and parts[1][0] != "0":
        return match[0]
    return (match["own"] or "") + "".join(parts)


def numbers_of(text: str) -> set[str]:
    """The numbers of a text by value, without marks of thousands and units: 1532 of "1,532", 50000 of "50 000", 5 of "5.0mg".

    A power of ten is one number, 10^9. The digits of names are none: NPM1, 17p, t(15;17), IL-2, 5-FU.
    """
    text = _KARYOTYPE.sub(" ", _THOUSANDS.sub(_joined, re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)))
    text = text.replace("−", "-")
    powers = {f"10^{exponent}" for exponent in _POWER.findall(text)}
    found = _NUMBER.findall(re.sub(r"(?<![\w.])\.(?=\d)", "0.", _POWER.sub(" ", text)))
    return powers | {f"{Decimal(number).normalize():f}" for number in found}


def chrf(answer: str, expected: str) -> float:
    """chrF2 (Popović 2015) by sacrebleu: F of character 1- to 6-grams, recall twice as heavy, from 0 to 100."""
    return float(_chrf().sentence_score(answer, [expected]).score)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def sari(source: str, answer: str, references: Sequence[str]) -> float:
    """SARI (Xu et al. 2016, section 4): how well words are kept, deleted and added, from 0 to 100.

    The mean over 1- to 4-grams and over three scores: F1 of kept and of added n-grams, precision of deleted ones. As
    later implementations do, 0 of 0 counts as 1 (an answer that equals its only reference gets 100), and the recall of
    what is kept is over all n-grams that source and references share.
    """
    texts = [_pieces(text) for text in (source, answer, *references)]
    return 100 * sum(_sari_of(*(_ngrams(text, n) for text in texts)) for n in range(1, 5)) / 4


def _sari_of(source: Counter[str], answer: Counter[str], *references: Counter[str]) -> float:
    """The mean of the three scores, for n-grams of one length."""
    held = sum(references, Counter[str]())
    source_times = Counter({gram: count * len(references) for gram, count in source.items()})
    answer_times = Counter({gram: count * len(references) for gram, count in answer.items()})
    kept, to_keep = source_times & answer_times, source_times & held
    right = kept & held
    keep = _f1(
        _mean([right[gram] / count for gram, count in kept.items()]),
        right.total() / to_keep.total() if to_keep else 1.0,
    )
    deleted = source_times - answer_times
    rightly = deleted - held
    delete = _mean([rightly[gram] / count for gram, count in deleted.items()])
    added, to_add = set(answer) - set(source), set(held) - set(source)
    add = _f1(_mean([float(gram in held) for gram in added]), len(added & to_add) / len(to_add) if to_add else 1.0)
    return (keep + delete + add) / 3


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _pieces(text: str) -> list[str]:
    """Words and marks in small letters."""
    return re.findall(r"\w+(?:[.,]\d+)*|[^\w\s]", text.lower())


def _ngrams(pieces: Sequence[str], n: int) -> Counter[str]:
    return Counter(" ".join(pieces[i : i + n]) for i in range(len(pieces) - n + 1))
