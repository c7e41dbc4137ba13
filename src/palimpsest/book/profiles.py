"""Profiles: parameters with which the same notebooks run at several scales.

A profile is a file ``config/profiles/<name>.yaml``. The defaults in the notebooks are the smoke profile,
because nbval runs notebooks unchanged. Every other profile runs the pages that it gives sizes for, or those
of a list of its own; the others are left out, and named where all are run. The parameters ``profile`` and
``model`` are set from the profile in every notebook that declares them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palimpsest import paths
from palimpsest.book.arms import ARMS, plan
from palimpsest.book.model_files import lend_settings
from palimpsest.book.parameters import merged, read_parameters
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.files import UNREADABLE


class Profile(BaseModel):
    """One profile.

    Attributes:
        name: name of the file without its ending.
        model: name, hub id or folder, as in `palimpsest.load`.
        settings: name of the model whose settings hold for a folder of weights; empty where the model has its
            own.
        description: one sentence shown on every page, with the sizes.
        machine: intended machine and expected time.
        defaults: parameter -> value, for every notebook that declares the parameter.
        notebooks: name of a notebook -> parameter -> value; takes precedence over ``defaults``. An empty
            mapping says that the notebook's own defaults are meant.
        pages: notebooks that the profile runs, where it does not run all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model: str = Field(min_length=1)
    settings: str = ""
    description: str = Field(min_length=1)
    machine: str = Field(min_length=1)
    defaults: dict[str, Any] = Field(default_factory=dict)
    notebooks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    pages: tuple[str, ...] | None = None

    @property
    def listed(self) -> tuple[str, ...]:
        """Names of the notebooks that it runs; those of the smoke profile are all."""
        if self.name == SMOKE:
            return tuple(known_notebooks())
        return tuple(self.notebooks) if self.pages is None else self.pages


SMOKE = "smoke"
"""Profile of the notebooks' own defaults. Its numbers say nothing, so that its results can be thrown away;
what is carried of them, in ``results/smoke``, are values to compare with."""


def has_page(profile: Profile, notebook: str) -> bool:
    """Whether a profile runs a notebook, by its name; a page that it does not list has no sizes there."""
    return profile.name == SMOKE or notebook in profile.listed


def results_of(profile: str) -> Path:
    """Folder of the executed notebooks and records of a profile."""
    if profile.startswith(f"{ARMS}."):  # arms.<page>.<name>, of which only the name may hold dots
        return paths.results_dir("/".join(profile.split(".", 2)))
    return paths.build_dir() / SMOKE if profile == SMOKE else paths.results_dir(profile)


SEED = "seed"
"""Parameter of which a profile's runs may have several values."""


def own_seed(profile: Profile, notebook: Path) -> int | None:
    """Seed of a notebook under a profile; None for one without a seed."""
    found = parameters_for(profile, notebook).get(SEED)
    return None if found is None else int(found)


def seed_folder(profile: Profile, notebook: Path, seed: int | None) -> Path:
    """Where the result of a seed goes: a folder of its own below the profile's, unless it is the profile's.

    Raises:
        UnknownNameError: if the notebook has no seed.
    """
    own = own_seed(profile, notebook)
    if seed is not None and own is None:
        raise UnknownNameError(f"parameter of {notebook.stem}", SEED, list(read_parameters(notebook)))
    folder = results_of(profile.name)
    return folder if seed in (None, own) else folder / f"{SEED}-{seed}"


def carried_smoke() -> Path:
    """Folder of the values that small runs are compared with."""
    return paths.results_dir(SMOKE)


def known_profiles() -> list[str]:
    """Names of all profiles."""
    return sorted(path.stem for path in paths.profiles_dir().glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a profile; that of a long run follows from ``config/arms.yaml``.

    Where it names ``settings`` for a folder, their copy for that folder is brought up to date.

    Raises:
        UnknownNameError: if there is no such file, run or settings; the message lists the known ones.
        ProfileError: if the file is malformed, or ``settings`` has nothing to say.
    """
    if name.startswith(f"{ARMS}."):
        return _of_arm(name)
    path = paths.profiles_dir() / f"{name}.yaml"
    if name not in known_profiles():
        raise UnknownNameError("profile", name, known_profiles())
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error}") from error
    except UNREADABLE as error:
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{path.name} holds no mapping; it needs model, description and machine")
    try:
        profile = Profile.model_validate({"name": name} | content)
    except ValidationError as error:
        known = ", ".join(field for field in Profile.model_fields if field != "name")
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ProfileError(f"{path.name}: {faults} (known keys: {known})") from error
    if profile.settings:
        lend_settings(name, profile.model, profile.settings)
    return profile


def _of_arm(name: str) -> Profile:
    known = plan()
    arm = known.arm(name)
    return Profile(
        name=name,
        model=known.model,
        description=arm.about,
        machine=f"one CPU core, about {arm.hours:g} hours",
        notebooks={known.notebook: known.parameters | arm.parameters()},
    )


def known_notebooks() -> list[str]:
    """Names of all notebooks, in the book's order."""
    return sorted(path.stem for path in paths.notebooks_dir().glob("*.ipynb"))


def find_notebook(name: str | Path) -> Path:
    """Path of the source of a notebook, given its name or a path that ends in ``.ipynb``.

    Raises:
        UnknownNameError: if there is no such notebook; the message lists the known ones.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    if path.stem not in known_notebooks():
        raise UnknownNameError("notebook", str(name), known_notebooks())
    return paths.notebooks_dir() / f"{path.stem}.ipynb"


def parameters_for(
    profile: Profile, notebook: Path, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All parameters of a notebook under a profile, checked, in the notebook's order.

    Args:
        profile: with values for declared parameters.
        notebook: path of the source.
        overrides: parameter -> value; takes precedence over the profile.

    Raises:
        UnknownNameError: if the profile's section for the notebook or the overrides name a parameter that the
            notebook does not declare.
        ProfileError: if a value does not have the declared type.
    """
    declared = read_parameters(notebook)
    everywhere = {"profile": profile.name, "model": profile.model} | profile.defaults
    given = {name: value for name, value in everywhere.items() if name in declared}
    own = profile.notebooks.get(notebook.stem, {})
    values = merged(declared, given | own, f"profile {profile.name} for {notebook.stem}")
    return merged(declared, values | dict(overrides or {}), f"call of {notebook.stem}")


def check_profile(profile: Profile) -> None:
    """Check a profile against every notebook, so that a misspelt name is found before anything runs.

    Raises:
        UnknownNameError: if it names a notebook or parameter that does not exist.
        ProfileError: if a value does not have the declared type, or a page that is left out has sizes.
    """
    for name in (*profile.notebooks, *(profile.pages or ())):
        if name not in known_notebooks():
            raise UnknownNameError(f"notebook in profile {profile.name}", name, known_notebooks())
    _check_pages(profile)
    declared: set[str] = set()
    for name in known_notebooks():
        parameters_for(profile, find_notebook(name))
        declared |= set(read_parameters(find_notebook(name)))
    for parameter in profile.defaults:
        if parameter not in declared:
            raise UnknownNameError(
                f"parameter among the defaults of profile {profile.name}",
                parameter,
                sorted(declared),
            )


def _check_pages(profile: Profile) -> None:
    odd = [name for name in profile.notebooks if not has_page(profile, name)]
    if odd:
        raise ProfileError(
            f"profile {profile.name} gives sizes for {', '.join(odd)}, but does not name them under 'pages'; "
            "add them there, or take the sizes away"
        )
