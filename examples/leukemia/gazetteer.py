"""The names that the annotator knows, from a data file: another cancer is another file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from examples.leukemia.data import UserError
from examples.leukemia.spelling import americanize

__all__ = ["LEUKEMIA", "Entity", "Gazetteer", "load_gazetteer", "words_of"]

LEUKEMIA = Path(__file__).parent / "data" / "gazetteer.json"
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Entity:
    """A thing with an id in a public system, its preferred name and its other names.

    Attributes:
        label: of a subtype: the class that it belongs to.
        unit: of an analyte: the unit to which its values are brought.
        molar_mass: of an analyte: grams per mole, by which moles are brought to that unit; 0 where there are none.
        needs, unless: lower-case words of which one must, or none may, stand in the text.
        beside, not_beside: how words right beside the name begin that overrule these (BCR transcripts), or that tell that
            something else is meant (BCR signaling); of the two the latter counts.
    """

    id: str
    type: str
    name: str
    names: tuple[str, ...] = ()
    label: str = ""
    unit: str = ""
    molar_mass: float = 0.0
    needs: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    not_beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gazetteer:
    """Entities, and the class labels of their subtypes.

    Attributes:
        labels: {label: the label that it is a part of, or None}; a narrower label counts where a text names both.
        topic: the word that stands in for a subtype's name where it is blanked out ("leukemia").
        spellings: {part of a word: pattern of the ways in which it is written}, for what is blanked ("uke" in leucaemia).
    """

    topic: str
    labels: dict[str, str | None]
    entities: tuple[Entity, ...]
    spellings: dict[str, str]

    def label_of(self, given: str) -> str:
        """The label that is written so, whatever its capitals; else what is given."""
        return next((label for label in self.labels if label.casefold() == given.casefold()), given)

    @cached_property
    def by_id(self) -> dict[str, Entity]:
        """Each entity by its id."""
        return {entity.id: entity for entity in self.entities}

    @cached_property
    def conditional(self) -> tuple[Entity, ...]:
        """Those whose names count only beside, or only without, some words."""
        return tuple(entity for entity in self.entities if entity.needs or entity.unless)

    @cached_property
    def unconditional(self) -> Gazetteer:
        """This one with every name counting in whatever context, in small letters too, but for the word "all"."""
        return replace(self, entities=tuple(map(_unconditional, self.entities)))

    @cached_property
    def abbreviation(self) -> re.Pattern[str]:
        """Subtypes' abbreviations with a letter before or more behind: cALL, AAML0531, ALL_IDB."""
        names = {name for entity in self.entities if entity.type == "subtype" for name in (entity.name, *entity.names)}
        short = sorted(name for name in names if re.fullmatch(r"[A-Z]{3,5}", name))
        return re.compile(
            rf"\b(?:[a-z]{{1,2}}|A(?=A))?(?:{'|'.join(short) or '(?!)'})[sS]?(?:\d\w{{0,9}}|_\w{{1,20}})?\b"
        )

    @cached_property
    def lineage(self) -> re.Pattern[str]:
        """What tells a subtype before the topic ("acute myelogenous and" leukemia) or behind it (leukemia", myeloid, acute").

        "acute leukemia" tells none.
        """
        names = [name for entity in self.entities if entity.type == "subtype" for name in (entity.name, *entity.names)]
        words = {word.lower() for name in names if self.topic in name for word, _ in words_of(name)} - {"chronic"}
        telling = sorted(word for word in words if re.fullmatch(r"\w{5,}(?:ic|id|ous|ar|al)", word))
        kind = rf"(?:acute|chronic|pro|non)?(?:{'|'.join(map(self._spelt, telling)) or '(?!)'})"
        more = r"(?:acute|chronic|juvenile|[TB]-cell|[TB]|cell)"
        part = r"(?:\s?[,/]\s?(?:and\s|or\s)?|\s?\([\w ]{1,10}\)\s|[\s-](?:and\s|or\s)?)"
        topic = self._spelt(self.topic[:-1])
        before = rf"\b(?:{more}{part}){{0,4}}{kind}{part}(?:(?:{more}|{kind}){part}){{0,6}}(?={topic})"
        behind = rf"(?<={self.topic}),?\s(?:(?:acute|chronic),?\s)?{kind}(?:,?\s(?:acute|chronic))?(?=[,.;)]|$)"
        return re.compile(f"{before}|{behind}", re.IGNORECASE)

    def _spelt(self, word: str) -> str:
        """A pattern of the ways in which a word is written."""
        for part, pattern in self.spellings.items():
            word = word.replace(part, pattern)
        return word

    @cached_property
    def trie(self) -> dict[str, Any]:
        """Names as paths of words: trie["acute"]["myeloid"]["leukemia"][""] lists (entity, name)."""
        trie: dict[str, Any] = {}
        for entity in self.entities:
            for name in dict.fromkeys((entity.name, *entity.names)):
                _end_of(trie, name).append((entity, name))
        for entity in self.entities:
            for name in self._composed(entity):
                if not (names := _end_of(trie, name)):  # what another entity is called stays its
                    names.append((entity, name))
        return trie

    def _composed(self, entity: Entity) -> Iterator[str]:
        """Names with other names of the diseases, phases and chromosomes in them: Ph chromosome-positive ALL."""
        if entity.type not in ("subtype", "disease"):
            return
        names = list(dict.fromkeys((entity.name, *entity.names)))
        for part in self._parts:
            holds = re.compile(rf"(?<![\w-]){re.escape(part.name)}(?!\w)")
            made = [
                holds.sub(lambda _, other=other: other, name)
                for name in names
                if holds.search(name)
                for other in part.names
            ]
            names += [name for name in made if name not in names]
        yield from names

    @cached_property
    def _parts(self) -> list[Entity]:
        return [
            each for each in self.entities if each.names and each.type in ("subtype", "disease", "karyotype", "phase")
        ]


def _end_of(trie: dict[str, Any], name: str) -> list[tuple[Entity, str]]:
    """The entities and names at the end of a name's path, which is made where there is none."""
    for word, _ in words_of(americanize(name.lower())):
        trie = trie.setdefault(word, {})
    return trie.setdefault("", [])


def _unconditional(entity: Entity) -> Entity:
    small = (name.lower() for name in (entity.name, *entity.names) if name != "ALL")
    return replace(entity, needs=(), unless=(), names=tuple(dict.fromkeys((*entity.names, *small))))


@cache
def load_gazetteer(path: Path = LEUKEMIA) -> Gazetteer:
    """Read a gazetteer file.

    Raises:
        UserError: it cannot be read or is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entities = tuple(
            Entity(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k not in ("family", "kind")})
            for row in data["entities"]
        )
        labels = {label: entry.get("part_of") for label, entry in data["labels"].items()}
        gazetteer = Gazetteer(data["topic"], labels, entities, data.get("spellings", {}))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a gazetteer file") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no gazetteer ({type(error).__name__}: {error}): see data/gazetteer.json") from None
    twice = len(entities) - len(gazetteer.by_id)
    unknown = sorted({entity.label for entity in entities if entity.type == "subtype"} - set(labels))
    if twice or unknown:
        raise UserError(f"{path}: {twice} ids come twice, labels not listed: {', '.join(unknown) or 'none'}: mend it")
    return gazetteer


def words_of(text: str) -> list[tuple[str, int]]:
    """(word or mark, where it starts) of a text, hyphens left out: "T-cell" and "T cell" are the same words."""
    return [(word, match.start()) for match in _WORD.finditer(text) if (word := match[0]) != "-"]
