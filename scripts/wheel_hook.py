"""Puts the settings and data that the library reads into a wheel, beside its code.

In a checkout they are the folders ``config`` and ``data`` at the root, where an editable installation reads
them too; ``palimpsest.paths`` finds either.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("config", "data")
INSIDE = "palimpsest/_carried"
"""Folder of the wheel that holds them: ``INSTALLED`` of ``palimpsest.paths``."""


class CarriedFolders(BuildHookInterface[Any]):
    """Build hook of hatchling for wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders, but to no editable installation, whose copies would grow old."""
        if version != "editable":
            folders = {str(Path(self.root, name)): f"{INSIDE}/{name}" for name in FOLDERS}
            build_data["force_include"].update(folders)
