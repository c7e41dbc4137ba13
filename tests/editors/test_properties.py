"""What every editor does on every family; `make contract` makes the README's table of these results."""

from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.editors import EDITORS, edit
from palimpsest.editors.ike import Ike
from palimpsest.evaluation.answers import ask
from palimpsest.network.apply import Edit, WeightDelta, commit, installed
from palimpsest.network.model import EditableModel
from palimpsest.network.wraps import Wrap
from palimpsest.workbench.edit_file import load_edit, save_edit
from palimpsest.workbench.wrap_file import load_wrap, save_wrap
from tests.editing import (
    REQUESTS,
    begun,
    same_bits,
    sampled,
    small,
    snapshot,
)
from tests.editors.test_contract import _offline  # noqa: F401 -- a fixture that every test uses
from tests.embedders import letters
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

PAIRS = [(request.text, request.target) for request in REQUESTS]
OTHERS = [("Anna Berg plays the", "piano"), ("The city is", "old")]


KEPT = [name for name, row in EDITORS.items() if row.editor is not Ike]
"""Editors whose edits have a file format; that of IKE is a text."""


def said(model: EditableModel) -> torch.Tensor:
    """NLL of every token of every target, of the facts and of others."""
    return ask(model, PAIRS + OTHERS).token_nll


def made_on(model: EditableModel, name: str) -> Edit:
    editor = small(name)
    return edit(editor, model, REQUESTS, begun(editor))[0]


@sampled(EDITORS)
def test_taken_back(name: str, kind: str) -> None:
    model = tiny_model(kind)
    before, plain = snapshot(model), said(model)
    made = made_on(model, name)
    with installed(model, made):
        assert not torch.equal(said(model), plain)
    assert same_bits(model, before)
    assert torch.equal(said(model), plain)


@sampled(EDITORS)
def test_repeats(name: str, kind: str) -> None:
    model = tiny_model(kind)
    found = []
    for _again in range(2):
        with installed(model, made_on(model, name)):
            found.append(said(model))
    assert torch.equal(*found)


@sampled(EDITORS)
def test_goes_on(name: str, kind: str) -> None:
    model = tiny_model(kind)
    editor = small(name)
    first, state = edit(editor, model, REQUESTS[:2], begun(editor))
    if isinstance(first, WeightDelta):
        commit(model, first)
    second, _state = edit(editor, model, REQUESTS[2:], state)
    plain = said(model)
    with installed(model, second):
        assert not torch.equal(said(model), plain)


@sampled(EDITORS)
def test_nests(name: str, kind: str) -> None:
    """An edit of weights by another editor, installed inside, leaves this one as it was."""
    model = tiny_model(kind)
    made = made_on(model, name)
    with installed(model, made):
        within = said(model)
        other = small("ft")
        inner, _state = edit(other, model, REQUESTS[:1], begun(other))
        with installed(model, inner):
            assert not torch.equal(said(model), within)
        assert torch.equal(said(model), within)


@sampled(EDITORS)
def test_bfloat16(name: str, kind: str) -> None:
    model = tiny_model(kind)
    model.net.to(torch.bfloat16)
    before, plain = snapshot(model), said(model)
    with installed(model, made_on(model, name)):
        found = said(model)
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    assert same_bits(model, before)


@sampled(KEPT)
def test_in_a_file(name: str, kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    made, path = made_on(model, name), tmp_path / "edit.safetensors"
    again: Any
    if isinstance(made, WeightDelta):
        save_edit(path, made, REQUESTS, model.name)
        again = load_edit(path).edit
    else:
        assert isinstance(made, Wrap)
        save_wrap(path, made, model.name)
        again = load_wrap(path, letters())
    with installed(model, made):
        wanted = said(model)
    with installed(model, again):
        assert torch.equal(said(model), wanted)
