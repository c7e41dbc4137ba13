"""Settings of the editors for each model, read from ``config/models/<name>.yaml``.

The file of a model has one section per editor: the published settings for the papers' models, and for the
embedded model the result of a search on validation facts. Every field is checked.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator

from palimpsest import paths
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.files import UNREADABLE
from palimpsest.memory.settings import TargetSettings


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or list(layers) != sorted({*layers}):
        raise ValueError(f"edited layers must be one or more, ascending and distinct, got {list(layers)}")
    return layers


Layers = Annotated[tuple[int, ...], AfterValidator(_ascending)]
"""Edited layers, ascending and distinct; values are optimised at the last one."""


def _of_states(targets: TargetSettings) -> TargetSettings:
    if targets.reference != "hidden":
        raise ValueError(
            f"values in units of {targets.reference!r} cannot be spread over layers, whose residuals are "
            "those of hidden states; set reference to 'hidden', or use an editor of one layer such as ROME"
        )
    return targets


StateTargets = Annotated[TargetSettings, AfterValidator(_of_states)]
"""Settings of values that are hidden states, whose residual is spread over several layers."""


ASKED = "palimpsest.asked"
"""Audit event: a row of settings was asked for, with its key."""


def asked(key: str) -> None:
    """Tell those who listen to audit events which row of settings is asked for."""
    sys.audit(ASKED, key)


def models_dir() -> Path:
    """Folder with one settings file per model."""
    return paths.root() / "config" / "models"


def known_models() -> dict[str, Path]:
    """Short names and hub ids of all models with settings -> settings file."""
    names: dict[str, Path] = {}
    for path in sorted(models_dir().glob("*.yaml")):
        names[path.stem] = path
        names |= dict.fromkeys(_read(path).get("also", []), path)
    return names


def editor_settings(model: str, editor: str) -> dict[str, Any]:
    """Settings of one editor for one model, as keyword arguments of the editor.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file has no section for the editor or is not YAML.
    """
    asked(editor)
    name, content = _of_model(model)
    if editor not in content.get("editors", {}):
        raise ProfileError(
            f"{name} has no settings for editor {editor!r}; it has "
            f"{', '.join(content.get('editors', {}))}. Add a section or pass an editor object"
        )
    return dict(content["editors"][editor])


def alphaset_settings(model: str) -> dict[str, dict[str, Any]]:
    """Settings tuned for one model on validation AlphaSets: sequence or editor -> overrides; often empty.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file is not YAML.
    """
    return dict(_of_model(model)[1].get("alphaset", {}))


def regimes(model: str) -> dict[str, dict[str, Any]]:
    """Regimes on file for one model: name -> ``about``, ``published`` and settings; often empty.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file is not YAML.
    """
    return dict(_of_model(model)[1].get("regimes", {}))


def regime_settings(model: str, regime: str, host: str) -> dict[str, Any]:
    """Settings that a regime replaces for a sequence with a host, as keyword arguments of the sequence.

    Args:
        model: short name, or a hub id listed in the model's settings file.
        regime: a row of the section ``regimes`` of that file; none replaces nothing.
        host: editor whose settings the sequence uses.

    Raises:
        UnknownNameError: if the model has no settings file, or the regime is not in it.
        ProfileError: if the file is not YAML, or the row has no mapping ``every``.
    """
    known = regimes(model)
    if not regime:
        return {}
    asked(regime)
    if regime not in known:
        raise UnknownNameError(f"regime of {model}", regime, list(known))
    row = known[regime]
    if not isinstance(row, dict) or not isinstance(row.get("every"), dict):
        raise ProfileError(
            f"regime {regime} of {model} needs a mapping 'every', the settings of all sequences"
        )
    return dict(row["every"]) | dict(row.get(host) or {})


def shapes() -> dict[str, Any]:
    """Short name of each model whose file has a section ``shape`` -> that section, as it is written there.

    Raises:
        ProfileError: if a file is not YAML.
    """
    files = {path.stem: _read(path) for path in sorted(models_dir().glob("*.yaml"))}
    return {name: content["shape"] for name, content in files.items() if "shape" in content}


def _of_model(model: str) -> tuple[str, dict[str, Any]]:
    """Name and content of the settings file of one model."""
    known = known_models()
    if model not in known:
        raise UnknownNameError(
            f"model with settings in {models_dir()} (add a file there, name one with --settings or "
            "settings=, pass the loaded model for derived ones, or pass an editor object)",
            model,
            list(known),
        )
    return known[model].name, _read(known[model])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except UNREADABLE as error:
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{path.name} holds no mapping; it needs a section 'editors'")
    odd = [part for part in ("editors", "alphaset", "regimes") if not isinstance(content.get(part, {}), dict)]
    for part in sorted({"editors", "alphaset"} - {*odd}):
        held = content.get(part, {})
        odd += [f"{part}.{name}" for name in held if not isinstance(held[name], dict)]
    if odd:
        raise ProfileError(f"{path.name}: {', '.join(odd)}: write a mapping of names to settings there")
    also = content.get("also", [])
    if not isinstance(also, list) or not all(isinstance(name, str) for name in also):
        raise ProfileError(f"{path.name}: also is {also!r}; list the hub ids that the settings are for")
    return content
