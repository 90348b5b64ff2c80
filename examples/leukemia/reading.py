"""How hard a text is to read: its sentences, words and syllables, and the years of school that it asks for."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["reading_counts", "reading_grade", "sentences_of"]

Floats = NDArray[Any]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text: parted where a full stop or the like is followed by a capital or a digit."""
    return re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text)


def reading_grade(sums: Floats) -> Floats:
    """Flesch-Kincaid grade (Kincaid et al. 1975): years of school that a text asks for, of counts (..., 3) of words,
    sentences and syllables."""
    words = np.maximum(sums[..., 0], 1)
    return 0.39 * words / np.maximum(sums[..., 1], 1) + 11.8 * sums[..., 2] / words - 15.59


def reading_counts(text: str) -> tuple[int, int, int]:
    """Words, sentences and syllables of a text; a word has as many syllables as it has places to hyphenate, and one."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*|\d+(?:\.\d+)?", text)
    return len(words), len(sentences_of(text.strip())) if words else 0, sum(map(_syllables, words))


@cache
def _syllables(word: str) -> int:
    return max(1, len(_hyphenation().positions(word)) + 1)


@cache
def _hyphenation() -> Any:
    import pyphen

    return pyphen.Pyphen(lang="en_US")
