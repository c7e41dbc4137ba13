"""The README's table of editors, properties and families, from the results of the tests that check them.

``make contract`` runs ``tests/editors/test_properties.py`` in full and calls this module with what pytest
wrote: the record goes to ``results/contract.json``, and the table between two marks of the README.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from palimpsest import paths
from palimpsest.errors import DataError
from palimpsest.files import as_json, write_atomically

BEGIN, END = "<!-- contract: made by `make contract` -->", "<!-- end of contract -->"
PROPERTIES = {
    "test_taken_back": "taken back to the bit",
    "test_repeats": "repeats to the bit",
    "test_goes_on": "goes on from its state",
    "test_nests": "another edit inside",
    "test_bfloat16": "in bfloat16",
    "test_in_a_file": "kept in a file",
}
"""Name of a test -> heading."""


@dataclass(frozen=True)
class Outcome:
    """One test of an editor on a family.

    Attributes:
        editor: key of EDITORS.
        family: name of the family.
        property: name of the test.
        passed: whether it held.
    """

    editor: str
    family: str
    property: str
    passed: bool


def outcomes_of(report: Path) -> list[Outcome]:
    """The outcomes in a JUnit report of pytest, in its order.

    Raises:
        DataError: if the file is no such report, or holds no test of a property.
    """
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{report}: no report of pytest ({error}); run `make contract`") from error
    found = []
    for case in cases:
        test, _, label = case.get("name", "").rstrip("]").partition("[")
        if test in PROPERTIES and "-" in label:
            editor, family = label.split("-", 1)
            found.append(Outcome(editor, family, test, not any(one.tag != "properties" for one in case)))
    if not found:
        raise DataError(f"{report}: holds no test of {', '.join(PROPERTIES)}; run `make contract`")
    return found


def table(outcomes: Sequence[Outcome], names: dict[str, str]) -> str:
    """A Markdown table: a row for each editor, a column for each property, and in how many families it holds.

    Args:
        outcomes: of the tests.
        names: key of EDITORS -> printed name; editors in this order.
    """
    families = list(dict.fromkeys(one.family for one in outcomes))
    rows = [f"| editor | {' | '.join(PROPERTIES.values())} |", "|---" * (len(PROPERTIES) + 1) + "|"]
    for editor in names:
        own = [one for one in outcomes if one.editor == editor]
        cells = [_cell([one for one in own if one.property == test]) for test in PROPERTIES]
        rows.append(f"| {names[editor]} | {' | '.join(cells)} |")
    return (
        f"Tested on tiny random models of {len(families)} families ({', '.join(families)}); a number says on "
        "how many a property holds.\n\n" + "\n".join(rows)
    )


def _cell(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "–"
    failed = [one.family for one in outcomes if not one.passed]
    kept = len(outcomes) - len(failed)
    return f"{kept} (not {', '.join(failed)})" if failed else f"{kept}"


def recorded(path: Path | None = None) -> list[Outcome]:
    """The outcomes on record.

    Raises:
        DataError: if the record is missing or damaged.
    """
    path = path or record_file()
    try:
        return [Outcome(**row) for row in json.loads(path.read_text("utf-8"))["outcomes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no record of the contract ({error}); run `make contract`") from error


def record_file() -> Path:
    """Where the record is kept."""
    return paths.results_root() / "contract.json"


def put_in(readme: str, made: str) -> str:
    """A README with a table between its marks.

    Raises:
        DataError: if the marks are missing.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError(f"the README lacks the marks {BEGIN} and {END}; put them where the table belongs")
    return f"{head}{begin}\n{made}\n{end}{tail}"


def main(report: Path, names: dict[str, str]) -> None:
    """Write the record and the README's table from a report."""
    outcomes = outcomes_of(report)
    write_atomically(record_file(), as_json({"outcomes": [asdict(one) for one in outcomes]}))
    readme = paths.checkout() / "README.md"
    write_atomically(readme, put_in(readme.read_text("utf-8"), table(outcomes, names)).encode())
    failed = sum(not one.passed for one in outcomes)
    print(f"{record_file()}: {len(outcomes)} outcomes, {failed} failed", file=sys.stderr)
