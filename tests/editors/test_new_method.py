"""A newcomer's method: one file, one row, its settings; everything else takes it as it is."""

from pathlib import Path

import pytest

from tests.copies import Copy

pytestmark = pytest.mark.slow

FILE = '''\
"""Toy: what the keys of the facts already say is said a little louder."""

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace

from pydantic import Field
from pydantic.dataclasses import dataclass

from palimpsest.editors.base import Prepared, State, WeightEditor, start, step_norms
from palimpsest.editors.settings import Layers
from palimpsest.memory.keys import subject_keys
from palimpsest.memory.settings import ContextSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.types import EditRequest


@plain_dataclass(frozen=True)
class ToyState(State):
    """What a sequence of toy edits carries on.

    Attributes:
        edits: how many were made.
    """

    edits: int = 0


@dataclass(frozen=True, config={"extra": "forbid"})
class Toy(WeightEditor):
    """The toy with its settings.

    Attributes:
        layers: edited layers, ascending.
        share: by which the outputs at the keys grow.
        contexts: prefixes that keys are averaged over.
    """

    keeps = ToyState

    layers: Layers
    share: float = Field(default=0.1, gt=0)
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, ToyState]:
        """Say all requests louder; see `palimpsest.edit`."""
        own: ToyState = self.own(state)
        at, deltas = self.prepare(model, own.prepared), {}
        for layer in self.layers:
            keys = subject_keys(model, requests, layer, at.contexts).double()
            deltas[layer] = self.share * read_weight(model, layer).double() @ keys @ keys.T / keys.norm() ** 2
        notes = {"facts": len(requests), "step_norm": step_norms(deltas)}
        edit = WeightDelta(deltas, fingerprint(model), notes)
        return edit, replace(own, prepared=at, edits=own.edits + 1)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Contexts alone."""
        return start(model, prepared, self.contexts, (), 0)
'''
ROW = '    "toy": Method(Toy, Style("The Toy", "#117733")),\n'
SETTINGS = "  toy:\n    layers: [4]\n    share: 0.2\n"
EDITORS = "src/palimpsest/editors/__init__.py"
MODEL = "config/models/smollm2-135m.yaml"
TESTS = [
    *("tests/editors/test_contract.py", "tests/editors/test_settings.py", "tests/test_styles.py"),
    *("tests/studies/test_any_editor.py", "tests/studies/test_printing.py", "tests/test_layering.py"),
]
SHOWN = """
import palimpsest
from palimpsest.editors import editor_for, style_of
from palimpsest.studies.printing import method_colours, method_name
print(palimpsest.__file__)
print(style_of("toy").name, style_of("toy").colour, method_name("toy"), method_colours(["toy", "memit"]))
print(editor_for("toy", "smollm2-135m", share=0.5))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    made = Copy(tmp_path / "copy")
    made.put("src/palimpsest/editors/toy.py", FILE)
    made.insert(
        EDITORS, "from palimpsest.editors.rome import Rome\n", "from palimpsest.editors.toy import Toy\n"
    )
    made.insert(EDITORS, "EDITORS: dict[str, Method] = {\n", ROW)
    made.insert(MODEL, "\neditors:\n", SETTINGS)
    return made


def test_a_method_is_its_file_a_row_and_its_settings(copy: Copy) -> None:
    """The contract, the studies, the walls between the wings and the names in print take it as it is."""
    assert copy.changed() == {"src/palimpsest/editors/toy.py", EDITORS, MODEL}
    passed, failed = copy.tests(*TESTS, "-k", "toy or [memit] or not [")
    assert failed == set()
    own = {name for name in passed if "[toy" in name or "-toy]" in name}
    contract = {name.partition("[")[0] for name in passed if "[memit]" in name}
    assert contract == {name.partition("[")[0] for name in own if "[toy]" in name}
    assert {"test_a_state_of_another_method_is_refused[memit-toy]", "test_a_stream_of_any_editor[toy]"} <= own
    place, printed, settings = copy.says(SHOWN).splitlines()
    assert Path(place).is_relative_to(copy.root)
    assert printed == "The Toy #117733 The Toy {'toy': '#117733', 'memit': '#0072B2'}"
    assert settings.startswith("Toy(layers=(4,), share=0.5, ")
    assert copy.changed() == {"src/palimpsest/editors/toy.py", EDITORS, MODEL}


@pytest.mark.parametrize(
    ("path", "old", "new", "broken"),
    [
        (MODEL, SETTINGS, "", "test_settings_for_the_embedded_model_are_on_file"),
        (
            "src/palimpsest/editors/toy.py",
            "    keeps = ToyState\n",
            "",
            "test_a_method_keeps_states_of_a_class_of_its_own",
        ),
        (
            "src/palimpsest/editors/toy.py",
            "replace(own, prepared=at, edits=own.edits + 1)",
            "ToyState(at)",
            "test_a_field_added_to_a_state_is_not_lost",
        ),
        (
            "src/palimpsest/editors/toy.py",
            "        notes =",
            "        read_weight(model, layer).mul_(1.0001)\n        notes =",
            "test_an_edit_leaves_the_model_as_it_was_and_is_for_it",
        ),
    ],
    ids=["settings", "states", "fields", "weights"],
)
def test_what_a_newcomer_forgets_is_found(copy: Copy, path: str, old: str, new: str, broken: str) -> None:
    """Negative control: the contract fails, for the toy and for no other method."""
    copy.replace(path, old, new)
    tests = [f"{broken}[toy]", f"{broken}[memit]"]
    passed, failed = copy.tests(*(f"tests/editors/test_contract.py::{name}" for name in tests))
    assert (passed, failed) == ({f"{broken}[memit]"}, {f"{broken}[toy]"})
