"""Names of people in a text: known by a list of given names, or by what the text says of them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from examples.leukemia.sieve import Sieve

__all__ = ["DATE", "DRUG_ENDINGS", "find_names"]

_MONTH = r"(?i:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
DATE = (
    rf"(?:\d{{1,2}}[/.-]\d{{1,2}}[/.-](?:\d{{4}}|\d{{2}})|\d{{4}}[/.-]\d{{1,2}}[/.-]\d{{1,2}}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?[\s-](?:(?:day\s)?of\s)?{_MONTH}\.?,?[\s-]\d{{4}}"
    rf"|{_MONTH}\.?[\s-](?:the\s)?\d{{1,2}}(?:st|nd|rd|th)?,?[\s-]\d{{4}})"
)
DRUG_ENDINGS = (  # of names that no gazetteer need have
    r"(?:nib|mab|clax|tinoin|(?:[rtdl]a|ri|rel)bine|[ct]idine|cin|cristine|trexate|platin|carbazide|purine|sone"
    r"|solone|parin|cillin|azole|statin)"
)
_GIVEN_NAMES = Path(__file__).parent / "data" / "given_names.txt"
_SMALL = "[a-zà-ÿĀ-ž]"
_CAPITAL = rf"(?:O'|D'|Ma?c)?[A-ZÀ-ÞĀ-ž]{_SMALL}{{1,20}}(?:-[A-ZÀ-ÞĀ-ž]?{_SMALL}{{1,20}}|'[A-ZÀ-Þ]?{_SMALL}{{2,20}})?"
_OPENING = r"(?!(?:A|An|And|Are|Can|Could|Did|Do|Does|Dr|Had|Has|If|In|Is|Our|Should|The|This|Was|When|Will|Would)\b)"
_NAME = rf"{_OPENING}{_CAPITAL}(?:\s[A-Z]\.)?(?:\s{_CAPITAL}){{1,3}}"
_WORD = (  # of a name that may be in small letters; what goes on with the sentence is none
    r"(?!(?i:a|after|again|aged?|an|and|are|as|at|back|because|before|being|born|by|can|did|dob|does|feels|for|from"
    r"|gets?|got|ha[ds]|have|he|her|his|in|into|is|it|may|must|my|needs?|not|of|off|on|or|out|per|received|relapsed"
    r"|said|says|she|should|since|suffers|takes?|that|the|they|this|to|took|up|upon|was|we|were|which|who|whom|whose"
    r"|will|with|would|you)\b)[A-Za-zÀ-ÿ'-]{2,25}"
)
_ANY_CASE = rf"(?:[A-Za-z]\.\s?){{0,2}}{_WORD}(?:,?\s{_WORD}){{0,2}}"
_SCAN = r"(?!(?i:approx|rang|imag|spect|angio|scan|data|anal))"
_RELATIVE = "man|woman|boy|girl|baby|mother|father|son|daughter|wife|husband|brother|sister|friend"
_SOMEONE = rf"{_RELATIVE}|child|person|client|patient|pt"
_ILL_SOON = re.compile(r" (?:s|ha[sd]|have|got) (?:an? )?(?:acute|chronic|leuk|lymphom|[acm][a-z]{2,3} )")
_NAMED = (" named ", " called ")
_TITLE = tuple(
    f" {title} "
    for title in re.findall(
        r"\w+",
        """mr mrs ms mme mlle madame monsieur mister herr herrn frau señor señora señorita signor signora signore
        signorina""",
    )
)
# each with the words that a text must have for it; _HAS_IT as words is _ILL_SOON
_SAYS = (  # a title or the word name: what follows is one, whatever it is
    (
        _TITLE,
        (
            rf"\b(?<![-/])(?:[Mm]rs?|[Mm]me|[Mm]lle|[Mm]adame|[Mm]onsieur|[Mm]ister|[Hh]errn?|[Ff]rau|[Ss]eñor(?:a"
            rf"|ita)?"
            rf"|[Ss]ignor(?:a|e|ina)?"
            rf"|(?<!\d)(?<!\d\s)[Mm]s)\b(?:\.?\s{_SCAN}(?:(?:[A-Z]\.\s?){{0,2}}{_CAPITAL}(?:\s{_CAPITAL}){{0,3}}"
            rf"|{_WORD}(?:\s{_WORD})?)|\.{_SCAN}(?:[A-Z]\.\s?){{0,2}}{_CAPITAL}(?:\s{_CAPITAL}){{0,3}})"
        ),
    ),
    (  # but MR CML: molecular response
        (" mr ", " mrs "),
        rf"\bMRS?\b(?:\.?\s|\.){_SCAN}(?=[A-Z]{{4}}){_WORD}(?:\s(?=[A-Z]{{2}}){_WORD})?",
    ),
    (
        (" master ",),
        (
            r"\b(?:Master(?!\s(?:Protocol|Regulator|Clinical|Trial|Switch|Mix|File|Plan|Equation|Curve)))\s"
            rf"{_CAPITAL}(?:\s{_CAPITAL})?"
        ),
    ),
    (
        (" name",),
        (
            rf"\b[Mm]y\sname(?:\sis|'s)\s{_ANY_CASE}"
            rf"|\b(?i:(?:patient|pt)(?:'s)?\sname)(?:\sis)?(?:\s?[:=]|\s-(?=\s))?\s?{_ANY_CASE}"
        ),
    ),
    (
        ("name ",),
        (
            r"(?:^|(?<=[,;.(]\s)|(?<=\n)|\b(?i:full|first|last|family|given|sur)\s?)"
            rf"(?i:name)(?:\s?[:=]\s?|\s-\s){_ANY_CASE}"
        ),
    ),
    ((" patient ",), rf"^(?i:patient)\s?[:=]\s?{_WORD}\s{_WORD}(?=[,.;]|$)"),
    (
        (),
        (
            rf"\b[A-Z]{{2,20}},?\s(?!EC\b)[A-Z]{{2,20}}(?=,?\s\(?(?:born|DOB|{DATE}))"
            rf"|\b{_CAPITAL},\s{_CAPITAL}(?=,?\s\(?(?:born"
            rf"|DOB|{DATE}))"
        ),
    ),
)
_OF_A_PLACE = (  # what a hospital or a town has: acute leukemia clinics
    r"(?!(?:(?!(?:and|or|but|who|with|in|of|for|as|after|since|from|to|that)\b)[\w-]{1,20}\s){0,5}(?:clinics?|clusters?"
    r"|cohorts?|cases|patients|protocols?|trials?|program(?:me)?s?|registr(?:y|ies)|cent(?:er|re)s?|units?|services?"
    r"|wards?"
    r"|stud(?:y|ies)|groups?|teams?|specialists?|work|research|discover(?:y|ies)|hypothesis|papers?|lab|lectures?|model"
    r"|incidence|rates?|activity|effects?|conference|meeting|symposium|guidelines?)\b)"
)
_HAS_IT = (
    rf"(?:['\u2019]s|\s(?:has|had|have|got))\s(?:an?\s)?{_OF_A_PLACE}"
    r"(?:acute|chronic|leuk|lymphom|(?:A[MP]L|(?-i:ALL)|C[ML]L|CMML|MDS|MPN)\b)"
)
_SUGGESTS = (  # capitals where a person is spoken of, unless they name something else
    ((" miss ",), rf"\bMiss\s{_CAPITAL}(?:\s{_CAPITAL})?"),
    (
        (" sr ", " sra ", " srta ", " sig "),
        rf"(?<![\w.-])(?:Sra?|Srta|Sig)\.(?:ra)?\s{_OPENING}{_CAPITAL}(?:\s{_CAPITAL}){{0,2}}",
    ),
    ((" patient ", " pt "), rf"\b(?:[Pp]atient|[Pp]t)\b\.?\s?[:=]\s?{_NAME}"),
    ((" pt ", " i am ", " i m "), rf"\b(?:[Pp]t\b\.?|[Ii]\sam|[Ii]'m)\s{_NAME}"),
    (
        tuple(f" {word} " for word in _RELATIVE.split("|")),
        rf"\b(?i:my|our|your|his|her)\s(?i:{_RELATIVE}),?\s{_NAME}",
    ),
    (_NAMED, rf"\b(?i:{_SOMEONE})\s(?:(?:is|was)\s)?(?:named|called)\s{_NAME}"),
    (
        (" name ",),
        rf"(?:\b(?:[Hh]is|[Hh]er|[Tt]heir|[Ww]hose)|'s)\sname(?:\sis|\swas|'s)\s{_CAPITAL}(?:\s{_CAPITAL}){{0,3}}",
    ),
    (_ILL_SOON, rf"\b(?:{_NAME}|[A-Z]\.\s?{_CAPITAL})(?={_HAS_IT})"),
    ((), rf"\b{_NAME}(?=,?\s\(?(?:born|DOB|{DATE}))"),
    (
        (),
        (
            rf"\b{_NAME}(?=,?\s(?:\(?aged?\s|an?\s)?\d{{1,3}}(?:,\s(?:is|has|was|had|with|who|male|female)\b"
            rf"|\syears?\sold|-year-old|\s?y/?o\b|$))"
        ),
    ),
)
# what a name can stand before and be no person: a place of work, or a thing named after someone
_NAMED_AFTER = (
    r"(?:hospital|infirmar|hospice|universit|institut|cent(?:er|re)\b|clinic|college|school|academ|foundation|society"
    r"|network|group\b"
    r"|laborator|librar|museum|fellowship|scholarship|commonwealth|cohort|consorti|registr|protocol|project|council"
    r"|agency|trust\b|compan|corporation|inc\b|ltd|gmbh|pharma|health|memorial|medical|methodist|river\b|award|prize"
    r"|park\s(?:cancer|comprehensive|memorial)|lecture|fund\b|kettering|farber\b|research\b|lilly\b|roussel|einstein\b"
    r"|eurotext|tech\b|barbara\b|springs\b|heights\b|israel\b|islands?\b|kong\b|tooth\b|arbor\b|zeiss|besta|valley"
    r"|county|city\b|australia|italy|texas|wisconsin"
    r"|ontario|germany|stud(?:y|ies)\b|trials?\b|scores?\b|rates?\b|scale\b|ind(?:ex|ices)\b|criteri|classification"
    r"|system"
    r"|stag(?:e|ing)\b|grad(?:e|ing)\b|levels?\b|risk\b|class\b|tests?\b|testing|assay|kits?\b|array|panel\b|blot"
    r"|stain(?:s|ing)?\b|methods?\b|model|procedure|operation|technique|algorithm|equation|formula|rule\b|sign\b|curve"
    r"|plots?\b|ratio\b|regression|correlation|titration|phenomenon|effect\b|reaction|hypothesis|theor(?:y|em)\b"
    r"|design|two\b|three\b|exact\b|syndrom|disease|an(?:a?e)mia|deficien|virus|mouse\b|mice\b|rats?\b|bengal|clamp\b"
    r"|murmur|pulse\b|nodes?\b|nodules?\b|tria[ds]|tetrad|reflex|man(?:o)?euv|fracture|angina|ulcer|lesion"
    r"|bod(?:y|ies)\b|rods?\b|spots?\b)"
)
_NO_SURNAME = (
    r"(?:\b(?:leuk|lymph|myel|breast\b|lung\b|fluor|extract|tea\b|oil\b|honey|root|leaf|seed|chromosom|cells?\b"
    r"|protein|genes?\b|genetic|therap|cancer|tumou?r|sarcoma|transplant"
    r"|marrow\b|blood\b|states\b|mesylate|acute|chronic|complete|phase\b|adults?\b|children|elderly|pregnan|women\b"
    r"|people|patients\b|maintenance|induction|consolidation|prevent|treat|positive|negative|refractory|relapse"
    r"|response|remission|survival|transformation|factor\b|receptor|counts?\b|doses?\b|surg(?:ery|ical)?\b|intern\b"
    rf"|oncol|h[ae]{{1,2}}matol|pharmac|analys|gradient|scan\b|ozogamicin|{_NAMED_AFTER})"
    r"|(?:a[tz]ion|metry|scop[ye]|graph[ys]?|ogram|ectomy|ology|ostomy|plasty|plasia|philia|pathy|penia|kinase|ferase"
    r"|lysis|tidase|protease|globin|itis|osis|a?emia|cytes?|cytic|blast|chemical|logical|molecular|immune|genic|toxic"
    r"|nib|mab)\b)"
)
_NO_PERSON = re.compile(  # of capitals that no given name tells from these
    rf"{_NO_SURNAME}|\b(?:americans?|africans?|asians?|europeans?|hispanics?|natives?|whites?|blacks?|older|high|low"
    r"|south|north|east|west|random|new\s(?:york|zealand)|puerto|hong\skong|san\s(?:diego|francisco)|los\sangeles"
    r"|britain|united|sleeping\sbeauty|fraumeni|bristol)\b",
    re.IGNORECASE,
)
_NO_SURNAME_WORD = re.compile(_NO_SURNAME, re.IGNORECASE)
_SAYS_NAME, _SUGGESTS_NAME = Sieve(_SAYS), Sieve(_SUGGESTS)

_FIRST = re.compile(rf"\b[A-ZÀ-ÞĀ-ž]{_SMALL}{{2,20}}\b|\b[A-Z]{{4,20}}\b")
_SURNAME = r"(?:\s[A-Z]\b\.?){0,2}(?:\s(?:de|la|van|von|der|den|del|di|da|al|bin|el)){0,2}\s(?P<surname>%s)(?![\w-])"
_IN_SMALL = re.compile(rf"(?:-{_CAPITAL})?" + _SURNAME % rf"{_OPENING}{_CAPITAL}|[A-Z]{{4,20}}")
_IN_CAPITALS = re.compile(_SURNAME % r"(?!(?:A[MPL]L|C[ML]L|MDS|CMML|B-?ALL)\b)[A-Z]{3,20}")
_NO_THING = rf"(?!{_NO_SURNAME}|[\w'-]{{0,25}}{_NO_SURNAME})"
_CALLED = Sieve(
    (
        (
            _NAMED,
            rf"\b(?:{_SOMEONE})\s(?:(?:is|was)\s)?(?:named|called)\s(?P<first>{_WORD})(?:,?\s{_WORD}){{0,2}}",
        ),
        (
            (" patient ",),
            (
                rf"(?:(?<=\bpatient\s)(?P<of_patient>{_WORD})\s{_NO_THING}{_WORD}"
                r"(?=\s(?:ha[sd]|is|was|with|takes|took)\b|,|$))"
            ),
        ),
        (_ILL_SOON, rf"\b(?P<ill>{_WORD})\s{_NO_THING}{_WORD}(?={_HAS_IT})"),
    ),
    re.IGNORECASE,
)
_BEFORE = re.compile(r"(?<!,\s)\b(?P<surname>[A-Z]{3,20}|[A-ZÀ-ÞĀ-ž][a-zà-ÿĀ-ž'-]{1,20}),\s$")
_SENIOR = re.compile(r"\b[A-Z][\w-]{0,25}\.?,?\s$")  # John Smith Sr.
_MIDDLE = re.compile(r"\s[A-Z]\b\.?(?=,)")
_ALONE = re.compile(_HAS_IT)
_THING = re.compile(rf"[\s-](?:{_CAPITAL}\s)?(?i:{_NAMED_AFTER})")
_INITIALS = re.compile(  # but E. Coli, U.S. Army, vitamin D. Children
    rf"(?<![\w.])(?<!\w\.\s)(?!U\.\s?[SK]\.|I\.\s)(?:[A-Z]\.\s?){{1,3}}{_OPENING}(?!(?i:{_NO_SURNAME}))"
    r"(?!(?:We|It|On|At|By|For|From|To|All|Both|Most|No|One|Two|These|Those|There|They|He|She|How|However|After|Also"
    rf"|Of|As)\b){_CAPITAL}(?<!ii)(?<!ae)(?<!ile)(?<![Cc]oli)(?![\w-])"
)
_BEFORE_INITIALS = re.compile(
    r"(?:^|[.?!:;,(]|\b(?:of|for|in|to|with|do|does|did|has|is|was|should|can|will|that|and|or"
    r"|saw|treated|patient|pt))\s?$",
    re.IGNORECASE,
)
_AND = re.compile(r"\s?(?:,|,?\s(?:and|or)|\s&)\s")
_TITLED = re.compile(r"\b(?:[Tt]he|[Aa]n?|Drs?|Prof|Professor|Sir|St|Saint)\.?,?\s$")

# what stands around a patient's name; places, firms, reagents and scholars are two words with capitals as well
_ILLNESS = (
    r"(?:acute|chronic|leuk|lymphom|lymphad|myelom|myelod|myelofib|cancer|tumou?r|relaps|remission|blast\scrisis"
    r"|splenomeg"
    r"|an(?:a?e)mi[ac]|neutropeni|thrombocytopeni|pancytopeni|fever|infection|pneumonia|sepsis|bleed|bruis|rash|nausea"
    r"|vomit|sweats|swelling|swollen|enlarged|pain\b|fatigue|headache|mutation|philadelphia|translocation|deletion"
    r"|trisomy|monosomy|karyotype|(?-i:GVHD|A[MPL]L|C[ML]L|CMML|MDS)\b)"
)
_MEDICINE = (
    rf"(?:[\w-]{{2,20}}{DRUG_ENDINGS}\b|hydroxyurea|asparaginase|cyclophosphamide|interferon|arsenic\b|ATRA\b"
    r"|[\d.,]{1,6}\s?m?g\b)"
)
_TREATMENT = (
    rf"(?:{_MEDICINE}"
    r"|(?:chemo|therap|treatment|transplant|transfus|medic|drug|pill|tablet|dose|steroid|radiation)\w{0,15})"
)
_FEW = r"(?:(?!(?:and|or|but|who|that|which|of|for)\b)[\w-]{1,20}\s){0,3}"
_ADVERB = r"(?:(?:also|already|now|still|then|never|not|just|soon|again|first|who|been|\w{2,20}ly)\s){0,3}"
_QUALIFIED = (
    r"(?:(?:an?|the|some|no|any|had|newly|diagnosed|recently|very|mild|moderate|severe|high|low|persistent|refractory"
    r"|secondary|relapsed|untreated|terminal|night|back|bone|another|complex|normal|first|second|third|last|latest|his"
    r"|her|[\d.]{1,6}|(?-i:[A-Z][A-Z\d-]{2,12}))[\s-]){0,4}"
)
_OF_THE_BODY = (
    r"(?:blood|(?:bone\s)?marrow|counts?|cbc|platelets?|white\scell|h[ae]{1,2}moglobin|h[ae]{1,2}matocrit|wbc|blasts?"
    r"|spleen"
    r"|liver|kidneys?|karyotype|levels?|(?:lab|laboratory|test|scan)\s(?:results|values)|symptoms?|prognosis|diagnosis"
    r"|condition"
    r"|biops(?:y|ies)|scans?|chart|chances|birth|doctor|oncologist|family|mother|father|wife|husband|sister|brother|son"
    r"|daughter|donor|tests?|reports?(?!\s(?:on|of|that)))\b"
)
_AGE = r"(?:1[01]\d|\d\d?)"
_YEARS = r"(?:y|y/?o|yrs?|years?|[mf])\b"
_STATE = (
    r"(?:on\s(?!the\s(?:board|panel|committee))|taking|diagnosed|admitted|discharged|ill\b|sick|dying|dead\b|pregnant"
    rf"|allergic|intolerant|an?\s\d|aged?\s|{_AGE}\s?{_YEARS}|suffering|complaining|unwell|hospitali[sz]ed|transplanted"
    rf"|febrile|(?:[\w-]{{2,15}}\s)?(?:positive|negative)\b|told\s(?:that\s)?s?he\b|found\sto\shave"
    rf"|in\s(?:\w{{1,12}}\s)?(?:remission|relapse|hospital"
    rf"|blast|pain)|(?:a|an|the|my|our|his|her)\s(?:\w{{1,20}}\s)?(?:{_SOMEONE})\b|{_ILLNESS}"
    rf"|(?:treated|started|put|maintained|switched|given|receiving|prescribed|offered)\s{_FEW}{_TREATMENT})"
)
_DOES = (
    r"(?:(?:relaps(?:es?|ed|ing)|suffer(?:s|ed|ing)?\sfrom|complain(?:s|ed|ing)|present(?:s|ed)\swith|achieved"
    r"|went\sinto|survive"
    r"|recover(?:s|ed)?|progressed|(?:die|dies|died)\s(?:of|from|after|on\sday|in\sremission)|fail(?:s|ed)\s(?:on"
    r"|to\srespond)"
    r"|feels|started\son|needs\s(?:help|advice|an?|to\sknow)|wants|wishes|seeks|lives\swith|weighs|eats|drinks|smokes"
    r"|asks|worries|hopes|vomits|bleeds|cannot|can't"
    r"|tested\s(?:positive|negative)|do(?:es)?(?:n't|\snot)\s(?:tolerate|respond|want|have|take|need|feel|eat|sleep"
    rf"|improve))\b|and\s(?:his|her|their)\s(?:{_ILLNESS}|{_OF_THE_BODY}))"
)
_TAKES = (
    r"(?:tak(?:es?|ing)|took|needs?|receiv(?:es?|ed|ing)|start(?:s|ed)?|stop(?:s|ped)?|tolerate[sd]?|continue[sd]?"
    r"|skip(?:s|ped)?|switch(?:es|ed)?|refuse[sd]?|under(?:go(?:es)?|went)|get(?:s|ting)?|got|on|respond(?:s|ed)?\sto)"
)
_PATIENT_BEHIND = re.compile(  # Jane Doe has AML, Jane Doe (45), Jane Doe's marrow
    rf"(?i:['\u2019]s\s{_OF_A_PLACE}(?:(?!(?:of|for|in|to|on|and)\b)[\w-]{{2,20}}\s){{0,2}}?"
    rf"(?:{_OF_THE_BODY}|{_ILLNESS}|{_TREATMENT}(?!\s(?:of|for)\b))|\s{_DOES}"
    rf"|,?\s{_ADVERB}(?:has|had|have|got|gets?|with|having|developed|develops?"
    rf"|contracted)\s{_ADVERB}{_OF_A_PLACE}{_QUALIFIED}"
    rf"(?:{_ILLNESS}|{_OF_THE_BODY}|cycles?\b|chemo|transplant)|,?\s{_ADVERB}(?:has|had|have|is|was|are|were|be|isn't"
    rf"|being)\s{_ADVERB}{_OF_A_PLACE}{_STATE}"
    rf"|,?\s{_ADVERB}{_TAKES}\s{_FEW}{_TREATMENT}|\s{_ADVERB}(?:take|do|expect)\s?(?:\?|$)"
    rf"|,\s(?:(?:we|he|she|the|his|her)\s)?(?:\w{{2,12}}\s)?{_TREATMENT}(?:[.?]|$"
    r"|\s(?:fail|work|help|caus|was\b|were\b|is\b|gave\b|did\b|does\b|has\b|led\b))"
    rf"|[,:]?\s{_MEDICINE}(?=[\s,.?;]|$)|\s(?:came|arrived|presented|returned"
    rf"|walked)\b[^.?!]{{0,40}}\swith\s{_QUALIFIED}{_ILLNESS}"
    r"|(?:[,:]|\s-)?\s(?:(?-i:A[MPL]L|C[ML]L|MDS)\b|acute\s|chronic\s)(?=[^.?]{0,40}(?:$|[.?])|[,;])"
    rf"|,\s(?:an?|my|our)\s(?:\w{{1,20}}\s){{0,2}}(?:{_SOMEONE})\b"
    rf"|[,:]\s{_AGE}(?:,\s(?:is|has|was|had|with|who|male|female|{_ILLNESS})\b|\s?{_YEARS}|-year|$)|,\s(?:(?:fe)?male"
    rf"|he|she|(?:newly\s)?diagnosed)\b"
    rf"|,\s(?:[mf]|(?:fe)?male)\b[,/]?\s?{_AGE}(?:\s?{_YEARS}|(?![\w.%]))"  # Smith, John A, M, 65y
    rf"|\s?\((?:[mf],?\s)?(?:aged?\s)?{_AGE}(?:,?\s?{_YEARS}[^)]{{0,12}})?\)(?=\s(?:has|had|is|was|with|took|takes)\b"
    rf"|$)|\s{_AGE}\s?[mf]\b|,?\s(?:\(|an?\s)?(?:aged?\s)?{_AGE}[-\s]year|,?\s\(?(?:born\b|dob\b|aged?\s\d)"
    r"|[,:]?\s\(?(?:MRN|NHS|SSN|social\ssecurity|passport|(?:medical\s)?record"
    r"|(?:patient|hospital)\s(?:id|n(?:o|umber))|ID)\b)"
    rf"|{_HAS_IT}"
)
_TREATS = (
    r"(?:safe|right|good|best|better|suitable|(?:contra)?indicated|effective|appropriate|recommended|harmful|dangerous"
    r"|useful"
    r"|enough|helpful|advisable|possible|work(?:s|ed|ing)?|fail(?:s|ed)?|help(?:s|ed)?|respon\w{1,6}|resistan\w{1,3}"
    rf"|tolerat\w{{1,3}}|toxic\w{{0,4}}|given|prescribed|administered|offered|next|plan|question|asks?|asking|do|done"
    rf"|what|option|choice|{_TREATMENT}|{_ILLNESS}\w{{0,12}})"
)
_PATIENT_BEFORE = re.compile(  # the case of Jane Doe, we saw Jane Doe, safe for Jane Doe
    rf"(?i:\b(?:(?:blood|lab(?:oratory)?|test|pathology|discharge)\s(?:reports?|results?|counts?|summary"
    rf"|letter)\s(?:of|for)"
    rf"|(?:{_SOMEONE}|patients|cases?|widow(?:er)?|aunt|uncle|cousin|niece|nephew|neighbou?r|grand\w{{2,10}}"
    r"|\w{2,8}-in-law)(?:\sreport)?(?:\s(?:of|is|was|named|called|like))?[,:]?"
    r"|saw|treat(?:ed|ing)?|admit(?:ted)?|examined|diagnosed|transplanted|discharged|car(?:ed|ing)\sfor|look(?:ed"
    r"|ing)?\safter"
    r"|(?:I|we)\s(?:\w{2,12}\s){0,2}(?:see|seen|have|put|switch)|this\sis\s(?:for|about)|happen(?:s|ed)?\sto"
    rf"|wrong\swith|should|must|help|{_TREATS}\s(?:(?:now|next|again|option|plan|choice)\s)?(?:for|to|with)"
    rf"|(?:{_TREATMENT}|{_ILLNESS}\w{{0,12}}|prognosis|diagnosis|care|management|survival)\sof"
    r"|(?:safe|effective|fail(?:s|ed)?|work(?:s|ed)?|help(?:s|ed)?|(?:contra)?indicated|tolerat\w{1,3}|respon(?:se|ded)"
    r"|resistance|remission|relapse)\sin)\s$)"
)
_CLOSING = re.compile(r"[^.!?;]{0,300}[.!?;]?")
_OF_ONES_OWN = re.compile(r"\b(?:I|[Mm]y|[Hh]e|[Ss]he|[Hh]is|[Hh]er|[Hh]im)\b[^.!?]{0,300}\?")
_STARTS = re.compile(r"(?<=[!?.;]\s)(?=[A-Z])")
_PLACED = re.compile(r"\b(?:in|at|from|near|with|by|(?<!case\s)of)\s$", re.IGNORECASE)
_DATED = re.compile(rf",?\s{DATE}")
_ASKED_OF_A_SCHOLAR = re.compile(
    r"(?:describ|discover|introduc|propos|coin|publish|pioneer|postulat|invent|hypothesi|found(?:ed|er)|author"
    r"|contribut"
    r"|nobel|named\b|prize|award|lecture|known\sfor|famous|hono(?:u?)r|director|professor|who\s(?:is|was|were)\s)",
    re.IGNORECASE,
)
_DOES_RESEARCH = re.compile(
    r"['\u2019]s\b|,?\set\sal\b|\sand\s(?:colleagues|co-?workers|associates)\b|\s(?:\w{2,12}ly\s|first\s"
    r"|ever\s)?(?:find|found|develop"
    r"|say|said|think|lead|led\b|chair|show(?!\ssigns)|report|prove|change|write|wrote|teach|mean|argue|study"
    r"|investigat|identif|demonstrat|create|build|observe|claim|recommend|suggest|win|make|sell)"
)


def find_names(text: str, held: str) -> list[tuple[int, int]]:
    """(start, end) of what looks like a patient's name; some overlap. `held` is the text by `words_apart`.

    A title, a relation or the word name tells one, whatever the name is. A given name of the list or initials with a
    surname are one where what stands around them speaks of a patient, a given name also in a question that is not of
    research: elsewhere they are as often a scholar's, a place's, a firm's or a reagent's. So a bare "Jane Doe" of which
    a statement says nothing of illness or treatment stays.
    """
    names = [match.span() for match in _SAYS_NAME.pattern(held).finditer(text)]
    names += [
        match.span()
        for match in _SUGGESTS_NAME.pattern(held).finditer(text)
        if not _NO_PERSON.search(match[0])
        and not (match[0].startswith("Sr.") and _SENIOR.search(text[max(0, match.start() - 30) : match.start()]))
    ]
    names = [
        (start, end)
        for start, end in names
        if not (_DATED.match(text, end) and _PLACED.search(text[max(0, start - 12) : start]))
    ]
    names += [
        match.span()
        for match in _CALLED.pattern(held).finditer(text)
        if _given_names() & {*map(str.lower, filter(None, match.groups()))}
    ]
    return names + _of_patients(text)


@cache
def _given_names() -> frozenset[str]:
    """Given names in small letters; the file says where they are from."""
    lines = _GIVEN_NAMES.read_text(encoding="utf-8").splitlines()
    return frozenset(name for line in lines if not line.startswith("#") for name in line.split())


def _of_patients(text: str) -> list[tuple[int, int]]:
    """(start, end) of the names, by the list or by initials, that stand where a patient is spoken of."""
    groups: list[list[tuple[int, int]]] = []  # Ann Roe, Jane Doe and J. Smith: what is said of one is said of all
    for name in sorted([*_of_the_list(text), *_by_initials(text)]):
        if groups and _AND.fullmatch(text, groups[-1][-1][1], name[0]):
            groups[-1].append(name)
        else:
            groups.append([name])
    own = bool(_OF_ONES_OWN.search(text))
    return [name for group in groups if _are_patients(text, group[0][0], group[-1][1], own) for name in group]


def _by_initials(text: str) -> list[tuple[int, int]]:
    """(start, end) of each surname with initials: J. Smith."""
    found = [match.span() for match in _INITIALS.finditer(text)]
    return [span for span in found if _BEFORE_INITIALS.search(text[max(0, span[0] - 12) : span[0]])]


def _are_patients(text: str, start: int, end: int, own: bool) -> bool:
    """Whether the names from `start` to `end` are patients'; `own`: the text asks of the one who asks, of him or of her."""
    before = text[max(0, start - 300) : start]
    if _TITLED.search(before):
        return False
    by_initials, placed = text[start + 1] == ".", _PLACED.search(before)
    if _PATIENT_BEHIND.match(text, end) or (_PATIENT_BEFORE.search(before) and not (by_initials and placed)):
        return True
    closing = _CLOSING.match(text, end)
    asked = (closing and closing[0].endswith("?")) or own
    if not asked or by_initials or placed or _DOES_RESEARCH.match(text, end):
        return False
    sentence = _STARTS.split(before)[-1] + text[start : closing.end() if closing else end]
    return not _ASKED_OF_A_SCHOLAR.search(sentence)


def _of_the_list(text: str) -> list[tuple[int, int]]:
    """(start, end) of each given name of the list with a surname: Jane Doe, JANE DOE, Doe, Jane."""
    names: list[tuple[int, int]] = []
    for first in _FIRST.finditer(text):
        start, end = first.span()
        if first[0].lower() not in _given_names() or (names and start < names[-1][1]):
            continue
        surname = (_IN_CAPITALS if first[0].isupper() else _IN_SMALL).match(text, end)
        if surname is not None:
            end = _whole(text, surname.end()) if first[0][1].islower() else surname.end()
        elif surname := _BEFORE.search(text[max(0, start - 80) : start]):
            start = start - len(surname[0])
            middle = _MIDDLE.match(text, end)
            end = middle.end() if middle else end
        elif first[0].isupper() or not _ALONE.match(text, end):  # Jane has AML
            continue
        if (surname is None or not _NO_SURNAME_WORD.search(surname["surname"])) and not _THING.match(text, end):
            names.append((start, end))
    return names


def _whole(text: str, end: int) -> int:
    """The end of a name with the further surnames behind `end`: Ana López García."""
    for _ in range(2):
        more = _IN_SMALL.match(text, end)
        if more is None or _NO_SURNAME_WORD.search(more["surname"]):
            break
        end = more.end()
    return end
