"""The index: what it finds, updates in place, several writers at once and one that is killed."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from examples.leukemia.__main__ import main
from examples.leukemia.ask import THRESHOLD
from examples.leukemia.data import Record, UserError
from examples.leukemia.gazetteer import Entity, load_gazetteer
from examples.leukemia.index import Index, query_units
from examples.leukemia.synthetic import LYMPHOMA as LYMPHOMA_DATA

LYMPHOMA = LYMPHOMA_DATA / "gazetteer.json"

ARTICLES = [
    Record("1", "Imatinib in chronic myeloid leukemia", "Imatinib gave deep responses.", year=2003, journal="Blood"),
    Record("2", "Venetoclax in AML", "Venetoclax with azacitidine in older adults.", year=2020),
    Record("3", "Ibrutinib in CLL", "Ibrutinib prolonged survival.", year=2015),
    Record("4", "Imatinib again", "A retracted study of imatinib.", year=2004, retracted=True),
    Record("5", "Marrow", "Nothing about drugs and survival."),
]


@pytest.fixture
def index(index_of) -> Index:
    return index_of(ARTICLES)


def ids(hits) -> list[str]:
    return [hit.pubmed_id for hit in hits]


def test_finds_by_words_by_stem_and_by_other_names(index: Index) -> None:
    assert ids(index.search("survival on ibrutinib"))[0] == "3"
    assert ids(index.search("prolonging")) == ["3"]  # Porter's stem
    assert ids(index.search("Gleevec")) == ids(index.search("STI571")) == ["1"]
    assert ids(index.search("chronic myelogenous leukaemia")) == ["1"]
    assert index.search("what is the") == [] == index.search("sourdough")


def test_filters(index: Index) -> None:
    assert set(ids(index.search("imatinib venetoclax ibrutinib"))) == {"1", "2", "3"}
    assert set(ids(index.search("imatinib", retracted=True))) == {"1", "4"}
    assert ids(index.search("imatinib venetoclax ibrutinib", since=2004, until=2015)) == ["3"]
    assert ids(index.search("imatinib venetoclax ibrutinib", subtype="AML")) == ["2"]
    assert ids(index.search("marrow", since=1900)) == []  # of no known year
    assert len(index.search("imatinib venetoclax ibrutinib", count=2)) == 2


def test_a_label_in_other_letters_is_the_label(index: Index, capsys: pytest.CaptureFixture) -> None:
    """In a file and in a filter; what is no label stays as people gave it."""
    index.add(
        [Record("6", "Ponatinib", "Ponatinib.", subtype="aml"), Record("7", "More", "Ponatinib.", subtype="Burkitt")]
    )
    assert ids(index.search("ponatinib", subtype="AML")) == ["6"]
    assert {hit.subtype for hit in index.search("ponatinib")} == {"AML", "Burkitt"}
    assert main(["ask", "ponatinib?", "--quote", "--index", str(index.path), "--subtype", "aml"]) == 0
    assert "PMID 6" in capsys.readouterr().out


def test_what_the_filters_leave_is_counted(index: Index) -> None:
    """Of five articles one is retracted, and one of no known year."""
    assert index.left_by(since=2004) == "--since 2004 leaves 2 of 4 articles; 1 of unknown year."
    both = "--since 2004 --until 2015 leaves 1 of 4 articles; 1 of unknown year."
    assert index.left_by(since=2004, until=2015) == both
    assert index.left_by(subtype="AML") == "--subtype AML leaves 1 of 4 articles."
    assert index.left_by() == ""


def test_an_index_is_of_one_topic(tmp_path: Path, refused) -> None:
    """Else half of it would hold names and subtypes of another gazetteer; the same one may learn new names."""
    path, lymphoma = tmp_path / "a.sqlite", load_gazetteer(LYMPHOMA)
    index = Index(path, lymphoma, create=True)
    index.add([Record("1", "Rituximab in DLBCL", "Rituximab helped.")])
    index.close()
    csv = tmp_path / "a.csv"
    csv.write_text("pubmed_id,title,abstract\n1,Rituximab in DLBCL,Rituximab helped.\n2,t,imatinib\n")
    before = path.read_bytes()
    words = "was made with a gazetteer of lymphoma, not leukemia: give that as --gazetteer, or another --index"
    assert words in refused("index", csv, "--index", path)
    assert words in refused("ask", "rituximab?", "--index", path, "--quote")
    assert path.read_bytes() == before
    assert main(["index", str(csv), "--index", str(path), "--gazetteer", str(LYMPHOMA)]) == 0
    more = replace(lymphoma, entities=(*lymphoma.entities, Entity("x", "drug", "imatinib", ("imatinib",))))
    assert Index(path, more, create=True).add([Record("2", "t", "imatinib")])["changed"] == 1


def test_an_index_from_before_topics_takes_that_of_its_next_writer(index: Index) -> None:
    index._database.execute("DROP TABLE about")
    assert ids(Index(index.path, load_gazetteer(LYMPHOMA)).search("ibrutinib")) == ["3"]
    assert len(Index(index.path, load_gazetteer(), create=True)) == 5
    with pytest.raises(UserError, match="of leukemia, not lymphoma"):
        Index(index.path, load_gazetteer(LYMPHOMA))


def test_coverage_is_the_share_of_inverse_document_frequency(index: Index) -> None:
    """Worked by hand: of five articles, and ten of other matters, imatinib is in two, sourdough in none."""
    in_two, in_none = math.log(1 + 13.5 / 2.5), math.log(1 + 15.5 / 0.5)
    (hit,) = index.search("imatinib sourdough", count=1)
    assert hit.coverage == pytest.approx(in_two / (in_two + 0.5 * in_none))  # a plain word counts half
    assert hit.missing == ("sourdough",)
    (hit,) = index.search("imatinib", count=1)
    assert (hit.coverage, hit.missing) == (1.0, ())


def test_what_every_article_of_a_small_index_holds_still_counts(index_of) -> None:
    """An index on imatinib alone: its name tells it from other matters, though not its articles from each other."""
    index = index_of(
        [
            Record("1", "Imatinib in CML", "Most patients responded to imatinib."),
            Record("2", "Imatinib at 400 mg", "Edema was the commonest side effect of imatinib."),
            Record("3", "Imatinib in children", "Growth was slower on imatinib."),
        ]
    )
    asked = {"What share responded to imatinib?": "1", "Does imatinib cause edema?": "2"}
    for question, pubmed_id in asked.items():
        (hit,) = index.search(question, count=1)
        assert (hit.pubmed_id, hit.coverage >= THRESHOLD) == (pubmed_id, True), question
    for question in (
        "Does imatinib help against hair loss at night?",
        "How is sourdough baked?",
        "How does imatinib act?",
    ):
        assert all(hit.coverage < THRESHOLD for hit in index.search(question)), question


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Anaemia and tumour lysis were seen in paediatric leukaemia.", "anemia tumor lysis pediatric"),
        ("Anemia and tumor lysis were seen.", "anaemia tumour"),
        ("Children, women and mice were treated.", "child woman mouse"),
        ("A child and a mouse.", "children mice"),
        ("Metastases, analyses and nuclei.", "metastasis analysis nucleus"),
        ("TGF-β and IFN-gamma were raised.", "beta γ"),
    ],
)
def test_words_are_found_in_other_spellings_and_numbers(index_of, text: str, question: str) -> None:
    """British and American, irregular plurals, Greek letters: nothing of the question is missing."""
    (hit,) = index_of([Record("1", "", text)]).search(question)
    assert (hit.missing, hit.coverage) == ((), 1.0)


def test_a_letter_or_a_digit_asks_with_the_word_beside_it(index_of) -> None:
    text = "Rituximab reactivated hepatitis C in T cells after 5 years; interleukin-2 rose."
    index = index_of([Record("1", "", text)])
    missing = {
        "Does rituximab reactivate hepatitis C?": (),
        "Does rituximab reactivate hepatitis B?": ("hepatitis B",),
        "hepatitis A": ("hepatitis A",),
        "Was a reactivation in T cells after 5 years?": (),
        "interleukin 2": (),
        "interleukin-6": ("interleukin 6",),
    }
    assert {question: index.search(question)[0].missing for question in missing} == missing


def test_all_the_disease_is_not_all_the_word(index_of) -> None:
    """FTS5 knows no capitals; "In all patients" is no answer to a question about ALL."""
    index = index_of(
        [
            Record("1", "Venetoclax in AML", "In all patients with AML venetoclax improved survival."),
            Record("2", "Blinatumomab in ALL", "Blinatumomab helped adults with ALL."),
        ]
    )
    (hit,) = index.search("Does venetoclax help in ALL?", count=1)
    assert (hit.pubmed_id, hit.missing, hit.coverage < THRESHOLD) == ("1", ("acute lymphoblastic leukemia",), True)
    (hit,) = index.search("Does blinatumomab help in ALL?", count=1)
    assert (hit.pubmed_id, hit.coverage) == ("2", 1.0)


def test_operators_in_a_question_are_words(index: Index) -> None:
    for question in (
        'imatinib" OR "x',
        "imatinib NEAR(a b) *",
        "title: imatinib ^",
        "'; DROP TABLE articles; --imatinib",
    ):
        assert "1" in ids(index.search(question))
    assert len(index) == 5


def test_units_of_a_question() -> None:
    units = query_units("Does Gleevec help older people with CML?", load_gazetteer())
    assert units == {("Gleevec", "imatinib"): 1.0, ("older",): 0.5, ("chronic myeloid leukemia",): 1.0}


def test_year_and_journal_outlast_a_file_without_them(index: Index) -> None:
    assert index.add([Record("1", "Imatinib in chronic myeloid leukemia", "Other words on asciminib.")])["changed"] == 1
    (hit,) = index.search("asciminib", since=2003)
    assert (hit.year, hit.journal) == (2003, "Blood")
    assert index.add([Record("1", "T", "Words on asciminib.", year=2004, journal="Lancet")])["changed"] == 1
    (hit,) = index.search("asciminib")
    assert (hit.year, hit.journal) == (2004, "Lancet")


def test_what_looks_like_a_patients_data_is_not_kept(index: Index) -> None:
    assert index.add([Record("7", "Case of Mr. John Smith", "Asciminib for him, MRN 1234567.")])["masked"] == 1
    (hit,) = index.search("asciminib")
    assert (hit.title, hit.abstract) == ("Case of [name]", "Asciminib for him, [record number].")
    in_columns = [
        Record("8", "Case of Mr. John Smith", "Ponatinib."),
        Record("10.1002/(sici)555-123-4567", "", "Ponatinib.", journal="Mr. John Smith, MRN 1234567"),
        Record("PMC1234567", "", "Ponatinib.", subtype="MRN 1234567", sections=(("MRN 1234567", "Ponatinib."),)),
        Record("12345678", "", "Ponatinib.", journal="The Lancet"),
    ]
    assert index.add(in_columns)["masked"] == 3
    hits = {hit.pubmed_id: hit for hit in index.search("ponatinib")}
    assert hits[in_columns[1].pubmed_id].journal == "[name], [record number]"
    assert hits["PMC1234567"].subtype == "[record number]" and hits["12345678"].journal == "The Lancet"


def test_an_id_that_names_a_patient_is_refused(index: Index, tmp_path: Path, refused) -> None:
    source = tmp_path / "a.csv"
    source.write_text("pubmed_id,title,abstract\nJohn Smith MRN 12345678,On CML,Imatinib helps.\n")
    for command in (["index", source, "--index", index.path], ["prepare", source, "--out", tmp_path / "out"]):
        assert "the id '[name] [record number]' seems to hold a patient's data" in refused(*command)
    assert len(index) == 5 and not (tmp_path / "out").exists()


def test_readers_do_not_wait_for_a_writer(index: Index) -> None:
    with index._writing():
        reader = Index(index.path)
        assert ids(reader.search("ibrutinib")) == ["3"]
        reader.close()


def test_updates_in_place(index: Index) -> None:
    assert dict(index.add(ARTICLES)) == {"added": 0, "changed": 0, "unchanged": 5}
    changed = Record("5", "Marrow", "Now about ponatinib.", year=2012)
    assert dict(index.add([changed, Record("6", "Asciminib", "New.")])) == {"added": 1, "changed": 1, "unchanged": 0}
    assert ids(index.search("ponatinib")) == ["5"] and ids(index.search("nothing drugs")) == []
    assert ids(index.search("asciminib")) == ["6"] and len(index) == 6


def test_what_people_said_and_what_was_retracted_outlast_a_file_that_does_not_say_so(index: Index) -> None:
    bare = Record("9", "Ponatinib in CML", "Ponatinib was given.")
    index.add([replace(bare, subtype="ALL", retracted=True)])
    assert dict(index.add([bare])) == {"added": 0, "changed": 0, "unchanged": 1}
    (hit,) = index.search("ponatinib", retracted=True)
    assert (hit.subtype, hit.retracted) == ("ALL", True) and index.search("ponatinib") == []
    assert index.add([replace(bare, title="Ponatinib in AML", subtype="CML")])["changed"] == 1
    assert index.search("ponatinib", retracted=True)[0].subtype == "CML"  # people may say another thing


def test_an_article_that_is_retracted_later_is_no_longer_found(index: Index) -> None:
    index.add([replace(ARTICLES[0], retracted=True)])
    assert index.search("STI571") == [] and index.search("STI571", retracted=True)[0].retracted


def sound(path: Path) -> None:
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")  # full text against the table
    database.close()


WRITER = """
import sys
from pathlib import Path
from examples.leukemia.data import Record
from examples.leukemia.index import Index
first, last = int(sys.argv[2]), int(sys.argv[3])
index = Index(Path(sys.argv[1]), create=True)
print("open", flush=True)
for start in range(first, last, 50):
    index.add([Record(str(n), f"Title {n}", f"Abstract {n} on imatinib number{n}") for n in range(start, start + 50)])
    print(start, flush=True)
"""


def writer(root: Path, path: Path, first: int, last: int) -> subprocess.Popen:
    line = [sys.executable, "-c", WRITER, str(path), str(first), str(last)]
    return subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_writers_lose_nothing(tmp_path: Path, root: Path) -> None:
    """Both make the file, and half of what each adds the other adds too; a reader reads all the while."""
    path = tmp_path / "index.sqlite"
    writers = [writer(root, path, 0, 1000), writer(root, path, 500, 1500)]
    while any(each.poll() is None for each in writers):
        if path.is_file() and path.stat().st_size:
            try:
                reader = Index(path)
            except UserError as error:
                assert "another kind" in str(error)  # seen before its first transaction was through
                continue
            for hit in reader.search("imatinib", count=3):
                assert hit.abstract.startswith("Abstract")
            reader.close()
    for each in writers:
        assert each.wait(120) == 0, each.stderr.read()
    index = Index(path)
    assert len(index) == 1500
    assert all(ids(index.search(f"number{n}")) == [str(n)] for n in range(0, 1500, 97))
    index.close()
    sound(path)


def test_a_killed_writer_leaves_what_it_had_committed(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "index.sqlite"
    process = writer(root, path, 0, 100_000)
    deadline = time.monotonic() + 300
    done = -1
    while done < 200:
        assert time.monotonic() < deadline
        line = process.stdout.readline()
        done = int(line) if line.strip().isdigit() else done
    process.send_signal(signal.SIGKILL)
    rest = [int(line) for line in process.stdout.read().split() if line.isdigit()]
    process.wait(60)
    committed = max([done, *rest]) + 50
    index = Index(path)
    assert committed <= len(index) <= committed + 50  # a batch is there whole or not at all
    assert len(index) % 50 == 0
    index.add([Record(str(n), f"Title {n}", f"Abstract {n} on imatinib number{n}") for n in range(committed + 100)])
    assert len(index) == committed + 100
    index.close()
    sound(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    csv, path = tmp_path / "a.csv", tmp_path / "new" / "index.sqlite"
    csv.write_text("pubmed_id,title,abstract\n1,t,imatinib\n2,t,dasatinib\n")
    assert main(["index", str(csv), "--index", str(path)]) == 0
    out = capsys.readouterr().out
    assert "2  added" in out and "no medical device" in out
    assert main(["index", str(csv), "--index", str(path)]) == 0
    assert "2  unchanged" in capsys.readouterr().out


def test_files_that_are_no_index(tmp_path: Path, refused) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text("pubmed_id,title,abstract\n1,t,imatinib\n")
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE mine (x)")
    database.close()
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("my thesis " * 200)
    for path, words in ((other, "another kind of database"), (thesis, "not a database"), (tmp_path, "unable to open")):
        before = path.read_bytes() if path.is_file() else b""
        assert words in refused("index", csv, "--index", path)
        assert not path.is_file() or path.read_bytes() == before
    with pytest.raises(UserError, match="does not exist: make it with"):
        Index(tmp_path / "none.sqlite")


def test_a_stop_right_behind_a_commit_is_a_stop(index: Index) -> None:
    """A signal may be heard when the transaction has ended: there is nothing to take back then, and all is written."""
    with pytest.raises(KeyboardInterrupt), index._writing():
        index._database.execute("COMMIT")
        raise KeyboardInterrupt


def test_a_journal_that_is_named_after_someone_stays(index: Index) -> None:
    journals = ["Hong Kong Med J", "Austin J Cancer Clin Res", "Dalton Trans", "Henry Ford Hosp Med J", "Jordan Med J"]
    ids = ["1234567881", "0306406152", "doi: 10.1016/j.123-456-7890", "https://doi.org/10.1056/123-456-7890", "5"]
    index.add([Record(one, "", "Ponatinib.", journal=journal) for one, journal in zip(ids, journals)])
    assert {hit.pubmed_id: hit.journal for hit in index.search("ponatinib")} == dict(zip(ids, journals))
