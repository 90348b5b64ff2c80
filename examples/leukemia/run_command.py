"""The command `run`: its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.leukemia.arguments import count, positive, rate, scale
from examples.leukemia.data import UserError
from examples.leukemia.notice import NOTICE
from examples.leukemia.pretrain import TINY_LLAMA
from examples.leukemia.run import Settings, run
from examples.leukemia.synthetic import ABSTRACTS, QUESTIONS_FILE
from llama_min import CheckpointError
from lora_lite import AdapterError
from lora_lite import CheckpointError as TrainingCheckpointError

__all__ = ["arguments", "main"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; their defaults are those of `Settings`."""
    default = Settings(TINY_LLAMA, ABSTRACTS, Path("runs/leukemia"))
    parser.add_argument("--model", type=Path, default=default.model, help="Hugging Face Llama folder")
    parser.add_argument(
        "--abstracts",
        type=Path,
        default=default.abstracts,
        help="CSV or JSON Lines with pubmed_id,title,abstract; a folder of prepare, whose sides and variants are taken; "
        "or one of fetch",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default.out,
        help="folder to make; an earlier run there is replaced whole, at the end",
    )
    parser.add_argument(
        "--gazetteer", type=Path, default=default.gazetteer, help="names, labels and topic; another cancer has its own"
    )
    parser.add_argument(
        "--glossary", type=Path, default=default.glossary, help="technical terms and how they are said plainly"
    )
    parser.add_argument(
        "--questions",
        type=Path,
        action="append",
        help="CSV: question,answer and, where an abstract answers it, pubmed_id; those without are for the test alone; "
        "may be given several times (default: those of the embedded abstracts, with these)",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=default.dtype, help="of the weights")
    parser.add_argument("--rank", type=positive, default=default.rank, help="of the adapters")
    parser.add_argument("--alpha", type=scale, default=default.alpha, help="adapters are scaled by alpha / rank")
    parser.add_argument(
        "--text-epochs", type=count, default=default.text_epochs, help="passes over the abstracts' text"
    )
    parser.add_argument("--task-epochs", type=count, default=default.task_epochs, help="passes over the tasks")
    parser.add_argument(
        "--learning-rate",
        type=rate,
        default=default.learning_rate,
        help="after the warm-up; for billions of parameters take 2e-4",
    )
    parser.add_argument("--batch-size", type=positive, default=default.batch_size, help="items in a step")
    parser.add_argument(
        "--row-tokens",
        type=positive,
        default=default.row_tokens,
        help="items are packed into rows of so many tokens; fewer need less memory, and change nothing else",
    )
    parser.add_argument(
        "--max-answers", type=positive, default=default.max_answers, help="answers written to be scored, of a task"
    )
    parser.add_argument(
        "--articles",
        type=positive,
        default=default.articles,
        help="that a question is answered from where they are retrieved; for billions of parameters take 5",
    )
    parser.add_argument("--seed", type=count, default=default.seed, help="of split, adapters and data order")


def main(options: argparse.Namespace) -> None:
    """Do all steps and print where the report lies."""
    given = {key: value for key, value in vars(options).items() if key != "command"}
    embedded = [QUESTIONS_FILE] if options.abstracts == ABSTRACTS else []
    settings = Settings(**given | {"questions": tuple(options.questions or embedded)})
    try:
        out = run(settings)
    except (CheckpointError, TrainingCheckpointError, AdapterError) as error:
        raise UserError(str(error)) from None
    print(f"{out / 'report.html'}\n{NOTICE}")
