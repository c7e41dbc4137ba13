"""A newcomer's architecture: one row of FAMILIES, and a tiny model of it for the tests."""

from pathlib import Path

import pytest

from tests.copies import Copy

pytestmark = pytest.mark.slow

MODEL, TINY = "src/palimpsest/network/families.py", "tests/tiny.py"
ROW = '    "stablelm": Family("model.layers", "mlp.down_proj", "model.norm", rotary="model.rotary_emb"),\n'
TESTS = [
    *("tests/network", "tests/memory", "tests/evaluation/test_responses.py"),
    "tests/editors/test_editors.py::test_contract",
]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    made = Copy(tmp_path / "copy")
    made.insert(MODEL, "FAMILIES: dict[str, Family] = {\n", ROW)
    made.insert(TINY, "    LlamaForCausalLM,\n", "    StableLmConfig,\n    StableLmForCausalLM,\n")
    made.insert(
        TINY,
        '    "llama": (LlamaConfig, LlamaForCausalLM, _GATED),\n',
        '    "stablelm": (StableLmConfig, StableLmForCausalLM, _GATED),\n',
    )
    return made


def test_an_architecture_is_its_row_and_a_tiny_model(copy: Copy) -> None:
    """Every statement about all families holds for it: what passes a site, what is written and drawn."""
    assert copy.changed() == {MODEL, TINY}
    passed, failed = copy.tests(*TESTS, "-k", "stablelm or every_family")
    assert failed == set()
    assert "test_every_family_has_a_tiny_model" in passed
    assert {"test_orientation[stablelm]", "test_contract[alphaedit-stablelm]"} <= passed
    kinds = {name.partition("[")[0] for name in passed if "stablelm" in name}
    assert len(kinds) > 10


def test_a_row_that_does_not_fit_is_found(copy: Copy) -> None:
    copy.replace(MODEL, ROW, ROW.replace("mlp.down_proj", "mlp.up_proj"))
    _, failed = copy.tests("tests/network/test_model.py", "-k", "test_orientation")
    assert failed == {"test_orientation[stablelm]"}
