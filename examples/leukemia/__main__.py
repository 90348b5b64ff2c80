"""The command line: python -m examples.leukemia COMMAND --help."""

from __future__ import annotations

import signal

HEEDS_CTRL_C = __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if HEEDS_CTRL_C:  # a stop while the rest is imported ends the process in silence, not with a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from traceback import walk_stack
from types import FrameType
from typing import NoReturn

from examples.leukemia.data import UserError
from examples.leukemia.notice import NOTICE

_IMPORTS = "<frozen importlib._bootstrap>"  # the file of the functions that import, as Python names it


@dataclass(frozen=True)
class Command:
    """A step: the module that has its `arguments(parser)` and `main(options)`, and what a stop leaves."""

    module: str
    help: str
    example: str
    stopped: str


COMMANDS = {
    "run": Command(
        "run_command",
        "abstracts to report, all steps",
        "run --model ~/Llama-3.2-1B --abstracts mine.csv --out runs/mine",
        "the same command goes on from its last checkpoint",
    ),
    "fetch": Command(
        "fetch",
        "get abstracts from PubMed by a query",
        "fetch 'leukemia[mh] AND 2024[dp]' --email you@example.org --out data/pubmed",
        "the same command goes on from here",
    ),
    "prepare": Command(
        "prepare",
        "clean, annotate, normalize, split and augment abstracts",
        "prepare data/pubmed mine.csv --out data/prepared",
        "nothing was kept",
    ),
    "index": Command(
        "index",
        "make abstracts searchable, or bring an index up to date",
        "index data/prepared/articles.jsonl --index data/index.sqlite",
        "what was indexed stays, and the same command adds the rest",
    ),
    "ask": Command(
        "ask",
        "answer a question from the indexed articles, with citations",
        "ask 'Does imatinib prolong survival in chronic myeloid leukemia?' --since 2000",
        "nothing was changed",
    ),
    "rate": Command(
        "rate",
        "let people rate pairs of answers, blinded, in a local page",
        "rate pairs.jsonl --raters anna,ben --ratings data/ratings.sqlite",
        "every rating is kept; --report prints them",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 where it succeeded, 2 where the input cannot be used, 130 after Ctrl-C, 143 after SIGTERM.

    141 where nobody reads what it prints any more, as behind `| head -1`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    stopped = COMMANDS[name].stopped if name in COMMANDS else "nothing was changed"
    try:
        try:
            options = _parser(arguments).parse_args(arguments)
            importlib.import_module(f"examples.leukemia.{COMMANDS[options.command].module}").main(options)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
            if _asked:
                raise KeyboardInterrupt(_end_of_stop())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says at its end that it cannot flush
        return 141
    except (UserError, FloatingPointError) as error:
        return _refused(str(error))
    except OSError as error:
        return _refused(f"{error.filename or name}: {error.strerror or error}; {stopped}")
    except KeyboardInterrupt as stop:
        print(f"stopped; {stopped}", file=sys.stderr)
        return _code(stop)
    return 0


def _refused(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


_held: list[int] = []  # the stop that came while a module was imported, until it can be raised
_asked: list[int] = []  # the stop that was asked for: what C++ makes of its exception is no other error


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGINT or SIGTERM: raised at once, but after an import, since PyTorch's C++ aborts where it meets an exception."""
    if _held:  # asked again: the import takes long
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _asked[:] = [number]
    if hasattr(signal, "setitimer") and any(each.f_code.co_filename == _IMPORTS for each, _ in walk_stack(frame)):
        _later(number)
    else:
        raise KeyboardInterrupt(number)


def _later(number: int) -> None:
    _held[:] = [number]
    signal.signal(signal.SIGALRM, lambda _, frame: _stop(_held.pop(), frame) if _held else None)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def _end_of_stop() -> int:
    """The signal of a stop, which is not raised again."""
    if _held:
        _held.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _asked.pop()


def _ask_again(lost: sys.UnraisableHookArgs) -> None:
    """A stop that came where Python can raise nothing, as in a callback of its imports, comes again a little later."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        _later(_code(lost.exc_value) - 128)
    else:
        sys.__unraisablehook__(lost)


def _code(stop: BaseException) -> int:
    """The exit code of a stop, as a shell reports its signal; Python's own KeyboardInterrupt names none."""
    return 128 + int((*stop.args, signal.SIGINT)[0])


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line, and not in the ten of its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """All commands with one line each; only the one that is called is imported for its options."""
    parser = _Parser(
        prog="python -m examples.leukemia",
        description=f"From PubMed abstracts to a fine-tuned, quantized and measured Llama. {NOTICE}",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}. {NOTICE}",
            epilog=f"example: python -m examples.leukemia {command.example}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name in arguments[:1]:
            importlib.import_module(f"examples.leukemia.{command.module}").arguments(subparser)
    return parser


def _from_the_shell() -> int:
    """`main`, with both signals as exceptions while it runs, and in silence before and after."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack β and ≥; stderr is so from the start
    try:
        if hasattr(signal, "setitimer"):  # Windows has none
            sys.unraisablehook = _ask_again
        signal.signal(signal.SIGTERM, _stop)
        if HEEDS_CTRL_C:
            signal.signal(signal.SIGINT, _stop)
        code = main()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if HEEDS_CTRL_C:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt as stop:
        return _code(stop)
    return code


if __name__ == "__main__":
    sys.exit(_from_the_shell())
