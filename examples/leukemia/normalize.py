"""One word for one thing: preferred terms, gene symbols, units and American spelling, from the spans of the annotator."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from examples.leukemia.annotate import Span
from examples.leukemia.fitting import GRAMMAR
from examples.leukemia.reading import split_sentences
from examples.leukemia.spelling import americanize

__all__ = ["normalize"]

_MASS = r"(?<![A-Za-z])(m?g|ng|μg|pg|I?U|[mμ]?mol)"  # also right behind a number: 400mg/m2
_PER = r"\s?(?:/|\bper\s)\s?"
_UNITS = (  # each with what a text must hold for it
    ("10", re.compile(r"(?<=\d)[x×](?=\s?10\s?[\^(*])"), " x"),
    ("10", re.compile(r"[x×]\s?10\s?(?:\^|\(|\*\*?)\s?(-?\d{1,2})(?!\d)\)?"), r"x 10^\1"),
    ("10^", re.compile(r"\b(10\^-?\d{1,2})\s?/\s?l\b"), r"\1/L"),
    ("µ", re.compile("µ"), "μ"),  # the Greek letter, which NFKC makes of the micro sign: what is clean stays so
    ("g", re.compile(r"(?<=\d)\s?(?:microg|mcg|[uμ]g)\b"), " μg"),
    ("ug/", re.compile(r"\bug(?=/)"), "μg"),
    ("u", re.compile(r"(?<=\d)(\s?)u(?=(?:M|mol)\b)"), r"\1μ"),
    ("", re.compile(r"(?<=\d)(\s?/?)(?:u[lL]|μl)\b"), r"\1μL"),
    (
        "/",
        re.compile(r"(?<=\d)(\s?)(i?u)(?=/(?:[dm]?l\b|m[2(^²]|kg\b))", re.IGNORECASE),
        lambda found: found[0].upper(),
    ),
    (
        "m",
        re.compile(rf"{_MASS}{_PER}(?:m(?:\(2\)|\^2|²|2|\ssquared)(?!\w)|sq(?:uare|\.)?\s(?:met(?:er|re)|m)\b)"),
        r"\1/m2",
    ),
    ("l", re.compile(rf"{_MASS}(?:\s?/\s?dl|{_PER}100\s?m[lL])\b"), r"\1/dL"),
    ("/", re.compile(rf"{_MASS}\s?/\s?ml\b"), r"\1/mL"),
    ("/", re.compile(rf"{_MASS}\s?/\s?l\b"), r"\1/L"),
    (
        "",
        re.compile(
            r"(?<![\w.,-])(\d+(?:[.,]\d+)*(?:-\d+(?:[.,]\d+)*)?)"
            r"(?=(?:mg|kg|ng|pg|IU|[mμ]?mol|[mnpμ]M|[mμ][Ll])\b|(?:g|U)/(?:m2|[dmμ]?L|kg|day)\b)"
        ),
        r"\1 ",
    ),
    ("cent", re.compile(r"(?<=\d)\s?(?:per\s?cent)\b(?!ile|age)"), "%"),
)


def normalize(text: str, spans: Sequence[Span], counts: Counter[str] | None = None) -> str:
    """`text` with each span in its preferred form: "CML treated with STI571" names chronic myeloid leukemia, imatinib.

    Args:
        spans: of this text.
        counts: gets how many spans of each type, units and spellings were changed.
    """
    counts = Counter() if counts is None else counts
    told_apart = _told_apart(text, spans)
    parts, place = [], 0
    for position, span in enumerate(spans):
        around = spans[max(0, position - 50) : position + 50]
        kept = span.id in told_apart or _is_taken_apart(span, text)
        new = _lab(span, text, around) if span.type == "lab" else span.text if kept else _fitting(span, text)
        if span.text[0].isupper() and _starts_sentence(text, span.start):
            new = new[0].upper() + new[1:]
        counts[f"{span.type}: to the preferred term"] += new != span.text
        parts += [_with_article(text[place : span.start], span.text, new), new]
        place = span.end
    text = "".join([*parts, text[place:]])
    lowered = text.lower()
    for term in sorted(name for name in {span.name for span in spans} if f"({name.lower()}" in lowered):
        # "acute myeloid leukemia (AML)" has become "acute myeloid leukemia (acute myeloid leukemia)"
        one = f"{re.escape(term)}s?"
        text = re.sub(rf"({one}) \({one}(?:(?:[,;]| or| and) {one})*\)", r"\1", text, flags=re.IGNORECASE)
    for needed, pattern, form in _UNITS:
        if needed in text:
            text, changed = pattern.subn(form, text)
            counts["units written one way"] += changed
    american = americanize(text)
    counts["texts with British spelling"] += american != text
    return american


_BEFORE_NOUN = re.compile(rf"[\s-](?!(?:{GRAMMAR})\b)[A-Za-z]")
_ADJECTIVE = re.compile(r"(?:ed|ory|ive|ic|al)$")
_PLURAL = re.compile(r"(?<![siu])s$|(?<=us)es$")  # of virus, not of remission induction's sis


def _told_apart(text: str, spans: Sequence[Span]) -> set[str]:
    """Ids of drugs of which a sentence has two names that it does not put as one: homoharringtonine and its derivative.

    "Imatinib (STI571)" are one; in such a text, each of their names stays as it is.
    """
    drugs = [span for span in spans if span.type == "drug"]
    one = {
        _form(span)
        for span in drugs
        if _IN_BRACKETS.search(text[: span.start]) or _BEFORE_BRACKET.match(text, span.end)
    }
    ends = list(accumulate(len(sentence) + 1 for sentence in split_sentences(text)))
    forms: dict[tuple[str, int], set[str]] = {}
    for span in drugs:
        forms.setdefault((span.id, bisect_right(ends, span.start)), set()).add(_form(span))
    return {name_id for (name_id, _), written in forms.items() if len(_unshortened(written)) > 1 and written - one}


def _unshortened(forms: set[str]) -> set[str]:
    """Without those that shorten another one: ATO beside arsenic trioxide."""

    def shortens(short: str, form: str) -> bool:
        return len(short) < 6 and bool(re.match(".*".join(map(re.escape, short)), form))

    return {form for form in forms if not any(form != other and shortens(form, other) for other in forms)}


_IN_BRACKETS = re.compile(r"[(\[][^()\[\]]{0,60}$")
_BEFORE_BRACKET = re.compile(r"\s[(\[]")


def _form(span: Span) -> str:
    return re.sub(r"[\W_]|s$", "", americanize(span.text).lower())


def _is_taken_apart(span: Span, text: str) -> bool:
    """Whether "sulfamethoxazole and trimethoprim" would join with other words, or repeat one, of which a list is made."""
    parts = span.name.split(" and ")
    if len(parts) < 2 or " and " in span.text or span.type != "drug":
        return False
    before, behind = text[max(0, span.start - 200) : span.start], text[span.end : span.end + 200]
    if re.search(r"(?:\band|,)\s$", before) or re.match(r",?\s(?:and|,)", behind):
        return True
    around = f"{before} {behind}".lower()
    told = [part.split()[-1].lower() in around for part in parts]
    return any(told) and (not all(told) or all(part.lower() in span.text.lower() for part in parts))


def _fitting(span: Span, text: str) -> str:
    """The preferred term in the form that the sentence takes, or the name as found where none fits.

    An adjective stays one (relapsed/refractory NHL: no "disease"), a plural too; before a noun no noun is added (remission
    induction chemotherapy: no "therapy"), and no "leukemia with a fusion" can stand (Ph+ ALL cells).
    """
    found, name = span.text.replace("-", " "), span.name
    before_noun, plural = _BEFORE_NOUN.match(text, span.end), bool(_PLURAL.search(found)) and not _PLURAL.search(name)
    stem = name.rpartition(" ")[0]
    adjective = _ADJECTIVE.search(stem) and _ADJECTIVE.search(found)
    added = found.replace(" ", "").lower().endswith(stem.replace("-", "").replace(" ", "").lower())
    if stem and (adjective or (span.type == "phase" and added and before_noun)):
        return stem
    if re.search(r" (?:with|post) ", name) and not re.search(r" (?:with|post) ", found) and (before_noun or plural):
        return span.text
    if plural and span.type in ("subtype", "disease", "phase", "virus", "karyotype") and name[-1].isalpha():
        return f"{name}es" if name.endswith("s") else f"{name}s"
    return name


_NUMBER = r"\d+(?:[., ]\d{3})*(?:\.\d+)?(?![.,]?\d)"
# a range, a norm, a later value; but not P < 0.05, n = 12, day 8, 12 of 45, 33 (53%), CD34, t(8;21), 10(9)
_BARE = re.compile(
    rf"""\b(?:(?P<other>[PNR]\s?[=<>≤≥]|days?|weeks?|months?|years?|aged?|grades?|phases?|stages?|types?|groups?|cycles?
      |courses?|arms?|cohorts?|ratio|[HOR]R|cases?|patients?|chromosomes?|fig(?:ure)?s?\.?|tables?|\d\sof)|in|since|from|until)?\s?
    (?<![\w.^/;+*])(?<!\w[(-]){_NUMBER}(?:\s?(?:-|to|±|\+/-)\s?{_NUMBER})?(?!\s?(?:-|to|and|or|±|\+/-)\s?\d)
    (?=\s?(?:[.,;:)\]?!]|$)|\s\((?!\d[\d.]*%)|\s(?:and|or|in|on|at|with|without|to|from|for|before|after|but|as|than|when
      |while|during|by|if|until|within|over|among|between|compared|versus|vs|respectively)\b)""",
    re.VERBOSE | re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.?!]\s+(?=[A-Z\[])(?!(?:It|They|(?:The\s)?(?:[Nn]ormal|[Rr]eference|[Rr]ange))\b)")


def _lab(span: Span, text: str, around: Sequence[Span]) -> str:
    """The analyte's name with the value in its unit, or with that of the text where a number near it would keep another."""
    unit = f" x {span.unit}" if span.unit.startswith("10^") else f" {span.unit}".replace(" %", "%")
    quantity = span.written if span.written and _unit_stays_near(text, span, around) else f"{span.value}{unit}"
    if span.value_first:
        return f"{quantity}{span.between}{span.name}"
    return f"{span.name}{span.between or ' '}{quantity}"


def _unit_stays_near(text: str, span: Span, around: Sequence[Span]) -> bool:
    """Whether the sentence has another number with the value's unit, or with none: 12,500/µL (range 800-450,000)."""
    place, end = max(0, span.start - 500), span.end + 500
    near = text[place:end]
    for other in around:
        if other.type == "lab" and other != span and place <= other.start and other.end <= end:
            near = near[: other.start - place] + "x" * len(other.text) + near[other.end - place :]
    before = _SENTENCE_END.split(near[: span.start - place])[-1]
    behind = _SENTENCE_END.split(near[span.end - place :], maxsplit=1)[0]
    unit = re.search(r"\d\s?([^\d\s.,±+t-].*)", span.written)
    same = re.compile(rf"\d\s?{re.escape(unit[1])}(?!\w)" if unit else "(?!)")
    return any(same.search(part) or any(map(_is_bare, _BARE.finditer(part))) for part in (before, behind))


def _is_bare(match: re.Match[str]) -> bool:
    year = re.fullmatch(r"(?:in|since|from|until)\s(?:19|20)\d\d", match[0], re.IGNORECASE)
    return not match["other"] and not year


_ARTICLE = re.compile(r"(?:\ba|(?:^|[.:?!]\s)A)(?P<n>n?)\s$")
# an 8, an 11, an 18; an LDH, but a WBC; an AML, an acute leukemia, but a unit
_AN = re.compile(
    r"~?(?:8|1[18](?:,?\d{3})*(?![\d,]))|Hg?b\b|[FHLMNRSX](?=[^AEIOUYa-z\W]{2})"
    r"|(?![Ee]u|[Uu](?:ni|ri|s[eu])|[Oo]ne)[AEIOUaeiou]"
)


def _with_article(before: str, old: str, new: str) -> str:
    """What stands before a name, "a" and "an" made to fit its new form: an Hb, a hemoglobin."""
    match = _ARTICLE.search(before)
    fits_old, fits_new = bool(_AN.match(old)), bool(_AN.match(new))
    if match is None or fits_old == fits_new or bool(match["n"]) != fits_old or old.lower() == new.lower():
        return before
    return f"{before[: match.start('n')]}{'n' * fits_new} "


def _starts_sentence(text: str, place: int) -> bool:
    return place == 0 or text[max(0, place - 9) : place].rstrip()[-1:] in ".:?!"
