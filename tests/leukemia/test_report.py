"""The report: what was claimed beside what was measured, worked by hand; nothing that only eyes can read; texts as text."""

from __future__ import annotations

import copy
import re
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from examples.leukemia import report
from examples.leukemia.notice import NOTICE
from examples.leukemia.prepare import counts_table
from examples.leukemia.report import claim, write_report

EVIL = "<script>alert('x')</script> & \"quoted\""


def score(value: float, n: int = 20) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def row(value: float) -> dict:
    """What a model scored."""
    return {
        "text": {"perplexity": score(9 - value), "bits_per_byte": score(0.5, n=1) | {"low": None, "high": None}},
        "subtype": {
            "accuracy": score(value),
            "macro_f1": score(value),
            "majority": 0.25,
            "confusion": {"ALL": {"ALL": 3, "AML": 1}, "AML": {"ALL": 0, "AML": 4}},
        },
        "summary": None,
        "question": {
            "f1": score(value),
            "f1_closed_book": score(0.1),
            "f1_retrieved": score(0.375),
            "f1_open": score(0.0625),
            "exact_match": None,
        },
        "terms": {"precision": score(value), "recall": score(value), "f1": score(value)},
        "plain": {
            "sari": score(41.5),
            "source_sari": 54.25,
            "chrf": score(38.5),
            "source_chrf": 54.0,
            "reading_grade": score(12.25),
            "source_grade": 15.5,
            "expected_grade": 8.5,
        },
        "lab": {"accuracy": score(value), "f1": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9}, "majority": 0.375},
    }


METRICS = {
    "notice": NOTICE,
    "settings": {"model": "folder", "rank": 8},
    "made_with": {
        "commands_before": [],
        "command": "python -m examples.leukemia run",
        "python": "3.11",
        "machine": "a machine",
        "int8_path": "the C kernels",
        "packages": {"torch": "2.13.0"},
    },
    "data": {
        "steps": [{"step": "read", "rows": 1234}, {"step": "clean", "entities": 7}],
        "articles": {"train": 70, "validation": 10, "test": 20},
        "items": {
            "subtype": {"train": 70, "validation": 10, "test": 20, "cut_to_fit": 3, "words_cut": 45, "left_out": 17}
        },
    },
    "scores": {"base": row(0.15), "base+LoRA": row(0.9), "LoRA+int8": row(0.85)},
    "worst": {
        "question": [
            {
                "pubmed_id": "SYN-0007",
                "prompt": EVIL,
                "expected": "imatinib",
                "answers": {"base": "the the", "base+LoRA": "imatinib", "LoRA+int8": EVIL},
                "score": {"base": 0.0, "base+LoRA": 1.0, "LoRA+int8": 0.125},
            }
        ],
        "lab": [],
    },
    "trainable": "8 of 100 parameters",
    "training": {"tasks": [{"step": 1, "loss": 3.5, "eval_loss": None}, {"step": 2, "loss": 1.25, "eval_loss": 1.75}]},
    "largest_merge_change": 0.001,
    "quantization": {"table": "layer  bytes"},
    "size_bytes": {"base": 1000, "adapter": 10, "float32": 1000, "bfloat16": 500, "int8": 255},
    "prompt_tokens": 64,
    "inference": {
        "float32": {"prefill_ms": 10.0, "decode_ms_per_token": 8.0},
        "bfloat16": {"prefill_ms": 4.0, "decode_ms_per_token": 4.0},
        "int8": {"prefill_ms": 5.0, "decode_ms_per_token": 3.0},
    },
    "seconds": 12.5,
}
CHARTS = {"items", "model_size", "prefill_time", "decode_time", "text_perplexity", "subtype_accuracy", "question_f1"}
CHARTS |= {
    "open_question_f1",
    "terms_f1",
    "plain_sari",
    "plain_reading_grade",
    "lab_accuracy",
    "confusion",
    "training_tasks",
}


class Page(HTMLParser):
    """The page's elements, refusing what is not closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += f"{data} "

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("report")
    write_report(METRICS, out)
    return out, (out / "report.html").read_text(encoding="utf-8")


def test_the_claim_beside_what_was_measured(tmp_path: Path) -> None:
    """Of 1000 and 500 bytes 255 are 74.5% and 49% less; 5 and 3 ms are 2 and 8/3 of the speed of 10 and 8, 4/5 and 4/3 of 4's.

    30% faster is 1.3 times the speed: 4/3 is that, although the time is just 25% less.
    """
    size, read, write = claim(METRICS)
    assert (size["claimed"], read["claimed"], write["claimed"]) == ("40% smaller", "30% faster", "30% faster")
    assert size["float32"] == "74.5% smaller: at least what was claimed"
    assert size["bfloat16"] == "49.0% smaller: at least what was claimed"
    assert read["float32"] == "100.0% faster (2.00 times the speed): at least what was claimed"
    assert read["bfloat16"] == "20.0% slower (0.80 times the speed): less than was claimed"
    assert write["float32"] == "166.7% faster (2.67 times the speed): at least what was claimed"
    assert write["bfloat16"] == "33.3% faster (1.33 times the speed): at least what was claimed"
    assert read["measure"] == "time to read 64 tokens"
    slow = copy.deepcopy(METRICS)
    slow["inference"]["int8"]["prefill_ms"] = 10 / 1.29  # 22.5% less time
    assert claim(slow)[1]["float32"] == "29.0% faster (1.29 times the speed): less than was claimed"
    half = copy.deepcopy(METRICS)
    del half["size_bytes"]["float32"], half["inference"]["float32"]  # a run in bfloat16
    assert [row["float32"] for row in claim(half)] == ["not measured"] * 3
    write_report(half, tmp_path)
    assert "the weights of this run are bfloat16 (--dtype)" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_scores_and_claim_are_on_the_page(written) -> None:
    text = " ".join(Page(written[1]).text.split())
    for words in (
        "0.850 [0.800, 0.900], n=20",
        "0.500, n=1",  # no interval
        "F1, with retrieval 0.375",
        "F1, open questions 0.062",
        "Written answers end 8 tokens after the length of the longest that is expected in their task, and after 128",
        "accuracy always the most frequent label: 0.250 0.150 [0.100, 0.200], n=20",
        "accuracy always the most frequent label: 0.375 0.150",
        "SARI the source as it is: 54.2 41.5",
        "reading grade (lower is better) the source: 15.5 the expected answers: 8.500 12.2",
        "F1 0.000, n=9 0.000, n=9",  # resamples that are all alike are no certainty
        "41.5 [41.5, 41.5], n=20",
        "There are no held-out items of this task.",
        "1,234",
        "words cut left out subtype 70 10 20 3 45 17",
        "74.5% smaller: at least what was claimed",
        "exact match no items",
        "python -m examples.leukemia run Python 3.11; torch 2.13.0; 12.5 s",
        "rank = 8",
        NOTICE,
    ):
        assert words in text, words
    assert text.index("expected imatinib base 0.000 the the") < text.index("LoRA+int8 0.125 <script>")


def test_references_are_no_metrics_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table they stand in the heading of a row; in the chart their line crosses the bars of their metric alone."""
    drawn: dict[str, Any] = {}
    save = report._save

    def saved(axes: Any, path: Path, alt: str) -> report.Chart:
        drawn[path.stem] = axes
        return save(axes, path, alt)

    monkeypatch.setattr(report, "_save", saved)
    write_report(METRICS, tmp_path)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert text.count("always the most frequent label") == 2 and "majority" not in text and "source grade" not in text

    def lines(stem: str) -> list[list[float]]:
        return [
            line.get_segments()[0].ravel().tolist() for line in drawn[stem].collections if line.get_label()[0] != "_"
        ]

    assert [axis.get_text() for axis in drawn["subtype_accuracy"].get_xticklabels()] == ["accuracy", "macro-F1"]
    assert lines("subtype_accuracy") == [[-0.5, 0.25, 0.5, 0.25]]
    assert lines("plain_sari") == [[-0.5, 54.25, 0.5, 54.25], [0.5, 54.0, 1.5, 54.0]]
    legend = [text.get_text() for text in drawn["plain_sari"].get_legend().get_texts()]
    assert legend.count("the source as it is") == 1 and set(legend) > set(METRICS["scores"])
    assert lines("plain_reading_grade") == [[-0.5, 15.5, 0.5, 15.5], [-0.5, 8.5, 0.5, 8.5]]


def test_everything_can_be_read_without_seeing_and_on_a_small_screen(written) -> None:
    """Every picture has its values in words, every table a caption and scopes, headings go down by one."""
    out, text = written
    page = Page(text)
    pictures = page.all("img")
    assert len(pictures) == len(CHARTS) and {path.stem for path in out.glob("*.png")} == CHARTS
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in CHARTS)
    alts = " ".join(picture["alt"] for picture in pictures)
    for words in (
        "accuracy, LoRA+int8: 0.850 [0.800, 0.900]",
        "int8 3 ms",
        "3.500 to 1.250; validation from 1.750",
        "LoRA+int8: 7 of 8 on the diagonal",
        "subtype 70, 10, 20",
    ):
        assert words in alts, words
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in cell for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    anchors = {link["href"] for link in page.all("a")}
    assert anchors <= {f"#{heading['id']}" for heading in page.all("h2")} and len(anchors) == len(page.all("h2"))
    assert page.all("html")[0]["lang"] == "en" and {
        "name": "viewport",
        "content": "width=device-width, initial-scale=1",
    } in (page.all("meta"))
    tables_within = re.findall(r'<div class="wide"[^>]*>\s*<table>', text)
    assert len(tables_within) == len(page.all("table"))  # a wide one scrolls alone, not the page
    assert "@media print" in text and "@media (max-width" in text


def test_the_page_stands_alone_and_texts_stay_text(written) -> None:
    _, text = written
    assert not Page(text).all("script") and "&lt;script&gt;" in text
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and not Page(text).all("link")


def test_a_step_that_found_nothing_says_so(tmp_path: Path) -> None:
    """It was done all the same: neither the page nor the screen leaves it out, or without a count."""
    changed = copy.deepcopy(METRICS)
    changed["data"]["steps"] = [{"step": "read", "rows": 1234}, {"step": "clean"}, {"step": "retracted", "left out": 0}]
    write_report(changed, tmp_path)
    words = " ".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).text.split())
    assert "read rows 1,234 clean found nothing 0 retracted left out 0 split" in words
    told = counts_table({"read": {"rows": 1234}, "clean": {}, "duplicates": {"kept": 0}})
    assert [line.split() for line in told.splitlines()] == [
        ["read"],
        ["1,234", "rows"],
        ["clean"],
        ["0", "found", "nothing"],
        ["duplicates"],
        ["0", "kept"],
    ]


def test_drawing_shows_a_bar_where_it_takes_over_a_second(tmp_path: Path, monkeypatch, capsys) -> None:
    draw = report._grouped
    monkeypatch.setattr(report, "_grouped", lambda *given: time.sleep(0.4) or draw(*given))
    write_report(METRICS, tmp_path)
    assert re.search(r"drawing: +\d+ chart", capsys.readouterr().err)


def test_a_run_of_almost_nothing(tmp_path: Path) -> None:
    bare = copy.deepcopy(METRICS)
    bare["scores"] = {name: dict.fromkeys(METRICS["scores"]["base"]) for name in METRICS["scores"]}
    bare["worst"] = {}
    write_report(bare, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("There are no held-out items of this task.") == 7
    assert "No answers were written." in page.text and len(page.all("img")) == 5
