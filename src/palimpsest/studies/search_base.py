"""What a search of settings does not search: settings on file, the model's own or another's, or derived."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palimpsest.editors import Editor, editor_with
from palimpsest.editors.derived import Derived, derived_settings
from palimpsest.editors.settings import editor_settings, editors_on_file, known_models
from palimpsest.network.model import EditableModel


@dataclass(frozen=True)
class Base:
    """Settings of each editor, of which a search replaces some.

    Attributes:
        settings: editor -> its settings.
        source: editor -> name of the model whose settings file they are from; none for derived ones.
        derived: editor -> derived settings with their reasons.
    """

    settings: Mapping[str, dict[str, Any]]
    source: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)

    def editor(self, name: str, **searched: Any) -> Editor:
        """An editor with these settings, some of them replaced.

        Raises:
            ProfileError: if the editor has no such setting, or its value is out of range.
        """
        called = self.source.get(name) or self.derived[name].model
        return editor_with(name, self.settings[name] | searched, called)

    def told(self, searched: Mapping[str, Sequence[str]]) -> list[str]:
        """Lines that say where settings are from.

        Args:
            searched: editor -> names of its settings that are not from here.
        """
        models = list(dict.fromkeys(self.source.values()))
        lines = [f"What was not searched is as for {name}." for name in models]
        for name, found in self.derived.items():
            lines.append(f"What was not searched of {name} is derived for this model:")
            kept = [reason for reason in found.reasons if reason.split()[0] not in searched.get(name, ())]
            lines += [f"  {reason}" for reason in kept]
        return lines


def base_of(model: EditableModel, editors: Sequence[str], out: Path, named: str | None = None) -> Base:
    """Settings that a search begins with.

    Args:
        model: the unedited model; its keys are measured where settings are derived from them.
        editors: names of the editors.
        out: file that the search writes; it is no settings file of the model yet.
        named: model in ``config/models`` whose settings are taken; by default the model's own, and derived
            ones where it has none.

    Raises:
        UnknownNameError: if the named model has no settings file.
        ProfileError: if that lacks an editor, or a settings file is damaged.
    """
    if named is not None:
        return Base({name: editor_settings(named, name) for name in editors}, dict.fromkeys(editors, named))
    file = known_models().get(model.name)
    own = editors_on_file(model.name) if file is not None and file.resolve() != out.resolve() else {}
    derived = {name: derived_settings(model, name) for name in editors if name not in own}
    settings = {name: own[name] if name in own else derived[name].settings for name in editors}
    return Base(settings, {name: model.name for name in editors if name in own}, derived)
