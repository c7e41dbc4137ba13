"""Named sequences: a row of ``config/sequences.yaml`` on the settings of a model."""

from dataclasses import replace
from typing import Any

import yaml
from pydantic import ValidationError

from palimpsest import paths
from palimpsest.editors import AlphaEditPlus, editor_for
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.settings import alphaset_settings, editor_settings
from palimpsest.errors import ProfileError, UnknownNameError

FROM_MEMIT = "from memit"
"""Value of a setting that is taken from the model's MEMIT, whatever the host."""


def configurations() -> dict[str, dict[str, Any]]:
    """Every row of ``config/sequences.yaml``: name -> host and overrides.

    Raises:
        ProfileError: if the file is not YAML, or a row is no mapping with a host.
    """
    path = paths.root() / "config" / "sequences.yaml"
    try:
        rows = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(rows, dict):
        raise ProfileError(f"{path.name} holds no mapping; it needs a row for each sequence, name: settings")
    bad = [name for name, row in rows.items() if not isinstance(row, dict) or "host" not in row]
    if bad:
        raise ProfileError(f"{path.name}: {', '.join(bad)} need a host, the editor whose settings they use")
    return dict(rows)


def configuration(name: str, model: str, **overrides: Any) -> Sequential:
    """A sequence by name, with the settings on file for a model.

    Args:
        name: a row of ``config/sequences.yaml``.
        model: short name, or a hub id listed in its settings file.
        overrides: fields of `Sequential` to set otherwise.

    Raises:
        UnknownNameError: unknown sequence or model.
        ProfileError: a setting that does not exist or is out of range, or settings that contradict.
    """
    rows = configurations()
    if name not in rows:
        raise UnknownNameError("sequence", name, list(rows))
    row = dict(rows[name])
    settings = editor_settings(model, row.pop("host")) | row | overrides
    for key in [key for key, value in settings.items() if value == FROM_MEMIT]:
        settings[key] = editor_settings(model, "memit")[key]
    try:
        return Sequential(**settings)
    except ValidationError as error:
        raise ProfileError(f"settings of the sequence {name} for {model}: {error}") from error


def tuned(name: str, model: str, **overrides: Any) -> Sequential | AlphaEditPlus:
    """A sequence by name, or an editor for sequences, with what was chosen for it on validation AlphaSets.

    Args:
        name: a row of ``config/sequences.yaml``, or ``alphaedit_plus``.
        model: short name, or a hub id listed in its settings file. Where the file has no section
            ``alphaset``, the settings are those of the editors.
        overrides: fields to set otherwise.

    Raises:
        UnknownNameError: unknown sequence, editor or model.
        ProfileError: as `configuration` and `palimpsest.editors.editor_for`.
    """
    chosen = alphaset_settings(model).get(name, {}) | overrides
    if name in configurations():
        return configuration(name, model, **chosen)
    found = editor_for(name, model, **chosen)
    if not isinstance(found, AlphaEditPlus):
        raise UnknownNameError("sequence", name, [*configurations(), "alphaedit_plus"])
    return found


def with_strength(sequence: Sequential, factor: float) -> Sequential:
    """The same sequence with its penalty multiplied: λ where it has a ridge, else the weight of C₀.

    For studies over how strongly a method holds back; 1 is the setting on file.
    """
    if sequence.ridge:
        return replace(sequence, ridge=sequence.ridge * factor)
    return replace(sequence, preserve_weight=sequence.preserve_weight * factor)
