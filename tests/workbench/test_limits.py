"""A fact that is longer than what a model reads at once is refused, and named, before anything is written."""

from dataclasses import replace

import pytest

from palimpsest.errors import RequestError
from palimpsest.memory.settings import ContextSettings
from palimpsest.types import EditRequest
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.limits import ROOM, check_window
from tests.editing import KINDS, same_bits, snapshot
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("long", ["prompt", "subject", "target"])
def test_a_fact_that_is_too_long(kind: str, long: str) -> None:
    model = tiny_model(kind)
    window, text = model.net.config.max_position_embeddings, "many words " * 2000
    parts = {"prompt": "The city of {} is", "subject": "Anna Berg", "target": "Rome"}
    parts[long] = f"{text}{{}} is" if long == "prompt" else text.strip()
    edited, before = EditedModel(model, EDITOR), snapshot(model)
    with pytest.raises(
        RequestError,
        match=rf"request 'x': .* needs \d+ tokens, and the context of .* holds {window};",
    ):
        edited.edit([EditRequest(**parts, id="x")])
    assert same_bits(model, before)
    assert not edited.facts


def test_the_longest_that_fits_and_one_token_more() -> None:
    """Counted with the prefixes that the sequence samples."""
    model = tiny_model("llama")
    fact = EditRequest("The city of {} is", "Anna Berg", "Rome", "x")
    size = len(model.encode("The city of Anna Berg is Rome"))
    editor = replace(EDITOR, contexts=ContextSettings(count=2, length=7))
    model.net.config.max_position_embeddings = size + 7 + ROOM
    check_window(model, [fact], editor)
    model.net.config.max_position_embeddings -= 1
    with pytest.raises(RequestError, match=r"'x': .* and up to 11 for a prefix, and the context of"):
        check_window(model, [fact], editor)
    check_window(model, [fact], EDITOR)  # no prefixes
