"""Abstracts in, clean and split records out. No article is ever on two sides of the split."""

from __future__ import annotations

import csv
import hashlib
import html
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SPLITS", "Record", "UserError", "clean", "read_abstracts", "split"]

SPLITS = ("train", "validation", "test")
_COLUMNS = ("pubmed_id", "title", "abstract")


class UserError(Exception):
    """Bad input: the message is the one line that the user sees; it names the thing and the way out."""


@dataclass(frozen=True)
class Record:
    """One article; the title may be empty, `subtype` is what the file's own column says, if it has one."""

    pubmed_id: str
    title: str
    abstract: str
    subtype: str | None = None


def read_abstracts(path: Path) -> tuple[list[Record], dict[str, int]]:
    """Read and clean a CSV with the columns pubmed_id, title and abstract; a column `subtype` is read too.

    A title may be empty, an id or an abstract may not.

    Returns:
        The records in the order of the file, and counts of what was read and left out.

    Raises:
        UserError: the file cannot be read, lacks a column or holds no usable row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 131,072 would refuse a long field
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 CSV") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}): save it as UTF-8 CSV") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a CSV with {', '.join(_COLUMNS)}") from None
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        found = ", ".join(columns) or "nothing"
        raise UserError(f"{path} lacks the column {', '.join(missing)} (its first line has: {found}): add it")

    records: dict[str, Record] = {}
    counts = {"rows": len(rows)}
    counts |= dict.fromkeys(
        ("left out: no pubmed_id or no abstract", "left out: pubmed_id came before", "without a title"), 0
    )
    for row in rows:
        pubmed_id, title, abstract = (clean(row[column] or "") for column in _COLUMNS)
        if not pubmed_id or not abstract:
            counts["left out: no pubmed_id or no abstract"] += 1
        elif pubmed_id in records:
            counts["left out: pubmed_id came before"] += 1
        else:
            counts["without a title"] += not title
            records[pubmed_id] = Record(pubmed_id, title, abstract, clean(row.get("subtype") or "") or None)
    if not records:
        raise UserError(f"{path} holds no row with a pubmed_id and an abstract: nothing to train on")
    return list(records.values()), counts


def clean(text: str) -> str:
    """Unicode NFKC, HTML entities and tags resolved, copyright lines dropped, white space single."""
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = re.sub(r"</?(?:i|b|u|sub|sup|em|strong|p|br)\s*/?>", "", text, flags=re.IGNORECASE)
    text = re.sub(r"(?:Copyright\b|\(c\)|©)[^.]{0,120}\d{4}[^.]*\.?\s*$", "", text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", text).strip()


def split(records: Sequence[Record], seed: int = 0) -> dict[str, list[Record]]:
    """Part the records into train (70%), validation (10%) and test (20%) by a hash of seed and pubmed_id.

    The side of an article depends on nothing but its id, so it stays where it is when others come or go. Sets of fewer
    than ten articles may leave a side empty; then the side borrows nothing and the caller decides.
    """
    parts: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record in records:
        digest = hashlib.sha256(f"{seed}:{record.pubmed_id}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        parts["train" if place < 0.7 else "validation" if place < 0.8 else "test"].append(record)
    return parts
