"""Write synthetic abstracts: the set that ships with the application, and the text that its tiny model learns from.

Every study, number and outcome here is invented. The sentences follow the form of clinical abstracts, and what
distinguishes the subtypes (genes, drugs, cells) is textbook knowledge, but nothing in them is evidence of anything.

    python -m examples.leukemia.synthetic          # writes the shipped files again, byte for byte

The diseases of another cancer come from a data file (data/lymphoma/diseases.json): nothing here changes for it.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

__all__ = [
    "ABSTRACTS",
    "DISEASES",
    "FORMS",
    "LYMPHOMA",
    "QUESTIONS",
    "QUESTIONS_FILE",
    "Forms",
    "SyntheticAbstract",
    "fill",
    "read_diseases",
    "shipped_csvs",
    "slots",
    "write_abstract",
]

ABSTRACTS = Path(__file__).parent / "data" / "abstracts.csv"
QUESTIONS_FILE = Path(__file__).parent / "data" / "questions.csv"
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


@dataclass(frozen=True)
class Forms:
    """The sentences that abstracts are made of; {slots} are filled with one study's facts, {Slots} with a capital.

    Attributes:
        findings: (result, what is concluded from it) pairs: the conclusion of an abstract follows from its finding.
        conclusions: how a conclusion is said.
    """

    titles: tuple[str, ...]
    background: tuple[str, ...]
    methods: tuple[str, ...]
    findings: tuple[tuple[str, str], ...]
    details: tuple[str, ...]
    conclusions: tuple[str, ...]


FORMS = Forms(
    titles=(
        "{Drug} for {patients} with {disease}: {design}",
        "{Gene} and {outcome} in {disease}",
        "{Outcome} after {drug} in {disease}",
        "Prognostic value of {gene} in {patients} with {disease}",
        "{Drug} during {setting} of {disease}",
        "{Signs} at diagnosis of {disease}: {design}",
        "Does {gene} predict {outcome} in {disease}?",
        "{Drug} and {outcome}: {design} in {disease}",
    ),
    background=(
        "{Disease} ({short}) in {patients} is treated with {drug}, but {outcome} is hard to predict.",
        "The value of {gene} in {disease} ({short}) is not settled.",
        "{Signs} may point to a poor course of {disease}.",
        "Little is known of {outcome} in {patients} with {disease} who receive {drug}.",
        "{Gene} is found in about {found} percent of {patients} with {disease}.",
        "Treatment of {disease} has changed since {drug} became available.",
        "We asked whether {gene} is linked to {outcome} in {short}.",
    ),
    methods=(
        "We studied {n} {patients} with {disease} during {setting} in {design}.",
        "In {design}, {n} patients with {short} received {drug} for {months} months.",
        "Marrow of {n} patients was tested for {gene} by sequencing before {drug}.",
        "We reviewed the records of {n} {patients} who were seen at {centres} centres between {year} and {year2}.",
        "{n} patients were assigned at random to {drug} or to observation during {setting}.",
        "Blood counts, {gene} and {signs} were recorded in {n} patients at diagnosis and after {months} months.",
    ),
    findings=(
        (
            "{Outcome} was seen in {p1} percent with {drug} and in {p2} percent without it (P = 0.0{digit}).",
            "{drug} is an option for {patients} with {disease}",
        ),
        (
            "{Gene} was present in {k} of {n} patients and went with {signs}.",
            "{gene} should be looked for where {signs} is found",
        ),
        (
            "Patients with {gene} had more often {outcome} ({p1} against {p2} percent).",
            "{gene} should be tested in {patients} with {short} before {drug} is given",
        ),
        (
            "In a model with age and white cell count, {gene} remained linked to {outcome} (hazard ratio 1.{digit}).",
            "{outcome} in {disease} depends on {gene} rather than on age",
        ),
        (
            "{k} patients left the study during {setting}, most of them because of toxicity of {drug}.",
            "a larger trial of {drug} in {setting} is needed",
        ),
        (
            "After {months} months, {p1} percent of those treated with {drug} were alive.",
            "survival data support {drug} during {setting}",
        ),
    ),
    details=(
        "{presented} patients presented with {signs}, most of them before {setting}.",
        "The median age was {age} years, and {women} percent of the patients were women.",
        "Serious infections occurred in {infections} patients; none of them was due to {drug}.",
        "Neutropenia and thrombocytopenia were the most frequent adverse events of {drug}.",
        "The median hemoglobin was {hb} g/dL and the median platelet count {plt} x 10^9/L.",
    ),
    conclusions=("We conclude that {conclusion}.", "In conclusion, {conclusion}.", "CONCLUSION: {Conclusion}."),
)
DESIGNS = (
    "a randomized trial",
    "a retrospective cohort",
    "a single-arm phase 2 trial",
    "a registry study",
    "a case-control study",
    "a multicentre study",
)


# what can be asked of a study, by the slot that answers it
QUESTIONS = {
    "drug": "Which drug was given",
    "gene": "Which marker was tested",
    "outcome": "Which outcome was looked at",
    "signs": "Which sign was seen",
    "setting": "At which point of the treatment were the patients",
    "patients": "Who took part",
    "design": "What was the design",
    "n": "How many patients took part",
    "months": "How many months were patients treated or followed",
    "centres": "How many centres took part",
    "age": "What was the median age in years",
}


@dataclass(frozen=True)
class SyntheticAbstract:
    """A title, its abstract, the subtype that it was written about, and the facts that the abstract states, by slot."""

    title: str
    abstract: str
    subtype: str
    facts: dict[str, str]


def read_diseases(path: Path) -> tuple[Disease, ...]:
    """The diseases of a data file: a list of objects with the fields of `Disease`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Disease(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows)


def write_abstract(
    rng: random.Random, diseases: Sequence[Disease] = DISEASES, forms: Forms = FORMS
) -> SyntheticAbstract:
    """One abstract about a subtype drawn at random ("other" stands for several diseases and is no likelier for it).

    The title and each sentence take gene, drug, sign, setting and outcome from the one study that was drawn.
    """
    subtype = rng.choice(sorted({disease.subtype for disease in diseases}))
    disease = rng.choice([disease for disease in diseases if disease.subtype == subtype])
    facts = _study(rng, disease)
    finding, conclusion = rng.choice(forms.findings)
    facts["conclusion"] = fill(conclusion, facts)
    title = rng.choice(forms.titles)
    sentences = [
        *rng.sample(forms.background, 2),
        *rng.sample(forms.methods, 2),
        finding,
        *rng.sample(forms.details, 2),
        rng.choice(forms.conclusions),
    ]
    abstract = " ".join(_capital(fill(sentence, facts)) for sentence in sentences)
    stated = {slot for sentence in (*sentences, conclusion) for slot in slots(sentence)} - {"conclusion"}
    return SyntheticAbstract(
        fill(title, facts), abstract, disease.subtype, {slot: facts[slot] for slot in sorted(stated)}
    )


def _study(rng: random.Random, disease: Disease) -> dict[str, str]:
    """An invented study of a disease: a value for every slot."""
    n, year = rng.randrange(24, 900), rng.randrange(1994, 2019)
    drawn: dict[str, object] = {
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
        "presented": rng.randrange(3, n),
        "infections": rng.randrange(2, n // 4),
        "found": rng.randrange(5, 60),
        "women": rng.randrange(30, 70),
        "p1": rng.randrange(41, 97),
        "p2": rng.randrange(8, 41),
        "digit": rng.randrange(1, 10),
        "months": rng.choice((6, 12, 18, 24, 36, 48, 60)),
        "age": rng.randrange(3, 16) if disease.subtype == "ALL" else rng.randrange(38, 79),
        "hb": f"{rng.randrange(60, 140) / 10:.1f}",
        "plt": rng.randrange(12, 400),
        "centres": rng.randrange(2, 30),
        "year": year,
        "year2": year + rng.randrange(2, 8),
    }
    return {slot: str(value) for slot, value in drawn.items()}


def fill(form: str, facts: Mapping[str, str]) -> str:
    """A form with its slots filled; {Slot} is the fact with a capital."""
    return form.format_map({**facts, **{slot.capitalize(): _capital(fact) for slot, fact in facts.items()}})


def slots(form: str) -> set[str]:
    """The slots of a form, in small letters."""
    return {name.lower() for _, name, _, _ in Formatter().parse(form) if name}


def ask(rng: random.Random, record: SyntheticAbstract) -> tuple[str, str]:
    """A question that the abstract answers, and the answer; the question says which study it means."""
    slot = rng.choice(sorted(record.facts.keys() & QUESTIONS.keys()))
    named = sorted(record.facts.keys() & {"gene", "drug", "outcome", "signs"} - {slot})
    study = " and ".join(record.facts[name] for name in rng.sample(named, min(2, len(named))))
    number = record.facts.get("n", "")  # tells a study from the others of its disease
    among = f" among {number} patients" if number and record.facts[slot] not in number else ""
    return f"{QUESTIONS[slot]} in the study of {study}{among} in {record.facts['disease']}?", record.facts[slot]


def shipped_csvs(diseases: Sequence[Disease] = DISEASES, count: int = COUNT, prefix: str = "SYN-") -> tuple[str, str]:
    """The shipped set: `count` different abstracts, each marked as synthetic by its id and by a column; and questions.

    Returns:
        abstracts.csv and questions.csv (a question an abstract, answered by a fact that it states).
    """
    rng, asking, seen = random.Random(SEED), random.Random(SEED + 1), set[str]()
    abstracts, questions = io.StringIO(), io.StringIO()
    rows, asked = csv.writer(abstracts, lineterminator="\n"), csv.writer(questions, lineterminator="\n")
    rows.writerow(["pubmed_id", "title", "abstract", "subtype", "source"])
    asked.writerow(["pubmed_id", "question", "answer"])
    while len(seen) < count:
        record = write_abstract(rng, diseases)
        if record.abstract in seen:
            continue
        seen.add(record.abstract)
        name = f"{prefix}{len(seen):04d}"  # PubMed's ids are whole numbers: "SYN-0001" cannot be one
        rows.writerow([name, record.title, record.abstract, record.subtype, "synthetic: invented, no evidence"])
        asked.writerow([name, *ask(asking, record)])
    return abstracts.getvalue(), questions.getvalue()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def write_shipped() -> None:
    """Write the shipped files of both cancers."""
    sets = (
        (ABSTRACTS.parent, DISEASES, COUNT, "SYN-"),
        (LYMPHOMA, read_diseases(LYMPHOMA / "diseases.json"), LYMPHOMA_COUNT, "SYN-L"),
    )
    for folder, diseases, count, prefix in sets:
        for name, text in zip(("abstracts.csv", "questions.csv"), shipped_csvs(diseases, count, prefix)):
            (folder / name).write_text(text, encoding="utf-8", newline="")
        print(f"wrote {count} synthetic abstracts and their questions to {folder}")


if __name__ == "__main__":
    write_shipped()
