"""Part an abstract from its conclusion: by a label, or by words with which authors conclude."""

from __future__ import annotations

import re

from examples.leukemia.data import Record
from examples.leukemia.reading import split_sentences

__all__ = ["part_conclusion"]

_NAMES = r"(?:authors?['’]? )?(?:conclusions?|interpretation|summary and conclusions?|significance)"
_LABEL = re.compile(rf"{_NAMES}(?: and .{{1,30}})?", re.IGNORECASE)
# "CONCLUSIONS:" anywhere, "Conclusion:" where a sentence starts
_INLINE = re.compile(rf"(?:^|(?<=[.!?] ))(?:{_NAMES}):\s+", re.IGNORECASE)
_NEXT_LABEL = re.compile(r"(?<=[.!?]) [A-Z][A-Z /&]{3,40}:\s")
_CUES = re.compile(
    r"(?:in (?:conclusion|summary)\b|(?:we|the authors) (?:therefore |thus )?conclude\b|taken together\b"
    r"|it (?:is|can be) concluded\b|(?:these|our|the(?: present)?) (?:results|findings|data|observations|study) "
    r"(?:\w+ ){0,2}(?:suggest|indicate|demonstrate|show|support|provide|confirm|imply|establish)\w*\b)",
    re.IGNORECASE,
)
LATE = 3  # an unlabelled conclusion starts among so many of the last sentences


def part_conclusion(record: Record) -> tuple[str, str] | None:
    """(the abstract without its conclusion, the conclusion), or None where none can be told from the rest."""
    labelled = [text for label, text in record.sections if _LABEL.fullmatch(label.strip())]
    if labelled:
        rest = [f"{label}: {text}" if label else text for label, text in record.sections if text not in labelled]
        return (" ".join(rest), " ".join(labelled)) if rest else None
    if marks := list(_INLINE.finditer(record.abstract)):
        start, end = marks[-1].span()
        following = _NEXT_LABEL.search(record.abstract, end)
        stop = following.start() if following else len(record.abstract)
        rest_of = f"{record.abstract[:start].strip()} {record.abstract[stop:].strip()}".strip()
        return _both(rest_of, record.abstract[end:stop].strip())
    sentences = split_sentences(record.abstract)
    for place in range(max(1, len(sentences) - LATE), len(sentences)):
        if _CUES.match(sentences[place]):
            return _both(" ".join(sentences[:place]), " ".join(sentences[place:]))
    return None


def _both(rest: str, conclusion: str) -> tuple[str, str] | None:
    return (rest, conclusion) if rest and conclusion else None
