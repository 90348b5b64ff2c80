"""Text as it came, to text that can be read: each step is one function from text to text."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from examples.leukemia.sieve import Sieve, folded

__all__ = ["CLEANING", "clean", "on_one_line"]

_ATTRIBUTE = (
    r"""\s+(?:[\w:.-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s<>"']+)|(?:checked|controls|disabled|hidden|nowrap)\b)"""
)
_ATTRIBUTES = rf"(?:{_ATTRIBUTE})*\s*/?"
_MATH = (  # elements of MathML, with or without a prefix
    r"(?:mml:\w+|(?:m:)?(?:math|semantics|m(?:row|n|i|o|s|text|frac|sqrt|root|style|space|padded|phantom|fenced|enclose|error"
    r"|sup|sub|subsup|over|under|underover|multiscripts|prescripts|table|tr|td)))"
)
_TAGS = re.compile(
    rf"</?(?:a|abbr|b|bold|cite|code|em|font|i|img|italic|mark|q|s|small|span|strike|strong|tt|u|jats:\w+|{_MATH}){_ATTRIBUTES}>",
    re.IGNORECASE,
)
_BLOCKS = re.compile(
    r"</?(?:abstract|abstracttext|article|blockquote|body|br|center|dd|div|dl|dt|figcaption|figure|h[1-6]|head|hr|html|li|ol|p|pre"
    rf"|sec|section|table|tbody|td|tfoot|th|thead|title|tr|ul|jats:p|jats:sec|jats:title){_ATTRIBUTES}>",
    re.IGNORECASE,
)
# what is no text: the publisher's name where a record was cut out of XML, and comments and programs from mark to mark
_BEHIND = re.compile(
    r"<!---?>|<publisher>[^<]*(?:</publisher>|$)|<!\[CDATA\[|\]\]>|<!DOCTYPE\b[^<>]{0,500}>|<\?[a-z]+\s[^>]*>",
    re.IGNORECASE,
)
_MARKS = tuple(
    (re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE))
    for opening, closing in (
        ("<!--", "--!?>"),
        (r"<script\b[^<>]{0,500}>", r"</script\s*>"),
        (r"<style\b[^<>]{0,500}>", r"</style\s*>"),
    )
)
_NAME = r"[A-Za-z][\w:.-]*"
# a tag of any other name, which it must show to be: "x<y>z" is none
_CLOSING_TAG = re.compile(rf"</({_NAME})\s*>(?P<next>\s*(?=<{_NAME}))?")
_OPENING_TAG = re.compile(rf"<({_NAME})(?P<told>(?:{_ATTRIBUTE})+\s*/?|\s*/)?>", re.IGNORECASE)
_BARE = ("audio", "button", "details", "fieldset", "input", "optgroup", "option", "select", "textarea", "video")
_LEVELS = re.compile(rf"<(/?)(?:jats:)?(su[bp]){_ATTRIBUTES}>", re.IGNORECASE)
_ROWS = re.compile(rf"</?(?:mml:|m:)?mrow{_ATTRIBUTES}>\s*", re.IGNORECASE)  # MathML's, which only hold parts together
_MATHML = re.compile(
    r"<(mml:|m:|)msup[^>]*>\s*<\1mn[^>]*>(\d+)</\1mn>(.{0,300}?)</\1msup>",
    re.IGNORECASE | re.DOTALL,
)
_FRACTION = re.compile(
    r"<(mml:|m:|)mfrac[^<>]*>\s*<\1m([ni])[^>]*>([^<]{1,30})</\1m\2>\s*<\1m([ni])[^>]*>([^<]{1,30})</\1m\4>\s*</\1mfrac>",
    re.IGNORECASE,
)
_HALVES = re.compile(r"(\d?)\s?<sup>\s*(\d+)\s*</sup>\s*[/\u2044]\s*<sub>\s*(\d+)\s*</sub>", re.IGNORECASE)
# only 10 has a space before its exponent: "2 <sup>14</sup>C" is an isotope
_POWER = re.compile(
    r"(?:(?<=\d)|(?:(?<=\b10)|(?<=\d[xX]10))\s)<sup>\s*([-−–+]?)\s*([\dΔ∆].{0,30}?)\s*</sup>", re.IGNORECASE
)
_CHARACTERS = str.maketrans(
    dict.fromkeys("‐‑‒–−﹣", "-") | dict.fromkeys("‘’ʼ′", "'") | dict.fromkeys("“”″", '"') | {"⁄": "/"}
)
# what Unicode has as unseen controls U+0080 to U+009F are Windows-1252's quotes and dashes in a file read as Latin-1, which
# HTML takes them for, too; the five that Windows-1252 leaves free say nothing
_DROPPED_OR_WINDOWS = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
_DROPPED_OR_WINDOWS |= dict.fromkeys([0x99, *map(ord, "™®℠")], "")  # trademarks
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]|[\x00-\x08\x0e-\x1b\x7f]")
_NAME_WORD = r"(?:[A-Z&][\w&'-]{0,20}|the|of|and|for)"
_BOILERPLATE = Sieve(
    (
        (("abstract truncated",), r"\(?ABSTRACT TRUNCATED AT \d+ WORDS\)?|\(ABSTRACT TRUNCATED\)"),
        (("see text]",), r"\[(?:Figure|Table|Formula): see text\]"),
        (("psycinfo",), r"\(PsycINFO Database Record[^()]{0,80}\)"),
        (
            ("protected by copyright",),
            r"\bThis article is protected by copyright\.(?: All rights reserved\.?)?",
        ),
        (("article has been retracted",), r"\bThis article has been retracted\."),
        (("access article",), r"\bThis is an open[ -]access article(?:[^.]|\.(?=\d)){0,300}\."),
        (
            ("rights reserved",),
            r"\bAll rights reserved\.?\s?$|(?<=\.\s)All rights reserved\.(?=\s)",
        ),
        (
            ("published by",),
            (
                rf"(?:(?<=[.?!]\s)|^)(?-i:(?:Published|{_NAME_WORD}(?: {_NAME_WORD}){{1,9}} published) by "
                rf"{_NAME_WORD}(?:,? {_NAME_WORD}){{0,9}}(?: on behalf of [^.]{{0,150}})?)\.(?=\s|$)"
            ),
        ),
        (
            ("permissions",),
            r"\bFor permissions,? (?:please )?(?:contact|e-?mail):? ?[\w.@-]{0,80}|\bSee rights and permissions\.",
        ),
        (
            ("use permitted under",),
            r"(?:(?<=[.?!]\s)|^)Re-?use permitted under CC[ -]BY[^.]{0,20}(?:\.\d[^.]{0,20})?\.",
        ),
        (("no commercial re",), r"(?:(?<=[.?!]\s)|^)No commercial re-?use\."),
        (
            ("published by elsevier",),
            r"(?<=\.\s)Published by Elsevier (?:B\.?V|Inc|Ltd|Masson|on behalf)[^.]{0,40}\.(?: All rights reserved\.)?",
        ),
        (("their commentary",), r"\bTheir Commentary is available[^.]{0,100}\."),
    ),
    re.IGNORECASE,
)
_YEAR = r"(?:19|20)\d\d\b"
_PUBLISHER = (
    r"(?:Elsevier|Springer|Wiley|Blackwell|Karger|Verlag|BMJ|MDPI|Lippincott|Wolters|Taylor|Informa|Macmillan|Nature|Oxford|Foundation"
    r"|Society|Association|College|Press|Publish\w{2,5}|Ltd|Limited|Inc|GmbH|The\sAuthors?|Authors?\(s\))"
)
# what stands behind "(C) 2000" where it is a copyright and no third item: names to the end of the sentence
_OWNERS = (
    rf"(?=(?:\s?[-,]\s?{_YEAR}){{0,2}}[.,;:]?(?:\s(?:[A-ZÀ-Þ&(][^\s]{{0,30}}|{_YEAR}[,;]?|des?|der|et|du|l[ae]|für|zu"
    r"|(?:of|the|and|for|by|in|on|to|under|behalf|all|rights|reserved|published|journal|compilation|exclusive"
    r"|licen[cs]ee?|authors?)\b[.,;]?)){0,25}\s?(?:(?<=\.)\s|\.\s|\.?$))"
)
# a sentence of its own that has the mark or the word with a year or a publisher, to its end and no further: a trial's
# registration may follow. Within a sentence a mark is a product's, unless a year is right behind it and ends the text.
_COPYRIGHT = Sieve(
    [
        (
            ("©", "(c)", "copyright", "author"),
            (
                r"(?:(?<=[.?!])|(?<=[.?!)\]]\s)|^)(?:"
                rf"(?:(?:(?:Crown\s)?[Cc]opyright:?\s?)?©(?:[^.]|(?<=\s[A-Z])\.){{0,60}}?(?:\b{_YEAR}|\b{_PUBLISHER})"
                rf"|(?:Crown\s)?(?i:copyright(?:\s\(c\))?|\(c\)),?\s(?:by\s)?{_YEAR}{_OWNERS}"
                rf"|Copyright\s(?:[A-Z&][\w&'-]{{0,20}},?\s){{1,6}}{_YEAR}"
                rf"|Copyright:\s[^.]{{0,60}}?\b{_PUBLISHER}|The\sAuthor(?:s|\(s\)),\sunder\sexclusive\slicen[cs]e\sto\b)"
                r".{0,150}?(?:(?<!\s[A-Z])(?<!\s[A-Z]\.[A-Z])\.(?=\s+[A-Z(\[]|\s*$)|$)"
                rf"|The\sAuthor(?:s|\(s\))(?:\s{_YEAR})?\.(?=\s|$))"
                rf"|(?<=\s)(?:[Cc]opyright:?\s?)?©\s?{_YEAR}[^.]{{0,150}}\.?\s?$"
            ),
        )
    ]
)
_JOURNAL = r"[A-Z][A-Za-z.]*(?:\s(?:[A-Z][A-Za-z.]*|of|and|the|in|&)){0,6}(?:\s\([A-Z][A-Za-z. ]{2,40}\))?"
# a name that none but journals have, for what has no year or no pages
_SHORT = (
    r"(?=(?:[A-Z]\w{0,20}\.?\s){0,4}(?:J|Am|Br|Eur|Int|Clin|Res|Oncol|Ha?ematol|Leuk|Med|Sci|Biol|Ther|Acta|Ann|Arch|Curr|Opin"
    r"|Rev|Proc|Exp|Mol|Immunol|Pediatr|Pathol|Genet|Pharmacol|Transplant|Chem|Biochem|Dis|Lett|Cytom)\b)"
    r"[A-Z]\w{0,20}\.?(?:\s[A-Z]\w{0,20}\.?){1,5}"
)
_TITLED = r"(?:Blood|Cancer|Leukemia|Ha?ematologica|Oncotarget|Genes,?\sChromosomes(?:\s(?:and|&))?\sCancer|Cytometry(?:\sPart\s[AB])?)"
_PAGES = r"[A-Z]?\d+(?:\s?-\s?[A-Z]?\d+)?"
_DOI = r"\(?(?i:doi):?\s?(?:https?://(?:dx\.)?doi\.org/)?10\.\d{4,9}/\S+"
_DAY = rf"(?:\d{{1,2}}\s)?[A-Z][a-z]{{2,8}}\.?(?:\s\d{{1,2}})?,?\s{_YEAR}"
_ONLINE = rf"(?i:(?:first |pre-?|e-?)?(?:published|posted) (?:first )?(?:on-?line|ahead of print)(?: first)?(?: on)?)[:,]?\s{_DAY}"
_MORE = rf"(?:[;,.]?\s?(?:{_DOI}|{_ONLINE})){{0,3}}"
_HISTORY = r"(?i:received|submitted|revised|accepted|final version)"
_RELATED = r"(?:commentar(?:y|ies)|comments?|editorials?|articles?|reviews?|perspectives?|viewpoints?|letters?)\b"
_AUTHOR = r"(?:by|and|et|al\.?|&|de|van|von|der|in|this|the|issue|[A-Z][\w'-]{0,20}\.?)"
_SENTENCE = r"(?:[^.]|\.(?=[\w/)])){0,150}"  # the rest of one: the dots of addresses do not end it
# whole sentences, dropped from the end of a text alone: within one, they may be what the authors say
_CLOSING = (
    rf"{_JOURNAL}[.,;]?\s(?:{_YEAR}[;,]\s?)?\d+\s?\(\d+\)[;:,]\s?{_PAGES}{_MORE}",  # Clin Cancer Res; 20(4); 867-80.
    # Cancer 2015;121:1234-1240; Oncotarget. 2016 Jan 5;7(1):1-10.
    rf"{_JOURNAL}[.,;]?\s{_YEAR}(?:\s[A-Z][a-z]{{2}}(?:\s\d{{1,2}})?)?[;,]\s?\d+(?:\s?\(\d+\))?[:,]\s?{_PAGES}{_MORE}",
    rf"{_JOURNAL}[.,;]?\s\d+[:,]\s?{_PAGES},?\s\(?{_YEAR}\)?{_MORE}",  # Am. J. Hematol. 91:E1-E5, 2016.
    rf"{_JOURNAL}[.,;]?\s\({_YEAR}\)\s\d+,\s?[a-z]?{_PAGES}{_MORE}",  # Leukemia (2013) 27, 12-14; doi:10.1038/...
    rf"{_SHORT}(?:[.,;]?\s\d{{1,3}}(?::\s?[A-Z]?\d+\s?-\s?[A-Z]?\d+)?|;\s{_PAGES})?",  # J Clin Oncol 28:123-130.
    rf"(?:{_SHORT}|{_TITLED})[.,]?\s{_YEAR}",  # Am. J. Hematol., 2010.
    rf"{_JOURNAL}\s(?:advance (?:online|access) publication|accepted article preview(?: online)?)[^.]{{0,40}}{_MORE}",
    rf"{_ONLINE}{_MORE}|{_DOI}",
    rf"(?i:e-?pub)(?: ahead of print)?:?\s(?:{_YEAR}(?:\s[A-Z][a-z]{{2}}(?:\s\d{{1,2}})?)?|{_DAY})",
    rf"(?:[Pp]ublication history:\s)?{_HISTORY}:?\s{_DAY}(?:[;,]\s(?:and\s)?{_HISTORY}:?\s{_DAY}){{0,3}}",
    rf"See (?:also )?(?:the )?(?:related|accompanying|associated|companion) {_RELATED}(?:,?\s{_AUTHOR}){{0,15}}",
    rf"See (?:also )?(?:the )?(?:(?:related|accompanying|associated|companion) )?{_RELATED}(?:,?\s{_AUTHOR}){{0,15}},?\s(?:(?:on|at)\s)?(?:pp?\.?|pages?)\s?[A-Z]?\d+(?:-\d+)?",
    rf"This article is (?:highlighted|featured) in {_SENTENCE}(?:\bp\.\s?\d+)?",
    r"Please see later in the article for the Editors' Summary",
    rf"Expected final online publication date{_SENTENCE}|Please see {_SENTENCE}\bfor revised estimates",
    rf"(?:Electronic supplementary material:?\s)?The online version\b{_SENTENCE}contains supplementary material{_SENTENCE}",
    r"(?:Supplementary information:\s)?Supplementary (?:data|information|materials?) (?:is|are) available at [^.]{1,60}\bonline",
    rf"This article (?:is a|has been contributed to by) U\.?S\.? Government\b{_SENTENCE}",
    rf"Published (?:{_YEAR}|under licen[cs]e by)[^.]{{0,60}}\b{_PUBLISHER}[^.]{{0,90}}",
    rf"(?:V{{1,2}}C\s)?{_YEAR},?\s(?:(?:[A-Z&][\w&'-]{{0,20}}|of|and|the|for),?\s){{0,8}}?(?:[A-Z]\w{{1,20}}-)?{_PUBLISHER}\b(?:,?\s[A-Z]\w{{0,20}}){{0,3}}",
    r"Georg Thieme Verlag\b[^.]{0,60}",
    r"(?i:key ?words|index terms|mesh terms):\s[^.?!]{1,300}",
)
_END = re.compile(rf"(?<=[.?!)\]])\s{{0,9}}[(\[]?(?:{'|'.join(_CLOSING)})[)\]]?\.?[)\]]?\s*$")
_CITATIONS = Sieve(
    (
        (  # (Blood. 2004;104:1234-40)
            (";",),
            r"\((?:[A-Z][A-Za-z&]{0,30}\.?\s){1,6}(?:19|20)\d\d;\s?\d+(?:\(\d+\))?:\s?\w+(?:-\w+)?\.?\)",
        ),
        (
            ("[",),
            (
                r"(?<=[a-z.,;])\[\d{1,5}(?:\s?[,-]\s?\d{1,5})*\](?!\w)"  # word[12], as opposed to a range: median [2-7]
                r"|(?<=:)\[\d{4,5}\](?!\w)"  # such as:[7046]: no result has so many digits and stands alone
                r"|(?<=[a-z,;]\s)\[\d{1,3}\](?=[.,;:)]|$)"  # word [1]
                r"|(?<=[A-Za-z]\s)\[\d{6,7}\](?:,\s\[\d{6,7}\]){0,9}(?=[.,;:)]|\s[a-z]|$)"  # word [272937], [277372]
                r"|(?<=[a-z]\s)\[\d{1,3}(?:,\s?\d{1,3}){1,9}\](?=\.(?:\s|$))"
            ),
        ),
        (("(ref",), r"\((?i:refs?|references?)\.?\s\d{1,3}(?:\s?[,-]\s?\d{1,3}){0,9}\)"),
        (  # the list itself, which begins with an author
            ("references",),
            (
                r"(?:(?<=[.?!]\s)|(?<=[.?!]))(?:REFERENCES|References)\s?:?\s\[?1[.)\]]\s"
                r"(?=[A-Z][\w'-]{1,30},?\s[A-Z]{1,3}\b)(?s:.{0,5000})$"
            ),
        ),
        (("pmid",), r"\[?\(?PMID:?\s?\d{1,8}\)?\]?"),
    )
)
# what stands before a result in brackets, as in 5 days[2-7]; a short one behind a colon always is
_MEASURED = re.compile(
    r"\b(?:days?|weeks?|wks?|months?|mos?|years?|yrs?|hours?|hrs?|mg|[mµμ]?g|range|median|mean|IQR|CI|interval|scores?|grades?)[,=]?$"
)
_SPREAD = re.compile(r"\d.{0,19}$|interval|range|median|mean")  # before [2, 6] in its sentence: its limits


def clean(text: str, counts: Counter[str] | None = None) -> str:
    """`text` after every step of `CLEANING`, again until none changes it: what one mends may show another something.

    Args:
        counts: gets one more for each step that changed this text.
    """
    before, changed = "", set[str]()
    while text != before:
        before = text
        for name, step in CLEANING.items():
            after = step(text)
            changed |= {name} if after != text else set()
            text = after
    if counts is not None:
        counts.update(changed)
    return text


def _entities(text: str) -> str:
    """Resolve HTML entities, twice because many files were escaped twice ("&amp;lt;"), and escapes such as \\u03bc."""
    text = html.unescape(html.unescape(text)) if "&" in text else text
    return re.sub(r"\\u(?![dD][89a-fA-F])([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)


def _markup(text: str) -> str:
    """Drop tags and keep their text."""
    if "<" not in text:
        return text
    text = _BEHIND.sub("", text)
    for opening, closing in _MARKS:
        text = _without(text, opening, closing)
    text = _LEVELS.sub(r"<\1\2>", _ROWS.sub("", text))
    text = _FRACTION.sub(_fraction, _MATHML.sub(r"\2<sup>\3</sup>", text))
    text = _BLOCKS.sub(lambda match: match[0] if _is_comparison(match) else " ", text)
    return _other_tags(on_one_line(_TAGS.sub(lambda match: match[0] if _is_comparison(match) else "", text)))


def _without(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """Drop what stands from each mark to the next that closes it; of what is never closed the mark alone: text may follow."""
    parts, place = [], 0
    while first := opening.search(text, place):
        last = closing.search(text, first.end())
        if last is None:
            return "".join([*parts, opening.sub("", text[place:])])
        parts.append(text[place : first.start()])
        place = last.end()
    return "".join([*parts, text[place:]])


def _is_comparison(tag: re.Match[str]) -> bool:
    """Whether <b> is no tag but part of a<b>c: between two letters, which may be numbered, and not closed behind."""
    text, name = tag.string, tag[0][1:-1]
    if len(name) > 1:
        return False
    before, behind = text[max(0, tag.start() - 4) : tag.start()], text[tag.end() : tag.end() + 4]
    if not re.search(r"(?<!\w)[A-Za-z]\d{0,2}$", before) or not re.match(r"[A-Za-z]\d{0,2}(?!\w)", behind):
        return False
    following = re.compile(rf"<(/?){name}\s*>", re.IGNORECASE).search(text, tag.end())
    return following is None or not following[1]


def _other_tags(text: str) -> str:
    """Drop what else is a tag: it closes or is closed, has attributes, or ends in />. One that closes before another parts texts.

    An attribute without a value tells a tag only of HTML's own that take one: A<CD8 hidden>5 is a comparison.
    """
    closed = {match[1].lower() for match in _CLOSING_TAG.finditer(text)}
    text = _CLOSING_TAG.sub(lambda match: "" if match["next"] is None else " ", text)
    return _OPENING_TAG.sub(lambda match: "" if _is_tag(match, closed) else match[0], text)


def _is_tag(found: re.Match[str], closed: set[str]) -> bool:
    name, told = found[1].lower(), found["told"] or ""
    return name in closed or "=" in told or told.endswith("/") or (bool(told) and name in _BARE)


def _fraction(found: re.Match[str]) -> str:
    """One of MathML as a/b, apart from a number right before or behind it: 3 1/2."""
    before = re.sub(r"(?:<[^<>]*>\s*|[\u2061-\u2064])+$", "", found.string[max(0, found.start() - 300) : found.start()])
    behind = re.match(r"(?:<[^<>]{0,99}>){0,9}\d", found.string[found.end() : found.end() + 300])
    return f"{' ' * before[-1:].isdigit()}{found[3]}/{found[5]}{' ' * bool(behind)}"


def on_one_line(text: str) -> str:
    """Drop <sup> and <sub>: a superscript behind a digit is a power (10<sup>9</sup> is 10^9), log<sub>10</sub>4 is log10 4.

    One above a <sub> is a fraction: 3<sup>1</sup>/<sub>2</sub> is 3 1/2.
    """
    text = _HALVES.sub(lambda match: f"{match[1]}{' ' * bool(match[1])}{match[2]}/{match[3]}", text)
    return re.sub(r"(?i)</?su[bp]>", "", re.sub(r"(?i)</sub>(?=\d)", " ", _POWER.sub(r"^\1\2", text)))


def _unicode(text: str) -> str:
    """NFKC; one kind of hyphen, quote and decimal point; nothing invisible; superscript digits as powers."""
    if text.isascii() and text.isprintable():
        return text
    text = re.sub(r"(?<=\d)([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)", r"^\1", text.translate(_DROPPED_OR_WINDOWS))  # CD4⁺ is no power
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])|(?<=[₀-₉])(?=\d)", " ", text)  # 2½ is 2 1/2, log₁₀4 is log10 4
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).translate(_CHARACTERS))
    text = re.sub(r"(?<=\d)[·∙⋅](?=10(?:\^|\(\d{1,2}\)))", "×", text)
    return re.sub(r"(?<=\d)[·∙⋅](?=\d)", ".", text)


def _boilerplate(text: str) -> str:
    """Drop what publishers and databases add."""
    return _BOILERPLATE.pattern(folded(text)).sub("", text)


def _closing(text: str) -> str:
    """Drop copyright lines, and the other lines that close an abstract: one may hide the next."""
    while (shorter := _END.sub("", _COPYRIGHT.pattern(folded(text)).sub("", text))) != text:
        text = shorter.rstrip()
    return text


def _references(text: str) -> str:
    """Drop pointers to a list of references, and a journal's citation of itself."""

    def kept(match: re.Match[str]) -> str:
        before = re.split(r"[.?!]\s", text[max(0, match.start() - 80) : match.start()])[-1]  # of its sentence
        spread = match[0].startswith("[") and "," in match[0] and before[-1:] == " " and _SPREAD.search(before)
        return match[0] if spread or _MEASURED.search(before.rstrip()) else ""

    return _CITATIONS.pattern(folded(text)).sub(kept, text)


def _spacing(text: str) -> str:
    """Single spaces, and none before a comma or inside brackets: some corpora come with each mark apart."""
    text = re.sub(r" ([,.;:!?%)\]])(?=[\s,.;:)\]]|$)", r"\1", " ".join(text.split()))
    if "( " in text or "[ " in text:
        text = re.sub(r"(?<=[\s(\[])([(\[]) |^([(\[]) ", r"\1\2", text)
    # sections that lost the space between them
    text = re.sub(r"([.?])(?<=[a-z)]{2}.)(?=(?!Net\b)[A-Z][A-Za-z]*[ ,:])", r"\1 ", text)
    # behind an abbreviation, where U.S. and HLA.DR are names
    text = re.sub(r"([.?])(?<=[A-Z][A-Z)].)(?=(?!Net\b)[A-Z][a-z]+[ ,]|[A-Z]{4,}:)", r"\1 ", text)
    return re.sub(r"(?<!\.)\.\.$", ".", text.strip())


CLEANING: dict[str, Callable[[str], str]] = {
    "entities resolved": _entities,
    "markup dropped": _markup,
    "characters made uniform": _unicode,
    "boilerplate dropped": _boilerplate,
    "closing lines dropped": _closing,
    "references dropped": _references,
    "spacing mended": _spacing,
}
