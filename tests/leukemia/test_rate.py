"""Rating: alpha against published values, the page through HTTP, blinding, and ratings that outlive a kill."""

from __future__ import annotations

import html
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest

from examples.leukemia.data import UserError
from examples.leukemia.index import Index
from examples.leukemia.rate import (
    DIMENSIONS,
    Pair,
    Ratings,
    is_ours,
    krippendorff_alpha,
    make_server,
    read_pairs,
    report_table,
)

PAIRS = [
    Pair(f"q{n}", f"Question {n} <b>?</b>", {"base": f"first text {n}", "tuned": f"second text {n}"}) for n in range(8)
]


def test_alpha_of_krippendorffs_example() -> None:
    """Computing Krippendorff's Alpha-Reliability (2011), part C: 4 observers, 12 units, missing values; ordinal 0.815."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [[int(v) for v in column if v != "."] for column in zip(*(row.split() for row in rows))]
    alpha = krippendorff_alpha(units)
    assert alpha is not None and round(alpha, 3) == 0.815


def test_alpha_by_hand() -> None:
    """Two units (1, 1), (1, 2): totals n1 = 3, n2 = 1; the distance of 1 and 2 is (4 - 2)^2 = 4.

    Observed 2 * 4 = 8, expected 2 * 3 * 1 * 4 = 24, alpha = 1 - 3 * 8 / 24 = 0.
    """
    assert krippendorff_alpha([[1, 1], [1, 2]]) == 0.0
    assert krippendorff_alpha([[1, 1], [5, 5], [3]]) == 1.0
    assert krippendorff_alpha([[2, 2], [2, 2]]) is None and krippendorff_alpha([[1], [2]]) is None


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Ratings, int]]:
    ratings = Ratings(tmp_path / "ratings.sqlite", PAIRS)
    server = make_server(ratings, ["anna", "ben"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ratings, server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def rate_shown(port: int, rater: str, value: int) -> None:
    """Give `value` to everything on the page that the rater is shown, as its script does."""
    page = ask(port, "GET", f"/rate?rater={rater}")[1]
    item = re.search(r'data-item="([^"]+)"', page)[1]
    rater = re.search(r'data-rater="([^"]+)"', page)[1]
    for name in sorted(set(re.findall(r'name="(\[[^"]+\])"', page))):
        place, dimension = json.loads(html.unescape(name))
        row = {"rater": rater, "item": item, "place": place, "dimension": dimension, "value": value}
        assert ask(port, "POST", "/rating", row) == (200, "stored")


def test_the_page_is_blind_escaped_and_goes_on(served) -> None:
    ratings, port = served
    assert "anna" in ask(port, "GET", "/")[1]
    page = ask(port, "GET", "/rate?rater=anna")[1]
    assert "base" not in page and "tuned" not in page and "no medical device" in page
    assert "Question 0 &lt;b&gt;?" in page and "<b>?" not in page
    assert all(dimension in page for dimension in DIMENSIONS)
    rate_shown(port, "anna", 4)
    assert len(ratings.all()) == 2 * len(DIMENSIONS)
    assert "Question 1" in ask(port, "GET", "/rate?rater=anna")[1]
    assert "Question 0" in ask(port, "GET", "/rate?rater=ben")[1]
    orders = {tuple(pair.order(rater)) for pair in PAIRS for rater in ("anna", "ben")}
    assert len(orders) == 2  # neither system always comes first
    for _ in PAIRS[1:]:
        rate_shown(port, "anna", 4)
    assert "You have rated everything" in ask(port, "GET", "/rate?rater=anna")[1]


def test_a_rating_lands_at_the_system_that_was_shown(served) -> None:
    ratings, port = served
    for rater in ("anna", "ben"):
        for pair in PAIRS:
            for place, system in enumerate(pair.order(rater)):
                row = {"rater": rater, "item": pair.id, "place": place, "dimension": "trust", "value": 5}
                row["value"] = 5 if system == "tuned" else 2
                assert ask(port, "POST", "/rating", row)[0] == 200
    report = ratings.report()["trust"]
    assert report == {"alpha": 1.0, "ratings": 32, "means": {"base": 2.0, "tuned": 5.0}}


def test_a_changed_mind_replaces_the_rating(served) -> None:
    ratings, port = served
    for value in (1, 3):
        row = {"rater": "ben", "item": "q0", "place": 0, "dimension": "safety", "value": value}
        assert ask(port, "POST", "/rating", row)[0] == 200
    assert [row[-1] for row in ratings.all()] == [3]
    assert re.search(r'name="\[0, &quot;safety&quot;\]" value="3" checked', ask(port, "GET", "/rate?rater=ben")[1])


def test_patients_data_and_half_characters_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        r'{"id": "1", "question": "Has Mr. John Smith AML?", "answers": {"a": "MRN 1234567", "b": "\ud800"}}'
    )
    (pair,) = read_pairs(path)
    assert pair.question == "Has [name] AML?" and pair.answers == {"a": "[record number]", "b": "?"}


def test_other_ends_of_lines_stay_in_a_text(tmp_path: Path) -> None:
    rows = [
        {"id": n, "question": "One\u2028two\u0085three?", "answers": {"a": "x\u2029", "b": "y\x0b"}} for n in (1, 2)
    ]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8", newline="")
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert [pair.question for pair in pairs] == ["One\u2028two\u0085three?"] * 2


def test_a_patients_name_is_not_printed_as_a_systems() -> None:
    report = {"safety": {"alpha": None, "ratings": 2, "means": {"Mr. John Smith": 4.0, "tuned": 3.0}}}
    assert report_table(report).endswith("[name] 4.00, tuned 3.00")


def test_this_machine_has_two_names_and_a_browser_leaves_out_port_80(served) -> None:
    _, port = served
    assert ask(port, "GET", "/", Host=f"localhost:{port}")[0] == 200
    assert ask(port, "GET", "/", Host="localhost")[0] == 403 == ask(port, "GET", "/", Host="127.0.0.1:1")[0]
    for host in ("127.0.0.1", "localhost", "127.0.0.1:80"):
        assert is_ours(host, None, 80) and is_ours(host, f"http://{host}", 80)
    assert not is_ours("evil.example", None, 80) and not is_ours("127.0.0.1", "http://evil.example", 80)


def test_what_is_no_rating_is_refused(served) -> None:
    ratings, port = served
    good = {"rater": "anna", "item": "q0", "place": 0, "dimension": "trust", "value": 3}
    for change in ({"rater": "eve"}, {"item": "zz"}, {"place": 2}, {"dimension": "x"}, {"value": 6}, {"value": "3"}):
        assert ask(port, "POST", "/rating", good | change)[0] in (400, 403)
    for change in (
        {"value": True},
        {"value": 3.0},
        {"place": True},
        {"place": 0.0},
    ):  # to Python they equal 1, 3, 1 and 0
        assert ask(port, "POST", "/rating", good | change)[0] == 400
    assert ask(port, "POST", "/rating", [])[0] == 400
    assert ask(port, "POST", "/rating", good, Origin="http://evil.example")[0] == 403
    assert ask(port, "POST", "/rating", good, Host="evil.example")[0] == 403
    assert ask(port, "POST", "/rating", good, Content_Type="text/plain")[0] == 403
    assert ask(port, "GET", "/rate?rater=eve")[0] == 404
    assert ask(port, "POST", "/rating", good, Origin=f"http://localhost:{port}")[0] == 403  # of another page than Host
    assert ratings.all() == []


def send_raw(port: int, request: bytes) -> bytes:
    """What the server answers to these very bytes, after which nothing more is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


def post_raw(port: int, body: bytes, *headers: str) -> bytes:
    """POST a body; without headers, its length is told."""
    lines = ["POST /rating HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    lines += [*(headers or (f"Content-Length: {len(body)}",)), "", ""]
    return send_raw(port, "\r\n".join(lines).encode() + body)


GOOD = {"rater": "anna", "item": "q0", "place": 0, "dimension": "trust", "value": 3}
MALFORMED = {
    "nested too deeply": (b"[" * 9_000,),
    "nested objects": (b'{"a":' * 1_800,),
    "no JSON": (b"anna",),
    "empty": (b"",),
    "not UTF-8": (b'{"rater": "\xff\xfe"}',),
    "half a character": (json.dumps(GOOD | {"item": "\ud800", "place": "\ud800"}).encode(),),
    "too many digits": (b'{"rater": "anna", "value": ' + b"9" * 5_000 + b"}",),
    "a list for an item": (json.dumps(GOOD | {"item": ["q0"]}).encode(),),
    "an object for a dimension": (json.dumps(GOOD | {"dimension": {}}).encode(),),
    "no number": (json.dumps(GOOD | {"value": float("nan")}).encode(),),
    "a negative length": (b"{}", "Content-Length: -1"),
    "a length that is no number": (b"{}", "Content-Length: two"),
    "digits of another script": (b"{}", "Content-Length: \u0662"),
    "a length longer than the body": (json.dumps(GOOD).encode()[:-1], "Content-Length: 5000"),
    "a huge length": (json.dumps(GOOD).encode(), f"Content-Length: {10**30}"),
    "two lengths": (json.dumps(GOOD).encode(), "Content-Length: 2", f"Content-Length: {len(json.dumps(GOOD))}"),
    "no length": (json.dumps(GOOD).encode(), "Accept: */*"),
    "chunked": (b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    "more than any rating has": (json.dumps(GOOD).encode() + b" " * 100_000,),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_answered_in_a_line(case: str, served, capfd: pytest.CaptureFixture) -> None:
    """With 400; nothing is on the server's terminal, nothing is stored, and the next rating is."""
    ratings, port = served
    body, *headers = MALFORMED[case]
    head, _, text = post_raw(port, body, *headers).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 ") and text.startswith(b"not understood: ") and len(text.splitlines()) == 1
    assert len(text) < 200 and capfd.readouterr().err == "" and ratings.all() == []
    assert ask(port, "POST", "/rating", GOOD) == (200, "stored")


@pytest.mark.parametrize(
    "path", ["http://[/", "/rate?rater=%ff", "/" + "a" * 70_000, "*", "/rate?rater=anna&rater=eve"]
)
def test_a_malformed_address_is_answered(path: str, served, capfd: pytest.CaptureFixture) -> None:
    _, port = served
    answer = send_raw(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 ") and capfd.readouterr().err == ""
    assert ask(port, "GET", "/")[0] == 200


def test_who_hangs_up_is_not_waited_for_and_not_reported(served, capfd: pytest.CaptureFixture) -> None:
    """In the middle of a body, and before the answer is read; closed with a reset, as by a browser that is killed."""
    ratings, port = served
    page = f"GET /rate?rater=anna HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    half = f"POST /rating HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 500\r\n\r\n{{"
    before = threading.active_count()
    for request in [page, half] * 20:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(request.encode())
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before and capfd.readouterr().err == "" and ratings.all() == []
    assert ask(port, "POST", "/rating", GOOD) == (200, "stored")


def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr("examples.leukemia.rate._Handler.timeout", 0.2)
    _, port = request.getfixturevalue("served")
    sent = f"POST /rating HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 500\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.0 400 ")


def test_ratings_that_are_taken_away_while_the_page_is_served(served, capfd: pytest.CaptureFixture) -> None:
    ratings, port = served
    ratings.path.write_bytes(b"no database at all, and longer than SQLite's header is" * 100)
    assert ask(port, "GET", "/rate?rater=anna")[0] == 500 and ask(port, "POST", "/rating", GOOD)[0] == 500
    assert ask(port, "GET", "/")[0] == 200 and capfd.readouterr().err == ""


def test_two_raters_at_once(served) -> None:
    """Each in a thread of their own, all that both say is stored."""
    ratings, port = served
    said = [
        GOOD | {"rater": rater, "item": pair.id, "place": place, "dimension": dimension}
        for pair in PAIRS
        for place in (0, 1)
        for dimension in DIMENSIONS
        for rater in ("anna", "ben")
    ]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda row: ask(port, "POST", "/rating", row), said)) == {(200, "stored")}
    assert len(ratings.all()) == len(said)


def pairs_file(path: Path) -> Path:
    path.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in PAIRS))
    return path


def test_ratings_outlive_a_kill_and_the_report_shows_them(tmp_path: Path, root: Path, command) -> None:
    pairs, path = pairs_file(tmp_path / "pairs.jsonl"), tmp_path / "ratings.sqlite"
    line = [sys.executable, "-m", "examples.leukemia", "rate", str(pairs), "--ratings", str(path), "--port", "0"]
    process = subprocess.Popen([*line, "--raters", "anna,ben"], cwd=root, stdout=subprocess.PIPE, text=True)
    port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
    for rater in ("anna", "ben"):
        rate_shown(port, rater, 4)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert len(Ratings(path, PAIRS).all()) == 4 * len(DIMENSIONS)
    done = command("rate", pairs, "--ratings", path, "--raters", "anna,ben", "--report")
    assert done.returncode == 0 and re.search(r"trust +- +4  base 4.00, tuned 4.00", done.stdout), done.stdout


def test_a_raters_name_that_is_not_utf_8(tmp_path: Path, root: Path) -> None:
    """Such as a terminal of another encoding sends: half a character is shown as a question mark, and all is stored."""
    line = [sys.executable, "-m", "examples.leukemia", "rate", str(pairs_file(tmp_path / "p.jsonl")), "--port", "0"]
    line += ["--ratings", str(tmp_path / "r.sqlite"), "--raters", b"J\xfcrgen,ben"]
    process = subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    port = int(re.search(r":(\d+)/ for J\?rgen, ben", process.stdout.readline())[1])
    assert "J?rgen" in ask(port, "GET", "/")[1]
    rate_shown(port, "J%3Frgen", 4)
    process.terminate()
    assert process.communicate(timeout=60)[1].count("\n") == 1 and process.returncode == 143
    assert {rater for rater, *_ in Ratings(tmp_path / "r.sqlite", PAIRS).all()} == {"J?rgen"}


def test_ctrl_c_ends_it(tmp_path: Path, root: Path) -> None:
    heedful = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('examples.leukemia', run_name='__main__')"
    )
    line = [sys.executable, "-c", heedful, "rate", str(pairs_file(tmp_path / "p.jsonl")), "--port", "0"]
    line += ["--ratings", str(tmp_path / "r.sqlite")]
    process = subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "stopped; every rating is kept" in process.communicate(timeout=60)[1] and process.returncode == 130


def test_bad_input(tmp_path: Path, refused) -> None:
    good = pairs_file(tmp_path / "good.jsonl")
    bad = {
        "": "holds no pair",
        "{}\n": "line 1: is no object",
        "[" * 100_000: "line 1: is no object",
        '{"id": 1, "question": null, "answers": {"a": "x", "b": "y"}}\n': "line 1: is no object",
        '{"id": 1, "question": "q", "answers": {"a": "x"}}\n': "needs two answers",
    }
    for content, words in bad.items():
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(UserError, match=re.escape(words)):
            read_pairs(tmp_path / "bad.jsonl")
    Ratings(tmp_path / "other.sqlite", PAIRS[:2])
    index = tmp_path / "index.sqlite"
    Index(index, create=True).close()
    cases = [
        ([good, "--ratings", index], "another kind of database"),
        ([good, "--raters", "anna"], "agreement needs two or more"),
        ([tmp_path / "none", "--ratings", tmp_path / "r.sqlite"], "cannot be read"),
        ([good, "--ratings", tmp_path / "other.sqlite"], "holds ratings of other pairs"),
        ([good, "--ratings", good], "cannot hold ratings"),
        ([good, "--ratings", tmp_path / "r.sqlite", "--port", "99999"], "cannot be had"),
    ]
    for arguments, words in cases:
        assert words in refused("rate", *arguments)
