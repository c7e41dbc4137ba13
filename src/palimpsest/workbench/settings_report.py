"""Which settings each editor would use for a model: those on file, or derived ones with their reasons."""

from collections.abc import Iterator

from palimpsest.editors import EDITORS
from palimpsest.editors.derived import derived_settings, has_file
from palimpsest.editors.settings import derived_from, editor_settings, known_models
from palimpsest.errors import ProfileError
from palimpsest.network.model import load


def settings_report(name: str) -> Iterator[str]:
    """One text for each editor.

    A model with a settings file is not loaded. For any other the keys are measured, from the text sample that
    C₀ is estimated from; an edit needs this anyway, and it is cached.

    Args:
        name: of a model, as `palimpsest.load`.

    Raises:
        ModelError, ResourceError, UnknownNameError: as `palimpsest.load`.
    """
    if has_file(name):
        source = derived_from(name)
        how = f", derived from those of {source} and not searched" if source else ""
        yield f"{name} has settings in {known_models()[name]}{how}:"
        for editor in EDITORS:
            try:
                yield f"{editor}: {editor_settings(name, editor)}"
            except ProfileError as error:
                yield f"{editor}: {error}"
        return
    model = load(name)
    for editor in EDITORS:
        yield str(derived_settings(model, editor))
