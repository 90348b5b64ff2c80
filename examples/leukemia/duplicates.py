"""Find texts that nearly repeat an earlier one, or are a part of it, exactly and without comparing all pairs.

Two texts are near-duplicates where their sets of 4-word shingles have a Jaccard similarity of at least t, or where the
longer holds 0.8 of the shorter, as of a copy that was cut; a text of fewer than 30 shingles only where both are the same,
for two case reports may differ in one word that matters. An abstract with every 25th word changed is 0.72 alike or more;
the two sets of real abstracts that this was measured on have pairs up to 0.03 alike (the longer holds 0.07 of the
shorter), synthetic ones, all of the same forms, up to 0.46 (0.65), and two years' editions of one review 0.59 (0.78).

A similarity of t takes a share of 2t / (1 + t) of the smaller set. Sort all shingles from rare to frequent: sets that
share a share c of the smaller, x, share n of the first |x| - ceil(c |x|) + n of x, so only those are looked up, and only
sets with n hits are compared (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007; for n above 1: Wang, Li and
Feng 2012). A larger n looks up more and compares less: texts that share a sentence or two are many. Whichever comes later
is looked up in what the earlier ones have.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

from tqdm import tqdm

__all__ = ["near_duplicates", "shingles"]

WIDTH = 4
ALIKE = 0.65  # Jaccard similarity from which a text repeats another
CONTAINED = 0.8  # share of the shorter's shingles that the longer has: of a copy without its end, with words changed
TELLING = 1 / 5  # n, as a share of what is needed
# shingles of a text that may repeat another without being the same: some sentences, not one that many share
FEWEST = 30


def near_duplicates(texts: Sequence[str], threshold: float = ALIKE) -> dict[int, int]:
    """{place of a text: place of the earlier one that it nearly repeats}; the earlier is none of the repeats itself."""
    ids: dict[str, int] = {}
    sets = [shingles(text, ids) for text in tqdm(texts, desc="shingling", unit=" article", delay=1)]
    frequency: Counter[int] = Counter()
    for each in sets:
        frequency.update(each)
    of_all: defaultdict[int, list[int]] = defaultdict(list)
    of_first: defaultdict[int, list[int]] = defaultdict(list)
    repeats: dict[int, int] = {}
    hits_of: dict[int, int] = {}
    needed = min(2 * threshold / (1 + threshold), CONTAINED)  # share of the smaller set
    for place, each in enumerate(tqdm(sets, desc="comparing", unit=" article", delay=1)):
        ordered = sorted(sorted(each), key=frequency.__getitem__)  # of the same frequency by number
        least = math.ceil(needed * len(each))
        hits = math.ceil(least * TELLING)
        first = ordered[: len(each) - least + hits]
        smaller = Counter(chain.from_iterable(of_all[shingle] for shingle in first if shingle in of_all))
        larger = Counter(chain.from_iterable(of_first[shingle] for shingle in ordered if shingle in of_first))
        candidates = sorted(
            {other for other, shared in smaller.items() if shared >= hits}
            | {other for other, shared in larger.items() if shared >= hits_of[other]}
        )
        original = next((other for other in candidates if _repeats(each, sets[other], threshold)), None)
        if original is not None:
            repeats[place] = original
            continue
        hits_of[place] = hits
        for index, part in ((of_all, ordered), (of_first, first)):
            for shingle in part:
                if frequency[shingle] > 1:  # most are in no other text
                    index[shingle].append(place)
    return repeats


def shingles(text: str, ids: dict[str, int]) -> set[int]:
    """The runs of four words of a text, each as one number; `ids` numbers the words and grows.

    Python's hash of a tuple of whole numbers is the same in every process, that of a string is not.
    """
    words = [ids.setdefault(word, len(ids)) for word in re.findall(r"\w+", text.lower())]
    runs = zip(*(words[start:] for start in range(WIDTH))) if len(words) >= WIDTH else [tuple(words)]
    return set(map(hash, runs))


def _repeats(a: set[int], b: set[int], threshold: float) -> bool:
    shared, shorter = len(a & b), min(len(a), len(b))
    if shorter < FEWEST:
        return a == b
    return shared / (len(a) + len(b) - shared) >= threshold or shared / shorter >= CONTAINED
