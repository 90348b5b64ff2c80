"""Articles in a prompt: each between its own tags, its text data, in whole sentences, as many as fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from examples.leukemia.index import Hit
from examples.leukemia.safety import as_data, reads_like_instruction

__all__ = ["TAGS", "answer_room", "article_blocks", "article_id", "fit_articles", "sentences_of", "split_sentences"]

TAGS = ("article", "question")
NEW_TOKENS = 160


def answer_room(context: int) -> int:
    """How many tokens of a context are kept free for the answer."""
    return min(NEW_TOKENS, context // 3)


def sentences_of(hit: Hit) -> tuple[list[str], list[str]]:
    """Title and abstract as sentences: all, and those that speak to readers and not to a model."""
    every = split_sentences(hit.title) + split_sentences(hit.abstract)
    return every, [sentence for sentence in every if not reads_like_instruction(sentence)]


_BETWEEN = re.compile(
    r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\b(?:vs|cf|St|Dr|Mr|Ms)\.)(?<!\b(?:Mrs|Fig)\.)(?<!\bProf\.) (?=[A-Z(]|(?P<number>\d))"
)
# what begins with a number: "12 patients", "5-year survival", "24 of 30 (80%)"; not "2010;28:1-5"
_COUNTED = re.compile(r"\d[\d.,/]*(?:-\d[\d.,]*)?(?:%|-(?=[A-Za-z]))?(?:\s?\([^()]{1,30}\))?\s?\(?[A-Za-z]")
# what may end before a number: a word, an abbreviation in capitals, a unit (5 mg, g/dL), a bracket, %, a year or a decimal; not
# "P < 0. 05"
_ENDED = re.compile(r"(?:[A-Za-z]{3}|[A-Z]{2}|[\d/]\s?[A-Za-zμ]{1,2}2?|[)\]%!?\"']|\b(?:19|20)\d\d|\d\.\d{1,9})\.?$")
_NUMBERED = re.compile(  # of what the number may be: no. 12, Figs. 2 and 3, et al. 2004, approx. 5
    r"\b(?:al|approx|arts?|avg|ca|cf|chap|conc|eds?|eqs?|est|etc|exp|ex|figs?|incl|max|med|min|nos?|nrs?|pp|paras?|pts?"
    r"|refs?|resp|sect?|ser|suppl|tabs?|temp|ver|viz|vols?|vs|wt|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|ltd|inc"
    r"|e\.g|i\.e)\.$",
    re.IGNORECASE,
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; "e.g.", "vs.", "St.", "Dr." and the like end none, nor do "no." and "Fig." before a number."""
    parts, place = [], 0
    for match in _BETWEEN.finditer(text):
        if match["number"]:
            before = text[max(0, match.start() - 12) : match.start()]
            if not _COUNTED.match(text, match.end()) or not _ENDED.search(before) or _NUMBERED.search(before):
                continue
        parts.append(text[place : match.start()])
        place = match.end()
    return [part for part in [*parts, text[place:]] if part]


def article_blocks(articles: Mapping[str, list[str]]) -> str:
    """The sentences of each article, {PubMed id: sentences}, between tags that nothing in them can close or open."""
    return "\n".join(
        f'<article id="{article_id(pubmed_id)}">\n{as_data(" ".join(sentences), TAGS)}\n</article>'
        for pubmed_id, sentences in articles.items()
        if sentences
    )


def article_id(pubmed_id: str) -> str:
    """An id as it stands in a tag, where it can close neither."""
    return re.sub(r"[^\w.:-]", "_", pubmed_id)


def fit_articles(
    articles: Mapping[str, list[str]], length: Callable[[dict[str, list[str]]], int], room: int
) -> dict[str, list[str]]:
    """The articles in their order, whole sentences, as many as fit; the one that does not fit whole is the last.

    Args:
        length: how many tokens a prompt with such articles takes.
        room: how many it may take.
    """
    fitting: dict[str, list[str]] = {}
    for pubmed_id, sentences in articles.items():
        low, high = 0, len(sentences)
        while low < high:  # as many sentences of this article as fit behind those before it
            middle = (low + high + 1) // 2
            fits = length(fitting | {pubmed_id: sentences[:middle]}) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        if low:
            fitting[pubmed_id] = sentences[:low]
        if low < len(sentences):
            break
    return fitting
