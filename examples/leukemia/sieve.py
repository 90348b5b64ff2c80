"""Patterns that are tried only where they may match: to look for a word costs a hundredth of what a pattern costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

__all__ = ["NEVER", "Sieve", "folded", "words_apart"]

NEVER = re.compile(r"(?!)")
_WORD = re.compile(r"\w+|@")


class Sieve:
    """One pattern of several alternatives, less those that need a word which the text lacks: it finds the same matches.

    Args:
        parts: (words of which the text must hold one, as `folded` or `words_apart` writes it; none: always tried, or a
            pattern that it must hold; the alternative), in the order in which they are tried.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[str] | re.Pattern[str], str]], flags: int = 0) -> None:
        self.parts, self.flags = tuple(parts), flags

    def pattern(self, held: str) -> re.Pattern[str]:
        """The alternatives that may match a text, of which `held` is the folded form or the words."""
        kept = tuple(alternative for needed, alternative in self.parts if _may(needed, held))
        return _union(kept, self.flags)


def _may(needed: Sequence[str] | re.Pattern[str], held: str) -> bool:
    if isinstance(needed, re.Pattern):
        return needed.search(held) is not None
    return not needed or any(map(held.__contains__, needed))


@cache
def _union(alternatives: tuple[str, ...], flags: int) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), flags) if alternatives else NEVER


def folded(text: str) -> str:
    """`text` in small letters, those that re.IGNORECASE takes for i and s (dotted I, dotless i, long s) included."""
    return text.replace("\u0130", "i").lower().replace("\u0131", "i").replace("\u017f", "s")


def words_apart(text: str) -> str:
    """The folded words of a text and its @ signs, with one space between and around them: " dr who who @ tardis org "."""
    return " ".join(["", *_WORD.findall(folded(text)), ""])
