"""PubMed's XML to records.

The elements are those of NLM's PubMed DTD: PubmedArticle / MedlineCitation / Article, and PubmedBookArticle for chapters.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from examples.leukemia.clean import on_one_line
from examples.leukemia.data import NO_TITLE, Record, UserError, year_of

__all__ = ["inner_text", "pubmed_ids", "read_pubmed_xml"]

_ARTICLES = ("PubmedArticle", "PubmedBookArticle")
_RETRACTIONS = {"RetractionIn", "RetractedandRepublishedIn", "PartialRetractionIn"}  # RefTypes of the article itself


def read_pubmed_xml(path: Path) -> Iterator[Record]:
    """The records of a file (also gzipped) or of every .xml and .xml.gz file below a folder, in the order of the names.

    Raises:
        UserError: a file is not whole XML, or the folder holds none.
    """
    files = sorted(p for p in path.rglob("*.xml*") if p.name.endswith((".xml", ".xml.gz"))) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .xml file: give a folder that fetch wrote, or a CSV or JSONL file")
    for file in files:
        try:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as source:
                yield from _records(source)
        except (ElementTree.ParseError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{file} is not whole XML ({error}): fetch it again") from None
        except (LookupError, ValueError, RecursionError) as error:  # an unknown encoding, markup 50,000 deep
            raise UserError(f"{file} is not XML of PubMed ({error}): fetch it again") from None
        except OSError as error:
            raise UserError(
                f"{file} cannot be read ({error.strerror}): give a file or folder of PubMed's XML"
            ) from None


def pubmed_ids(root: Element) -> list[str]:
    """The ids of the articles in a PubmedArticleSet, in its order."""
    articles = [element for element in root if element.tag in _ARTICLES]
    return [_text(article, "./MedlineCitation/PMID", "./BookDocument/PMID") for article in articles]


def inner_text(element: Element | None) -> str:
    """All text inside an element, markup left out but its text kept: "10<sup>9</sup>" becomes "10^9", not "109"."""
    return "" if element is None else on_one_line(_with_levels(element))


def _with_levels(element: Element) -> str:
    """The text inside with no tags but <sup> and <sub>; the second part of MathML's msup is a superscript."""
    texts = [_with_levels(child) for child in element]
    names = [_name(child) for child in element]
    if _name(element) == "msup" and len(texts) == 2:
        return f"{texts[0].strip()}<sup>{texts[1]}</sup>"
    marked = (f"<{name}>{text}</{name}>" if name in ("sup", "sub") else text for name, text in zip(names, texts))
    return (element.text or "") + "".join(text + (child.tail or "") for text, child in zip(marked, element))


def _name(element: Element) -> str:
    """The tag without its namespace."""
    return element.tag.rpartition("}")[2]


def _records(source: BinaryIO) -> Iterator[Record]:
    """Read an article at a time, so that a file of any size takes the memory of one."""
    for _, element in ElementTree.iterparse(source, events=("end",)):
        if element.tag in _ARTICLES:
            yield _record(element)
            element.clear()


def _record(article: Element) -> Record:
    book = article.tag == "PubmedBookArticle"
    body = article.find("./BookDocument" if book else "./MedlineCitation/Article")
    body = Element("Article") if body is None else body
    sections = _sections(body.find("Abstract"))
    issue = "./Journal/JournalIssue/PubDate"
    date = _text(body, f"{issue}/Year", f"{issue}/MedlineDate", "./ArticleDate/Year", "./Book/PubDate/Year")
    title = _text(body, "ArticleTitle")
    return Record(
        pubmed_id=_text(article, "./MedlineCitation/PMID", "./BookDocument/PMID"),
        title=_text(body, "VernacularTitle", "./Book/BookTitle") if title in ("", *NO_TITLE) else title,
        abstract=" ".join(f"{label}: {text}" if label else text for label, text in sections),
        year=year_of(date),
        journal=_text(body, "./Journal/ISOAbbreviation", "./Journal/Title", "./Book/Publisher/PublisherName"),
        retracted=_is_retracted(article, body),
        sections=sections if any(label for label, _ in sections) else (),
    )


def _sections(abstract: Element | None) -> tuple[tuple[str, str], ...]:
    """(label, text) of each part of an abstract; the copyright line is an element of its own and left out."""
    if abstract is None:
        return ()
    parts = [(part.get("Label", "").strip(), _line(inner_text(part))) for part in abstract.findall("AbstractText")]
    return tuple((label if label != "UNLABELLED" else "", text) for label, text in parts if text)


def _is_retracted(article: Element, body: Element) -> bool:
    """Whether the article itself was retracted; the notice that retracts it is another article and is not marked.

    A part that was retracted counts, since nothing says which sentences of the abstract it takes along. An expression of
    concern does not: it is a doubt, and most of its articles stay.
    """
    types = {inner_text(kind) for kind in body.findall("./PublicationTypeList/PublicationType")}
    types |= {inner_text(kind) for kind in body.findall("./PublicationType")}
    notes = {note.get("RefType") for note in article.iter("CommentsCorrections")}
    return "Retracted Publication" in types or bool(notes & _RETRACTIONS)


def _text(element: Element, *paths: str) -> str:
    """The text of the first of `paths` that has any."""
    return next((text for path in paths if (text := _line(inner_text(element.find(path))))), "")


def _line(text: str) -> str:
    return " ".join(text.split())
