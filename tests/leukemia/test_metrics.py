"""Metrics of answers: against scikit-learn, SciPy and published values, and by cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from examples.leukemia.gazetteer import load_gazetteer
from examples.leukemia.metrics import (
    bootstrap,
    chrf,
    exact_match,
    faithful,
    macro_f1,
    mean_score,
    numbers_of,
    proportion,
    sari,
    shares,
    token_f1,
)
from examples.leukemia.reading import reading_counts, reading_grade

SOURCE = "About 95 species are currently accepted ."
REFERENCES = (
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
)


def test_sari_of_the_papers_example() -> None:
    """Xu et al. 2016's sentence, with the values that the metric of Hugging Face's evaluate documents for it."""
    assert sari(SOURCE, "About 95 you now get in .", REFERENCES) == pytest.approx(26.953601953601954, rel=1e-12)
    assert sari(SOURCE, "About 95 you now get in .", REFERENCES[:1]) == pytest.approx(21.805555555555557, rel=1e-12)


def test_sari_by_hand() -> None:
    """Source "a b", answer "a", reference "a c".

    1-grams: kept {a} of {a}, 1; deleted {b}, rightly, 1; nothing added where c should be: precision 1 of nothing, recall
    0, so 0. 2-grams: nothing kept of nothing, 1; "a b" deleted rightly, 1; "a c" not added, 0. 3- and 4-grams: 1, 1, 1.
    """
    assert sari("a b", "a", ["a c"]) == pytest.approx(100 * (2 / 3 + 2 / 3 + 1 + 1) / 4)
    assert sari("a b", "a c", ["a c"]) == 100
    assert sari("Cells die.", "Cells die.", ["Cells are killed."]) < sari(
        "Cells die.", "cells are killed.", ["Cells live."]
    )


def test_answers_by_hand() -> None:
    assert exact_match("The imatinib.", "Imatinib") == 1
    assert exact_match("imatinib, twice", "imatinib") == 0
    assert token_f1("imatinib twice a day", "imatinib daily") == pytest.approx(2 * 1 / (3 + 2))
    assert token_f1("cell cell", "cell") == pytest.approx(2 / 3)
    assert token_f1("", "the") == 1 and token_f1("", "cell") == 0


def test_chrf_by_hand() -> None:
    """ "abcd" of "abce": of 1-grams 3 of 4, 2-grams 2 of 3, 3-grams 1 of 2, 4-grams 0 of 1, both ways; none is longer."""
    assert chrf("abcd", "abce") == pytest.approx(100 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)
    assert (chrf("Imatinib helped.", "Imatinib helped."), chrf("", "abce")) == (pytest.approx(100), 0)
    # beta 2: as precision falls, so does it, but less than where recall falls
    assert chrf("imatinib", "imatinib helped") < chrf("imatinib helped", "imatinib") < 100


def test_macro_f1_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for labels in (2, 4, 6):
        true = generator.integers(0, labels, 50)
        chosen = np.where(generator.random(50) < 0.6, true, generator.integers(0, max(1, labels - 1), 50))
        true[true == 0] = min(1, labels - 1)  # a label that only ever is chosen
        confusion = metrics.confusion_matrix(true, chosen, labels=range(labels)).reshape(-1)
        expected = metrics.f1_score(true, chosen, average="macro", zero_division=0.0)
        assert float(macro_f1(confusion)) == pytest.approx(expected, rel=1e-12)
    assert macro_f1(np.zeros((3, 4)) + [1, 0, 0, 1]).tolist() == [1.0, 1.0, 1.0]


def test_term_shares_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    given, wanted = generator.random((2, 30, 12)) < 0.3
    counts = [(int((g & w).sum()), int(g.sum()), int(w.sum())) for g, w in zip(given, wanted)]
    expected = metrics.precision_recall_fscore_support(wanted.reshape(-1), given.reshape(-1), average="binary")
    found = shares(counts)
    assert [found[name].value for name in ("precision", "recall", "f1")] == pytest.approx(list(expected[:3]), rel=1e-9)
    nothing = shares([(0, 0, 2), (0, 0, 1)])
    assert [score.value for score in nothing.values()] == [0, 0, 0]


def test_the_interval_is_scipys() -> None:
    """The same percentile bootstrap from other random numbers: 2,000 resamples know each end to about 5% of the width."""
    from scipy.stats import bootstrap as theirs

    rows = np.random.default_rng(2).gamma(2.0, size=(60, 2)) + [0.0, 1.0]
    score = bootstrap(lambda sums: sums[..., 0] / sums[..., 1], rows.tolist())
    expected = theirs(
        (np.arange(60),),
        lambda index: rows[index, 0].sum() / rows[index, 1].sum(),
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert score.value == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum()) and score.n == 60
    width = expected.high - expected.low
    assert score.low == pytest.approx(expected.low, abs=0.1 * width)
    assert score.high == pytest.approx(expected.high, abs=0.1 * width)


def test_means_and_their_edges() -> None:
    one, same = mean_score([0.25]), mean_score([0.5] * 9)
    assert (one.value, one.low, one.high, one.n) == (0.25, None, None, 1)
    assert (same.value, same.low, same.high, same.n) == (0.5, 0.5, 0.5, 9)
    half = mean_score([0.0, 1.0] * 200)  # the binomial's: 0.5 +- 1.96 sqrt(0.25 / 400)
    assert half.high - half.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.1)


def test_items_of_one_article_are_resampled_together() -> None:
    """20 questions of an article that is all right and 20 of one that is all wrong are two observations, not 40."""
    values, articles = [1.0] * 20 + [0.0] * 20, ["1"] * 20 + ["2"] * 20
    for score in (mean_score(values, articles), proportion(values, articles)):
        assert (score.value, score.low, score.high, score.n) == (0.5, 0.0, 1.0, 40)
    uneven = mean_score([1.0, 1.0, 1.0, 0.0], ["1", "1", "1", "2"])  # an article with more items weighs more
    assert (uneven.value, uneven.n) == (0.75, 4)
    alone = [str(place) for place in range(40)]
    assert mean_score(values, alone) == mean_score(values) and proportion(values, alone) == proportion(values)
    assert (proportion([1.0] * 40, articles).low, proportion([1.0] * 40, articles).n) == (proportion([1.0] * 2).low, 40)
    assert mean_score([1.0, 0.0], ["1", "1"]).low is None


def test_shares_have_wilsons_interval() -> None:
    """By Wilson's formula; none of 8 and 8 of 8 are no certainty, and one item is little to go by."""
    z2 = 1.959964**2
    for right, n in ((0, 8), (8, 8), (3, 8), (1, 1), (0, 1)):
        score, p = proportion([1.0] * right + [0.0] * (n - right)), right / n
        half = math.sqrt(z2 * p * (1 - p) / n + z2 * z2 / (4 * n * n))
        expected = [(p + z2 / (2 * n) + sign * half) / (1 + z2 / n) for sign in (-1, 1)]
        assert (score.value, score.n) == (p, n)
        assert [score.low, score.high] == pytest.approx(expected, abs=1e-6)
        assert score.high - score.low > 0.3


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("126mg, 5mL and 2.5g/dL, 3-fold, 2x, 40th", "126 5 2.5 3 2 40"),
        ("12.5x10^9/L or 12.5 x 10(9)/L", "12.5 10^9"),
        ("45% of 1,532 and 95.0%, p=.05 (n=7).", "45 1532 95 0.05 7"),
        ("5-year, 3-5 and 2-4mg; day-28, 1990s, <20", "5 3 2 4 28 1990 20"),
        ("NPM1, CD34+, p53, 17p, 11q23.3, IL-2, 5-FU, t(15;17)(q24;q21), inv(16), 3H, 18F, version 3.5.1", ""),
        ("in 12.", "12"),
        ("10(-7) M, 10^\u22123 and 10**-4; 10^5.3 copies.", "10^-7 10^-3 10^-4 10^5.3"),
        ("5.0 mg, p = 0.050, 100 and 007", "5 0.05 100 7"),
        ("50 000, 50\u2009000, 50\u202f000, 50\u00a0000, 50,000, 50000", "50000"),
        ("12 300/mm3, 1 234 567 cells, 1 000.5 and -5 000; 10-50 000", "12300 1234567 1000.5 -5000 10 50000"),
        ("in 2012 300 patients; in 2012 300 000 cells", "2012 300 300000"),
        ("In group 1 234 and on day 28 100 patients, at ages 10 200; May 12 300 left.", "1 234 28 100 10 200 12 300"),
        (
            "0.5 000, CD34 120, IL-2 100 U, 10(9) 300, 12 34, 1 2345, 5 6789 and 3 mg 400",
            "0.5 0 120 100 10^9 300 12 34 1 2345 5 6789 3 400",
        ),
        ("-5%, (-2.50 to \u22120.5), r=-.7, 3-4, day-28 and [-9,-8]", "-5 -2.5 -0.5 -0.7 3 4 28 -9 -8"),
    ],
)
def test_numbers_are_whole_and_names_are_none(text: str, numbers: str) -> None:
    assert numbers_of(text) == set(numbers.split())


def test_faithfulness_counts_what_the_source_holds() -> None:
    source = "STI571 was given to 1,532 patients with CML; 62.5 percent responded."
    found = faithful("Imatinib helped 62.5 of 1532 patients, not 15, with CML and NPM1.", source, load_gazetteer())
    assert found["numbers"] == (2, 3)
    assert found["entities"] == (2, 3)  # imatinib under another name, CML; not NPM1
    assert faithful("A fall of 5% in 7.0 years.", "Changed by -5% in 7 years.", load_gazetteer())["numbers"] == (1, 2)
    assert faithful("It helped.", source, load_gazetteer()) == {"numbers": (0, 0), "entities": (0, 0)}


def test_reading_grade_by_hand() -> None:
    """Two sentences of 5 words and 5 syllables; then one sentence of 2 long words."""
    assert reading_counts("The cat sat. It ran.") == (5, 2, 5)
    easy = float(reading_grade(np.array([5, 2, 5])))
    assert easy == pytest.approx(0.39 * 2.5 + 11.8 * 1 - 15.59)
    hard = reading_counts("Thrombocytopenia persisted.")
    assert hard[:2] == (2, 1) and hard[2] >= 6
    assert float(reading_grade(np.array(hard))) > 20 > easy
    assert reading_counts("") == (0, 0, 0)
