"""A searchable index of abstracts in one SQLite file: FTS5 and BM25, updated in place, safe for several writers.

Beside title and abstract it holds the preferred names of what each article mentions, so that a question about Gleevec
finds an article about imatinib. BM25: Robertson and Zaragoza 2009; SQLite's k1 = 1.2, b = 0.75. With `--dense` it also
holds a vector an article, written in the same transaction, and the two rankings are fused (dense.py).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from examples.leukemia.annotate import annotate, subtype_of
from examples.leukemia.arguments import columns
from examples.leukemia.data import Record, UserError, read_abstracts
from examples.leukemia.dense import Embedder, SentenceTransformerEmbedder, nearest, reciprocal_rank_fusion
from examples.leukemia.gazetteer import LEUKEMIA, Gazetteer, load_gazetteer, words_of
from examples.leukemia.identifiers import mask_record
from examples.leukemia.notice import NOTICE
from examples.leukemia.spelling import search_form

__all__ = ["Hit", "Index", "query_units", "readable"]

WEIGHTS = (2.0, 1.0, 0.5)  # of title, abstract and names in BM25
PLAIN = 0.5  # weight in coverage of a word that names no entity: "Gleevec" says what is asked more than "help" does
PRIOR = 10  # articles of other matters, reckoned in: else what all articles of a small index speak of weighs nothing
DEPTH = 100  # places of each ranking that are fused
BATCH = 200  # articles of one transaction: what a kill can lose of a call, and the next call adds
Units = dict[tuple[str, ...], float]
_MARK = 0x6C65756B  # "leuk", in the file's header: this file is one of ours
_VERSION = 2
_TOKENIZE = "porter unicode61 remove_diacritics 2"
_SCHEMA = f"""
CREATE TABLE articles (
    id INTEGER PRIMARY KEY, pubmed_id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, abstract TEXT NOT NULL,
    names TEXT NOT NULL, year INTEGER, journal TEXT NOT NULL, subtype TEXT, labelled INTEGER NOT NULL,
    retracted INTEGER NOT NULL, digest TEXT NOT NULL
);
CREATE INDEX articles_by_subtype ON articles (subtype, year);
CREATE VIRTUAL TABLE search USING fts5 (
    title, abstract, names, content='articles', content_rowid='id', tokenize='{_TOKENIZE}'
);
CREATE TRIGGER article_added AFTER INSERT ON articles BEGIN
    INSERT INTO search (rowid, title, abstract, names) VALUES (new.id, new.title, new.abstract, new.names);
END;
CREATE TRIGGER article_changed AFTER UPDATE ON articles BEGIN
    INSERT INTO search (search, rowid, title, abstract, names)
        VALUES ('delete', old.id, old.title, old.abstract, old.names);
    INSERT INTO search (rowid, title, abstract, names) VALUES (new.id, new.title, new.abstract, new.names);
END;
"""
_DENSE_SCHEMA = """
CREATE TABLE IF NOT EXISTS dense (model TEXT NOT NULL, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS embeddings (id INTEGER PRIMARY KEY REFERENCES articles (id), vector BLOB NOT NULL);
CREATE TRIGGER IF NOT EXISTS text_changed AFTER UPDATE OF title, abstract ON articles
    WHEN old.title <> new.title OR old.abstract <> new.abstract BEGIN
    DELETE FROM embeddings WHERE id = old.id;
END;
"""
_UPSERT = """
INSERT INTO articles (pubmed_id, title, abstract, names, year, journal, subtype, labelled, retracted, digest)
VALUES (:pubmed_id, :title, :abstract, :names, :year, :journal, :subtype, :labelled, :retracted, :digest)
ON CONFLICT (pubmed_id) DO UPDATE SET title = excluded.title, abstract = excluded.abstract, names = excluded.names,
    year = excluded.year, journal = excluded.journal, subtype = excluded.subtype, labelled = excluded.labelled,
    retracted = excluded.retracted, digest = excluded.digest
"""
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\S+",
        """a about affected an and any are as at be because been being between both but by can could did do does during
        each for from had has have having how i if in into is it its many may me might more most much my of on or our
        out over people person related should so some such than that the their them then there these they this those to
        under up was we were what when where which while who whom whose why will with would you your
        describe effective explain fraction give given good help helps know percentage proportion share tell use used
        work works""",
    )
)


@dataclass(frozen=True)
class Hit:
    """An article that was found.

    Attributes:
        score: BM25, or where vectors take part the sum of reciprocal ranks; higher is better, within one query only.
        coverage: the share, from 0 to 1, of what was asked that the article mentions, rare words counting more.
        missing: what was asked, in the question's words, and the article does not mention.
    """

    pubmed_id: str
    title: str
    abstract: str
    year: int | None
    journal: str
    subtype: str | None
    retracted: bool
    score: float
    coverage: float
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Where:
    """A condition on articles `a`, and the values in it."""

    sql: str = "1"
    values: tuple[int | str, ...] = ()


class Index:
    """The index in the file `path`; made where it is not there yet.

    Args:
        gazetteer: None takes leukemia's.
        dense: makes vectors of the articles that are added, and of questions.

    Raises:
        UserError: the file is something else, of another gazetteer's topic, cannot be opened, stays locked by another
            writer, or holds vectors of another model, or none where it is not to be made.
    """

    def __init__(
        self, path: Path, gazetteer: Gazetteer | None = None, create: bool = False, dense: Embedder | None = None
    ) -> None:
        self.path = path
        self.gazetteer = gazetteer or load_gazetteer()
        self.dense = dense
        if not create and not path.is_file():
            raise UserError(f"{path} does not exist: make it with python -m examples.leukemia index ABSTRACTS")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            self._open(create)
            if dense is not None:
                self._open_dense(dense, create)
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{path} cannot be used as an index ({error}): give another file") from None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM articles").fetchone()[0])

    def _open(self, create: bool) -> None:
        """Set the file up, or see that it is one of ours."""
        with self._writing() if create else nullcontext():
            mark = self._pragma("application_id")
            empty = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            new = create and mark == 0 and empty
            if not new and (mark, self._pragma("user_version")) != (_MARK, _VERSION):
                earlier = " or of an earlier version" if mark == _MARK else ""
                raise sqlite3.DatabaseError(f"it is another kind of database{earlier}")
            self._open_topic(create)
            if new:
                for statement in _statements(_SCHEMA):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA application_id = {_MARK}")
                self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def _open_topic(self, create: bool) -> None:
        """Let the file be of the gazetteer's topic, or see that it is."""
        topic = self.gazetteer.topic
        if create:
            self._database.execute("CREATE TABLE IF NOT EXISTS about (topic TEXT NOT NULL)")
        named = self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone()
        held = self._database.execute("SELECT topic FROM about").fetchone() if named else None
        if held is None and create:
            self._database.execute("INSERT INTO about VALUES (?)", (topic,))
        elif held is not None and held["topic"] != topic:
            raise UserError(
                f"{self.path} was made with a gazetteer of {held['topic']}, not {topic}: give that as --gazetteer, or "
                "another --index"
            )

    def _open_dense(self, dense: Embedder, create: bool) -> None:
        """Let the file hold vectors, or see that those it holds are of this model."""
        with self._writing() if create else nullcontext():
            held = self._held()
            if held is None and create:
                for statement in _statements(_DENSE_SCHEMA):
                    self._database.execute(statement)
                self._database.execute("INSERT INTO dense VALUES (?, ?)", (dense.model, dense.name))
            elif held is None:
                raise UserError(f"{self.path} holds no vectors: make them with index ABSTRACTS --dense {dense.name}")
            elif held["model"] != dense.model:
                raise UserError(
                    f"{self.path} holds vectors of another model than {dense.name}: give the one that was at "
                    f"{held['name']}, or another --index"
                )

    def _held(self) -> Any:
        """Which model the vectors in the file are of; None where it holds none."""
        named = self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'dense'").fetchone()
        return self._database.execute("SELECT model, name FROM dense").fetchone() if named else None

    def without_vector(self) -> int:
        """How many articles have no vector, of a file that holds vectors: those that came without `dense`; else 0."""
        if self._held() is None:
            return 0
        query = "SELECT count(*) FROM articles WHERE id NOT IN (SELECT id FROM embeddings)"
        return int(self._database.execute(query).fetchone()[0])

    def _pragma(self, name: str) -> Any:
        return self._database.execute(f"PRAGMA {name}").fetchone()[0]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it is in the file, or nothing. A second writer waits for the first."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a signal may come right behind COMMIT
                self._database.execute("ROLLBACK")
            raise

    def add(self, records: Sequence[Record], progress: bool = False) -> Counter[str]:
        """Add articles, or bring those that are there up to date; what has not changed is not written.

        Returns:
            How many were added, changed and unchanged; of how many a patient's data was masked; and with `dense` how many got a vector.
        """
        counts = Counter(dict.fromkeys(("added", "changed", "unchanged"), 0))
        with tqdm(total=len(records), desc="indexing", unit="article", disable=not progress) as bar:
            for start in range(0, len(records), BATCH):
                batch = records[start : start + BATCH]
                masked = [mask_record(record) for record in batch]
                rows = [self._row(record) for record in masked]
                try:
                    counts.update(self._write(rows))
                    counts.update("masked" for before, after in zip(batch, masked) if before != after)
                except sqlite3.Error as error:
                    raise UserError(f"{self.path} cannot be written ({error}): try again") from None
                bar.update(len(rows))
        return counts

    def _write(self, rows: Sequence[dict[str, Any]]) -> Counter[str]:
        """A batch in one transaction. Vectors are made before it, so that no other writer has to wait for a model."""
        vectors: dict[str, bytes] = {}
        while True:
            lacking = [row for row in rows if row["pubmed_id"] not in vectors and self._lacks_vector(row)]
            if self.dense is not None and lacking:
                made = self.dense.documents([f"{row['title']}\n{row['abstract']}" for row in lacking])
                vectors |= {row["pubmed_id"]: vector.astype("<f4").tobytes() for row, vector in zip(lacking, made)}
            with self._writing():
                # another writer may have changed an article in between, and its vector with it
                if all(row["pubmed_id"] in vectors or not self._lacks_vector(row) for row in rows):
                    counts = Counter(self._upsert(row) for row in rows)
                    counts.update("embedded" for row in rows if self._put_vector(row["pubmed_id"], vectors))
                    return counts

    def _lacks_vector(self, row: dict[str, Any]) -> bool:
        """Whether a vector of this very text is wanted and not in the file."""
        query = (
            "SELECT 1 FROM articles JOIN embeddings USING (id) "
            "WHERE pubmed_id = :pubmed_id AND title = :title AND abstract = :abstract"
        )
        return self.dense is not None and self._database.execute(query, row).fetchone() is None

    def _put_vector(self, pubmed_id: str, vectors: dict[str, bytes]) -> bool:
        if pubmed_id in vectors:
            query = "INSERT OR REPLACE INTO embeddings SELECT id, ? FROM articles WHERE pubmed_id = ?"
            self._database.execute(query, (vectors[pubmed_id], pubmed_id))
        return pubmed_id in vectors

    def _upsert(self, row: dict[str, Any]) -> str:
        """Put a row where its article is; a subtype that people gave, year, journal and a retraction outlast a file without them."""
        query = "SELECT subtype, labelled, year, journal, retracted, digest FROM articles WHERE pubmed_id = ?"
        found = self._database.execute(query, (row["pubmed_id"],)).fetchone()
        if found:
            kept = {"subtype": found["subtype"], "labelled": 1} if found["labelled"] and not row["labelled"] else {}
            kept |= {name: found[name] for name in ("year", "journal") if not row[name]}
            row = row | kept | {"retracted": max(row["retracted"], found["retracted"])}
        row = row | {"digest": hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()}
        if found and found["digest"] == row["digest"]:
            return "unchanged"
        self._database.execute(_UPSERT, row)
        return "changed" if found else "added"

    def _row(self, record: Record) -> dict[str, Any]:
        return {
            "pubmed_id": record.pubmed_id,
            "title": record.title,
            "abstract": record.abstract,
            "names": "; ".join(_names(f"{record.title}\n{record.abstract}", self.gazetteer)),
            "year": record.year,
            "journal": record.journal,
            "subtype": subtype_of(record.title, record.abstract, self.gazetteer, record.subtype),
            "labelled": int(record.subtype is not None),
            "retracted": int(record.retracted),
        }

    def search(
        self,
        question: str,
        count: int = 10,
        since: int | None = None,
        until: int | None = None,
        subtype: str | None = None,
        retracted: bool = False,
    ) -> list[Hit]:
        """The articles that fit `question` best: by BM25, or with `dense` by the fusion of BM25 and vectors.

        Args:
            since, until: years, both included; an article without a year fits neither.
            subtype: a label of the gazetteer.
            retracted: whether to find retracted articles too.
        """
        units = query_units(question, self.gazetteer)
        if not units:
            return []
        where = _where(since, until, subtype, retracted)
        if self.dense is None:
            scores = self._by_words(units, where, count)
        else:
            rankings = [list(self._by_words(units, where, DEPTH)), self.by_meaning(question, where, DEPTH)]
            scores = reciprocal_rank_fusion(rankings)
        best = sorted(scores, key=lambda pubmed_id: (-scores[pubmed_id], pubmed_id))[:count]
        return self._hits(best, scores, units)

    def left_by(self, since: int | None = None, until: int | None = None, subtype: str | None = None) -> str:
        """In words, how many articles the filters of `search` leave, and how many they could not judge; "" without any."""
        given = [("--since", since), ("--until", until), ("--subtype", subtype)]
        filters = " ".join(f"{name} {value}" for name, value in given if value is not None)
        if not filters:
            return ""
        left, valid = self._count(_where(since, until, subtype)), _where()
        text = f"{filters} leaves {left:,} of {self._count(valid):,} articles"
        unknown = 0 if since is None and until is None else self._count(_Where(f"{valid.sql} AND a.year IS NULL"))
        return f"{text}; {unknown:,} of unknown year." if unknown else f"{text}."

    def _count(self, where: _Where) -> int:
        query = f"SELECT count(*) FROM articles a WHERE {where.sql}"
        return int(self._database.execute(query, where.values).fetchone()[0])

    def _by_words(self, units: Units, where: _Where, count: int) -> dict[str, float]:
        """{PubMed id: BM25}, the best first."""
        weights = ", ".join(map(str, WEIGHTS))
        rows = self._database.execute(
            f"SELECT a.pubmed_id, -bm25(search, {weights}) AS score FROM search JOIN articles a ON a.id = search.rowid "
            f"WHERE search MATCH ? AND {where.sql} ORDER BY score DESC, a.pubmed_id LIMIT ?",
            (" OR ".join(map(_any_of, units)), *where.values, count),
        )
        return {row["pubmed_id"]: row["score"] for row in rows}

    def by_meaning(self, question: str, where: _Where = _Where(), count: int = 10) -> list[str]:
        """The PubMed ids whose vectors are nearest to the question's; needs `dense`."""
        assert self.dense is not None
        rows = self._database.execute(
            f"SELECT a.pubmed_id, e.vector FROM embeddings e JOIN articles a USING (id) WHERE {where.sql} ORDER BY 1",
            where.values,
        ).fetchall()
        query = self.dense.query(question)
        vectors = np.frombuffer(b"".join(row["vector"] for row in rows), "<f4").reshape(-1, len(query))
        return nearest(query, vectors, [row["pubmed_id"] for row in rows], count)

    def _hits(self, pubmed_ids: Sequence[str], scores: dict[str, float], units: Units) -> list[Hit]:
        places = ",".join("?" * len(pubmed_ids))
        found = self._database.execute(f"SELECT * FROM articles WHERE pubmed_id IN ({places})", tuple(pubmed_ids))
        rows = {row["pubmed_id"]: row for row in found}
        weight, held = self._weights(units), self._held_units(units, [row["id"] for row in rows.values()])
        whole = sum(weight.values())
        hits = []
        for row in (rows[one] for one in pubmed_ids):
            missing = [unit for unit in units if unit not in held[row["id"]]]
            lacked = sum(weight[unit] for unit in missing)
            hits.append(_hit(row, scores[row["pubmed_id"]], 1 - lacked / whole, tuple(unit[0] for unit in missing)))
        return hits

    def _weights(self, units: Units) -> dict[tuple[str, ...], float]:
        """Of each unit the inverse document frequency (Robertson and Zaragoza 2009, eq. 3.3), times how much it counts."""
        weights, total = {}, len(self) + PRIOR
        for unit, factor in units.items():
            query = "SELECT count(*) FROM search WHERE search MATCH ?"
            holds = self._database.execute(query, (_any_of(unit),)).fetchone()[0]
            weights[unit] = factor * math.log(1 + (total - holds + 0.5) / (holds + 0.5))
        return weights

    def weigh_sentences(self, question: str, sentences: Sequence[str], title: str = "") -> dict[str, float]:
        """How much of a question each sentence holds, by the index's own stems, names and inverse document frequencies.

        What the title holds counts half: it tells what the article is about, and not which sentence answers.
        """
        units = dict.fromkeys(query_units(question, self.gazetteer), 1.0)
        weights, held = self._weights(units), dict.fromkeys(sentences, 0.0)
        rows = [(one, "; ".join(_names(one, self.gazetteer))) for one in dict.fromkeys((title, *held))]
        with closing(sqlite3.connect(":memory:")) as database:
            database.execute(f"CREATE VIRTUAL TABLE search USING fts5 (text, names, tokenize='{_TOKENIZE}')")
            database.executemany("INSERT INTO search VALUES (?, ?)", rows)
            for unit, weight in weights.items():
                found = database.execute("SELECT text FROM search WHERE search MATCH ?", (_any_of(unit),)).fetchall()
                texts = {text for (text,) in found}
                for text in texts & held.keys():
                    held[text] += weight / 2 if title in texts else weight
        return held

    def _held_units(self, units: Units, ids: Sequence[int]) -> dict[int, set[tuple[str, ...]]]:
        """Which of the units each article holds."""
        held: dict[int, set[tuple[str, ...]]] = {one: set() for one in ids}
        query = f"SELECT rowid FROM search WHERE search MATCH ? AND rowid IN ({','.join(map(str, ids))})"
        for unit in units:
            for row in self._database.execute(query, (_any_of(unit),)):
                held[row["rowid"]].add(unit)
        return held


def _where(
    since: int | None = None, until: int | None = None, subtype: str | None = None, retracted: bool = False
) -> _Where:
    """The condition of the filters that are given."""
    given = [("a.year >= ?", since), ("a.year <= ?", until), ("a.subtype = ?", subtype)]
    conditions = [condition for condition, value in given if value is not None]
    values = tuple(value for _, value in given if value is not None)
    return _Where(" AND ".join([*conditions, "1" if retracted else "a.retracted = 0"]), values)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong in reading an index, as the one line that the user sees: it is damaged, or stays locked."""
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read ({error}): make it anew with index ABSTRACTS") from None


def query_units(question: str, gazetteer: Gazetteer) -> Units:
    """What a question asks for: the names of each thing that it names, and each other word; and how much each counts."""
    units: Units = {}
    place = 0
    for span in annotate(question, gazetteer):
        units |= dict.fromkeys(_word_units(question[place : span.start]), PLAIN)
        # FTS5 knows no capitals: ALL would be found in "all patients", and the articles' own names tell where it is meant
        written = () if re.fullmatch("[A-Z]+", span.text) else (span.text,)
        units[tuple(dict.fromkeys((*written, span.name)))] = 1.0
        place = span.end
    return units | dict.fromkeys(_word_units(question[place:]), PLAIN)


def _word_units(text: str) -> list[tuple[str, ...]]:
    """The words of a text that ask for something, each with its other forms; a letter or digit with the word beside it."""
    words, units = [word for word, _ in words_of(text)], []
    for place, word in enumerate(words):
        asked = word.lower() not in _FUNCTION_WORDS or (word == "A" and place > 0)  # hepatitis A
        if asked and re.fullmatch(r"\w+", word):
            alone = len(word) > 1 or not word.isascii()
            units.append((word.lower(), search_form(word)) if alone else _with_neighbours(words, place))
    return [tuple(dict.fromkeys(unit)) for unit in units if unit]


def _with_neighbours(words: Sequence[str], place: int) -> tuple[str, ...]:
    """A word of one character with the one before and the one behind: hepatitis B, T cells; of a number first 5 years."""
    pairs = [words[start : start + 2] for start in (place - 1, place) if 0 <= start < len(words) - 1]
    small = _FUNCTION_WORDS - {"a"}
    kept = [" ".join(pair) for pair in pairs if all(re.fullmatch(r"\w+", w) and w.lower() not in small for w in pair)]
    return tuple(reversed(kept) if words[place].isdigit() else kept)


def _names(text: str, gazetteer: Gazetteer) -> tuple[str, ...]:
    """The preferred names of what a text mentions, and the other forms of its words, by which they are found, too."""
    names = {span.name for span in annotate(text, gazetteer)}
    forms = {form for word in set(re.findall(r"\w+", text)) if (form := search_form(word)) != word.lower()}
    return (*sorted(names), *sorted(forms))


def _any_of(unit: tuple[str, ...]) -> str:
    """An FTS5 query for any name of a unit, each as a string: nothing in it is an operator."""
    return " OR ".join('"' + name.replace('"', '""') + '"' for name in unit)


def _hit(row: sqlite3.Row, score: float, coverage: float, missing: tuple[str, ...]) -> Hit:
    return Hit(
        row["pubmed_id"],
        row["title"],
        row["abstract"],
        row["year"],
        row["journal"],
        row["subtype"],
        bool(row["retracted"]),
        score,
        coverage,
        missing,
    )


def _statements(script: str) -> list[str]:
    """The statements of a script; a trigger's own end with "; END"."""
    return [part.strip() for part in re.split(r";\n(?=CREATE|$)", script) if part.strip()]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("abstracts", type=Path, nargs="+", help="CSV, JSON Lines, PubMed XML, a folder of fetch")
    parser.add_argument(
        "--index", type=Path, default=Path("data/index.sqlite"), help="file to make or to bring up to date"
    )
    parser.add_argument("--dense", type=Path, metavar="FOLDER", help="sentence-transformers folder: also keep vectors")
    parser.add_argument("--gazetteer", type=Path, default=LEUKEMIA, help="the names that are looked for")
    parser.add_argument(
        "--id-column",
        type=columns,
        default="pubmed_id",
        help="column of the ids; of several, as in pubmed_id,doi, the first that a row fills",
    )
    parser.add_argument(
        "--subtype-column", default="subtype", help="column of labels that people gave, if there is one"
    )


def main(options: argparse.Namespace) -> None:
    """Add the articles of all files, and print what changed."""
    started = time.perf_counter()
    files = [read_abstracts(path, options.id_column, options.subtype_column)[0] for path in options.abstracts]
    dense = SentenceTransformerEmbedder(options.dense) if options.dense else None
    index = Index(options.index, load_gazetteer(options.gazetteer), create=True, dense=dense)
    total: Counter[str] = Counter()
    for records in files:
        total.update(index.add(records, progress=True))
    for name, number in total.items():
        print(f"{number:8,}  {name}")
    with readable(options.index):
        lacking, held = index.without_vector(), len(index)
    if lacking:
        print(f"{lacking:8,}  articles without a vector: give --dense, with all files, to add it")
    print(f"{held:8,}  articles in {options.index}, {time.perf_counter() - started:.1f} s\n{NOTICE}")
    index.close()
