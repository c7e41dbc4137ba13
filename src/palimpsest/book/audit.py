"""The audit page: results of arithmetic checks of the numbers printed in the five sources."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from palimpsest import paths
from palimpsest.files import write_atomically
from palimpsest.results.printed_audit import Row, load_audit, prefix
from palimpsest.results.prose import plain
from palimpsest.results.tables import table

PREFIXES: dict[str, str] = {
    "SC": "the composite Score of a row against its three parts",
    "SM": "which mean the Score is",
    "CL": "numbers and claims stated in the text",
    "RK": "claims about order: best, highest, largest",
    "TX": "numbers of the text against the tables",
    "EQ": "sequential against one-time editing",
    "SZ": "sizes of data sets and lists",
    "AV": "stated averages",
    "TH": "two printed formulas against each other",
    "UN": "the paper on hidden instabilities",
    "SH": "numbers that two tables or two papers share",
    "MX": "averages over mixtures of data sets",
    "DU": "rows that repeat digits",
    "GR": "step size of values, and what a spread can be",
    "PL": "plausibility",
}
SOURCES: dict[str, str] = {
    "alphaedit_plus": "AlphaEdit+",
    "alphaedit": "AlphaEdit",
    "labyrinth": "The Labyrinth and the Thread",
    "uncertainty": "Diagnosing hidden instabilities",
}
OWN_CLAIMS = ("CL", "RK", "TX", "EQ", "SZ")
"""Kinds of check of statements of the papers; the others check whether numbers are consistent."""
ANSWERS = ("yes", "no", "not checkable")


def write_audit(out_path: Path) -> None:
    """Generate the audit page from ``data/published``.

    Args:
        out_path: the Markdown file to write.
    """
    rows = load_audit()
    parts = [
        "(audit)=\n# Audit of the published numbers",
        _introduction(rows),
        "## Kinds of check",
        _kinds(rows),
        "## What does not agree",
        *_papers(rows, "no"),
        "## What cannot be checked",
        *_papers(rows, "not checkable"),
        "## Oddities",
        _oddities(),
    ]
    write_atomically(out_path, ("\n\n".join(parts) + "\n").encode())


def _introduction(rows: Sequence[Row]) -> str:
    counts = Counter(row["agrees"] for row in rows)
    return (
        f"{len(rows)} checks of the numbers printed in the five sources, by arithmetic on the tables "
        f"alone: {counts['yes']} agree, {counts['no']} do not, {counts['not checkable']} cannot be "
        "checked because the numbers exist only in a figure. Nothing here was run on a model.\n\n"
        f"Checks named {', '.join(OWN_CLAIMS)} test what the papers say. The others ask "
        "whether the numbers fit together, which no paper claims: a *no* there means that they do "
        "not fit, not that a statement is false. Where a word had to become a rule, the rule stands "
        "in the row: 'nearly all' is read as 90 percent, 'the same' and 'nearly identical' "
        "as 2 points unless the row says otherwise. Line numbers, and 'the dump', refer to text "
        "conversions of the papers that are not part of this project; 001 and 003 are AlphaEdit and "
        "the lecture slides."
    )


def _kinds(rows: Sequence[Row]) -> str:
    counts = Counter((prefix(row), row["agrees"]) for row in rows)
    lines = []
    for name, meaning in PREFIXES.items():
        per_answer = [counts[name, answer] for answer in ANSWERS]
        if sum(per_answer):
            lines.append([name, meaning, *(str(count or "") for count in per_answer)])
    totals = [str(sum(row["agrees"] == answer for row in rows)) for answer in ANSWERS]
    return table(["kind", "what is checked", *ANSWERS], [*lines, ["all", "", *totals]])


def _papers(rows: Sequence[Row], answer: str) -> list[str]:
    """One folded table for each paper or pair of papers with such rows."""
    names = list(dict.fromkeys(row["paper"] for row in rows if row["agrees"] == answer))
    return [_paper(name, rows, answer) for name in names]


def _paper(name: str, rows: Sequence[Row], answer: str) -> str:
    picked = [row for row in rows if row["paper"] == name and row["agrees"] == answer]
    head = ["id", "place", "claim or expectation", "computed", "printed", "note"]
    fields = ("id", "place", "claim", "computed", "published", "note")
    lines = [[plain(row[field]) for field in fields] for row in picked]
    of = sum(row["paper"] == name for row in rows)
    title = " and ".join(SOURCES[part] for part in name.split(" / "))
    title += f": {len(picked)} of {of} checks"
    return f"````{{dropdown}} {title}\n{table(head, lines)}\n````"


def _oddities() -> str:
    """The section "Oddities" of ``data/published/README.md``, with one folded part for each source."""
    text = (paths.checkout() / "data" / "published" / "README.md").read_text("utf-8")
    _, _, section = text.partition("\n## Oddities\n")
    opening, *papers = section.partition("\n## ")[0].split("\n### ")
    folds = []
    for paper in papers:
        name, _, body = paper.partition("\n")
        folds.append(f"````{{dropdown}} {name.strip()}\n{body.strip()}\n````")
    return "\n\n".join([opening.strip(), *folds]).strip()
