"""What may tell who a patient is: found in texts and questions, to be refused or masked.

These are patterns, not understanding. They catch the common forms and are tested on real questions and titles, of which
none may be caught.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from examples.leukemia.data import Record, UserError
from examples.leukemia.long_numbers import find_long_numbers
from examples.leukemia.names import DATE, find_names
from examples.leukemia.sieve import Sieve, words_apart

__all__ = ["Identifier", "find_identifiers", "mask_identifiers", "mask_record", "undisguised"]

# every repeat has a limit, so that the time grows with the length of a text and not with its square
_NUMBERED = (
    r"(?:medical\s)?record|hospital|patient|pt|chart|case(?:\snote)?|account|member(?:ship)?|subscriber|UR|MBI|CHI"
    r"|health\scard"
    r"|(?:health\s)?insurance(?:\s(?:policy|card|member))?|policy|NHS|social\ssecurity|Medicare|Medicaid|specimen"
    r"|accession|(?:national"
    r"|identity)(?:\scard)?"
)
_DOCUMENT = r"MRN|passport|driv(?:er)?(?:['\u2019]?s|ing)?\slicen[cs]e|insurance\spolicy"  # told by its name alone
_NUMBER_SOON = re.compile(
    r" (?:record|hospital|patient|pt|chart|case|note|account|member|membership|subscriber|ur|mbi|chi|card|insurance"
    r"|policy|nhs|urn"
    r"|security|medicare|medicaid|specimen|accession|national|identity) (?:n|id|[a-z]{0,4} ?\d)"
)
_FIVE_DIGITS = r"(?=(?:[A-Za-z./-]{0,8}\d){5})"
_TOKEN = (  # five digits or more, or letters and four; not patients 101-115; parted by spaces digits alone
    rf"(?!\d{{1,3}}-\d{{1,3}}(?![\w-]))(?:(?:{_FIVE_DIGITS}"
    rf"|(?=[\d./-]{{0,12}}[A-Za-z])(?=(?:[A-Za-z./-]{{0,8}}\d){{4}}))"
    r"\w[\w./-]{2,38}\w|(?=(?:\s?\d){6}))(?:\d{1,6}\b)?(?:\s\d{1,6}\b){0,7}"
)
_SHORT_DATE = r"(?:\d{8}|\d{6}|\d{1,2}\s\d{1,2}\s(?:\d{4}|\d{2}))\b"  # a date only behind words that say so
_NI_NUMBER = r"[A-Z]{2}\s?\d{2}\s?\d{2}\s?\d{2}\s?[A-D]\b"
_BORN = (  # German, Dutch, the Nordic languages, French, Spanish, Italian and Portuguese
    r"geb(?:oren)?\b\.?(?:\s(?:am|op))?|geburtsdatum|geboortedatum|f[\u00f6\u00f8]d(?:t|d|elsdato|elsedato"
    r"|elsedatum)?\b"
    r"|n\u00e9(?:e|\(e\))?(?:\s\u00e0\s[\w-]{2,25})?\sle|date\sde\snaissance|nacid[oa]\sel|fecha\sde\snacimiento"
    r"|nat[oa](?:\sa\s\w{2,25})?\sil|data\sdi\snascita|nascid[oa]\sem|data\sde\snascimento"
)
_BORN_ABROAD = re.compile(
    " (?:geb|geburts|geboorte|f[\u00f6\u00f8]d|n\u00e9|date de|nacid|fecha|nat[oa] (?:il|a)|data d[ie]|nascid)"
)
_DATE_ABROAD = r"\d{1,2}(?:\.|\u00ba|er)?\s(?:de\s|di\s)?[^\W\d_]{3,12}\.?\s(?:de\s|del\s|di\s)?\d{4}\b"
_STREET_SOON = re.compile(
    r"str |(?:stra(?:\u00dfe|sse|at)|weg|platz|allee|gasse|laan|gatan) \d| (?:rue|avenue|boulevard|place|chemin|quai"
    r"|all\u00e9e|impasse"
    r"|route|calle|avenida|plaza|paseo|rua|viale|piazza|via) "
)
_PLACE_NAME = r"[A-Z\u00c0-\u00de][\w\u00e0-\u00ff'-]{1,25}"
_OF_THE = r"(?:(?:de|du|des|del|della|dei|la|le|les|los|las|da|do|dos)\s|(?:de\s)?l'|d'){0,3}"
_STREET_ABROAD = (  # the number behind or before the street
    rf"\b[A-Z\u00c4\u00d6\u00dc][\w-]{{2,25}}(?:stra(?:\u00dfe|sse|at)"
    rf"|(?<!Admini)(?<!Regi)(?<!Demon)(?<!Con)(?<!In)str\.|weg|platz"
    rf"|allee|gasse|laan|gatan)\s\d{{1,4}}\s?[a-z]?\b|\b(?:{_PLACE_NAME}\s){{1,2}}(?:Stra(?:\u00dfe|sse)|Str\.|Weg"
    rf"|Platz|Allee)\s\d{{1,4}}\b"
    rf"|\b\d{{1,4}}(?:\s?(?:bis|ter))?,?\s(?i:rue|avenue|boulevard|place|chemin|quai|all\u00e9e|impasse"
    rf"|route)\s(?=[dl]){_OF_THE}{_PLACE_NAME}"
    rf"|\b\d{{1,4}},?\s(?i:rue)\s{_PLACE_NAME}"
    rf"|\b(?i:calle|avenida|plaza|paseo|rua|viale|piazza)\s{_OF_THE}(?:{_PLACE_NAME}\s?){{1,3}},?\s?\d{{1,4}}\b"
    rf"|\b(?:[Vv]ia)\s{_OF_THE}(?:{_PLACE_NAME}\s){{1,2}}\d{{1,3}}(?=,\s(?:\d{{5}}\s[A-Z]"
    rf"|[A-Z][a-z]{{3,20}}(?:[.,;)]|$)))"
)
# each kind's alternatives with the words, as `words_apart` writes them, of which a text must have one
_IDENTIFIERS: dict[str, tuple[tuple[tuple[str, ...] | re.Pattern[str], str], ...]] = {
    "e-mail address": (((" @ ",), r"(?i:[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{0,190}[^\W\d])"),),
    "social security number": (
        ((), r"\b\d{3}-(?<!000-)(?<!666-)(?<!9\d\d-)(?!00)\d{2}-(?!0000)\d{4}\b"),
        (
            (" ssn", " social security"),
            (
                r"(?i:\b(?:SSN|social\ssecurity(?:\scard)?)(?:\s(?:numbers?|no|num|nr|id)\b)?\W{0,3}(?:is\b"
                r"|was\b)?\W{0,3})\d{3}[ -]?\d{2}[ -]?\d{4}\b"
            ),
        ),
    ),
    "NHS number": (((), r"\b\d{3}[ -]?\d{3}[ -]?\d{4}\b"),),
    "record number": (
        (
            (" mrn", " passport", " license", " licence", " insurance policy"),
            (
                rf"(?i:\b(?:{_DOCUMENT})(?:\s(?:numbers?|no\.?|id))?\s?(?:(?:is|:|\#|=)\s?){{0,2}}"
                r"(?!\d{1,3}-\d{1,3}(?![\w-]))(?=[\w-]{0,40}\d)[\w-]{4,40})"
            ),
        ),
        (
            _NUMBER_SOON,
            (
                rf"(?i:\b(?:{_NUMBERED})(?:\s(?:(?:numbers?|nos?|nr|id)\b\.?|identifier)|\s?\#)\s?(?:(?:is|was|:|\#"
                rf"|=)\s?)"
                rf"{{0,2}}{_TOKEN})"
                rf"|(?i:\b(?:Medicare|MBI|health\scard|(?-i:CHI)|member|specimen)(?:\sMBI)?\s?:?\s"
                rf"(?:{_FIVE_DIGITS}(?=[\d./-]{{0,12}}[A-Za-z])\w[\w./-]{{2,38}}\w"
                rf"|\d{{3,4}}\s\d{{3,5}}\s\d{{1,4}}\b)|(?-i:\b(?:URN?|CHI))\s?:?\s?\d{{7,10}}\b)"
            ),
        ),
        (
            ("nummer ", "nr ", "mero ", "m\u00e9ro "),
            (
                r"(?i:\b(?:[^\W\d_]{2,30}-?(?:nummer|nr\b\.?)|n[u\u00fa]m[e\u00e9]ro(?:\s[^\W\d_]{2,15}){0,4})"
                rf"\s?:?\s(?=(?:[A-Za-z]?[\s./-]?\d){{6}}){_TOKEN})"
            ),
        ),
        ((" record",), r"(?i:\b(?:medical\s)?record)\s?[:#]{0,2}\s?\d{6,10}\b"),
        ((" medical record ", " mr "), r"(?i:\bmedical\srecord|\bMR)\s?#\s?:?\s?\d{4,10}\b"),
        ((" id ", *(f" id{digit}" for digit in range(10))), r"\bID\s?[:#]?\s?\d{7,10}\b"),
        (
            (" national insurance",),
            rf"\b(?i:national\sinsurance(?:\s(?:number|no\.?))?)\s?(?:is|:)?\s?{_NI_NUMBER}",
        ),
        ((), r"\b[A-Z]{2}\s\d\d\s\d\d\s\d\d\s[A-D]\b"),
    ),
    "telephone number": (
        (
            (),
            (
                r"(?<![\w.])\+(?=(?:[ ().-]{0,3}\d){8})\d[\d ().-]{7,25}\d"
                r"|\((?!(?:19|20)\d\d\))\d{3,5}\)\s?\d{3,4}[ -]?\d{3,4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b"
                r"|(?<!\d\s)\b0(?!00)\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}\b"
            ),
        ),
        (
            (" phone ", " tel ", " telephone ", " mobile ", " call "),
            (
                r"(?i:\b(?:phone|tel|telephone|mobile|call)(?:\s(?:me|us|him|her|them))?"
                r"(?:\s(?:number|no|at|on|is|was)){0,2}\b[\s.:]{0,3})\+?\d[\d ().-]{5,25}\d"
            ),
        ),
    ),
    "date of birth": (
        (
            (" dob", " d o b", " date of birth", " birth", " born", " b "),
            (
                rf"(?i:\b(?:(?:DOB|D\.O\.B\.?|date\sof\sbirth|birth\s?da(?:te|y))\s?(?:is|was|falls"
                rf"|[:=-])?\s?(?:on\s)?(?:the\s)?(?:{DATE}|{_SHORT_DATE})"
                rf"|(?:born|(?-i:b)\.(?=\s))\s?(?:was|[:=-])?\s?(?:(?:on|in)\s)?(?:the\s)?{DATE}))"
            ),
        ),
        (_BORN_ABROAD, rf"(?i:\b(?:{_BORN})\s?:?\s?(?:{DATE}|{_DATE_ABROAD}|{_SHORT_DATE}))"),
    ),
    "address": (
        (
            (),
            (
                r"\b\d{1,5}[A-Z]?\s(?:[NSEW]\.?\s)?(?:(?:[A-Z][a-z]{1,20}|\d{1,3}(?:st|nd|rd|th))\s){1,3}(?:(?:Street"
                r"|Road|Avenue|Lane|Drive|Court|Crescent|Boulevard|Terrace|Close|Square|Highway|Parkway)\b|(?:Rd|Ave|Blvd|Ln|Cres"
                r"|Hwy|Pkwy)\b\.?"
                r"|St\b(?!\.?\s(?:Jude|Louis|George|Gallen|Mary|John|Vincent|Luke|Thomas|Bartholomew))\.?|Dr\b(?!\.?\s[A-Z])\.?)"
                r"|\bP\.?\s?O\.?\sBox\s\d{1,6}\b"
            ),
        ),
        (_STREET_SOON, _STREET_ABROAD),
    ),
}
_PATTERN = {kind: Sieve(parts) for kind, parts in _IDENTIFIERS.items()}


@dataclass(frozen=True)
class Identifier:
    """A stretch of text that may tell who a patient is."""

    start: int
    end: int
    kind: str


_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u180b-\u180d\u2800\u3164\ufe00-\ufe0f]"
)  # shown as nothing, besides category Cf


def undisguised(text: str) -> str:
    """`text` in plain letters, digits and hyphens (NFKC), without invisible characters, which part what is looked for."""
    kinds = ((each, unicodedata.category(each)) for each in _UNSEEN.sub("", unicodedata.normalize("NFKC", text)))
    return "".join("-" if kind == "Pd" or each == "\u2212" else each for each, kind in kinds if kind != "Cf")


def find_identifiers(text: str, of_question: bool = False) -> list[Identifier]:
    """What looks like a patient's name, birth date, address, record, NHS or social security number, phone or e-mail.

    Args:
        of_question: whether any long number is one, too, if it is not plainly something else.
    """
    held = words_apart(text)
    found = [
        Identifier(match.start(), match.end(), kind)
        for kind, sieve in _PATTERN.items()
        for match in sieve.pattern(held).finditer(text)
        if not _is_no_ones(text, match, kind)
    ]
    found += [Identifier(start, end, "name") for start, end in find_names(text, held)]
    if of_question:
        found += [Identifier(start, end, "long number") for start, end in find_long_numbers(text)]
    kept: list[Identifier] = []
    for each in sorted(found, key=lambda one: (one.start, -one.end)):
        if not kept or each.start >= kept[-1].end:
            kept.append(each)
    return kept


def mask_identifiers(text: str, of_question: bool = False) -> str:
    """`text` with every identifier replaced by its kind in brackets; `of_question` as in `find_identifiers`."""
    parts, place = [], 0
    for each in find_identifiers(text, of_question):
        parts += [text[place : each.start], f"[{each.kind}]"]
        place = each.end
    return "".join([*parts, text[place:]])


_DATA_BASE = (
    r"(?:genes?|entrez|geo|pubchem|genbank|embl|ncbi|uniprot|dbsnp|clinvar|compound|sra|dbgap|arrayexpress|omim|mesh"
    r"|pdb|ensembl|refseq|trial|study"
    r"|pubmed|pmc|article|data\s?sets?|cosmic|drugbank|chembl|protein|taxonomy|project|grant|sequence|submission"
    r"|snomed)"
)
_BEFORE_ID = re.compile(rf"\b{_DATA_BASE}(?:'s)?\W{{0,2}}$", re.IGNORECASE)
_BEHIND_ID = re.compile(rf"\W{{1,2}}(?:(?:in|of|at|from)\s)?(?:the\s)?{_DATA_BASE}\b", re.IGNORECASE)
_SEQUENCE = re.compile(
    r"E-[A-Z]{4}-\d{1,6}|(?:[A-Za-z]{1,6}_?\d{5,12}|\d[A-Z\d]{3})(?:\.\w{1,4}){0,3}"
)  # of GenBank, GEO, PDB
_MANY_BORN = re.compile(  # children born 1 January 2000
    r"(?<![\w'])(?:children|people|(?:wo)?men|girls|boys|patients|persons|individuals|adults|adolescents|infants"
    r"|newborns|neonates"
    r"|babies|subjects|participants|residents|citizens|survivors|siblings|relatives|offspring|donors|recipients"
    r"|cases|cohorts?|births"
    r"|those|all|anyone|everyone)\s(?:(?:who|that)\s)?(?:(?:were|are|was|is)\s)?$",
    re.IGNORECASE,
)
_NOT_ON_THE_DAY = re.compile(r"\s(?:(?:or|and)\s(?:later|after|before|earlier|thereafter|onwards?)|onwards?)\b")


def _is_no_ones(text: str, found: re.Match[str], kind: str) -> bool:
    """Whether what looks like an identifier is a number of something else, or a birth date of many."""
    before, behind = text[max(0, found.start() - 30) : found.start()], text[found.end() : found.end() + 30]
    if kind == "NHS number" and not _is_nhs_number(found.group()):
        return True
    if kind == "record number" and re.match("ID|accession", found.group(), re.IGNORECASE):
        number = found.group().split()[-1]
        of_a_sequence = found.group()[0] in "aA" and _SEQUENCE.fullmatch(number)
        return bool(of_a_sequence or _BEFORE_ID.search(before) or _BEHIND_ID.match(behind))
    if kind == "date of birth" and _NOT_ON_THE_DAY.match(behind):
        return True
    if kind == "date of birth" and found.group().startswith("born"):
        return bool(_MANY_BORN.search(before)) and not re.search(r"\b(?:my|our|his|her)\s\w+\s$", before, re.IGNORECASE)
    return _are_doses(text, found)


_DOI = re.compile(
    r"(?:doi:\s?|https?://(?:dx\.)?doi\.org/)?10\.\d{4,9}/\S{1,200}"
)  # may hold what looks like a telephone's number, and names no one


def mask_record(record: Record) -> Record:
    """The article with every identifier masked, whichever column it stands in.

    Raises:
        UserError: its id holds one; masked, it could be the id of several articles.
    """
    kinds = {each.kind for each in find_identifiers(record.pubmed_id)}
    if kinds - {"NHS number"} and not _DOI.fullmatch(record.pubmed_id):  # one of eleven numbers could be of the NHS
        masked = mask_identifiers(record.pubmed_id)
        raise UserError(f"the id {masked!r} seems to hold a patient's data: give the article another one")
    return replace(
        record,
        title=mask_identifiers(record.title),
        abstract=mask_identifiers(record.abstract),
        subtype=mask_identifiers(record.subtype) if record.subtype else None,
        journal=mask_identifiers(record.journal) if _is_no_journal(record.journal) else record.journal,
        sections=tuple((mask_identifiers(label), mask_identifiers(text)) for label, text in record.sections),
    )


def _is_no_journal(text: str) -> bool:
    """Whether what stands as a journal holds a patient's data: a name alone is a journal's, Henry Ford Hosp Med J."""
    return any(each.kind != "name" for each in find_identifiers(text))


def _is_nhs_number(text: str) -> bool:
    """The modulus 11 check of the NHS Data Dictionary: weights 10 to 2, and 11 less the remainder is the last digit."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    check = 11 - sum(digit * weight for digit, weight in zip(digits, range(10, 1, -1))) % 11
    return check % 11 == digits[9] and check != 10 and len(set(digits)) > 1


def _are_doses(text: str, found: re.Match[str]) -> bool:
    """Whether 100-200-3000 is a range of doses: a unit follows, or each number is round and larger than the one before."""
    if not re.fullmatch(r"\d{3}[.-]\d{3}[.-]\d{4}", found.group()):
        return False
    if re.match(
        r"\s?(?:[mnkuµμ]?g|mcg|IU|U|units|m[lL]|[mnuµμ]?M|cells|rads?|c?Gy)\b", text[found.end() : found.end() + 8]
    ):
        return True
    numbers = [int(number) for number in re.split("[.-]", found.group())]
    return numbers == sorted(set(numbers)) and all(number % 25 == 0 for number in numbers)
