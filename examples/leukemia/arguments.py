"""Kinds of command-line arguments; each refuses what it cannot take in one line."""

from __future__ import annotations

import argparse
import math

__all__ = ["columns", "count", "positive", "rate", "scale", "share", "year"]

MOST = 2**31 - 1  # what a database and a tensor's size hold

LARGEST_SCALE = 10_000


def columns(text: str) -> str:
    """Names of columns parted by commas, without spaces around them."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} names no column: give one, or several as in pubmed_id,doi")
    return ",".join(names)


def positive(text: str) -> int:
    """A whole number of at least 1, and one that fits 32 bits."""
    if not _is_whole(text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST:,}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 0, and one that fits 32 bits."""
    if not _is_whole(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MOST:,}")
    return int(text)


def rate(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def scale(text: str) -> float:
    """A number above 0, and one by which float32 can be multiplied without overflow."""
    value = _number(text)
    if not 0 < value <= LARGEST_SCALE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, and at most {LARGEST_SCALE:,}")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def year(text: str) -> int:
    """A year of four digits: with one more or less, a filter finds nothing or everything."""
    if not (text.isascii() and text.isdecimal() and len(text) == 4 and text[0] != "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is no year of four digits, such as 2020")
    return int(text)


def _is_whole(text: str) -> bool:
    return text.isdecimal() and len(text) < 12 and int(text) <= MOST


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
