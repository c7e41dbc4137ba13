"""The results of a profile as an RO-Crate (version 1.1): what an archive and a machine need to take them up.

Each file has its type, size and sha256; each executed notebook is the result of an action with its start, end
and versions; authors, licence and version are those of ``CITATION.cff``. The package ``rocrate`` writes the
metadata; it is an optional extra.
"""

import shutil
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from palimpsest import paths
from palimpsest.book.execution import with_bar
from palimpsest.book.profiles import Profile, known_notebooks, load_profile, results_of
from palimpsest.book.provenance import not_vouched, path_of, read_provenance, record_files
from palimpsest.book.standing import standing
from palimpsest.errors import BookError
from palimpsest.files import UNREADABLE, as_json, file_sha256, new_folder, replacing, scratch
from palimpsest.results.claims import headline, judged, load_claims

if TYPE_CHECKING:
    from rocrate.rocrate import ROCrate

VERSION = "1.1"
"""Of the RO-Crate specification."""

INSTALL = "install the extra 'crate' with .venv/bin/python -m pip install -e '.[crate]' in the clone"
BESIDE = ("CITATION.cff", "LICENSE", "requirements.lock", "data/claims.yaml")
"""Files of the checkout that go into every crate."""

VERDICTS = "verdicts.json"
OWN = "#palimpsest"
"""Identifiers inside a crate: of the file of verdicts, and of this package."""

KINDS = {
    ".ipynb": "application/x-ipynb+json",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".yaml": "application/yaml",
    ".cff": "application/yaml",
}
"""Ending of a file -> its media type; other files are plain text."""


def write_crate(profile: str, out: Path | None = None) -> Path:
    """Write the carried results of a profile as an RO-Crate.

    Args:
        profile: whose results.
        out: a new folder, or a new file that ends in ``.zip``; by default one in the folder ``build``.

    Returns:
        Where it was written.

    Raises:
        BookError: if rocrate is missing, there is no result, a record is not the one that its run wrote, or
            ``out`` exists.
        UnknownNameError: if there is no such profile.
        ResourceError: if it cannot be written there; nothing partial is left.
    """
    setting = load_profile(profile)
    pages = [name for name in known_notebooks() if read_provenance(name, results_of(profile))]
    if not pages:
        raise BookError(
            f"the profile {profile} has no result to put into a crate; make one with "
            f"`palimpsest run-all --profile {profile}`"
        )
    place = out or paths.build_dir() / "crate" / f"palimpsest-{profile}.zip"
    if place.exists() or place.is_symlink():
        raise BookError(f"{place} exists; remove it, or choose another place with --out")
    crate = _described(setting)
    _add_verdicts(crate)
    for name in with_bar(pages, len(pages), "packing"):
        _add_page(crate, name, setting)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".zip":
        with scratch("crate") as folder, replacing(place) as temporary:
            crate.write(folder)
            shutil.make_archive(str(temporary.with_suffix("")), "zip", folder)
    else:
        with new_folder(place) as staging:
            crate.write(staging)
    return place


def _described(setting: Profile) -> "ROCrate":
    """A crate without results: what it is, by whom, under which licence."""
    try:
        from rocrate.rocrate import ROCrate
    except ModuleNotFoundError as error:
        raise BookError(f"the package rocrate, which writes crates, is not installed; {INSTALL}") from error
    from rocrate.model.contextentity import ContextEntity
    from rocrate.model.softwareapplication import SoftwareApplication

    cited = citation(paths.checkout() / "CITATION.cff")
    crate = ROCrate(version=VERSION)
    crate.metadata.extra_terms["sha256"] = "https://schema.org/sha256"
    crate.name = f"{cited['title']}: results of the profile {setting.name}"
    crate.description = f"{cited['abstract']} These results: {setting.model}, {setting.description}."
    crate.keywords = cited["keywords"]
    crate.datePublished = str(cited["date-released"])
    spdx = f"https://spdx.org/licenses/{cited['license']}"
    licence = {"@type": "CreativeWork", "name": cited["license"], "description": "In the file LICENSE."}
    crate.license = crate.add(ContextEntity(crate, spdx, properties=licence))
    authors = [crate.add(ContextEntity(crate, *_author(one))) for one in cited["authors"]]
    crate.root_dataset["author"] = authors
    crate.publisher = authors[0]
    crate.root_dataset["version"] = str(cited["version"])
    own = {"name": "Palimpsest", "softwareVersion": str(cited["version"]), "license": {"@id": spdx}}
    crate.add(SoftwareApplication(crate, OWN, properties=own))
    for name in BESIDE:
        if (file := paths.checkout() / name).is_file():
            _add_file(crate, file, name, f"{name} of the project")
    return crate


def citation(file: Path) -> dict[str, Any]:
    """The project's citation file.

    Raises:
        BookError: if it is missing, or lacks what a crate needs.
    """
    needed = ("title", "abstract", "authors", "version", "license", "date-released", "keywords")
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except UNREADABLE as error:
        raise BookError(f"{file} cannot be read ({error}); take it back from the history") from error
    lacking = [key for key in needed if not isinstance(content, dict) or not content.get(key)]
    if lacking:
        raise BookError(f"{file} lacks {', '.join(lacking)}, which a crate names; add it")
    return dict(content)


def _author(one: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Identifier and properties of an author of the citation file."""
    person = "family-names" in one
    name = f"{one.get('given-names', '')} {one['family-names']}".strip() if person else one["name"]
    identifier = one.get("orcid") or one.get("website") or f"#{name.replace(' ', '-')}"
    return identifier, {"@type": "Person" if person else "Organization", "name": name}


def _add_file(crate: "ROCrate", file: Path, inside: str, name: str, **properties: Any) -> Any:
    """Add a file under a path of the crate, with its size and hash."""
    about = {
        "name": name,
        "encodingFormat": KINDS.get(file.suffix, "text/plain"),
        "sha256": file_sha256(file),
    }
    about |= {"contentSize": str(file.stat().st_size)}
    return crate.add_file(str(file), inside, properties=about | properties)


def _add_verdicts(crate: "ROCrate") -> None:
    """Add every claim with its verdicts under all profiles, as one JSON file."""
    claims = load_claims()
    rows = []
    found = judged(claims)
    for claim in claims.claims:
        verdicts = found[claim.id]
        row = claim.model_dump(include={"id", "paper", "place", "statement", "notebook"})
        each = [{"profile": one.profile, "label": one.label, "reason": one.reason} for one in verdicts]
        rows.append(row | {"verdict": headline(claim, verdicts).label, "verdicts": each})
    content = as_json(rows)
    about = {"name": "claims and their verdicts", "encodingFormat": KINDS[".json"]}
    about |= {"sha256": sha256(content).hexdigest(), "contentSize": str(len(content))}
    crate.add_file(BytesIO(content), VERDICTS, properties=about)


def _add_page(crate: "ROCrate", name: str, setting: Profile) -> None:
    """Add one result: its notebook, records and provenance, and the run that made them."""
    from rocrate.model.contextentity import ContextEntity

    folder = results_of(setting.name)
    made = read_provenance(name, folder)
    if wrong := not_vouched(name, folder, made):
        raise BookError(
            f"{', '.join(wrong)} in {folder}: not what the run wrote, so that no crate can vouch for it; "
            f"take it back from the history, or run `palimpsest run {name} --profile {setting.name}`"
        )
    state = {"creativeWorkStatus": str(standing(name, setting))}
    kinds = {
        folder / f"{name}.ipynb": ("executed notebook", state),
        path_of(name, folder): ("provenance", {}),
        **{
            path: ("record" if path.suffix == ".json" else "table", {}) for path in record_files(name, folder)
        },
    }
    files = [
        _add_file(
            crate, path, f"results/{setting.name}/{path.name}", f"{kind} of {name}: {path.name}", **more
        )
        for path, (kind, more) in kinds.items()
        if path.is_file()
    ]
    hashes = (made.get(key, "unknown") for key in ("code_revision", "content_hash"))
    run = {
        "@type": "CreateAction",
        "name": f"run of {name} under the profile {setting.name}",
        "description": "code {}, content {}".format(*hashes),
        "instrument": [crate.dereference(OWN), *_software(crate, made.get("versions", {}))],
        "result": files,
        **_times(made),
    }
    action = crate.add(ContextEntity(crate, f"#run-{name}", properties=run))
    crate.root_dataset.append_to("mentions", action)


def _software(crate: "ROCrate", versions: Mapping[str, str]) -> list[Any]:
    """One entity for each package in each version that a result was made with."""
    from rocrate.model.softwareapplication import SoftwareApplication

    found = []
    for name, version in versions.items():
        identifier = f"#{name}-{version}"
        entity = SoftwareApplication(crate, identifier, properties={"name": name, "softwareVersion": version})
        found.append(crate.dereference(identifier) or crate.add(entity))
    return found


def _times(made: Mapping[str, Any]) -> dict[str, str]:
    """Start and end of a run, as far as its provenance knows them."""
    if "started" not in made:
        return {}
    start = datetime.fromisoformat(made["started"])
    end = start + timedelta(seconds=float(made.get("wall_seconds", 0)))
    return {"startTime": start.isoformat(), "endTime": end.isoformat(timespec="seconds")}
