"""Whether a plain phrase can stand where a technical term stood, told by the words around it and by its own.

No grammar is parsed: what these rules cannot read as grammatical does not fit, and the term stays.
"""

from __future__ import annotations

import re

__all__ = ["GRAMMAR", "fits", "reads_well"]

GRAMMAR = (  # what follows a noun and is none: any other word may make an adjective of what stands before it
    "a|about|after|against|also|among|an|and|are|as|at|be|been|before|being|between|but|by|can|could|did|do|does|during|for|from"
    "|had|has|have|if|in|into|is|may|might|must|nor|not|of|on|or|over|per|should|since|than|that|the|then|through|to|under"
    "|until|versus|via|vs|was|were|when|where|which|while|who|whose|will|with|within|without|would"
)
_LINKS = (  # before which a noun may end: other small words, and verbs
    r"although|because|both|compared|depend(?:s|ed)?|despite|develop(?:s|ed)|due|following|including|it|occur(?:s|red|ring)?|often"
    r"|only|remain(?:s|ed)?|require[sd]?|so|such|there|these|they|this|those|treated|using|we|whereas|yet"
)
_ENDS = re.compile(rf"\s?(?:[,.;:)\]?!]|$)|\s[(\[]|\s(?:{GRAMMAR}|{_LINKS})\b(?!-)", re.IGNORECASE)
_OPENS = re.compile(r"(?:an?|the|no|too|that|how|time)\b")
_IS_CLAUSE = re.compile(r"how\b|time until\b")
_ENDS_CLAUSE = re.compile(r"\s?(?:[.,;:)\]]|$)|\s[(\[]|\s(?:and|or|in|with|was|were|for)\b")
_GOES_ON = (
    "of",
    "in",
    "with",
    "to",
    "as",
    "have",
    "got",
)  # last words of a phrase that goes on with what followed the term
_POSTMODIFIED = re.compile(
    r"\b(?:after|around|at|but|by|called|for|from|in|into|of|on|that|under|who|with|without)\b|\)$"
)
_PREPOSITIONAL = re.compile(r"(?:in|into|from|under)\b")
_DETERMINER = re.compile(r"\b(?:an?|the|this|that|these|those|no|any|some|each|every|all|both)\s$", re.IGNORECASE)
_SINGULAR = re.compile(r"\b(?:an?|another|each|every|little|less|much|one|single|this)\s(?:[\w-]+\s)?$", re.IGNORECASE)
# where a noun phrase may begin: behind a small word, a mark or a verb that takes it as its object
_VERB = (
    r"(?:accelerat|achiev|affect|allow|assess|attain|avoid|block|caus|compar|decreas|defin|describ|develop|diagnos|driv|enhanc"
    r"|evaluat|examin|experienc|fac|impair|improv|includ|increas|induc|inhibit|investigat|mediat|permit|predict|prevent|produc"
    r"|promot|reach|reduc|regulat|report|requir|show|stimulat|studi|support|suppress|trigger|undergo)(?:e|es|ed|ing|s)?"
)
_SMALL = (
    r"about|after|against|among|and|are|as|at|before|between|but|by|during|for|from|had|has|have|having|in|into|is|nor|of|on|or"
    r"|over|per|since|than|that|through|to|towards?|until|upon|versus|via|vs|was|were|when|where|which|while|with|within|without"
    r"|became|become|despite|due|following|including|often|showed|shows|underwent"
)
_FREE = re.compile(rf"(?:^|[,;:(\[\"]\s?|[.?!]\s|\b(?:{_SMALL}|{_VERB})\s)$", re.IGNORECASE)
_ADJECTIVE = re.compile(
    r"\b(?:\w+(?:ed|ing|al|ic|ive|ous|ful|ent|ant|ary|ory|ble|ly|less|er|est|id|ar)|any|early|few|first|high|late|less|low|many"
    r"|more|most|new|other|second|several|some|such)\s$|\bt\(\d[^)]*\)\s$",  # the t(15;17) translocation
    re.IGNORECASE,
)
_IS_SINGULAR = re.compile(r"\b(?:(is|was|has|does)|are|were|have|do)\b")
_SHORT_FORM = re.compile(r"^\s\([A-Za-z][\w -]{0,12}\)")  # acute lymphoblastic leukemia (ALL) cells


def fits(plain: str, term: str, before: str, behind: str) -> bool:
    """Whether `plain` reads as well as `term` between what stands before and behind it in a sentence.

    A phrase that opens as a noun phrase does ("the first round") needs a place where one may begin; one that is modified
    from behind ("death of cells") makes no adjective of itself, nor has it a noun before it; a plural needs a plural's verb.
    """
    behind = _SHORT_FORM.sub("", behind)
    if re.search(r"[/+-]$|\w\($", before) or re.match(r"[/+-]", behind):
        return False
    article = re.search(r"\b(an?)\s$", before, re.IGNORECASE)
    if article and (article[1].lower() == "an") != (plain[0].lower() in "aeiou"):
        return False
    if plain.endswith((" of", " who have")) and not re.match(r"\s[A-Za-z(]", behind):  # incidence of 5%
        return False
    if plain.endswith(",") and not re.match(r"\s[\w(]", behind):
        return False
    whole = _OPENS.match(plain)
    if whole and not (_FREE.search(before) and _closes(plain, behind)):
        return False
    if _POSTMODIFIED.search(plain) and not (_closes(plain, behind) and (whole or _stands_behind(plain, before))):
        return False
    return not _is_plural(plain) or _is_plural(term) or (_closes(plain, behind) and _takes_plural(before, behind))


def _closes(plain: str, behind: str) -> bool:
    """Whether no noun follows, nor an "of" that would hang on the last word of `plain`."""
    if plain.endswith(",") or plain.split(" ")[-1] in _GOES_ON:
        return True
    if _IS_CLAUSE.match(plain) and not _ENDS_CLAUSE.match(behind):
        return False
    return bool(_ENDS.match(behind)) and not re.match(r"\sof\b", behind)


def _stands_behind(plain: str, before: str) -> bool:
    """Whether what stands before goes with a phrase that is modified from behind: no noun ("cell" death of cells)."""
    if _PREPOSITIONAL.match(plain):
        return not (_DETERMINER.search(before) or re.search(r"\b(?:and|or|of|for|by|with)\s$", before))
    return bool(_FREE.search(before) or _DETERMINER.search(before) or _ADJECTIVE.search(before))


def _is_plural(phrase: str) -> bool:
    head = re.split(r"\s(?:at|of|that|who|with|without|in|around|to|from|by)\b", phrase)[0]
    return bool(re.search(r"[^s]s$", head)) and not head.endswith(("sis", "'s"))


def _takes_plural(before: str, behind: str) -> bool:
    """Whether neither an article nor the verb asks for one thing; the verb only where the term may be its subject."""
    if _SINGULAR.search(before):
        return False
    inner = re.search(r"\b(?:of|in|for|by|with|after|during|to|from|on|without)\s(?:[\w-]+\s)?$", before)
    verb = None if inner else _IS_SINGULAR.search(re.split(r"[.;]", behind)[0])
    return not (verb and verb[1])


_DOUBLED = re.compile(r"\b(\w+)\s\1\b|\b(?:an?|the)\s(?:an?|the|no|their|his|its)\b", re.IGNORECASE)
_WRONG_ARTICLE = re.compile(r"\ba\s[aeio]|\ban\s[b-df-gj-km-nptv-z][a-z]", re.IGNORECASE)


def reads_well(plain: str, source: str) -> bool:
    """Whether the plain sentence has no doubled word, no two articles and no wrong one that its source has not, too."""
    return all(
        {found[0] for found in wrong.finditer(plain)} <= {found[0] for found in wrong.finditer(source)}
        for wrong in (_DOUBLED, _WRONG_ARTICLE)
    )
