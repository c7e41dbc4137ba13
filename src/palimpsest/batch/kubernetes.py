"""What Kubernetes needs besides: an image, variables, and a storage through which Snakemake copies files."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import yaml

from palimpsest import paths
from palimpsest.errors import ProfileError
from palimpsest.files import UNREADABLE

KEYS = (
    "container-image",
    "kubernetes-persistent-volumes",
    "default-storage-provider",
    "default-storage-prefix",
)
"""Keys of the engine's profile that each cluster fills in."""

PREFIX = "default-storage-prefix"


def profile_file() -> Path:
    """The engine's profile."""
    return paths.root() / "workflow" / "profiles" / "kubernetes" / "config.yaml"


def filled() -> dict[str, Any]:
    """The profile, with all that a cluster fills in.

    Raises:
        ProfileError: if something is left empty, the file cannot be read, or the plugin of its storage is not
            installed.
    """
    path = profile_file()
    try:
        content = dict(yaml.safe_load(path.read_text("utf-8")))
    except UNREADABLE as error:
        raise ProfileError(f"{path} cannot be read as YAML ({error}); restore it") from error
    empty = [key for key in KEYS if not content.get(key)]
    if empty:
        raise ProfileError(
            f"{path} leaves {', '.join(empty)} empty; fill in those of your cluster, as it says"
        )
    plugin = f"snakemake_storage_plugin_{content['default-storage-provider']}".replace("-", "_")
    if importlib.util.find_spec(plugin) is None:
        raise ProfileError(
            f"{plugin} is not installed, which {path} names; run python -m pip install "
            f"{plugin.replace('_', '-')}"
        )
    return content


def storage_of(plan: str) -> list[str]:
    """Argument by which a batch has a folder of the storage for itself, where no marker of an earlier one is.

    Args:
        plan: id of the batch.

    Raises:
        ProfileError: as `filled`.
    """
    return [f"--{PREFIX}", f"{str(filled()[PREFIX]).rstrip('/')}/{plan}"]


def variables() -> dict[str, str]:
    """What pods are given: where the checkout and the caches lie."""
    hub = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return {
        "PALIMPSEST_ROOT": str(paths.root()),
        "PALIMPSEST_CACHE": str(paths.cache_dir()),
        "HF_HOME": hub,
    }
