"""The embedded model is unpacked once, whoever asks, and again if a file of it was changed."""

from pathlib import Path
from typing import Any

import pytest

from palimpsest.files import file_sha256
from palimpsest.network import embedded
from palimpsest.network.model import EditableModel, fingerprint, load
from palimpsest.resources import PINS
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def _unpacked(folder: Path) -> EditableModel:
    """A small model in the place and form of the unpacked embedded one."""
    folder = folder / "models" / f"smollm2-135m-{PINS['smollm2-135m'].sha256[:12]}"
    model = tiny_model("llama")
    model.net.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    (folder / "sha256.txt").write_text(file_sha256(folder / "model.safetensors"))
    return model


def test_two_users_may_unpack_the_model_at_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first one's folder when it wants to put its own there."""
    made = tiny_model("llama")
    monkeypatch.setattr(embedded.AutoConfig, "from_pretrained", lambda *a, **k: made.net.config)
    monkeypatch.setattr(embedded.AutoTokenizer, "from_pretrained", lambda *a, **k: made.tokenizer)
    monkeypatch.setattr(embedded.resources, "fetch", lambda name: own_cache)

    def meanwhile(*args: Any, **options: Any) -> Any:
        _unpacked(own_cache)
        return made.net

    monkeypatch.setattr(embedded.AutoModelForCausalLM, "from_pretrained", meanwhile)
    folder = embedded.unpacked_model()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_the_embedded_model_is_verified_and_made_again(
    name: str,
    damage: str,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = _unpacked(own_cache)
    folder = embedded.unpacked_model()
    assert fingerprint(load("smollm2-135m")) == fingerprint(model)
    if damage == "changed":
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    else:
        (folder / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(embedded.resources, "fetch", lambda name: own_cache)
        patch.setattr(embedded, "_unpack_gguf", lambda source, folder: _unpacked(own_cache))
        assert embedded.unpacked_model() == folder
    assert f"palimpsest: {folder} is not as it was written; made again\n" in capsys.readouterr().err
    assert fingerprint(load("smollm2-135m")) == fingerprint(model)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
