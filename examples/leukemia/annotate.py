"""Find the leukemia subtypes that a text names, and blank them out."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["SUBTYPES", "blank_subtypes", "find_subtypes", "subtype_of"]

_GAZETTEER = Path(__file__).parent / "data" / "subtypes.json"


@cache
def _gazetteer() -> tuple[dict[str, Any], re.Pattern[str], dict[str, str]]:
    """The gazetteer, one pattern that finds every name in it, and the subtype of each name in lower case."""
    subtypes = json.loads(_GAZETTEER.read_text(encoding="utf-8"))["subtypes"]
    owner = {name.lower(): subtype for subtype, entry in subtypes.items() for name in entry["names"]}
    names = sorted((name for entry in subtypes.values() for name in entry["names"]), key=len, reverse=True)
    # "ALL" is a subtype, "all" a word: names with capitals must be met as written, the rest in any case and plural
    parts = [re.escape(n) if n != n.lower() else f"(?i:{re.escape(n)}s?)" for n in names]
    return subtypes, re.compile(rf"(?<![\w-])(?:{'|'.join(parts)})(?![\w])"), owner


def _labels() -> tuple[str, ...]:
    return tuple(_gazetteer()[0])


SUBTYPES = _labels()


def find_subtypes(text: str) -> set[str]:
    """The subtypes that `text` names; one that another found one is part of does not count (APL, not AML)."""
    subtypes, pattern, owner = _gazetteer()
    found = {_owner(match.group(), owner) for match in pattern.finditer(text)}
    return found - {subtypes[name].get("part_of") for name in found}


def subtype_of(title: str, abstract: str) -> str | None:
    """The one subtype that an article is about: that of its title, else of its abstract; None where it is not one."""
    for text in (title, abstract):
        found = find_subtypes(text)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def blank_subtypes(text: str) -> str:
    """`text` with each name of a subtype replaced by "leukemia", so that a classifier cannot copy its answer."""
    _, pattern, _ = _gazetteer()
    return re.sub(r"leukemia \(leukemia\)", "leukemia", pattern.sub("leukemia", text))


def _owner(name: str, owner: dict[str, str]) -> str:
    name = name.lower()
    return owner[name] if name in owner else owner[name.removesuffix("s")]
