"""Vectors in the index: fused by hand-worked ranks, kept in step with the texts whoever writes, and the models' errors."""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from examples.leukemia.__main__ import main
from examples.leukemia.data import Record, UserError
from examples.leukemia.dense import nearest, reciprocal_rank_fusion
from examples.leukemia.index import Index

ARTICLES = [
    Record("1", "Imatinib", "Imatinib imatinib imatinib in the chronic phase.", year=2001),
    Record("2", "Nilotinib", "Imatinib was compared with nilotinib.", year=2010),
    Record("3", "Tablets", "Patients forget them.", year=2015),
    Record("4", "Tablets", "A retracted study.", year=2016, retracted=True),
]


VECTORS = {"forget": (0.8, 0.6), "retracted": (1.0, 0.0), "nilotinib": (0.6, 0.8), "imatinib": (0.0, 1.0)}


class Fixed:
    """The vector of a text is that of the first of these words in it."""

    model, name = "fixed", "fixed-folder"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def documents(self, texts):
        self.seen += texts
        return np.array([self._of(text) for text in texts], np.float32)

    def query(self, text):
        return np.array((1.0, 0.0), np.float32)  # nearest: 4 (retracted), 3, 2, 1

    def _of(self, text):
        return next(vector for word, vector in VECTORS.items() if word in text.lower())


@pytest.fixture
def index(tmp_path: Path):
    made = Index(tmp_path / "index.sqlite", create=True, dense=Fixed())
    made.add(ARTICLES)
    yield made
    made.close()


def test_fusion_and_neighbours_worked_by_hand() -> None:
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["c", "a"]])
    assert fused == {"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61}
    assert reciprocal_rank_fusion([["x"], []], k=0) == {"x": 1.0} and reciprocal_rank_fusion([]) == {}
    vectors = np.array([[0, 1], [0.6, 0.8], [1, 0], [0.6, 0.8]], np.float32)
    query = np.array([1, 0], np.float32)
    assert nearest(query, vectors, "abcd", 10) == ["c", "b", "d", "a"]  # of equal ones the first
    assert nearest(query, vectors, "abcd", 2) == ["c", "b"]
    assert nearest(query, vectors[:0], "", 5) == []


def test_search_fuses_words_and_vectors(index: Index) -> None:
    """By words 1, 2; by vectors 3, 2, 1: so 2 has 1/62 + 1/62, 1 has 1/61 + 1/63, and 3 has 1/61."""
    hits = index.search("imatinib")
    assert [hit.pubmed_id for hit in hits] == ["1", "2", "3"]
    assert [hit.score for hit in hits] == [1 / 61 + 1 / 63, 1 / 62 + 1 / 62, 1 / 61]
    assert [hit.coverage for hit in hits] == [1.0, 1.0, 0.0]  # what was found by its vector alone is not answered from
    assert [hit.pubmed_id for hit in index.search("imatinib", since=2005)] == ["2", "3"]
    assert [hit.pubmed_id for hit in index.search("imatinib", count=1)] == ["1"]
    assert index.by_meaning("imatinib") == ["4", "3", "2", "1"] and index.by_meaning("imatinib", count=2) == ["4", "3"]
    plain = Index(index.path)
    assert [hit.pubmed_id for hit in plain.search("imatinib")] == ["1", "2"]  # the file serves both
    plain.close()


def test_vectors_follow_their_texts(index: Index) -> None:
    assert index.dense.seen == [f"{record.title}\n{record.abstract}" for record in ARTICLES]
    assert dict(index.add(ARTICLES)) == {"added": 0, "changed": 0, "unchanged": 4} and len(index.dense.seen) == 4
    newer = Record("1", ARTICLES[0].title, ARTICLES[0].abstract, year=2002)
    assert index.add([newer])["changed"] == 1 and len(index.dense.seen) == 4  # another year, the same text
    assert index.add([Record("3", "Tablets", "Imatinib, that is.")])["embedded"] == 1
    assert index.by_meaning("x") == ["4", "2", "1", "3"]
    plain = Index(index.path)
    plain.add([Record("3", "Tablets", "Nilotinib now."), Record("5", "New", "Imatinib.")])
    assert plain.without_vector() == 2 and "3" not in index.by_meaning("x")  # a stale vector finds nothing
    plain.close()
    assert index.add([Record("3", "Tablets", "Nilotinib now."), Record("5", "New", "Imatinib.")])["embedded"] == 2
    assert index.without_vector() == 0 and index.by_meaning("x") == ["4", "2", "3", "1", "5"]


def test_another_writer_between_the_vectors_and_their_writing(index: Index) -> None:
    """While the vectors of a batch are made, somebody changes an article of it that was seen to be unchanged."""
    other = Index(index.path)

    class Slow(Fixed):
        def documents(self, texts):
            if not self.seen:
                other.add([Record("2", "Nilotinib", "Retracted, says the other.")])
            return super().documents(texts)

    index.dense = Slow()
    index.add([Record("3", "Tablets", "Nilotinib now."), ARTICLES[1]])
    assert index.search("compared")[0].pubmed_id == "2" and index.without_vector() == 0
    assert index.by_meaning("x") == ["4", "2", "3", "1"]
    other.close()


def test_models_that_do_not_fit(index: Index, tmp_path: Path) -> None:
    other = Fixed()
    other.model = "another"
    for create in (True, False):
        with pytest.raises(
            UserError, match="vectors of another model than fixed-folder: give the one that was at fixed"
        ):
            Index(index.path, create=create, dense=other)
    plain = Index(tmp_path / "plain.sqlite", create=True)
    assert plain.without_vector() == 0
    plain.close()
    with pytest.raises(UserError, match="holds no vectors: make them with index ABSTRACTS --dense fixed-folder"):
        Index(tmp_path / "plain.sqlite", dense=Fixed())


WRITER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from examples.leukemia.data import Record
from examples.leukemia.index import Index
class Hashed:
    model = name = "hashed"
    def documents(self, texts):
        return np.array([list(hashlib.sha256(text.encode()).digest()) for text in texts], np.float32)
first, last, version = map(int, sys.argv[2:])
index = Index(Path(sys.argv[1]), create=True, dense=Hashed())
for start in range(first, last, 50):
    index.add([Record(str(n), f"Title {n}", f"Text {version} of imatinib {n}") for n in range(start, start + 50)])
    print(start, flush=True)
"""


def writer(root: Path, path: Path, first: int, last: int, version: int) -> subprocess.Popen:
    line = [sys.executable, "-c", WRITER, str(path), str(first), str(last), str(version)]
    return subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_vectors(path: Path) -> int:
    """Every article has the vector of the text that it has now; returns how many there are."""
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = database.execute("SELECT title, abstract, vector FROM articles LEFT JOIN embeddings USING (id)").fetchall()
    for title, abstract, vector in rows:
        expected = hashlib.sha256(f"{title}\n{abstract}".encode()).digest()
        assert np.frombuffer(vector, "<f4").astype(np.uint8).tobytes() == expected
    assert database.execute("SELECT count(*) FROM embeddings").fetchone()[0] == len(rows)
    database.close()
    return len(rows)


def test_two_writers_and_a_killed_one_leave_no_vector_without_its_text(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "index.sqlite"
    writers = [writer(root, path, 0, 800, 1), writer(root, path, 400, 1200, 2)]  # each has its own text of half of them
    for each in writers:
        _, errors = each.communicate(timeout=300)
        assert each.returncode == 0, errors
    assert check_vectors(path) == 1200
    killed = writer(root, path, 0, 100_000, 3)
    deadline = time.monotonic() + 300
    while killed.stdout.readline().strip() != "1500":
        assert time.monotonic() < deadline and killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert 1550 <= check_vectors(path) and check_vectors(path) % 50 == 0


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "imatinib", "leukemia", "survival", "in", "of", "patients"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a tiny random BERT and a mean over its tokens."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    made = tmp_path_factory.mktemp("dense")
    letters = [prefix + chr(code) for prefix in ("", "##") for code in range(ord("a"), ord("z") + 1)]
    (made / "vocab.txt").write_text("\n".join(WORDS + letters) + "\n", encoding="utf-8")
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS + letters), max_position_embeddings=64, **sizes)).save_pretrained(made)
    BertTokenizerFast(str(made / "vocab.txt")).save_pretrained(made)
    SentenceTransformer(modules=[Transformer(str(made)), Pooling(16)], device="cpu").save(str(made / "model"))
    return made / "model"


def test_the_commands_with_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Vectors are the mean of BERT's last states, at length 1, which transformers alone computes, too."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    csv, path = tmp_path / "a.csv", tmp_path / "index.sqlite"
    csv.write_text("pubmed_id,title,abstract\n1,Imatinib,imatinib in leukemia\n2,Nilotinib,survival of patients\n")
    assert main(["index", str(csv), "--index", str(path), "--dense", str(folder)]) == 0
    assert "2  embedded" in capsys.readouterr().out
    database = sqlite3.connect(path)
    stored = [np.frombuffer(row[0], "<f4") for row in database.execute("SELECT vector FROM embeddings ORDER BY id")]
    database.close()
    bert, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for vector, text in zip(stored, ("Imatinib\nimatinib in leukemia", "Nilotinib\nsurvival of patients")):
        with torch.no_grad():
            mean = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    line = ["ask", "imatinib in leukemia?", "--index", str(path), "--quote"]
    assert main([*line, "--dense", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "[PMID 1]" in out and "no medical device" in out
    assert main(["index", str(csv), "--index", str(path), "--dense", str(folder)]) == 0
    assert "0  embedded" not in capsys.readouterr().out
    csv.write_text("pubmed_id,title,abstract\n3,New,nilotinib\n")
    assert main(["index", str(csv), "--index", str(path)]) == 0
    assert "1  articles without a vector: give --dense" in capsys.readouterr().out


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path, refused, monkeypatch) -> None:
    import shutil

    csv, path = tmp_path / "a.csv", tmp_path / "index.sqlite"
    csv.write_text("pubmed_id,title,abstract\n1,Imatinib,imatinib in leukemia\n")

    def says(command: list[str], dense: Path) -> str:
        return refused(*command, "--index", path, "--dense", dense)

    index, ask = ["index", str(csv)], ["ask", "imatinib?", "--quote"]
    assert "is no sentence-transformers folder (it has no modules.json)" in says(index, tmp_path / "none")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"half")
    assert "cannot be loaded as a sentence-transformers folder" in says(index, broken)
    assert not path.exists()  # a refused model leaves no index behind
    assert main([*index, "--index", str(path)]) == 0
    assert "holds no vectors: make them with index" in says(ask, folder)
    assert main([*index, "--index", str(path), "--dense", str(folder)]) == 0
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "config_sentence_transformers.json").write_text("{}")
    assert "holds vectors of another model" in says(ask, other)
    assert "holds vectors of another model" in says(index, other)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("sentence") else find_spec(name, *rest)
    )
    assert "--dense needs the package sentence-transformers: pip install" in says(ask, folder)
