"""The folder beside an edited model in which it is made: the model is always either the old or the new one.

The work folder of ``out`` is ``.out.palimpsest``. It holds

    owner.json    an `Owner`: of what it is, and how far the work is; what has none is not ours
    partial       ledgers and description of an unfinished edit; the same command continues from there
    new           the folder that is to be ``out``
    replaced      the one that was, between two moves

and is removed when the work is done. ``owner.json`` names the description that ``out`` had when the work
began and, once ``new`` is complete, the one that it will have, both by their SHA-256. So nothing is moved
into the place of a folder that somebody changed meanwhile, and after a death between the moves it is clear
what is left to move. A complete folder in here is removed only where ``out`` is what became of it.
"""

import json
import os
import shutil
from collections.abc import Container
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from palimpsest.errors import ResourceError, SequenceError
from palimpsest.files import as_json, file_sha256, leftovers, reading, write_atomically

DESCRIPTION = "palimpsest.json"
OWNER = "owner.json"


@dataclass(frozen=True)
class Owner:
    """What a work folder is for.

    Attributes:
        of: name of the folder that is made.
        task: what is done, for instance ``edit``.
        start: SHA-256 of the description that this folder had when the work began; empty if there was none.
        end: SHA-256 of the description in ``new``, once that is complete.
    """

    of: str
    task: str
    start: str
    end: str = ""


class Work:
    """The work folder of an edited model.

    Args:
        out: the edited model's folder, see `palimpsest.workbench.places.place`.

    Attributes:
        folder, partial, new, replaced: see the module's docstring; none of them need exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.palimpsest")
        self.partial, self.new, self.replaced = (
            self.folder / name for name in ("partial", "new", "replaced")
        )

    def owner(self) -> Owner | None:
        """What the folder says of itself; None if there is none, or one in which no work has begun.

        Raises:
            ResourceError: if there is a folder of that name that is not ours.
        """
        file = self.folder / OWNER
        try:
            content = json.loads(file.read_text("utf-8"))
            if isinstance(content, dict) and content.keys() == {field.name for field in fields(Owner)}:
                owner = Owner(**{name: str(value) for name, value in content.items()})
                if owner.of == self.out.name:
                    return owner
        except FileNotFoundError:
            if not self.folder.exists() or (
                self.folder.is_dir() and set(self.folder.iterdir()) <= set(leftovers(file))
            ):
                return None
        except (OSError, ValueError, RecursionError):
            pass
        raise ResourceError(
            f"{self.folder} is in the way: {self.out.name} would be made in it, and it was not made for that "
            f"(it has no {OWNER} of this package that names {self.out.name}); move it away, or choose "
            f"another folder than {self.out}"
        )

    @property
    def ended(self) -> bool:
        """Whether all was written and at most moves are missing."""
        owner = self.owner()
        return bool(owner and owner.end in (described(self.out), described(self.new)) and owner.end)

    @property
    def current(self) -> Path:
        """Folder that holds the edited model: ``out``, or where it is if only moves are missing."""
        owner = self.owner()
        there = described(self.out)
        if owner and owner.end and there in ("", owner.start) and described(self.new) == owner.end:
            return self.new
        if owner and owner.start and there == "" and described(self.replaced) == owner.start:
            return self.replaced
        return self.out

    @property
    def unfinished(self) -> bool:
        """Whether an edit has written facts here that are not in the edited model yet."""
        return self.owner() is not None and not self.ended and bool(described(self.partial))

    def check_start(self) -> None:
        """Whether an unfinished edit began with the edited model that is there now.

        Raises:
            SequenceError: if not; to finish it would lose what happened since.
        """
        owner = self.owner()
        if owner and self.unfinished and described(self.out) != owner.start:
            raise SequenceError(
                f"{self.out} was changed since the unfinished edit in {self.folder} began, and to finish "
                f"that would lose the change; delete {self.folder} to keep {self.out} as it is, or bring "
                "back the folder that the edit began with"
            )

    def check_end(self) -> None:
        """Whether a folder that lies complete here belongs to what is in its place now.

        Raises:
            SequenceError: if not, as where an older copy was put back between two moves, or this work folder
                was copied beside another model; to remove it would lose that folder.
        """
        owner, there = self.owner(), described(self.out)
        if owner is None or not owner.end or there in ("", owner.start, owner.end):
            return
        kept = [
            str(folder)
            for folder, known in ((self.new, owner.end), (self.replaced, owner.start))
            if known and described(folder) == known
        ]
        if kept:
            raise SequenceError(
                f"{self.out} is another model than the one that was finished beside it and only had to be "
                f"moved: {' and '.join(kept)} would be lost; move what you want to keep elsewhere, then "
                f"delete {self.folder}"
            )

    def begin(self, task: str) -> None:
        """Make the folder, unless work has begun in it.

        Raises:
            ResourceError: if it cannot be made, or is not ours.
        """
        if self.owner() is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for file in leftovers(self.folder / OWNER):
                    file.unlink()
            except OSError as error:
                raise ResourceError(
                    f"cannot write in {self.out.parent}: {error}; choose another folder"
                ) from error
            self._write(Owner(self.out.name, task, described(self.out)))

    def finish(self, task: str) -> None:
        """Move the complete ``new`` to ``out``, and remove the rest.

        Raises:
            OSError: if a folder cannot be moved; ``out`` is then as before.
        """
        self._write(Owner(self.out.name, task, described(self.out), described(self.new)))
        self.settle()

    def settle(self) -> None:
        """Finish the moves of a finished work, and remove the folder unless an edit is unfinished.

        Files that somebody put into ``out`` since ``new`` was complete move along.

        Raises:
            OSError: if a folder cannot be moved; ``out`` is then as before.
            SequenceError: as `check_end`.
        """
        self.check_end()
        owner, current = self.owner(), self.current
        if current != self.out:
            if self.out.exists():
                self.out.rename(self.replaced)
            try:
                current.rename(self.out)
            except OSError:
                if current == self.new and self.replaced.exists():
                    self.replaced.rename(self.out)
                raise
        if owner and owner.start and described(self.replaced) == owner.start:
            take_along(self.replaced, self.out, written(self.replaced))
        if owner is None or not self.unfinished:
            self.remove()

    def abandon(self) -> None:
        """Drop what was not finished, but for facts that an unfinished edit has written.

        Where a failing disk let ``out`` be moved away and not back, all stays: the next command moves on.
        """
        if self.current in (self.out, self.new) and not (self.replaced.exists() and not self.out.exists()):
            shutil.rmtree(self.new, ignore_errors=True)
            if not self.unfinished:
                self.remove()

    def remove(self) -> None:
        """Remove the folder, its owner last, so that a part that cannot be removed is still ours."""
        with suppress(OSError):
            if self.owner() is not None:
                (self.partial / DESCRIPTION).unlink(missing_ok=True)  # without it the rest is not read
                for folder in (self.partial, self.new, self.replaced):
                    if folder.exists():
                        shutil.rmtree(folder)
                for file in leftovers(self.folder / OWNER):
                    file.unlink()
                (self.folder / OWNER).unlink()
        self.tidy()

    def tidy(self) -> None:
        """Remove the folder if nothing is in it."""
        with suppress(OSError):
            self.folder.rmdir()

    def _write(self, owner: Owner) -> None:
        write_atomically(self.folder / OWNER, as_json(asdict(owner)))


def described(folder: Path) -> str:
    """SHA-256 of a folder's description; empty if it has none.

    Raises:
        ResourceError: if it cannot be read.
    """
    file = folder / DESCRIPTION
    with reading(file):
        return file_sha256(file) if file.is_file() else ""


def written(folder: Path) -> set[str]:
    """Names of the files in a folder that its description names, itself among them; of all, if it names none.

    Raises:
        ResourceError: if the description cannot be read.
    """
    file = folder / DESCRIPTION
    with reading(file):
        named = json.loads(file.read_text("utf-8")).get("files")
    return {*named, DESCRIPTION} if named else {name.as_posix() for name in _inside(folder)}


def take_along(old: Path, new: Path, ours: Container[str]) -> None:
    """Copy what somebody else put into a folder, to another that does not have it.

    Args:
        old: the folder that was.
        new: the one in its place.
        ours: names of files in ``old`` that this package wrote.
    """
    for name in _inside(old):
        if name.as_posix() in ours or os.path.lexists(new / name):
            continue
        if (old / name).is_dir() and not (old / name).is_symlink():
            (new / name).mkdir()
        else:
            shutil.copy2(old / name, new / name, follow_symlinks=False)


def _inside(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
