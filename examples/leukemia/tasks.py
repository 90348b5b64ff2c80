"""Build what the model is taught and tested on: a builder a task, each from labels that no model gave.

    text      go on with an abstract                  itself
    subtype   tell the subtype, its names blanked     the file's column, else the one subtype that is named
    summary   write the conclusion, else the title    the authors'
    question  answer from the abstract                files of questions, else what the annotator finds
    terms     list the key terms                      the gazetteer
    plain     say a sentence plainly                  the glossary
    lab       read a lab report                       reference ranges

An item is a prompt (instruction and source text) and a completion. What does not fit the model's context is cut from the
end of the source, never from the completion; passages of text are parted, so that nothing of them is lost.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from examples.leukemia.annotate import annotate, blank_subtypes, subtype_of
from examples.leukemia.conclusions import part_conclusion
from examples.leukemia.data import Record, UserError
from examples.leukemia.gazetteer import Gazetteer
from examples.leukemia.lab import LAB_INSTRUCTION
from examples.leukemia.plain import Glossary, plain_pair, same_words
from examples.leukemia.questions import BLANK, Question, by_article, questions_from_names
from examples.leukemia.reading import split_sentences
from examples.leukemia.terms import TERMS_INSTRUCTION, key_terms
from llama_min import Tokenizer
from lora_lite import Example

__all__ = ["TASKS", "Item", "Knowledge", "build_items", "encode_item", "encode_prompt", "fit_item", "open_questions"]

TASKS = ("text", "subtype", "summary", "question", "terms", "plain", "lab")
CONCLUDE = "Write the conclusion of this abstract."
ENTITLE = "Write a title for this abstract."
PLAINLY = "Say this in plain words."


@dataclass(frozen=True)
class Knowledge:
    """What labels come from, beside the abstracts: names, plain words, questions with answers, lab reports with flags."""

    gazetteer: Gazetteer
    glossary: Glossary
    questions: Sequence[Question] = ()
    reports: Sequence[tuple[str, str, str]] = field(default=(), repr=False)


@dataclass(frozen=True)
class Item:
    """One thing to learn or to be asked.

    Attributes:
        pubmed_id: the article that it comes from.
        task: one of `TASKS`.
        instruction, source: together the prompt; both empty where text is simply gone on with.
        completion: what the model should say.
        words_cut: how many words of the source did not fit the model's context.
        open: whether it is a question that names no article; `pubmed_id` then numbers it.
    """

    pubmed_id: str
    task: str
    instruction: str
    source: str
    completion: str
    words_cut: int = 0
    open: bool = False

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return f"{self.instruction}\n\n{self.source}".strip()


def build_items(
    records: Sequence[Record],
    knowledge: Knowledge,
    tokenizer: Tokenizer,
    context: int,
    left_out: Counter[str] | None = None,
    taken: defaultdict[str, set[str]] | None = None,
) -> list[Item]:
    """Every task's items of these records and of the lab reports, each fitted to `context` tokens.

    An article gives no item of a task for which it has no label: the text names several subtypes, say, or no key term.

    Args:
        left_out: gets, by task, how many items have a completion that does not fit even without any source, or ask what
            only the part tells that is cut off; of text, how many sentences another side is to conclude with.
        taken: by task, what plain and summary items of other sides ask for (`same_words`), which none here asks for; gets
            what these do. Under "text", the sentences of conclusions.
    """
    left_out = Counter() if left_out is None else left_out
    taken = defaultdict(set) if taken is None else taken
    labels = tuple(knowledge.gazetteer.labels)
    asked = by_article(knowledge.questions)
    held_out = frozenset(taken["text"])
    items = []
    for record in tqdm(records, desc="building items", unit="article", delay=1):
        sentences = split_sentences(record.abstract)
        kept = [sentence for sentence in sentences if same_words(sentence) not in held_out]
        left_out["text"] += len(sentences) - len(kept)
        passages = _passages(" ".join(kept), tokenizer, context) if kept else []
        items += [Item(record.pubmed_id, "text", "", "", passage) for passage in passages]
        for item in _unfitted(record, knowledge, asked.get(record.pubmed_id), taken):
            fitted = fit_item(item, tokenizer, context, labels if item.task == "subtype" else ())
            if fitted and fitted.task == "terms" and fitted.words_cut:  # what was cut cannot be listed
                fitted = replace(fitted, completion=_listed(fitted.source, knowledge.gazetteer))
            answered = fitted is not None and not _lost_its_answer(item, fitted, knowledge.gazetteer)
            left_out[item.task] += not answered
            items += [fitted] if fitted and answered and fitted.completion else []
    for name, report, answer in knowledge.reports:
        whole = Item(name, "lab", LAB_INSTRUCTION, report, answer)
        fits = len(encode_item(whole, tokenizer).ids) <= context  # half a report would not have all of the answer
        left_out["lab"] += not fits
        items += [whole] if fits else []
    return items


def _unfitted(
    record: Record, knowledge: Knowledge, asked: Sequence[Question] | None, taken: defaultdict[str, set[str]]
) -> Iterator[Item]:
    """The items of one article that ask for an answer, whole; plain sentence and summary are none taken, and then are."""
    names, gazetteer = record.pubmed_id, knowledge.gazetteer
    subtype = subtype_of(record.title, record.abstract, gazetteer, record.subtype)
    if subtype in gazetteer.labels:
        blanked = blank_subtypes(f"{record.title}\n{record.abstract}".strip(), gazetteer)
        which = f"Which {gazetteer.topic} is this abstract about: {', '.join(gazetteer.labels)}?"
        yield Item(names, "subtype", which, blanked, subtype)
    parts = part_conclusion(record)
    instruction, source, summary = (CONCLUDE, *parts) if parts else (ENTITLE, record.abstract, record.title)
    if summary and same_words(summary) not in taken["summary"]:
        taken["summary"].add(same_words(summary))
        taken["text"].update(map(same_words, split_sentences(summary)))
        yield Item(names, "summary", instruction, source, summary)
    for question in asked or questions_from_names(record, gazetteer):
        yield Item(names, "question", question.question, record.abstract, question.answer)
    if terms := _listed(record.abstract, gazetteer):
        yield Item(names, "terms", TERMS_INSTRUCTION, record.abstract, terms)
    if pair := plain_pair(record.abstract, knowledge.glossary, taken["plain"]):
        taken["plain"].add(same_words(pair[0]))
        yield Item(names, "plain", PLAINLY, *pair)


def _lost_its_answer(whole: Item, fitted: Item, gazetteer: Gazetteer) -> bool:
    """Whether a question is to be answered with what only the part of the abstract tells that was cut off."""

    def tells(text: str) -> bool:
        spans = annotate(text, gazetteer)  # a name may stand there by another
        named = {span.name for span in spans} | {f"{span.value} {span.unit}" for span in spans}
        return whole.completion in named or whole.completion.lower() in text.lower()

    if whole.task != "question" or not fitted.words_cut:
        return False
    gap = re.search(rf'"(.*{BLANK}.*)"', whole.instruction)
    if gap:  # the name may stand elsewhere, too: the sentence itself has to be left
        return not all(part in fitted.source for part in gap[1].split(BLANK))
    return tells(whole.source) and not tells(fitted.source)


def _listed(text: str, gazetteer: Gazetteer) -> str:
    return "; ".join(key_terms(text, gazetteer))


def open_questions(questions: Sequence[Question], tokenizer: Tokenizer, context: int) -> list[Item]:
    """Items of the questions that name no article: to be tested on, with the file's own context as source if it has one.

    Their answers may be longer than any that a model writes; half of the context is kept for what it does.
    """
    items = []
    for number, question in enumerate((q for q in questions if not q.pubmed_id), 1):
        item = Item(f"question {number}", "question", question.question, question.context, "", open=True)
        fitted = fit_item(item, tokenizer, context // 2)
        if fitted is None:
            raise UserError(
                f"the question {question.question[:60]!r} alone passes half of the model's context of {context}"
            )
        items.append(replace(fitted, completion=question.answer))
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


def fit_item(item: Item, tokenizer: Tokenizer, context: int, answers: Sequence[str] = ()) -> Item | None:
    """The item with as many whole words of its source, from the start, as fit into `context` tokens.

    None where the instruction and the completion alone do not fit.

    Args:
        answers: other completions that must fit behind the same prompt, such as every label to be scored.
    """
    words = item.source.split()
    longest = max((item.completion, *answers), key=lambda text: len(tokenizer.encode(text)))

    def cut_to(kept: int) -> Item:
        if kept == len(words):
            return item
        return replace(item, source=" ".join(words[:kept]), words_cut=len(words) - kept)

    def fits(kept: int) -> bool:
        return len(encode_item(cut_to(kept), tokenizer, longest).ids) <= context

    if fits(len(words)):
        return item
    if not fits(0):
        return None
    low, high = 0, len(words)  # fits(low), not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return cut_to(low)


def _passages(text: str, tokenizer: Tokenizer, context: int) -> list[str]:
    """`text` parted into as few runs of whole sentences as fit the context, long sentences between words."""

    def fits(passage: str) -> bool:
        return len(encode_item(Item("", "text", "", "", passage), tokenizer).ids) <= context

    if fits(text):
        return [text]
    pieces = []
    for sentence in split_sentences(text):
        pieces += [sentence] if fits(sentence) else sentence.split(" ")
    passages: list[str] = []
    for piece in pieces:
        if passages and fits(f"{passages[-1]} {piece}"):
            passages[-1] += f" {piece}"
        else:
            passages.append(piece)
    # a single word that does not fit (a sequence of bases, say) is no text to learn from
    return [passage for passage in passages if fits(passage)]
