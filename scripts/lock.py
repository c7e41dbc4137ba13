"""Write requirements.lock and environment.yml from what this environment has installed.

``make lock`` calls this in ``.venv``; ``make lock UPGRADE=1`` first lets pip move every dependency
to the newest version that pyproject.toml admits. Only packages reachable from pyproject.toml (with
the extra ``dev``) are listed, without hashes: torch's CPU and CUDA builds carry the same version.

Where an optional extra of ``EXTRAS`` is installed too, what it needs beyond that, or in another version, is
written to ``requirements.<extra>.lock``; elsewhere that file is left alone.
"""

import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LEFT_TO_TORCH = ("nvidia-", "cuda-", "triton")
HEAD = """\
# Versions that were tested together. Written by `make lock` from pyproject.toml with the extra dev
# (`make lock UPGRADE=1` moves to newer ones first); do not edit by hand. No hashes: torch's CPU and
# CUDA builds carry the same version. The CUDA libraries are missing on purpose, torch pins its own.
"""
EXTRAS = ("ability",)
EXTRA_HEAD = """\
# What the optional extra {extra} needs beyond requirements.lock, or in another version: tested together.
# Written by `make lock` where the extra is installed; do not edit by hand.
"""
CONDA = """\
# For conda and Binder. Written by `make lock` from pyproject.toml and requirements.lock: the direct
# dependencies by name, the rest through the lock; do not edit by hand.
name: palimpsest
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def direct_requirements(extra: str = "dev") -> list[Requirement]:
    """What pyproject.toml asks for, with an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [
        Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"][extra]]
    ]


def lock_of_extra(extra: str, locked: dict[str, str]) -> str | None:
    """The lock of an optional extra; None if it is not installed here."""
    try:
        versions = reachable(direct_requirements(extra))
    except importlib.metadata.PackageNotFoundError:
        return None
    added = {name: version for name, version in versions.items() if locked.get(name) != version}
    return EXTRA_HEAD.format(extra=extra) + "".join(f"{name}=={version}\n" for name, version in added.items())


def reachable(requirements: list[Requirement]) -> dict[str, str]:
    """Version of every package that the requirements need here, directly or not."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(requirement, extra) for requirement in requirements for extra in _extras(requirement)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen or name.startswith(LEFT_TO_TORCH):
            continue
        seen.add((name, extra))
        distribution = importlib.metadata.distribution(name)
        found[name] = Version(distribution.version).public
        for text in distribution.requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, own) for own in _extras(needed)]
    return dict(sorted(found.items()))


def _extras(requirement: Requirement) -> list[str]:
    return ["", *requirement.extras]


def main() -> None:
    direct = direct_requirements()
    versions = reachable(direct)
    lock = "".join(f"{name}=={version}\n" for name, version in versions.items())
    (ROOT / "requirements.lock").write_text(HEAD + lock, "utf-8")
    for extra in EXTRAS:
        if (text := lock_of_extra(extra, versions)) is not None:
            (ROOT / f"requirements.{extra}.lock").write_text(text, "utf-8")
    named = sorted({canonicalize_name(requirement.name) for requirement in direct})
    lines = [f"{name}=={versions[name]}" for name in named] + ["-r requirements.lock", "-e ."]
    conda = "".join(f"      - {line}\n" for line in lines)
    (ROOT / "environment.yml").write_text(CONDA + conda, "utf-8")
    print(f"{len(versions)} packages locked, {len(named)} of them direct")


if __name__ == "__main__":
    main()
