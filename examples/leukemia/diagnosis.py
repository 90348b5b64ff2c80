"""No diagnosis of a person: questions that ask for one, and sentences that state one or order a drug.

These are patterns, not understanding. They catch the common forms and are tested on real questions and titles, of which
none may be caught.
"""

from __future__ import annotations

import re
import unicodedata

from examples.leukemia.annotate import annotate
from examples.leukemia.gazetteer import Gazetteer, load_gazetteer
from examples.leukemia.identifiers import undisguised
from examples.leukemia.names import DRUG_ENDINGS

__all__ = ["asks_about_a_person", "states_diagnosis"]

_ONE = r"(?:I|my|we|he|she|our|(?:this|the|our)\s(?:patient|man|woman|child|boy|girl)|(?:my\s)?(?:dad|mum|mom|father|mother|son|daughter))"
_PERSON = re.compile(
    rf"\b(?:do|does|did|am|have|has|is|are|was|were|should|can|could|will|would)\s{_ONE}\b(?!-\w)(?!\s(?:staining|stain|sections?|FISH))"
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
    r"(?<!dr\.\s)\b(?:y\W?[o0]\W?u(?:r\w{0,8}|ve|ll|d|s|se)?|ye(?!\sxue\b))\b(?!\s(?:et\sal|and\sco))"
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
