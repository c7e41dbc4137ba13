"""Methods that a page can come to call, followed by their names."""

from pathlib import Path

import pytest

from palimpsest.book.changes import Side
from palimpsest.book.liveness import HEAD
from tests.book.pages import write_files, write_page

SOURCE = """\
LIMIT = 3


def helper(x):
    return x.late()


def unused():
    return Thing().never()


def shown_alone():
    return 1


def decorate(function):
    return function


class Base:
    def late(self):
        return LIMIT

    def never(self):
        return unused()


class Thing(Base):
    def __init__(self):
        self.size = self.width

    @property
    def width(self):
        return 2

    @decorate
    def handed(self):
        return 4

    def idle(self):
        return unused()

    def __repr__(self):
        return shown_alone()

    def _repr_html_(self):
        return shown_alone()

    def spoken(self):
        return 5


def begin():
    return helper(Thing()), getattr(Thing(), "spoken")()
"""


@pytest.fixture
def names(tmp_path: Path) -> set[str]:
    """What is live for a page that calls `begin`, without the module's name."""
    write_files(
        tmp_path,
        {
            "config/models/none.yaml": "{}\n",
            "src/palimpsest/__init__.py": "",
            "src/palimpsest/room.py": SOURCE,
        },
    )
    (tmp_path / "notebooks").mkdir()
    write_page(tmp_path / "notebooks" / "page.ipynb", ["from palimpsest.room import begin", "begin()"])
    return {name.removeprefix("room.") for name in Side(tmp_path, "page", {}).live.names}


@pytest.mark.parametrize(
    "name",
    [
        "begin",
        "helper",
        "LIMIT",
        f"Thing{HEAD}",
        f"Base{HEAD}",
        "Thing.__init__",
        "Thing.width",
        "Thing.handed",
        "Thing.spoken",
        "Base.late",
    ],
)
def test_what_is_named_can_run(names: set[str], name: str) -> None:
    assert name in names


@pytest.mark.parametrize(
    "name", ["unused", "shown_alone", "Base.never", "Thing.idle", "Thing.__repr__", "Thing._repr_html_"]
)
def test_what_nothing_names_cannot(names: set[str], name: str) -> None:
    assert name not in names
