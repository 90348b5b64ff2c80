"""Texts to train on without the sentences that speak to a model: an abstract's own words are data, never an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from examples.leukemia.data import Record
from examples.leukemia.reading import split_sentences
from examples.leukemia.safety import reads_like_instruction

__all__ = ["without_instructions", "without_instructions_in"]


def without_instructions(text: str) -> tuple[str, int]:
    """`text` without the sentences that speak to a model, and how many these were."""
    sentences = split_sentences(text)
    kept = [sentence for sentence in sentences if not reads_like_instruction(sentence)]
    return " ".join(kept) if len(kept) < len(sentences) else text, len(sentences) - len(kept)


def without_instructions_in(records: Sequence[Record]) -> tuple[list[Record], dict[str, int]]:
    """The articles without such sentences, less those of which no abstract is left; and how many there were."""
    kept, silenced, emptied = [], 0, 0
    for record in tqdm(records, desc="looking for instructions", unit=" article", delay=1):
        (title, of_title), (abstract, of_abstract) = map(without_instructions, (record.title, record.abstract))
        silenced += of_title + of_abstract
        emptied += not abstract
        if of_title + of_abstract:
            sections = tuple((label, without_instructions(text)[0]) for label, text in record.sections)
            record = replace(record, title=title, abstract=abstract, sections=sections)
        if abstract:
            kept.append(record)
    return kept, {"sentences that speak to a model, left out": silenced, "articles with no other sentence": emptied}
