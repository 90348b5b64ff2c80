"""Write synthetic abstracts: the set that ships with the application, and the text that its tiny model learns from.

Every study, number and outcome here is invented. The sentences follow the form of clinical abstracts, and what
distinguishes the subtypes (genes, drugs, cells) is textbook knowledge, but nothing in them is evidence of anything.

    python -m examples.leukemia.synthetic          # writes the two shipped files again, byte for byte

The diseases of another cancer come from a data file (data/lymphoma/diseases.json): nothing here changes for it.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DISEASES", "SyntheticAbstract", "abstracts_csv", "read_diseases", "write_abstract"]

ABSTRACTS = Path(__file__).parent / "data" / "abstracts.csv"
COUNT, SEED = 600, 20261123
LYMPHOMA = Path(__file__).parent / "data" / "lymphoma"
LYMPHOMA_COUNT = 120


@dataclass(frozen=True)
class Disease:
    """What tells one leukemia from another in a text."""

    subtype: str
    name: str
    short: str
    patients: tuple[str, ...]
    genes: tuple[str, ...]
    drugs: tuple[str, ...]
    signs: tuple[str, ...]
    settings: tuple[str, ...]
    outcomes: tuple[str, ...]


DISEASES = (
    Disease(
        "ALL",
        "acute lymphoblastic leukemia",
        "ALL",
        ("children", "adolescents", "infants", "young adults", "children and adolescents"),
        ("ETV6-RUNX1", "TCF3-PBX1", "IKZF1", "KMT2A-AFF1", "CRLF2", "PAX5", "hyperdiploidy"),
        ("vincristine", "pegaspargase", "dexamethasone", "blinatumomab", "mercaptopurine", "inotuzumab ozogamicin"),
        ("lymphoblasts in the marrow", "a mediastinal mass", "blasts in the cerebrospinal fluid", "bone pain"),
        ("induction", "delayed intensification", "maintenance", "first relapse"),
        ("minimal residual disease at the end of induction", "central nervous system relapse", "event-free survival"),
    ),
    Disease(
        "AML",
        "acute myeloid leukemia",
        "AML",
        ("older adults", "adults unfit for intensive chemotherapy", "adults", "adults below 60 years"),
        ("FLT3-ITD", "NPM1", "CEBPA", "IDH1", "IDH2", "DNMT3A", "RUNX1-RUNX1T1"),
        ("cytarabine", "midostaurin", "gilteritinib", "venetoclax plus azacitidine", "ivosidenib", "daunorubicin"),
        ("myeloblasts with Auer rods", "gum infiltration", "circulating myeloblasts", "neutropenic fever"),
        ("induction", "consolidation with high-dose cytarabine", "first relapse", "refractory disease"),
        ("complete remission with incomplete count recovery", "overall survival", "early death"),
    ),
    Disease(
        "APL",
        "acute promyelocytic leukemia",
        "APL",
        ("adults", "young adults", "patients of low or intermediate risk", "patients of high risk"),
        ("PML-RARA", "the t(15;17) translocation", "PLZF-RARA", "PML-RARA transcripts", "RARA"),
        ("all-trans retinoic acid", "arsenic trioxide", "retinoic acid plus arsenic", "oral arsenic"),
        ("abnormal promyelocytes", "coagulopathy with low fibrinogen", "faggot cells", "intracranial bleeding"),
        ("induction", "consolidation", "maintenance", "first molecular relapse"),
        ("differentiation syndrome", "early haemorrhagic death", "molecular remission"),
    ),
    Disease(
        "CLL",
        "chronic lymphocytic leukemia",
        "CLL",
        ("older adults", "previously untreated patients", "patients under observation", "frail patients"),
        ("unmutated IGHV", "deletion 17p", "SF3B1", "deletion 11q", "trisomy 12", "NOTCH1", "ATM"),
        ("ibrutinib", "acalabrutinib", "venetoclax plus obinutuzumab", "chlorambucil", "fludarabine", "idelalisib"),
        (
            "lymphocytosis with smudge cells",
            "CD5 and CD23 on mature lymphocytes",
            "bulky lymph nodes",
            "Richter change",
        ),
        ("watchful waiting", "first-line treatment", "second-line treatment", "fixed-duration treatment"),
        ("undetectable residual disease in blood", "time to first treatment", "progression-free survival"),
    ),
    Disease(
        "CML",
        "chronic myeloid leukemia",
        "CML",
        ("adults", "patients in chronic phase", "patients intolerant of first-line treatment", "middle-aged adults"),
        ("BCR-ABL1", "the T315I mutation", "the Philadelphia chromosome", "BCR-ABL1 transcripts", "e14a2 transcripts"),
        ("imatinib", "dasatinib", "nilotinib", "bosutinib", "ponatinib", "asciminib"),
        ("basophilia", "a large spleen with granulocytosis", "left-shifted granulocytes", "blast crisis"),
        ("chronic phase", "accelerated phase", "treatment-free remission", "second-line treatment"),
        ("major molecular response", "deep molecular response", "loss of cytogenetic response"),
    ),
    Disease(
        "other",
        "hairy cell leukemia",
        "HCL",
        ("adults", "middle-aged men", "cytopenic patients", "patients in first relapse"),
        ("BRAF V600E", "annexin A1", "CD103", "MAP2K1", "KLF2"),
        ("cladribine", "pentostatin", "vemurafenib", "cladribine plus rituximab", "interferon alfa"),
        ("hairy lymphocytes", "a dry tap of the marrow", "massive spleen with monocytopenia", "pancytopenia"),
        ("first-line treatment", "first relapse", "second relapse", "long-term follow-up"),
        ("haematologic remission", "relapse-free survival", "recovery of monocytes"),
    ),
    Disease(
        "other",
        "chronic myelomonocytic leukemia",
        "CMML",
        ("older adults", "patients with proliferative disease", "patients with dysplastic disease", "elderly men"),
        ("TET2", "SRSF2", "ASXL1", "CBL", "TET2 with SRSF2"),
        ("hydroxycarbamide", "decitabine", "azacitidine", "ruxolitinib"),
        ("persistent monocytosis", "classical monocytes above 94 percent", "dysplastic monocytes", "skin infiltration"),
        ("first-line treatment", "supportive care", "failure of hypomethylating agents", "progression"),
        ("transformation", "spleen response", "transfusion independence"),
    ),
)

TITLES = (
    "{Drug} for {patients} with {disease}: {design}",
    "{Gene} and {outcome} in {disease}",
    "{Outcome} after {drug} in {disease}",
    "Prognostic value of {gene} in {patients} with {disease}",
    "{Drug} during {setting} of {disease}",
    "{Signs} at diagnosis of {disease}: {design}",
    "Does {gene} predict {outcome} in {disease}?",
    "{Drug} and {outcome}: {design} in {disease}",
)
BACKGROUND = (
    "{Disease} ({short}) in {patients} is treated with {drug}, but {outcome} is hard to predict.",
    "The value of {gene} in {disease} ({short}) is not settled.",
    "{Signs} may point to a poor course of {disease}.",
    "Little is known of {outcome} in {patients} with {disease} who receive {drug}.",
    "{Gene} is found in about {p1} percent of {patients} with {disease}.",
    "Treatment of {disease} has changed since {drug} became available.",
    "We asked whether {gene} is linked to {outcome} in {short}.",
)
METHODS = (
    "We studied {n} {patients} with {disease} during {setting} in {design}.",
    "In {design}, {n} patients with {short} received {drug} for {months} months.",
    "Marrow of {n} patients was tested for {gene} by sequencing before {drug}.",
    "We reviewed the records of {n} {patients} who were seen at {centres} centres between {year} and {year2}.",
    "{n} patients were assigned at random to {drug} or to observation during {setting}.",
    "Blood counts, {gene} and {signs} were recorded at diagnosis and after {months} months.",
)
RESULTS = (
    "{Outcome} was seen in {p1} percent with {drug} and in {p2} percent without it (P = 0.0{digit}).",
    "{Gene} was present in {k} of {n} patients and went with {signs}.",
    "Patients with {gene} had more often {outcome} ({p1} against {p2} percent).",
    "{k} patients presented with {signs}, most of them before {setting}.",
    "After {months} months, {p1} percent of those treated with {drug} were alive.",
    "The median age was {age} years, and {p1} percent of the patients were women.",
    "Serious infections occurred in {k} patients; none of them was due to {drug}.",
    "In a model with age and white cell count, {gene} remained linked to {outcome} (hazard ratio 1.{digit}).",
)
CONCLUSION = (
    "{Drug} is an option for {patients} with {disease}.",
    "{Gene} should be tested in {patients} with {short} before {drug} is given.",
    "{Outcome} in {disease} depends on {gene} rather than on age.",
    "A larger trial of {drug} in {setting} is needed.",
    "These findings support {drug} during {setting}.",
    "We advise to look for {signs} in {short}.",
)
DESIGNS = (
    "a randomized trial",
    "a retrospective cohort",
    "a single-arm phase 2 trial",
    "a registry study",
    "a case-control study",
    "a multicentre study",
)


@dataclass(frozen=True)
class SyntheticAbstract:
    """A title, its abstract and the subtype that it was written about."""

    title: str
    abstract: str
    subtype: str


def read_diseases(path: Path) -> tuple[Disease, ...]:
    """The diseases of a data file: a list of objects with the fields of `Disease`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Disease(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows)


def write_abstract(rng: random.Random, diseases: Sequence[Disease] = DISEASES) -> SyntheticAbstract:
    """One abstract about a subtype drawn at random ("other" stands for several diseases and is no likelier for it).

    The title and each sentence take gene, drug, sign, setting and outcome from the one study that was drawn.
    """
    subtype = rng.choice(sorted({disease.subtype for disease in diseases}))
    disease = rng.choice([disease for disease in diseases if disease.subtype == subtype])
    n = rng.randrange(24, 900)
    year = rng.randrange(1994, 2019)
    facts = {
        "disease": disease.name,
        "short": disease.short,
        "patients": rng.choice(disease.patients),
        "gene": rng.choice(disease.genes),
        "drug": rng.choice(disease.drugs),
        "signs": rng.choice(disease.signs),
        "setting": rng.choice(disease.settings),
        "outcome": rng.choice(disease.outcomes),
        "design": rng.choice(DESIGNS),
        "n": n,
        "k": rng.randrange(3, n // 2),
        "p1": rng.randrange(41, 97),
        "p2": rng.randrange(8, 41),
        "digit": rng.randrange(1, 10),
        "months": rng.choice((6, 12, 18, 24, 36, 48, 60)),
        "age": rng.randrange(3, 16) if disease.subtype == "ALL" else rng.randrange(38, 79),
        "centres": rng.randrange(2, 30),
        "year": year,
        "year2": year + rng.randrange(2, 8),
    }
    capitals = ("disease", "gene", "drug", "signs", "outcome")
    facts |= {key.capitalize(): _capital(str(facts[key])) for key in capitals}
    title = rng.choice(TITLES)
    sentences = [
        *rng.sample(BACKGROUND, 2),
        *rng.sample(METHODS, 2),
        *rng.sample(RESULTS, 3),
        *rng.sample(CONCLUSION, 1),
    ]
    abstract = " ".join(_capital(sentence.format(**facts)) for sentence in sentences)
    return SyntheticAbstract(title.format(**facts), abstract, disease.subtype)


def abstracts_csv(diseases: Sequence[Disease] = DISEASES, count: int = COUNT, prefix: str = "SYN-") -> str:
    """The shipped set: `count` different abstracts, each marked as synthetic by its id and by a column."""
    rng = random.Random(SEED)
    seen: set[str] = set()
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["pubmed_id", "title", "abstract", "subtype", "source"])
    while len(seen) < count:
        record = write_abstract(rng, diseases)
        if record.abstract in seen:
            continue
        seen.add(record.abstract)
        # PubMed's ids are whole numbers: "SYN-0001" cannot be one
        row = [
            f"{prefix}{len(seen):04d}",
            record.title,
            record.abstract,
            record.subtype,
            "synthetic: invented, no evidence",
        ]
        writer.writerow(row)
    return out.getvalue()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    ABSTRACTS.write_text(abstracts_csv(), encoding="utf-8", newline="")
    lymphoma = abstracts_csv(read_diseases(LYMPHOMA / "diseases.json"), LYMPHOMA_COUNT, "SYN-L")
    (LYMPHOMA / "abstracts.csv").write_text(lymphoma, encoding="utf-8", newline="")
    print(f"wrote {COUNT} and {LYMPHOMA_COUNT} synthetic abstracts to {ABSTRACTS} and {LYMPHOMA}")
