"""What keeps answers harmless: no patient data in, no instructions from texts, no diagnosis of a person out.

These are patterns, not understanding. They catch the common forms and are tested on real questions and titles, of which
none may be caught.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "Identifier",
    "as_data",
    "asks_about_a_person",
    "find_identifiers",
    "mask_identifiers",
    "reads_like_instruction",
    "states_diagnosis",
]

# every repeat has a limit, so that the time grows with the length of a text and not with its square
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_DATE = (
    rf"(?:\d{{1,2}}[/.-]\d{{1,2}}[/.-](?:\d{{4}}|\d{{2}})|\d{{4}}[/.-]\d{{1,2}}[/.-]\d{{1,2}}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s(?:of\s)?{_MONTH},?\s\d{{4}}|{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?,?\s\d{{4}})"
)
_NUMBERED = (
    r"(?:medical\s)?record|hospital|patient|chart|case(?:\snote)?|health\scard|insurance|NHS|social\ssecurity|passport"
    r"|Medicare|Medicaid"
)
_NI_NUMBER = r"[A-Z]{2}\s?\d{2}\s?\d{2}\s?\d{2}\s?[A-D]\b"
_IDENTIFIERS = {
    "e-mail address": r"(?i:[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{0,190}\w)",
    "social security number": r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b"
    r"|(?:(?<=\bSSN)|(?<=\bSSN[\s:#=])|(?<=\bSSN[:#=]\s)|(?<=\bSSN\sis\s)|(?<=\bSSN\sis:\s))\d{3}[ -]?\d{2}[ -]?\d{4}\b",
    "NHS number": r"\b\d{3}[ -]?\d{3}[ -]?\d{4}\b",
    "record number": rf"(?i:\b(?:MRN|passport|(?:{_NUMBERED})\s(?:numbers?|no\.?|id|identifier))\s?(?:is|:|\#|=)?\s?(?=[\w-]{{0,40}}\d)[\w-]{{4,40}})"
    r"|(?i:\b(?:medical\s)?record)\s?[:#]?\s?\d{6,10}\b"
    rf"|\b(?i:national\sinsurance(?:\s(?:number|no\.?))?)\s?(?:is|:)?\s?{_NI_NUMBER}|\b[A-Z]{{2}}\s\d\d\s\d\d\s\d\d\s[A-D]\b",
    "telephone number": r"(?:(?<![\w.])\+\d[\d ().-]{7,25}\d|\(\d{3,5}\)\s?\d{3,4}[ -]?\d{3,4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b"
    r"|\b0\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}\b|(?i:\b(?:phone|tel|telephone|mobile|call)(?:\s(?:me|us|him|her|them))?"
    r"(?:\s(?:number|no|at|on|is|was)){0,2}\b[\s.:]{0,3})\+?\d[\d ().-]{5,25}\d)",
    "date of birth": rf"(?i:\b(?:DOB|D\.O\.B\.?|date\sof\sbirth|birth\s?date|born(?:\son)?))\s?(?:is|was|[:=-])?\s?{_DATE}",
    "address": r"\b\d{1,4}[A-Z]?\s(?:[A-Z][a-z]{1,20}\s){1,3}(?:Street|Road|Avenue|Lane|Drive|Court|Crescent)\b",
}
_CAPITAL = r"(?:O'|D'|Ma?c)?[A-ZÀ-Þ][a-zà-ÿ]{1,20}(?:[-'][A-ZÀ-Þ]?[a-zà-ÿ]{1,20})?"
_OPENING = r"(?!(?:A|An|And|Are|Can|Could|Did|Do|Does|Dr|Had|Has|If|In|Is|Our|Should|The|This|Was|When|Will|Would)\b)"
_NAME = rf"{_OPENING}{_CAPITAL}(?:\s[A-Z]\.)?(?:\s{_CAPITAL}){{1,3}}"
_WORD = (  # of a name that may be in small letters; what goes on with the sentence is none
    r"(?!(?i:a|after|again|aged?|an|and|are|as|at|back|because|before|being|born|by|can|did|dob|does|feels|for|from|gets?|got|ha[ds]|"
    r"have|he|her|his|in|into|is|it|may|must|my|needs?|not|of|off|on|or|out|per|received|relapsed|said|says|she|should|since|"
    r"suffers|takes?|that|the|they|this|to|took|up|upon|was|we|were|which|who|whom|whose|will|with|would|you)\b)[A-Za-zÀ-ÿ'-]{2,25}"
)
_ANY_CASE = rf"(?:[A-Za-z]\.\s?){{0,2}}{_WORD}(?:,?\s{_WORD}){{0,2}}"
_SCAN = r"(?!(?i:imag|spect|angio|scan|data|anal))"
_SOMEONE = "patient|pt|man|woman|boy|girl|child|baby|mother|father|son|daughter|wife|husband|brother|sister|friend|person|client"
_TITLED = (
    (
        rf"\b(?:[Mm]rs?|[Mm]me|[Mm]ister|[Hh]err|[Ff]rau|(?<!\d)(?<!\d\s)[Mm]s)\b\.?\s{_SCAN}(?:[A-Z]\.\s?){{0,2}}"
        rf"(?:{_CAPITAL}(?:\s{_CAPITAL}){{0,3}}|{_WORD}(?:\s{_WORD})?)"
    ),
    rf"\bMRS?\b\.?\s{_SCAN}(?=[A-Z]{{4}}){_WORD}(?:\s(?=[A-Z]{{2}}){_WORD})?",  # but MR CML: molecular response
    rf"\b(?:Miss|Master(?!\s(?:Protocol|Regulator|Clinical|Trial|Switch)))\s{_CAPITAL}(?:\s{_CAPITAL})?",
    rf"\b[Mm]y\sname(?:\sis|'s)\s{_ANY_CASE}|\b(?i:(?:patient|pt)(?:'s)?\sname)(?:\sis)?\s?[:=]?\s?{_ANY_CASE}",
    rf"(?:^|(?<=[,;.(]\s)|(?<=\n)|\b(?i:full|first|last|family|given|sur)\s?)(?i:name)\s?[:=]\s?{_ANY_CASE}",
    rf"\b(?i:{_SOMEONE})\s(?:(?:is|was)\s)?(?:named|called)\s{_ANY_CASE}",
    rf"^(?i:patient)\s?[:=]\s?{_WORD}\s{_WORD}(?=[,.;]|$)",
    rf"\b[A-Z]{{2,20}},?\s[A-Z]{{2,20}}(?=,?\s\(?(?:born|DOB|{_DATE}))|\b{_CAPITAL},\s{_CAPITAL}(?=,?\s\(?(?:born|DOB|{_DATE}))",
)
_UNTITLED = (  # capitals alone: a disease or a hospital has them, too
    rf"\b(?:[Pp]atient|[Pp]t)\b\.?\s?[:=]\s?{_NAME}|\b(?:[Pp]t\b\.?|[Ii]\sam|[Ii]'m|called|named)\s{_NAME}",
    rf"(?<=\bpatient\s){_NAME}(?=,|\s\(|\sis\b|\shas\b|\swas\b|$)|\b(?:my|the|our|your|his|her)\s(?:{_SOMEONE}),?\s{_NAME}",
    rf"\b{_NAME}(?=,?\s\(?(?:born|DOB|{_DATE}))",
    rf"\b{_NAME}(?=,?\s(?:\(?aged?\s|an?\s)?\d{{1,3}}(?:,\s(?:is|has|was|had|with|who|male|female)\b|\syears?\sold|-year-old|\s?y/?o\b|$))",
    rf"\b{_NAME}(?=\s(?:has|had|was|is)\s(?:been\s|just\s|recently\s){{0,2}}(?:diagnosed|admitted|suffering|relapsed)\b)",
    rf"\b{_NAME}(?=(?:\s(?:has|have|had|got)\s(?:an?\s)?|'s\s)(?:acute|chronic|leuk|lymphom|[ACM][A-Z]{{2,3}}\b))",
    rf"(?<=\bShould\s){_NAME}(?=\s(?:take|start|stop|get|receive|undergo|continue|switch)\b)",
    rf"(?<=\b[Pp]atient\sis\s){_NAME}|(?:(?<=\bright\sfor\s)|(?<=\bgood\sfor\s)|(?<=\bsafe\sfor\s)){_NAME}(?=[?.,;]|$|\s(?:with|who)\b)",
    rf"\b{_NAME}(?=\s\(\d{{1,3}}\),?\s(?:has|had|with)\s(?:an?\s)?(?:acute|chronic|leuk|lymphom|[ACM][A-Z]{{2,3}}\b))",
    rf"\b{_NAME}(?='s\s(?:(?:blood|lab|test)\s(?:counts?|tests?|results?|values?|work)|diagnosis|symptoms|platelets|biopsy)\b)",
)
_NO_PERSON = re.compile(
    r"\b(?:leuk|lymph|myel|chromosom|syndrom|disease|cells?\b|an(?:a?e)mia|protein|gene|therap|cancer|tumou?r|sarcoma|transplant|"
    r"marrow|blood|hospital|universit|institut|cent(?:er|re)|clinic|group|study|trial|society|network|foundation|college|states|"
    r"mesylate|acute|chronic|complete|phase|adults?\b|children|elderly|older\b|pregnan|women\b|people"
    r"|maintenance|induction|consolidation|prevent|treat|positive|negative|refractory|relapse"
    r"|americans?\b|africans?\b|asians?\b|europeans?\b|hispanics?\b|natives?\b|whites?\b|blacks?\b|new\syork|new\szealand|puerto|hong\skong"
    r"|san\sdiego|san\sfrancisco|los\sangeles|south\s|north\s|east\s|west\s|britain|united\s|transformation|kinase|receptor|factor\b|score\b"
    r"|random\s|regression|network|hybridization|cytometry|\bscan\b|ozogamicin|sleeping\sbeauty|fraumeni|bristol|patients\b)",
    re.IGNORECASE,
)
_PATTERN = {kind: re.compile(pattern) for kind, pattern in _IDENTIFIERS.items()}
_TITLED_NAME, _UNTITLED_NAME = (re.compile("|".join(patterns)) for patterns in (_TITLED, _UNTITLED))


@dataclass(frozen=True)
class Identifier:
    """A stretch of text that may tell who a patient is."""

    start: int
    end: int
    kind: str


def find_identifiers(text: str) -> list[Identifier]:
    """What looks like a patient's name, birth date, address, record, NHS or social security number, phone or e-mail."""
    found = [
        Identifier(match.start(), match.end(), kind)
        for kind, pattern in _PATTERN.items()
        for match in pattern.finditer(text)
        if kind != "NHS number" or _is_nhs_number(match.group())
    ]
    names = [*_TITLED_NAME.finditer(text), *(m for m in _UNTITLED_NAME.finditer(text) if not _NO_PERSON.search(m[0]))]
    found += [Identifier(match.start(), match.end(), "name") for match in names]
    kept: list[Identifier] = []
    for each in sorted(found, key=lambda one: (one.start, -one.end)):
        if not kept or each.start >= kept[-1].end:
            kept.append(each)
    return kept


def mask_identifiers(text: str) -> str:
    """`text` with every identifier replaced by its kind in brackets."""
    parts, place = [], 0
    for each in find_identifiers(text):
        parts += [text[place : each.start], f"[{each.kind}]"]
        place = each.end
    return "".join([*parts, text[place:]])


def _is_nhs_number(text: str) -> bool:
    """The modulus 11 check of the NHS Data Dictionary: weights 10 to 2, and 11 less the remainder is the last digit."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    check = 11 - sum(digit * weight for digit, weight in zip(digits, range(10, 1, -1))) % 11
    return check % 11 == digits[9] and check != 10 and len(set(digits)) > 1


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
    rf"\byou\s(?:must|should|will|shall)\s(?:now\s)?{_SPEAK}\b|\bthat\syou\s{_SPEAK}\b|\b{_MACHINE}\s(?:must|should|shall)\s{_SPEAK}\b",
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
    r"\b(?:[a-z]\s){5,40}[a-z]\b|[a-z][\u0400-\u04ff]|[\u0400-\u04ff][a-z]",  # spelt apart, or with letters of two scripts
)
_INSTRUCTION = re.compile("|".join(_INSTRUCTIONS), re.IGNORECASE)


def reads_like_instruction(sentence: str) -> bool:
    """Whether a sentence of a source speaks to a model instead of its readers."""
    return bool(_INSTRUCTION.search(sentence))


def as_data(text: str, tags: Sequence[str]) -> str:
    """`text` in which nothing can close or open one of the prompt's own tags."""
    return re.sub(rf"<(?=/?\s*(?:{'|'.join(tags)})\b)", "&lt;", text, flags=re.IGNORECASE)


_PERSON = re.compile(
    r"\b(?:do|does|did|am|have|has|is|are|should|can|could|will|would)\s(?:I|my|we|he|she|our)\b"
    r"|\bmy\s(?:\w{1,30}\s){0,2}(?:blood|results?|report|diagnosis|symptoms?|counts?|doctor|mother|father|son|daughter|child|wife"
    r"|husband|baby|brother|sister|dose|treatment)\b|\bwhat\s(?:do|does)\s(?:I|my|he|she)\b|\bI\s(?:have|am|feel|take)\b",
    re.IGNORECASE,
)
_SURELY = r"(?:(?:(?:most\s)?likely|probably|clearly|certainly|definitely|surely|obviously|indeed|also|do|does|not|don't|doesn't)\s){0,4}"
_OTHER = r"(?:patient|person|child|mother|father|son|daughter|wife|husband)"
_NAMED = r"(?:acute|chronic|leuk|lymph|(?-i:A\.?M\.?L\b|A\.?L\.?L\b|C\.?M\.?L\b|C\.?L\.?L\b|A\.?P\.?L\b|MDS\b))"
_STATED = re.compile(
    rf"(?:\byou,?\s(?:the\spatient,?\s)?|\b(?:(?:your|the|this)\s{_OTHER}(?:\syou\sdescribe)?|he|she)\s|^(?:yes,?\s)?patient\s)"
    rf"{_SURELY}(?:have|has|got|must\s(?:have|be\ssuffering)|suffers?|(?:is|are)\ssuffering)\b"
    r"|\b(?:the|this|each|every|any|our)\s(?:reader|user)s?\s(?:\w{1,30}ly\s)?(?:has|have|suffers?|(?:is|are)\s(?:ill|sick|suffering))\b"
    r"|\b(?:anyone|anybody|everyone|everybody|whoever|who)\s(?:(?:who|that)\s)?(?:reads?|(?:is\s)?reading)\s(?:this|these|it)\b"
    r"|\byou(?:'re|\sare)\s(?:\w{1,30}ly\s)?(?:leuka?emic|ill\b|sick\b|a\ssick)|\byou've\b|\byou\sdeveloped\b|\b(?:he|she)'s\s(?:got|suffering|diagnosed)\b|\bI\sdiagnose\b|\bwhat\syou\s(?:have|describe)\sis\b"
    r"|\b(?:the|your|this|my)\sdiagnosis(?:\s(?:is|must\sbe|would\sbe)\b|\s?:)|^\W{0,3}diagnosis\s?:"
    r"|\byou(?:'re|\sare|\swere)\s(?:diagnosed|suffering|found\sto|free\sof|cured|positive|negative|(?:very\s|most\s)?likely\sto\shave)\b"
    rf"|\b(?:you\sare|s?he\sis)\san?\s(?:\w{{1,30}}\s)?(?:leuk\w{{1,30}}|cancer|{_NAMED})\spatient\b|\bsigns?\sof\syour\b|\bin\syou\b"
    rf"|\byour\s(?:cancer|disease|\w{{0,30}}\s?{_NAMED}\w{{0,30}})\s(?:has|is|was)\b|^yes,?\s{_NAMED}"
    r"|\byour\s(?:\w{1,30}\s){1,2}(?:shows?|indicates?|suggests?|points?\sto|(?:is|are)\s(?:caused|due|consistent|typical))\b"
    r"|\bthese\s(?:\w{1,30}\s)?(?:results|values|counts)\smean\b"
    r"|(?:\b(?:this|it)|^that|\bthese\s(?:findings|results|values|counts)|\byour\s(?:\w{1,30}\s)?\w{1,30})"
    r"(?:'s|\s(?:is|are|must\sbe|can\sonly\sbe|confirms?|means?|proves?))\s"
    rf"(?:clearly\s|certainly\s)?(?:an?\s)?(?:case\sof\s)?{_NAMED}",
    re.IGNORECASE,
)
_MEDICINE = r"(?:chemo\w{0,30}|radiation|(?:stem\scell\s|marrow\s)?transplant\w{0,30}|\w{1,30}(?:nib|mab|clax|bine|cin|tinoin|parin)\b)"
_ADVISED = re.compile(
    r"\byou\s(?:should|must|need\sto|have\sto|ought\sto|had\sbetter)\s(?:not\s)?(?:\w{1,30}ly\s)?"
    r"(?:take(?!\spart)|start|begin|stop|increase|reduce|receive|switch|undergo|continue)\b"
    r"|\byou\s(?:should|must|need\sto|have\sto|ought\sto)\s(?:not\s)?(?:be|get)\s(?:treated|given|started|switched|put)\b"
    r"|\b(?:should|must|can)\sbe\s.{0,60}\bby\s(?:you|(?:the|each|every|any)\s(?:reader|user))\b"
    r"|\byou\s(?:can|may|could)\s(?:now\s)?(?:stop|start|skip|increase|reduce|double)\b"
    rf"|\byou\s(?:need|require)\s(?:an?\s|more\s)?{_MEDICINE}|\byour\s(?:doctor\s(?:should|must)|dose\s(?:should|must|is))\b"
    r"|\bI\s(?:would\s|strongly\s)?(?:recommend|advise|prescribe|suggest\syou)\b|\bwe\s(?:recommend|advise|suggest)\s(?:that\s)?you\b"
    rf"|(?:^|\b(?:please|yes,|so|then)\s)(?:take|stop|start|begin|increase|reduce|double|skip)\s"
    rf"(?:taking\b|your\b|{_MEDICINE}|(?:the\s)?(?:daily\s)?(?:doses?|dosage)\sof\s{_MEDICINE})"
    r"|\bmy\sadvice\b|\byou(?:'re|\sare)?\s(?:will|going\sto)\sdie\b|\byou\shave\s\w{1,30}\s(?:days|weeks|months|years)\sto\slive\b",
    re.IGNORECASE,
)
_DISEASE = re.compile(
    r"leuk|lymphom|myelo|cancer|tumou?r|malignan|relapse|\b(?:AML|ALL|CML|CLL|APL|MDS|A\.M\.L|A\.L\.L|C\.M\.L|C\.L\.L)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\b(?:if(?!\s(?:I|we)\b)|whether|when|may|might|could|can|who|(?:type|kind|stage)\sof\s\w{1,30})\b", re.IGNORECASE
)
_CLAUSES = re.compile(r"[;!?]\s|\.\s(?=[A-Z])|\b(?:but|in\sfact)\s")


def asks_about_a_person(question: str) -> bool:
    """Whether a question is about someone's own case."""
    return bool(_PERSON.search(question))


def states_diagnosis(sentence: str) -> bool:
    """Whether a sentence says of a person, as a fact, what they have or must take."""
    # a condition behind the statement takes nothing back: "you have leukemia and can be treated"
    stated = any(_stated(clause) for clause in _CLAUSES.split(sentence))
    return bool((stated and _DISEASE.search(sentence)) or _ADVISED.search(sentence))


def _stated(clause: str) -> bool:
    statement, condition = _STATED.search(clause), _CONDITION.search(clause)
    return statement is not None and (condition is None or statement.start() < condition.start())
