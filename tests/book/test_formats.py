"""What is not imported for a notebook's format."""

import subprocess
import sys
from importlib import import_module

import pytest

from palimpsest.book.formats import UNUSED, left_out


def test_a_module_is_left_out_unless_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "json.tool", raising=False)
    assert left_out("json.tool") == "json.tool"
    with pytest.raises(ImportError):
        import_module("json.tool")
    here = sys.modules["json"]
    left_out("json")
    assert sys.modules["json"] is here


def test_a_command_builds_no_grammar_and_still_checks_notebooks() -> None:
    code = (
        "import sys, palimpsest.cli\n"
        "from palimpsest.book.formats import nbformat, v4\n"
        f"assert sys.modules[{UNUSED!r}] is None and 'lark' not in sys.modules\n"
        "nbformat.validate(v4.new_notebook())\n"
        "try:\n    nbformat.validate(v4.new_notebook(cells=[{'cell_type': 'odd'}]))\n"
        "except nbformat.ValidationError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
