"""Plain language: a sentence of an abstract, and how it is said without its technical terms, by a glossary.

The glossary is a data file with sources. What it writes is what the model learns from: it replaces words and keeps the
sentence, and people have not checked it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from examples.leukemia.data import UserError
from examples.leukemia.fitting import fits, reads_well
from examples.leukemia.reading import reading_counts, reading_grade, split_sentences

__all__ = ["GLOSSARY", "Entry", "Glossary", "load_glossary", "plain_pair", "same_words"]

GLOSSARY = Path(__file__).parent / "data" / "glossary.json"
LONGEST = 60  # words of a sentence that is put plainly


@dataclass(frozen=True)
class Entry:
    """How a term is said in a sentence, and in which.

    Attributes:
        part: of speech: a "noun" has to fit its place by `fitting.fits`; an "other" is ruled by the words here alone.
        needs, unless: small letters of which some must, or none may, stand in the sentence beside the term.
        before, behind: the words or marks of which one must stand right before the term, or right behind it; "-ly" is any
            word that ends so, "" the edge of the sentence.
        not_before, not_behind: those that may not.
    """

    plain: str
    part: str = "noun"
    needs: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    not_before: tuple[str, ...] = ()
    not_behind: tuple[str, ...] = ()

    def suits(self, before: str, behind: str) -> bool:
        """Whether the words around allow it."""
        around = f"{before} {behind}".lower()
        if any(map(around.__contains__, self.unless)) or (self.needs and not any(map(around.__contains__, self.needs))):
            return False
        last, following = _WORD_BEFORE.search(before), _WORD_BEHIND.match(behind)
        sides = (
            (last[1].lower() if last else "", self.before, self.not_before),
            (following[1].lower() if following else "", self.behind, self.not_behind),
        )
        return all((not one or _is_one(word, one)) and not _is_one(word, none) for word, one, none in sides)


_WORD_BEFORE = re.compile(r"([\w']+|[^\w\s])\s*$")
_WORD_BEHIND = re.compile(r"\s*([\w']+|[^\w\s])")


def _is_one(word: str, words: tuple[str, ...]) -> bool:
    return word in words or any(ending[:1] == "-" and word.endswith(ending[1:]) for ending in words)


@dataclass(frozen=True)
class Glossary:
    """Plain words by technical term, the terms in small letters.

    Attributes:
        entries: of terms that have a context, and of phrases of which a sentence is made but that have no meaning alone.
    """

    plain: dict[str, str]
    entries: dict[str, Entry] = field(default_factory=dict)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Any term as whole words, the longest first."""
        terms = sorted({**self.plain, **self.entries}, key=len, reverse=True)
        return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, terms))})(?![\w-])", re.IGNORECASE)

    def simplify(self, text: str) -> tuple[str, int]:
        """`text` with each term put plainly that its place allows, and how many those were.

        A capital at the front of the text stays.
        """
        parts, place, terms = [], 0, 0
        for match in self.pattern.finditer(text):
            term = match.group()
            entry = self.entries.get(term.lower()) or Entry(self.plain[term.lower()])
            before, behind = text[: match.start()], text[match.end() :]
            joined = self._behind_coordinated(behind)
            if not entry.suits(before, joined) or (
                entry.part == "noun" and not fits(entry.plain, term, before, joined)
            ):
                continue
            plain = entry.plain
            capital = term[0].isupper() and match.start() == 0
            parts += [text[place : match.start()], plain[0].upper() + plain[1:] if capital else plain]
            place, terms = match.end(), terms + 1
        plain = "".join([*parts, text[place:]])
        return re.sub(r"(\(\w+\)) \1", r"\1", plain), terms  # a short form that both text and glossary give

    def _behind_coordinated(self, behind: str) -> str:
        """What stands behind the terms that are joined to one: "in vitro and in vivo effects" has a noun behind both."""
        while joined := re.match(r",?\s(?:and|or)\s", behind):
            following = self.pattern.match(behind, joined.end())
            if not following:
                break
            behind = behind[following.end() :]
        return behind


@cache
def load_glossary(path: Path = GLOSSARY) -> Glossary:
    """Read a glossary file: {"terms": [{"term": ..., "plain": ...}, ...]}, rows with the fields of `Entry` as they need.

    "phrases", where it has them, are such rows, too: they count in sentences only, and before a term of the same words.

    Raises:
        UserError: it cannot be read or is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        terms, phrases = data["terms"], data.get("phrases", [])
        plain = {row["term"].lower(): row["plain"] for row in terms}
        return Glossary(plain, {row["term"].lower(): _entry(row) for row in (*terms, *phrases)})
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a glossary file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no glossary ({type(error).__name__}: {error}): see data/glossary.json") from None


def _entry(row: dict[str, Any]) -> Entry:
    """Of a row; the words of a context are a list, since each letter of a string would count as one."""
    given = {key: value for key, value in row.items() if key != "term"}
    words = {key: value for key, value in given.items() if key not in ("plain", "part")}
    if not all(isinstance(value, list) for value in words.values()) or given.get("part", "noun") not in (
        "noun",
        "other",
    ):
        raise ValueError(f"{row['term']!r}: {', '.join(words)} are lists of words, part is noun or other")
    return Entry(**given | {key: tuple(value) for key, value in words.items()})


def plain_pair(abstract: str, glossary: Glossary, taken: Container[str] = ()) -> tuple[str, str] | None:
    """The sentence of an abstract that gets easiest to read when put plainly, and how it then reads.

    Easier is a lower Flesch-Kincaid grade: words that explain a term can make a sentence harder. None if none gets easier
    and reads as grammatical.

    Args:
        taken: the `same_words` of sentences that another article has given, to be passed over.
    """
    pairs = [(sentence, *glossary.simplify(sentence)) for sentence in split_sentences(abstract)]
    falls = {
        (sentence, plain): _grade(sentence) - _grade(plain)
        for sentence, plain, terms in pairs
        if terms
        and len(sentence.split()) <= LONGEST
        and reads_well(plain, sentence)
        and same_words(sentence) not in taken
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
