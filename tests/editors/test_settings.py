"""Settings files and the messages of what they may not hold."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from palimpsest.editors import EDITORS, AlphaEdit, Memit, Rome, editor_for, settings
from palimpsest.editors.settings import editor_settings, known_models, models_dir
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.memory.settings import ContextSettings, TargetSettings

FILES = sorted(models_dir().glob("*.yaml"))
LISTED = [(path.stem, editor) for path in FILES for editor in yaml.safe_load(path.read_text())["editors"]]


@pytest.mark.parametrize(("model", "editor"), LISTED)
def test_every_editor_in_every_file_can_be_built(model: str, editor: str) -> None:
    built: Any = editor_for(editor, model)
    assert type(built) is EDITORS[editor].editor
    written = editor_settings(model, editor)
    for name, value in written.items():
        held = getattr(built, name)
        if isinstance(value, dict):
            assert {key: getattr(held, key) for key in value} == value
        else:
            assert (list(held) if isinstance(held, tuple) else held) == value


def test_the_embedded_model_has_settings_for_every_editor() -> None:
    assert {editor for model, editor in LISTED if model == "smollm2-135m"} == set(EDITORS)


def test_names_are_unique() -> None:
    """Short names and hub ids of all files together: none hides another."""
    names = {path: {path.stem, *yaml.safe_load(path.read_text()).get("also", [])} for path in FILES}
    assert sum(map(len, names.values())) == len(set().union(*names.values()))
    assert known_models() == {name: path for path, own in names.items() for name in own}


def test_overrides() -> None:
    editor: Any = editor_for("memit", "smollm2-135m", preserve_weight=7, layers=(1, 2))
    assert (editor.preserve_weight, editor.layers) == (7, (1, 2))


def test_unknown_editor() -> None:
    with pytest.raises(
        UnknownNameError,
        match=f"unknown editor 'memmit'; choose one of: {', '.join(sorted(EDITORS))}",
    ):
        editor_for("memmit", "smollm2-135m")


def test_unknown_model() -> None:
    message = (
        r"unknown model with settings in .*config/models \(add a file there, name one with --settings or "
        r"settings=, pass the loaded model for derived ones, or pass an editor object\) "
        r"'nothing'; choose one of: .*smollm2-135m"
    )
    with pytest.raises(UnknownNameError, match=message):
        editor_for("memit", "nothing")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("memit", {"lambda": 3}, r"settings of memit for smollm2-135m: .*\nlambda\n.*[Uu]nexpected keyword"),
    ("memit", {"preserve_weight": -1}, r"preserve_weight\n.*greater than or equal to 0"),
    ("memit", {"layers": ()}, r"layers\n.*one or more, ascending and distinct, got \[\]"),
    ("memit", {"layers": (5, 4)}, r"layers\n.*ascending and distinct, got \[5, 4\]"),
    ("alphaedit", {"layers": (4, 4)}, r"layers\n.*ascending and distinct, got \[4, 4\]"),
    ("alphaedit", {"ridge": 0}, r"ridge\n.*greater than 0"),
    ("alphaedit", {"rule": "relativ"}, r"rule\n.*'absolute', 'relative' or 'energy'"),
    ("alphaedit", {"threshold": "high"}, r"threshold\n.*valid number"),
    ("alphaedit_plus", {"smoothing": {"steps": 0}}, r"smoothing\.steps\n.*greater than or equal to 1"),
    ("alphaedit_plus", {"perturbation": {"order": "up"}}, r"perturbation\.order\n.*'descending' or 'gain'"),
    ("alphaedit_plus", {"past_weight": -1}, r"past_weight\n.*greater than or equal to 0"),
    ("memit", {"targets": {"reference": "value"}}, r"targets\n.*'value' cannot be spread over layers"),
    ("alphaedit_plus", {"targets": {"reference": "value"}}, r"targets\n.*set reference to 'hidden'"),
    ("rome", {"layers": (4, 5)}, r"layers\n"),
    ("rome", {"denominator": "both"}, r"denominator\n.*'same_key' or 'bare_prompt'"),
    ("rome", {"statistics_tokens": 0}, r"statistics_tokens\n.*greater than or equal to 1"),
    ("rome", {"targets": {"step": 3}}, r"targets\.step\n.*[Uu]nexpected keyword"),
    ("rome", {"targets": {"steps": 0}}, r"targets\.steps\n.*greater than or equal to 1"),
    ("memit", {"contexts": {"length": 1}}, r"contexts\.length\n.*greater than or equal to 2"),
    ("ft", {"lr": 0}, r"lr\n.*greater than 0"),
    ("ft", {"objective": "all"}, r"objective\n.*'target_new' or 'prompt_last'"),
    ("ft_l", {"limit": 0}, r"limit\n.*greater than 0"),
    ("ft_l", {"batch": 0}, r"batch\n.*greater than or equal to 1"),
    ("ft_m", {"objective": "prompt"}, r"objective\n.*'target_new' or 'prompt_last'"),
    ("r_rome", {"layers": (4, 5)}, r"layers\n"),
    ("lora", {"rank": 0}, r"rank\n.*greater than or equal to 1"),
    ("lora", {"alpha": 0}, r"alpha\n.*greater than 0"),
    ("lora", {"limit": 1}, r"limit\n.*[Uu]nexpected keyword"),
    ("emmet", {"slack": -1}, r"slack\n.*greater than or equal to 0"),
    ("emmet", {"preserve_weight": 0}, r"preserve_weight\n.*greater than 0"),
    ("kn", {"steps": 0}, r"steps\n.*greater than or equal to 1"),
    ("kn", {"adaptive_threshold": 1}, r"adaptive_threshold\n.*less than 1"),
    ("kn", {"sharing": 1}, r"sharing\n.*less than 1"),
    ("kn", {"layers": ()}, r"layers\n.*one or more, ascending and distinct, got \[\]"),
    ("mend", {"batch": 0}, r"batch\n.*greater than or equal to 1"),
    ("instruct_edit", {"instruction": ""}, r"instruction\n.*at least 1 character"),
    ("ultraedit", {"lr": 0}, r"lr\n.*greater than 0"),
    ("ultraedit", {"batch": 0}, r"batch\n.*greater than or equal to 1"),
    ("lyaplock", {"allowance": 0}, r"allowance\n.*greater than 0"),
    ("lyaplock", {"preserve_weight": 0}, r"preserve_weight\n.*greater than 0"),
    ("ike", {"count": -1}, r"count\n.*greater than or equal to 0"),
    ("ike", {"kinds": ["forget"]}, r"kinds\.0\n.*'copy', 'update' or 'retain'"),
]


@pytest.mark.parametrize(("editor", "change", "message"), BAD)
def test_a_bad_setting_is_named_with_its_limit(editor: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        editor_for(editor, "smollm2-135m", **change)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TargetSettings(lr=0),
        lambda: TargetSettings(clamp=-1),
        lambda: TargetSettings(reference="key"),  # type: ignore[arg-type]
        lambda: ContextSettings(count=-1),
        lambda: Memit(layers=()),
        lambda: AlphaEdit(layers=(2, 1)),
        lambda: Rome(layers=(1, 2)),  # type: ignore[arg-type]
    ],
)
def test_objects_are_checked_like_files(make: Any) -> None:
    with pytest.raises(ValidationError):
        make()


FAULTY = [
    (
        "editors: {memit: {layers: [1]}}",
        "alphaedit",
        r"odd\.yaml has no settings for editor 'alphaedit'; it has memit",
    ),
    ("editors: {", "memit", r"odd\.yaml is not YAML: "),
    ("- memit", "memit", r"odd\.yaml holds no mapping; it needs a section 'editors'"),
    ("", "memit", r"odd\.yaml holds no mapping; it needs a section 'editors'"),
    ("also: [x/odd]", "memit", r"odd\.yaml has no settings for editor 'memit'"),
]


@pytest.mark.parametrize(("text", "editor", "message"), FAULTY)
def test_a_faulty_file_is_named(
    text: str, editor: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    monkeypatch.setattr(settings, "models_dir", lambda: tmp_path)
    with pytest.raises(ProfileError, match=message):
        editor_for(editor, "odd")


def test_a_hub_id_finds_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.yaml").write_text("also: [x/odd]\neditors: {memit: {layers: [1]}}")
    monkeypatch.setattr(settings, "models_dir", lambda: tmp_path)
    assert editor_for("memit", "x/odd") == editor_for("memit", "odd") == Memit(layers=(1,))
