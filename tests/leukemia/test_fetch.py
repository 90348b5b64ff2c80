"""fetch against a local server that answers as NCBI's does: results, limits, throttling, errors, cut connections."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from examples.leukemia.__main__ import main
from examples.leukemia.data import Record, UserError, read_abstracts
from examples.leukemia.fetch import (
    BATCH,
    FIRST_DAY,
    LIMIT,
    ROOM,
    Eutils,
    Part,
    _retry_after,
    fetch,
    fetch_command,
    plan_parts,
)
from examples.leukemia.pubmed import inner_text

ARTICLE = """<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{id}</PMID>
<Article PubModel="Print"><Journal><JournalIssue CitedMedium="Print"><PubDate><Year>2019</Year><Month>Mar</Month></PubDate>
</JournalIssue><ISOAbbreviation>Blood</ISOAbbreviation></Journal><ArticleTitle>Title of {id}.</ArticleTitle>
<Abstract><AbstractText>Abstract of {id}.</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"""
SET = '<?xml version="1.0" ?>\n<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2024//EN" "x.dtd">\n'


class Ncbi(ThreadingHTTPServer):
    """Articles numbered from 1000, one or more a day; `faults` are answered first, in their order, "" by the truth."""

    daemon_threads = True

    def __init__(self, days: dict[date, int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.articles: list[tuple[date, str]] = []
        for day, count in sorted(days.items()):
            self.articles += [(day, str(1000 + len(self.articles) + n)) for n in range(count)]
        self.faults: list[str] = []
        self.forgets = self.moves = False
        self.withheld: set[str] = set()
        self.seen: list[tuple[float, str, dict[str, str]]] = []
        self.history: list[list[str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def calls(self, utility: str) -> list[dict[str, str]]:
        return [form for _, name, form in self.seen if name == utility]


class Handler(BaseHTTPRequestHandler):
    server: Ncbi

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        form = {k: v[0] for k, v in parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).items()}
        utility = self.path.strip("/").removesuffix(".fcgi")
        self.server.seen.append((time.monotonic(), utility, form))
        if self.server.faults and (kind := self.server.faults.pop(0)):
            return self.fault(kind)
        self.answer(200, self.esearch(form) if utility == "esearch" else self.efetch(form))

    def answer(self, status: int, body: str, promised: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode()) if promised is None else promised))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body.encode())

    def fault(self, kind: str) -> None:
        if kind == "429":
            self.answer(429, '{"error":"API rate limit exceeded","count":"4","limit":"3"}', Retry_After="1")
        elif kind == "500":
            self.answer(500, "<html>Internal Server Error</html>")
        elif kind == "400":
            self.answer(400, '{"error":"API key invalid"}')
        elif kind == "limit as 200":
            self.answer(200, '{"error":"API rate limit exceeded","count":"11"}')
        elif kind == "half":
            self.answer(200, f"{SET}<PubmedArticleSet><PubmedArticle>")
        elif kind == "cut":
            self.answer(200, "<PubmedArticleSet>", promised=5000)
            self.close_connection = True
        elif kind == "reset":
            self.connection.close()
        elif kind == "date":
            self.answer(503, "", Retry_After=formatdate(time.time() + 3, usegmt=True))
        elif kind == "redirect":
            self.answer(302, "", Location="/elsewhere")
        elif kind.startswith("<"):
            self.answer(200, kind)
        else:
            self.answer(200, f"<eSearchResult><ERROR>{kind}</ERROR></eSearchResult>")

    def esearch(self, form: dict[str, str]) -> str:
        first, last = form.get("mindate", "1/1/1"), form.get("maxdate", "9999/12/31")
        if form["term"] == "xyzzy":
            return (
                "<eSearchResult><Count>0</Count><RetMax>0</RetMax><RetStart>0</RetStart><IdList/>"
                "<ErrorList><PhraseNotFound>xyzzy</PhraseNotFound></ErrorList></eSearchResult>"
            )
        found = [i for day, i in self.server.articles if first <= day.strftime("%Y/%m/%d") <= last]
        ids = found[: min(int(form.get("retmax", 20)), LIMIT)]
        place = ""
        if form.get("usehistory") == "y":
            self.server.history.append(found[1:] + found[:1] if self.server.moves else found)
            place = f"<QueryKey>1</QueryKey><WebEnv>MCID_{len(self.server.history) - 1}</WebEnv>"
        listed = "".join(f"<Id>{i}</Id>\n" for i in ids)
        return (
            f"<eSearchResult><Count>{len(found)}</Count><RetMax>{len(ids)}</RetMax><RetStart>0</RetStart>{place}"
            f"<IdList>{listed}</IdList><TranslationSet/></eSearchResult>"
        )

    def efetch(self, form: dict[str, str]) -> str:
        if "id" in form:
            ids = form["id"].split(",")
        elif self.server.forgets:
            return "<eFetchResult><ERROR>Unable to obtain query #1</ERROR></eFetchResult>"
        else:
            start = int(form["retstart"])
            ids = self.server.history[int(form["WebEnv"].removeprefix("MCID_"))][start : start + int(form["retmax"])]
        articles = "".join(ARTICLE.format(id=i) for i in ids if i not in self.server.withheld)
        return f"{SET}<PubmedArticleSet>{articles}</PubmedArticleSet>"


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(days: dict[date, int]) -> Ncbi:
        server = Ncbi(days)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def client(server: Ncbi, api_key: str = "k") -> Eutils:
    return Eutils("me@example.org", api_key, server.url, wait=0.01)


def test_everything_is_fetched_once_and_kept_raw(serve, tmp_path: Path) -> None:
    server = serve({date(2019, 1, 1): 2 * BATCH + 1})
    counts = fetch(client(server), "leukemia[mh]", tmp_path / "out")
    ids = [i for _, i in server.articles]
    assert counts == {
        "articles found": len(ids),
        "articles fetched now": len(ids),
        "articles here before": 0,
        "articles that PubMed did not give": 0,
    }
    records, _ = read_abstracts(tmp_path / "out")
    assert [r.pubmed_id for r in records] == ids
    assert records[0] == Record("1000", "Title of 1000.", "Abstract of 1000.", year=2019, journal="Blood")
    batches = server.calls("efetch")
    assert [(b["WebEnv"], b["query_key"], b["retstart"]) for b in batches] == [
        ("MCID_0", "1", s) for s in ("0", "200", "400")
    ]
    for form in [*batches, *server.calls("esearch")]:  # NCBI wants to know who asks
        assert (form["email"], form["tool"], form["api_key"]) == ("me@example.org", "lora-lite-leukemia", "k")
    before = len(server.seen)
    assert fetch(client(server), "leukemia[mh]", tmp_path / "out")["articles here before"] == len(ids)
    assert len(server.seen) == before


def test_past_ten_thousand_the_days_are_halved(serve, tmp_path: Path) -> None:
    """No part passes the limit, and the parts cover every day once."""
    days = {date(2000, 1, 1) + timedelta(days=n): 400 for n in range(60)}
    server = serve(days)
    parts = plan_parts(client(server), "q", FIRST_DAY, date(2026, 1, 1))
    assert len(parts) > 2 and sum(part.count for part in parts) == 24_000 and all(p.count <= LIMIT for p in parts)
    for day, count in days.items():
        assert count == 400 and sum(part.first <= day.isoformat() <= part.last for part in parts) == 1
    assert all(form["datetype"] == "edat" for form in server.calls("esearch"))


def test_more_than_the_limit_in_one_day_is_said(serve) -> None:
    server = serve({date(2000, 1, 1): LIMIT + 1})
    with pytest.raises(UserError, match="of 2000-01-01 alone, ESearch gives 9,999: narrow it"):
        plan_parts(client(server), "q", date(1999, 1, 1), date(2001, 1, 1))


@pytest.mark.parametrize("fault", ["500", "limit as 200", "half", "cut", "reset", "Search Backend failed: timeout"])
def test_what_passes_is_tried_again(serve, tmp_path: Path, fault: str) -> None:
    server = serve({date(2019, 1, 1): 3})
    server.faults = [fault, fault]
    assert fetch(client(server), "q", tmp_path / "out")["articles fetched now"] == 3
    assert len(server.seen) == 5  # two faults, the plan, the search, the articles


def test_429_waits_as_long_as_it_is_told(serve, tmp_path: Path) -> None:
    server = serve({date(2019, 1, 1): 1})
    server.faults = ["429"]
    fetch(client(server), "q", tmp_path / "out")
    assert server.seen[1][0] - server.seen[0][0] >= 1.0  # Retry-After: 1


def test_a_date_to_wait_for_is_heeded(serve, tmp_path: Path) -> None:
    server = serve({date(2019, 1, 1): 1})
    server.faults = ["date"]
    fetch(client(server), "q", tmp_path / "out")
    assert server.seen[1][0] - server.seen[0][0] >= 1.9  # 3 seconds, less the part of one that the header cannot tell
    waits = {formatdate(1e10, usegmt=True): 300, formatdate(1e9, usegmt=True): 0, "soon": 0, "": 0, "9" * 5000: 300}
    waits["Wed, 25 Nov 99999999999 20:00:00 GMT"] = 0
    assert {text: _retry_after(text) for text in waits} == waits


HTML = "<html><body>Temporarily unavailable</body></html>"
NONE = "<eSearchResult><Count>0</Count><IdList/></eSearchResult>"
BACKEND = NONE.replace(
    "<IdList/>", "<IdList/><WarningList><OutputMessage>Search Backend failed</OutputMessage></WarningList>"
)
SHORT = "<eSearchResult><Count>3</Count><IdList><Id>1000</Id><Id>1001</Id></IdList></eSearchResult>"
TWICE = SHORT.replace("</IdList>", "<Id>1001</Id></IdList>")
MANY = "<eSearchResult><Count>many</Count></eSearchResult>"
WRONG = {  # at the plan, the search and the articles; each with what is said of it
    "a page at the plan": ([], HTML, "answered with <html>, not <eSearchResult>"),
    "a failure at the plan": ([], BACKEND, "Search Backend failed"),
    "no number": ([], MANY, "its Count is 'many'"),
    "a page at the search": ([""], HTML, "answered with <html>, not <eSearchResult>"),
    "nothing found": ([""], NONE, "0 articles, where 3 were planned"),
    "a short list": ([""], SHORT, "it counts 3 articles and lists 2"),
    "an id twice": ([""], TWICE, "it counts 3 articles and lists 2"),
    "a page for articles": (["", ""], HTML, "answered with <html>, not <PubmedArticleSet>"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_tried_again_and_never_kept(serve, tmp_path: Path, name: str) -> None:
    before, wrong, said = WRONG[name]
    server, out = serve({date(2019, 1, 1): 3}), tmp_path / "out"
    eutils = client(server)
    eutils.tries = 2
    server.faults = [*before, wrong, wrong]
    with pytest.raises(UserError, match=re.escape(said)):
        fetch(eutils, "q", out)
    assert len(list(out.rglob("*.xml"))) == max(0, len(before) - 1)
    server.faults = [wrong]
    assert fetch(eutils, "q", out)["articles fetched now"] == 3
    assert len(read_abstracts(out)[0]) == 3 and not server.faults


def test_halves_that_lose_articles_are_refused(serve) -> None:
    server = serve({date(2000, 1, 1): LIMIT - ROOM, date(2020, 1, 1): LIMIT - ROOM})
    server.faults = ["", NONE]
    with pytest.raises(UserError, match="its two halves"):
        plan_parts(client(server), "q", date(2000, 1, 1), date(2020, 1, 1))


@pytest.mark.parametrize(("planned", "found"), [(1, 0), (2, 1), (30, 28), (1000, 990)])
def test_a_part_may_lose_a_few_articles_after_the_plan(serve, tmp_path: Path, planned: int, found: int) -> None:
    server, out = serve({date(2019, 1, 1): planned}), tmp_path / "out"
    server.faults = ["", *["500"] * 2]  # it stops behind the plan
    eutils = client(server)
    eutils.tries = 2
    with pytest.raises(UserError, match="try again later"):
        fetch(eutils, "q", out)
    taken_back = server.articles[found:]
    del server.articles[found:]
    assert fetch(eutils, "q", out)["articles found"] == found
    if not found:  # and nothing found is never taken for all there is
        server.articles += taken_back
        assert fetch(eutils, "q", out)["articles found"] == planned


@pytest.mark.parametrize(("planned", "found"), [(3, 0), (30, 27), (1000, 989)])
def test_a_part_that_loses_more_is_said_with_the_way_out(serve, tmp_path: Path, planned: int, found: int) -> None:
    server, out = serve({date(2019, 1, 1): planned}), tmp_path / "out"
    eutils = client(server)
    eutils.tries = 2
    server.faults = ["", *["500"] * 2]
    with pytest.raises(UserError, match="status 500"):
        fetch(eutils, "q", out)
    del server.articles[found:]
    with pytest.raises(
        UserError, match=f"finds {found} articles, where {planned:,} were planned; another --out plans anew"
    ):
        fetch(eutils, "q", out)
    if found:
        assert fetch(eutils, "q", tmp_path / "another")["articles found"] == found


def test_an_update_that_finds_nothing_leaves_its_days_to_the_next(serve, tmp_path: Path) -> None:
    server, out = serve({date(2019, 1, 1): 1}), tmp_path / "out"
    fetch(client(server), "q", out)
    plan = json.loads((out / "plan.json").read_text()) | {"until": "2019-06-01"}
    (out / "plan.json").write_text(json.dumps(plan))
    server.articles.append((date(2020, 1, 1), "9000"))
    server.faults = [NONE]
    assert fetch(client(server), "q", out, update=True)["articles fetched now"] == 0
    assert fetch(client(server), "q", out, update=True)["articles fetched now"] == 1


def test_what_was_not_given_is_said_and_asked_for_again(serve, tmp_path: Path, capsys) -> None:
    server, out = serve({date(2019, 1, 1): BATCH + 5}), tmp_path / "out"
    line = ["fetch", "q", "--out", str(out), "--email", "me@example.org", "--base-url", server.url]

    def counts() -> dict[str, int]:
        assert main(line) == 0
        printed = capsys.readouterr().out
        assert ("asks for them again" in printed) == bool(server.withheld)
        return {words: int(number) for number, words in re.findall(r"^ *(\d+)  articles (.+)$", printed, re.MULTILINE)}

    ids = [i for _, i in server.articles]
    server.withheld = {*ids[10:20], *ids[BATCH:]}  # some of one batch and all of the other
    first = counts()
    assert first == {"found": BATCH + 5, "here before": 0, "fetched now": BATCH - 10, "that PubMed did not give": 15}
    server.withheld = set(ids[:1]) | set(ids[BATCH:])  # a fuller answer that lacks what is here replaces nothing
    assert counts() == first | {"here before": BATCH - 10, "fetched now": 0}
    server.withheld = set(ids[BATCH + 1 :])
    assert counts() == {
        "found": BATCH + 5,
        "here before": BATCH - 10,
        "fetched now": 11,
        "that PubMed did not give": 4,
    }
    server.withheld = set()
    assert counts()["fetched now"] == 4 and len(read_abstracts(out)[0]) == BATCH + 5
    next(out.rglob("00200.xml")).write_text(HTML)  # of an earlier version, which kept such pages
    assert counts()["fetched now"] == 5


def test_a_server_that_stays_away_is_one_line_and_the_next_call_goes_on(serve, tmp_path: Path) -> None:
    server = serve({date(2019, 1, 1): 2 * BATCH})
    eutils = client(server)
    eutils.tries = 2
    fetched = fetch(eutils, "q", tmp_path / "a")
    assert fetched["articles fetched now"] == 2 * BATCH
    (tmp_path / "a" / f"{FIRST_DAY}_{date.today()}" / "00200.xml").unlink()
    server.faults = ["500"] * 2
    with pytest.raises(UserError, match=r"efetch failed 2 times \(status 500\): try again later"):
        fetch(eutils, "q", tmp_path / "a")
    again = fetch(eutils, "q", tmp_path / "a")
    assert (again["articles here before"], again["articles fetched now"]) == (BATCH, BATCH)


@pytest.mark.parametrize(("key", "gap"), [("", 1 / 3), ("k", 1 / 10)])
def test_requests_keep_ncbis_distance(serve, key: str, gap: float) -> None:
    """Never more than 3 requests in a second, 10 with a key: their starts are at least that far apart."""
    server = serve({date(2019, 1, 1): 1})
    eutils = client(server, key)
    for _ in range(4):
        eutils.call("esearch", term="q", retmax=0)
    starts = [moment for moment, _, _ in server.seen]
    assert starts[-1] - starts[0] >= 3 * gap


def test_a_forgotten_search_and_a_moved_one_are_fetched_by_id(serve, tmp_path: Path) -> None:
    server = serve({date(2019, 1, 1): BATCH + 5})
    server.forgets = True
    fetch(client(server), "q", tmp_path / "a")
    assert [len(form["id"].split(",")) for form in server.calls("efetch") if "id" in form] == [BATCH, 5]
    server.forgets, server.moves = False, True
    assert fetch(client(server), "q", tmp_path / "c")["articles that PubMed did not give"] == 0
    assert len(read_abstracts(tmp_path / "c")[0]) == BATCH + 5
    server.moves = False
    server.withheld = {"1003"}  # PubMed lists an article that it no longer gives
    assert fetch(client(server), "q", tmp_path / "b")["articles that PubMed did not give"] == 1
    assert len(read_abstracts(tmp_path / "b")[0]) == BATCH + 4


def test_update_adds_what_came_since(serve, tmp_path: Path) -> None:
    server = serve({date(2019, 1, 1): 5})
    out = tmp_path / "out"
    fetch(client(server), "q", out)
    plan = json.loads((out / "plan.json").read_text())
    plan["until"] = "2019-06-01"
    (out / "plan.json").write_text(json.dumps(plan))
    server.articles.append((date(2020, 1, 1), "9000"))
    assert fetch(client(server), "q", out)["articles found"] == 5
    assert fetch(client(server), "q", out, update=True)["articles fetched now"] == 1
    assert {r.pubmed_id for r in read_abstracts(out)[0]} == {*map(str, range(1000, 1005)), "9000"}
    assert Part("2019-05-31", date.today().isoformat(), 1) == Part(
        **json.loads((out / "plan.json").read_text())["parts"][-1]
    )


def test_updates_on_one_day_neither_lose_nor_repeat_articles(serve, tmp_path: Path) -> None:
    """An article comes in between two calls of the same day, as many times as calls; one with the date of yesterday."""
    today, yesterday = date.today(), date.today() - timedelta(days=1)
    server = serve({date(2019, 1, 1): 3, today: 2})
    out = tmp_path / "out"
    assert fetch(client(server), "q", out)["articles found"] == 5
    for number, day in enumerate((today, yesterday, today), 1):
        server.articles.append((day, str(9000 + number)))
        before = len(server.calls("efetch"))
        counts = fetch(client(server), "q", out, update=True)
        assert (counts["articles found"], counts["articles fetched now"]) == (5 + number, 1)
        assert len(server.calls("efetch")) - before == 1 and server.calls("efetch")[-1]["id"] == str(9000 + number)
    assert fetch(client(server), "q", out, update=True)["articles fetched now"] == 0
    records, counts = read_abstracts(out)
    assert len(records) == 8 and counts["left out: pubmed_id came before"] == 0
    assert fetch(client(server), "q", out)["articles here before"] == 8


def refused(capsys: pytest.CaptureFixture, words: str, *arguments: object) -> None:
    assert main(["fetch", *map(str, arguments)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]


def test_bad_input_is_one_line(serve, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.delenv("NCBI_EMAIL", raising=False)
    server = serve({date(2019, 1, 1): 1})
    out, line = tmp_path / "out", ["--email", "me@example.org", "--base-url", server.url]
    refused(capsys, "is no e-mail address", "q", "--out", out)
    refused(capsys, "the query is empty", " ", "--out", out, *line)
    refused(capsys, "finds no article (not known: xyzzy)", "xyzzy", "--out", out, *line)
    server.faults = ["400"]
    refused(capsys, "API key invalid", "q", "--out", out, *line, "--api-key", "secret")
    server.faults = ["redirect"]
    refused(capsys, "answers from another place ('/elsewhere')", "q", "--out", out, *line)
    assert not out.exists()
    assert main(["fetch", "q", "--out", str(out), *line]) == 0
    refused(capsys, "holds the articles of 'q'", "other", "--out", out, *line)
    (tmp_path / "file").touch()
    refused(capsys, "is no folder: give another --out", "q", "--out", tmp_path / "file", *line)
    for base in ("nonsense", "ftp://example.org", "http://"):
        assert main(["fetch", "q", "--out", str(tmp_path / "new"), *line[:-1], base]) == 2
        printed = capsys.readouterr()
        assert "is no address of a server: give another --base-url" in printed.err and not printed.out
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    refused(capsys, "holds other files", "q", "--out", tmp_path / "thesis", *line)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".plan.json.123.part").write_text('{"que')  # while its first file was written
    assert main(["fetch", "q", "--out", str(tmp_path / "killed"), *line]) == 0
    next(out.rglob("ids.xml")).write_text("<a>")
    refused(capsys, "ids.xml is no whole answer of ESearch: remove it", "q", "--out", out, *line)
    next(out.rglob("ids.xml")).write_text(HTML)
    refused(capsys, "ids.xml is no whole answer of ESearch: remove it", "q", "--out", out, *line)
    part = '{"query": "q", "until": "2020-01-01", "parts": [{"first": "../x", "last": "y", "count": "z"}]}'
    for plan in ("{}", "[" * 100_000, part):
        (out / "plan.json").write_text(plan)
        refused(capsys, "is no plan of fetch", "q", "--out", out, *line)


def test_the_key_comes_from_the_environment(serve, tmp_path: Path, capsys, monkeypatch) -> None:
    server = serve({date(2019, 1, 1): 1})
    monkeypatch.setenv("NCBI_API_KEY", "of the environment")
    monkeypatch.setenv("NCBI_EMAIL", "env@example.org")
    assert main(["fetch", "q", "--out", str(tmp_path / "out"), "--base-url", server.url]) == 0
    assert {(f["api_key"], f["tool"]) for _, _, f in server.seen} == {("of the environment", "lora-lite-leukemia")}
    assert "no medical device" in capsys.readouterr().out


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_started_again(serve, tmp_path: Path, root: Path, sent: signal.Signals, code: int) -> None:
    """What had arrived is whole and is not asked for again."""
    server = serve({date(2019, 1, 1): 12 * BATCH})
    out = tmp_path / "out"
    heedful = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('examples.leukemia', run_name='__main__')"
    )
    line = [sys.executable, "-c", heedful, "fetch", "q", "--out", str(out), "--email", "me@example.org"]
    process = subprocess.Popen(
        [*line, "--base-url", server.url], cwd=root, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(server.calls("efetch")) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == code
    if sent == signal.SIGINT:
        assert "stopped; the same command goes on from here" in errors and "Traceback" not in errors
    kept = sorted(path.name for path in out.rglob("0*.xml"))
    assert 2 <= len(kept) < 12
    before = len(server.calls("efetch"))
    fetch(client(server), "q", out)
    assert len(server.calls("efetch")) - before == 12 - len(kept)
    assert len(read_abstracts(out)[0]) == 12 * BATCH
    if sent == signal.SIGINT:
        assert not [name for name in os.listdir(out) if name.endswith(".part")]


REAL_SHAPE = f"""{SET}<PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID Version="1">111</PMID><Article>
<Journal><JournalIssue><PubDate><MedlineDate>1998 Nov-Dec</MedlineDate></PubDate></JournalIssue><Title>Leukemia</Title></Journal>
<ArticleTitle>[<i>BCR-ABL1</i> and CD4<sup>+</sup> cells &amp; H<sub>2</sub>O].</ArticleTitle>
<Abstract><AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">WBC 50 x 10<sup>9</sup>/L in <i>all <b>patients</b></i>, p &lt; 0.05.</AbstractText>
<AbstractText Label="UNLABELLED">Nothing.</AbstractText><AbstractText Label="RESULTS"/>
<AbstractText Label="CONCLUSION">It works.</AbstractText><CopyrightInformation>Copyright 1998 X.</CopyrightInformation></Abstract>
<PublicationTypeList><PublicationType UI="D016441">Retracted Publication</PublicationType></PublicationTypeList>
</Article><CommentsCorrectionsList><CommentsCorrections RefType="RetractionIn"><PMID>222</PMID></CommentsCorrections>
</CommentsCorrectionsList></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID Version="1">222</PMID><Article><ArticleTitle>Retraction.</ArticleTitle>
<Abstract><AbstractText>We retract.</AbstractText></Abstract>
<PublicationTypeList><PublicationType>Retraction of Publication</PublicationType></PublicationTypeList></Article>
<CommentsCorrectionsList><CommentsCorrections RefType="RetractionOf"><PMID>111</PMID></CommentsCorrections>
</CommentsCorrectionsList></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID>333</PMID><Article><ArticleTitle>No abstract.</ArticleTitle></Article></MedlineCitation></PubmedArticle>
<PubmedBookArticle><BookDocument><PMID>444</PMID><Book><Publisher><PublisherName>NCBI</PublisherName></Publisher>
<BookTitle>StatPearls</BookTitle><PubDate><Year>2021</Year></PubDate></Book><ArticleTitle>Leukemia</ArticleTitle>
<Abstract><AbstractText>A chapter.</AbstractText></Abstract></BookDocument></PubmedBookArticle></PubmedArticleSet>"""


def test_the_xml_is_read_with_its_markup_sections_and_retractions(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(REAL_SHAPE, encoding="utf-8")
    records, counts = read_abstracts(path)
    sections = (
        ("BACKGROUND", "WBC 50 x 10^9/L in all patients, p < 0.05."),
        ("", "Nothing."),
        ("CONCLUSION", "It works."),
    )
    assert records == [
        Record(
            "111",
            "BCR-ABL1 and CD4+ cells & H2O.",
            "BACKGROUND: WBC 50 x 10^9/L in all patients, p < 0.05. Nothing. CONCLUSION: It works.",
            year=1998,
            journal="Leukemia",
            retracted=True,
            sections=sections,
        ),
        Record("222", "Retraction.", "We retract."),
        Record("444", "Leukemia", "A chapter.", year=2021, journal="NCBI"),
    ]
    assert counts["rows"] == 4 and counts["left out: no pubmed_id or no abstract"] == 1


@pytest.mark.parametrize(
    ("note", "retracted"),
    [
        ("RetractionIn", True),
        ("RetractedandRepublishedIn", True),
        ("PartialRetractionIn", True),
        ("RetractedandRepublishedFrom", False),
        ("PartialRetractionOf", False),
        ("ExpressionOfConcernIn", False),
    ],
)
def test_what_counts_as_retracted(tmp_path: Path, note: str, retracted: bool) -> None:
    (tmp_path / "a.xml").write_text(
        f"{SET}<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>T.</ArticleTitle>"
        "<Abstract><AbstractText>A.</AbstractText></Abstract></Article><CommentsCorrectionsList>"
        f'<CommentsCorrections RefType="{note}"/></CommentsCorrectionsList></MedlineCitation></PubmedArticle></PubmedArticleSet>'
    )
    assert read_abstracts(tmp_path / "a.xml")[0][0].retracted == retracted


@pytest.mark.parametrize(
    ("vernacular", "title"), [("<VernacularTitle>Das Blut.</VernacularTitle>", "Das Blut."), ("", "")]
)
def test_no_title_is_not_a_title(tmp_path: Path, vernacular: str, title: str) -> None:
    (tmp_path / "a.xml").write_text(
        f"{SET}<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>[Not Available].</ArticleTitle>"
        f"<Abstract><AbstractText>A.</AbstractText></Abstract>{vernacular}</Article></MedlineCitation></PubmedArticle></PubmedArticleSet>"
    )
    assert read_abstracts(tmp_path / "a.xml")[0][0].title == title


def test_half_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(REAL_SHAPE[: len(REAL_SHAPE) // 2], encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"{path} is not whole XML")):
        read_abstracts(path)


def test_inner_text_keeps_everything_and_powers() -> None:
    from xml.etree import ElementTree

    element = ElementTree.fromstring(
        "<a>x<i>y<b>z</b></i>10<sup>-4</sup>, <sup>14</sup>C, 5<sup>th</sup>, Ca<sup>2+</sup></a>"
    )
    assert inner_text(element) == "xyz10^-4, 14C, 5th, Ca2+"
    assert inner_text(None) == ""


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("10<sup>5.3</sup>, 10 <sup>-3</sup>, 10<sup> 9</sup>/L", "10^5.3, 10^-3, 10^9/L"),
        ("2<sup>-ΔΔC<sub>t</sub></sup> at 5 <sup>14</sup>C", "2^-ΔΔCt at 5 14C"),
        ("<m:math><m:msup><m:mn>10</m:mn><m:mn>9</m:mn></m:msup></m:math>/L", "10^9/L"),
        ("<m:msup>\n<m:mn>10</m:mn>\n<m:mrow><m:mo>-</m:mo>\n<m:mn>4</m:mn></m:mrow></m:msup> a", "10^-4 a"),
        ("log<sub>10</sub>4, <m:msub><m:mi>x</m:mi><m:mn>2</m:mn></m:msub> &lt; 3", "log10 4, x2 < 3"),
    ],
)
def test_exponents_stay_apart_from_what_they_raise(markup: str, text: str) -> None:
    from xml.etree import ElementTree

    element = ElementTree.fromstring(f'<a xmlns:m="http://www.w3.org/1998/Math/MathML">{markup}</a>')
    assert inner_text(element) == text


def test_a_report_can_say_what_was_fetched(serve, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The command stands on in what `prepare` makes of the folder; a folder that fetch did not make has none."""
    folder = tmp_path / "my articles"
    server = serve({date(2019, 1, 1): 3})
    fetch(client(server), "leukemia[mh] AND 2019[dp]", folder)
    command = fetch_command(folder)
    given, until = command.split("  # until ")
    words = ["python", "-m", "examples.leukemia", "fetch", "leukemia[mh] AND 2019[dp]", "--out", str(folder)]
    assert shlex.split(given) == words and date.fromisoformat(until) == date.today()
    assert fetch_command(tmp_path) == fetch_command(folder / "plan.json") == ""
    prepared = tmp_path / "prepared"
    assert main(["prepare", str(folder), "--out", str(prepared)]) == 0
    commands = json.loads((prepared / "counts.json").read_text(encoding="utf-8"))["commands"]
    assert len(commands) == 2 and commands[0] == command and " prepare " in commands[1]
    (folder / "plan.json").write_text("{}")
    assert main(["prepare", str(folder), "--out", str(prepared)]) == 2
    assert "plan.json is no plan of fetch: move it away" in capsys.readouterr().err
