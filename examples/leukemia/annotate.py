"""Find what a text names: subtypes, genes and fusions, drugs, phases, lab values, each a span with an id.

The longest name that starts at a word is taken, from left to right, by a walk down a trie of words: the time depends
on the length of the text and not on how many names there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from examples.leukemia.gazetteer import Entity, Gazetteer, load_gazetteer, words_of
from examples.leukemia.spelling import american_word
from examples.leukemia.surroundings import names_something_else
from examples.leukemia.values import find_value

__all__ = ["Span", "annotate", "blank_subtypes", "find_subtypes", "subtype_of", "subtype_of_spans"]


@dataclass(frozen=True)
class Span:
    """A stretch text[start:end] that names an entity.

    Attributes:
        value, unit: of a lab value, in the analyte's unit.
        between: of a lab value: what stands between the analyte and it (" at diagnosis was ").
        value_first: of a lab value: whether it stands before the analyte (a 12 g/dL hemoglobin).
        written: of a lab value: it as the text has it, where that is in another unit (120 g/L).
    """

    start: int
    end: int
    text: str
    type: str
    id: str
    name: str
    value: str = ""
    unit: str = ""
    between: str = ""
    value_first: bool = False
    written: str = ""


def annotate(text: str, gazetteer: Gazetteer | None = None) -> list[Span]:
    """All spans of `text` in their order; they do not overlap."""
    gazetteer = gazetteer or load_gazetteer()
    spans = [_span(text, start, end, entity) for start, end, entity in _matches(text, gazetteer)]
    return _with_values(text, _joined_fusions(text, spans, gazetteer), gazetteer)


def find_subtypes(text: str, gazetteer: Gazetteer | None = None) -> set[str]:
    """The labels that `text` names; one that another found one is part of does not count (APL, not AML)."""
    gazetteer = gazetteer or load_gazetteer()
    return _labels(annotate(text, gazetteer), gazetteer)


def _labels(spans: Sequence[Span], gazetteer: Gazetteer) -> set[str]:
    found = {gazetteer.by_id[span.id].label for span in spans if span.type == "subtype"}
    return found - {gazetteer.labels[label] for label in found}


def subtype_of(title: str, abstract: str, gazetteer: Gazetteer | None = None, given: str | None = None) -> str | None:
    """The one label that an article is about: that of its title, else of its abstract; None where it is not one.

    Args:
        given: what people say; it is taken as it is, but for the capitals of a label.
    """
    gazetteer = gazetteer or load_gazetteer()
    return subtype_of_spans((annotate(text, gazetteer) for text in (title, abstract)), gazetteer, given)


def subtype_of_spans(texts: Iterable[Sequence[Span]], gazetteer: Gazetteer, given: str | None = None) -> str | None:
    """`subtype_of`, from the spans of the title and those of the abstract."""
    if given:
        return gazetteer.label_of(given)
    for spans in texts:
        found = _labels(spans, gazetteer)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def blank_subtypes(text: str, gazetteer: Gazetteer | None = None) -> str:
    """`text` with each name of a subtype replaced by "leukemia", so that a classifier cannot copy its answer.

    More is blanked than is annotated: what is denied (non-APL), parts of names ("acute myelogenous and lymphocytic
    leukemia") and abbreviations inside of others (AAML0531), but no gene's (AML1).
    """
    gazetteer = gazetteer or load_gazetteer()
    parts, place = [], 0
    for start, end, entity in _matches(text, gazetteer, denied=True):
        between = gazetteer.abbreviation.sub(gazetteer.topic, text[place:start])
        parts += [between, gazetteer.topic if entity.type == "subtype" else text[start:end]]
        place = end
    text = "".join([*parts, gazetteer.abbreviation.sub(gazetteer.topic, text[place:])])
    text = gazetteer.lineage.sub("", text)
    return text.replace(f"{gazetteer.topic} ({gazetteer.topic})", gazetteer.topic)


def _matches(text: str, gazetteer: Gazetteer, denied: bool = False) -> Iterator[tuple[int, int, Entity]]:
    """(start, end, entity) of the longest name at each word; a word that was taken starts no other name.

    Args:
        denied: whether non-CLL names CLL.
    """
    words, lowered = words_of(text), text.lower()
    excluded = _excluded(lowered, gazetteer)  # once a text: looking for these words takes time
    keys = [_key(word) for word, _ in words]
    place = 0
    trie = gazetteer.trie
    while place < len(words):
        if keys[place] not in trie and keys[place].removesuffix("s") not in trie:  # most words start no name
            place += 1
            continue
        node, start, found = trie, words[place][1], None
        for position in range(place, len(words)):
            key, end = keys[position], words[position][1] + len(words[position][0])
            singular = key.removesuffix("s") or key  # a lone s is no plural of nothing
            names = [*node.get(key, {}).get("", ()), *node.get(singular, {}).get("", ())]
            for entity, name in names:
                no = not denied and entity.type in ("subtype", "disease") and _is_other(text, start, end, entity)
                if (
                    not no
                    and _is_meant(text, start, end, entity, excluded)
                    and _as_written(text[start:end], entity, name)
                ):
                    found = (start, end, entity), position + 1
            node = node.get(key)
            if node is None:
                break
        if found:
            yield found[0]
        place = found[1] if found else place + 1


def _is_meant(text: str, start: int, end: int, entity: Entity, excluded: set[str]) -> bool:
    """Whether the words of the text, and before them those right beside the name, let it name the entity."""
    if not (entity.beside or entity.not_beside):
        return entity.id not in excluded
    before = _LAST_WORD.search(text[max(0, start - 40) : start])
    behind = _NEXT_WORD.match(text, end)
    beside = [found[1].lower() for found in (before, behind) if found]
    if any(word.startswith(entity.not_beside) for word in beside):
        return False
    return entity.id not in excluded or any(word.startswith(entity.beside) for word in beside)


_LAST_WORD = re.compile(r"([A-Za-z]+)[\s-](?:(?:of|in|the)\s){0,2}\(?$")
_NEXT_WORD = re.compile(r"\)?[\s-]([A-Za-z]+)")


def _is_other(text: str, start: int, end: int, entity: Entity) -> bool:
    return names_something_else(text, start, end, (entity.name, *entity.names))


@cache  # texts repeat their words
def _key(word: str) -> str:
    return american_word(word.lower())


def _span(text: str, start: int, end: int, entity: Entity) -> Span:
    return Span(start, end, text[start:end], entity.type, entity.id, entity.name)


def _as_written(found: str, entity: Entity, name: str) -> bool:
    """ "ALL" is a subtype, "all" a word: what has capitals must have them, but for gene symbols with a digit (Flt3)."""
    if name == name.lower() or (entity.type == "gene" and any(map(str.isdigit, name))):
        return True
    pairs = zip(words_of(found), words_of(name))
    return all(word in (wanted, f"{wanted}s") or wanted == wanted.lower() for (word, _), (wanted, _) in pairs)


def _excluded(lowered: str, gazetteer: Gazetteer) -> set[str]:
    """Ids of what the words of a text rule out: NF1 is no gene where the text speaks of neurofibromatosis."""
    return {
        entity.id
        for entity in gazetteer.conditional
        if any(map(lowered.__contains__, entity.unless))
        or (entity.needs and not any(map(lowered.__contains__, entity.needs)))
    }


_FUSION = re.compile(r"fusion|fused|translocat|rearrange|transcript|chim(?:a)?er|t\(\d", re.IGNORECASE)
_IS_FUSION = re.compile(r"\s(?:fusion|chim(?:a)?er)", re.IGNORECASE)


def _joined_fusions(text: str, spans: list[Span], gazetteer: Gazetteer) -> list[Span]:
    """Two genes written as one fusion that the gazetteer does not list become it: RUNX1-PRDM16, RUNX1/PRDM16."""
    joined: list[Span] = []
    marks = ("::", "-", "/") if _FUSION.search(text) else ("::",)
    for span in spans:
        first = joined[-1] if joined else span
        mark = text[first.end : span.start]
        told = mark != "/" or _IS_FUSION.match(text, span.end)  # it also parts a list: MYC/BCL2 rearrangements
        if mark in marks and told and first.type == span.type == "gene":
            ids, name = f"{first.id}::{span.id}", f"{first.name}::{span.name}"
            joined[-1] = Span(first.start, span.end, text[first.start : span.end], "fusion", ids, name)
        else:
            joined.append(span)
    return joined


def _with_values(text: str, spans: Sequence[Span], gazetteer: Gazetteer) -> list[Span]:
    """The spans, each analyte with its value; one that has none is no span."""
    kept: list[Span] = []
    for span, following in zip(spans, [*(span.start for span in spans[1:]), len(text)]):
        if span.type == "analyte":
            taken = kept[-1].end if kept else 0
            value = find_value(text, span.start, span.end, gazetteer.by_id[span.id], taken, following)
            if value is None:
                continue
            span = Span(text=text[value.start : value.end], type="lab", id=span.id, name=span.name, **vars(value))
        kept.append(span)
    return kept
