"""Wordings for questions of several hops over the project's facts: objects described by their subjects.

All were written for this project. A relation has a kind of object here if some object of it is the subject of
further facts; ``FURTHER`` keeps homonyms apart, such as the town and the company of Nokia.
"""

from collections.abc import Mapping

DESCRIBED: Mapping[str, tuple[str, str, str]] = {
    "P17": (
        "the country in which {} lies",
        "the nation where {} can be found",
        "the land that {} is part of",
    ),
    "P19": ("the city where {} was born", "the birthplace of {}", "the city in which the life of {} began"),
    "P20": ("the city where {} died", "the place of death of {}", "the city in which the life of {} ended"),
    "P27": (
        "the country of which {} is a citizen",
        "the home country of {}",
        "the country that issued the passport of {}",
    ),
    "P36": ("the capital of {}", "the city from which {} is governed", "the seat of the government of {}"),
    "P131": (
        "the region that contains {}",
        "the state, province or region around {}",
        "the part of the country in which {} lies",
    ),
    "P159": (
        "the city where {} has its head office",
        "the city that {} is run from",
        "the city with the headquarters of {}",
    ),
    "P178": (
        "the company that developed {}",
        "the developer of {}",
        "the technology company behind {}",
    ),
    "P276": ("the city that is home to {}", "the city where {} can be visited", "the city around {}"),
    "P495": (
        "the country that {} comes from",
        "the country of origin of {}",
        "the country where {} was made",
    ),
    "P740": ("the city where {} was set up", "the city in which {} got its start", "the first home of {}"),
    "P937": (
        "the city where {} worked",
        "the city that {} went to for work",
        "the city around the desk of {}",
    ),
}
"""Relation -> three descriptions of its object by its subject, which stands at ``{}``."""

KINDS: Mapping[str, str] = {
    **dict.fromkeys(("P17", "P27", "P495"), "country"),
    **dict.fromkeys(("P19", "P20", "P36", "P159", "P276", "P740", "P937"), "city"),
    "P131": "region",
    "P178": "company",
}
"""Relation -> kind of its objects."""

FURTHER: Mapping[str, tuple[str, ...]] = {
    "country": ("P30", "P36", "P37"),
    "city": ("P30", "P37"),
    "region": ("P30",),
    "company": ("P17", "P740"),
}
"""Kind -> relations whose facts about a subject of that name are about that kind."""

LIES_ON = "P30"
"""Relation to the continent. What lies in a country, city or region lies on the continent of that."""

INSIDE = ("P17", "P131", "P276")
"""Relations whose subject lies inside of the object."""

SPORTS: Mapping[str, str] = {
    "catcher": "baseball",
    "outfielder": "baseball",
    "pitcher": "baseball",
    "linebacker": "football",
    "quarterback": "football",
    "goaltender": "hockey",
    "midfielder": "soccer",
}
"""Position played (P413) -> the sport (P641) that alone has it; ``forward`` is left out, as many have it."""

SEVERAL = ("P39", "P101", "P106", "P108", "P136", "P937", "P1303", "P1412")
"""Relations of which a subject may have several objects, so that a new one leaves the old one true."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "Afghanistan": ("Islamic Emirate of Afghanistan",),
    "Antonio Vivaldi": ("Antonio Lucio Vivaldi",),
    "ARCO": ("Atlantic Richfield Company",),
    "Argentina": ("Argentine Republic",),
    "Azerbaijan Soviet Socialist Republic": ("Azerbaijan SSR",),
    "Belgium": ("Kingdom of Belgium",),
    "Bill Gates": ("William Henry Gates III",),
    "Bulgaria": ("Republic of Bulgaria",),
    "Count Basie": ("William James Basie",),
    "Czech Republic": ("Czechia",),
    "Democratic Republic of the Congo": ("DR Congo",),
    "Digital Negative": ("DNG format",),
    "Djibouti": ("Republic of Djibouti",),
    "Ecuador": ("Republic of Ecuador",),
    "Eddy Cue": ("Eduardo Cue",),
    "Egypt": ("Arab Republic of Egypt",),
    "EMI": ("Electric and Musical Industries",),
    "Ernest Rutherford": ("Lord Rutherford",),
    "Germany": ("Federal Republic of Germany",),
    "Grady Booch": ("Grady E. Booch",),
    "Guy Kawasaki": ("Guy Takeo Kawasaki",),
    "India": ("Republic of India",),
    "Indonesia": ("Republic of Indonesia",),
    "Iraq": ("Republic of Iraq",),
    "Israel": ("State of Israel",),
    "Italy": ("Italian Republic",),
    "Jef Raskin": ("Jeffrey Frank Raskin",),
    "Joseph Goebbels": ("Paul Joseph Goebbels",),
    "Kenya": ("Republic of Kenya",),
    "Kochi": ("Cochin",),
    "Lesotho": ("Kingdom of Lesotho",),
    "Majorca": ("Mallorca",),
    "Morocco": ("Kingdom of Morocco",),
    "Mumbai": ("Bombay",),
    "Nicaragua": ("Republic of Nicaragua",),
    "Nigeria": ("Federal Republic of Nigeria",),
    "Paul Allen": ("Paul Gardner Allen",),
    "People's Republic of China": ("PRC",),
    "Peru": ("Republic of Peru",),
    "Philip Glass": ("Philip Morris Glass",),
    "Philippines": ("Republic of the Philippines",),
    "Pius X": ("Giuseppe Melchiorre Sarto",),
    "Poland": ("Republic of Poland",),
    "Portable Document Format": ("PDF",),
    "Portugal": ("Portuguese Republic",),
    "Ray Kurzweil": ("Raymond Kurzweil",),
    "Ross Perot": ("Henry Ross Perot",),
    "San Marino": ("Republic of San Marino",),
    "SCE Studio Liverpool": ("Psygnosis",),
    "Senegal": ("Republic of Senegal",),
    "Singapore": ("Republic of Singapore",),
    "South Korea": ("Republic of Korea",),
    "SPSS Modeler": ("Clementine",),
    "Steve Ballmer": ("Steven Anthony Ballmer",),
    "Steve Jobs": ("Steven Paul Jobs",),
    "Steve Wozniak": ("Stephen Gary Wozniak",),
    "Super Audio CD": ("SACD",),
    "Switzerland": ("Swiss Confederation",),
    "Thailand": ("Kingdom of Thailand",),
    "The Hague": ("Den Haag",),
    "Tim Cook": ("Timothy Donald Cook",),
    "Ukraine": ("Ukrainian Republic",),
    "United Kingdom": ("United Kingdom of Great Britain and Northern Ireland",),
    "Vietnam": ("Socialist Republic of Vietnam",),
    "Vint Cerf": ("Vinton Gray Cerf",),
    "Yangtze": ("Chang Jiang",),
}
"""Name in the fact set -> other names of the same entity, known to everybody or its full form."""


def aliases(name: str) -> tuple[str, ...]:
    """Other names of an entity of the fact set; often none."""
    return ALIASES.get(name, ())
