"""Questions on abstracts: from files of questions and answers, else from what the annotator finds in an abstract."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.leukemia.annotate import Span, annotate
from examples.leukemia.clean import clean
from examples.leukemia.data import Record, UserError, as_id, read_csv
from examples.leukemia.gazetteer import Gazetteer
from examples.leukemia.identifiers import mask_identifiers
from examples.leukemia.instructions import without_instructions
from examples.leukemia.reading import split_sentences

__all__ = ["BLANK", "Question", "by_article", "questions_from_names", "read_questions"]

MOST = 2  # questions from the names of one abstract
FEWEST, LONGEST = 6, 60  # words of a sentence that is asked with a name left out
BLANK = "____"
_ASKED = {
    "drug": "Which drug is left out",
    "gene": "Which gene is left out",
    "fusion": "Which gene fusion is left out",
    "karyotype": "Which chromosome change is left out",
    "virus": "Which virus is left out",
    "phase": "Which phase is left out",
}


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        pubmed_id: of the article that answers it; empty where the file names none.
        context: the text that answers it, where the file holds one.
        masked: whether a patient's data in it was masked.
        silenced: how many sentences of the context spoke to a model and were left out.
    """

    question: str
    answer: str
    pubmed_id: str = ""
    context: str = ""
    masked: bool = False
    silenced: int = 0


def read_questions(paths: Iterable[Path]) -> list[Question]:
    """The questions of CSV files with the columns question and answer and, if they have them, pubmed_id and context.

    What looks like a patient's data in their texts is masked, and what speaks to a model is left out of the context.

    Raises:
        UserError: a file cannot be read, lacks a column or holds no question with an answer.
    """
    questions: list[Question] = []
    for path in paths:
        rows = [_masked(row) for row in read_csv(path, ("question", "answer"))]
        rows = [row for row in rows if row.question and row.answer]
        if not rows:
            raise UserError(f"{path} holds no question with an answer: give a CSV with question,answer")
        questions += rows
    return questions


def _masked(row: dict[str, str]) -> Question:
    """A row's question, its texts clean and without a patient's data."""
    texts = [clean(row.get(name) or "") for name in ("question", "answer", "context")]
    question, answer, context = map(mask_identifiers, texts)
    masked = [question, answer, context] != texts
    context, silenced = without_instructions(context)
    return Question(question, answer, as_id(row.get("pubmed_id") or ""), context, masked, silenced)


def questions_from_names(record: Record, gazetteer: Gazetteer) -> list[Question]:
    """What the annotator can ask of an abstract: which name a sentence of it has left out, and lab values given once.

    A sentence with a gap (Hermann et al. 2015, section 2.2) has one answer, as it is written there, whatever else the
    abstract names and the gazetteer does not know. Of each kind of thing the first is asked for, a sentence once. The
    answer to a lab value is in the gazetteer's unit.
    """
    values: defaultdict[str, list[str]] = defaultdict(list)
    spans, gaps, used = annotate(record.abstract, gazetteer), dict[str, Question](), set[int]()
    place = 0
    for sentence in split_sentences(record.abstract):
        end = place + len(sentence)
        for span in spans:
            if place <= span.start < end and span.type in _ASKED.keys() - gaps.keys() and place not in used:
                gap = _with_a_gap(record.abstract, place, end, [other for other in spans if other.id == span.id])
                if BLANK in gap and FEWEST <= len(gap.split()) <= LONGEST:
                    used.add(place)
                    gaps[span.type] = Question(f'{_ASKED[span.type]} in "{gap}"?', span.text, record.pubmed_id)
        place = end + 1
    for span in spans:
        if span.type == "lab":
            values[span.name].append(f"{span.value} {span.unit}")
    asked = [gaps[kind] for kind in _ASKED if kind in gaps]
    asked += [
        Question(f"What {_was(name)} {name}?", given[0], record.pubmed_id)
        for name, given in values.items()
        if len(set(given)) == 1
    ]
    return asked[:MOST]


def _with_a_gap(text: str, start: int, end: int, spans: Sequence[Span]) -> str:
    """text[start:end] with a blank in the place of each of the spans."""
    parts, place = [], start
    for span in spans:
        if start <= span.start and span.end <= end:
            parts += [text[place : span.start], BLANK]
            place = span.end
    return "".join([*parts, text[place:end]])


def _was(name: str) -> str:
    return "were the" if name.endswith("s") and not name.endswith("ss") else "was the"


def by_article(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions that name their article, by its id."""
    found: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if question.pubmed_id:
            found[question.pubmed_id].append(question)
    return dict(found)
