"""Retrieval: time to build an index and to answer from it, and its quality, beside bm25s on the same texts.

python -m benchmarks.retrieval [--articles 9000] [--real FOLDER] [--rounds 5] [--dense FOLDER]

Time is taken on made-up abstracts (examples/leukemia/synthetic.py). Quality is taken where FOLDER holds the real sets:
MedQuAD's questions against its answers (an answer to the same question counts), and titles against the abstracts
without their titles: recall@k, MRR (Voorhees 1999) and nDCG (Järvelin and Kekäläinen 2002), at 10. With --dense, a
sentence-transformers folder, the same by vectors alone and by both, fused.
bm25s stems with the same Porter family, but knows no gazetteer and keeps its index in memory.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from examples.leukemia.ask import THRESHOLD
from examples.leukemia.clean import clean
from examples.leukemia.data import Record
from examples.leukemia.dense import Embedder, SentenceTransformerEmbedder
from examples.leukemia.index import Index
from examples.leukemia.synthetic import write_abstract

OFF_TOPIC = (
    "How do I bake sourdough bread?",
    "What is the capital of France?",
    "Who won the football world cup in 2018?",
    "How does photosynthesis work in plants?",
    "Which drugs treat asthma in children?",
    "What causes migraine headaches?",
    "How is breast cancer treated with trastuzumab?",
    "What are the symptoms of influenza?",
    "How is a broken wrist set?",
    "Which vaccines are given to travellers?",
)


def scores(ranking: Sequence[str], relevant: set[str], k: int = 10) -> dict[str, float]:
    """recall@5, recall@k, the reciprocal rank and nDCG@k of one ranking."""
    places = [place for place, name in enumerate(ranking[:k], 1) if name in relevant]
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
    return {
        "recall@5": sum(place <= 5 for place in places) / len(relevant),
        f"recall@{k}": len(places) / len(relevant),
        "MRR": 1 / places[0] if places else 0.0,
        f"nDCG@{k}": sum(1 / math.log2(place + 1) for place in places) / ideal,
    }


def bm25s_search(records: Sequence[Record]) -> Callable[[str], list[str]]:
    """The same with bm25s."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("porter")
    texts = [f"{record.title}\n{record.abstract}" for record in records]
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)

    def search(question: str) -> list[str]:
        tokens = bm25s.tokenize([question], stopwords="en", stemmer=stemmer, show_progress=False)
        found, _ = retriever.retrieve(tokens, k=min(10, len(records)), show_progress=False)
        return [records[place].pubmed_id for place in found[0]]

    return search


def index_search(
    records: Sequence[Record], path: Path, dense: Embedder | None = None
) -> tuple[Index, Callable[[str], list[str]]]:
    """An index of the records in a new file, and its search."""
    index = Index(path, create=True, dense=dense)
    index.add(records)
    return index, lambda question: [hit.pubmed_id for hit in index.search(question, 10)]


def real_sets(folder: Path) -> dict[str, tuple[list[Record], list[tuple[str, set[str]]]]]:
    """{name: (articles, [(question, ids of those that answer it)])}."""

    def rows(file: str) -> list[dict[str, str]]:
        with (folder / file).open(encoding="utf-8", newline="") as source:
            return list(csv.DictReader(source))

    medquad = rows("medquad_leukemia_qa.csv")
    answers = [Record(str(place), "", clean(row["answer"])) for place, row in enumerate(medquad)]
    asked = [" ".join(row["question"].lower().split()) for row in medquad]
    questions = [(q, {str(place) for place, other in enumerate(asked) if other == q}) for q in dict.fromkeys(asked)]
    articles = rows("pubmed_leukemia_abstracts.csv")
    titled = [(clean(row["title"]), {row["pubmed_id"]}) for row in articles if row["title"]]
    abstracts = [Record(row["pubmed_id"], "", clean(row["abstract"])) for row in articles]
    return {
        "MedQuAD questions": (answers, questions),
        "titles as questions": (abstracts, titled),
    }


def quality(folder: Path, work: Path, dense: Embedder | None) -> None:
    """Print the quality on the real sets, and how well the threshold parts questions on leukemia from others."""
    for name, (records, questions) in real_sets(folder).items():
        index, search = index_search(records, work / f"{name}.sqlite")
        searches = {"BM25": search, "bm25s": bm25s_search(records)}
        if dense is not None:
            both, fused = index_search(records, work / f"{name} with vectors.sqlite", dense)
            searches |= {"dense": both.by_meaning, "fused": fused}
        for library, find in searches.items():
            results = [scores(find(question), relevant) for question, relevant in questions]
            means = {key: statistics.mean(result[key] for result in results) for key in results[0]}
            line = "  ".join(f"{key} {value:.3f}" for key, value in means.items())
            print(f"{name}: {len(questions)} questions, {len(records)} texts  {library:6} {line}")
        best = [max((hit.coverage for hit in index.search(q)), default=0.0) for q, _ in questions]
        off = [max((hit.coverage for hit in index.search(q)), default=0.0) for q in OFF_TOPIC]
        answered = sum(value >= THRESHOLD for value in best) / len(best)
        print(f"  answered: {answered:.0%} of these, {sum(v >= THRESHOLD for v in off)} of {len(off)} on other matters")


def speed(count: int, rounds: int, work: Path, dense: Embedder | None) -> None:
    """Print the time to build and to answer, interleaved with bm25s."""
    rng = random.Random(0)
    made = [write_abstract(rng) for _ in range(count)]
    records = [Record(str(n), one.title, f"{one.abstract} Case {n}.") for n, one in enumerate(made)]
    started = time.perf_counter()
    index, ours = index_search(records, work / "speed.sqlite")
    built = time.perf_counter()
    theirs = bm25s_search(records)
    print(
        f"{count:,} articles: index built in {built - started:.1f} s (file {index.path.stat().st_size / 1e6:.0f} MB),",
        end="",
    )
    print(f" bm25s in {time.perf_counter() - built:.1f} s")
    started = time.perf_counter()
    index.add(records)
    print(f"nothing new to add: {time.perf_counter() - started:.1f} s")
    searches = {"index": ours, "bm25s": theirs}
    if dense is not None:
        started = time.perf_counter()
        both, searches["fused"] = index_search(records, work / "dense.sqlite", dense)
        print(f"with vectors: built in {time.perf_counter() - started:.1f} s ({both.path.stat().st_size / 1e6:.0f} MB)")
    samples: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(rounds):
        for title in (one.title for one in made[:100]):
            for name, find in searches.items():
                started = time.perf_counter()
                find(title)
                samples[name].append(1000 * (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    for name, values in samples.items():
        slow = sorted(values)[int(0.95 * len(values))]
        print(f"{name:6} median {medians[name]:6.2f} ms a question, 95% below {slow:.2f} ms")
    print(f"index / bm25s: {medians['index'] / medians['bm25s']:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=9000)
    parser.add_argument("--real", type=Path, default=Path(__file__).parents[2] / "shared" / "real")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dense", type=Path, help="sentence-transformers folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        embedder = SentenceTransformerEmbedder(options.dense) if options.dense else None
        speed(options.articles, options.rounds, Path(folder), embedder)
        if options.real.is_dir():
            quality(options.real, Path(folder), embedder)
