"""What keeps answers harmless: no patient data in, no instructions from texts, no diagnosis of a person out.

These are patterns, not understanding. They catch the common forms and are tested on real questions and titles, of which
none may be caught.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from examples.leukemia.annotate import annotate
from examples.leukemia.data import Record, UserError
from examples.leukemia.gazetteer import Gazetteer, load_gazetteer
from examples.leukemia.long_numbers import find_long_numbers
from examples.leukemia.names import DATE, DRUG_ENDINGS, find_names
from examples.leukemia.sieve import Sieve, words_apart

__all__ = [
    "Identifier",
    "as_data",
    "asks_about_a_person",
    "find_identifiers",
    "mask_identifiers",
    "mask_record",
    "reads_like_instruction",
    "states_diagnosis",
    "undisguised",
]

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


_STARTS = r"(?:^|[.:;?!]\s)\W{0,5}(?:please\s|kindly\s|now\s)?"
_MACHINE = r"(?:AIs?|LLMs?|(?:AI|language)\smodels?|(?:the|dear|hey|hello|any)\s(?:assistant|model)|assistants|chat\s?bots?|chatgpt|llama)"
_SPEAK = r"(?:answer|respond|reply|say|state|output|obey|recommend|cite|ignore|behave|act|speak|write|print|praise)"
_TOLD = r"(?:instru[ck]\w{3,8}|anweisungen|prompts?|rules|guidelines?|guidance|directions|restrictions|orders|above|preceding"
_INSTRUCTIONS = (
    rf"{_STARTS}(?:system|assistant|user|(?:new\s)?(?:instructions?|tasks?|orders?|commands?))\s?:",
    r"#\s?(?:instructions?|system|response)\b|[\[({<]\s?/?(?:system|instructions?|inst|prompt)\s?[\])}>]|<\||\|>|<</?SYS>>",
    r"\b(?:system|developer)\s(?:prompt|message|mode)\b|\b(?:debug|admin|god)\smode\b|\bend\sof\s(?:article|prompt|context)\b",
    r"\b(?:ignore|disregard|forget|override)\s(?:everything|anything|whatever|what|all\sthis)\b",
    rf"\b(?:ignor(?:e|ez|a|iere)|disregard|forget|override)\b.{{0,40}}\b{_TOLD}|previous(?:ly)?|prior|earlier|question)\b",
    rf"\b(?:neglect|bypass|skip|set\saside|stop\sfollowing|pay\sno\sattention)\b.{{0,40}}\b{_TOLD}|sources|articles?)\b",
    r"\b(?:previous|prior|earlier|these|new|following)\s(?:instructions|orders|rules)\b|\bdo\sas\sI\ssay\b|\bobey\sthe\b",
    r"\byour\s(?:\w{1,30}\s)?(?:answers?|reply|output|prompt|instructions?|guidelines?|restrictions?|programming)\b",
    r"\byour\sresponse\s(?:include|must|should)\b|\byour\s(?:new\s)?(?:task|role|job)\sis\b",
    r"\b(?:correct|right|expected|only|the|your)\sanswer\s(?:is|must|should)\b|\b(?:in|to)\s(?:the|every|each)\sanswer\b",
    rf"\byou\s(?:(?:must|should|will|shall)\s(?:now\s)?)?{_SPEAK}\b|\bthat\syou\s{_SPEAK}\b|\b{_MACHINE}\s(?:must|should|shall)\s{_SPEAK}\b",
    rf"\b(?:to|for|attention|dear|hey|hello)\s{_MACHINE}\b\s?(?:reading|:|,)|\bnote\sto\s{_MACHINE}\b|\b(?:dear|hey|hello),?\s(?:AI|assistant|model|bot)\b",
    rf"\battention,?\s{_MACHINE}\b|{_STARTS}{_MACHINE}\s?:|\bif\syou\sare\san?\s(?:AI|LLM|language)\b|\bas\san\sAI\b",
    r"\byou\sare\s(?:now|no\slonger\san?|an?\s(?:\w{1,30}\s)?(?:AI|assistant|language\smodel|bot|doctor|physician|expert|pirate))\b",
    r"\b(?:reading|processing)\sthis\b.{0,20}\b(?:must|should)\b|\bpretend\s(?:that\syou|you|to\sbe)\b|\bfrom\snow\son,?\syou\b",
    r"\btell\s(?:the\s)?(?:user|reader)s?\b|\bto\sthe\suser\b|\bwhen\sasked\b.{0,20}\b(?:respond|answer|reply|say)\b",
    rf"{_STARTS}(?:act|speak|behave|respond|answer|reply|role-?play|write)\s(?:as|in|like|every|all|only|with)\b|\brespond\swith\b",
    rf"{_STARTS}(?:assume\sthe\srole|refuse\sto\s{_SPEAK}|(?:always|only|never)\s{_SPEAK}|cite\s(?:only|this|no)|enter\s\w{{1,30}}\smode)\b",
    rf"{_STARTS}(?:follow|obey|execute|comply\swith)\s(?:this|these|my|the\s(?:following|next|above))\b|\blet's\splay\b",
    rf"{_STARTS}(?:summari[sz]e|translate|rewrite|paraphrase|repeat)\s(?:this|after\sme|the\s(?:above|following|text|article|abstract))\b",
    rf"{_STARTS}(?:(?:make|be)\ssure|remember)\sto\s(?:mention|say|include|answer|recommend|state|tell\spatients)\b",
    rf"\bI\s(?:want|need|order|command|ask)\syou\sto\b|{_STARTS}(?:show|give|reveal|send)\s(?:me|us)\s(?:your|the)\b",
    (
        r"\b(?:do\snot|don't|never)\s(?:use|follow|cite|read|trust|answer)\s(?:the|these|those|any|this)\s(?:other\s)?"
        r"(?:articles?|instructions?|sources?|question|text)\b|\b(?:do\snot|don't|never)\s(?:cite|mention|tell|reveal)\b"
    ),
    r"\b(?:respond|answer|reply)\s(?:only\s)?with\b|\b(?:print|say|write|output|repeat)\s(?:exactly|only|the\sfollowing|that\b)|\binclude\sthe\sfollowing\s(?:sentence|text|word)",
    (
        rf"{_STARTS}(?:output(?:\s?:|\sthe\b)|print\b|say\b|inform\s(?:who|the|them|your|people)|answer\b|reply\b|respond\b|tell\b"
        r"|mention\b|translate\s(?:everything|all|it)\b|stop\sreading\b|instead\sof\s(?:answering|summari)|assistants?,)"
    ),
    (
        r"\b(?:the\sassistant|summari[sz]ers|language\smodels|(?:the|an?|any)\sAI(?:\ssystem)?|anyone\s(?:summari|read|process)\w{1,5}"
        r"(?:\s\w{1,20}){0,2}|whoever\s(?:reads|asks|is\s(?:asking|reading))(?:\s\w{1,20})?)\s"
        rf"(?:(?:must|should|shall|will|(?:is|are)\srequired\sto)\s(?:be\stold|{_SPEAK})|recommends|answers|responds|replies)\b"
    ),
    r"\bwhoever\sis\s(?:asking|reading)\b|\bverbatim\sin\s(?:any|every|each|the|your)\b|\bgenerating\s(?:a|any|the|your)\s(?:response|reply|answer)\b",
    rf"\b(?:answer|reply|response)\sto\s(?:every|each|any|all)\squestions?\b|;\s(?:so\s|instead\s)?{_SPEAK}\b",
    r"\b(?:[a-z]\s){5,40}[a-z]\b|[a-z][\u0400-\u04ff]|[\u0400-\u04ff][a-z]",  # spelt apart, or with letters of two scripts
)
_INSTRUCTION = re.compile("|".join(_INSTRUCTIONS), re.IGNORECASE)


def reads_like_instruction(sentence: str) -> bool:
    """Whether a sentence of a source speaks to a model instead of its readers."""
    return bool(_INSTRUCTION.search(sentence))


def as_data(text: str, tags: Sequence[str]) -> str:
    """`text` in which nothing can close or open one of the prompt's own tags."""
    return re.sub(rf"<(?=\s*/?\s*(?:{'|'.join(tags)})\b)", "&lt;", text, flags=re.IGNORECASE)


_ONE = r"(?:I|my|we|he|she|our|(?:this|the|our)\s(?:patient|man|woman|child|boy|girl)|(?:my\s)?(?:dad|mum|mom|father|mother|son|daughter))"
_PERSON = re.compile(
    rf"\b(?:do|does|did|am|have|has|is|are|was|were|should|can|could|will|would)\s{_ONE}\b(?![\s-](?:staining|stain|sections?|FISH))"
    r"|\bmy\b|\bwhat\s(?:do|does)\s(?:I|my|he|she)\b|\bI\s(?:have|am|feel|take|was|had)\b|\bI['\u2019](?:m|ve|d)\b|\bme\b",
    re.IGNORECASE,
)
_LOOK_ALIKE = str.maketrans("аеорсухкмнтвіјѕһοαρυιετκνγμʏᴏᴜ", "aeopcyxkmhtbijshoapuietkvyuyou")
_MUST = r"(?:must|should|shall|needs?\sto|ha(?:s|ve)\sto|ought\sto|had\sbetter)"
_NOW = (
    rf"(?:ha(?:s|ve)(?!\s(?:\w{{1,20}}\s)?(?:remained|survived|been\s(?:in|on|off|free|well|alive))\b)|suffers"
    rf"|{_MUST}(?!\s(?:\w{{1,20}}\s)?be\s(?:informed|told|counsel))|will|won't|needs(?!\sof)|requires|carries"
    rf"|harbou?rs|gets"
    r"|takes|dies|does|cannot|can't|shows|exhibits|lives\swith|fights|battles|bears|appears|seems|are"
    r"|is(?!\s(?:\w{1,20}\s)?"
    r"(?:\d{1,3}|alive|well|healthy|free|being|doing|in\s(?:\w{1,20}\s){0,2}remission|(?:first|second|only|oldest"
    r"|youngest))\b))\b"
)
_IT = (
    rf"\b(?:this|these|it|here)(?=\W{{0,3}}$|,|\s(?:now\s)?(?:up|in|has|have|is|are|will|suffers?|{_MUST}|text|page|article"
    r"|abstract|sentence|line|paper|answer|study|result)s?\b)"
)
_ADDRESS = re.compile(  # in small letters without accents; readers of plates and of histone marks are none
    r"(?<!dr\.\s)\b(?:y\W?[o0]\W?u(?:r\w{0,8}|ve|ll|d|s|se)?|ye)\b(?!\s(?:et\sal|and\sco))"
    r"|\b(?:y'?all|yer|thou|thee|thy(?!-)|thine|my(?!-)|one's\sown|myself|dear|whoever|(?:ask|enquir|inquir|question)ers?"
    r"|[ei]nquiring\s(?:person|patient|one|man|woman))\b|\bur\s(?:\w{1,20}\s)?(?:is|are|has|blood|marrow|diagnosis"
    r"|dose|leuk)"
    r"|\b(?:u|ya)(?:'re|'ve|\s(?:r|are|have|got|had|do|need|must|should|shall|will|can|may|suffer|take|stop))\b"
    r"|\b(?:vous|votre|usted(?:es)?|tienes|tu\sas|voce|lei\sha|hai\s(?:la|una)|du\shast|sie\s(?:haben|leiden|sind"
    r"|mussen"
    r"|sollten)|ihre?[nmrs]?\s(?:befund|diagnose|blut|leuk)\w{0,20})\b"
    r"|[\u0400-\u1dff\u3040-\ud7ff]{2}"  # no Latin letters
    r"|\b(?:with|behind|of)\s(?:this|that|such\sa|the)\s(?:question|query|[ei]nquiry)\s(?:has|is|must|suffers)\b"
    r"|\b(?:who|that|one|body|(?:any|every|some)one|person|patients?|(?:wo)?man|people|those|all|if)\s(?:(?:is|are|now"
    r"|just|has"
    r"|have)\s){0,2}(?:(?:ask(?:s|ing)?|(?<=who\s)asked)\b(?!\s(?:whether|how|why|what|for|about|to|if)\b)|wonder(?:s"
    r"|ing)\b"
    r"|want(?:s|ed)\sto\sknow\b|read(?:s|ing)?(?:\s(?:on|these)\b|\W{0,3}$|,|\s(?:has|have|is|are|must|should|will"
    r"|suffers?)\b)"
    rf"|(?:open|look|consult|see|view|check|find|quer[iy]e?|typ|read)(?:e?s|ing)?\s(?:at\s)?(?:(?:this"
    rf"|the)\s(?:article|text|page|above)\b"
    rf"|{_IT}))|\breading\s(?:on\b|{_IT})"
    r"|(?:^|[.:;!?,]\s|\b(?:the|this|each|every|any|our|all|gentle|to|for|of|hello|hi|o)\s)"
    r"readers?\b(?!\s(?:protein|domain|module|function|complex|of\s(?!th)|and\s(?:writer|eraser)|were\sblind"
    r"|independent))"
)
_ILL = re.compile(
    r"\b\w{0,20}(?:leu[ck]a?em|leuka|lymphom|myelom|carcinom|sarcom|melanom|blastom|gliom|cancer|tumou?r|malignan"
    r"|neoplas)(?![oi]?gen)\w{0,20}",
    re.IGNORECASE,
)
_MEDICINE = (
    r"(?:illness|drug|\w{0,12}(?:therap(?:y|ies)|transplant\w{0,30})|chemo\w{0,30}|radiation|treatments?"
    rf"|medic(?:ines?|ations?)|pills?|tablets?|drugs|doses?|dosage|\w{{1,30}}{DRUG_ENDINGS})\b(?!-)"
)
_MEANT = re.compile(
    rf"\b(?:{_MEDICINE}|blasts?\b|relaps|die\b|dying\b|(?:will|cannot)\s(?:not\s)?survive)", re.IGNORECASE
)
_SOMEONE = (
    r"(?:patient|person|individual|child|infant|baby|boy|girl|man|woman|gentleman|lady|subject|user|mother|father|son"
    r"|daughter|wife|husband|brother|sister|(?:\d{1,3}|\w{3,20})-year-old)\b(?!-)"
)
_GOES_ON = (  # what follows a person, and not a word that makes "patient" or "mother" part of a thing's name
    r"(?='s\s(?:\w{1,20}\s){0,2}(?:illness|disease|marrow|blood|diagnosis)\b|,|\s(?:\(|\d|(?:is|has|who|with|without"
    r"|in|at|on"
    rf"|from|here|above|below|too|also|now|still|indeed|not|most|then|so|you|\w{{1,20}}(?:ly|ed|ing))\b|{_NOW}))(?:'s)?"
)
_GAP = r"\s(?!(?:that|when|if|whether|where|while|because|as)\b)\(?[\w'-]{1,30}\)?"
_END = r"(?=\W{0,3}$|,(?!\sillness)|[.;:!?)]|\s(?:and|so|but|now|with|at|by|here|\()\b)"
_SINGLE = re.compile(  # one person, up to five words, what is so now or will be; and the other way round
    r"(?P<if>\b(?:if|whether|when|once|unless|until|where)\s)?(?:\b(?:s?he|him|his|hers?)\b|\b(?:the|this|that|our"
    r"|said)\s"
    rf"(?:[\w-]{{1,20}}\s){{0,2}}?{_SOMEONE}{_GOES_ON}|^\W{{0,3}}(?:patient|pt)\b\.?|\bM(?:rs?|s)\b\.?\s\w{{1,20}}"
    rf"|\[name\])(?:(?<=he)'(?:s|ll|d\sbetter)\b|(?:,(?:{_GAP}){{1,6}},?|(?:{_GAP}){{0,5}}?)(?:'s\sgot\b|\s{_NOW}))"
    rf"|\s{_NOW}[^.,;:]{{0,60}}\s(?:in|of|for|by|to)\s(?:him|her|th(?:is"
    rf"|at)\s(?:\w{{1,20}}\s)?{_SOMEONE})(?=\W{{0,3}}$|[,.;:])"
    rf"|(?<!who\s)(?<!that\s)(?<!already\s)(?<!mouse\s)(?<!cohort\s)\b(?:has|suffers\sfrom|is\s(?:ill|sick|suffering"
    rf"|dying)\s(?:with|from|of))\s(?:(?:an?|got|\w{{1,20}}ly)\s){{0,2}}illness{_END}",
    re.IGNORECASE,
)
_SURE = (
    r"(?:yes|no\sdoubt|without\s(?:(?:a|any)\s)?doubt|for\ssure|sorry|indeed|(?:definite|certain|clear|sure|undoubted"
    r"|obvious"
    r"|evident|probab|like)ly)"
)
_NAMED = re.compile(  # what a label, "this" or "yes" says, and what something is without further words
    r"(?:(?<!when\sthe\s)(?<!if\sthe\s)\bdiagnos(?:[ie]s|ed)|\bdx|\bimpression|(?<!risk\s)\bassessment|\bverdict"
    r"|^\W{0,3}patient)\b"
    r"(?:\s(?:&|and)\splan|\s(?:for|of)\s(?:the|this|that|his|her|our)\s[^.:;]{1,40}?|,[^,.;]{1,40},)?\s?"
    r"(?:\s(?:is|remains|reads|equals|stands|must\sbe|would\sbe|can\sonly\sbe)\b:?|[:=-])\s"
    r"(?:(?!(?:made|based|of|in|by|for|to|often|usually|mostly|commonly|rarely)\b)[\w-]{1,20},?\s){0,4}illness\b"
    r"|^(?:(?!illness|subject|topic|focus|review|model|example)[^.;:]){1,80}?\s(?:is|means?|equals?|proves?|shows?"
    r"|confirms?|points?\sto|adds\sup\sto|comes\sfrom)\s"
    r"(?:(?!(?:the|of|in|to|for|no|not|by|with|about|from|on|at)\b)[\w-]{1,20}\s)?illness\W{0,3}$"
    r"|^\W{0,3}(?:the\s)?(?:(?:result|outcome|fact|finding)\s?:\s"
    r"(?:[\w-]{1,20}\s)?illness\W{0,3}$|(?:rx|prescription|recommended)\s?:\s(?:\w{1,20}\s)?drug\b)"
    rf"|^\W{{0,3}}(?:diagnosis|dx|impression)\W{{1,2}}illness\b|\billness\sis\s(?:certain|(?:the|his"
    rf"|her)\s(?:\w{{1,20}}\s)?(?:diagnosis|disease"
    r"|answer|verdict))\b|\billness,?\sit\sis(?:\W{0,3}$|[,.;])"
    r"|(?:(?:\b(?:this|it)|^that|^what\s[^.]{1,40}|\b(?:th(?:e|ese|ose)|such)\s(?:\w{1,30}\s)?(?:results?|findings"
    r"|values|counts|symptoms|signs|blasts"
    rf"|tests?)(?:{_GAP}){{0,4}}?)(?:'s|\s(?:is|are|must\sbe|can(?:\sonly|not|'t)\sbe|confirms?|means?|proves?"
    rf"|(?:looks|seems"
    r"|appears)\s(?:like|to\sbe)))|^looks\slike)\s(?:(?!(?:of|in|to|the|an?|for|with|by|on|as|that|called|known|termed"
    r"|illness)\b)"
    rf"[\w-]{{1,20}},?\s){{0,4}}(?:an?\s)?(?:case\sof\s)?illness{_END}|\bmeans\s(?:an?\s)?illness{_END}"
    rf"|\b(?:I|we|they)\s(?:all\s)?(?:have|suffer\sfrom)\s(?:an?\s)?illness{_END}|\bthe\sillness\sis\s(?:an?\s)?illness{_END}"
    r"|^\W{0,3}(?:\w{1,20}\s){0,3}positive\sfor\s(?:an?\s)?illness\W{0,3}$"
    rf"|\byes\W{{1,3}}(?:an?\s)?illness\b|\bcongratulations\b|^\W{{0,3}}(?:{_SURE}\W{{1,3}}(?:(?:it\sis|an?)\s)?illness"
    rf"|illness\W{{1,3}}{_SURE})\W{{0,3}}$"
    r"|(?:^|[.,;:]\s|\b(?:and|that|but)\s)I\s(?:\w{1,20}\s)?(?:diagnose|recommend|advise|prescribe|suggest|order"
    r"|urge)\b",
    re.IGNORECASE,
)
_DO = (
    r"(?:take(?!\s(?:part|into|note|care|account)\b)|stop|start|begin|discontinue|continue|quit|cease|halt|suspend"
    r"|interrupt"
    r"|resume|restart|use|try|swallow|ingest|swap|replace|substitute|exchange|dispose\sof|throw|dump|ditch|flush"
    r"|consume|eat"
    r"|buy|order|withdraw|withhold|cancel|terminate|add|combine|self-administer|get\srid\sof|do\saway\swith|opt\sfor"
    r"|drink|inject|avoid|refuse|decline"
    r"|reject|skip|omit|undergo|accept|demand|request|choose|prefer|give|administer|abandon|forget|get|receive|leave"
    r"|keep"
    r"|insist\son|ask\sfor|(?:just\s)?say\s(?:no|yes)\sto|(?:stay|steer|keep)\s(?:away|clear\sof)|(?:go|come|stay"
    r"|remain|keep)\s"
    r"(?:on|off)|hold\soff|wait\s(?:with|before\sstarting)|treat(?=\s(?:this|it|with)\b)|(?:increase|raise|double"
    r"|triple|reduce"
    r"|lower|halve|cut|change|delay|drop)(?=\s(?:the|this|that)\b|\s[\w-]{3,30}\s(?:(?:to|by|with)\s|(?:now|today"
    r"|at\sonce"
    r"|immediately)\b))|switch(?=\s(?:to|from)\s(?:[^.;:]{1,60}\s(?:now|today|at\sonce|immediately|instead|as\ssoon)\b"
    r"|[\w-]{3,30}[.!]$)))"
)
_ORDERED = re.compile(  # with what is to be taken or stopped; "use of" and "stop codons" order nothing
    r"(?:^|[.:;!?]\s|\b(?:so|please|yes),?\s|\b(?:(?:be|make)\ssure|remember|time)\sto\s|\bgo\sand\s|\blet(?:'s|\sus)\s"
    r"|^(?:then|and|but|first|next|today|tomorrow|from\s\w{1,20}),?\s"
    r"|^(?:if|when|once|after|before|until|immediately|for)\b[^,;.:]{1,80},\s|^(?:do\snot|don't"
    r"|never),\s[^,;.:]{1,60},\s)"
    r"\W{0,3}(?:(?:please|kindly|now|so|therefore|instead|just|simply|better|best|always|never|ever|do|not|don't"
    r"|\w{2,20}ly)"
    rf",?\s){{0,3}}{_DO}\s(?:(?:taking|using|with|to|from|on|off|away|the|all|any|this|that|these|an?|no|more|every"
    rf"|further"
    r"|next|daily|weekly|low|high|full|only|nothing\sbut|as\smuch|one|two|three|four|five|half|some"
    r"|(?:\w{1,8}\s)?(?:dose|tablet|pill|capsule|course|cycle"
    r"|milligram|gram|mg|g)s?\sof|\d[\w.,/%-]{0,12}|\w{1,12}-dose|mg)\s){0,6}"
    rf"(?:{_MEDICINE}|(?:it|them)\b)(?!\s(?:\(\w{{2,12}}\)\s)?(?:trials?|stud(?:y|ies)|arms?|groups?)\b"
    rf"|[^.!?]{{0,300}}\?)",
    re.IGNORECASE,
)
_STOP = r"(?:stop|discontinu|quit|cease|abandon|refuse|reject)"
_TO_ALL = re.compile(  # everybody must stop, nobody should take, it must be taken by all, stopped today, no more of it
    rf"\bdrug\sis\sto\sbe\s{_STOP}|\b(?:all|every|each|any|every(?:body|one)|any(?:body|one)|people)\b.{{0,80}}\b{_MUST}\b.{{0,30}}\b{_STOP}"
    rf"|\b(?:nobody|no\sone)\s{_MUST}\b|\b(?:one|we)\s{_MUST}\s(?:{_STOP}|take\b)"
    rf"|\b{_MUST}\s.{{0,60}}\b(?:by\s(?:every|any)"
    r"(?:body|one)|today|tonight|tomorrow)\b|^\W{0,3}(?:no\s)?more\sdrug\W{0,3}$"
    r"|\bdrug\W{1,3}(?:\d{1,5}\smg\W{1,3})?(?:now|today|no\smore)\W{0,3}$",
    re.IGNORECASE,
)


def asks_about_a_person(question: str) -> bool:
    """Whether a question is about someone's own case."""
    return bool(_PERSON.search(question))


def states_diagnosis(sentence: str, gazetteer: Gazetteer | None = None) -> bool:
    """Whether a sentence speaks to its reader, says what a person has or must take, tells a diagnosis or orders a drug.

    Abstracts speak of others, and of one person in the past.

    Args:
        gazetteer: whose illnesses and drugs are meant, in whatever context; leukemia's where none is given.
    """
    text = undisguised(sentence).replace("_", " ")
    if _ADDRESS.search(_bare(text)):
        return True
    text = _named_by_kind(text, gazetteer or load_gazetteer())
    of_one = any(match["if"] is None for match in _SINGLE.finditer(text))
    told = (of_one or _TO_ALL.search(text) or _ORDERED.search(text)) and _MEANT.search(text)
    return bool(told or _NAMED.search(text))


def _bare(text: str) -> str:
    """Small Latin letters without accents, those of other scripts that look like them included."""
    small = text.lower()
    if small.isascii():
        return small
    parted = unicodedata.normalize("NFD", small.translate(_LOOK_ALIKE))
    return "".join(each for each in parted if unicodedata.category(each) != "Mn").replace("\u2019", "'")


def _named_by_kind(text: str, gazetteer: Gazetteer) -> str:
    """`text` with "illness" and "drug" in the place of their names."""
    text = re.sub(r"\b(?:[A-Z]\.){2,5}", lambda match: match[0].replace(".", ""), text)  # A.M.L.
    parts, place = [], 0
    for span in annotate(text, gazetteer.unconditional):
        if span.type in ("subtype", "disease", "drug", "regimen"):
            course = re.match(r"acute\s|chronic\s|", span.text, re.IGNORECASE)  # of a disease with no name but that
            kind = f"{course[0] if course and span.type == 'disease' else ''}illness"
            parts += [text[place : span.start], "drug" if span.type in ("drug", "regimen") else kind]
            place = span.end
    return _ILL.sub("illness", "".join([*parts, text[place:]])).replace("\u2019", "'")
