"""A checkout whose settings know a tiny model, that model, an edited folder of it, and facts, made once."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from palimpsest import cli
from palimpsest.types import EditRequest
from tests.editing import stub_texts
from tests.workbench.edits import facts, tiny_folder

ROW = {"layers": [0, 1, 2], "preserve_weight": 20.0, "statistics_tokens": 1500}
ROW |= {"targets": {"steps": 3, "lr": 0.3, "stop_below": 0.5}, "contexts": {"count": 0}}
SOURCE = Path(__file__).parents[2]


def make_room(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """``base``, ``edited`` (three facts) and ``facts.jsonl`` in a folder that is a checkout too."""
    (folder / "config/profiles").mkdir(parents=True)
    (folder / "config/models").mkdir()
    (folder / "pyproject.toml").touch()
    shutil.copyfile(SOURCE / "config/sequences.yaml", folder / "config/sequences.yaml")
    content = {
        "also": ["base", str(folder / "base")],
        "editors": {"memit": ROW, "alphaedit": ROW | {"preserve_weight": 30.0}},
    }
    (folder / "config/models/tiny.yaml").write_text(yaml.safe_dump(content))
    enter(folder, patch)
    stub_texts(patch)
    tiny_folder(folder / "base")
    write(folder / "facts.jsonl", facts(3))
    assert run("edit", "facts.jsonl", "--model", "base", "--out", "edited").exit_code == 0
    return folder


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with its settings and a cache in it, and without a hub."""
    patch.setenv("PALIMPSEST_ROOT", str(folder))
    patch.setenv("PALIMPSEST_CACHE", str(folder / "cache"))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.chdir(folder)


def write(path: Path, requests: Sequence[EditRequest]) -> None:
    rows = [{"id": r.id, "prompt": r.prompt, "subject": r.subject, "target": r.target} for r in requests]
    path.write_text("\n".join(map(json.dumps, rows)))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but those of the cache."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    inner = [path for path in paths if path.relative_to(folder).parts[0] != "cache"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in inner}
