"""Questions with retrieved articles in the place of the one that answers them: what `ask` gives a model, to be scored.

A question must say itself what it is about: "which drug was studied?" finds nothing of use among thousands of articles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from examples.leukemia.ask import ARTICLES, THRESHOLD
from examples.leukemia.data import UserError
from examples.leukemia.dense import Embedder
from examples.leukemia.gazetteer import Gazetteer
from examples.leukemia.index import Index
from examples.leukemia.prompt import answer_room, article_blocks, article_id, fit_articles, sentences_of
from examples.leukemia.tasks import Item, encode_item, encode_prompt
from llama_min import Tokenizer

__all__ = ["own_article_found", "retrieve_sources"]


def retrieve_sources(
    items: Sequence[Item],
    index_path: Path,
    tokenizer: Tokenizer,
    context: int,
    gazetteer: Gazetteer | None = None,
    count: int = ARTICLES,
    threshold: float = THRESHOLD,
    dense: Embedder | None = None,
) -> list[Item]:
    """The items, the source of each question replaced by what the index finds for it: by nothing if that is nothing.

    Articles are found, cleared of instructions, delimited and cut to whole sentences as `ask` does it. The article that
    holds the answer is there only if it was found. Items of other tasks stay as they are.

    Args:
        context: tokens of the model; room for an answer is left free.
        gazetteer: None takes leukemia's.
        count, threshold: at most so many articles, and of at least that coverage.
        dense: of the index, to find by vectors, too.

    Raises:
        UserError: there is no such index, or a question alone does not fit.
    """
    index = Index(index_path, gazetteer, dense=dense)
    try:
        return [
            _with_articles(item, index, tokenizer, context, count, threshold) if item.task == "question" else item
            for item in items
        ]
    finally:
        index.close()


def own_article_found(items: Sequence[Item]) -> list[float]:
    """Of questions from `retrieve_sources`, 1 where the article that answers one is among those the model reads."""
    return [float(f'<article id="{article_id(item.pubmed_id)}">\n' in item.source) for item in items]


def _with_articles(item: Item, index: Index, tokenizer: Tokenizer, context: int, count: int, threshold: float) -> Item:
    found = [hit for hit in index.search(item.instruction, count) if hit.coverage >= threshold]
    articles = {hit.pubmed_id: sentences_of(hit)[1] for hit in found}

    def with_source(chosen: dict[str, list[str]]) -> Item:
        return replace(item, source=article_blocks(chosen))

    def length(chosen: dict[str, list[str]]) -> int:
        return len(encode_prompt(with_source(chosen), tokenizer))

    bare = replace(item, source="")
    expected = len(encode_item(bare, tokenizer).ids) - length({})
    room = context - max(answer_room(context), expected)
    if length({}) > room:
        raise UserError(f"article {item.pubmed_id}: question and answer alone pass the context of {context} tokens")
    fitting = fit_articles(articles, length, room)
    return replace(with_source(fitting), words_cut=_words(articles) - _words(fitting))


def _words(articles: dict[str, list[str]]) -> int:
    return sum(len(sentence.split()) for sentences in articles.values() for sentence in sentences)
