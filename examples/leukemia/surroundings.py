"""Whether the name of a disease names something else, as what stands around it shows: a society, a trial, a protein."""

from __future__ import annotations

import re

__all__ = ["names_something_else"]

_OPPOSITES = {"acute": ("chronic",), "chronic": ("acute",), "subacute": ("acute", "chronic")}
_BEFORE = re.compile(r"([A-Za-z]+)(,?)[\s-](?:[BT][\s-](?:(?:cell|lineage)[\s-])?)?$")
# promyelocytic leukemia bodies, B-cell lymphoma 6 (BCL6), leukemia-associated SET protein
_MOLECULE = re.compile(
    r"\s(?:onco)?protein\b(?!\s(?:expression|level|profil|signature|content|synthesis|bio|marker))"
    r"|\s(?:nuclear\s)?bod(?:y|ies)\b|\s(?:\w+\s)?inhibitory\sfactor|\sfactor\s\d|\szinc[\s-]finger|\shomeobox"
    r"|(?<=lymphoma)\skinase|(?<=lymphoblastic\sleukemia)\santigen|[\s-](?:\d\d?|extra[\s-]large)\s\([A-Za-z][\w-]*\d"
    r"|(?:[\s/-]l(?:eukemia|ymphoma))?[\s-](?:retro|pro)?virus",
    re.IGNORECASE,
)
_ASSOCIATED = re.compile(
    r"-(?:associated|related|derived)\s(?:\w+[\s-])?(?:protein|antigen|factor|sequence)\b", re.IGNORECASE
)
_CAPITALS = r"(?:(?:[\s/-]|,\s)(?:&|and|[A-Z][\w'-]*)){0,4}?[\s/-]"  # between the name and what it is: & Lymphoma
_GROUP = (
    r"(?:(?:[Ss]tudy|[Rr]esearch|[Cc]ooperative|[Cc]ollaborative|[Ww]orking)\s[Gg]roup|[Ww]orking\s[Pp]arty|Intergroup"
    r"|Society|Foundation|Charity|Consortium|Coalition|Federation|Fund|Trust|Alliance|League)"
)
# words that a title may have, too (Leukemia and Association With Age): each has to end a name
_PLACE = (
    r"(?:Association|Organi[sz]ation|Network|Net|Registry|Committee|Council|Initiative|Workshop|Symposium|Congress|Conference"
    r"|Department|Institute|Cent(?:er|re)|Study(?!\sof))\b(?!\s[A-Z])"
)
_IS_GROUP = re.compile(
    rf"{_CAPITALS}{_GROUP}\b|\s(?:and|&)\s[A-Z][a-z]+\sGroup\b|\sGroup\s[A-Z]\b(?!\s(?:was|were|had))"
)
_IS_PLACE = re.compile(rf"{_CAPITALS}{_PLACE}")
_LED_BY_GROUP = re.compile(  # but trust or an association of things: Association of Leukemia With Second Cancers
    r"(?:[Gg]roup|Society|Foundation|Consortium|Federation|League|Party|Workshop|Committee|Congress|Conference|Department)\s"
    r"(?:of|for|on|against)\s(?:the\s)?(?:(?:&|and|of|in|[A-Z][\w-]*)[\s-]){0,5}$"
)
_CAPITAL_BEFORE = re.compile(r"(?:\b[A-Z][\w-]*|&|\band)\s$")
# Leukemia (2012) 26, 1-5; Leukemia 2012;26:1-5; Leukemia & Lymphoma 51: 1-5
_IS_JOURNAL = re.compile(
    r"(?:\s(?:&|and)\sLymphoma|\sRes(?:earch)?\b\.?)?(?:\s\((?:19|20)\d\d\)|[.,]?\s(?:19|20)\d\d\s?[;:,]\s?\d"
    r"|[.,]?\s\d+\s?(?:\(\d+\)\s?)?:\s?\d)"
)
_IN_JOURNAL = re.compile(r"\b(?:[Jj]ournals?|[Pp]ublished\sin|[Ii]ssues?\sof)\s(?:(?:[A-Z][\w-]*|and|&|of)\s){0,4}$")
_OF_TRIALS = r"\s?\(?\s?(?:trial|stud(?:y|ies)\b|protocol|database|instrument|questionnaire|scale)"
# ALL-BFM 95, ALL-97, AML 15 trial, CML-Study IV, ALL-IDB1 database; NOPHO ALL-2008 has a group before
_IS_TRIAL = re.compile(
    rf"-BFM\b|-\d{{2,4}}\b|[\s-]Study\s[IVX\d]+\b|(?:[\s-][A-Z]{{2,}}\w*)?[\s-](?:\d[\w/-]*|[IVX]+){_OF_TRIALS}"
    rf"|-IDB\w*\)?{_OF_TRIALS}"
)
_OF_A_GROUP = re.compile(r"\b[A-Z]{3,}[\s-]$")
_NUMBERED = re.compile(r"[\s-]\d{2,4}\b(?![\s-]?(?:%|[a-z]))")
_SHOUTED = re.compile(r"\b(?:THE|WERE|WITH|FROM|HAVE|THAT|THIS|THESE|BEEN|WILL|MUST|ONLY|OF|FOR|BY)\b")

# what tells that a shouted ALL is the disease: no "all" stands behind such words, and none without a noun behind "of"; what
# stays open is taken for the word (THERAPY FOR ALL IN CHILDREN)
_ABBREVIATED = r"(?:AML|APL|CLL|CML|MDS|MPAL|NHL|LBL)"
_DISEASE_BEFORE = re.compile(
    r"\b(?:CHILDHOOD|PA?EDIATRIC|ADULT|INFANT(?:ILE)?|ADOLESCENT|RELAPSED|REFRACTORY|RECURRENT|NEWLY\sDIAGNOSED|UNTREATED"
    r"|[BT][\s-](?:CELL|LINEAGE|PRECURSOR)|PRECURSOR|(?:HIGH|LOW|STANDARD|INTERMEDIATE)[\s-]RISK|CHROMOSOME[\s-](?:POSITIVE|NEGATIVE)"
    r"|PH-(?:POSITIVE|NEGATIVE)|REARRANGED|[BT]|PRE-[BT])[\s-]$|PH\+\s$"
)
_OF_DISEASE = re.compile(
    r"(?<!\bFIRST\s)(?<!\bLAST\s)(?<!\bBEST\s)(?<!\bWORST\s)(?<!\bMOST\s)(?<!\bLEAST\s)\b(?:OF|IN|WITH|AGAINST)\s$"
    rf"|\b{_ABBREVIATED}(?:,|/|\s(?:AND|OR|VERSUS|VS\.?))\s?$"
)
_NO_NOUN = re.compile(r"\s*$|\s(?:WITH|WITHOUT|BY|USING|AFTER|BEFORE|DURING|FOLLOWING|IN|TREATED\s(?:WITH|BY|ON)|IS)\b")
_OR_AML = re.compile(rf"(?:,|/|\s(?:AND|OR|VERSUS|VS\.?))\s?{_ABBREVIATED}\b")


def names_something_else(text: str, start: int, end: int, names: tuple[str, ...]) -> bool:
    """Whether text[start:end], which is written as one of a disease's `names`, names no such disease where it stands.

    What is denied (non-AML); the acute kind behind "chronic"; a molecule or a virus; a group, a journal or a trial; the
    word "all" among shouted words.
    """
    found, before, behind = text[start:end], text[max(0, start - 80) : start], text[end : end + 80]
    if before.lower().endswith("non-") or _is_opposite(found, before, names) or _is_molecule(text, start, end):
        return True
    if not found[0].isupper():
        return False
    if found == "ALL" and not (before.endswith("(") and behind.startswith(")")) and _is_shouted(before, behind):
        return True
    return _is_named_after(text, start, end, before, behind)


def _is_opposite(found: str, before: str, names: tuple[str, ...]) -> bool:
    """Whether "chronic" stands before a disease that is acute, or the other way round, unless its name says so."""
    word = _BEFORE.search(before)
    if not word or (word[2] and found.isupper()):  # "it was chronic, AML was not"
        return False
    opposites = _OPPOSITES.get(word[1].lower(), ())
    return any(kind in name.split() for kind in opposites if kind not in found.lower() for name in names)


def _is_molecule(text: str, start: int, end: int) -> bool:
    """Whether it is one's name, or between two hyphens (myeloid-leukemia-associated)."""
    between = re.search(r"[a-z]-$", text[max(0, start - 2) : start]) and re.match(
        r"-(?:associated|related)", text[end : end + 11]
    )
    associated = not text[start:end].isupper() or len(text[start:end]) > 5  # but not what is with AML
    return bool(between or _MOLECULE.match(text, end) or (associated and _ASSOCIATED.match(text, end)))


def _is_named_after(text: str, start: int, end: int, before: str, behind: str) -> bool:
    """Whether the name is part of that of a group, a journal or a trial.

    In a title in capitals, any word may look like a group's: there, only what is plainly one counts.
    """
    found = text[start:end]
    short = found.isupper()  # AML, ALL
    if _IS_GROUP.match(text, end) and not (short and re.match(r"\sGroup", behind)):
        return True
    led = _LED_BY_GROUP.search(before)
    if led and re.search(r"Group|Workshop|Society|Party", led[0]):
        return True
    if short:
        return bool(_IS_TRIAL.match(text, end) or (_OF_A_GROUP.search(before) and _NUMBERED.match(text, end)))
    if re.fullmatch(r"[A-Z][a-z]+", found) and (_IS_JOURNAL.match(text, end) or _IN_JOURNAL.search(before)):
        return True
    if not all(word[0].isupper() for word in re.findall(r"[A-Za-z]{3,}", found)) or _is_title(before, behind):
        return False
    group = re.match(r"\s[Gg]roup\b", behind) and _CAPITAL_BEFORE.search(before)
    return bool(led or group or _IS_PLACE.match(text, end))


def _is_title(before: str, behind: str) -> bool:
    """Whether most longer words around are in capitals, but for those that touch the name and may be part of it."""
    before, behind = re.split(r"[.;?!]\s", before)[-1], re.split(r"[.;?!]\s", behind)[0]
    before = re.sub(r"(?:\b(?:[A-Z][\w'-]*|and|of|on|for|&)[\s,/-]+){1,5}$", "", before)
    behind = re.sub(r"^(?:[\s,/-]+(?:[A-Z][\w'-]*|and|of|on|for|&)){1,5}", "", behind)
    words = re.findall(r"\b[A-Za-z]{4,}\b", f"{before} {behind}")
    return sum(word[0].isupper() for word in words) > max(1, len(words) / 2)


def _is_shouted(before: str, behind: str) -> bool:
    """Whether "ALL" is the word, as in a title in capitals: ALL CASES, ALL patients WERE."""
    before, behind = re.split(r"[.:;?!]", before)[-1], re.split(r"[.:;?!]", behind)[0]
    of_disease = _OF_DISEASE.search(before) and _NO_NOUN.match(behind)
    if of_disease or _DISEASE_BEFORE.search(before) or _OR_AML.match(behind):
        return False
    words = re.findall(r"\b[A-Za-z]{4,}\b", f"{before} {behind}")
    loud = len(words) > 1 and all(map(str.isupper, words))
    return bool(
        loud or _SHOUTED.search(f"{before} {behind}") or re.match(r"\s(?:[A-Z]{4,}S|CHILDREN|(?:WO)?MEN)\b", behind)
    )
