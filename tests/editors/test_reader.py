"""What SERAC learnt: its file, where it is looked for, and an edit that uses it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from palimpsest.editors import edit, editor_for, reader, trained_files
from palimpsest.editors import serac as module
from palimpsest.editors.reader import FORMAT, read
from palimpsest.editors.serac import Scope, Serac, SeracState
from palimpsest.errors import ModelError, ProfileError, ResourceError, ShapeError
from palimpsest.evaluation.answers import ask
from palimpsest.files import file_sha256
from palimpsest.network.apply import commit, installed
from palimpsest.network.model import fingerprint, generate
from palimpsest.network.read_context import ReadContext, ScopeHead, features
from palimpsest.network.sampling import sample
from palimpsest.workbench.wrap_file import load_wrap, save_wrap
from tests.disk import flip
from tests.editing import some_reader
from tests.editors.test_serac import FACTS, INSIDE, OUTSIDE, SCOPE, embed
from tests.network.test_adapter import plain_nll
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def held(model: Any) -> ReadContext:
    made, _ = edit(Serac(), model, FACTS, SeracState(embed=embed, reader=some_reader(model, dimensions=3)))
    assert isinstance(made, ReadContext)
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_in_scope_is_read_behind_its_fact_by_the_adapted_network(kind: str) -> None:
    model = tiny_model(kind, bos=kind == "llama")
    model.net.double()
    made = held(model)
    adapter = made.adapter.double()
    texts = [f"New fact: {FACTS[i].text} {FACTS[i].target}.\n" for i in (0, 0, 1)]

    wanted = [
        plain_nll(model, text + pair[0], pair[1], adapter) for text, pair in zip(texts, INSIDE, strict=True)
    ]
    bare, said = ask(model, OUTSIDE[1:]), sample(model, [OUTSIDE[1][0]], 5, top_k=1)
    with installed(model, made):
        assert ask(model, INSIDE).nll.tolist() == pytest.approx(wanted, rel=1e-6)
        assert torch.equal(ask(model, OUTSIDE[1:]).token_nll, bare.token_nll)
        assert sample(model, [OUTSIDE[1][0]], 5, top_k=1) == said
        alone = sample(model, [INSIDE[0][0]], 4, top_k=1)[0]
        assert generate(model, INSIDE[0][0], 4) == INSIDE[0][0] + alone
    assert model.wraps == ()
    assert fingerprint(model) == made.base


def test_the_most_probable_fact_is_read_where_it_reaches_the_threshold() -> None:
    made = held(tiny_model("llama"))
    assert [made.chosen(prompt) for prompt, _ in (*INSIDE, *OUTSIDE[1:])] == [0, 0, 1, -1, -1]
    near = made.near("Italy")  # cosine 0.8 with France, at the threshold but for rounding
    assert near.tolist() == pytest.approx([0.5, torch.sigmoid(torch.tensor(-16.0)).item()], rel=1e-6)


def test_features_are_cosine_difference_and_product() -> None:
    u, v = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert features(u, v).tolist() == [pytest.approx([0.8, 0.6, 0.2, 0.0, 0.8])]
    with pytest.raises(ShapeError, match="was fitted on embeddings of 2 numbers, and these have 3; give the"):
        ScopeHead(torch.zeros(5).double(), 0.0).probabilities(torch.ones(1, 3), torch.ones(2, 3))


def test_it_is_kept_in_a_file_with_its_adapter(tmp_path: Path) -> None:
    model, file = tiny_model("llama"), tmp_path / "edit.safetensors"
    made = held(model)
    save_wrap(file, made, model.name)
    found = load_wrap(file, embed)
    assert isinstance(found, ReadContext)
    assert replace(found, notes=made.notes) == made
    other = replace(made, head=ScopeHead(made.head.weights, -15.0))
    assert other.digest != made.digest
    with installed(model, made):
        wanted = ask(model, INSIDE)
    with installed(model, found):
        assert torch.equal(ask(model, INSIDE).token_nll, wanted.token_nll)


def test_what_was_trained_is_read_as_it_was_saved_and_damage_is_seen(tmp_path: Path) -> None:
    model, path = tiny_model("llama"), tmp_path / "a.safetensors"
    made = some_reader(model)
    made.save(path, "base")
    again = read(path)
    assert (again.scope, again.about, again.head.bias) == (made.scope, made.about, made.head.bias)
    assert torch.equal(again.head.weights, made.head.weights)
    assert (again.adapter.layers, again.adapter.width) == (made.adapter.layers, made.adapter.width)
    assert torch.equal(again.adapter.down, made.adapter.down)
    assert not any(one.requires_grad for one in again.adapter.parameters())
    flip(path)
    with pytest.raises(
        ResourceError, match=r"no readable scope classifier and adapter \(it was changed since"
    ):
        read(path)
    save_file({"down": torch.zeros(1)}, path)
    with pytest.raises(ResourceError, match=f"holds 'something', not '{FORMAT}'; make it anew with `palimps"):
        read(path)
    made.save(path, "base")
    tensors = load_file(path)
    head = {"format": FORMAT, "base": "b", "layers": "[1]", "bias": "0", "scope": "{}", "about": "{}"}
    save_file(tensors, path, head)
    with pytest.raises(ResourceError, match=r"a damaged scope classifier and adapter .*which should be"):
        read(path)


def test_without_it_the_command_and_the_other_mode_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(trained_files, "carried_dir", lambda: tmp_path)
    message = (
        f"no network of serac was trained .*: palimpsest train serac {re.escape(model.name)} --data FILE"
        r"(.|\n)*An untrained SERAC needs a scope instead: pass scope=calibrated_threshold\("
    )
    with pytest.raises(ResourceError, match=message):
        edit(Serac(), model, FACTS, SeracState(embed=embed))
    own = trained_files.network_file(fingerprint(model), reader.KIND)
    some_reader(model, dimensions=3).save(own, "another model's")
    with pytest.raises(ResourceError, match=message):
        Serac().learnt(model)
    some_reader(model, dimensions=3).save(own, fingerprint(model))
    assert Serac().learnt(model) == file_sha256(own)
    assert Serac(scope=SCOPE).learnt(model) == ""
    made, state = edit(Serac(), model, FACTS, SeracState(embed=embed))
    assert isinstance(made, ReadContext)
    assert made.notes["network"] == {"plan": {"steps": 3}}
    assert made.notes["threshold"] == 0.5
    own.unlink()
    further, _ = edit(Serac(), model, FACTS[:1], state)  # a sequence keeps what it began with
    assert isinstance(further, ReadContext)
    other = tmp_path / "other.safetensors"
    with pytest.raises(ResourceError, match=rf"looked for {re.escape(str(other))}\)"):
        edit(Serac(network=str(other)), model, FACTS, SeracState(embed=embed))


def test_an_editor_is_trained_or_has_a_scope_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "reader_for", None)  # an untrained editor looks for nothing
    model = tiny_model("llama")
    state = SeracState(embed=embed, reader=some_reader(model, dimensions=3))
    made, after = edit(Serac(scope=SCOPE), model, FACTS, state)
    assert not isinstance(made, ReadContext)
    assert isinstance(after, SeracState)
    assert after.reader is None
    with pytest.raises(
        ProfileError, match=r"both a trained network \(a\.safetensors\) and a scope of its own"
    ):
        editor_for("serac", "smollm2-135m", network="a.safetensors", scope=vars(Scope(0.5, 1.0, 1, 1)))


def test_no_weight_can_keep_it() -> None:
    model = tiny_model("llama")
    with pytest.raises(
        ModelError, match="is a text before some prompts that an adapted network reads, which"
    ):
        commit(model, held(model))
