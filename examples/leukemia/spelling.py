"""British words in American spelling. What no rule knows stays as it is: a word left British costs less than one mangled.

Names keep their spelling: of genera and species (Haemophilus, Enterococcus faecalis, Tritrichomonas foetus), and what
has a capital within a sentence or stands before "et al." (Centre Hospitalier, Harbour et al.).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

__all__ = ["american_word", "americanize", "search_form"]

_ISE = (
    "categor|central|character|colon|crystall|dichotom|emphas|external|fertil|final|formal|general|harmon|hospital|"
    "hypothes|ideal|immortal|immun|individual|initial|internal|ion|local|maxim|metastas|minim|mobil|mutagen|neutral|normal|"
    "optim|organ|oxid|personal|polar|polymer|priorit|random|recogn|sensit|solubil|stabil|standard|steril|summar|symbol|"
    "synthes|theor|util|vapor|visual"
)
_DOUBLED = "cancel|channel|counsel|dial|equal|fuel|funnel|initial|label|level|marshal|model|signal|total|travel|tunnel"
# where American leaves out the first letter of ae or oe
_DIGRAPH = (
    "haem(?!adips|anth|atob|atoc|onch|ophilus)|(?<=leuk)aem|aem(?=i)|anaesth|gynaec|^caesar(?=[ei]an)|^aetio|paed(?=iatr|ic)|"
    "^faec(?=(?:es|al)$)|^foet(?=(?:al|uses|opathy)$)|oedema|oesoph(?!agos)|oestr(?=ogen|adiol|one|us)|rrhoea|pnoea|^coeliac$"
)
_Replacement = str | Callable[[re.Match[str]], str]
_RULES: tuple[tuple[re.Pattern[str], _Replacement], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), american)
    for pattern, american in (
        (rf"^((?:anti|de|im|non|over|re|un)?(?:{_ISE}))is(e[drs]?|ers|ing|able)$", r"\1iz\2"),  # but characteristics
        (r"^(?!improv)(\w{3,})isation(s|al)?$", r"\1ization\2"),
        (r"^(\w*(?:anal|catal|dial|electrol|hydrol|paral))ys(e[dr]?|ers|ing)$", r"\1yz\2"),  # analyses is a noun, too
        (rf"^(\w*(?:{_DOUBLED}))l(ed|ing|ers?|ors?)$", r"\1\2"),
        (
            r"^((?:dis|mis|un)?(?:behavi|endeav|fav|flav|harb|hon|lab|neighb|od|rig|vap|vig)o)u(r(?!d?ette)\w*)$",
            r"\1\2",
        ),
        (r"((?:col|tum)o)ur", r"\1r"),
        (r"^(\w*(?:cent|fib|lit|tit))re(s?)$", r"\1er\2"),
        (r"^centr(ed|ing)$", r"center\1"),
        (r"^programme(s?)$", r"program\1"),
        (r"^grey(s|ish)?$", r"gray\1"),
        (r"^(enrol|fulfil)(|s|ments?)$", r"\1l\2"),
        (r"^ageing$", "aging"),
        (r"leuc(?=aem|ocyt|open|opoie)", "leuk"),
        (_DIGRAPH, lambda found: re.sub("[ao]e", "e", found[0], flags=re.IGNORECASE)),
        (r"sulph", "sulf"),
    )
)
_NAME = r"(?:(?<=[\w,;)] )|(?<=\())[A-Z][a-z]\w*|\w+(?= et al)"
_NAME_OR_WORD = re.compile(rf"{_NAME}|(?P<word>\w+)")


def americanize(text: str) -> str:
    """`text` in American spelling, capitals kept."""
    return _NAME_OR_WORD.sub(lambda match: american_word(match[0]) if match["word"] else match[0], text)


@cache  # texts repeat their words, and looking up is faster than searching
def american_word(word: str) -> str:
    """One word, or a mark, in American spelling."""
    if not (word.islower() or word.isupper() or word.istitle()):
        return word  # a name: EasyModeller
    new = word
    for pattern, american in _RULES:
        new = pattern.sub(american, new)
    if new == word:
        return word
    return new.upper() if word.isupper() else new[0].upper() + new[1:] if word[0].isupper() else new


_GREEK = re.compile(r"GREEK SMALL LETTER (?:FINAL )?(\w+)")
_PLURALS = {"children": "child", "women": "woman", "men": "man", "mice": "mouse", "feet": "foot", "teeth": "tooth"}
_PLURAL_ENDS = (
    (re.compile(r"(?<=\w{4})ses$"), "sis"),
    (re.compile(r"(?<=\w{3})i$"), "us"),
    (re.compile(r"(?<=\w{3})ae$"), "a"),
)


@cache
def search_form(word: str) -> str:
    """A word as it is looked for besides the way it is written: American, singular, Greek letters by name.

    What is no plural may get a form that no one writes ("diseases" becomes "diseasis"): it then finds nothing more.
    """
    word = american_word(word.lower())
    for pattern, singular in _PLURAL_ENDS:
        word = pattern.sub(singular, word)
    greek = _GREEK.fullmatch(unicodedata.name(word, "")) if len(word) == 1 else None
    return greek[1].lower() if greek else _PLURALS.get(word, word)
