"""The value that a text gives of an analyte, in the analyte's unit: of a patient or of a group of them, or none.

A wrong value is worse than none: what stands before the analyte and behind the value must be of a kind that states one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

from examples.leukemia.gazetteer import Entity

__all__ = ["Value", "find_value"]


@dataclass(frozen=True)
class Value:
    """A value with its analyte in text[start:end]; for the other attributes see `annotate.Span`."""

    start: int
    end: int
    value: str
    unit: str
    between: str
    value_first: bool
    written: str


_NUMBER = r"\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_VOLUME = (
    r"(?i:[dmnµμu]?l|mcl|microl|100\s?(?:ml|cc|millilit(?:er|re)s?)|c\.?mm|(?:deci|milli|micro)?lit(?:er|re)"
    r"|mm\^?(?:3|\(3\))|cu(?:bic|\.)?\s?(?:mm|millimet(?:er|re)))"
)
_PERCENT = r"(?i:%|per\s?cent\b)"
_UNIT = re.compile(  # x 10^9/L, x 1000/µL, K/µL, cells per mm3, g/dL, µmol L-1, g%
    rf"""(?:[xX×*]\s?1(?P<zeros>0{{2,6}}|0{{0,2}}(?:,000)+)\s?(?=/|cells?\b|per\s)
      |(?:(?:[xX×*]\s?10|10(?=\s?(?:\^|\(|\*\*)))\s?(?:\^|\(|\*\*?|[Ee]\+?)?\s?|[Ee]\+?)(?P<power>0?[1-9]\d?)\)?\s?
      |(?P<many>[Kk]|Gpt|Giga|G(?!\s?/\s?(?:[Dd]|100)))\s?(?=/)
      |(?P<amount>[mnpµμu]?g|gm|mcg|(?i:i?u|(?:international\s)?units?)|(?:m|mc|[µμu]|micro|milli)mol(?:es?)?
        |[MNPU]?G|GM|MCG|[MU]MOL)\s?
      |(?=/|cells?\b|(?i:per)\s))
    (?:cells?\s?)?(?:(?:/|(?i:per)\s)\s?(?P<volume>{_VOLUME})(?!\w)|[.·]?(?P<inverse>[dm]?[Ll])\s?\^?\(?-1\)?(?!\w)
      |(?<=[gmGM])(?P<hundred>%))
    |{_PERCENT}""",
    re.VERBOSE,
)
_QUANTITY = rf"""(?P<sign>(?i:<=|>=|[<>]\s?(?:/|or)\s?=|[<>≤≥~]|(?:not\s)?(?:below|above|over|under|exceeding)|at\sleast|at\smost
      |up\sto|about|approximately|around|in\sexcess\sof|exceed(?:s|ed)|(?:did|does|do)\snot\sexceed
      |(?:not?\s)?(?:less|fewer|lower|greater|more|higher)\sthan(?:\sor\sequal\sto)?)\s?)?
    (?P<number>{_NUMBER})(?:\s?{_PERCENT}?\s?(?P<between>-|to|±|\+/-)\s?(?P<high>{_NUMBER}))?\s?
    (?P<unit>{_UNIT.pattern})"""
_VALUE = re.compile(
    rf"""(?i:(?:\s\([A-Z]{{2,6}}\))?(?:\s(?:counts?|levels?|values?|concentrations?|percentages?))?
    (?:\s(?:at\s(?:diagnosis|presentation|admission)|in\s(?:the\s)?(?:bone\smarrow|peripheral\sblood|marrow|blood)))?
    (?:\s?[:=,(\[]\s?|\s(?P<verb>was|were|is)\s|\s(?:of|equal\sto)\s|\s)?(?:(?:a\s)?(?:median|mean)(?:\sof)?[:,]?\s)?)
    {_QUANTITY}""",
    re.VERBOSE,
)
# a 12 g/dL hemoglobin; but 20% of blasts are some of them
_VALUE_BEFORE = re.compile(rf"(?<![\w.,/+-]){_QUANTITY}(?:\s|(?<![%tT])\sof\s)$", re.VERBOSE)

# What may stand before the analyte, or before a value that precedes it. Any other word may make it another quantity (ionized
# calcium, undetectable MRD) or a part of what is told (viability of blasts, each 1 g/dL of hemoglobin).
_WHICH = (
    r"(?:median|mean|average|initial|baseline|present(?:ing|ation)|diagnostic|diagnosis|admission|pre-?treatment|peak|nadir"
    r"|maxim(?:um|al)|minim(?:um|al)|(?:high|low)(?:er|est)?|elevated|total|serum"
    r"|(?:peripheral|venous|whole)\sblood|blood|(?:bone\s)?marrow|absolute|leuka?emic|final|last|first|day\s\d+|patients?['’]?s?)"
)
_CAN_PRECEDE = re.compile(
    rf"""(?:(?:^|[.,;:?!(\[]\s?|(?:/[dmµμu]?l|/mm3)\s|\b(?:levels?|concentrations?|counts?|percentages?)\sof\s)
      |\b(?P<and>and|or)\s
      |\b(?:but|if|when|whose|while|where(?:as)?|which|because|until|that|than|as|plus|there\s(?:is|are|was|were))\s
      |\b(?P<with>(?<!ed\s)(?<!wn\s)with|(?:present|diagnos|associat|correlat|admitt|compar)ed\swith|without)\s
      |\b(?P<verb>ha[ds]|have|having|show(?:s|ed|ing)?|reveal(?:s|ed|ing)?|disclosed|demonstrated|found|include[ds]?|including
        |requir(?:e[ds]?|ing)|contained|identified|keep|maintain|(?:remarkable|notable|significant|except)\sfor)\s
      |\b(?P<at>at|on)\s|\b(?P<is>is|are|was|were)\s|\b(?P<limit>by|of|in|to|for)\s)
    (?:(?:the|(?P<article>an?)|his|her|their|its)\s)?(?:{_WHICH}\s)*$""",
    re.IGNORECASE | re.VERBOSE,
)
_DIFFERENCE = r"(?:increas|ris|gain|improve|chang|differen|decreas|declin|drop|fall|reduc|increment|loss)\w*"
_CHANGE = re.compile(rf"\b{_DIFFERENCE}\s(?:in|of)\s[^,.;:]*$", re.IGNORECASE)
_FLUID = (
    r"(?<!-)\b(?:CSF|fluid(?!\s(?:resus|over|reten|ther))|urin(?:e|ary)(?!\s(?:tract|output))|ascites|lavage"
    r"|apheresis)\b"
)
_EXPERIMENT = (
    r"\b(?:in\svitro|incubat\w+|cultured|cell\slines?|medium(?!-)|buffer\w*|suspen\w+|supernatants?|solutions?|saline|mice|rats"
    r"|rabbits)\b|\d\s?[nµμu]M\b"
)
_NOT_OF_BLOOD = re.compile(rf"{_FLUID}|{_EXPERIMENT}", re.IGNORECASE)
_NOT_OF_BLOOD_BEHIND = re.compile(rf"\b(?:in|of|from)\s(?:\w+\s){{0,2}}{_FLUID}|{_EXPERIMENT}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.?!]\s+(?=[A-Z(\[]|\d)")
_LINK = (
    r"(?:and|or|in|on|at|with|without|to|from|for|before|after|but|as|than|who|that|which|when|while|during|despite|by|if"
    r"|where(?:as)?|because|since|until|within|over|among|between|compared|respectively|requiring|followed)\b"
)
# no noun follows: blast clearance, MRD negativity
_ENDS = re.compile(rf"\s?(?:[,.;:()[\]?!]|$)|\s{_LINK}", re.IGNORECASE)
_ENDS_OR_VERB = re.compile(rf"{_ENDS.pattern}|\s(?:was|were|is|are)\b", re.IGNORECASE)
_IS = r"(?:was|were|is|are)\s"
_IS_SEEN = rf"{_IS}(?:noted|found|seen|observed|documented|recorded|reported|low|high|elevated|normal|associated)\b"
# 5 g/dL lower, 45% positive for CD13; 2 mmol/L was added, inhibited: of a reagent
_STATED = re.compile(
    rf"(?:\s?[)\]]|(?!\s?[)\]]))(?:,?\s{_IS_SEEN}|\s(?:rose|fell|dropped|declined|(?:in|de)creased\s(?:to|from))\b"
    rf"|(?!,?\s{_IS}|,\s[a-z]+ed\b)(?:{_ENDS.pattern}))|\sof\s(?:the\s)?(?:\w+\s){{0,3}}cells\b",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"\s\((?:\d+\s?(?:of|/)\s?\d|n\s?=)")  # MRD was 60% (30 of 50)
_OF_OTHERS = re.compile(
    rf"\s(?:lower|higher|less|more|fewer|greater|below|above|of|vs|versus|{_DIFFERENCE})\b", re.IGNORECASE
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


def find_value(text: str, start: int, end: int, analyte: Entity, taken: int, following: int) -> Value | None:
    """The value right behind the analyte text[start:end], or right before it; None where the text states none of a patient.

    Args:
        taken: where the span before ends, whose value this one cannot have.
        following: where the next span starts.
    """
    sentence_start = max([0, *(found.end() for found in _SENTENCE_END.finditer(text, max(0, start - 400), start))])
    rest = _SENTENCE_END.split(text[end : end + 400], maxsplit=1)[0]
    if _NOT_OF_BLOOD.search(text[max(sentence_start, start - 400) : end]) or _NOT_OF_BLOOD_BEHIND.search(rest):
        return None
    behind, before = _VALUE.match(text, end), _VALUE_BEFORE.search(text, max(taken, start - 60), start)
    if behind and not _is_stated_behind(text, start, behind, following):
        behind = None
    if before and not _is_stated_before(text, before, end):
        before = None
    # what stands behind a comma may be another's: 10 g/dL hemoglobin, 50% blasts
    for match in (before, behind) if behind and behind[0].startswith(",") else (behind, before):
        numbers = _in_unit(match, analyte) if match else None
        if match is None or numbers is None:
            continue
        quantity = match.start("sign") if match["sign"] else match.start("number")
        written = "" if math.isclose(_factor(match["unit"], analyte) or 1, 1) else text[quantity : match.end("unit")]
        if match is before:
            return Value(quantity, end, numbers, analyte.unit, text[match.end("unit") : start], True, written)
        return Value(start, match.end(), numbers, analyte.unit, text[end:quantity], False, written)
    return None


def _is_stated_behind(text: str, start: int, match: re.Match[str], following: int) -> bool:
    """Whether what stands before the analyte and behind the value that follows it lets it be the analyte's."""
    share, signed, place = _is_share(match), bool(match["sign"]), max(0, start - 100)
    before = _CAN_PRECEDE.search(text[place:start])
    if before is None or (not share and _CHANGE.search(text[place:start])):
        return False
    if before["is"] or before["limit"]:  # were blasts, 10% lymphocytes; but defined by platelets < 100 x 10^9/L
        allowed = signed and not share and not match["verb"]
    elif before["with"] or before["at"]:  # DFS of patients with MRD was 30%; lysis at blasts > 10%
        allowed = not match["verb"] and (not share or bool(signed and before["with"]))
    elif before["verb"]:
        allowed = not match["verb"]
    else:  # lysis of lymphocytes and blasts was 45%
        allowed = not (
            share and before["and"] and not re.search(r"[\d%L),]\s$", text[place : place + before.start("and")])
        )
    if share and not signed and _COUNTED.match(text, match.end()):
        return False
    if signed or (before["with"] and not share):  # patients with WBC of 50-100 x 10^9/L had
        return allowed and not _OF_OTHERS.match(text, match.end())
    return allowed and (match.end() + 1 >= following or bool(_STATED.match(text, match.end())))


def _is_stated_before(text: str, match: re.Match[str], end: int) -> bool:
    """Whether what stands before the value and behind the analyte that follows it lets it be the analyte's."""
    share, place = _is_share(match), max(0, match.start() - 100)
    before = _CAN_PRECEDE.search(text[place : match.start()])
    if before is None or before["limit"] or (share and before["at"]):
        return False
    if before["and"] and re.search(r"\d%?\s$", text[place : place + before.start("and")]):
        return False
    if "mol" in match["unit"].lower() and not before["article"]:
        return False  # a buffer's: with 0.5 mmol/L calcium
    ends = _ENDS if share else _ENDS_OR_VERB  # 20% blasts were CD34+: a share of them
    return bool(ends.match(text, end))


def _is_share(match: re.Match[str]) -> bool:
    return bool(re.fullmatch(_PERCENT, match["unit"]))


def _in_unit(match: re.Match[str], analyte: Entity) -> str | None:
    """A quantity in the analyte's unit, as it is written there (">=50", "7.5-9"); None where it is doubtful or of another kind."""
    if match["high"] and re.search(r"\d[, ]\d", match["high"]) and not re.search(r"[., ]", match["number"]):
        return None  # 5-10,000 may be from 5 or from 5,000
    if re.fullmatch(r"\d{1,3}\.\d{3}", match["number"]) and re.match(r"(?:cells?\s?)?(?:/|per\s)", match["unit"]):
        return None  # 12.300/mm3 is twelve thousand in half of Europe
    factor = _factor(match["unit"], analyte)
    if factor is None:
        return None
    if (
        re.fullmatch("m[lL]", match["volume"] or "")
        and "mL" not in analyte.unit
        and (not match["amount"] or factor != 1)
    ):
        return None  # a suspension or a reagent: 5 x 10^6/mL neutrophils, 2 mg/mL fibrinogen
    numbers = [float(re.sub("[, ]", "", n)) * factor for n in (match["number"], match["high"]) if n]
    between = "±" if match["between"] in ("±", "+/-") else "-"
    digits = 3 if "mol" in match["unit"].lower() else 6  # a molar mass makes numbers long
    return _sign(match["sign"] or "") + between.join(f"{number:.{digits}g}" for number in numbers)


def _sign(written: str) -> str:
    """<, <=, >, >= or ~ for the words of a limit; one that is denied includes its value ("no less than")."""
    written = written.lower()
    if not written or re.match("~|about|approx|around", written):
        return "~" if written else ""
    less = bool(re.search(r"[<≤]|below|under|less|fewer|lower|most|up\sto", written))
    denied = bool(re.search(r"\bnot?\b", written))
    equal = denied or bool(re.search(r"[=≤≥]|equal|least|most|up\sto", written))
    return ("<" if less != denied else ">") + "=" * equal


def _factor(written: str, analyte: Entity) -> float | None:
    """What a number in one unit is multiplied by to be in the analyte's; None where they do not go together."""
    wanted, unit = _measured(analyte.unit)
    if wanted == "g" and written.startswith("G/"):
        written = written.lower()  # of a text in capitals
    kind, size = _measured(written)
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
        times = float("1" + match["zeros"].replace(",", "")) if match["zeros"] else 1.0
        if volume == 1 and not match["power"] and not match["many"]:
            # 50,000/L was one per µL before a font lost the letter: nobody counts cells a litre one by one
            return unit, 1.0
        return "", 10.0 ** int(match["power"] or _MANY.get(match["many"], 0)) * times * volume
    amount = _short(match["amount"])
    return "mol" if amount.endswith("mol") else amount[-1], _AMOUNTS[amount] * volume


def _short(words: str) -> str:
    for pattern, new in _SHORT:
        words = pattern.sub(new, words.lower())
    return words
