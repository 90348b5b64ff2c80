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

__all__ = ["Span", "annotate", "blank_subtypes", "find_subtypes", "subtype_of", "subtype_of_spans"]


@dataclass(frozen=True)
class Span:
    """A stretch text[start:end] that names an entity.

    Attributes:
        value, unit: of a lab value, in the analyte's unit.
        between: of a lab value: what stands between the analyte and it (" at diagnosis was ").
        value_first: of a lab value: whether it stands before the analyte (a 12 g/dL hemoglobin).
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


_NUMBER = r"\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_VOLUME = (
    r"[dmnµμuDMNU]?[Ll]|mc[lL]|micro[lL]|100\s?(?:m[lL]|cc|millilit(?:er|re)s?)|c\.?mm|(?:deci|milli|micro)?lit(?:er|re)"
    r"|mm\^?(?:3|\(3\))|cu(?:bic|\.)?\s?(?:mm|millimet(?:er|re))"
)
_PERCENT = r"(?:%|per\s?cent\b)"
_UNIT = re.compile(  # x 10^9/L, K/µL, cells per mm3, g/dL, µmol L-1, g%
    rf"""(?:(?:(?:[xX×*]\s?10|10(?=\s?(?:\^|\(|\*\*)))\s?(?:\^|\(|\*\*?|[Ee]\+?)?\s?|[Ee]\+?)(?P<power>\d{{1,2}})\)?\s?
      |(?P<many>[Kk]|Gpt|Giga|G(?!\s?/\s?[Dd]))\s?(?=/)
      |(?P<amount>[mnpµμu]?g|gm|mcg|(?i:i?u)|(?:[Ii]nternational\s)?[Uu]nits?|(?:m|mc|[µμu]|micro|milli)mol(?:es?)?
        |[MNPU]?G|MCG|[MU]MOL)\s?
      |(?=/|cells?\b|per\s))
    (?:cells?\s?)?(?:(?:/|per\s)\s?(?P<volume>{_VOLUME})(?!\w)|[.·]?(?P<inverse>[dm]?[Ll])\s?\^?\(?-1\)?(?!\w)|(?<=[gm])(?P<hundred>%))
    |{_PERCENT}""",
    re.VERBOSE,
)
_QUANTITY = rf"""(?P<sign>(?:<=|>=|[<>]\s?(?:/|or)\s?=|[<>≤≥~]|(?:not\s)?(?:below|above|over|under|exceeding)|at\sleast|at\smost|up\sto
      |about|approximately|around|in\sexcess\sof|exceed(?:s|ed)|(?:did|does|do)\snot\sexceed
      |(?:not?\s)?(?:less|fewer|lower|greater|more|higher)\sthan(?:\sor\sequal\sto)?)\s?)?
    (?P<number>{_NUMBER})(?:\s?{_PERCENT}?\s?(?P<between>-|to|±|\+/-)\s?(?P<high>{_NUMBER}))?\s?
    (?P<unit>{_UNIT.pattern})"""
# is no value
_DIFFERENCE = r"(?:increase|rise|gain|improvement|change|difference|decrease|decline|drop|fall|reduction)"
_VALUE = re.compile(
    rf"""(?:\s\([A-Za-z]{{2,6}}\))?(?:\s(?:counts?|levels?|values?|concentrations?|percentages?))?
    (?:\s(?:at\s(?:diagnosis|presentation|admission)|in\s(?:the\s)?(?:bone\smarrow|peripheral\sblood|marrow|blood)))?
    (?:\s?[:=,(\[]\s?|\s(?:was|were|is|of|equal\sto)\s|\s)?(?:(?:a\s)?(?:median|mean)(?:\sof)?[:,]?\s)?{_QUANTITY}
    (?!\s(?:lower|higher|less|more|fewer|greater|below|above|{_DIFFERENCE})\b)""",
    re.VERBOSE,
)
# a 12 g/dL hemoglobin; but 20% of blasts are some of them
_VALUE_BEFORE = re.compile(rf"(?<![\w.,/+-]){_QUANTITY}(?:\s|(?<![%t])\sof\s)$", re.VERBOSE)
_CHANGE = re.compile(rf"\b{_DIFFERENCE}s?\s(?:in|of)\s(?:\w+\s)?$")
# by 2 g/dL hemoglobin; in 20% blasts were seen; 10 vs 20% blasts
_OF_ANOTHER = re.compile(rf"(?:\b(?:in|by|{_DIFFERENCE}s?\sof)|\d%?\s(?:vs\.?|versus|and|or))\s$")
_LINK = (
    r"and|or|in|on|at|with|without|to|from|for|before|after|but|as|than|who|that|which|when|while|during|despite|versus"
)
_ENDS = re.compile(rf"\s?(?:[,.;:)\]?!]|$)|\s(?:{_LINK})\b")  # no noun follows: blast clearance, MRD negativity
_ENDS_OR_VERB = re.compile(rf"{_ENDS.pattern}|\s(?:was|were|is|are)\b")
_OF_MANY = re.compile(
    r"\sof\s(?:\w+\s){0,2}(?:patients|cases|children|adults|men|women|subjects|samples|individuals)\b"
)
_MANY = {"K": 3, "k": 3, "G": 9, "Gpt": 9, "Giga": 9}  # powers of ten; Gpt: of particles
_PER_LITRE = {"l": 1.0, "dl": 10.0, "ml": 1e3, "ul": 1e6, "mm3": 1e6, "nl": 1e9}
_AMOUNTS = {"g": 1.0, "mg": 1e-3, "ug": 1e-6, "ng": 1e-9, "pg": 1e-12, "u": 1.0, "iu": 1.0, "mmol": 1e-3, "umol": 1e-6}
_SHORT = (  # as it is in these tables
    (re.compile(r"[\s^().]"), ""), (re.compile(r"[µμ]|micro|mc(?=g|l|mol)"), "u"), (re.compile("milli(?!met)"), "m"),
    (re.compile("deci"), "d"), (re.compile("lit(?:er|re)s?"), "l"), (re.compile("100(?:ml|cc)"), "dl"),
    (re.compile("cu(?:bic)?m.*|cmm"), "mm3"), (re.compile("gm"), "g"), (re.compile("moles?"), "mol"),
    (re.compile("(?:international)?units?"), "u"),
)  # fmt: skip


def _with_values(text: str, spans: Sequence[Span], gazetteer: Gazetteer) -> list[Span]:
    """The spans, each analyte with its value; one that has none is no span."""
    kept: list[Span] = []
    for span in spans:
        taken = kept[-1].end if kept else 0
        found = _lab_value(text, span, taken, gazetteer.by_id[span.id]) if span.type == "analyte" else span
        kept += [found] if found else []
    return kept


def _lab_value(text: str, span: Span, taken: int, analyte: Entity) -> Span | None:
    """The span of an analyte with the value behind it, or right before it, in the gazetteer's unit; None where there is none.

    Args:
        taken: where the span before ends, whose value this one cannot have.
    """
    behind, before = _VALUE.match(text, span.end), _value_before(text, span, taken, analyte)
    if behind and _CHANGE.search(text[max(0, span.start - 40) : span.start]):
        return None
    # what stands behind a comma may be another's: 10 g/dL hemoglobin, 50% blasts
    for match in (before, behind) if behind and behind[0].startswith(",") else (behind, before):
        value = _value(text, match, analyte) if match else None
        if match is None or value is None:
            continue
        if match is before:
            start, end, words = match.start(), span.end, text[match.end("unit") : span.start]
        else:
            start, end = span.start, match.end()
            words = text[span.end : match.start("sign") if match["sign"] else match.start("number")]
        name = text[start:end]
        return Span(start, end, name, "lab", span.id, span.name, value, analyte.unit, words, match is before)
    return None


def _value_before(text: str, span: Span, taken: int, analyte: Entity) -> re.Match[str] | None:
    """The value that ends right before an analyte, unless it belongs to something else."""
    match = _VALUE_BEFORE.search(text, max(taken, span.start - 60), span.start)
    if match is None or _OF_ANOTHER.search(text[max(0, match.start() - 40) : match.start()]):
        return None
    if re.fullmatch("m[lL]", match["volume"] or "") and not analyte.unit.endswith("/mL"):
        return None  # a reagent: clots of 2 mg/mL fibrinogen
    ends = _ENDS if re.fullmatch(_PERCENT, match["unit"]) else _ENDS_OR_VERB  # 20% blasts were CD34+: a share of them
    return match if ends.match(text, span.end) else None


def _value(text: str, match: re.Match[str], analyte: Entity) -> str | None:
    """A quantity in the analyte's unit, as it is written there (">=50", "7.5-9"); None where it is doubtful or of another kind."""
    if match["high"] and re.search(r"\d[, ]\d", match["high"]) and not re.search(r"[., ]", match["number"]):
        return None  # 5-10,000 may be from 5 or from 5,000
    if re.fullmatch(r"\d{1,3}\.\d{3}", match["number"]) and re.match(r"(?:cells?\s?)?(?:/|per\s)", match["unit"]):
        return None  # 12.300/mm3 is twelve thousand in half of Europe
    if re.compile(r"\s(?:vs\.?|versus)\s\d").match(text, match.end()) or _OF_MANY.match(text, match.end()):
        return None  # the other value keeps its unit; MRD in 10% of patients is no value
    factor = _factor(match["unit"], analyte)
    if factor is None:
        return None
    numbers = [float(re.sub("[, ]", "", n)) * factor for n in (match["number"], match["high"]) if n]
    between = "±" if match["between"] in ("±", "+/-") else "-"
    digits = 3 if "mol" in match["unit"].lower() else 6  # a molar mass makes numbers long
    return _sign(match["sign"] or "") + between.join(f"{number:.{digits}g}" for number in numbers)


def _sign(written: str) -> str:
    """<, <=, >, >= or ~ for the words of a limit; one that is denied includes its value ("no less than")."""
    if not written or re.match("~|about|approx|around", written):
        return "~" if written else ""
    less = bool(re.search(r"[<≤]|below|under|less|fewer|lower|most|up\sto", written))
    denied = bool(re.search(r"\bnot?\b", written))
    equal = denied or bool(re.search(r"[=≤≥]|equal|least|most|up\sto", written))
    return ("<" if less != denied else ">") + "=" * equal


def _factor(written: str, analyte: Entity) -> float | None:
    """What a number in one unit is multiplied by to be in the analyte's; None where they do not go together."""
    kind, size = _measured(written)
    wanted, unit = _measured(analyte.unit)
    if kind == "mol" and wanted == "g" and analyte.molar_mass:
        return size * analyte.molar_mass / unit
    return size / unit if kind == wanted else None


@cache
def _measured(unit: str) -> tuple[str, float]:
    """What a unit measures, and how much of it: ("g", 10.0) of g/dL is grams a litre, ("", 1e9) of x 10^9/L a count."""
    match = _UNIT.fullmatch(unit)
    if match is None:
        return unit, 1.0
    if re.fullmatch(_PERCENT, unit):
        return "%", 1.0
    volume = _PER_LITRE[_short(match["volume"] or match["inverse"] or "dl")]  # g% is in 100 mL
    if not match["amount"]:
        if volume == 1 and not match["power"] and not match["many"]:
            # 50,000/L was one per µL before a font lost the letter: nobody counts cells a litre one by one
            return unit, 1.0
        return "", 10.0 ** int(match["power"] or _MANY.get(match["many"], 0)) * volume
    amount = _short(match["amount"])
    return "mol" if amount.endswith("mol") else amount[-1], _AMOUNTS[amount] * volume


def _short(words: str) -> str:
    for pattern, new in _SHORT:
        words = pattern.sub(new, words.lower())
    return words
