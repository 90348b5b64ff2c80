"""Text as it came, to text that can be read: each step is one function from text to text."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

__all__ = ["CLEANING", "clean"]

_TAGS = re.compile(
    r"</?(?:i|b|u|em|strong|p|br|span|sec|title|sub|sup|italic|bold|mml:\w+|jats:\w+)\b[^<>]*>", re.IGNORECASE
)
_POWER = re.compile(r"(?<=\d)\s?<sup>\s*([-−–+]?\d+)\s*</sup>", re.IGNORECASE)
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
_CHARACTERS = str.maketrans(dict.fromkeys("‐‑‒–−﹣", "-") | dict.fromkeys("‘’ʼ′", "'") | dict.fromkeys("“”″", '"'))
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BOILERPLATE = re.compile(
    r"\(?ABSTRACT TRUNCATED AT \d+ WORDS\)?|\[Figure: see text\]|\(PsycINFO Database Record[^)]*\)"
    r"|\bThis article is protected by copyright\.(?: All rights reserved\.?)?|\bThis article has been retracted\."
    r"|\bThis is an open access article[^.]*\.|\bPublished by Elsevier[^.]{0,40}\.(?: All rights reserved\.)?"
    r"|\bAll rights reserved\.?\s*$|\bTheir Commentary is available[^.]*\.",
    re.IGNORECASE,
)
# a mark, a year close behind it, and so little after that that it must be the end of the abstract
_COPYRIGHT = re.compile(
    r"(?:\bCopyright\b\s*(?:\(c\)|©)?|©|\(c\)(?=\s*(?:19|20)\d\d\b))[^.]{0,60}?\b(?:19|20)\d\d\b.{0,250}$",
    re.IGNORECASE,
)
_CITATIONS = re.compile(
    r"\((?:[A-Z][A-Za-z&]*\.?\s){1,6}(?:19|20)\d\d;\s?\d+[^()]*\)"  # (Blood. 2004;104:1234-1240)
    r"|(?<=[a-z.,:;)])\[\d{1,5}(?:\s?[,-]\s?\d{1,5})*\]"  # word[12], as opposed to a range: median [2-7]
    r"|\[?\(?PMID:?\s?\d{1,8}\)?\]?"
)


def clean(text: str, counts: Counter[str] | None = None) -> str:
    """`text` after every step of `CLEANING`.

    Args:
        counts: gets one more for each step that changed this text.
    """
    for name, step in CLEANING.items():
        after = step(text)
        if counts is not None and after != text:
            counts[name] += 1
        text = after
    return text


def _entities(text: str) -> str:
    """Resolve HTML entities, twice because many files were escaped twice ("&amp;lt;"), and escapes such as \\u03bc."""
    text = html.unescape(html.unescape(text)) if "&" in text else text
    return re.sub(r"\\u(?![dD][89a-fA-F])([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)


def _markup(text: str) -> str:
    """Drop tags and keep their text; a superscript behind a digit is a power (10<sup>9</sup> is 10^9, not 109)."""
    return _TAGS.sub("", _POWER.sub(r"^\1", text)) if "<" in text else text


def _unicode(text: str) -> str:
    """NFKC; one kind of hyphen, quote and decimal point; nothing invisible; superscript digits as powers."""
    if text.isascii() and text.isprintable():
        return text
    text = re.sub(rf"(?<=\d)([{_SUPERSCRIPTS}]+)", r"^\1", text)
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    return re.sub(r"(?<=\d)·(?=\d)", ".", _INVISIBLE.sub("", text))


def _boilerplate(text: str) -> str:
    """Drop what publishers and databases add."""
    return _BOILERPLATE.sub("", text)


def _copyright(text: str) -> str:
    """Drop the copyright line at the end."""
    return _COPYRIGHT.sub("", text)


def _references(text: str) -> str:
    """Drop pointers to a list of references, and a journal's citation of itself."""
    return _CITATIONS.sub("", text)


def _spacing(text: str) -> str:
    """Single spaces, and none before a comma or inside brackets: some corpora come with each mark apart."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ([,.;:!?%)\]])(?=[\s,.;:)\]]|$)", r"\1", text)
    text = re.sub(r"(?<=[\s(\[])([(\[]) |^([(\[]) ", r"\1\2", text)
    text = re.sub(r"(?<=[a-z)]{2}[.?])(?=[A-Z][A-Za-z]*[ ,:])", " ", text)  # sections that lost the space between them
    return re.sub(r"(?<!\.)\.\.$", ".", text.strip())


CLEANING: dict[str, Callable[[str], str]] = {
    "entities resolved": _entities,
    "markup dropped": _markup,
    "characters made uniform": _unicode,
    "boilerplate dropped": _boilerplate,
    "copyright lines dropped": _copyright,
    "references dropped": _references,
    "spacing mended": _spacing,
}
