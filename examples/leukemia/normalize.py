"""One word for one thing: preferred terms, gene symbols, units and American spelling, from the spans of the annotator."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from examples.leukemia.annotate import Span
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
    parts, place = [], 0
    for span in spans:
        new = _lab(span) if span.type == "lab" else _fitting(span, text)
        if span.text[0].isupper() and _starts_sentence(text, span.start):
            new = new[0].upper() + new[1:]
        counts[f"{span.type}: to the preferred term"] += new != span.text
        parts += [text[place : span.start], new]
        place = span.end
    text = "".join([*parts, text[place:]])
    lowered = text.lower()
    for term in sorted(name for name in {span.name for span in spans} if f"({name.lower()}" in lowered):
        # "acute myeloid leukemia (AML)" has become "acute myeloid leukemia (acute myeloid leukemia)"
        text = re.sub(rf"({re.escape(term)}s?) \({re.escape(term)}s?\)", r"\1", text, flags=re.IGNORECASE)
    for needed, pattern, form in _UNITS:
        if needed in text:
            text, changed = pattern.subn(form, text)
            counts["units written one way"] += changed
    american = americanize(text)
    counts["texts with British spelling"] += american != text
    return american


_GRAMMAR = (  # what follows a noun and is none: any other word may make an adjective of what stands before it
    "a|about|after|against|also|among|an|and|are|as|at|be|been|before|being|between|but|by|can|could|did|do|does|during|for|from"
    "|had|has|have|if|in|into|is|may|might|must|nor|not|of|on|or|over|per|should|since|than|that|the|then|through|to|under"
    "|until|versus|via|vs|was|were|when|where|which|while|who|whose|will|with|within|without|would"
)
_BEFORE_NOUN = re.compile(rf"[\s-](?!(?:{_GRAMMAR})\b)[A-Za-z]")
_ADJECTIVE = re.compile(r"(?:ed|ory|ive|ic|al)$")
_PLURAL = re.compile(r"(?<![siu])s$|(?<=us)es$")  # of virus, not of remission induction's sis


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


def _lab(span: Span) -> str:
    unit = f" x {span.unit}" if span.unit.startswith("10^") else f" {span.unit}".replace(" %", "%")
    if span.value_first:
        return f"{span.value}{unit}{span.between}{span.name}"
    return f"{span.name}{span.between or ' '}{span.value}{unit}"


def _starts_sentence(text: str, place: int) -> bool:
    return place == 0 or text[max(0, place - 9) : place].rstrip()[-1:] in ".:?!"
