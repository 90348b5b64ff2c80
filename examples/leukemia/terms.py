"""Key terms: the preferred names of what the gazetteer finds in a text."""

from __future__ import annotations

import re

from examples.leukemia.annotate import annotate
from examples.leukemia.gazetteer import Gazetteer

__all__ = ["TERMS_INSTRUCTION", "key_terms", "read_terms"]

TERMS_INSTRUCTION = "List the key terms of this abstract: diseases, genes, drugs, phases."


def key_terms(text: str, gazetteer: Gazetteer) -> list[str]:
    """Preferred names, each once, in the order in which the text first names them."""
    return list(dict.fromkeys(span.name for span in annotate(text, gazetteer)))


def read_terms(text: str) -> set[str]:
    """The terms of a written list, in small letters: parted at semicolons and lines, bullets and full stops left out.

    The semicolon of t(9;22) parts none.
    """
    return {term for part in re.split(r"\n|;(?![^()\n]*\))", text.lower()) if (term := part.strip(" \t-*•.,"))}
