"""`palimpsest doctor --model`: the settings of each editor, on file or derived with their reasons."""

from pathlib import Path

import pytest

from palimpsest.commands import doctor
from palimpsest.editors import EDITORS, derived
from palimpsest.editors.derived import MEASURED
from palimpsest.editors.settings import models_dir
from palimpsest.workbench.settings_report import settings_report
from tests.workbench.edits import tiny_folder

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread", "unchecked")


def test_a_model_with_a_file_shows_its_sections() -> None:
    first, *lines = settings_report("gpt2-xl")
    assert first == f"gpt2-xl has settings in {models_dir() / 'gpt2-xl.yaml'}:"
    assert [line.partition(":")[0] for line in lines] == list(EDITORS)
    assert "'preserve_weight': 20000" in lines[0]
    assert any("has no settings for editor 'ike'" in line for line in lines)


def test_a_file_of_derived_settings_says_whose_they_were() -> None:
    first = next(settings_report("microsoft/phi-1_5"))
    assert first.endswith("phi-1.5.yaml, derived from those of gpt2-xl and not searched:")


def test_any_other_model_shows_what_is_derived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(derived, "energy", lambda *_: MEASURED)
    monkeypatch.setattr(doctor, "findings", lambda: iter([doctor.Finding("all", "well")]))
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(doctor.typer.Exit):
        doctor.doctor(str(folder))
    printed = capsys.readouterr().out
    assert printed.count(f"{folder} has no settings in") == len(EDITORS)
    assert "preserve_weight 300: 300 of smollm2-135m, times 1" in printed
