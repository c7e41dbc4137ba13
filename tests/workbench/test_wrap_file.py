"""Edits without weights: in a file and back, and why no folder of weights can keep them."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.editors import EDITORS, editor_for
from palimpsest.editors.base import WeightEditor
from palimpsest.errors import ResourceError, SequenceError
from palimpsest.evaluation.answers import ask
from palimpsest.network.apply import installed
from palimpsest.network.chosen import ChosenContext
from palimpsest.network.model import fingerprint
from palimpsest.network.wraps import LayerWrap, Wrap
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.exact import sequence
from palimpsest.workbench.wrap_file import load_wrap, save_wrap
from tests.disk import flip
from tests.editors.test_serac import INSIDE, embed, held
from tests.network.test_wraps import EDITED, PAIRS
from tests.tiny import tiny_model
from tests.wraps import ACTS, PLACES, wrap

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

WITHOUT_WEIGHTS = [name for name, row in EDITORS.items() if not issubclass(row.editor, WeightEditor)]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("at", PLACES)
def test_a_memory_is_read_as_it_was_written(act: str, at: str, tmp_path: Path) -> None:
    model, file = tiny_model("llama"), tmp_path / "edit.safetensors"
    edit = wrap(model, EDITED, act, at, base=fingerprint(model))  # type: ignore[arg-type]
    save_wrap(file, edit, model.name)
    found = load_wrap(file)
    assert isinstance(found, LayerWrap)
    assert found == edit
    assert found.book.labels == EDITED
    with installed(model, edit):
        wanted = ask(model, PAIRS)
    with installed(model, found):
        assert torch.equal(ask(model, PAIRS).token_nll, wanted.token_nll)


def test_chosen_texts_need_their_embedder(tmp_path: Path) -> None:
    model, file = tiny_model("llama"), tmp_path / "edit.safetensors"
    edit = held(model)
    save_wrap(file, edit, model.name)
    found = load_wrap(file, embed)
    assert isinstance(found, ChosenContext)
    assert replace(found, notes=edit.notes) == edit
    with installed(model, edit):
        wanted = ask(model, INSIDE)
    with installed(model, found):
        assert torch.equal(ask(model, INSIDE).token_nll, wanted.token_nll)
    with pytest.raises(
        ResourceError, match="chosen by embeddings, and no embedder was given; pass embed=, the"
    ):
        load_wrap(file)


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    """One of another width, which would fail at the first prompt, and one of the same, which would not."""
    model, file = tiny_model("llama"), tmp_path / "edit.safetensors"
    save_wrap(file, held(model), model.name)
    told = "holds texts that were chosen with another embedder than the given one: "
    with pytest.raises(
        ResourceError, match=rf"{told}their embeddings have 3 numbers, and it makes 4; pass e"
    ):
        load_wrap(file, lambda texts: torch.ones(len(texts), 4).double())
    with pytest.raises(
        ResourceError, match=rf"{told}its embedding of a probe .* of -1\.000 with theirs, not"
    ):
        load_wrap(file, lambda texts: -embed(texts))
    tensors = load_file(file)
    with safe_open(file, "pt") as read:
        about = {name: text for name, text in read.metadata().items() if name != "sha256"}
    save_file(tensors | {"probe": torch.ones(())}, file, metadata=about)
    with pytest.raises(ResourceError, match="holds no embedding of a probe text; give a file that save_wrap"):
        load_wrap(file, embed)
    save_file({"vectors": tensors["vectors"]}, file, metadata=about)  # as earlier versions wrote it
    assert isinstance(load_wrap(file, lambda texts: -embed(texts)), ChosenContext)


@pytest.mark.parametrize("kind", ["memory", "texts"])
def test_a_bit_that_flips_is_seen(kind: str, tmp_path: Path) -> None:
    model, file = tiny_model("llama"), tmp_path / "edit.safetensors"
    save_wrap(file, wrap(model, EDITED) if kind == "memory" else held(model), "m")
    load_wrap(file, embed)
    flip(file)
    with pytest.raises(ResourceError, match=r"\(it was changed since it was written: its SHA-256 differs\)"):
        load_wrap(file, embed)


def test_what_is_no_file_of_an_edit(tmp_path: Path) -> None:
    model, file = tiny_model("llama"), tmp_path / "edit.safetensors"
    message = r"holds no edit without weights that can be read \(.*\); give a file that save_wrap wrote"
    with pytest.raises(ResourceError, match=message):
        load_wrap(file)
    file.write_bytes(b"nothing")
    with pytest.raises(ResourceError, match=message):
        load_wrap(file)
    about = {"format": "1", "kind": "memory", "base": "", "model": "m", "about": "{}"}
    bad = [
        {},
        about | {"format": "2"},
        about,
        about | {"kind": "weights"},
        about | {"about": "no JSON"},
        {"format": "1"},
    ]
    for told in bad:
        save_file({"keys": torch.ones(1, 2), "radii": torch.ones(1)}, file, metadata=told)
        with pytest.raises(ResourceError, match=message):
            load_wrap(file)
    save_wrap(file, wrap(model, EDITED), "m")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResourceError, match=message):
        load_wrap(file)


def test_a_failed_save_leaves_the_file(tmp_path: Path) -> None:
    @dataclass(frozen=True, eq=False)
    class Other(Wrap):
        pass

    file = tmp_path / "edit.safetensors"
    save_wrap(file, wrap(tiny_model("llama"), EDITED), "m")
    before = file.read_bytes()
    with pytest.raises(
        ResourceError, match="an edit of kind Other has no file format; save a LayerWrap or a Ch"
    ):
        save_wrap(file, Other(), "m")
    assert file.read_bytes() == before


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_no_folder_of_weights_keeps_them(name: str) -> None:
    """By name and as an object; `EditedModel` and the command say the same."""
    printed = EDITORS[name].editor.printed
    message = (
        f"{printed} changes no weight: its edits wrap the model while they are installed, and a folder of "
        r"weights cannot keep them. Use palimpsest.edit and installed\(model, edit\), with "
    )
    for editor in (name, editor_for(name, "smollm2-135m")):
        with pytest.raises(SequenceError, match=message):
            sequence(editor, "smollm2-135m")  # type: ignore[arg-type]
    with pytest.raises(SequenceError, match=message):
        EditedModel(tiny_model("llama"), name)


def test_the_command_says_so(tmp_path: Path) -> None:
    facts, model = tmp_path / "facts.jsonl", tmp_path / "model"
    facts.write_text('{"prompt": "The capital of {} is", "subject": "France", "target": "Rome"}\n')
    tiny = tiny_model("llama")
    tiny.net.save_pretrained(model)
    tiny.tokenizer.save_pretrained(model)
    options = ["--model", str(model), "--sequence", "grace"]
    run = CliRunner().invoke(app, ["edit", str(facts), "--out", str(tmp_path / "out"), *options])
    assert run.exit_code != 0
    assert isinstance(run.exception, SequenceError | SystemExit)
    said = f"{run.output} {run.exception}"
    assert "GRACE changes no weight: its edits wrap the model while they are installed" in said
    assert not (tmp_path / "out").exists()
