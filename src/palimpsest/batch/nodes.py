"""Whether the nodes of a batch share the folders of results and of the cache, from what their jobs record.

The first job that sees a folder leaves a random id in it, and every job records the id that its node sees:
two nodes share a folder if they see the same id in it.
"""

import json
import os
import re
import socket
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from palimpsest import paths
from palimpsest.batch.jobs import batch_dir
from palimpsest.files import as_json, locked, write_atomically

ID = ".storage-id"
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Seen:
    """How one node sees one folder.

    Attributes:
        path: of the folder.
        mount: file system and its source, for example ``nfs4 server:/home``; empty where the system does not
            tell.
        id: in the folder; empty if there is none.
    """

    path: str
    mount: str
    id: str


def shared_folders() -> dict[str, Path]:
    """Folders that all nodes of a batch must share, by what they are."""
    return {"results": paths.results_root(), "cache": paths.cache_dir()}


def seen(folder: Path, leave: bool = False) -> Seen:
    """How this node sees a folder.

    Args:
        folder: which.
        leave: an id in the folder, if there is none.

    Raises:
        ResourceError: if an id cannot be left there.
    """
    file = folder / ID
    if leave:
        with locked(file):
            if not file.is_file():
                write_atomically(file, uuid.uuid4().hex.encode())
    found = ""
    with suppress(OSError):
        found = file.read_text("utf-8")
    return Seen(str(folder), mount_of(folder), found)


def mount_of(folder: Path, table: Path = MOUNTS) -> str:
    """File system of a folder, and its source; empty where the system keeps no table of mounts."""
    best, found = "", ""
    with suppress(OSError):
        place = os.path.realpath(folder)
        for line in table.read_text("utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
            inside = place == point or place.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, found = point, " ".join(after.split()[:2])
    return found


def record() -> None:
    """Leave what this node sees, for `palimpsest doctor`.

    Raises:
        ResourceError: if it cannot be written.
    """
    content = {name: asdict(seen(folder, leave=True)) for name, folder in shared_folders().items()}
    write_atomically(batch_dir() / "nodes" / f"{socket.gethostname()}.json", as_json(content))


def recorded() -> dict[str, dict[str, Seen]]:
    """Node -> kind of folder -> how it was seen last; this node as it sees them now."""
    found = {}
    for path in sorted((batch_dir() / "nodes").glob("*.json")):
        with suppress(OSError, ValueError, TypeError, AttributeError):
            found[path.stem] = {name: Seen(**of) for name, of in json.loads(path.read_text("utf-8")).items()}
    if found:
        found[socket.gethostname()] = {name: seen(folder) for name, folder in shared_folders().items()}
    return found


def not_shared(nodes: dict[str, dict[str, Seen]], kind: str) -> str:
    """How nodes differ in what they see of a kind of folder; empty if they see the same or only one tells."""
    views = {node: found[kind] for node, found in nodes.items() if kind in found and found[kind].id}
    if len({view.id for view in views.values()}) < 2:
        return ""
    return "; ".join(
        f"{node} sees {view.path}" + (f" on {view.mount}" if view.mount else "")
        for node, view in sorted(views.items())
    )
