"""Names of people in a text: known by a list of given names, or by what the text says of them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from examples.leukemia.sieve import Sieve

__all__ = ["DATE", "find_names"]

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
DATE = (
    rf"(?:\d{{1,2}}[/.-]\d{{1,2}}[/.-](?:\d{{4}}|\d{{2}})|\d{{4}}[/.-]\d{{1,2}}[/.-]\d{{1,2}}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s(?:of\s)?{_MONTH},?\s\d{{4}}|{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?,?\s\d{{4}})"
)
_GIVEN_NAMES = Path(__file__).parent / "data" / "given_names.txt"
_SMALL = "[a-zà-ÿĀ-ž]"
_CAPITAL = rf"(?:O'|D'|Ma?c)?[A-ZÀ-ÞĀ-ž]{_SMALL}{{1,20}}(?:-[A-ZÀ-ÞĀ-ž]?{_SMALL}{{1,20}}|'[A-ZÀ-Þ]?{_SMALL}{{2,20}})?"
_OPENING = r"(?!(?:A|An|And|Are|Can|Could|Did|Do|Does|Dr|Had|Has|If|In|Is|Our|Should|The|This|Was|When|Will|Would)\b)"
_NAME = rf"{_OPENING}{_CAPITAL}(?:\s[A-Z]\.)?(?:\s{_CAPITAL}){{1,3}}"
_WORD = (  # of a name that may be in small letters; what goes on with the sentence is none
    r"(?!(?i:a|after|again|aged?|an|and|are|as|at|back|because|before|being|born|by|can|did|dob|does|feels|for|from"
    r"|gets?|got|ha[ds]|have|he|her|his|in|into|is|it|may|must|my|needs?|not|of|off|on|or|out|per|received|relapsed"
    r"|said|says|she|should|since|suffers|takes?|that|the|they|this|to|took|up|upon|was|we|were|which|who|whom|whose"
    r"|will|with|would|you)\b)[A-Za-zÀ-ÿ'-]{2,25}"
)
_ANY_CASE = rf"(?:[A-Za-z]\.\s?){{0,2}}{_WORD}(?:,?\s{_WORD}){{0,2}}"
_SCAN = r"(?!(?i:imag|spect|angio|scan|data|anal))"
_RELATIVE = "man|woman|boy|girl|baby|mother|father|son|daughter|wife|husband|brother|sister|friend"
_SOMEONE = rf"{_RELATIVE}|child|person|client|patient|pt"
_ILL_SOON = re.compile(r" (?:s|ha[sd]|have|got) (?:an? )?(?:acute|chronic|leuk|lymphom|[acm][a-z]{2,3} )")
_NAMED = (" named ", " called ")
# each with the words that a text must have for it; _HAS_IT as words is _ILL_SOON
_SAYS = (  # a title or the word name: what follows is one, whatever it is
    (
        (" mr ", " mrs ", " ms ", " mme ", " mister ", " herr ", " frau "),
        (
            rf"\b(?:[Mm]rs?|[Mm]me|[Mm]ister|[Hh]err|[Ff]rau"
            rf"|(?<!\d)(?<!\d\s)[Mm]s)\b\.?\s{_SCAN}(?:[A-Z]\.\s?){{0,2}}(?:{_CAPITAL}(?:\s{_CAPITAL}){{0,3}}"
            rf"|{_WORD}(?:\s{_WORD})?)"
        ),
    ),
    (  # but MR CML: molecular response
        (" mr ", " mrs "),
        rf"\bMRS?\b\.?\s{_SCAN}(?=[A-Z]{{4}}){_WORD}(?:\s(?=[A-Z]{{2}}){_WORD})?",
    ),
    (
        (" miss ", " master "),
        rf"\b(?:Miss|Master(?!\s(?:Protocol|Regulator|Clinical|Trial|Switch)))\s{_CAPITAL}(?:\s{_CAPITAL})?",
    ),
    (
        (" name",),
        rf"\b[Mm]y\sname(?:\sis|'s)\s{_ANY_CASE}|\b(?i:(?:patient|pt)(?:'s)?\sname)(?:\sis)?\s?[:=]?\s?{_ANY_CASE}",
    ),
    (
        ("name ",),
        (
            r"(?:^|(?<=[,;.(]\s)|(?<=\n)|\b(?i:full|first|last|family|given|sur)\s?)"
            rf"(?i:name)(?:\s?[:=]\s?|\s-\s){_ANY_CASE}"
        ),
    ),
    ((" patient ",), rf"^(?i:patient)\s?[:=]\s?{_WORD}\s{_WORD}(?=[,.;]|$)"),
    (
        (),
        (
            rf"\b[A-Z]{{2,20}},?\s[A-Z]{{2,20}}(?=,?\s\(?(?:born|DOB|{DATE}))|\b{_CAPITAL},\s{_CAPITAL}(?=,?\s\(?(?:born"
            rf"|DOB|{DATE}))"
        ),
    ),
)
_HAS_IT = r"(?:'s|\s(?:has|had|have|got))\s(?:an?\s)?(?:acute|chronic|leuk|lymphom|[ACM][A-Z]{2,3}\b)"
_SUGGESTS = (  # capitals where a person is spoken of, unless they name something else
    ((" patient ", " pt "), rf"\b(?:[Pp]atient|[Pp]t)\b\.?\s?[:=]\s?{_NAME}"),
    ((" pt ", " i am ", " i m "), rf"\b(?:[Pp]t\b\.?|[Ii]\sam|[Ii]'m)\s{_NAME}"),
    (
        tuple(f" {word} " for word in _RELATIVE.split("|")),
        rf"\b(?i:my|our|your|his|her)\s(?i:{_RELATIVE}),?\s{_NAME}",
    ),
    (_NAMED, rf"\b(?i:{_SOMEONE})\s(?:(?:is|was)\s)?(?:named|called)\s{_NAME}"),
    (
        (" name ",),
        rf"(?:\b(?:[Hh]is|[Hh]er|[Tt]heir|[Ww]hose)|'s)\sname(?:\sis|\swas|'s)\s{_CAPITAL}(?:\s{_CAPITAL}){{0,3}}",
    ),
    (_ILL_SOON, rf"\b(?:{_NAME}|[A-Z]\.\s?{_CAPITAL})(?={_HAS_IT})"),
    ((), rf"\b{_NAME}(?=,?\s\(?(?:born|DOB|{DATE}))"),
    (
        (),
        (
            rf"\b{_NAME}(?=,?\s(?:\(?aged?\s|an?\s)?\d{{1,3}}(?:,\s(?:is|has|was|had|with|who|male|female)\b|\syears?\sold"
            rf"|-year-old|\s?y/?o\b|$))"
        ),
    ),
)
# what a name can stand before and be no person: a place of work, or a thing named after someone
_NAMED_AFTER = (
    r"(?:hospital|universit|institut|cent(?:er|re)\b|clinic|college|school|academ|foundation|society|network|group\b"
    r"|laborator|librar|museum|fellowship|scholarship|commonwealth|cohort|consorti|registr|protocol|project|council"
    r"|agency|trust\b|compan|corporation|inc\b|ltd|gmbh|pharma|health|memorial|medical|methodist|river\b|award|prize"
    r"|park\s(?:cancer|comprehensive|memorial)|lecture|fund\b|kettering|farber\b|research\b|lilly\b|roussel|einstein\b"
    r"|eurotext|tech\b|barbara\b|tooth\b|arbor\b|zeiss|besta|valley|county|city\b|australia|italy|texas|wisconsin"
    r"|ontario|germany|stud(?:y|ies)\b|trials?\b|scores?\b|scale\b|ind(?:ex|ices)\b|criteri|classification|system"
    r"|stag(?:e|ing)\b|grad(?:e|ing)\b|levels?\b|risk\b|class\b|tests?\b|testing|assay|kits?\b|array|panel\b|blot"
    r"|stain(?:s|ing)?\b|methods?\b|model|procedure|operation|technique|algorithm|equation|formula|rule\b|sign\b|curve"
    r"|plots?\b|ratio\b|regression|correlation|titration|phenomenon|effect\b|reaction|hypothesis|theor(?:y|em)\b"
    r"|design|two\b|three\b|exact\b|syndrom|disease|an(?:a?e)mia|deficien|virus|mouse\b|mice\b|rats?\b|bengal|clamp\b)"
)
_NO_SURNAME = (
    r"(?:\b(?:leuk|lymph|myel|chromosom|cells?\b|protein|genes?\b|genetic|therap|cancer|tumou?r|sarcoma|transplant"
    r"|marrow\b|blood\b|states\b|mesylate|acute|chronic|complete|phase\b|adults?\b|children|elderly|pregnan|women\b"
    r"|people|patients\b|maintenance|induction|consolidation|prevent|treat|positive|negative|refractory|relapse"
    r"|response|remission|survival|transformation|factor\b|receptor|counts?\b|doses?\b|surg(?:ery|ical)?\b|intern\b"
    rf"|oncol|h[ae]{{1,2}}matol|pharmac|analys|gradient|scan\b|ozogamicin|{_NAMED_AFTER})"
    r"|(?:a[tz]ion|metry|scop[ye]|graph[ys]?|ogram|ectomy|ology|ostomy|plasty|plasia|philia|pathy|penia|kinase|ferase"
    r"|lysis|tidase|protease|globin|itis|osis|a?emia|cytes?|cytic|blast|chemical|logical|molecular|immune|genic|toxic"
    r"|nib|mab)\b)"
)
_NO_PERSON = re.compile(  # of capitals that no given name tells from these
    rf"{_NO_SURNAME}|\b(?:americans?|africans?|asians?|europeans?|hispanics?|natives?|whites?|blacks?|older|high|low"
    r"|south|north|east|west|random|new\s(?:york|zealand)|puerto|hong\skong|san\s(?:diego|francisco)|los\sangeles"
    r"|britain|united|sleeping\sbeauty|fraumeni|bristol)\b",
    re.IGNORECASE,
)
_NO_SURNAME_WORD = re.compile(_NO_SURNAME, re.IGNORECASE)
_SAYS_NAME, _SUGGESTS_NAME = Sieve(_SAYS), Sieve(_SUGGESTS)

_FIRST = re.compile(rf"\b[A-ZÀ-ÞĀ-ž]{_SMALL}{{2,20}}\b|\b[A-Z]{{4,20}}\b")
_SURNAME = r"(?:\s[A-Z]\b\.?){0,2}(?:\s(?:de|la|van|von|der|den|del|di|da|al|bin|el)){0,2}\s(?P<surname>%s)(?![\w-])"
_IN_SMALL = re.compile(rf"(?:-{_CAPITAL})?" + _SURNAME % rf"{_OPENING}{_CAPITAL}|[A-Z]{{4,20}}")
_IN_CAPITALS = re.compile(_SURNAME % "[A-Z]{3,20}")
_CALLED = Sieve(
    (
        (
            _NAMED,
            rf"\b(?:{_SOMEONE})\s(?:(?:is|was)\s)?(?:named|called)\s(?P<first>{_WORD})(?:,?\s{_WORD}){{0,2}}",
        ),
        (
            (" patient ",),
            rf"(?:(?<=\bpatient\s)(?P<of_patient>{_WORD})\s{_WORD}(?=\s(?:ha[sd]|is|was|with|takes|took)\b|,|$))",
        ),
        (_ILL_SOON, rf"\b(?P<ill>{_WORD})\s{_WORD}(?={_HAS_IT})"),
    ),
    re.IGNORECASE,
)
_BEFORE = re.compile(r"(?<!,\s)\b(?P<surname>[A-Z]{3,20}|[A-ZÀ-ÞĀ-ž][a-zà-ÿĀ-ž'-]{1,20}),\s$")
_ALONE = re.compile(_HAS_IT)
_BEHIND = re.compile(r"(?:\s[A-Z]\b\.?)?(?=\s(?:ha[sd]|is|was|with|relapsed|aged?|\()|\s?[,;(]|\s?$|\.$|\?)")
_THING = re.compile(rf"[\s-](?:{_CAPITAL}\s)?(?i:{_NAMED_AFTER})")
_RESEARCH = r"(?:describ|discover|introduc|propos|coin|publish|pioneer|postulat|invent|hypothesi)\w{1,4}"
_OF_A_SCHOLAR = re.compile(
    r"\b(?:[Tt]he|[Aa]n?|Drs?|Prof|Professor|Sir|St|Saint|named\safter|(?:memory|work|discovery|studies|papers?|theory"
    r"|group|lab|laboratory)\sof)\.?,?\s$|(?:©|\([cC]\)|[cC]opyright)\s?(?:\d{4}\s)?(?:by\s)?$|\b(?:Hospital|Universit"
    r"|Institut|Clini|Cent(?:er|re)|College|School|Fond|Fund)\w{0,8}\s(?:(?:[A-Z]\w{1,20}|of|de)\s){0,2}$"
    rf"|\b(?:{_RESEARCH}|describ\w{{2,3}}|report\w{{2,3}}|develop\w{{2,3}}"
    rf"|identifi\w{{2,3}})\s(?:\w{{1,20}}\s){{0,3}}by\s(?:\w{{2,20}}\s){{0,2}}(?:and\s)?$"
)
_DOES_RESEARCH = re.compile(
    rf"(?:\sand\s{_CAPITAL}\s{_CAPITAL})?(?:,?\set\sal\b|\sand\s(?:colleagues|co-?workers|associates)\b"
    rf"|\s(?:\w{{2,12}}ly\s|first\s)?{_RESEARCH}"
    r"|'s\s(?:discovery|work\b|hypothesis|laborator|group|theory|description|observation|team))"
)


def find_names(text: str, held: str) -> list[tuple[int, int]]:
    """(start, end) of what looks like a person's name; some overlap. `held` is the text by `words_apart`.

    A name of the list of given names with another behind it is one wherever it stands, unless it is a scholar's, a
    place's or a thing's. Others are only known by what stands around them.
    """
    names = [match.span() for match in _SAYS_NAME.pattern(held).finditer(text)]
    names += [match.span() for match in _SUGGESTS_NAME.pattern(held).finditer(text) if not _NO_PERSON.search(match[0])]
    names += [
        match.span()
        for match in _CALLED.pattern(held).finditer(text)
        if _given_names() & {*map(str.lower, filter(None, match.groups()))}
    ]
    return names + _of_the_list(text)


@cache
def _given_names() -> frozenset[str]:
    """Given names in small letters; the file says where they are from."""
    lines = _GIVEN_NAMES.read_text(encoding="utf-8").splitlines()
    return frozenset(name for line in lines if not line.startswith("#") for name in line.split())


def _of_the_list(text: str) -> list[tuple[int, int]]:
    """(start, end) of each given name of the list with a surname: Jane Doe, JANE DOE, Doe, Jane."""
    names: list[tuple[int, int]] = []
    for first in _FIRST.finditer(text):
        start, end = first.span()
        if first[0].lower() not in _given_names() or (names and start < names[-1][1]):
            continue
        before = text[max(0, start - 80) : start]
        surname = (_IN_CAPITALS if first[0].isupper() else _IN_SMALL).match(text, end)
        if surname is not None:
            end = _whole(text, surname.end()) if first[0][1].islower() else surname.end()
        elif (behind := _BEHIND.match(text, end)) and (surname := _BEFORE.search(before)):
            start, end = start - len(surname[0]), behind.end()
        elif first[0].isupper() or not _ALONE.match(text, end):  # Jane has AML
            continue
        person = (surname is None or not _NO_SURNAME_WORD.search(surname["surname"])) and not _THING.match(text, end)
        if person and not _OF_A_SCHOLAR.search(before) and not _DOES_RESEARCH.match(text, end):
            names.append((start, end))
    return names


def _whole(text: str, end: int) -> int:
    """The end of a name with the further surnames behind `end`: Ana López García."""
    for _ in range(2):
        more = _IN_SMALL.match(text, end)
        if more is None or _NO_SURNAME_WORD.search(more["surname"]):
            break
        end = more.end()
    return end
