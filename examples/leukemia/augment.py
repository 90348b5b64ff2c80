"""More articles of the rare classes, from those that there are: synonyms swapped, a part left out, put another way.

Only articles of the training side are varied, and what is made of one stays on its side. The same seed and article give
the same text, whatever else is in the set.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from examples.leukemia.gazetteer import Gazetteer
from examples.leukemia.reading import split_sentences
from examples.leukemia.spelling import americanize

__all__ = ["augment"]

_SWAPPED = ("subtype", "drug", "fusion")
NEAR = 80  # characters: "all-trans retinoic acid (ATRA)" does not become "ATRA (ATRA)"
_TEMPLATES = (
    "We report on the following: {title} {abstract}",
    "{abstract} In short: {title}",
    "Question: {title} What was found: {abstract}",
)


def augment(
    rows: Sequence[dict[str, Any]], gazetteer: Gazetteer, seed: int, rare: float = 0.5, most: int = 3
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Variants of the training rows whose class has less than `rare` times the articles of the largest class.

    Args:
        rows: prepared articles of the training side, with spans.
        most: variants of one article at the most.

    Returns:
        The variants, each with `augmented_from` and `augmentation`, and counts by class and kind.
    """
    classes: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["subtype"]:
            classes[row["subtype"]].append(row)
    wanted = int(rare * max(map(len, classes.values()), default=0))
    made: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for label in sorted(classes):
        missing, seen = wanted - len(classes[label]), {row["abstract"] for row in classes[label]}
        for number in range(1, most + 1):
            for row in classes[label]:
                variant = _variant(row, number, gazetteer, seed) if missing > 0 else None
                if variant and variant["abstract"] not in seen:
                    seen.add(variant["abstract"])
                    made.append(variant)
                    missing -= 1
                    counts[f"class {label}"] += 1
                    counts[variant["augmentation"]] += 1
    return made, counts


def _variant(row: dict[str, Any], number: int, gazetteer: Gazetteer, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{seed}:{row['pubmed_id']}:{number}")
    kinds = {"synonyms swapped": _swap, "a part left out": _drop, "put another way": _template}
    kind = rng.choice(sorted(kinds))
    return {
        "pubmed_id": f"{row['pubmed_id']}-variant{number}",
        "title": row["title"],
        "abstract": kinds[kind](row, gazetteer, rng),
        "year": row["year"],
        "journal": row["journal"],
        "subtype": row["subtype"],
        "side": row["side"],
        "augmented_from": row["pubmed_id"],
        "augmentation": kind,
    }


def _swap(row: dict[str, Any], gazetteer: Gazetteer, rng: random.Random) -> str:
    """Every other name in the abstract replaced by another name of the same thing, which does not stand near it."""
    text = row["abstract"]
    for span in reversed([span for span in row["spans"] if span["field"] == "abstract"]):
        entity = gazetteer.by_id.get(span["id"])
        if entity and entity.type in _SWAPPED and rng.random() < 0.5:
            near = _plain(text[max(0, span["start"] - NEAR) : span["end"] + NEAR])
            others = [name for name in (entity.name, *entity.names) if _plain(name) not in near and " (" not in name]
            if others:
                text = text[: span["start"]] + rng.choice(others) + text[span["end"] :]
    return text


def _plain(text: str) -> str:
    """One way of writing a name: AML-M3 and AML M3, leukaemia and leukemia are the same."""
    return americanize(text.lower().replace("-", " "))


_PERSONAL = r"(?:he|she|his|hers?|him|himself|herself)"
# a word that speaks of what was said before, among the first of a sentence: "She", "In these", "Both of them"
_REFERS = re.compile(
    rf"(?:[\w-]+,?\s){{0,3}}(?:{_PERSONAL}|it|its|they|them|their|theirs|this|these|those|such|both|neither|former|latter"
    r"|others?|another)\b",
    re.IGNORECASE,
)
_SOMEONE = re.compile(
    r"\b(?:patient|case|person|proband|wom[ae]n|m[ae]n|girl|boy|child|infant|neonate|newborn|baby|adult|adolescent|teenager"
    r"|(?:fe)?male|mother|father|sister|brother|twin|volunteer|donor|[\w-]{1,20}[\s-]years?[\s-]old)s?\b",
    re.IGNORECASE,
)
_OF_SOMEONE = re.compile(rf"\b{_PERSONAL}\b", re.IGNORECASE)


def _drop(row: dict[str, Any], gazetteer: Gazetteer, rng: random.Random) -> str:
    """One labelled section left out, or one sentence between the first and the last, of which none behind it speaks."""
    sections = len(row["sections"]) > 2
    parts = row["sections"] if sections else [("", text) for text in split_sentences(row["abstract"])]
    inner = range(len(parts)) if sections else range(1, len(parts) - 1 if len(parts) > 3 else 1)
    texts = [text for _, text in parts]
    places = [place for place in inner if not _is_spoken_of(texts, place)]
    if not places:
        return row["abstract"]  # which is no variant
    left = rng.choice(places)
    kept = parts[:left] + parts[left + 1 :]
    return " ".join(f"{label}: {text}" if label else text for label, text in kept)


def _is_spoken_of(texts: list[str], place: int) -> bool:
    """Whether the text behind one begins with what points to it, or a later "she" may be someone whom it names."""
    behind = texts[place + 1 :]
    named = _SOMEONE.search(texts[place]) and any(map(_OF_SOMEONE.search, behind))
    return bool(named or (behind and _REFERS.match(behind[0])))


def _template(row: dict[str, Any], gazetteer: Gazetteer, rng: random.Random) -> str:
    if not row["title"]:
        return row["abstract"]  # which is no variant
    return rng.choice(_TEMPLATES).format(title=row["title"], abstract=row["abstract"])
