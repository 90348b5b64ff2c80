"""How hard a text is to read: its sentences, words and syllables, and the years of school that it asks for."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["reading_counts", "reading_grade", "split_sentences"]

Floats = NDArray[Any]

_BETWEEN = re.compile(
    r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\b(?:vs|cf|St|Dr|Mr|Ms)\.)(?<!\b(?:Mrs|Fig)\.)(?<!\bProf\.) (?=[A-Z(]|(?P<number>\d))"
)
# what begins with a number: "12 patients", "5-year survival", "24 of 30 (80%)"; not "2010;28:1-5"
_COUNTED = re.compile(r"\d[\d.,/]*(?:-\d[\d.,]*)?(?:%|-(?=[A-Za-z]))?(?:\s?\([^()]{1,30}\))?\s?\(?[A-Za-z]")
# what may end before a number: a word (follow-up), an abbreviation in capitals, a unit (5 mg, g/dL), a bracket, %, a year or a decimal; not
# "P < 0. 05"
_ENDED = re.compile(
    r"(?:[A-Za-z]-?[A-Za-z]{2}|[A-Z]{2}|[\d/]\s?[A-Za-zμ]{1,2}2?|[)\]%!?\"']|\b(?:19|20)\d\d|\d\.\d{1,9})\.?$"
)
_NUMBERED = re.compile(  # of what the number may be: no. 12, Figs. 2 and 3, et al. 2004, approx. 5
    r"\b(?:al|approx|arts?|avg|ca|cf|chap|conc|eds?|eqs?|est|etc|exp|ex|figs?|incl|max|med|min|nos?|nrs?|pp|paras?|pts?"
    r"|refs?|resp|sect?|ser|suppl|tabs?|temp|ver|viz|vols?|vs|wt|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|ltd|inc"
    r"|e\.g|i\.e)\.$",
    re.IGNORECASE,
)


# an initial (by P. Nowell, D. A. Hungerford), unless a word follows that begins sentences; Proc. Natl. Acad. Sci.
_OF_A_NAME = re.compile(
    r"(?:\b(?:by|and|of|from|with|Drs?\.|[A-Z]\.)\s|^|[,(]\s?)[A-Z]\.$|\b(?:Proc|Natl?|Acad|Univ|Inst|Dept)\.$"
)
_BEGINS = re.compile(
    r"(?:The|This|These|Those|That|There|They|It|Its|We|Our|In|On|At|Of|A|An|All|However|Patients?|Both)\b(?!\.)"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; "e.g.", "vs.", "Dr.", initials and the like end none, nor do "no." and "Fig." before a number."""
    parts, place = [], 0
    for match in _BETWEEN.finditer(text):
        before = text[max(0, match.start() - 12) : match.start()]
        if match["number"]:
            if not _COUNTED.match(text, match.end()) or not _ENDED.search(before) or _NUMBERED.search(before):
                continue
        elif _OF_A_NAME.search(before) and not _BEGINS.match(text, match.end()):
            continue
        parts.append(text[place : match.start()])
        place = match.end()
    return [part for part in [*parts, text[place:]] if part]


def reading_grade(sums: Floats) -> Floats:
    """Flesch-Kincaid grade (Kincaid et al. 1975): years of school that a text asks for, of counts (..., 3) of words,
    sentences and syllables."""
    words = np.maximum(sums[..., 0], 1)
    return 0.39 * words / np.maximum(sums[..., 1], 1) + 11.8 * sums[..., 2] / words - 15.59


def reading_counts(text: str) -> tuple[int, int, int]:
    """Words, sentences and syllables of a text; a word has as many syllables as it has places to hyphenate, and one."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*|\d+(?:\.\d+)?", text)
    return len(words), len(split_sentences(text.strip())) if words else 0, sum(map(_syllables, words))


@cache
def _syllables(word: str) -> int:
    return max(1, len(_hyphenation().positions(word)) + 1)


@cache
def _hyphenation() -> Any:
    import pyphen

    return pyphen.Pyphen(lang="en_US")
