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
            near = text[max(0, span["start"] - NEAR) : span["end"] + NEAR].lower()
            others = [name for name in (entity.name, *entity.names) if name.lower() not in near]
            if others:
                text = text[: span["start"]] + rng.choice(others) + text[span["end"] :]
    return text


def _drop(row: dict[str, Any], gazetteer: Gazetteer, rng: random.Random) -> str:
    """One labelled section left out, or one sentence between the first and the last."""
    if len(row["sections"]) > 2:
        left = rng.randrange(len(row["sections"]))
        parts = [part for place, part in enumerate(row["sections"]) if place != left]
        return " ".join(f"{label}: {text}" if label else text for label, text in parts)
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", row["abstract"])
    if len(sentences) > 3:
        del sentences[rng.randrange(1, len(sentences) - 1)]
    return " ".join(sentences)


def _template(row: dict[str, Any], gazetteer: Gazetteer, rng: random.Random) -> str:
    if not row["title"]:
        return row["abstract"]  # which is no variant
    return rng.choice(_TEMPLATES).format(title=row["title"], abstract=row["abstract"])
