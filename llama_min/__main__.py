"""Write text in the terminal: python -m llama_min FOLDER "prompt", or --chat for a conversation."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llama_min._interrupt import listen_again
from llama_min.checkpoint import load_llama
from llama_min.config import CheckpointError
from llama_min.generation import stream
from llama_min.model import Llama
from llama_min.tokenizer import Message, StreamDecoder, Tokenizer, load_tokenizer

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where it succeeded, 2 for a folder or prompt that cannot be used, 130 after Ctrl-C, 141 after a closed pipe."""
    options = _parser().parse_args(arguments)
    try:
        tokenizer = load_tokenizer(options.folder)
        model = load_llama(options.folder, dtype=getattr(torch, options.dtype))
        if options.chat:
            _converse(model, tokenizer, options)
        else:
            _write(model, tokenizer, tokenizer.encode(options.prompt, bos=tokenizer.bos_id is not None), options)
    except (CheckpointError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:  # whoever read the text has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails too
        return 141
    return 0


def _write(model: Llama, tokenizer: Tokenizer, ids: list[int], options: argparse.Namespace) -> str:
    """Print what follows `ids` as it comes, and return it."""
    room = model.config.max_position_embeddings - len(ids)
    if room < 1:
        raise ValueError(f"{len(ids)} tokens fill the context of {model.config.max_position_embeddings}: say less")
    tokens = stream(
        model,
        ids,
        max_new_tokens=min(options.max_new_tokens, room),
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        eos_ids=(*model.config.eos_token_ids, *tokenizer.eos_ids),
    )
    decoder = StreamDecoder(tokenizer, options.stop, continues=True)
    pieces = []
    for token in tokens:
        pieces.append(decoder.push(token))
        print(pieces[-1], end="", flush=True)
        if decoder.stopped:
            break
    pieces.append(decoder.flush())
    print(pieces[-1])
    return "".join(pieces)


def _converse(model: Llama, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    """A turn a line of input, until it ends; the whole conversation is the prompt of each answer."""
    messages: list[Message] = []
    while True:
        print("> ", end="", file=sys.stderr, flush=True)  # not on stdout: that holds the answers alone
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            messages.append({"role": "user", "content": line.strip()})
            ids, _ = tokenizer.encode_chat(messages, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": _write(model, tokenizer, ids, options)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llama_min",
        description="Write text with a Hugging Face Llama folder.",
        epilog='example: python -m llama_min examples/leukemia/data/tiny-llama "Imatinib in chronic"',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="Hugging Face Llama folder")
    parser.add_argument("prompt", nargs="?", default="", help="what to go on with")
    parser.add_argument("--chat", action="store_true", help="hold a conversation: a line a turn, end it with Ctrl-D")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="at the most, and as the context has room")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=None, help="sample among the k likeliest")
    parser.add_argument("--top-p", type=float, default=None, help="sample among the fewest that hold p of the mass")
    parser.add_argument("--min-p", type=float, default=None, help="sample among those at least p x the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 makes words come again less")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the weights")
    return parser


if __name__ == "__main__":
    listen_again()
    sys.exit(main())
