"""Plain language: a sentence of an abstract, and how it is said without its technical terms, by a glossary.

The glossary is a data file with sources. What it writes is what the model learns from: it replaces words and keeps the
sentence, and people have not checked it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from examples.leukemia.data import UserError
from examples.leukemia.reading import reading_counts, reading_grade, sentences_of

__all__ = ["GLOSSARY", "Glossary", "load_glossary", "plain_pair", "same_words"]

GLOSSARY = Path(__file__).parent / "data" / "glossary.json"
LONGEST = 60  # words of a sentence that is put plainly


@dataclass(frozen=True)
class Glossary:
    """Plain words by technical term, the terms in small letters."""

    plain: dict[str, str]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Any term as whole words, the longest first."""
        terms = sorted(self.plain, key=len, reverse=True)
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, terms))})(?![\w-])", re.IGNORECASE)

    def simplify(self, text: str) -> tuple[str, int]:
        """`text` with each term put plainly, and how many terms that were; a capital at the front of one stays."""

        def put(match: re.Match[str]) -> str:
            term = match.group()
            plain = self.plain[term.lower()]
            return plain[0].upper() + plain[1:] if term[0].isupper() and match.start() == 0 else plain

        plain, terms = self.pattern.subn(put, text)
        return re.sub(r"(\(\w+\)) \1", r"\1", plain), terms  # a short form that both text and glossary give


@cache
def load_glossary(path: Path = GLOSSARY) -> Glossary:
    """Read a glossary file: {"terms": [{"term": ..., "plain": ...}, ...]}.

    Raises:
        UserError: it cannot be read or is not one.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["terms"]
        return Glossary({row["term"].lower(): row["plain"] for row in rows})
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a glossary file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no glossary ({type(error).__name__}: {error}): see data/glossary.json") from None


def plain_pair(abstract: str, glossary: Glossary, taken: Container[str] = ()) -> tuple[str, str] | None:
    """The sentence of an abstract that gets easiest to read when put plainly, and how it then reads.

    Easier is a lower Flesch-Kincaid grade: words that explain a term can make a sentence harder. None if none gets easier.

    Args:
        taken: the `same_words` of sentences that another article has given, to be passed over.
    """
    pairs = [(sentence, *glossary.simplify(sentence)) for sentence in sentences_of(abstract)]
    falls = {
        (sentence, plain): _grade(sentence) - _grade(plain)
        for sentence, plain, terms in pairs
        if terms and len(sentence.split()) <= LONGEST and same_words(sentence) not in taken
    }
    best = max(falls, key=falls.__getitem__, default=None)  # of equals the first
    return best if best and falls[best] > 0 else None


# a label ("CONCLUSION:"), a word or two before a comma ("In conclusion,"), a clause that only reports ("We conclude that")
_LEAD_IN = re.compile(r"(?:(?:[\w/&-]+ ){0,4}[\w/&-]+:|(?:\w+ )?\w+,|(?:\w+ ){1,5}that\b)\s*")


def same_words(sentence: str) -> str:
    """What two sentences share that differ at most in numbers, capitals, spaces, punctuation and the words that lead in."""
    numbered = re.sub(r"\d+(?:[.,]\d+)*", "0", sentence.lower())
    told = numbered
    while found := _LEAD_IN.match(told):
        told = told[found.end() :]
    return " ".join(re.findall(r"\w+", told or numbered))


def _grade(text: str) -> float:
    return float(reading_grade(np.array(reading_counts(text))))
