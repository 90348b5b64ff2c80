"""Two or more people rate pairs of answers without knowing which system wrote which, in a page on this machine.

Each pair is shown to each rater in an order of its own. Every click is stored at once, so a stop loses nothing; the page
goes on where the rater left. Agreement is Krippendorff's alpha for ordinal ratings (Krippendorff 2011, Computing
Krippendorff's Alpha-Reliability). The five dimensions are those of QUEST (Tam et al. 2024, npj Digital Medicine 7).
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from examples.leukemia.arguments import count
from examples.leukemia.data import UserError, as_text
from examples.leukemia.identifiers import mask_identifiers
from examples.leukemia.notice import NOTICE

__all__ = ["DIMENSIONS", "Pair", "Ratings", "krippendorff_alpha", "make_server", "read_pairs"]

DIMENSIONS = {
    "information quality": "Is it correct, complete and to the point?",
    "reasoning": "Does it follow from the sources and from itself?",
    "expression": "Is it clear and well put?",
    "safety": "Is it free of what could harm a patient?",
    "trust": "Would you rely on it?",
}
VALUES = range(1, 6)
LONGEST = 10_000  # bytes of a rating
DRAINED = 1_000_000  # bytes of something else that are still read, so that its sender hears what is wrong
PATIENCE = 30.0  # seconds for what was begun to be sent


@dataclass(frozen=True)
class Pair:
    """A question and what two systems answered: {system: text}."""

    id: str
    question: str
    answers: dict[str, str]

    def order(self, rater: str) -> list[str]:
        """The systems in the order in which this rater sees them, the same every time."""
        digest = hashlib.sha256(f"{rater}\n{self.id}".encode()).digest()
        return sorted(self.answers, reverse=bool(digest[0] % 2))


def read_pairs(path: Path) -> list[Pair]:
    """Read JSON Lines of {"id": ..., "question": ..., "answers": {system: text, system: text}}; patients' data is masked.

    Raises:
        UserError: the file cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give JSON Lines of pairs") from None
    pairs: dict[str, Pair] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not all(isinstance(text, str) for text in (row["question"], *row["answers"].values())):
                raise TypeError
            answers = {as_text(system): mask_identifiers(as_text(text)) for system, text in row["answers"].items()}
            pair = Pair(as_text(row["id"]), mask_identifiers(as_text(row["question"])), answers)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path}, line {number}: is no object with "id", "question", "answers": mend it') from None
        if len(pair.answers) != 2 or pair.id in pairs:
            raise UserError(f"{path}, line {number}: needs two answers and an id of its own: mend it")
        pairs[pair.id] = pair
    if not pairs:
        raise UserError(f"{path} holds no pair: nothing to rate")
    return list(pairs.values())


class Ratings:
    """The ratings in a SQLite file, each one there as soon as `put` returns.

    Raises:
        UserError: the file is something else, or holds ratings of other pairs.
    """

    def __init__(self, path: Path, pairs: Sequence[Pair]) -> None:
        self.path, self.pairs = path, {pair.id: pair for pair in pairs}
        rows = sorted((pair.id, pair.question, sorted(pair.answers.items())) for pair in pairs)
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as database, database:
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if tables - {"ratings", "rated"}:
                    raise sqlite3.DatabaseError("it is another kind of database")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS ratings (rater TEXT, item TEXT, system TEXT, dimension TEXT, "
                    "value INTEGER NOT NULL, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, "
                    "PRIMARY KEY (rater, item, system, dimension))"
                )
                database.execute("CREATE TABLE IF NOT EXISTS rated (pairs TEXT NOT NULL)")
                known = database.execute("SELECT pairs FROM rated").fetchone()
                if known is None:
                    database.execute("INSERT INTO rated VALUES (?)", (digest,))
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{path} cannot hold ratings ({error}): give another --ratings") from None
        if known is not None and known[0] != digest:
            raise UserError(f"{path} holds ratings of other pairs: give another --ratings")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

    def put(self, rater: str, item: str, place: int, dimension: str, value: int) -> None:
        """Store what a rater says of the answer that they see as number `place` (0 or 1); a later word replaces it.

        Raises:
            ValueError: there is no such item, place, dimension or value.
        """
        if type(place) is not int or type(value) is not int:  # True and 3.0 are equal to whole numbers
            raise ValueError(f"place {place!r} and value {value!r} must be whole numbers")
        if not rater or item not in self.pairs or place not in (0, 1) or dimension not in DIMENSIONS:
            raise ValueError("no such rater, item, place or dimension")
        if value not in VALUES:
            raise ValueError(f"no such value: {value}")
        row = (rater, item, self.pairs[item].order(rater)[place], dimension, value)
        with closing(self._connect()) as database, database:
            database.execute(
                "INSERT INTO ratings (rater, item, system, dimension, value) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET value = excluded.value, at = CURRENT_TIMESTAMP",
                row,
            )

    def all(self) -> list[tuple[str, str, str, str, int]]:
        """(rater, item, system, dimension, value) of every rating."""
        with closing(self._connect()) as database:
            return database.execute("SELECT rater, item, system, dimension, value FROM ratings").fetchall()

    def of(self, rater: str, item: str) -> dict[tuple[int, str], int]:
        """What a rater has said of an item: {(place, dimension): value}."""
        order = self.pairs[item].order(rater)
        return {(order.index(s), d): v for r, i, s, d, v in self.all() if (r, i) == (rater, item)}

    def next_item(self, rater: str) -> str | None:
        """The first item that the rater has not rated whole."""
        done = Counter(item for r, item, _, _, _ in self.all() if r == rater)
        return next((item for item in self.pairs if done[item] < 2 * len(DIMENSIONS)), None)

    def report(self) -> dict[str, Any]:
        """By dimension: alpha over all answers that two rated, each system's mean, and how many ratings there are."""
        by_dimension: dict[str, Any] = {}
        for dimension in DIMENSIONS:
            units: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
            for _, item, system, of, value in self.all():
                if of == dimension:
                    units[item, system].append(value)
            systems: defaultdict[str, list[int]] = defaultdict(list)
            for (_, system), values in units.items():
                systems[system] += values
            by_dimension[dimension] = {
                "alpha": krippendorff_alpha(list(units.values())),
                "ratings": sum(map(len, units.values())),
                "means": {system: sum(values) / len(values) for system, values in sorted(systems.items())},
            }
        return by_dimension


def krippendorff_alpha(units: Sequence[Sequence[int]]) -> float | None:
    """1 - observed / expected disagreement, for ordinal values; each unit holds the values that its raters gave.

    Units with one value say nothing of agreement and are left out. None where nothing can be said: no unit has two
    values, or all values are the same.
    """
    pairable = [unit for unit in units if len(unit) > 1]
    totals = Counter(value for unit in pairable for value in unit)
    values, n = sorted(totals), sum(totals.values())

    def distance(a: int, b: int) -> float:
        low, high = min(a, b), max(a, b)
        return (sum(totals[v] for v in values if low <= v <= high) - (totals[a] + totals[b]) / 2) ** 2

    observed = sum(
        distance(a, b) / (len(unit) - 1)
        for unit in pairable
        for i, a in enumerate(unit)
        for j, b in enumerate(unit)
        if i != j
    )
    expected = sum(totals[a] * totals[b] * distance(a, b) for a in values for b in values)
    return 1 - (n - 1) * observed / expected if expected else None


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Rating answers</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}}.pair{{display:flex;gap:2rem;flex-wrap:wrap}}
section{{flex:1 1 22rem}}blockquote{{white-space:pre-wrap;background:#f3f3f3;padding:1rem;margin:0}}fieldset{{border:0;padding:.4rem 0}}
small{{color:#555}}output{{color:#a00}}</style><body>{body}<p><small>{notice}</small></p></body></html>"""
_SCRIPT = """<output id="state" aria-live="polite"></output><script>
document.querySelectorAll("input[type=radio]").forEach(input => input.addEventListener("change", async () => {
  const [place, dimension] = JSON.parse(input.name);
  const rating = {...document.body.querySelector("main").dataset, place, dimension, value: Number(input.value)};
  const state = document.getElementById("state");
  try {
    const answer = await fetch("/rating", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(rating)});
    if (!answer.ok) throw new Error(await answer.text());
    state.textContent = "";
  } catch (error) { input.checked = false; state.textContent = "not stored: " + error.message; }
}));</script>"""


def _choose(raters: Sequence[str]) -> str:
    links = "".join(f'<li><a href="/rate?rater={quote(rater)}">{html.escape(rater)}</a>' for rater in raters)
    return f"<h1>Who are you?</h1><ul>{links}</ul>"


def _rate(ratings: Ratings, rater: str) -> str:
    """The page of the next pair: nothing in it says which system wrote what."""
    item = ratings.next_item(rater)
    if item is None:
        return f"<h1>Thank you, {html.escape(rater)}</h1><p>You have rated everything.</p>"
    pair, said = ratings.pairs[item], ratings.of(rater, item)
    place = list(ratings.pairs).index(item) + 1
    sections = "".join(
        f"<section><h2>Answer {number + 1}</h2><blockquote>{html.escape(pair.answers[system])}</blockquote>"
        + "".join(_scale(number, dimension, said.get((number, dimension))) for dimension in DIMENSIONS)
        + "</section>"
        for number, system in enumerate(pair.order(rater))
    )
    return (
        f'<main data-rater="{html.escape(rater)}" data-item="{html.escape(item)}"><p>{place} of {len(ratings.pairs)}, '
        f"1 is worst and 5 best; each choice is stored at once.</p><h1>{html.escape(pair.question)}</h1>"
        f'<div class="pair">{sections}</div></main>{_SCRIPT}<p><a href="/rate?rater={quote(rater)}">Next</a></p>'
    )


def _scale(number: int, dimension: str, said: int | None) -> str:
    name = html.escape(json.dumps([number, dimension]))
    radios = "".join(
        f'<label><input type="radio" name="{name}" value="{v}"{" checked" if v == said else ""}>{v}</label> '
        for v in VALUES
    )
    return f"<fieldset><legend><b>{dimension}</b> <small>{DIMENSIONS[dimension]}</small></legend>{radios}</fieldset>"


def make_server(ratings: Ratings, raters: Sequence[str], port: int = 0) -> ThreadingHTTPServer:
    """A server on this machine's own address; nobody else can reach it, and no other page may write to it."""
    return _Server(ratings, raters, port)


def is_ours(host: str, origin: str | None, port: int) -> bool:
    """Whether a request calls this server by its own name and comes from its own page: another site's has another Origin or Host."""
    names = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    if port == 80:  # which a browser leaves out (RFC 9110, section 7.2)
        names |= {"127.0.0.1", "localhost"}
    return host in names and origin in (None, f"http://{host}")


class _Server(ThreadingHTTPServer):
    def __init__(self, ratings: Ratings, raters: Sequence[str], port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.ratings, self.raters = ratings, raters

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of whoever hung up before the answer; anything else is a fault of ours."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer(*self._heeded(self._page))

    def do_POST(self) -> None:
        self._answer(*self._heeded(self._store))

    def _heeded(self, request: Callable[[], tuple[int, str]]) -> tuple[int, str]:
        """The status and the text of an answer, of whatever was sent."""
        try:
            return request()
        except (ValueError, KeyError, TypeError, RecursionError, TimeoutError) as error:
            return 400, f"not understood: {_one_line(error)}"
        except sqlite3.Error as error:
            return 500, f"the ratings cannot be used: {_one_line(error)}"

    def _page(self) -> tuple[int, str]:
        url = urlsplit(self.path)
        rater = parse_qs(url.query).get("rater", [""])[0]
        if not self._is_ours():
            return 403, "only from this machine"
        if url.path == "/":
            return 200, _choose(self.server.raters)
        if url.path == "/rate" and rater in self.server.raters:
            return 200, _rate(self.server.ratings, rater)
        return 404, "there is no such page"

    def _store(self) -> tuple[int, str]:
        row = json.loads(self._body())
        json_sent = self.headers.get("Content-Type") == "application/json"
        if not self._is_ours() or not json_sent or self.path != "/rating" or row["rater"] not in self.server.raters:
            return 403, "not from here, or no such rater"
        self.server.ratings.put(row["rater"], row["item"], row["place"], row["dimension"], row["value"])
        return 200, "stored"

    def _body(self) -> bytes:
        """What was sent; more than is read would be cut off, and whoever sends it would not hear why."""
        told = self.headers.get("Content-Length", "")
        if not (told.isascii() and told.isdecimal()):
            raise ValueError(f"Content-Length is {told!r}, not the number of bytes")
        length = int(told)
        body = self.rfile.read(min(length, DRAINED))
        if length > LONGEST or len(body) < length:
            raise ValueError(f"{len(body)} of {told} bytes came, at most {LONGEST} are read")
        return body

    def _is_ours(self) -> bool:
        return is_ours(self.headers.get("Host", ""), self.headers.get("Origin"), self.server.server_address[1])

    def _answer(self, status: int, text: str) -> None:
        page = self.command == "GET" and status == 200
        body = (_PAGE.format(body=text, notice=NOTICE) if page else text).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"text/{'html' if page else 'plain'}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing: the terminal shows the address."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:150]


def report_table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = [f"{'':20} {'alpha':>6} {'ratings':>8}  means"]
    for dimension, row in report.items():
        alpha = "-" if row["alpha"] is None else f"{row['alpha']:.3f}"
        means = ", ".join(f"{mask_identifiers(system)} {mean:.2f}" for system, mean in row["means"].items())
        lines.append(f"{dimension:20} {alpha:>6} {row['ratings']:8}  {means}")
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "pairs", type=Path, help='JSON Lines: {"id", "question", "answers": {system: text, system: text}}'
    )
    parser.add_argument("--ratings", type=Path, default=Path("data/ratings.sqlite"), help="file of the ratings")
    parser.add_argument("--raters", default="first,second", help="names, two or more, with commas between")
    parser.add_argument("--port", type=count, default=8765, help="of the page; 0 takes a free one")
    parser.add_argument("--report", action="store_true", help="print agreement and means, and serve no page")


def main(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C, or print the report."""
    raters = list(dict.fromkeys(as_text(name).strip() for name in options.raters.split(",") if name.strip()))
    if len(raters) < 2:
        raise UserError(f"--raters {options.raters!r} names {len(raters)}: agreement needs two or more, as in anna,ben")
    ratings = Ratings(options.ratings, read_pairs(options.pairs))
    if options.report:
        print(f"{report_table(ratings.report())}\n{NOTICE}")
        return
    try:
        server = make_server(ratings, raters, options.port)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {options.port} cannot be had ({error}): give another --port") from None
    with server:
        print(
            f"http://127.0.0.1:{server.server_address[1]}/ for {', '.join(raters)}; Ctrl-C ends it\n{NOTICE}",
            flush=True,
        )
        server.serve_forever()
