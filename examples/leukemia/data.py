"""Abstracts in: records of CSV, JSON Lines or PubMed's XML, cleaned and split. No article is on two sides of the split."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.leukemia.clean import clean

__all__ = [
    "SPLITS",
    "Record",
    "UserError",
    "as_id",
    "as_text",
    "clean",
    "read_abstracts",
    "read_csv",
    "side_of",
    "split",
    "year_of",
]

SPLITS = ("train", "validation", "test")
NO_TITLE = ("[Not Available].", "[Not Available]")  # what PubMed writes where an article has none
NO_ABSTRACT = re.compile(
    r"(?:no abstract(?: (?:is )?available)?|abstract not available|n/?a|nan|none)?\.?", re.IGNORECASE
)
_COLUMNS = ("pubmed_id", "title", "abstract")
_RETRACTED = re.compile(r"\W{0,3}(?:retracted|withdrawn)(?:\sarticle)?\s?[:\])]", re.IGNORECASE)  # "RETRACTED: a title"


class UserError(Exception):
    """Bad input: the message is the one line that the user sees; it names the thing and the way out."""


@dataclass(frozen=True)
class Record:
    """One article.

    Attributes:
        title: may be empty.
        subtype: what the file's own column says, if it has one.
        year, journal: None and empty where the source does not say.
        retracted: whether the source, or the title, marks the article as retracted.
        sections: (label, text) of each part of an abstract that came in labelled parts.
    """

    pubmed_id: str
    title: str
    abstract: str
    subtype: str | None = None
    year: int | None = None
    journal: str = ""
    retracted: bool = False
    sections: tuple[tuple[str, str], ...] = ()


def read_abstracts(
    path: Path, id_column: str = "pubmed_id", subtype_column: str = "subtype", cleaning: Counter[str] | None = None
) -> tuple[list[Record], dict[str, int]]:
    """Read and clean a CSV or JSON Lines file with pubmed_id, title and abstract, or PubMed's XML (a file or a folder).

    A title may be empty, an id or an abstract may not. Columns `subtype`, `year`, `journal` and `retracted` are read
    too where they are there.

    Args:
        id_column, subtype_column: what these are called in the file; of several names for the id, parted by commas, each
            row takes the first that it fills.
        cleaning: gets how many texts each cleaning step changed.

    Returns:
        The records in the order of the file, and counts of what was read and left out.

    Raises:
        UserError: the file cannot be read, lacks a column or holds no usable row.
    """
    records: dict[str, Record] = {}
    counts = dict.fromkeys(
        ("rows", "left out: no pubmed_id or no abstract", "left out: pubmed_id came before", "without a title"), 0
    )
    for raw in tqdm(_rows(path, id_column, subtype_column), desc="reading", unit=" article", delay=1):
        counts["rows"] += 1
        try:
            record = _cleaned(raw, cleaning)
        except UserError as error:
            raise UserError(f"{path}, row {counts['rows']}: {error}") from None
        if not record.pubmed_id or not record.abstract:
            counts["left out: no pubmed_id or no abstract"] += 1
        elif record.pubmed_id in records:
            counts["left out: pubmed_id came before"] += 1
            if record.retracted:  # an article that was fetched again may have been retracted in between
                records[record.pubmed_id] = replace(records[record.pubmed_id], retracted=True)
        else:
            counts["without a title"] += not record.title
            records[record.pubmed_id] = record
    if not records:
        raise UserError(
            f"{path} holds no row with a {id_column} and an abstract: where the ids stand in another column, name it to "
            "prepare or index with --id-column"
        )
    return list(records.values()), counts


def _cleaned(raw: Record, counts: Counter[str] | None) -> Record:
    """The record with clean texts; the abstract of a labelled one is made of its clean sections."""
    sections = tuple((label, text) for label, part in raw.sections if (text := clean(part, counts)))
    abstract = "" if NO_ABSTRACT.fullmatch(raw.abstract.strip()) else clean(raw.abstract, None if sections else counts)
    title = "" if raw.title.strip() in NO_TITLE else clean(raw.title, counts)
    return replace(
        raw,
        pubmed_id=as_id(raw.pubmed_id),
        title=re.sub(r"^\[(.*)\]\.?$", r"\1.", title),  # PubMed's brackets around a translation
        abstract=" ".join(f"{label}: {text}" if label else text for label, text in sections) or abstract,
        retracted=raw.retracted or bool(_RETRACTED.match(raw.title)) or "article has been retracted." in raw.abstract,
        sections=sections,
    )


def _rows(path: Path, id_column: str, subtype_column: str) -> Iterator[Record]:
    """The rows as they are, from whichever kind of file this is."""
    if path.is_dir() or path.name.endswith((".xml", ".xml.gz")):
        from examples.leukemia.pubmed import read_pubmed_xml

        return read_pubmed_xml(path)
    read = _jsonl if path.suffix in (".jsonl", ".ndjson") else read_csv
    return _from_fields(read(path, (id_column, *_COLUMNS[1:])), id_column, subtype_column)


def read_csv(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, each {column: text}.

    Raises:
        UserError: it cannot be read, its first line lacks one of `needed` ("a,b" is a or b) or names a column twice,
            or a row has more or fewer fields than that line: a comma or a quotation mark in it has moved the texts.
    """
    begin = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 131,072 would refuse a long field
            reader = csv.reader(file, strict=True)
            columns = next(reader, [])
            _check_columns(path, columns, needed)
            begin = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(columns):
                    raise UserError(
                        f"{path}, line {begin}: has {len(row)} fields, the first line {len(columns)}: put quotation marks "
                        "around a text with commas"
                    )
                if row:  # an empty line is none
                    yield dict(zip(columns, row))
                begin = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8 CSV") from None
    except csv.Error as error:
        raise UserError(
            f"{path}, the row from line {begin}: is not CSV ({error}): close its quotation marks, double those inside a text"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a CSV with {', '.join(needed)}") from None


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name.replace(",", " or ") for name in needed if not set(name.split(",")) & set(columns)]:
        found = ", ".join(columns) or "nothing"
        ids = ", or name that of the ids to prepare or index with --id-column" if missing == ["pubmed_id"] else ""
        raise UserError(f"{path} lacks the column {', '.join(missing)} (its first line has: {found}): add it{ids}")
    if twice := [column for column, times in Counter(columns).items() if column and times > 1]:
        raise UserError(f"{path} has the column {', '.join(twice)} more than once: rename or remove one")


def _jsonl(path: Path, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line, parse_constant=_refuse_constant) if line.strip() else None
                if row is not None and not (isinstance(row, dict) and all(_is_plain(row, key) for key in needed)):
                    raise UserError(f"{path}, line {number}: is no object with {', '.join(needed)}: mend it")
                if row is not None:
                    yield row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # no JSON, a number of 5,000 digits, brackets 100,000 deep
        raise UserError(f"{path}, line {number}: is not JSON ({getattr(error, 'msg', error)}): mend it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give JSON Lines with {', '.join(needed)}") from None


def _refuse_constant(name: str) -> None:
    """NaN is no JSON; read as a number, it would become the id or the title "nan"."""
    raise ValueError(f"it has {name}, where JSON has null")


def _is_plain(row: dict[str, Any], needed: str) -> bool:
    """Whether the field, or one of several names, is there and a text, a number or null; an object or a list is no title."""
    values = [row[name] for name in needed.split(",") if name in row]
    return bool(values) and not any(isinstance(value, (bool, dict, list)) for value in values)


def _from_fields(rows: Iterable[dict[str, Any]], id_column: str, subtype_column: str) -> Iterator[Record]:
    for row in rows:
        sections = row.get("sections")
        yield Record(
            pubmed_id=next(filter(str.strip, (as_text(row.get(name)) for name in id_column.split(","))), ""),
            title=as_text(row.get("title")),
            abstract=as_text(row.get("abstract")),
            subtype=clean(as_text(row.get(subtype_column))) or None,
            year=year_of(str(row.get("year") or "")),
            journal=as_text(row.get("journal")),
            retracted=str(row.get("retracted") or "").strip().lower() in ("true", "1", "1.0", "yes", "y", "retracted"),
            sections=tuple(
                (as_text(part[0]), as_text(part[1]))
                for part in (sections if isinstance(sections, list) else ())
                if isinstance(part, list) and len(part) == 2
            ),
        )


def year_of(date: str) -> int | None:
    """The first year from 1700 to 2099 in a date: 2012 of "Mar-Apr 2012" and of "20120301"; None where there is none."""
    found = re.search(r"(?<!\d)((?:1[789]|20)\d\d)(?:(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))?(?!\d)", date, re.ASCII)
    return int(found[1]) if found else None


def as_text(value: object) -> str:
    """`value` as text that files and databases take: half of a surrogate pair becomes a question mark."""
    return ("" if value is None else str(value)).encode("utf-8", "replace").decode()


def as_id(text: str) -> str:
    """An id without spaces around it, and without the ".0" that a spreadsheet puts behind a number.

    Raises:
        UserError: a spreadsheet has rounded it (1.23E+07): the digits are lost, and many ids would become one.
    """
    if re.fullmatch(r"-?\d(?:[.,]\d+[eE]\+?|[eE]\+)\d{1,3}", text.strip()):
        raise UserError(
            f"the id {text.strip()!r} has lost its last digits in a spreadsheet: take the original file, and have that column as text"
        )
    return re.sub(r"^(\d+)\.0$", r"\1", text.strip())


def split(records: Sequence[Record], seed: int = 0) -> dict[str, list[Record]]:
    """Part the records into train (70%), validation (10%) and test (20%) by a hash of seed and pubmed_id.

    Sets of fewer than ten articles may leave a side empty; then the side borrows nothing and the caller decides.
    """
    parts: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record in records:
        parts[side_of(record.pubmed_id, seed)].append(record)
    return parts


def side_of(pubmed_id: str, seed: int = 0) -> str:
    """The side of an article: it depends on nothing but its id and the seed, and stays when others come or go."""
    digest = hashlib.sha256(f"{seed}:{pubmed_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if place < 0.7 else "validation" if place < 0.8 else "test"
