"""Settings of models without a file: derived from published ones, with reasons."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from palimpsest.editors import EDITORS, edit, editor_for, settings
from palimpsest.editors import derived as module
from palimpsest.editors.derived import (
    MEASURED,
    REFERENCE,
    SCALED,
    Energy,
    Shape,
    by_nearness,
    derived_settings,
    energy,
    layers_of,
    shape_of,
)
from palimpsest.editors.named_sequences import configuration
from palimpsest.editors.settings import editor_settings, known_models
from palimpsest.errors import ProfileError, UnknownNameError
from palimpsest.memory.moments import key_statistics
from palimpsest.network.model import FAMILIES
from tests.editing import REQUESTS, stub_texts
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def nearest(shape: Shape) -> str:
    return next(iter(by_nearness(shape)))


TWICE = Energy(2 * MEASURED.subject, MEASURED.text, 4 * MEASURED.direction)


FILES = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in known_models().values()}
"""Content of the settings files."""
OF_DERIVED = [
    (name, editor) for name, file in FILES.items() if "derived_from" in file for editor in file["editors"]
]


def test_published_models_have_files_and_the_layers_of_their_settings() -> None:
    known = by_nearness(shape_of(tiny_model("opt")))
    assert set(known) == {name for name, content in FILES.items() if "derived_from" not in content}
    for name, shape in known.items():
        assert max(editor_settings(name, "memit")["layers"]) < shape.depth
        assert nearest(shape) == name


@pytest.mark.parametrize(("name", "editor"), OF_DERIVED)
def test_a_file_of_derived_settings_holds_what_the_rule_gives(
    name: str, editor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for weights in units of keys, which need the model's own: these are those of its source."""
    content = FILES[name]
    monkeypatch.setattr(module, "shape_of", lambda _: Shape(**content["shape"]))
    source = content["derived_from"]
    assert nearest(Shape(**content["shape"])) == source
    found = derived_settings(tiny_model("opt"), editor, MEASURED).settings
    found |= {key: value for key, value in editor_settings(source, editor).items() if key in SCALED}
    assert content["architecture"] == content["shape"]["family"] in FAMILIES
    assert content["editors"][editor] == found | {"layers": list(found["layers"])}


@pytest.mark.parametrize(
    ("published", "depth", "own", "expected"),
    [
        ((4, 5, 6, 7, 8), 32, 32, (4, 5, 6, 7, 8)),
        ((4, 5, 6, 7, 8), 32, 24, (3, 4, 5, 6)),
        ((4, 5, 6, 7, 8), 32, 64, tuple(range(8, 17))),
        ((4, 5, 6, 7, 8), 32, 4, (1,)),
        ((13, 14, 15, 16, 17), 48, 12, (3, 4)),
        ((21,), 28, 1, (0,)),
    ],
)
def test_layers_keep_their_share_of_depth(
    published: tuple[int, ...], depth: int, own: int, expected: tuple[int, ...]
) -> None:
    assert layers_of(published, depth, own) == expected


def test_the_nearest_model_has_the_same_kind_of_mlp_then_family_then_size() -> None:
    assert nearest(Shape(32, 4096, True, "mistral")) == "llama3-8b"
    assert nearest(Shape(24, 896, True, "qwen2")) == "qwen2.5-7b"
    assert nearest(Shape(24, 1024, False, "opt")) == "gpt2-xl"
    assert nearest(Shape(44, 6144, False, "gpt_neox")) == "gpt-j-6b"
    assert nearest(Shape(30, 576, True, "llama")) == REFERENCE
    assert [shape_of(tiny_model(kind)).gated for kind in ("phi3", "gemma", "opt", "phi")] == [1, 1, 0, 0]


@pytest.mark.parametrize(("kind", "source"), [("mistral", "qwen2.5-7b"), ("opt", "gpt2-xl")])
@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_gets_settings_with_a_reason_for_each(kind: str, source: str, editor: str) -> None:
    model = tiny_model(kind)
    found = derived_settings(model, editor, TWICE)
    built: Any = EDITORS[editor].editor(**found.settings)
    text = str(found)
    assert f"{model.name} has no settings in" in text
    assert "were not searched" in text
    for name in found.settings:
        assert any(reason.startswith(f"{name} ") for reason in found.reasons), name
    if editor in ("memit", "alphaedit", "rome"):
        assert built.targets.clamp == editor_settings(source, editor)["targets"]["clamp"]
        assert f"as for {source}" in text
    assert all(layer < model.n_layers for layer in getattr(built, "layers", ()))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{depth: 28, width: 3584, gated: true}", "section shape: family: Field required"),
        ("{depth: many, width: 3584, gated: true, family: qwen2}", "section shape: depth: Input should be"),
        ("{depth: 28, width: 3584, gated: true, family: q, heads: 2}", "section shape: heads: Unexpected"),
        ("28", "section shape: : Input should be"),
    ],
)
def test_a_shape_that_cannot_be_read_names_its_file(
    row: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.yaml").write_text(f"shape: {row}\neditors: {{}}\n")
    monkeypatch.setattr(settings, "models_dir", lambda: tmp_path)
    with pytest.raises(ProfileError, match=rf"^other\.yaml, {message}"):
        by_nearness(Shape(30, 576, True, "llama"))


def test_settings_without_a_shape_name_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{REFERENCE}.yaml").write_text("editors: {memit: {layers: [1]}}\n")
    monkeypatch.setattr(settings, "models_dir", lambda: tmp_path)
    with pytest.raises(ProfileError, match=rf"^{REFERENCE}\.yaml has no section shape; give it depth"):
        derived_settings(tiny_model("opt"), "memit")


def test_weights_in_units_of_keys_grow_with_their_energy() -> None:
    model = tiny_model("mistral")
    reference, found = editor_settings(REFERENCE, "memit"), derived_settings(model, "memit", TWICE)
    assert found.settings["preserve_weight"] == 2 * reference["preserve_weight"]
    assert any("600: 300 of smollm2-135m, times 2, the ratio of the key energy" in r for r in found.reasons)
    reference, found = editor_settings(REFERENCE, "alphaedit"), derived_settings(model, "alphaedit", TWICE)
    assert found.settings["ridge"] == 2 * reference["ridge"]
    assert found.settings["threshold"] == 4 * reference["threshold"]


def test_energy_is_that_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    model = tiny_model("opt")
    found = energy(model, (1, 2), 1500)
    moments = key_statistics(model, [1, 2], 1500)
    text = torch.stack([moments[layer].value.trace() for layer in (1, 2)]).mean()
    assert found.text == pytest.approx(float(text))
    assert found.direction == pytest.approx(float(text) / 64)
    assert found.subject > 0


@pytest.mark.parametrize("kind", ["mistral", "opt"])
def test_an_edit_by_name_prints_what_was_derived(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_texts(monkeypatch)
    measure = module.energy
    monkeypatch.setattr(module, "energy", lambda model, layers, tokens: measure(model, layers, 1500))
    model = tiny_model(kind)
    made, _ = edit("ft", model, REQUESTS[:1])
    assert made.norm() > 0
    printed = capsys.readouterr().err
    assert printed.startswith(f"palimpsest: tiny-{kind}-0 has no settings in")
    assert "at the share of depth" in printed
    sequence = configuration("memit_aligned", model)
    assert sequence.preserve_weight > 0
    assert "preserve_weight" in capsys.readouterr().err
    assert editor_for("memit", model, layers=(2,)).layers == (2,)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "editor"), OF_DERIVED)
def test_settings_on_file_that_are_derived_are_said_to_be(
    name: str, editor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    editor_for(editor, name)
    source = FILES[name]["derived_from"]
    said = f"palimpsest: settings of {editor} for {name} are derived from those of {source} and were not sea"
    assert capsys.readouterr().err.startswith(said)


def test_a_model_with_a_file_gets_its_own_and_a_bare_name_none(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama")
    model.name = REFERENCE
    assert editor_for("memit", model) == editor_for("memit", REFERENCE)
    assert capsys.readouterr().err == ""
    with pytest.raises(UnknownNameError, match="pass the loaded model for derived ones"):
        editor_for("memit", "tiny-llama-0")
    with pytest.raises(ProfileError, match="no model has settings of 'nothing', so none can be derived"):
        derived_settings(tiny_model("opt"), "nothing")
    assert "tiny-llama-0" not in known_models()
