"""Reading, cleaning, splitting and annotating abstracts."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from examples.leukemia.__main__ import main
from examples.leukemia.annotate import blank_subtypes, find_subtypes, subtype_of
from examples.leukemia.data import Record, UserError, clean, read_abstracts, split
from examples.leukemia.gazetteer import load_gazetteer
from examples.leukemia.questions import read_questions
from examples.leukemia.synthetic import ABSTRACTS, LYMPHOMA, LYMPHOMA_COUNT, QUESTIONS_FILE, read_diseases, shipped_csvs


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_counts_and_cleans(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "\ufeffabstract,pubmed_id,title,subtype\n"
        '"Two\n lines &amp; <i>BCR</i>-ABL, p &lt; 0.05.",1,"A ""title""",CML\n'
        "again,1,T,\n"
        ",2,T,\n"
        "No title.,3,,\n"
        "short,4,,\n"
        "\n",
    )
    records, counts = read_abstracts(path)
    assert records == [
        Record("1", 'A "title"', "Two lines & BCR-ABL, p < 0.05.", "CML"),
        Record("3", "", "No title."),
        Record("4", "", "short"),
    ]
    assert list(counts.values()) == [5, 1, 1, 2]


def test_a_very_long_field_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"pubmed_id,title,abstract\n1,t,{'word ' * 60_000}\n")
    assert len(read_abstracts(path)[0][0].abstract) == 299_999


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lacks the column pubmed_id, title, abstract (its first line has: nothing)"),
        (b"pubmed_id,abstract\n1,x\n", "lacks the column title (its first line has: pubmed_id, abstract)"),
        (b"pubmed_id,title,abstract\n", "no row with a pubmed_id and an abstract"),
        (b"pubmed_id,title,abstract\n1,t,caf\xe9\n", "is not UTF-8"),
        (
            b'pubmed_id,title,abstract\n1,t,"a\nb"\n2,t,"a\n3,t,b\n',
            "the row from line 4: is not CSV (unexpected end of data)",
        ),
        (b'pubmed_id,title,abstract\n1,t,"a\n2,t,"b"\n3,t,c\n', "the row from line 2: is not CSV ("),
        (
            b"pubmed_id,title,abstract\n1,t,a\n2,t,a, b, c\n",
            "line 3: has 5 fields, the first line 3: put quotation marks",
        ),
        (b"pubmed_id,title,abstract\n1,t\n", "line 2: has 2 fields, the first line 3"),
        (
            b"pubmed_id,title,abstract,abstract\n1,t,a,b\n",
            "has the column abstract more than once: rename or remove one",
        ),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_abstracts(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("name", ["pubmed_id", "title", "year"])
def test_nan_is_refused(tmp_path: Path, name: str) -> None:
    row = json.dumps({"pubmed_id": 1, "title": "t", "abstract": "a", "year": 2000} | {name: float("nan")})
    with pytest.raises(UserError, match=r"line 1: is not JSON \(it has NaN, where JSON has null\)"):
        read_abstracts(write(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize(
    ("date", "year"),
    [
        ("2012", 2012),
        ("2012.0", 2012),
        (" 2012-03-01", 2012),
        ("Mar-Apr 2012", 2012),
        ("5/2012", 2012),
        ("20120301", 2012),
        ("20129901", None),
        ("20201", None),
        ("99", None),
        ("1066", None),
        ("12012", None),
        ("", None),
        ("unknown", None),
    ],
)
def test_a_year_has_four_digits(tmp_path: Path, date: str, year: int | None) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"pubmed_id,title,abstract,year\n1,On AML,AML.,{date}\n")
    assert [record.year for record in read_abstracts(path)[0]] == [year]


@pytest.mark.parametrize("damaged", ["1.23E+07", "1,23E+07", " 1.2345e+07 ", "3E+07", "1.23E07", "-1.23E+07", "1e+16"])
def test_an_id_that_a_spreadsheet_has_shortened_is_refused(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"pubmed_id": name, "title": "On AML", "abstract": "AML."} for name in ("12", damaged)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        read_abstracts(path)
    words = (str(path), "row 2", repr(damaged.strip()), "as text")
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_an_id_with_an_e_is_one(tmp_path: Path) -> None:
    ids = ["2E10", "E+07", "10.1016/j.e.2012+07", "7E", "1.23E+", "PMC1.2E+07x", "12e5a"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"pubmed_id": i, "title": "T", "abstract": "AML."}) + "\n" for i in ids))
    assert [record.pubmed_id for record in read_abstracts(path)[0]] == ids


def test_an_id_is_one_however_a_spreadsheet_wrote_it(tmp_path: Path) -> None:
    ids = ("12345678", "12345678.0", " 12345678 ", "012345678", "PMC12.0", "SYN-L1")
    path = write(tmp_path / "a.csv", "pubmed_id,title,abstract\n" + "".join(f"{one},t,a\n" for one in ids))
    records, counts = read_abstracts(path)
    assert [record.pubmed_id for record in records] == ["12345678", "012345678", "PMC12.0", "SYN-L1"]
    assert counts["left out: pubmed_id came before"] == 2
    write(tmp_path / "a.jsonl", '{"pubmed_id": 12345678.0, "title": "[Not Available].", "abstract": "a"}')
    assert read_abstracts(tmp_path / "a.jsonl")[0] == [Record("12345678", "", "a")]
    questions = write(tmp_path / "q.csv", "question,answer,pubmed_id\nWhat?,That.,12345678.0\n")
    assert read_questions([questions])[0].pubmed_id == "12345678"


def test_half_a_character_and_half_a_section_do_no_harm(tmp_path: Path) -> None:
    """JSON can spell half of a surrogate pair, which no file and no database takes."""
    row = r'{"pubmed_id": "1\ud800", "title": "t\udfff", "abstract": "\\ud800 of imatinib", "journal": "\ud800"'
    path = write(tmp_path / "a.jsonl", row + r', "sections": [["a"], 3, ["LABEL", "x\ud800"]]}')
    (record,) = read_abstracts(path)[0]
    str(record).encode()
    assert record.pubmed_id == "1?" and record.sections == (("LABEL", "x?"),) and record.abstract == "LABEL: x?"


@pytest.mark.parametrize(
    ("title", "abstract", "column"),
    [
        ("RETRACTED: On AML", "Text.", ""),
        ("Retracted article: on AML", "Text.", ""),
        ("[Retracted] On AML", "Text.", ""),
        ("On AML", "This article has been retracted. Text.", ""),
        ("On AML", "Text.", "Yes"),
        ("On AML", "Text.", "1.0"),
        ("On AML", "Text.", "Retracted"),
    ],
)
def test_retractions_are_read(tmp_path: Path, title: str, abstract: str, column: str) -> None:
    path = write(tmp_path / "a.csv", f"pubmed_id,title,abstract,retracted\n1,{title},{abstract},{column}\n")
    assert read_abstracts(path)[0][0].retracted
    again = write(tmp_path / "b.csv", f"pubmed_id,title,abstract,retracted\n1,T,A,no\n1,{title},{abstract},{column}\n")
    assert read_abstracts(again)[0] == [Record("1", "T", "A", retracted=True)]  # the first text, the later retraction


def test_a_notice_and_talk_of_retraction_are_no_retraction(tmp_path: Path) -> None:
    rows = "1,Retraction: On AML,We retract.,\n2,On retracted articles,They were retracted.,false\n3,T,A,0\n"
    path = write(tmp_path / "a.csv", f"pubmed_id,title,abstract,retracted\n{rows}")
    assert [record.retracted for record in read_abstracts(path)[0]] == [False] * 3


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for name, words in {"none.csv": "cannot be read", "none.xml": "cannot be read", ".": "holds no .xml file"}.items():
        with pytest.raises(UserError, match=words):
            read_abstracts(tmp_path / name)


def test_split_keeps_articles_apart_and_in_place() -> None:
    records = [Record(str(n), "t", "a") for n in range(3000)]
    parts = split(records)
    ids = {name: {record.pubmed_id for record in part} for name, part in parts.items()}
    assert sum(map(len, ids.values())) == 3000 == len(set.union(*ids.values()))
    # shares 0.7, 0.1, 0.2 within five standard errors
    for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(len(ids[name]) / 3000 - share) < 5 * (share * (1 - share) / 3000) ** 0.5
    fewer = split(records[::2])
    assert all({r.pubmed_id for r in fewer[name]} <= ids[name] for name in ids)
    assert {r.pubmed_id for r in split(records, seed=1)["test"]} != ids["test"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Chronic myeloid leukaemia (CML) and acute lymphoblastic leukemias", {"CML", "ALL"}),
        ("all patients had AML1-ETO", set()),
        ("acute promyelocytic leukemia, a kind of AML", {"APL"}),
        ("ALL patients", {"ALL"}),
        ("hairy cell leukemia", {"other"}),
        ("B-CLL cells; CLL/SLL", {"CLL"}),
    ],
)
def test_find_subtypes(text: str, found: set[str]) -> None:
    assert find_subtypes(text) == found


def test_title_decides_and_two_subtypes_are_none() -> None:
    assert subtype_of("Imatinib in CML", "unlike AML") == "CML"
    assert subtype_of("Imatinib", "CML, unlike AML") is None
    assert subtype_of("Imatinib", "nothing here") is None
    given = {"apl": "APL", "Other": "other", "Burkitt": "Burkitt", "": "CML"}
    assert {each: subtype_of("Imatinib in CML", "", given=each) for each in given} == given


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        ("Acute myeloid leukemia (AML) with AML1-ETO. All patients", "leukemia with AML1-ETO. All patients"),
        ("non-APL and non-acute promyelocytic leukaemia", "non-leukemia and non-leukemia"),
        ("chronicmyeloid leukemia and acute lympho-blastic leukemia", "leukemia and leukemia"),
        ("acute myelogenous and lymphocytic leukemias", "leukemias"),
        ("promyelocytic acute leukaemia, acute promyelocytic (M3) leukemia", "leukaemia, leukemia"),
        ("leukemia, myeloid, acute; acute myelogenous leukemic cells", "leukemia; leukemic cells"),
        ("trial AAML0531 in cALLs, OCI-AML3 and ALL_IDB", "trial leukemia in leukemia, OCI-leukemia and leukemia"),
        ("acute leukemia, SMALL CELLS, chronic phase, all myeloid cells", "acute leukemia, SMALL CELLS, chronic phase, all myeloid cells"),
    ],
)  # fmt: skip
def test_names_are_blanked(text: str, blanked: str) -> None:
    assert blank_subtypes(text) == blanked


def test_no_real_text_names_a_subtype_once_it_is_blanked(real: Path) -> None:
    """Looked for without the annotator: every name and abbreviation of the file, as it is written, and lineages."""
    names = {name for e in load_gazetteer().entities if e.type == "subtype" for name in (e.name, *e.names)}
    short = "|".join(sorted(re.escape(name) for name in names if name.isupper() and len(name) > 2 and name.isalpha()))
    long = "|".join(sorted(re.escape(name) for name in names if " leukemia" in name))
    lineage = r"\w*(?:myelo|lympho|granulo|mono)\w*(?:ic|id|ous)\W{1,3}leuk(?!emogen)"
    named = re.compile(rf"\b(?:{short})s?\b(?!-?1\b)|(?i:\b(?:{long})|{lineage})")
    for file in ("pubmed_leukemia_abstracts.csv", "leukemia_typed_abstracts.csv"):
        with (real / file).open(encoding="utf-8", newline="") as source:
            for row in csv.DictReader(source):
                text = clean(f"{row['title']}\n{row['abstract']}")
                assert not (found := named.search(blank_subtypes(text))), found


def test_labels_agree_with_people(real: Path) -> None:
    """132 abstracts whose subtype people gave: the gazetteer names the same one for at least 95% of them."""
    with (real / "leukemia_typed_abstracts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 132
    agree = sum(subtype_of(clean(row["title"]), clean(row["abstract"])) == row["type"] for row in rows)
    assert agree >= 0.95 * len(rows)


def test_another_cancer_is_another_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Lymphoma: the shipped abstracts come from their data file again, every step runs on them, labels agree with names."""
    text = (LYMPHOMA / "abstracts.csv").read_text(encoding="utf-8")
    questions = (LYMPHOMA / "questions.csv").read_text(encoding="utf-8")
    assert (text, questions) == shipped_csvs(read_diseases(LYMPHOMA / "diseases.json"), LYMPHOMA_COUNT, "SYN-L")
    gazetteer = load_gazetteer(LYMPHOMA / "gazetteer.json")
    for row in csv.DictReader(text.splitlines()):
        assert row["pubmed_id"].startswith("SYN-L") and row["source"].startswith("synthetic")
        assert subtype_of(row["title"], row["abstract"], gazetteer) == row["subtype"]
        assert not find_subtypes(blank_subtypes(f"{row['title']}\n{row['abstract']}", gazetteer), gazetteer)
    names = ["--gazetteer", str(LYMPHOMA / "gazetteer.json")]
    out, index = tmp_path / "out", ["--index", str(tmp_path / "index.sqlite")]
    assert main(["prepare", str(LYMPHOMA / "abstracts.csv"), "--out", str(out), *names]) == 0
    assert main(["index", str(out / "articles.jsonl"), *index, *names]) == 0
    capsys.readouterr()
    assert main(["ask", "Does Adcetris help in Hodgkin's disease?", "--quote", "--subtype", "HL", *index, *names]) == 0
    printed = capsys.readouterr().out
    assert "[PMID SYN-L" in printed and "brentuximab" in printed.lower()


def test_shipped_abstracts_are_synthetic_and_reproducible() -> None:
    text = ABSTRACTS.read_text(encoding="utf-8")
    assert (text, QUESTIONS_FILE.read_text(encoding="utf-8")) == shipped_csvs()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 600
    assert all(not row["pubmed_id"].isdecimal() and row["source"].startswith("synthetic") for row in rows)
    assert Counter(row["subtype"] for row in rows).keys() == set(load_gazetteer().labels)
    for row in rows:  # the label that the generator gave is the one that the text names, and blanking hides it
        assert subtype_of(row["title"], row["abstract"]) == row["subtype"]
        assert not find_subtypes(blank_subtypes(f"{row['title']}\n{row['abstract']}"))


@pytest.mark.parametrize("text", ["No abstract", "No abstract available.", "N/A", "nan", "None."])
def test_a_placeholder_is_no_abstract(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"pubmed_id,title,abstract\n1,A,{text}\n2,B,No abstract thinking is needed.\n")
    records, counts = read_abstracts(path)
    assert [record.pubmed_id for record in records] == ["2"]
    assert counts["left out: no pubmed_id or no abstract"] == 1


def test_a_file_whose_ids_stand_elsewhere_says_how_to_name_them(tmp_path: Path) -> None:
    path = tmp_path / "typed.csv"
    path.write_text("pubmed_id,paper_id,title,abstract\n,7,A title,An abstract of some words.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"typed\.csv holds no row with a pubmed_id and an abstract: .*--id-column"):
        read_abstracts(path)
    assert [record.pubmed_id for record in read_abstracts(path, "paper_id")[0]] == ["7"]
    path.write_text("id,title,abstract\n7,A title,An abstract of some words.\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"lacks the column pubmed_id \(.*\): add it, or name that of the ids .*--id-column"
    ):
        read_abstracts(path)


def test_ids_of_several_columns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Files that name their ids otherwise are read in one call; a column that is nowhere is still an error."""
    first, second, third = (tmp_path / name for name in ("a.csv", "b.csv", "c.jsonl"))
    first.write_text("pubmed_id,title,abstract\n1,A title,An abstract of some words.\n")
    second.write_text(
        "pubmed_id,doi,title,abstract\n,10.1/x,B title,More.\n2,10.1/y,C title,Still more.\n,,D,None at all.\n"
    )
    third.write_text('{"doi": "10.1/z", "title": "E", "abstract": "The last one."}\n')
    for path, ids in ((first, ["1"]), (second, ["10.1/x", "2"]), (third, ["10.1/z"])):
        assert [record.pubmed_id for record in read_abstracts(path, "pubmed_id,doi")[0]] == ids
    assert [record.pubmed_id for record in read_abstracts(second, "doi,pubmed_id")[0]] == ["10.1/x", "10.1/y"]
    with pytest.raises(UserError, match=r"lacks the column paper_id or pmid \(its first line has: pubmed_id"):
        read_abstracts(first, "paper_id,pmid")
    with pytest.raises(UserError, match="line 1: is no object with pubmed_id, title"):
        read_abstracts(third)
    prepared = ["prepare", str(second), str(third), "--out", str(tmp_path / "out"), "--id-column"]
    assert main([*prepared, "pubmed_id, doi"]) == 0
    assert len((tmp_path / "out" / "articles.jsonl").read_text().splitlines()) == 3
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*prepared, ","])
    assert "',' names no column" in capsys.readouterr().err
