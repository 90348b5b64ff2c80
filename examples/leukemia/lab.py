"""Lab reports to read, a line at a time: values drawn from reference ranges, and whether they are low, normal or high.

They do not come from articles: every data set gets as many as it has articles, and their labels follow
from the table.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from examples.leukemia.data import UserError

__all__ = ["LAB_INSTRUCTION", "LAB_RANGES", "Range", "lab_line", "lab_reports", "load_ranges", "read_flag"]

LAB_RANGES = Path(__file__).parent / "data" / "lab_ranges.json"
LAB_INSTRUCTION = "Read this line of a lab report: is the value low, normal or high?"


@dataclass(frozen=True)
class Range:
    """The reference range of an analyte, limits included, and how many decimals its values are written with."""

    id: str
    name: str
    unit: str
    low: float
    high: float
    decimals: int

    def flag(self, value: float) -> str:
        """low, normal or high."""
        return "low" if value < self.low else "high" if value > self.high else "normal"


@cache
def load_ranges(path: Path = LAB_RANGES) -> tuple[Range, ...]:
    """Read a file of reference ranges.

    Raises:
        UserError: it cannot be read or is not one.
    """
    try:
        return tuple(Range(**row) for row in json.loads(path.read_text(encoding="utf-8"))["ranges"])
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a file of ranges") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no ranges ({type(error).__name__}: {error}): see data/lab_ranges.json") from None


def lab_reports(ranges: tuple[Range, ...], count: int, seed: int) -> list[tuple[str, str, str]]:
    """`count` different lines of reports as (id, line, flag), such as "hemoglobin 9.8 g/dL (12.0-16.0)" and "low".

    The id is a hash of the line, so that the side that is drawn by it is the line's own: no line is both learnt and
    tested. About a third each is low, normal and high; the more of the lines that the ranges allow (the embedded ones
    allow 13,796) are taken, the more are high. If a thousand draws in a row bring none that is new, it is fewer lines.
    """
    rng = random.Random(seed)
    reports: dict[str, tuple[str, str, str]] = {}
    repeats = 0
    while len(reports) < count and repeats < 1000:
        line, flag = lab_line(rng, rng.choice(ranges))
        name = f"LAB-{hashlib.sha256(line.encode()).hexdigest()[:12]}"
        repeats = repeats + 1 if name in reports else 0
        reports[name] = (name, line, flag)
    return list(reports.values())


def lab_line(rng: random.Random, analyte: Range) -> tuple[str, str]:
    """A line with a value of an analyte and its range, and the value's flag."""
    value = _value(rng, analyte)
    low, high = (f"{limit:.{analyte.decimals}f}" for limit in (analyte.low, analyte.high))
    return f"{analyte.name} {value} {analyte.unit} ({low}-{high})", analyte.flag(float(value))


def _value(rng: random.Random, analyte: Range) -> str:
    """A value as written: within the range, or up to a factor of four outside of it."""
    low, high = rng.choice(
        ((analyte.low / 4, analyte.low), (analyte.low, analyte.high), (analyte.high, 4 * analyte.high))
    )
    return f"{rng.uniform(low, high):.{analyte.decimals}f}"


def read_flag(text: str) -> str:
    """The first of low, normal and high in an answer, whatever else it says; empty where there is none."""
    found = re.search(r"\b(?:low|normal|high)\b", text.lower())
    return found.group() if found else ""
