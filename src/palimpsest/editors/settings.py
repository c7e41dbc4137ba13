"""Settings of the editors for each model, read from ``config/models/<name>.yaml``.

The file of a model has one section per editor: the published settings for the papers' models, and for the
embedded model the result of a search on validation facts. Every field is checked.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError

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
    """Short names and hub ids of all models with settings -> settings file.

    Raises:
        ProfileError: if a file cannot be read, is not YAML, or its section ``also`` is no list of names.
    """
    names: dict[str, Path] = {}
    for path in sorted(models_dir().glob("*.yaml")):
        names[path.stem] = path
        also = _read(path).get("also", [])
        if not isinstance(also, list) or not all(isinstance(name, str) for name in also):
            raise ProfileError(f"{path.name}, section also: {also!r:.60} is no list of names; write [NAME]")
        names |= dict.fromkeys(also, path)
    return names


def editor_settings(model: str, editor: str) -> dict[str, Any]:
    """Settings of one editor for one model, as keyword arguments of the editor.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file has no section for the editor, cannot be read or is not YAML.
    """
    asked(editor)
    known = editors_on_file(model)
    if editor not in known:
        raise ProfileError(
            f"{known_models()[model].name} has no settings for editor {editor!r}; it has "
            f"{', '.join(known)}. Add a section or pass an editor object"
        )
    return known[editor]


def editors_on_file(model: str) -> dict[str, dict[str, Any]]:
    """Settings of all editors in the file of one model: editor -> keyword arguments; often not of every one.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file cannot be read or is not YAML, or the section is no such mapping.
    """
    return _rows(*_of_model(model), "editors")


def layers_on_file(model: str, editor: str) -> tuple[int, ...]:
    """Layers that an editor changes by a model's settings file; empty if that has no such editor.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file cannot be read, or the layers there are none.
    """
    row = editors_on_file(model).get(editor)
    if row is None:
        return ()
    try:
        return TypeAdapter(Layers).validate_python(row.get("layers"))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ProfileError(f"settings of {editor} for {model}: layers: {reason}") from error


def alphaset_settings(model: str) -> dict[str, dict[str, Any]]:
    """Settings tuned for one model on validation AlphaSets: sequence or editor -> overrides; often empty.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file is not YAML.
    """
    return _rows(*_of_model(model), "alphaset")


def regimes(model: str) -> dict[str, dict[str, Any]]:
    """Regimes on file for one model: name -> ``about``, ``published`` and settings; often empty.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file is not YAML.
    """
    return _rows(*_of_model(model), "regimes")


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
    if not isinstance(row.get("every"), dict):
        raise ProfileError(
            f"regime {regime} of {model} needs a mapping 'every', the settings of all sequences"
        )
    return dict(row["every"]) | dict(row.get(host) or {})


def shapes() -> dict[str, Any]:
    """Short name of each model from whose settings others are derived -> section ``shape``, as it is written.

    These are the files with that section. Settings that are derived themselves (``derived_from``) are not
    among them, so that what is derived comes from what was published or searched.

    Raises:
        ProfileError: if a file is not YAML.
    """
    files = {path.stem: _read(path) for path in sorted(models_dir().glob("*.yaml"))}
    return {
        name: content["shape"]
        for name, content in files.items()
        if "shape" in content and "derived_from" not in content
    }


def derived_from(model: str) -> str:
    """The model from whose settings those in a model's file were derived; empty if they were not.

    Raises:
        UnknownNameError: if the model has no settings file.
        ProfileError: if the file is not YAML.
    """
    return str(_of_model(model)[1].get("derived_from", ""))


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
    return yaml_mapping(path, "a section 'editors'")


def _rows(name: str, content: Mapping[str, Any], section: str) -> dict[str, dict[str, Any]]:
    """A section of a settings file whose rows are settings by name; empty if it is not there."""
    rows = content.get(section, {})
    if not isinstance(rows, dict):
        raise ProfileError(f"{name}, section {section}: {rows!r:.60} is no mapping; write NAME: {{settings}}")
    for key, row in rows.items():
        if not isinstance(row, dict) or not all(isinstance(word, str) for word in (key, *row)):
            raise ProfileError(
                f"{name}, section {section}: row {key!r} holds {row!r:.60}; write settings there, name: value"
            )
    return {key: dict(row) for key, row in rows.items()}


def yaml_mapping(path: Path, needs: str) -> dict[Any, Any]:
    """Content of a settings file, which is a mapping.

    Args:
        path: of the file.
        needs: what it should hold, for the message of one that holds something else.

    Raises:
        ProfileError: if the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ProfileError(
            f"{path} cannot be read ({error}); restore it, or check its permissions"
        ) from error
    except RecursionError as error:
        raise ProfileError(f"{path.name} is not YAML that can be read: it is nested too deeply") from error
    except UNREADABLE as error:  # besides YAML's own: not UTF-8, a date that does not exist, a tag's fault
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{path.name} holds no mapping; it needs {needs}")
    return content
