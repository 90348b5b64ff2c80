"""Find texts that nearly repeat an earlier one, exactly and without comparing all pairs.

Two texts are near-duplicates where their sets of 5-word shingles have a Jaccard similarity of at least t. Sort all
shingles from rare to frequent: then two sets of that similarity must share one of their first |x| - ceil(t |x|) + 1
(Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007), so only those are looked up.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from tqdm import tqdm

__all__ = ["near_duplicates", "shingles"]

WIDTH = 5


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> dict[int, int]:
    """{place of a text: place of the earlier one that it nearly repeats}; the earlier is none of the repeats itself."""
    ids: dict[str, int] = {}
    sets = [shingles(text, ids) for text in texts]
    frequency = Counter(shingle for each in sets for shingle in each)
    index: defaultdict[int, list[int]] = defaultdict(list)
    repeats: dict[int, int] = {}
    for place, each in enumerate(tqdm(sets, desc="comparing", unit=" article", delay=1)):
        prefix = sorted(each, key=lambda shingle: (frequency[shingle], shingle))
        prefix = prefix[: len(each) - math.ceil(threshold * len(each)) + 1]
        candidates = sorted({other for shingle in prefix for other in index[shingle]})
        original = next((other for other in candidates if _jaccard(each, sets[other]) >= threshold), None)
        if original is not None:
            repeats[place] = original
            continue
        for shingle in prefix:
            index[shingle].append(place)
    return repeats


def shingles(text: str, ids: dict[str, int]) -> set[int]:
    """The runs of five words of a text, each as one number; `ids` numbers the words and grows.

    Python's hash of a tuple of whole numbers is the same in every process, that of a string is not.
    """
    words = [ids.setdefault(word, len(ids)) for word in re.findall(r"\w+", text.lower())]
    runs = [tuple(words[start : start + WIDTH]) for start in range(max(1, len(words) - WIDTH + 1))]
    return {hash(run) for run in runs}


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)
