"""Settings files of models as the book sees them: read without torch, and lent to a folder of weights.

A profile may name a folder of weights, which no settings file knows, and with ``settings`` the file that
holds for it. That file is then copied to ``config/models/<profile>.local.yaml`` with the folder among
its names, so that editors find it as they find any other; git ignores such copies.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from palimpsest import paths
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.files import UNREADABLE, locked, write_atomically

LOCAL = ".local.yaml"
"""Ending of a copy that was made for a profile."""


def models_dir() -> Path:
    """Folder with one settings file per model."""
    return paths.root() / "config" / "models"


def model_files() -> dict[str, dict[str, Any]]:
    """Name of each settings file -> its content; copies for folders included.

    Raises:
        ProfileError: if one is not YAML.
    """
    return {path.name: _read(path, path.stat().st_mtime_ns) for path in sorted(models_dir().glob("*.yaml"))}


@lru_cache(maxsize=64)
def _read(path: Path, changed: int) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except UNREADABLE as error:
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def names_of(file: str, content: Mapping[str, Any]) -> list[str]:
    """Names that a settings file holds for: its own without the ending, and those under ``also``."""
    return [file.removesuffix(".yaml"), *content.get("also", [])]


def file_of(model: str) -> tuple[str, dict[str, Any]] | None:
    """Name and content of the settings file of a model; None if there is none."""
    for file, content in model_files().items():
        if model in names_of(file, content):
            return file, content
    return None


def lend_settings(profile: str, model: str, settings: str) -> None:
    """Let the settings file of one model hold for another, by a copy that is renewed when the file changes.

    Args:
        profile: name of the profile that asks for it.
        model: folder or hub id of the weights.
        settings: a name of the file that is to hold for them.

    Raises:
        UnknownNameError: if there is no such file.
        ProfileError: if another file holds for the model already.
        ResourceError: if the copy cannot be written.
    """
    copy = models_dir() / f"{profile}{LOCAL}"
    lenders = {file: content for file, content in model_files().items() if not file.endswith(LOCAL)}
    names = {name: file for file, content in lenders.items() for name in names_of(file, content)}
    if model in names:
        raise ProfileError(
            f"profile {profile}: {names[model]} holds for {model} already, so `settings: {settings}` has "
            "nothing to say; leave it out, or name a folder of weights as the model"
        )
    if settings not in names:
        raise UnknownNameError(f"settings in profile {profile}", settings, list(names))
    wanted = lenders[names[settings]] | {"also": [model]}
    if copy.is_file() and _read(copy, copy.stat().st_mtime_ns) == wanted:
        return
    head = f"# Made from {names[settings]} for the profile {profile}, and renewed from it; do not edit.\n"
    with locked(copy):
        write_atomically(copy, (head + yaml.safe_dump(wanted, sort_keys=False)).encode())
