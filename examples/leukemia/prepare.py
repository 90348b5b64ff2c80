"""Abstracts to training data: read, clean, mask, drop duplicates, annotate, normalize, split, augment; all is counted.

    OUT/articles.jsonl                    every article kept, with spans, normalized text, subtype and side
    OUT/train.jsonl, validation.jsonl, test.jsonl    the same by side, retracted ones left out; variants in train
    OUT/repeats.jsonl                     each article that was dropped since its abstract nearly repeats another's, and which
    OUT/counts.json                       what each step did, and the command

The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.leukemia.annotate import Span, annotate, subtype_of_spans
from examples.leukemia.arguments import columns, count, share
from examples.leukemia.augment import augment
from examples.leukemia.data import SPLITS, Record, UserError, as_text, read_abstracts, side_of
from examples.leukemia.duplicates import near_duplicates
from examples.leukemia.fetch import fetch_command
from examples.leukemia.files import new_folder, write_json, write_lines
from examples.leukemia.gazetteer import LEUKEMIA, Gazetteer, load_gazetteer
from examples.leukemia.identifiers import mask_record
from examples.leukemia.instructions import without_instructions_in
from examples.leukemia.normalize import normalize
from examples.leukemia.notice import NOTICE

__all__ = [
    "Prepared",
    "counts_table",
    "is_prepared",
    "prepare",
    "prepare_records",
    "read_prepared",
    "without_identifiers",
    "without_repeats",
]

MADE = {"articles.jsonl", "repeats.jsonl", "counts.json", *(f"{side}.jsonl" for side in SPLITS)}


def prepare(paths: Sequence[Path], out: Path, options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Do every step on the files together and write `out`, whole; return the counts.

    Raises:
        UserError: a file or the gazetteer cannot be used, or `out` cannot be written.
    """
    gazetteer = load_gazetteer(options.gazetteer)
    counts: dict[str, dict[str, int]] = {}
    with new_folder(out, MADE, "counts.json") as folder:
        records, counts["read"], counts["clean"] = _read(paths, options.id_column, options.subtype_column)
        records, counts["identifiers"] = without_identifiers(records)
        records, counts["instructions"] = without_instructions_in(records)
        if not records:
            raise UserError(
                f"{paths[0]}: every sentence of every abstract speaks to a model: give articles' own abstracts"
            )
        records, repeats, counts["duplicates"] = without_repeats(records)
        rows = prepare_records(records, gazetteer, options.seed, counts)
        usable = [row for row in rows if not row["retracted"]]
        sides = {side: [row for row in usable if row["side"] == side] for side in SPLITS}
        counts["split"] = {side: len(sides[side]) for side in SPLITS}
        counts["split"]["retracted: on no side"] = len(rows) - len(usable)
        made, counts["augment"] = augment(sides["train"], gazetteer, options.seed, options.rare, options.variants)
        sides["train"] += made
        write_lines(folder / "articles.jsonl", rows)
        write_lines(folder / "repeats.jsonl", repeats)
        for side in SPLITS:
            write_lines(folder / f"{side}.jsonl", sides[side])
        counts = {step: {name: number for name, number in sorted(row.items())} for step, row in counts.items()}
        commands = [*filter(None, map(fetch_command, paths)), _command(paths, options)]
        write_json(folder / "counts.json", {"topic": gazetteer.topic, "commands": commands, **counts})
    return counts


def _command(paths: Sequence[Path], options: argparse.Namespace) -> str:
    """The command line, for a report; without --out, since the same input gives the same bytes in any folder."""
    given = {name: value for name, value in vars(options).items() if name not in ("abstracts", "command", "out")}
    if options.gazetteer == LEUKEMIA:
        del given["gazetteer"]
    settings = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["python", "-m", "examples.leukemia", "prepare", *map(str, paths), *settings])


def prepare_records(
    records: Sequence[Record], gazetteer: Gazetteer, seed: int, counts: dict[str, dict[str, int]]
) -> list[dict[str, Any]]:
    """Annotate and normalize: a row an article, as it is written to articles.jsonl; counts go to their steps."""
    found: Counter[str] = Counter()
    normalized: Counter[str] = Counter()
    rows = []
    for record in tqdm(records, desc="annotating", unit="article"):
        spans = {field: annotate(getattr(record, field), gazetteer) for field in ("title", "abstract")}
        subtype = subtype_of_spans(spans.values(), gazetteer, record.subtype)
        found.update(span.type for each in spans.values() for span in each)
        found[f"subtype {subtype or 'none or several'}"] += 1
        found["subtype from the file"] += record.subtype is not None
        row = vars(record) | {"subtype": subtype, "side": side_of(record.pubmed_id, seed)}
        row["spans"] = [{"field": field, **_compact(span)} for field, each in spans.items() for span in each]
        row["normalized"] = {
            field: normalize(getattr(record, field), each, normalized) for field, each in spans.items()
        }
        rows.append(row)
    counts["annotate"], counts["normalize"] = found, normalized
    return rows


def _compact(span: Span) -> dict[str, Any]:
    return {key: value for key, value in vars(span).items() if value != "" and value is not False}


def _read(
    paths: Sequence[Path], id_column: str, subtype_column: str
) -> tuple[list[Record], dict[str, int], dict[str, int]]:
    """The records of all files, sorted by id; of an id that comes twice the first."""
    total: Counter[str] = Counter()
    cleaning: Counter[str] = Counter()
    records: dict[str, Record] = {}
    for path in paths:
        found, counts = read_abstracts(path, id_column, subtype_column, cleaning)
        total.update(counts)
        total["left out: pubmed_id came before"] += sum(record.pubmed_id in records for record in found)
        retracted = {record.pubmed_id for record in found if record.retracted}
        records = {record.pubmed_id: record for record in found} | records
        records |= {name: replace(records[name], retracted=True) for name in retracted}
    total["articles"] = len(records)
    return sorted(records.values(), key=lambda r: (len(r.pubmed_id), r.pubmed_id)), total, cleaning


def without_identifiers(records: Sequence[Record]) -> tuple[list[Record], dict[str, int]]:
    """The records with what looks like a patient's data masked, and how many articles had some."""
    kept = [mask_record(record) for record in tqdm(records, desc="masking", unit=" article", delay=1)]
    masked = sum(before != after for before, after in zip(records, kept))
    return kept, {"articles in which a patient's data was masked": masked}


def without_repeats(
    records: Sequence[Record],
) -> tuple[list[Record], list[dict[str, str]], dict[str, int]]:
    """The records less those whose abstract nearly repeats that of a lower id; retracted ones stay and count for none.

    Returns:
        The records kept; the `pubmed_id` of each that is gone with that `of` which it repeats; and how many there are.
    """
    valid = [record for record in records if not record.retracted]  # a retracted article may have been published again
    places = near_duplicates([record.abstract for record in valid])
    same = sum(valid[place].abstract == valid[first].abstract for place, first in places.items())
    repeats = [
        {"pubmed_id": valid[place].pubmed_id, "of": valid[first].pubmed_id} for place, first in sorted(places.items())
    ]
    gone = {row["pubmed_id"] for row in repeats}
    kept = [record for record in records if record.pubmed_id not in gone]
    counts = {"the same abstract": same, "nearly the same abstract": len(repeats) - same, "kept": len(kept)}
    return kept, repeats, counts


@dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote: the articles, the side of each by its id, and the variants, which are for train alone.

    Attributes:
        counts: of reading the articles again.
        steps: what each step of `prepare` counted.
        command: that made the folder.
    """

    records: list[Record]
    counts: dict[str, int]
    steps: dict[str, dict[str, int]]
    commands: list[str]
    sides: dict[str, str]
    variants: list[Record]


def is_prepared(path: Path) -> bool:
    """Whether this is a folder that `prepare` wrote."""
    return (path / "articles.jsonl").is_file()


def read_prepared(folder: Path, topic: str, cleaning: Counter[str]) -> Prepared:
    """Read the folder again; texts are cleaned again, which changes only what was edited since.

    Raises:
        UserError: a file cannot be used, it was prepared for another topic than this, an article has no side, or a variant
            is not of an article in train.
    """
    records, counts = read_abstracts(folder / "articles.jsonl", cleaning=cleaning)
    of_train, _ = read_abstracts(folder / "train.jsonl")
    sides = {as_text(row["pubmed_id"]).strip(): row.get("side") for row in _rows(folder / "articles.jsonl")}
    varied = {
        row["pubmed_id"]: row["augmented_from"] for row in _rows(folder / "train.jsonl") if "augmented_from" in row
    }
    lost = [name for name, side in sides.items() if side not in SPLITS]
    lost += [name for name, original in varied.items() if sides.get(original) != "train"]
    if lost:
        raise UserError(f"{folder}: {lost[0]} is on no side, or a variant of no article in train: prepare it again")
    commands, steps = _counted(folder / "counts.json", topic)
    variants = [record for record in of_train if record.pubmed_id in varied]
    return Prepared(records, counts, steps, commands, sides, variants)


def _counted(path: Path, topic: str) -> tuple[list[str], dict[str, dict[str, int]]]:
    """The commands that made the folder and the counts of each step, as `prepare` wrote them."""
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
        of, commands = str(steps.pop("topic")), list(map(str, steps.pop("commands")))
        counted = {step: dict(row) for step, row in steps.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold what prepare counted ({error!r}): prepare it again") from None
    if of != topic:
        raise UserError(f"{path.parent} was prepared with a gazetteer of {of}, not {topic}: give that as --gazetteer")
    return commands, counted


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that `read_abstracts` could read."""
    with path.open(encoding="utf-8-sig") as file:
        return [json.loads(line) for line in file if line.strip()]


def counts_table(counts: dict[str, dict[str, int]]) -> str:
    """The counts as lines of text, a block a step."""
    lines = []
    for step, row in counts.items():
        lines += [step, *(f"{number:10,}  {name}" for name, number in (row or {"found nothing": 0}).items())]
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("abstracts", type=Path, nargs="+", help="CSV, JSON Lines, PubMed XML, or a folder of fetch")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; an earlier one is replaced at the end")
    parser.add_argument("--gazetteer", type=Path, default=LEUKEMIA, help="the names that are looked for")
    parser.add_argument(
        "--id-column",
        type=columns,
        default="pubmed_id",
        help="column of the ids, by which the sides are drawn; of several, as in pubmed_id,doi, the first that a row fills",
    )
    parser.add_argument(
        "--subtype-column", default="subtype", help="column of labels that people gave, if there is one"
    )
    parser.add_argument("--rare", type=share, default=0.5, help="a class with less than this of the largest is rare")
    parser.add_argument("--variants", type=count, default=3, help="made of an article of a rare class, at the most")
    parser.add_argument("--seed", type=count, default=0, help="of split and variants")


def main(options: argparse.Namespace) -> None:
    """Prepare, and print what each step did."""
    missing = [path for path in options.abstracts if not path.exists()]
    if missing:
        raise UserError(f"{missing[0]} does not exist: give CSV, JSON Lines, PubMed XML, or a folder of fetch")
    counts = prepare(options.abstracts, options.out, options)
    print(counts_table(counts))
    print(f"{options.out / 'articles.jsonl'}\n{NOTICE}")
