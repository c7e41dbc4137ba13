"""Assembly of the book's pages from the executed notebooks of a profile.

Each page gets a banner with the profile, a warning if the result is stale, the values of other profiles that
were run, and at its end a box with the provenance of the result.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from palimpsest import paths
from palimpsest.book import api
from palimpsest.book.anatomy import arrange, reading_minutes, title_of
from palimpsest.book.audit import write_audit
from palimpsest.book.badges import strip
from palimpsest.book.formats import NotebookNode, nbformat
from palimpsest.book.gallery import write_gallery
from palimpsest.book.headlines import write_headlines
from palimpsest.book.licences import write_licences
from palimpsest.book.needs import left_out
from palimpsest.book.normalise import with_current_sources
from palimpsest.book.profiles import Profile, find_notebook, known_notebooks, load_profile, results_of
from palimpsest.book.provenance import gpu_lines, read_provenance
from palimpsest.book.render import is_drawn
from palimpsest.book.standing import NOT_RUN, confirmation, stale
from palimpsest.book.verdicts import write_verdicts
from palimpsest.files import write_atomically
from palimpsest.results import records
from palimpsest.results.claims import judged, load_claims
from palimpsest.results.prose import plain, readable
from palimpsest.results.tables import table

_LABEL = re.compile(r"^\([\w:.-]+\)=$", re.MULTILINE)
NOT_DRAWN = (
    "\n```{{admonition}} Drawn by older code\n:class: warning\n"
    "The record stands, but the cells that show it have changed since: "
    "`palimpsest render {name} --profile {profile}` draws the page again.\n```\n"
)
HIDDEN_PROFILES = ("smoke",)
"""Profiles not shown beside others, because their numbers are not meaningful."""


def assemble(profile: str) -> list[Path]:
    """Write ``book/_pages`` and ``book/_generated`` from the records; returns the paths of all pages.

    Args:
        profile: name of the profile whose executed notebooks become the pages.
    """
    setting = load_profile(profile)
    pages, generated = paths.book_dir() / "_pages", paths.book_dir() / "_generated"
    for folder in (pages, generated):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    strips = claim_strips()
    written = [write_page(name, setting, pages, strips[name]) for name in known_notebooks()]
    write_headlines(profile, generated / "headlines.txt")
    for writer, out in generators(generated, profile):
        writer(out)
        written.append(out)
    return written


def generators(folder: Path, profile: str) -> list[tuple[Callable[[Path], Any], Path]]:
    """(function that writes a generated page, its path) for each generated page."""
    return [
        (lambda out: write_gallery(profile, out), folder / "figures.md"),
        (lambda out: write_verdicts(paths.results_root(), out), folder / "verdicts.md"),
        (write_audit, folder / "audit.md"),
        (write_licences, folder / "licences.md"),
        (api.write_index, folder / "api.md"),
        *((partial(api.write_wing, wing), folder / f"{api.page_name(wing)}.md") for wing in api.WINGS),
    ]


def write_page(name: str, setting: Profile, folder: Path, claims: str = "") -> Path:
    """Write one page, the executed notebook with the additions of the build, or a stub if it was not run.

    Args:
        name: of the notebook.
        setting: profile whose result is shown.
        folder: where the page goes.
        claims: badges of the claims that it tests, as Markdown.
    """
    source = nbformat.read(find_notebook(name), as_version=4)
    left, reason = left_out(setting, find_notebook(name)), stale(name, setting)
    if left or reason == NOT_RUN or not (results_of(setting.name) / f"{name}.ipynb").is_file():
        path = folder / f"{name}.md"
        write_atomically(path, stub(name, source, setting, left).encode())
        return path
    results = results_of(setting.name)
    executed = nbformat.read(results / f"{name}.ipynb", as_version=4)
    page = with_current_sources(executed, source, stands=reason is None) or executed
    record_file = results / f"{name}.json"
    record = records.read(record_file) if record_file.is_file() else {}
    above = banner(setting, reason, record, reading_minutes(page))
    if reason is None and not is_drawn(name, setting):
        above += NOT_DRAWN.format(name=name, profile=setting.name)
    arrange(page, name, claims, above + other_profiles(name, setting.name, record))
    box = provenance_box(record, read_provenance(name, results), setting)
    page.cells.append(nbformat.v4.new_markdown_cell(box, id="provenance"))
    path = folder / f"{name}.ipynb"
    write_atomically(path, (nbformat.writes(page) + "\n").encode())
    return path


def claim_strips() -> dict[str, str]:
    """Name of a notebook -> badges of the claims that it tests."""
    claims = load_claims()
    found = judged(claims)
    return {
        name: strip([claim for claim in claims.claims if claim.notebook == name], found)
        for name in known_notebooks()
    }


def stub(name: str, source: NotebookNode, setting: Profile, left: str = "") -> str:
    """Text of the page of a notebook that was not run; it keeps the labels to which other pages refer.

    Args:
        name: of the notebook.
        source: its cells.
        setting: profile whose result is shown.
        left: why the profile does not run it; empty if it does.
    """
    text = "\n".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    labels = "\n".join(_LABEL.findall(text))
    if left:
        return (
            f"{labels}\n# {title_of(source)}: left out\n\n```{{admonition}} Left out\n:class: note\n"
            f"`{name}` is {plain(left)}. Profile {setting.name}, {setting.model}.\n```\n"
        )
    return (
        f"{labels}\n# {title_of(source)}: {NOT_RUN}\n\n"
        f"```{{admonition}} {NOT_RUN.capitalize()}\n:class: warning\n"
        f"There is no result of `{name}` in the profile {plain(setting.name)} ({plain(setting.model)}). "
        f"Run `make book PROFILE={setting.name}`, or this one alone with "
        f"`palimpsest run {name} --profile {setting.name}`.\n```\n"
    )


def banner(
    setting: Profile, reason: str | None, record: Mapping[str, Any] | None = None, minutes: int = 0
) -> str:
    """Text at the top of a page: the profile of its numbers, and a warning if they are stale.

    Args:
        setting: the profile.
        reason: why the result is stale; None if it stands.
        record: of the result.
        minutes: that the page takes to read; left out if 0.
    """
    model = (record or {}).get("facts", {}).get("model", {}).get("name", setting.model)
    bare = model.startswith("none")  # "none, random problems": a page about formulas
    title = plain(f"Profile {setting.name}" if bare else f"Profile {setting.name}: {setting.model}")
    origin = f"no language model ({model.removeprefix('none, ')})" if bare else setting.description
    text = (
        f"```{{admonition}} {title}\n:class: note\n"
        f"The numbers on this page come from {plain(origin)}. "
        "Parameters, data and revision are in the box at the end."
        + (f" To read: {minutes} min." if minutes else "")
        + "\n```\n"
    )
    if reason is None:
        return text
    return text + (
        "\n```{admonition} Stale\n:class: warning\n"
        f"This result is older than the sources it came from ({plain(reason)}). "
        f"`make book PROFILE={setting.name}` runs it again.\n```\n"
    )


def other_profiles(name: str, shown: str, record: Mapping[str, Any]) -> str:
    """Table of the values of the shown profile and of all others that were run; empty if there are none."""
    columns = {shown: record.get("values", {})}
    for path in sorted(paths.results_root().glob(f"*/{name}.json")):
        if path.parent.name not in (shown, *HIDDEN_PROFILES):
            columns[path.parent.name] = records.read(path)["values"]
    if len(columns) == 1:
        return ""
    rows = list(dict.fromkeys(value for values in columns.values() for value in values))
    lines = [
        [plain(row.replace("_", " ")), *(_shown(values, row) for values in columns.values())] for row in rows
    ]
    others = plain(", ".join(list(columns)[1:]))
    return (
        f"\n````{{admonition}} Also run in: {others}\n:class: note dropdown\n\n"
        + table(["value", *map(plain, columns)], lines)
        + "\n````\n"
    )


def _shown(values: Mapping[str, Any], name: str) -> str:
    return plain(readable(values[name])) if name in values else "–"


def provenance_box(record: Mapping[str, Any], provenance: Mapping[str, Any], setting: Profile) -> str:
    """Folded box with the provenance of the page: parameters, model, data, revision, versions, run time."""
    facts = dict(record.get("facts", {}))
    rows = {
        "profile": setting.name,
        "parameters": _pairs(record.get("parameters", {})),
        "model": _pairs(facts.pop("model", {"name": setting.model})),
        "data": _pairs(facts.pop("data", {})),
        "seed": facts.pop("seed", ""),
        "dtype": facts.pop("dtype", ""),
        "device": facts.pop("device", provenance.get("device", "")),
        **{key: _pairs(value) for key, value in facts.items()},
        "code revision": provenance.get("code_revision", "unknown"),
        "confirmed": confirmation(provenance),
        "content hash": provenance.get("content_hash", "")[:12],
        "versions": _pairs(provenance.get("versions", {})),
        "started": provenance.get("started", ""),
        "wall time": f"{provenance.get('wall_seconds', 0):,.0f} s",
        "peak memory": f"{provenance.get('peak_memory_mib', 0):,} MiB",
        "processor": provenance.get("processor", ""),
        **gpu_lines(provenance),
    }
    lines = [[plain(key), plain(str(value))] for key, value in rows.items() if value != ""]
    shown = table(["what", "value"], lines)
    return f"````{{admonition}} Provenance\n:class: note dropdown\n\n{shown}\n````\n"


def _pairs(content: Any) -> str:
    """A mapping as ``name = value`` texts, with long hashes shortened to twelve digits."""
    if not isinstance(content, Mapping):
        return _short(content)
    return ", ".join(f"{key} = {_pairs(value)}" for key, value in content.items())


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", text)
