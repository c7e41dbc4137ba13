import base64
import io

import numpy as np
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from palimpsest.book.normalise import compact_png, normalise, portable, with_current_sources, without_bars


def png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def pixels_of(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("edits:  20%|##   | 1/5 [00:00<00:00, 5.00it/s]\r" * 3 + "\n", ""),
        ("12it [00:01, 9.50it/s]\n", ""),
        ("a warning\nloss: 100%|####| 5/5 [00:01<00:00]\nanother\n", "a warning\nanother\n"),
        ("old\rnew\n", "new\n"),
        ("first\n\nsecond\n", "first\n\nsecond\n"),
        ("kept 5/6 of the spectrum, 20%\n", "kept 5/6 of the spectrum, 20%\n"),
    ],
)
def test_progress_bars_go_and_the_rest_stays(text: str, left: str) -> None:
    assert without_bars(text) == left


def test_addresses_and_temporary_names_go() -> None:
    text = "<A at 0x7f3b2c>, /tmp/ipykernel_17/123.py:3, results/laptop/01.tmp.ab12cd_f/01.json"
    assert portable(text) == "<A at 0x0>, <cell>:3, results/laptop/01.json"


def test_a_cut_stream_is_joined_and_twice_is_once() -> None:
    outputs = [
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stderr", text="x: 50%|##  | 1/2 [00:00<00:00]"),
        new_output("stream", name="stdout", text="b\n"),
        new_output("display_data", data={"text/html": '<a id="T_0ab12_row0"> T_0ab12 T_ffff1'}),
    ]
    cell = new_code_cell("1", metadata={"tags": ["injected-parameters"], "papermill": {}})
    cell.outputs = outputs
    metadata = {"papermill": {"parameters": {"seed": 1}, "duration": 3.0}}
    notebook = normalise(new_notebook(cells=[cell], metadata=metadata))
    assert cell.id == "injected-parameters"
    assert "papermill" not in cell.metadata
    assert notebook.metadata["papermill"] == {"parameters": {"seed": 1}}
    assert [out.get("text") for out in cell.outputs] == ["a\nb\n", None]
    assert cell.outputs[1].data["text/html"] == '<a id="T_00000_row0"> T_00000 T_00001'
    once = str(notebook)
    assert str(normalise(notebook)) == once


def test_a_figure_gets_smaller_and_keeps_its_colours() -> None:
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (20, 3), dtype=np.uint8)
    pixels = colours[generator.integers(0, 20, (60, 80))]
    before = png(pixels)
    after = compact_png(before)
    assert len(after) < len(before) / 2
    assert np.array_equal(pixels_of(after), pixels)
    assert compact_png(after) == after


def test_transparency_becomes_white() -> None:
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    assert (pixels_of(compact_png(png(clear))) == 255).all()


def ran(name: str, source: str, tags: str = "", text: str = "") -> NotebookNode:
    """A cell that was executed."""
    cell = new_code_cell(source, id=name, metadata={"tags": tags.split()}, execution_count=7)
    cell.outputs = [new_output("stream", text=text)] if text else []
    return cell


def test_outputs_go_to_the_present_cells_of_a_result_that_stands() -> None:
    executed = new_notebook(
        cells=[
            ran("a", "seed = 1", "parameters"),
            ran("injected-parameters", "seed = 2"),
            ran("b", "x=1", text="of b"),
            ran("gone", "y = 1", text="of gone"),
        ]
    )
    source = new_notebook(
        cells=[
            new_markdown_cell("New words.", id="words"),
            new_code_cell("seed = 1", id="a", metadata={"tags": ["parameters"]}),
            new_code_cell("x = 1", id="b"),
            new_code_cell("z = 1", id="new"),
        ]
    )
    renewed = with_current_sources(executed, source, stands=True)
    assert renewed is not None
    assert [cell.id for cell in renewed.cells] == ["words", "a", "injected-parameters", "b", "new"]
    assert [cell.get("execution_count") for cell in renewed.cells] == [None, 7, 7, 7, None]
    assert (renewed.cells[3].source, renewed.cells[3].outputs[0].text) == ("x = 1", "of b")
    assert renewed.cells[4].outputs == []
    assert with_current_sources(executed, source, stands=False) is None


def test_prose_and_what_is_shown_are_replaced_around_the_same_code_that_computes() -> None:
    executed = new_notebook(cells=[ran("a", "x = 1"), ran("b", "print(x)", "show", "old")])
    source = new_notebook(
        cells=[
            new_markdown_cell("New words.", id="w"),
            new_code_cell("x = 1", id="a"),
            new_code_cell("print(2 * x)", id="b", metadata={"tags": ["show"]}),
        ]
    )
    shown = {"b": ran("b", "print(2 * x)", "show", "new")}
    renewed = with_current_sources(executed, source, stands=False, shown=shown)
    assert renewed is not None
    assert [cell.id for cell in renewed.cells] == ["w", "a", "b"]
    assert (renewed.cells[2].source, renewed.cells[2].outputs[0].text) == ("print(2 * x)", "new")
    assert renewed.cells[2].execution_count is None


def test_a_copy_with_other_code_that_computes_is_not_renewed() -> None:
    executed = new_notebook(cells=[ran("a", "x = 1")])
    other = new_notebook(cells=[new_code_cell("x = 1", id="a"), new_code_cell("x", id="b")])
    assert with_current_sources(executed, other, stands=False) is None


def test_advice_about_widgets_is_no_part_of_a_result() -> None:
    advice = (
        "lib/tqdm/auto.py:21: TqdmWarning: IProgress not found. Please update jupyter and ipywidgets.\n"
        "  from .autonotebook import tqdm as notebook_tqdm\n"
    )
    assert without_bars(advice) == ""
    assert without_bars(f"{advice}a real warning") == "a real warning"


def test_nested_bars_leave_nothing() -> None:
    assert (
        without_bars("   \n\n   \x1b[A\n\rscoring:  50%|█████     | 1/2 [00:01<00:01,  1.0s/batch]\x1b[A")
        == ""
    )


def test_widgets_of_a_kernel_that_is_gone_are_left_out() -> None:
    cell = new_code_cell("1")
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "Loading: 0%"}
    cell.outputs = [new_output("display_data", view), new_output("display_data", {"text/plain": "kept"})]
    made = normalise(new_notebook(cells=[cell], metadata={"widgets": {"state": {}}}))
    assert [output.data for output in made.cells[0].outputs] == [{"text/plain": "kept"}]
    assert "widgets" not in made.metadata
