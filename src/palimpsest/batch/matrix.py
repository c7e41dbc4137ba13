"""The matrix of a batch, ``config/batch.yaml``: profiles (each a model) × seeds × pages."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palimpsest import paths
from palimpsest.book.profiles import known_notebooks, known_profiles
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.files import UNREADABLE

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class Needs(BaseModel):
    """What a job asks of a machine; each retry asks for half as much memory and time more.

    Attributes:
        mem_mb: memory of the machine, in 10⁶ bytes.
        runtime: minutes.
        threads: cores.
    """

    model_config = STRICT
    mem_mb: int = Field(default=64_000, gt=0)
    runtime: int = Field(default=720, gt=0)
    threads: int = Field(default=1, gt=0)


class Least(BaseModel):
    """What a job asks for at least, however little its plan says.

    Attributes:
        mem_mb: memory of the machine, in 10⁶ bytes: also of the interpreter and its libraries.
        runtime: minutes.
    """

    model_config = STRICT
    mem_mb: int = Field(default=16_000, gt=0)
    runtime: int = Field(default=30, gt=0)


class Margin(BaseModel):
    """By what the numbers of a plan are multiplied, which the project tests it to keep to.

    Attributes:
        memory: of the host.
        time: of a run.
    """

    model_config = STRICT
    memory: float = Field(default=1.25, ge=1)
    time: float = Field(default=2.0, ge=1)


class Moments(BaseModel):
    """Second moments that are summed by shards before the pages of a profile run.

    Attributes:
        layers: in words of ``palimpsest stats``, for example ``4-8``.
        tokens: as the settings of the profile's model ask for.
        shards: number of jobs.
        products: ``float64``, or ``float32`` for cards that are slow in float64.
    """

    model_config = STRICT
    layers: str = Field(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$")
    tokens: int = Field(gt=0)
    shards: int = Field(default=1, gt=0)
    products: Literal["float64", "float32"] = "float64"


class LeftOut(BaseModel):
    """A page that is not run under a profile, for example for lack of settings."""

    model_config = STRICT
    profile: str
    page: str


class Matrix(BaseModel):
    """All of the file.

    Attributes:
        profiles: names of files in ``config/profiles``; each names a model.
        seeds: seeds of every page that has one; empty for the profile's own alone.
        pages: names of notebooks, or ``all``.
        leave_out: what is not run after all.
        moments: profile -> second moments that are summed by shards.
        gpus: profile with ``device: auto`` -> GPUs that its model is spread over; by default all of the node.
        needs: of jobs of which no plan tells.
        needs_of: page -> what it needs, whatever a plan tells.
        least: of jobs of which a plan tells.
        margin: of what a plan tells.
        retries: how often a job is tried again that lost its memory, GPU or node, or ran out of
            time.
        book: profile that the book is built for at the end; null for none.
        fetch: whether models and texts are fetched first, on the node that starts the batch; jobs then do
            without a network.
    """

    model_config = STRICT
    profiles: list[str] = Field(min_length=1)
    seeds: list[int] = []
    pages: list[str] | Literal["all"] = "all"
    leave_out: list[LeftOut] = []
    moments: dict[str, Moments] = {}
    gpus: dict[str, Annotated[int, Field(gt=0)]] = {}
    needs: Needs = Needs()
    needs_of: dict[str, Needs] = {}
    least: Least = Least()
    margin: Margin = Margin()
    retries: int = Field(default=2, ge=0)
    book: str | None = "laptop"
    fetch: bool = True

    @property
    def notebooks(self) -> list[str]:
        """Names of the pages, in the book's order."""
        return [name for name in known_notebooks() if self.pages == "all" or name in self.pages]


def matrix_file() -> Path:
    """``config/batch.yaml`` of the checkout."""
    return paths.root() / "config" / "batch.yaml"


def load_matrix(path: Path | None = None) -> Matrix:
    """Read and check a matrix.

    Args:
        path: the file; default `matrix_file`.

    Raises:
        ProfileError: if it cannot be read, holds an unknown key or a value of another type, or names
            something twice.
        UnknownNameError: if it names a profile or a page that does not exist.
    """
    path = path or matrix_file()
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except UNREADABLE as error:
        raise ProfileError(
            f"{path}: cannot be read as YAML ({error}); it lists profiles and pages"
        ) from error
    try:
        matrix = Matrix.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ProfileError(f"{path}: {faults} (known keys: {', '.join(Matrix.model_fields)})") from error
    _check_names(matrix, path)
    return matrix


def _check_names(matrix: Matrix, path: Path) -> None:
    pages = [] if matrix.pages == "all" else matrix.pages
    left_out = matrix.leave_out
    profiles = [*matrix.profiles, *matrix.moments, *matrix.gpus, *(pair.profile for pair in left_out)]
    profiles += [] if matrix.book is None else [matrix.book]
    notebooks = [*pages, *matrix.needs_of, *(pair.page for pair in left_out)]
    for kind, names, known in (
        ("profile", profiles, known_profiles()),
        ("notebook", notebooks, known_notebooks()),
    ):
        for name in names:
            if name not in known:
                raise UnknownNameError(f"{kind} in {path.name}", name, known)
    for what, values in (("profiles", matrix.profiles), ("seeds", matrix.seeds), ("pages", pages)):
        twice = [str(value) for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ProfileError(f"{path}: {what} names {', '.join(twice)} twice; keep one")
