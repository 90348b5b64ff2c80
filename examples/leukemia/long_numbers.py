"""Long numbers in a question that are not plainly something else, whatever country or hospital may have given them."""

from __future__ import annotations

import re

from examples.leukemia.names import DATE

__all__ = ["find_long_numbers"]

LONG = 6  # digits in all
_REGISTER = (  # what numbers trials, articles, substances, genes, variants, data sets and terms, before their number
    r"(?:NCT|ISRCTN|EudraCT|EU[\s-]?CT|ACTRN|ChiCTR|UMIN|JPRN|jRCTs?|JapicCTI|CTRI|DRKS|IRCT|PACTR|NTR|CRD|PROSPERO"
    r"|PMIDs?|PMC(?:ID)?"
    r"|PubMed|DOI|ISBN|ISSN|arXiv|bioRxiv|CAS|CIDs?|LOINC|NDC|NDA|BLA|EMEA|PubChem|ChEMBL|ChEBI|DrugBank|UNII|ZINC"
    r"|NSC|HGNC|O?MIM|Ensembl"
    r"|ENS[A-Z]{1,4}(?=\d)|rs(?=\d)|dbSNP|COS[MV]|COSMIC|ClinVar|[VRS]CV|dbGaP|phs|GEO|GSE|GSM|GDS|GPL"
    r"|[SED]R[ARPXSZ](?=\d)|PRJ[A-Z]{1,3}(?=\d)|EGA[A-Z]?"
    r"|GenBank|EMBL|NCBI|accessions?|RefSeq|[NX][CGMPRT]_|UniProt(?:KB)?|Entrez|gene\sID|PDB|MeSH|ICD|SNOMED|UMLS"
    r"|MONDO|DOID"
    r"|HP:|GO:|EFO|ORPHA(?:NET)?|ATCC|CVCL|RRID|KEGG|TCGA|patent|trial|CALGB|SWOG|EORTC|ECOG|POG|CCG|HOVON|MRC|SAKK)"
)
_MAKER = (  # of drugs: the letters before a code of six digits or more, such as BMS-354825
    r"(?:A(?=-1\d{6})|(?:BAY|ICI)\s|BAY|BMS|CCT|CP|EPZ|FR|GSK|ICI|INCB|JNJ|KU|LDC|LY|PD|PF|PHA|PRT|RO|SB|SCH|SKF|SP"
    r"|TG|WAY)"
)
_COUNTED = (
    r"(?:patients?|people|persons?|cases?|children|infants|births|adults|(?:wo)?men|individuals|participants"
    r"|subjects|residents"
    r"|survivors|donors|recipients|deaths|cells?|blasts|platelets|le[uk]{1,2}ocytes|lymphocytes|copies|transcripts"
    r"|reads|genes"
    r"|variants|mutations|samples|articles|records|base\s?pairs|nucleotides|residues|codons|amino|euros|dollars"
    r"|persons?-years"
    r"|years?|months?|weeks?|days?|hours?|units?)\b"
)
_VALUED = (
    r"(?:WBC|RBC|TLC|ANC|LDH|BNP|leu[ck]ocyt\w{1,6}|platelets?|counts?|ferritin|titers?|viral\sload|N|USD|EUR|GBP)"
)
_MEASURED = (  # a unit, or what is counted
    r"\s?(?:%|/\s?[a-zµμ]|per\b|(?-i:(?:[kmuµμnpc](?:g|L|l|M|mol|U|Gy|m|b|Da)|g|mol|I?U|Gy|bp|Da|Mb)\b)|mcg\b"
    r"|rads?\b|USD\b|EUR\b"
    rf"|(?:[a-z-]{{2,20}}\s){{0,2}}{_COUNTED})"
)
_BAND = r"(?-i:(?:\d{1,2}|[XY])?[pq]\d{1,2}(?:\.\d{1,3})?)"
_YEAR = r"(?:1[89]|20)\d\d"
_PLAIN = re.compile(
    r"https?://\S{1,300}|\b10\.\d{4,9}/\S{1,200}|\b20\d\d-\d{6}-\d\d(?:-\d\d)?\b"  # DOI, EudraCT
    rf"|(?<![^\W_]){_REGISTER}(?:[\s.:#-]{{0,2}}(?:IDs?|numbers?|nos?|accession|CT|SID|of\s[\w-]{{3,20}})\b){{0,2}}"
    r"(?:[\s.:#(]{1,3}(?:is\s)?[A-Z]{0,8})?[-_:]?(?:/[A-Z]){0,3}/?\d[\w.:/-]{0,30}(?:(?:,|,?\s(?:and"
    r"|or))\s[A-Z]{0,5}\d{5,8}\b){0,20}"
    rf"|(?<![^\W_])(?-i:{_MAKER})-?\d{{1,2}}-?\d{{4,6}}(?:[A-Z]|-\d{{1,2}})?(?![\w-])"
    r"|\b(?:chr|chromosome\s?)\w{1,2}(?:\s?:\s?|\s)\d[\d,]{0,12}(?:\s?[-.]{1,2}\s?\d[\d,]{0,12})?"
    rf"|\b{_BAND}(?:[-;/]?{_BAND}){{0,9}}(?![^\W_])|\b[cgmnrp]\.[\w*+>=()-]{{1,30}}"
    rf"|(?<![\w.-])[A-Z]{{0,4}}\d{{5,12}}(?=\s(?:in|at|from)\s(?:the\s)?{_REGISTER}\b)"
    r"|\b[A-Z]\d\d[\s-]?[A-Z]{2}[\s-]?\d{6}\b|\bC\d{1,3}H\d{1,3}(?:[A-Z][a-z]?\d{0,3}){0,10}\b"  # grants, formulas
    rf"|\b{_VALUED}\W{{0,3}}(?:(?:of|is|was|at|above|below|over|under|about|than)\s){{0,2}}\d{{1,7}}(?![\w-]|[\s.]\d)"
    r"|\b(?:days?|weeks?|months?|cycles?|hours?|age[sd]?|doses?"
    r"|years?)(?:\sof)?\s\d{1,3}(?:[\s,./-]{1,3}\d{1,3}){0,9}(?![\w-])"
    r"|(?<![\w.])(?:0|[1-9]\d{0,3}),\d{1,8}(?!\d)|(?<![\w.])\d{1,3}(?:,\d{3}){1,5}(?:\.\d{1,12})?(?!\d)"
    r"|(?<![\w.-])[1-9]\d{0,2}(?:[\s.']\d{3}){0,3}[\s.']000"
    r"(?:\s?-\s?[1-9]\d{0,2}(?:[\s.']\d{3}){0,3}[\s.']000)?(?![\w-]|[\s.']\d)"
    r"|(?<![\w.-])[1-9]\d{0,8}000(?:\s?-\s?[1-9]\d{0,8}000)?(?![\w-]|[\s.]\d)"
    r"|(?<![\w.])\d[\d.]{0,8}\s?[x×*·]\s?10\s?[\^(]{0,2}[+-]?\d{1,2}\)?"
    rf"|(?<![\w.-])\d{{1,12}}(?:[\s,./-]{{1,3}}\d{{1,12}}){{0,6}}(?={_MEASURED})"
    rf"|(?<![\w.-])(?<!\d\s){_YEAR}s?(?:[-/\s]{_YEAR}s?){{0,20}}(?:[-/]\d\d)?(?![\w-]|[\s./]\d)"
    rf"|\b(?:on|since|until|till|before|after|from|to|and|between|dated)\s{DATE}\b"
    r"|(?<![\w.-])-?(?:0|[1-9]\d{0,5})\.\d{1,12}(?:\s?[-/]\s?\d{1,6}(?:\.\d{1,12})?)?(?:-\d{1,4}\.\d{1,4}){0,4}"
    r"(?![\w-]|\.\d)"
    r"|(?<![\w.-])10-\d{1,2}(?:-10-\d{1,2})?(?![\w-])"
    r"|(?<![\w.-])(?<!\d\s)\d{1,3}-\d{1,3}(?:/\d{1,3}-\d{1,3}){0,9}(?:/\d{1,3}\+)?(?![\w-]|[\s./]\d)",
    re.IGNORECASE,
)
_PIECE = r"\d{1,40}(?:\s?[./-]\s?\d{1,40}){0,20}"
_GROUP = re.compile(
    rf"(?<![^\W_]){_PIECE}(?:\s{_PIECE}){{1,20}}[^\W\d_]?(?![^\W_])|[^\W_]{{1,60}}(?:(?:[./_-]|\s[./-]\s(?=\d))[^\W_]{{1,60}}){{0,20}}"
)
_CODE = re.compile(r"[^\W\d_]{1,10}-?\d{1,4}[^\W\d_]{0,3}\d?|\d{1,4}[^\W\d_]{1,4}")  # CD123, AG-120, T315I, 677T


def find_long_numbers(text: str) -> list[tuple[int, int]]:
    """(start, end) of each group of letters and digits with six digits or more that is not plainly something else.

    A group may hold spaces, dots, hyphens and slashes. Plainly something else is what stands behind the name of a
    register (NCT, PMID, ENSG), a drug's code, a place on a chromosome, a count (round, with commas, or of something),
    a measure, a power, a decimal, a range, years, and a date behind "on" or "since".
    """
    left = _PLAIN.sub(lambda match: ";" * len(match[0]), text)
    return [match.span() for match in _GROUP.finditer(left) if _is_long(match[0])]


def _is_long(group: str) -> bool:
    counted = "-".join(part for part in group.split("/") if not _CODE.fullmatch(part))
    parts = [part for part in re.split(r"[\s._-]+", counted) if not _CODE.fullmatch(part)]
    if group[0].isalpha():  # UKALL-2003/2011: a study with its years
        parts = [part for part in parts if not re.fullmatch(_YEAR, part)]
    return sum(map(str.isdigit, "".join(parts))) >= LONG and not _is_range(re.split(r"\s?[-/]\s?", group))


def _is_range(parts: list[str]) -> bool:
    """Whether these are a range or doses, which grow and are of one length or round (100-200), or a share (25/590)."""
    if not all(re.fullmatch(r"[1-9]\d{0,4}", part) for part in parts) or len(parts) < 2:
        return False
    numbers = [int(part) for part in parts]
    if len(parts) == 2 and max(numbers) < 1000:
        return True
    alike = len(parts) == 2 and len(parts[0]) == len(parts[1])
    return numbers == sorted(set(numbers)) and (alike or all(number % 25 == 0 for number in numbers))
