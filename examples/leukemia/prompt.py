"""Articles in a prompt: each between its own tags, its text data, in whole sentences, as many as fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from examples.leukemia.index import Hit
from examples.leukemia.instructions import as_data, reads_like_instruction
from examples.leukemia.reading import split_sentences

__all__ = ["TAGS", "answer_room", "article_blocks", "article_id", "fit_articles", "sentences_of"]

TAGS = ("article", "question")
NEW_TOKENS = 160


def answer_room(context: int) -> int:
    """How many tokens of a context are kept free for the answer."""
    return min(NEW_TOKENS, context // 3)


def sentences_of(hit: Hit) -> tuple[list[str], list[str]]:
    """Title and abstract as sentences: all, and those that speak to readers and not to a model."""
    every = split_sentences(hit.title) + split_sentences(hit.abstract)
    return every, [sentence for sentence in every if not reads_like_instruction(sentence)]


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
