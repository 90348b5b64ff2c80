"""Build what the model is taught and tested on: text to go on with, subtypes to tell, titles to write.

An item is a prompt (instruction and source text) and a completion. What does not fit the model's context is cut from the
end of the source, never from the completion; passages of text are parted, so that nothing of them is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from examples.leukemia.annotate import SUBTYPES, blank_subtypes, subtype_of
from examples.leukemia.data import Record, UserError
from llama_min import Tokenizer
from lora_lite import Example

__all__ = ["TASKS", "Item", "build_items", "encode_item", "encode_prompt", "fit_item"]

TASKS = ("text", "subtype", "title")
_INSTRUCTIONS = {
    "text": "",
    "subtype": f"Which leukemia is this abstract about: {', '.join(SUBTYPES)}?",
    "title": "Write a title for this abstract.",
}


@dataclass(frozen=True)
class Item:
    """One thing to learn or to be asked.

    Attributes:
        pubmed_id: the article that it comes from.
        task: one of `TASKS`.
        instruction, source: together the prompt; both empty where text is simply gone on with.
        completion: what the model should say.
        words_cut: how many words of the source did not fit the model's context.
    """

    pubmed_id: str
    task: str
    instruction: str
    source: str
    completion: str
    words_cut: int = 0

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return f"{self.instruction}\n\n{self.source}".strip()


def build_items(records: Sequence[Record], tokenizer: Tokenizer, context: int) -> list[Item]:
    """Every task's items of these records, each fitted to `context` tokens.

    The subtype of an article is what its file says, else the one that its title or abstract names; where that is not
    just one there is no such item. The names are blanked in the source, so that the label must be inferred. An
    article without a title gives no title to learn.
    """
    items = []
    for record in records:
        passages = _passages(record.abstract, tokenizer, context)
        items += [Item(record.pubmed_id, "text", "", "", passage) for passage in passages]
        subtype = record.subtype or subtype_of(record.title, record.abstract)
        whole = f"{record.title}\n{record.abstract}".strip()
        sources = {"subtype": (blank_subtypes(whole), subtype), "title": (record.abstract, record.title)}
        for task, (source, completion) in sources.items():
            if completion and (task != "subtype" or completion in SUBTYPES):
                item = Item(record.pubmed_id, task, _INSTRUCTIONS[task], source, completion)
                items.append(fit_item(item, tokenizer, context, SUBTYPES if task == "subtype" else ()))
    return items


def encode_prompt(item: Item, tokenizer: Tokenizer) -> list[int]:
    """Ids of the prompt, up to where the completion starts: as a chat where the tokenizer knows chats."""
    if item.prompt and tokenizer.can_chat:
        return tokenizer.encode_chat([{"role": "user", "content": item.prompt}], add_generation_prompt=True)[0]
    return tokenizer.encode(f"{item.prompt}\n" if item.prompt else "", bos=tokenizer.bos_id is not None)


def encode_item(item: Item, tokenizer: Tokenizer, completion: str | None = None) -> Example:
    """Ids of prompt and completion, the completion and its end token supervised.

    Args:
        completion: to be put in place of the item's own, such as a label to be scored.
    """
    completion = item.completion if completion is None else completion
    if item.prompt and tokenizer.can_chat:
        turns = [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": completion}]
        ids, mask = tokenizer.encode_chat(turns)
        return Example(ids, mask)
    prompt = encode_prompt(item, tokenizer)
    tail = tokenizer.encode(completion, eos=bool(tokenizer.eos_ids))
    return Example(prompt + tail, [0] * len(prompt) + [1] * len(tail))


def fit_item(item: Item, tokenizer: Tokenizer, context: int, answers: Sequence[str] = ()) -> Item:
    """The item with as many whole words of its source, from the start, as fit into `context` tokens.

    Args:
        answers: other completions that must fit behind the same prompt, such as every label to be scored.

    Raises:
        UserError: the instruction and the completion alone do not fit.
    """
    words = item.source.split()

    def cut_to(kept: int) -> Item:
        if kept == len(words):
            return item
        return replace(item, source=" ".join(words[:kept]), words_cut=len(words) - kept)

    def fits(kept: int) -> bool:
        cut = cut_to(kept)
        return max(len(encode_item(cut, tokenizer, text).ids) for text in (item.completion, *answers)) <= context

    if fits(len(words)):
        return item
    if not fits(0):
        raise UserError(
            f"article {item.pubmed_id}: instruction and {item.task} alone pass the model's context of {context} tokens: "
            "take a model with a longer context"
        )
    low, high = 0, len(words)  # fits(low), not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return cut_to(low)


def _passages(text: str, tokenizer: Tokenizer, context: int) -> list[str]:
    """`text` parted into as few runs of whole sentences as fit the context, long sentences between words."""

    def fits(passage: str) -> bool:
        return len(encode_item(Item("", "text", "", "", passage), tokenizer).ids) <= context

    pieces = []
    for sentence in re.split(r"(?<=[.!?]) ", text):
        pieces += [sentence] if fits(sentence) else sentence.split(" ")
    passages: list[str] = []
    for piece in pieces:
        if passages and fits(f"{passages[-1]} {piece}"):
            passages[-1] += f" {piece}"
        else:
            passages.append(piece)
    # a single word that does not fit (a sequence of bases, say) is no text to learn from
    return [passage for passage in passages if fits(passage)]
