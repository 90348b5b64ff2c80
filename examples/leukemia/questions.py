"""Questions on abstracts: from files of questions and answers, else from what the annotator finds in an abstract."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.leukemia.annotate import annotate
from examples.leukemia.clean import clean
from examples.leukemia.data import Record, UserError, as_id, read_csv
from examples.leukemia.gazetteer import Gazetteer
from examples.leukemia.instructions import without_instructions
from examples.leukemia.safety import mask_identifiers

__all__ = ["Question", "questions_from_names", "read_questions"]

MOST = 2  # questions from the names of one abstract
_ASKED = {
    "drug": "Which drug does the abstract name?",
    "gene": "Which gene does the abstract name?",
    "fusion": "Which gene fusion does the abstract name?",
    "karyotype": "Which chromosome change does the abstract name?",
    "virus": "Which virus does the abstract name?",
    "phase": "Which phase does the abstract name?",
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
    """What the annotator can ask of an abstract: things of which it names just one, and lab values that it gives once.

    The answer is the preferred name, or the value in the gazetteer's unit.
    """
    named: defaultdict[str, list[str]] = defaultdict(list)
    values: defaultdict[str, list[str]] = defaultdict(list)
    for span in annotate(record.abstract, gazetteer):
        if span.type == "lab":
            values[span.name].append(f"{span.value} {span.unit}")
        else:
            named[span.type].append(span.name)
    asked = [(text, named[kind]) for kind, text in _ASKED.items()]
    asked += [(f"What {_was(name)} {name}?", answers) for name, answers in values.items()]
    return [Question(text, answers[0], record.pubmed_id) for text, answers in asked if len(set(answers)) == 1][:MOST]


def _was(name: str) -> str:
    return "were the" if name.endswith("s") and not name.endswith("ss") else "was the"


def by_article(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions that name their article, by its id."""
    found: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if question.pubmed_id:
            found[question.pubmed_id].append(question)
    return dict(found)
