"""What the top of a module binds, and that nothing else happens there."""

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from palimpsest.book import definitions
from palimpsest.book.definitions import Definition, Outside, Package, Target, WholeModule, bindings
from palimpsest.errors import NotebookError
from tests.book.pages import write_files

PACKAGE = Path(__file__).parents[2] / "src" / "palimpsest"
REAL = Package(PACKAGE)


@pytest.mark.parametrize("module", sorted(REAL.modules), ids=lambda name: name or "__init__")
def test_every_module_of_the_package_only_binds_names(module: str) -> None:
    bound = REAL.bindings(module)
    assert not bound.definitions.keys() & bound.imports.keys()


def test_a_module_binds_functions_classes_constants_and_imports() -> None:
    source = '''\
"""Doc."""
import json
import numpy.linalg
import torch.nn as layers
from typing import TYPE_CHECKING
from . import near
from ..far import thing as other

if TYPE_CHECKING:
    from torch import Tensor

A = 1
"""What A is."""
B, C = 2, 3
D = E = 4
F: int
def g(): ...
async def h(): ...
class I: ...

if __name__ == "__main__":
    g()
'''
    bound = bindings(ast.parse(source), "palimpsest.wing.room", "room.py")
    assert list(bound.definitions) == ["A", "B", "C", "D", "E", "F", "g", "h", "I"]
    assert bound.imports == {
        "json": "json",
        "numpy": "numpy",
        "layers": "torch.nn",
        "TYPE_CHECKING": "typing.TYPE_CHECKING",
        "near": "palimpsest.wing.room.near",
        "other": "palimpsest.wing.far.thing",
        "Tensor": "torch.Tensor",
    }


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("TABLE |= {1: 2}", "TABLE |= {1: 2}"),
        ("TABLE['a'] = 1", "TABLE['a'] = 1"),
        ("TABLE.a = 1", "TABLE.a = 1"),
        ("TABLE.a: int = 1", "TABLE.a: int = 1"),
        ("TABLE.update(a=1)", "TABLE.update(a=1)"),
        ("TABLE = {}", "TABLE = {}"),
        ("import json as TABLE", "import json as TABLE"),
        ("def TABLE():\n    pass", "def TABLE():"),
        ("class json:\n    pass", "class json:"),
        ("A, TABLE['a'] = 1, 2", "A, TABLE['a'] = (1, 2)"),
        ("A, *B = 1, 2", "A, *B = (1, 2)"),
        ("for A in TABLE:\n    pass", "for A in TABLE:"),
        ("if TABLE:\n    A = 1", "if TABLE:"),
        ("if TYPE_CHECKING:\n    A = 1\nelse:\n    A = 2", "if TYPE_CHECKING:"),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", "try:"),
        ("with TABLE:\n    pass", "with TABLE:"),
        ("del TABLE", "del TABLE"),
        ("assert TABLE", "assert TABLE"),
        ("3", "3"),
    ],
)
def test_anything_else_at_the_top_is_an_error_that_names_file_and_line(
    tmp_path: Path, statement: str, shown: str
) -> None:
    write_files(tmp_path, {"toys/deep/room.py": f'"""Doc."""\n\nimport json\nTABLE = {{}}\n\n{statement}\n'})
    with pytest.raises(NotebookError) as error:
        Package(tmp_path / "toys").bindings("deep.room")
    assert str(error.value) == (
        f"toys/deep/room.py, line 6: {shown!r} at the top of a module is neither an import nor the only "
        "assignment of a name, so that what depends on it cannot be told; put it into the definition that it "
        "changes, or into a function"
    )


def test_a_module_that_is_no_python_is_an_error_that_names_file_and_line(tmp_path: Path) -> None:
    write_files(tmp_path, {"toys/room.py": "A = 1\n\ndef f(:\n"})
    with pytest.raises(NotebookError, match=r"^toys/room.py, line 3: not Python: invalid syntax"):
        Package(tmp_path / "toys").bindings("room")


ROOMS = {
    "__init__.py": "from toys.deep.inner import Y\nA = 1\n",
    "model.py": "X = 1\n",
    "solve.py": "from toys import model as m\nfrom toys.model import X as Z\ndef f(): ...\n",
    "deep/__init__.py": "from .inner import Y as Y\nfrom . import inner\n",
    "deep/inner.py": "from ..model import X\nY = 1\n",
}


@pytest.mark.parametrize(
    ("dotted", "target", "rest"),
    [
        ("numpy.linalg.norm", Outside("numpy.linalg.norm"), ()),
        ("toys.model.X", Definition("model", "X"), ()),
        ("toys.model.X.real.imag", Definition("model", "X"), ("real", "imag")),
        ("toys.solve.Z", Definition("model", "X"), ()),
        ("toys.solve.m.X", Definition("model", "X"), ()),
        ("toys.deep.Y", Definition("deep.inner", "Y"), ()),
        ("toys.Y", Definition("deep.inner", "Y"), ()),
        ("toys.deep.inner.X", Definition("model", "X"), ()),
        ("toys.A", Definition("", "A"), ()),
        ("toys.deep.inner", WholeModule("deep.inner"), ()),
        ("toys.solve.m", WholeModule("model"), ()),
        ("toys", WholeModule(""), ()),
        ("toys.model.absent", Outside("toys.model.absent"), ()),
        ("toys.absent.X", Outside("toys.absent.X"), ()),
    ],
)
def test_a_dotted_name_leads_to_where_it_is_defined(
    tmp_path: Path, dotted: str, target: Target, rest: tuple[str, ...]
) -> None:
    write_files(tmp_path / "toys", ROOMS)
    assert Package(tmp_path / "toys").resolve(dotted) == (target, rest)


def test_definitions_are_shown_with_their_module() -> None:
    assert [str(Definition("deep.inner", "Y")), str(Definition("", "A"))] == ["deep.inner.Y", "A"]


def test_sources_are_parsed_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, parse = 0, 0, ast.parse

    def watched(source: str) -> ast.Module:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.002)
        at_once -= 1
        return parse(source)

    monkeypatch.setattr(definitions.ast, "parse", watched)
    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(definitions.syntax_tree, ["x = 1"] * 24))
    assert most == 1
    assert {ast.unparse(tree) for tree in trees} == {"x = 1"}
