"""Retrieval by meaning: embeddings of a sentence-transformers folder, and their ranking joined with that of BM25.

An extra, because the model is the user's: pip install sentence-transformers. Everything is done on this machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from examples.leukemia.data import UserError

__all__ = ["Embedder", "SentenceTransformerEmbedder", "nearest", "reciprocal_rank_fusion"]

K = 60  # of the paper: how little the first places count more than those after them
Name = TypeVar("Name", bound=Hashable)
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Embedder(Protocol):
    """What an index needs: texts to unit vectors, and which model makes them.

    Attributes:
        model: tells this model from every other; stored in the index.
        name: for messages.
    """

    model: str
    name: str

    def documents(self, texts: Sequence[str]) -> Vectors:
        """Articles to (len(texts), D)."""

    def query(self, text: str) -> Vectors:
        """A question to (D,)."""


class SentenceTransformerEmbedder:
    """Any sentence-transformers folder. Text past the model's length is not seen by it.

    Raises:
        UserError: the package or the folder is missing, or the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "modules.json").is_file():
            raise UserError(
                f"{folder} is no sentence-transformers folder (it has no modules.json): give another --dense"
            )
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UserError("--dense needs the package sentence-transformers: pip install sentence-transformers")
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        self.name, self.model = str(folder), _digest(folder)
        try:
            self._encoder = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ImportError,
            RuntimeError,
            SafetensorError,
        ) as error:
            raise UserError(f"{folder} cannot be loaded as a sentence-transformers folder ({error})") from None

    def documents(self, texts: Sequence[str]) -> Vectors:
        """Titles and abstracts to unit vectors, (len(texts), D)."""
        return self._checked(self._encoder.encode_document(list(texts), **_HOW))

    def query(self, text: str) -> Vectors:
        """A question to a unit vector, (D,); some models put other words before a question than before a text."""
        return self._checked(self._encoder.encode_query([text], **_HOW))[0]

    def _checked(self, vectors: Any) -> Vectors:
        found = np.asarray(vectors, np.float32)
        if not np.isfinite(found).all():
            raise UserError(f"{self.name} gives vectors that are not finite: give another --dense")
        return found


_HOW = {"normalize_embeddings": True, "show_progress_bar": False, "convert_to_numpy": True}


def _digest(folder: Path) -> str:
    """SHA-256 of all files of a model but its card: two folders with the same files are the same model."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def nearest(query: Vectors, vectors: Vectors, names: Sequence[Name], count: int) -> list[Name]:
    """The names of the `count` vectors (N, D) of highest cosine with `query` (D,), best first; all unit vectors.

    Exact: every vector is looked at. Of equal ones the first comes first.
    """
    order = np.argsort(-(vectors @ query), kind="stable")[:count]
    return [names[place] for place in order]


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Name]], k: int = K) -> dict[Name, float]:
    """Each name's sum of 1 / (k + rank) over the rankings that hold it, the first rank being 1.

    Source: Cormack, Clarke and Büttcher 2009, Reciprocal Rank Fusion. Scores that cannot be compared, such as BM25 and a
    cosine, are not: ranks alone count.
    """
    scores: dict[Name, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (k + rank)
    return scores
