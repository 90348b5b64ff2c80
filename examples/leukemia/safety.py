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
from examples.leukemia.names import DATE, find_names
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
    r"(?:medical\s)?record|hospital|patient|chart|case(?:\snote)?|health\scard|insurance|NHS|social\ssecurity|passport"
    r"|Medicare|Medicaid"
)
_NUMBERED_ENDS = ("record", "hospital", "patient", "chart", "case", "card", "insurance", "nhs", "security")
_NUMBERED_ENDS += ("passport", "medicare", "medicaid")
_NI_NUMBER = r"[A-Z]{2}\s?\d{2}\s?\d{2}\s?\d{2}\s?[A-D]\b"
# each kind's alternatives with the words, as `words_apart` writes them, of which a text must have one
_IDENTIFIERS: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "e-mail address": (((" @ ",), r"(?i:[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{0,190}\w)"),),
    "social security number": (
        ((), r"\b\d{3}-(?<!000-)(?<!666-)(?<!9\d\d-)(?!00)\d{2}-(?!0000)\d{4}\b"),
        (
            (" ssn",),
            (
                r"(?:(?<=\bSSN)|(?<=\bSSN[\s:#=])|(?<=\bSSN[:#=]\s)|(?<=\bSSN\sis\s)|(?<=\bSSN\sis:\s))"
                r"\d{3}[ -]?\d{2}[ -]?\d{4}\b"
            ),
        ),
    ),
    "NHS number": (((), r"\b\d{3}[ -]?\d{3}[ -]?\d{4}\b"),),
    "record number": (
        (
            (" mrn", " passport", *(f"{word} {part}" for word in _NUMBERED_ENDS for part in ("n", "id"))),
            rf"(?i:\b(?:MRN|passport|(?:{_NUMBERED})\s(?:numbers?|no\.?|id|identifier))\s?(?:(?:is|:|\#|=)\s?){{0,2}}(?!\d{{1,3}}-\d{{1,3}}(?![\w-]))(?=[\w-]{{0,40}}\d)[\w-]{{4,40}})",
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
                r"(?<![\w.])\+\d[\d ().-]{7,25}\d|\(\d{3,5}\)\s?\d{3,4}[ -]?\d{3,4}\b|\b\d{3}[.-]\d{3}[.-]\d{4}\b"
                r"|\b0\d{2,4}[ -]\d{3,4}[ -]?\d{3,4}\b"
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
                rf"(?i:\b(?:DOB|D\.O\.B\.?|date\sof\sbirth|birth\s?da(?:te|y)|born(?:\son)?|b\.))\s?(?:is|was"
                rf"|falls|[:=-])?\s?(?:on\s)?{DATE}"
            ),
        ),
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


def find_identifiers(text: str) -> list[Identifier]:
    """What looks like a patient's name, birth date, address, record, NHS or social security number, phone or e-mail."""
    held = words_apart(text)
    found = [
        Identifier(match.start(), match.end(), kind)
        for kind, sieve in _PATTERN.items()
        for match in sieve.pattern(held).finditer(text)
        if kind != "NHS number" or _is_nhs_number(match.group())
    ]
    found += [Identifier(start, end, "name") for start, end in find_names(text, held)]
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
    return re.sub(rf"<(?=/?\s*(?:{'|'.join(tags)})\b)", "&lt;", text, flags=re.IGNORECASE)


_PERSON = re.compile(
    r"\b(?:do|does|did|am|have|has|is|are|should|can|could|will|would)\s(?:I|my|we|he|she|our)\b"
    r"|\bmy\s(?:\w{1,30}\s){0,2}(?:blood|results?|report|diagnosis|symptoms?|counts?|doctor|mother|father|son|daughter|child|wife"
    r"|husband|baby|brother|sister|dose|treatment)\b|\bwhat\s(?:do|does)\s(?:I|my|he|she)\b|\bI\s(?:have|am|feel|take)\b",
    re.IGNORECASE,
)
_SURELY = r"(?:(?:most|likely|indeed|also|do|does|not|don't|doesn't|\w{1,20}ly)\s){0,4}"
_OTHER = (
    r"(?:patient|person|child|boy|girl|man|woman|baby|mother|father|son|daughter|wife|husband|(?:\d{1,3}|\w{3,20})-year-old"
    r"(?:\s(?:boy|girl|man|woman|patient|male|female))?)"
)
_NAMED = r"(?:acute|chronic|leu[ck]|lymph|(?-i:A\.?M\.?L\b|A\.?L\.?L\b|C\.?M\.?L\b|C\.?L\.?L\b|A\.?P\.?L\b|MDS\b))"
_READER = (
    r"(?:\b(?:the|this|each|every|any|our|all|dear)\s(?:readers?|user(?!\sof)|asker|questioner|inquirer)|(?:^"
    r"|[.:;!?,]\s)readers|\b(?:person|one)\s(?:asking|reading))(?:\sof\s(?:this|these|the)(?:\s\w{1,20})?|\s(?:this"
    r"|these|here|who\sasks?))?\s"
)
_ILL = rf"(?:ill|sick|suffering|dying|affected|afflicted|struck|diagnosed|found\sto|cancer|{_NAMED})"
_STATED = re.compile(  # of one who is not called "you": the reader, someone's patient, he or she, what "this" is
    rf"{_READER}{_SURELY}(?:(?:ha(?:s|ve)|got|must\shave|contracted|developed)\s(?:(?!in|of|with|to|on|about"
    rf"|for)\w{{1,20}}\s){{0,4}}?(?:{_NAMED}|cancer|malign|relaps)|suffers?\b|must\sbe\s(?:an?\s)?{_ILL}|(?:is|are|was"
    rf"|were)\s(?:\w{{1,20}}ly\s)?(?:an?\s)?{_ILL})|\breader's\s(?:diagnosis|disease|illness|blood|marrow|{_NAMED})"
    r"|\b(?:anyone|anybody|everyone|everybody|whoever|who|that)\s(?:(?:who|that)\s)?(?:reads?"
    r"|(?:is\s)?reading)\s(?:this|these|it)\b"
    rf"|(?:\b(?:(?:the|this)\s{_OTHER}|he|she)\s|^(?:yes,?\s)?patient\s){_SURELY}(?:have|has|got|must\s(?:have"
    rf"|be\ssuffering)|suffers?|(?:is|are)\ssuffering)\b"
    r"|\breading\s(?:this|these|it|here)\s(?:\w{1,20}\s){0,2}(?:ha(?:s|ve)|suffers?|is|are|must)\b"
    rf"|\bM(?:rs?|s)\b\.?\s\w{{1,20}}\s(?:has|(?:is|must\sbe)\ssuffering\sfrom)\s(?:an?\s)?{_NAMED}"
    r"|\b(?:he|she)'s\s(?:got|suffering|diagnosed)\b|\bI\sdiagnose\b|\b(?:the|this|my|(?:patient|child|his|her)(?:'s)?)\sdiagnosis(?:\s(?:is|must\sbe"
    r"|would\sbe)\b|\s?:)|^\W{0,3}diagnosis\s?:"
    rf"|\bs?he\sis\san?\s(?:\w{{1,30}}\s)?(?:leuk\w{{1,30}}|cancer|{_NAMED})\spatient\b|^yes,?\s{_NAMED}"
    rf"|\bth(?:e|ese|ose)\s(?:\w{{1,30}}\s)?(?:results|values|counts|findings|blasts|tests?)\s(?:means?|proves?)\s(?:an?\s)?{_NAMED}"
    r"|(?:\b(?:this|it)|^that|\bthese\s(?:findings|results"
    r"|values|counts))(?:'s|\s(?:is|are|must\sbe|can\sonly\sbe|confirms?|means?|proves?))\s"
    rf"(?:clearly\s|certainly\s)?(?:an?\s)?(?:case\sof\s)?{_NAMED}",
    re.IGNORECASE,
)
_YOU = re.compile(r"\b(?:you|yours?|yourself|ye|thou|dear\sreaders?)\b", re.IGNORECASE)
_TREATED = r"take(?!\spart)|stop|start|begin|skip|increase|reduce|double|use|try|switch|refuse|discontinue|go\son"
_OF_NO_READER = re.compile(  # under a condition, of what may be, of a doctor, of what something depends on
    r"\b(?:if|whether|when|once|unless|until)\s(?:or\snot\s|\w{1,20}\s(?:show|suggest|find|say|suspect"
    r"|think)s?\s(?:that\s)?)?your?\b(?!\s(?:\w{2,4}\s)?read).{0,200}?(?=[,;:]|\b(?:then|yours?|you)\b|$)|\bdepend(?:s"
    r"|ing)?\son\b[^.;:]{0,300}|(?:\bno|n'?)t\smean\s(?:that\s)?you\b[^.,;:]{0,200}|\b(?:type|kind|stage"
    r"|form)\sof\s\w{1,30}\syou\shave\b"
    rf"|\byou\s(?:(?:may|might|could|can)\s(?!(?:now\s|safely\s)?(?:{_TREATED})\b)|(?:should\s|must\s"
    rf"|need\sto\s)?(?:talk|speak|ask|consult|see|contact|tell)\b)"
    r"|\byour\s(?:\w{1,20}'?s\s)?(?:doctor|physician|nurse|(?:hemat|onc)ologist)s?\b(?!\s(?:should|must))"
    r"|\byour\s(?:chances?|risk)\b|\bthank\syou\b",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"^(?:what|how|when|why|which|where|do|would|should|can|could)\b(?:(?!\bthat\b)[^?]){1,300}\?$", re.IGNORECASE
)
_MEDICINE = re.compile(
    r"\b(?:\w{0,12}(?:therap(?:y|ies)|transplant\w{0,30})|chemo\w{0,30}|radiation|treatments?|medic(?:ines?|ations?)"
    r"|pills?|tablets?|drugs?|doses?|dosage|\w{1,30}(?:nib|mab|clax|bine|cin|tinoin|parin)|treat(?:ed|s|ing)?)\b(?!-)",
    re.IGNORECASE,
)
_DO = (
    r"(?:take(?!\s(?:part|into|note|care|account)\b)|stop|start|begin|discontinue|continue|quit|cease|halt|suspend"
    r"|interrupt|resume|restart|use|try|swallow"
    r"|drink|inject|avoid|refuse|decline|reject|skip|omit|undergo|accept|demand|request|choose|prefer|give|administer"
    r"|abandon|forget|get|receive|leave|keep|insist\son|ask\sfor|say\s(?:no|yes)\sto|(?:go|come|stay|remain"
    r"|keep)\s(?:on|off)|hold\soff|wait\s(?:with|before\sstarting)|treat\syourself|throw\saway|(?:increase|raise"
    r"|double|triple|reduce|lower|halve|cut|change|replace|delay|drop)(?=\s(?:the|your|this|that)\b"
    r"|\s[\w-]{3,30}\s(?:to|by|with)\s)|switch(?=\s(?:to|from)\s(?:[^.;:]{1,60}\s(?:now|today|at\sonce|immediately"
    r"|instead|as\ssoon)\b|[\w-]{3,30}[.!]$)))"
)
_ORDERED = re.compile(  # to the start of what is to be taken or stopped; "use of" and "stop codons" order nothing
    r"(?:^|[.:;!?]\s|\b(?:so|please|yes),?\s|^(?:if|when|once|after|before|until|immediately|for)\b[^,;.:]{1,80},\s"
    r"|^(?:do\snot|don't|never),\s[^,;.:]{1,60},\s)\W{0,3}(?:(?:please|kindly|now|so|therefore|instead|just|simply"
    r"|better|best|always|never|ever|do|not|don't"
    rf"|\w{{2,20}}ly),?\s){{0,3}}{_DO}\s(?:(?:taking|using|with|to|from|on|off|the|your|all|any|this|that|these|an?|no"
    rf"|more|every|further|daily|weekly"
    r"|low|high|full|one|two|three|four|five|half|some|(?:\w{1,8}\s)?(?:dose|tablet|pill|capsule|course|cycle"
    r"|milligram|gram|mg|g)s?\sof|\d[\w.,/%-]{0,12}|\w{1,12}-dose|mg)\s){0,6}(?=\w)",
    re.IGNORECASE,
)
_NO_ORDER = re.compile(  # behind the verb: the Stop Imatinib trial, or a question
    r"[\w-]{2,40}\s(?:\(\w{2,12}\)\s)?(?:trials?|stud(?:y|ies)|arms?|groups?)\b|[^.!?]{0,300}\?", re.IGNORECASE
)
_ADVISED = re.compile(
    r"\b(?:should|must|can)\sbe\s.{0,60}\bby\s(?:you|(?:the|each|every|any)\s(?:reader|user))\b"
    rf"|{_READER}(?:should|must|(?:need|have|has)s?\sto|ought\sto"
    rf"|had\sbetter)\s(?:not\s)?(?:\w{{1,30}}ly\s)?(?:be\s(?:treated|given)|{_DO})\b"
    r"|\bI\s(?:would\s|strongly\s)?(?:recommend|advise|prescribe|suggest\syou)\b|\bwe\s(?:recommend|advise"
    r"|suggest)\s(?:that\s)?you\b|\bmy\sadvice\b|(?P<fate>\byour\sprognosis\sis\b|\byou(?:'re|\sare)?\s(?:will|going\sto)\sdie\b"
    r"|\byou\shave\s\w{1,30}\s(?:days|weeks|months|years)\sto\slive\b)",
    re.IGNORECASE,
)
_DISEASE = re.compile(
    r"leu[ck]a?em|leuka|lymphom|myelo|cancer|tumou?r|malignan|neoplas|relapse|\bblasts?\b|\b(?:AML|(?-i:ALL)|CML|CLL"
    r"|APL|MDS|A\.M\.L|A\.L\.L|C\.M\.L|C\.L\.L)\b",
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
    """Whether a sentence says of a person, as a fact, what they have or must take.

    Abstracts speak of others: one that says "you" of an illness or a treatment, or orders one, speaks to its reader.
    """
    # a condition behind the statement takes nothing back: "you have leukemia and can be treated"
    stated = _DISEASE.search(sentence) and any(_stated(clause) for clause in _CLAUSES.split(sentence))
    advised = _ADVISED.search(sentence)
    told = advised or (_YOU.search(_OF_NO_READER.sub(" ", sentence)) and not _ASKED.search(sentence))
    return bool(stated or (advised and advised["fate"]) or (told and _of_medicine(sentence)) or _orders(sentence))


def _stated(clause: str) -> bool:
    statement, condition = _STATED.search(clause), _CONDITION.search(clause)
    return statement is not None and (condition is None or statement.start() <= condition.start())


def _of_medicine(sentence: str) -> bool:
    """Whether a sentence names an illness or a treatment."""
    known = any(span.type in ("subtype", "disease", "drug") for span in annotate(sentence))
    return known or bool(_DISEASE.search(sentence) or _MEDICINE.search(sentence))


def _orders(sentence: str) -> bool:
    """Whether a sentence, or a part of it, begins with a verb that has a drug or a treatment as its object."""
    ends = [match.end() for match in _ORDERED.finditer(sentence) if not _NO_ORDER.match(sentence, match.end())]
    drugs = {span.start for span in annotate(sentence) if span.type == "drug"} if ends else set()
    return any((end in drugs or _MEDICINE.match(sentence, end)) for end in ends)
