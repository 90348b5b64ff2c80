"""The command line: python -m examples.leukemia run --help."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.leukemia.data import UserError
from examples.leukemia.pretrain import TINY_LLAMA
from examples.leukemia.report import NOTICE
from examples.leukemia.run import Settings, run
from examples.leukemia.synthetic import ABSTRACTS
from llama_min import CheckpointError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 where it succeeded, 2 where the input cannot be used, 130 after Ctrl-C, 143 after SIGTERM."""
    options = _parser().parse_args(arguments)
    settings = Settings(**{key: value for key, value in vars(options).items() if key != "command"})
    try:
        out = run(settings)
    except (UserError, CheckpointError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or settings.out}: {error.strerror or error}; nothing was kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("stopped; nothing was kept", file=sys.stderr)
        return 143 if stop.args else 130
    print(f"{out / 'report.html'}\n{NOTICE}")
    return 0


def _terminated(signum: int, frame: object) -> None:
    """SIGTERM cleans up as Ctrl-C does."""
    raise KeyboardInterrupt(signum)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.leukemia", description="Fine-tune, quantize and measure a Llama on leukemia abstracts."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "run",
        help="abstracts to report, all steps",
        description=f"Abstracts to report, all steps. {NOTICE}",
        epilog="example: python -m examples.leukemia run --model ~/Llama-3.2-1B --abstracts mine.csv --out runs/mine",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Settings(TINY_LLAMA, ABSTRACTS, Path("runs/leukemia"))
    command.add_argument("--model", type=Path, default=default.model, help="Hugging Face Llama folder")
    command.add_argument("--abstracts", type=Path, default=default.abstracts, help="CSV: pubmed_id,title,abstract")
    command.add_argument(
        "--out",
        type=Path,
        default=default.out,
        help="folder to make; an earlier run there is replaced whole, at the end",
    )
    command.add_argument("--dtype", choices=("float32", "bfloat16"), default=default.dtype, help="of the weights")
    command.add_argument("--rank", type=_positive, default=default.rank, help="of the adapters")
    command.add_argument("--alpha", type=_rate, default=default.alpha, help="adapters are scaled by alpha / rank")
    command.add_argument(
        "--text-epochs", type=_count, default=default.text_epochs, help="passes over the abstracts' text"
    )
    command.add_argument("--task-epochs", type=_count, default=default.task_epochs, help="passes over the tasks")
    command.add_argument(
        "--learning-rate",
        type=_rate,
        default=default.learning_rate,
        help="after the warm-up; for billions of parameters take 2e-4",
    )
    command.add_argument("--batch-size", type=_positive, default=default.batch_size, help="items in a step")
    command.add_argument(
        "--micro-batch-size", type=_positive, default=default.micro_batch_size, help="items in a forward pass"
    )
    command.add_argument("--max-titles", type=_count, default=default.max_titles, help="titles written to be scored")
    command.add_argument("--seed", type=int, default=default.seed, help="of split, adapters and data order")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
