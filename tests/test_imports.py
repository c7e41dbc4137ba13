"""Reading import statements finds every module that running them loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest import paths
from palimpsest.fingerprint import WITHOUT_EFFECT, code_of_notebook
from palimpsest.imports import reached

PACKAGE = Path(__file__).parents[1] / "src" / "palimpsest"
NOTEBOOKS = sorted((PACKAGE.parents[1] / "notebooks").glob("*.ipynb"))


def _names(found: set[Path], package: Path) -> set[str]:
    return {path.relative_to(package).as_posix() for path in found}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package of five modules, whose name is the real one's."""
    package = tmp_path / "palimpsest"
    contents = {
        "__init__.py": "",
        "model.py": "X = 1\n",
        "solve.py": "def f() -> None:\n    from palimpsest.deep.inner import Y\n",
        "deep/__init__.py": "import palimpsest.other\n",
        "deep/inner.py": "Y = 1\n",
        "other.py": "import json\n",
        "apart.py": "import palimpsest.model\n",
    }
    for name, content in contents.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return package


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import json\nX = 1\n", set()),
        ("from palimpsest.model import X\n", {"model.py"}),
        ("from palimpsest import solve\n", {"solve.py", "deep/__init__.py", "deep/inner.py", "other.py"}),
        ("import palimpsest as pl\npl.load('a')\n", {"model.py"}),  # a name the package hands out
        ("import palimpsest\npalimpsest.apart.x\n", {"apart.py", "model.py"}),
        ("from palimpsest import load\n", {"model.py"}),
        ("from palimpsest.deep import Y\n", {"deep/__init__.py", "other.py"}),
        ("from palimpsest.deep import inner\n", {"deep/__init__.py", "deep/inner.py", "other.py"}),
    ],
)
def test_each_form_of_import_leads_to_its_modules(small: Path, source: str, found: set[str]) -> None:
    assert _names(reached(small, source), small) == found


def test_what_is_skipped_leads_nowhere(small: Path) -> None:
    found = reached(small, "from palimpsest import solve\n", skip=frozenset({"deep"}))
    assert _names(found, small) == {"solve.py"}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_that_a_notebook_loads_is_missed(notebook: Path) -> None:
    code = "\n".join(source for _, source in code_of_notebook(notebook))
    statements = [line for line in code.splitlines() if line.startswith(("import palimp", "from palimp"))]
    files = "[m.__file__ for name, m in sys.modules.items() if name.startswith('palimpsest.')]"
    show = f"import json, sys\nprint(json.dumps({files}))"
    command = [sys.executable, "-c", "\n".join([*statements, show])]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=paths.root()).stdout
    loaded = _names({Path(name) for name in json.loads(told)}, PACKAGE)
    loaded = {name for name in loaded if name.split("/")[0] not in WITHOUT_EFFECT}
    assert loaded
    assert loaded <= _names(reached(PACKAGE, code), PACKAGE)
