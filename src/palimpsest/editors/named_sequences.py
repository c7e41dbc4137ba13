"""Named sequences: rows of ``config/sequences.yaml`` combined with the settings of a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from palimpsest import paths
from palimpsest.editors import EDITORS, editor_for, settings_for
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.settings import alphaset_settings, asked, regime_settings, yaml_mapping
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.network.model import EditableModel

Method = TypeVar("Method", bound=WeightEditor)

FROM_MEMIT = "from memit"
"""Value of a setting that is read from the model's MEMIT settings, whatever the host."""


def configurations() -> dict[str, dict[str, Any]]:
    """Every row of ``config/sequences.yaml``: name -> host and overrides.

    Raises:
        ProfileError: if the file cannot be read, is not YAML, or a row is not a mapping with a host.
    """
    path = paths.root() / "config" / "sequences.yaml"
    rows = yaml_mapping(path, "a row for each sequence, name: settings")
    bad = [
        str(name)
        for name, row in rows.items()
        if not isinstance(row, dict)
        or not isinstance(row.get("host"), str)
        or not all(isinstance(word, str) for word in (name, *row))
    ]
    if bad:
        raise ProfileError(f"{path.name}: {', '.join(bad)} need a host, the editor whose settings they use")
    return rows


def configuration(name: str, model: str | EditableModel, regime: str = "", **overrides: Any) -> Sequential:
    """Make a named sequence with the settings on file for a model, or derived ones.

    Args:
        name: a row of ``config/sequences.yaml``.
        model: as `palimpsest.editors.settings_for`.
        regime: a row of ``regimes`` in that file, whose settings replace the host's; none by default.
        overrides: fields of `Sequential` that replace those on file.

    Raises:
        UnknownNameError: if the sequence, the model or the regime is unknown.
        ProfileError: if a setting does not exist or is out of range, or settings contradict each other.
    """
    asked(name)
    rows = configurations()
    if name not in rows:
        raise UnknownNameError("sequence", name, list(rows))
    row = dict(rows[name])
    called = model if isinstance(model, str) else model.name

    def on_file(host: str) -> dict[str, Any]:
        return settings_for(model, host) | (regime_settings(called, regime, host) if regime else {})

    settings = on_file(row.pop("host")) | row | overrides
    for key in [key for key, value in settings.items() if value == FROM_MEMIT]:
        settings[key] = on_file("memit")[key]
    try:
        return Sequential(**settings)
    except ValidationError as error:
        raise ProfileError(f"settings of the sequence {name} for {called}: {error}") from error


def tuned(name: str, model: str, regime: str = "", **overrides: Any) -> WeightEditor:
    """Make a named sequence or editor with the settings that were tuned on validation AlphaSets.

    Args:
        name: a row of ``config/sequences.yaml``, or of `palimpsest.editors.EDITORS`.
        model: short name, or a hub id listed in the model's settings file. Where the file has no section
            ``alphaset``, the untuned settings are used.
        regime: as `configuration`, for an editor too; the tuned settings belong to one of them.
        overrides: settings that replace the tuned ones.

    Raises:
        UnknownNameError: if the sequence, editor or model is unknown, or the editor changes no weights.
        ProfileError: as `configuration` and `palimpsest.editors.editor_for`.
    """
    asked(name)
    chosen = alphaset_settings(model).get(name, {}) | overrides
    if name in configurations():
        return configuration(name, model, regime, **chosen)
    found = editor_for(name, model, **(regime_settings(model, regime, name) if regime else {}) | chosen)
    if not isinstance(found, WeightEditor):
        raise UnknownNameError(
            "sequence or editor of weights",
            name,
            [*configurations(), *(known for known in EDITORS if known != name)],
        )
    return found


def stepwise(name: str, model: str, regime: str = "") -> WeightEditor:
    """Make a named sequence, or an editor of weights, that computes values at each step on the edited model.

    Args:
        name: a row of ``config/sequences.yaml``, or of `palimpsest.editors.EDITORS`, whose edits always do.
        model: short name, or a hub id listed in the model's settings file.
        regime: a row of ``regimes`` in that file, whose settings replace those on file; none by default.

    Raises:
        UnknownNameError: if the sequence, editor, model or regime is unknown, or the editor has no weights.
        ProfileError: as `configuration` and `palimpsest.editors.editor_for`.
    """
    if name in configurations():
        return configuration(name, model, regime, values="each_step")
    found = editor_for(name, model, **regime_settings(model, regime, name))
    if not isinstance(found, WeightEditor):
        raise UnknownNameError("sequence or editor of weights", name, list(configurations()))
    return found


def with_strength(sequence: Sequential, factor: float) -> Sequential:
    """The sequence with its penalty multiplied by a factor: λ if it has a ridge, else the weight of C₀.

    For studies of the strength of regularisation; factor 1 is the setting on file.
    """
    if sequence.ridge:
        return replace(sequence, ridge=sequence.ridge * factor)
    return replace(sequence, preserve_weight=sequence.preserve_weight * factor)


def changed(sequence: Method, changes: Sequence[str]) -> Method:
    """The sequence with some settings replaced, for maps over settings.

    Args:
        sequence: the sequence, or another editor of weights.
        changes: ``name=value`` or, for a setting of the values or contexts, ``targets.name=value``; the value
            is read as YAML.

    Raises:
        ProfileError: if a text has another form, a setting does not exist, or a value is out of range.
    """
    found: Any = sequence
    for text in changes:
        path, sign, value = text.partition("=")
        *holders, name = path.split(".")
        try:
            parsed = yaml.safe_load(value)
            if not sign or len(holders) > 1:
                raise ValueError("write 'name=value' or 'targets.name=value'")
            part = replace(getattr(found, holders[0]), **{name: parsed}) if holders else parsed
            found = replace(found, **{holders[0] if holders else name: part})
        except (ValidationError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise ProfileError(f"change {text!r} of a sequence: {error}") from error
    made: Method = found
    return made


def sequence_of(run: str, model: str, **overrides: Any) -> Sequential:
    """Make the sequence that a run description names, for example ``"memit_naive each_step 0.01"``.

    Args:
        run: a row of ``config/sequences.yaml``, the setting ``values``, and a factor of the penalty; such
            texts are parameters of notebooks.
        model: short name, or a hub id listed in the model's settings file.
        overrides: fields of `Sequential` that replace those on file.

    Raises:
        ProfileError: if the text does not have these three parts, and as `configuration`.
        UnknownNameError: as `configuration`.
    """
    try:
        name, values, strength = run.split()
        factor = float(strength)
    except ValueError as error:
        raise ProfileError(
            f"run {run!r}: write 'sequence values strength', for example 'memit_naive each_step 1'"
        ) from error
    return with_strength(configuration(name, model, values=values, **overrides), factor)
