"""Get abstracts from PubMed through NCBI's E-utilities, politely, and so that a stop at any moment costs one batch.

A search is parted by the day on which PubMed took an article in until no part passes what ESearch can give (9,999).
Each part is searched with the history server and read from it in batches; each answer is kept as it came:

    OUT/plan.json                        the query and its parts
    OUT/1780-01-01_2026-11-24/ids.xml    ESearch's answer: the ids of a part, and its place on the history server
    OUT/1780-01-01_2026-11-24/00200.xml  EFetch's answer: articles 200 to 399 of the part

What is there is not asked for again, and no answer is kept that is not what was asked for. Source: Sayers, "A General Introduction to the E-utilities" (NCBI, NBK25497).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from tqdm import tqdm

from examples.leukemia.data import UserError, as_text
from examples.leukemia.files import write_json, write_whole
from examples.leukemia.notice import NOTICE
from examples.leukemia.pubmed import pubmed_ids

__all__ = ["Eutils", "Part", "fetch", "fetch_command", "plan_parts"]

NCBI = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
LIMIT = 9_999  # what ESearch gives of one PubMed query
ROOM = 500  # of it, left for articles that come in between the planning and the search
BATCH = 200
FEW = 2  # articles that a part may lose between the planning and the search, however small it is
ROOTS = {"esearch": "eSearchResult", "efetch": "PubmedArticleSet"}  # any other element is another page
_PLAN_PART = re.compile(r"\.plan\.json\.\d+\.part")  # what a kill left that came while the plan was written
FIRST_DAY = date(1780, 1, 1)  # PubMed's oldest article is younger


@dataclass(frozen=True)
class Part:
    """The articles that PubMed took in from one day to another, both included; `count` is what there was.

    Attributes:
        again: how many parts of the same days came before this one; two updates on one day make two.
    """

    first: str
    last: str
    count: int
    again: int = 0

    @property
    def folder(self) -> str:
        """Where its answers lie."""
        return f"{self.first}_{self.last}" + (f"_{self.again}" if self.again else "")


class Refused(Exception):
    """The server understood and said no: asking again would not help."""


@dataclass
class Eutils:
    """A client that keeps to NCBI's rules: who asks, 3 requests a second, 10 with a key.

    Attributes:
        wait: seconds before the second try; doubled for each further one.
        tries: how often a request is made that fails in passing (429, 5xx, a cut connection, half an answer).
    """

    email: str
    api_key: str = ""
    base: str = NCBI
    tool: str = "lora-lite-leukemia"
    wait: float = 1.0
    tries: int = 7
    _last: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        import requests

        self._session = requests.Session()
        self._session.headers["User-Agent"] = self.tool
        wrong = (requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL)
        try:
            self._session.get_adapter(str(requests.Request("POST", self.base).prepare().url))
        except wrong:
            raise UserError(f"{self.base!r} is no address of a server: give another --base-url") from None

    def call(
        self, utility: str, check: Callable[[Element], object] = bool, **parameters: object
    ) -> tuple[bytes, Element]:
        """An answer as it came, and parsed.

        Args:
            check: raises `_Passing` where the answer contradicts itself; it is asked for again.

        Raises:
            Refused: the server answered with an error of ours, such as an unknown place on the history server.
            UserError: it could not be reached, or did not answer properly, `tries` times.
        """
        problem = ""
        for attempt in range(self.tries):
            self._pause()
            try:
                body, root = self._once(utility, parameters)
                check(root)
                return body, root
            except _Passing as error:
                problem, pause = str(error), max(error.retry_after, self.wait * 2**attempt)
            if attempt + 1 < self.tries:
                if pause > 2:
                    tqdm.write(f"{utility}: {problem}; the next try is in {pause:.0f} s", file=sys.stderr)
                time.sleep(pause)
        raise UserError(f"{self.base}: {utility} failed {self.tries} times ({problem}): try again later")

    def _once(self, utility: str, parameters: dict[str, object]) -> tuple[bytes, Element]:
        import requests

        form: dict[str, object] = {"db": "pubmed", "tool": self.tool, "email": self.email}
        form |= {"api_key": self.api_key} if self.api_key else {}
        try:
            answer = self._session.post(
                f"{self.base}/{utility}.fcgi", data=form | parameters, timeout=60, allow_redirects=False
            )
        except requests.RequestException as error:  # no connection, a cut one, fewer bytes than promised
            raise _Passing(type(error).__name__) from None
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _Passing(f"status {answer.status_code}", _retry_after(answer.headers.get("Retry-After", "")))
        if answer.is_redirect:  # following it would lose what was asked
            place = answer.headers["Location"][:200]
            raise UserError(f"{self.base} answers from another place ({place!r}): give that as --base-url")
        if answer.status_code != 200:
            raise Refused(f"status {answer.status_code}: {answer.text[:200]}")
        try:
            root = ElementTree.fromstring(answer.content)
        except ElementTree.ParseError:  # half an answer, or a word in JSON that the limit was passed
            raise _Passing("an answer that is not whole XML") from None
        for message in root.iterfind(".//OutputMessage"):  # a failure may come as a warning beside a count of 0
            _raise_passing(message.text or "")
        if (error := root.findtext("./ERROR")) is not None:
            _raise_passing(error)
            raise Refused(error)
        if root.tag != ROOTS[utility]:
            raise _Passing(f"answered with <{root.tag[:80]}>, not <{ROOTS[utility]}>")
        return answer.content, root

    def _pause(self) -> None:
        """Wait until the next request may start: 3 a second, 10 with a key, and a little more."""
        ready = self._last + (0.11 if self.api_key else 0.35)
        time.sleep(max(0.0, ready - time.monotonic()))
        self._last = time.monotonic()


class _Passing(Exception):
    """What may be gone at the next try, and how many seconds the server asks to wait."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


def _raise_passing(message: str) -> None:
    if "backend failed" in message.lower() or "timed out" in message.lower():
        raise _Passing(message)


def _retry_after(text: str) -> float:
    """The seconds that a Retry-After asks for, as a number or as a date; 300 at the most."""
    when = parsedate_tz(text)
    try:
        seconds = float(text) if text.isdecimal() else mktime_tz(when) - time.time() if when else 0.0
    except (ValueError, OverflowError):  # a year that no calendar has
        seconds = 0.0
    return min(max(seconds, 0.0), 300.0)


def plan_parts(eutils: Eutils, query: str, first: date, last: date) -> list[Part]:
    """Halve the time from `first` to `last` until no part holds more than ESearch gives; empty parts are left out.

    Raises:
        UserError: one day alone holds more, or the halves of a part hold less than it.
    """
    _, root = _search(eutils, query, first.isoformat(), last.isoformat(), retmax=0)
    count = _count(root)
    if count <= LIMIT - ROOM:
        return [Part(first.isoformat(), last.isoformat(), count)] if count else []
    if first == last:
        raise UserError(f"{query!r} finds {count:,} articles of {first} alone, ESearch gives {LIMIT:,}: narrow it")
    middle = first + (last - first) // 2
    parts = plan_parts(eutils, query, first, middle) + plan_parts(eutils, query, middle + timedelta(days=1), last)
    if _lost(sum(part.count for part in parts), count):
        raise UserError(
            f"{eutils.base} counts {count:,} articles from {first} to {last}, fewer in its two halves: try later"
        )
    return parts


def _count(root: Element) -> int:
    """How many articles a search found."""
    text = root.findtext("./Count") or ""
    if not text.isdecimal() or len(text) > 12:
        raise _Passing(f"its Count is {text[:80]!r}, no number")
    return int(text)


def _lost(count: int, planned: int) -> bool:
    """Whether there is less than was planned, by more than PubMed takes back: duplicates, what is withdrawn."""
    return planned - count > max(FEW, planned / 100)


def _ids(root: Element, planned: int = 0) -> list[str]:
    """The ids that a search found, all of them."""
    ids, count = [element.text or "" for element in root.iterfind("./IdList/Id")], _count(root)
    if count <= LIMIT and len(set(ids)) != count:
        raise _Passing(f"it counts {count:,} articles and lists {len(set(ids)):,}")
    if _lost(count, planned):
        raise _Passing(f"it finds {count:,} articles, where {planned:,} were planned; another --out plans anew")
    return ids


def fetch(eutils: Eutils, query: str, out: Path, update: bool = False) -> Counter[str]:
    """Fetch every article that `query` finds into `out`, or what is still missing there; return counts.

    Args:
        update: also look for articles that came in since the plan was made.

    Raises:
        UserError: the query finds nothing or is refused, `out` holds another query's articles, the server stays away.
    """
    counts: Counter[str] = Counter()
    try:
        parts = _plan(eutils, query, out, update)
        seen: set[str] = set()
        with tqdm(total=sum(part.count for part in parts), desc="fetching", unit="article") as bar:
            for part in parts:
                for batch in _fetch_part(eutils, query, part, out / part.folder, seen):
                    counts.update(batch)
                    bar.update(sum(batch.values()))
        counts["articles found"] = len(seen)
    except Refused as error:
        raise UserError(f"{eutils.base} refuses {query!r}: {error}") from None
    return counts


def _plan(eutils: Eutils, query: str, out: Path, update: bool) -> list[Part]:
    """The parts of an earlier call, or new ones; with `update`, both."""
    path = out / "plan.json"
    parts, first, today = [], FIRST_DAY, date.today()
    if path.exists():
        planned, first, parts = _read_plan(path)
        if planned != query:
            raise UserError(f"{out} holds the articles of {planned!r}: give another --out")
        if not update:
            return parts
    elif out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder: give another --out")
    elif out.exists() and not all(_PLAN_PART.fullmatch(each.name) for each in out.iterdir()):
        raise UserError(f"{out} holds other files: give an --out that is new or empty")
    print(f"searching PubMed for {query!r}", flush=True)
    # what came in late on the last day of the old plan, or with its date in another time zone, is found by a day more
    new = plan_parts(eutils, query, max(FIRST_DAY, first - timedelta(days=1)) if parts else first, today)
    if not parts and not new:
        raise UserError(f"{query!r} finds no article{_not_found(eutils, query)}: change it")
    if not new:  # the next update looks at the same days again
        return parts
    out.mkdir(parents=True, exist_ok=True)
    days = Counter((part.first, part.last) for part in parts)
    parts += [replace(part, again=days[part.first, part.last]) for part in new]
    write_json(path, {"query": query, "until": today.isoformat(), "parts": [asdict(part) for part in parts]})
    return parts


def _read_plan(path: Path) -> tuple[str, date, list[Part]]:
    """The query of a plan, the last day that it looked at, and its parts."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        parts = [Part(**part) for part in plan["parts"]]
        for part in parts:
            _ = date.fromisoformat(part.first), date.fromisoformat(part.last), range(part.count), range(part.again)
        return str(plan["query"]), date.fromisoformat(plan["until"]), parts
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is no plan of fetch: move it away, or give another folder") from None


def fetch_command(folder: Path) -> str:
    """The command that fetched a folder, and until when, for a report; without an e-mail, and "" for anything else."""
    path = folder / "plan.json"
    if not path.is_file():
        return ""
    query, until, _ = _read_plan(path)
    return f"{shlex.join(['python', '-m', 'examples.leukemia', 'fetch', query, '--out', str(folder)])}  # until {until}"


def _fetch_part(eutils: Eutils, query: str, part: Part, folder: Path, seen: set[str]) -> Iterator[dict[str, int]]:
    """Fetch the batches of a part that are not there whole; yields for each how many articles were, came and did not.

    Args:
        seen: ids of the parts before, which are not fetched again; gets those of this one.
    """
    folder.mkdir(exist_ok=True)
    path = folder / "ids.xml"
    if not path.exists():
        body, root = _search(eutils, query, part.first, part.last, LIMIT, lambda root: _ids(root, part.count))
        if _count(root) > LIMIT:
            raise UserError(f"{part.first} to {part.last} has grown past {LIMIT:,}: give another --out")
        if not _count(root):  # nothing is kept, so that the next call looks again
            return
        write_whole(path, body)
    try:
        search = ElementTree.fromstring(path.read_bytes())
        listed = _ids(search)
    except (ElementTree.ParseError, _Passing):
        raise UserError(f"{path} is no whole answer of ESearch: remove it, and it is fetched again") from None
    ids = [one for one in listed if one not in seen]
    seen.update(ids)
    for start in range(0, len(ids), BATCH):
        wanted, batch = ids[start : start + BATCH], folder / f"{start:05d}.xml"
        here = found = _kept(batch) & set(wanted)
        if len(here) < len(wanted):
            body, found = _fetch_batch(eutils, search, start if ids == listed else None, wanted)
            if found > here:
                write_whole(batch, body)
            else:  # it has nothing new, or lacks what is here
                found = here
        yield {
            "articles here before": len(here),
            "articles fetched now": len(found) - len(here),
            "articles that PubMed did not give": len(wanted) - len(found),
        }


def _kept(path: Path) -> set[str]:
    """The ids of the articles in a batch that was fetched before."""
    try:
        return set(pubmed_ids(ElementTree.fromstring(path.read_bytes())))
    except (FileNotFoundError, ElementTree.ParseError):
        return set()


def _fetch_batch(eutils: Eutils, search: Element, start: int | None, wanted: list[str]) -> tuple[bytes, set[str]]:
    """A batch from the history server, or by its ids where that has forgotten the search or counts another way.

    Args:
        start: its place on the history server; None where it has none.
    """
    place = {"WebEnv": search.findtext("./WebEnv"), "query_key": search.findtext("./QueryKey")}
    if start is not None:
        with suppress(Refused):  # a place on the history server lasts some hours
            body, root = eutils.call("efetch", retmode="xml", retstart=start, retmax=BATCH, **place)
            found = set(pubmed_ids(root))
            if found == set(wanted):
                return body, found
    body, root = eutils.call("efetch", retmode="xml", id=",".join(wanted))
    found = set(pubmed_ids(root))
    if not found <= set(wanted):
        raise UserError(f"{eutils.base} gives other articles than asked for ({wanted[0]} to {wanted[-1]}): try later")
    return body, found


def _search(
    eutils: Eutils, query: str, first: str, last: str, retmax: int, check: Callable[[Element], object] = _count
) -> tuple[bytes, Element]:
    days = {"datetype": "edat", "mindate": first.replace("-", "/"), "maxdate": last.replace("-", "/")}
    history = {"usehistory": "y"} if retmax else {}
    return eutils.call("esearch", check, term=query, retmode="xml", retmax=retmax, **days, **history)


def _not_found(eutils: Eutils, query: str) -> str:
    """The words of a query that PubMed does not know, for the message."""
    _, root = eutils.call("esearch", term=query, retmode="xml", retmax=0)
    words = [element.text or "" for element in root.iterfind(".//PhraseNotFound")]
    return f" (not known: {', '.join(words)})" if words else ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("query", help="as in PubMed's own search box")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers; what is there is kept")
    parser.add_argument("--email", default=os.environ.get("NCBI_EMAIL", ""), help="yours, or NCBI_EMAIL; NCBI wants it")
    parser.add_argument(
        "--api-key",
        default="",
        help="of your NCBI account, for 10 requests a second in place of 3; better in NCBI_API_KEY, where no one reads it",
    )
    parser.add_argument("--tool", default="lora-lite-leukemia", help="the name under which NCBI sees the requests")
    parser.add_argument("--update", action="store_true", help="also get what has come in since the first call")
    parser.add_argument("--base-url", default=NCBI, help="another server that speaks E-utilities")


def main(options: argparse.Namespace) -> None:
    """Fetch, and print what came."""
    if "@" not in options.email:
        raise UserError(f"{options.email!r} is no e-mail address: give --email or set NCBI_EMAIL (NCBI asks for it)")
    if not options.query.strip():
        raise UserError("the query is empty: give what you would type into PubMed's search box")
    if importlib.util.find_spec("requests") is None:
        raise UserError("fetch needs the package requests: pip install requests")
    key = options.api_key or os.environ.get("NCBI_API_KEY", "")
    eutils = Eutils(options.email, key, options.base_url.rstrip("/"), as_text(options.tool))
    counts: dict[str, Any] = fetch(eutils, options.query, options.out, options.update)
    for name, number in counts.items():
        print(f"{number:8,}  {name}")
    if counts["articles that PubMed did not give"]:
        print("what PubMed did not give, it may have taken back; the same command asks for them again")
    print(f"{options.out}\nnext: python -m examples.leukemia prepare {options.out} --out data/prepared\n{NOTICE}")
