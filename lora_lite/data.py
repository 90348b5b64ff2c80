"""Examples from what people have: chats, prompts with completions, and plain texts, in JSONL, CSV or a list.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "completion": "..."}       what follows the prompt, written as it stands
    {"text": "..."}                              every token is learnt

Which tokens are supervised comes from the parts that they were made of, never from a search in their text.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lora_lite.trainer import Example

__all__ = ["ChatTokenizer", "DataError", "encode_row", "encode_rows", "read_rows"]

FORMS = "messages, or prompt and completion, or text"


class ChatTokenizer(Protocol):
    """What is asked of a tokenizer; `llama_min.load_tokenizer` gives one."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]: ...
    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[int]]: ...


class DataError(ValueError):
    """Rows that cannot be used; the message names them, a file's by line."""


def read_rows(path: str | Path) -> list[tuple[str, Any]]:
    """The rows of a .jsonl or .csv file, each with its name, "FILE:LINE".

    Raises:
        DataError: the file cannot be read, holds no row, or has lines that are no JSON.
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise DataError(f"{path}: the file's name must end in .jsonl or .csv")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line} is no UTF-8 ({error.reason}): save the file as UTF-8") from None
    rows, bad = _of_csv(path, text) if path.suffix.lower() == ".csv" else _of_jsonl(path, text)
    _raise(bad)
    if not rows:
        raise DataError(f"{path} holds no row")
    return rows


def _of_jsonl(path: Path, text: str) -> tuple[list[tuple[str, Any]], list[str]]:
    """Named rows, and what is wrong with lines that are none."""
    rows: list[tuple[str, Any]] = []
    bad = []
    for number, line in enumerate(io.StringIO(text), 1):
        try:
            rows += [(f"{path}:{number}", json.loads(line))] if line.strip() else []
        except (ValueError, RecursionError) as error:
            bad.append(f"{path}:{number} is no JSON ({error})")
    return rows, bad


def _of_csv(path: Path, text: str) -> tuple[list[tuple[str, Any]], list[str]]:
    """Named rows, and what is wrong with lines that are none."""
    rows: list[tuple[str, Any]] = []
    bad = []
    usual = csv.field_size_limit(2**31 - 1)  # a text may be longer than the 128 KB that the module takes
    # a carriage return within a cell ends no line, but those of files from old Macs have nothing else
    table = csv.DictReader(io.StringIO(text, newline="\n" if "\n" in text else ""), strict=True)
    try:
        if repeated := [name for name, times in Counter(table.fieldnames or ()).items() if times > 1]:
            raise DataError(f"{path}:1 has the column {repeated[0]!r} more than once: keep one")
        for row in table:
            name = f"{path}:{table.line_num - _breaks(row)}"  # where it begins
            if None in row:
                bad.append(f"{name} has more cells than the header: quote a text that has commas")
            rows.append((name, row))
    except csv.Error as error:
        bad.append(f"{path}:{table.line_num + 1} is no CSV ({error})")  # the last whole row ends a line before
    finally:
        csv.field_size_limit(usual)
    return rows, bad


def _breaks(row: Mapping[str | None, Any]) -> int:
    """How many line breaks lie within the cells of a row of CSV."""
    cells = [cell for key, value in row.items() for cell in (value if key is None else [value]) if cell]
    return sum(cell.count("\n") for cell in cells)


def encode_rows(rows: Iterable[tuple[str, Any] | Mapping[str, Any]], tokenizer: ChatTokenizer) -> list[Example]:
    """An example of each row: of a file's, which have names, or of a plain list of rows, which are named "row 1" and on.

    Raises:
        DataError: rows are none of the three forms; all of them are named, with the reason.
    """
    examples, bad = [], []
    for number, given in enumerate(rows, 1):
        name, row = given if isinstance(given, tuple) and len(given) == 2 else (f"row {number}", given)
        try:
            examples.append(encode_row(row, tokenizer, name))
        except ValueError as error:
            bad.append(f"{name}: {error}")
    _raise(bad)
    return examples


def encode_row(row: Any, tokenizer: ChatTokenizer, name: str = "") -> Example:
    """Ids and mask of one row: supervised are what the assistant says with its end of turn, a completion with the end
    of its text, or a whole text.

    A prompt and its completion are tokenized apart, so that no token lies in both: a space between them belongs to one
    of the two. There is exactly one BOS, at the beginning, where the tokenizer has one.

    Raises:
        ValueError: the row is none of the three forms, or nothing in it would be learnt.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"a row is a JSON object or a line of CSV with {FORMS}")
    forms = [form for form in (("messages",), ("prompt", "completion"), ("text",)) if set(form) <= set(row)]
    if len(forms) != 1:
        raise ValueError(f"a row has {FORMS}; this one has {', '.join(map(str, row)) or 'nothing'}")
    if forms[0] == ("messages",):
        ids, mask = tokenizer.encode_chat(_messages(row["messages"]))
        if not any(on and token in tokenizer.eos_ids for token, on in zip(ids, mask)):
            raise ValueError(
                "no end of a turn is supervised, a model would never learn to stop: check the chat template"
            )
    else:
        parts = [row[field] for field in forms[0]]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"{' and '.join(forms[0])} must be text")
        prompt, completion = parts if len(parts) == 2 else ("", parts[0])
        if not completion:
            raise ValueError(f"{forms[0][-1]} is empty")
        ids = tokenizer.encode(prompt, bos=tokenizer.bos_id is not None)
        told = tokenizer.encode(completion, eos=bool(tokenizer.eos_ids))
        mask = [0] * len(ids) + [1] * len(told)
        ids = ids + told
    if tokenizer.bos_id is not None and (ids.count(tokenizer.bos_id) != 1 or ids[0] != tokenizer.bos_id):
        raise ValueError(
            f"there must be one BOS, first, and there are {ids.count(tokenizer.bos_id)}: check the tokenizer"
        )
    return Example(ids, mask, name)


def _messages(found: Any) -> list[dict[str, str]]:
    """Messages as chat templates take them; in CSV they are written as JSON."""
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise ValueError(f"messages is text that is no JSON ({error})") from None
    whole = isinstance(found, list) and all(
        isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content")) for turn in found
    )
    if not whole or not found:
        raise ValueError('messages must be a list of {"role": "...", "content": "..."}')
    if not any(turn["role"] == "assistant" for turn in found):
        raise ValueError("the assistant says nothing in messages: there is nothing to learn")
    return list(found)


def _raise(bad: Sequence[str]) -> None:
    """One error for all that is wrong."""
    if bad:
        more = f"\n... and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DataError("\n".join(bad[:10]) + more)
