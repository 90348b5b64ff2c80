"""An article's words are data, never an order: what speaks to a model is found, and left out of what is trained on.

These are patterns, not understanding. They catch the common forms and are tested on real questions and titles, of which
none may be caught.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from examples.leukemia.data import Record
from examples.leukemia.reading import split_sentences

__all__ = ["as_data", "reads_like_instruction", "without_instructions", "without_instructions_in"]

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


def without_instructions(text: str) -> tuple[str, int]:
    """`text` without the sentences that speak to a model, and how many these were."""
    sentences = split_sentences(text)
    kept = [sentence for sentence in sentences if not reads_like_instruction(sentence)]
    return " ".join(kept) if len(kept) < len(sentences) else text, len(sentences) - len(kept)


def without_instructions_in(records: Sequence[Record]) -> tuple[list[Record], dict[str, int]]:
    """The articles without such sentences, less those of which no abstract is left; and how many there were."""
    kept, silenced, emptied = [], 0, 0
    for record in tqdm(records, desc="looking for instructions", unit=" article", delay=1):
        title, of_title = without_instructions(record.title)
        parts = [(label, without_instructions(text)) for label, text in record.sections or (("", record.abstract),)]
        lost = of_title + sum(number for _, (_, number) in parts)
        sections = tuple((label, text) for label, (text, _) in parts if text)
        silenced += lost
        emptied += not sections
        if lost:  # the abstract of a labelled article is made of its sections
            abstract = " ".join(f"{label}: {text}" if label else text for label, text in sections)
            record = replace(record, title=title, abstract=abstract, sections=sections if record.sections else ())
        if sections:
            kept.append(record)
    return kept, {"sentences that speak to a model, left out": silenced, "articles with no other sentence": emptied}
